"""`--shard-size`, `--keep-order`, and what a build says before it begins."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.format import ShardSet
from pipeline.tar import member_bytes, tar_bytes
from shard_tool.cli import main

Make = Callable[..., str]
Refuse = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_no_shard_is_larger_and_few_are_much_smaller(
    photos: Path, tmp_path: Path, make: Make, samples: Samples, encoding: str
) -> None:
    make(photos, tmp_path / "set", "--size", 32, "--shard-size", "40KB", "--val-fraction", 0, "--encode", encoding)
    (split,) = ShardSet.open(tmp_path / "set").splits.values()
    sizes = split.bytes.tolist()
    assert max(sizes) <= 40_000
    assert [path.stat().st_size for path in sorted((tmp_path / "set").glob("*.tar"))] == sizes
    # Only the last shard of a group may be small, and a group makes several.
    groups = {name.decode().rpartition("-")[0] for name in split.names}
    assert len(groups) < len(sizes) / 2
    assert sum(size < 30_000 for size in sizes) <= len(groups)
    assert len(samples(tmp_path / "set")) == 60


def test_the_same_bytes_with_any_number_of_threads(photos: Path, tmp_path: Path, make: Make, hashes: Hashes) -> None:
    for threads in (1, 2, 4):
        options = ("--size", 16, "--shard-size", "20KB", "--threads", threads)
        make(photos, tmp_path / str(threads) / "set", *options)
    assert len({str(hashes(tmp_path / threads / "set")) for threads in "124"}) == 1


def test_a_sample_larger_than_the_limit_has_a_shard_of_its_own(photos: Path, tmp_path: Path, make: Make) -> None:
    options = ("--size", 128, "--encode", "raw", "--shard-size", "20KB", "--limit", 3, "--val-fraction", 0)
    make(photos, tmp_path / "set", *options)
    assert ShardSet.open(tmp_path / "set").split("train").samples.tolist() == [1, 1, 1]


def test_keep_order_gives_the_listing_from_the_first_shard_to_the_last(
    photos: Path, tmp_path: Path, make: Make, samples: Samples
) -> None:
    make(photos, tmp_path / "set", "--size", 16, "--shard-samples", 7, "--keep-order", "--val-fraction", 0.2)
    for split in ("train", "val"):
        keys = [key for key, _ in samples(tmp_path / "set", f"{split}-*.tar")]
        assert keys == sorted(keys)
    make(photos, tmp_path / "few", "--size", 16, "--keep-order", "--limit", 5, "--val-fraction", 0)
    assert [key for key, _ in samples(tmp_path / "few")] == [f"a/{number:05d}" for number in range(0, 10, 2)]


def test_limits_that_make_no_sense_are_refused(photos: Path, tmp_path: Path, refuse: Refuse) -> None:
    assert "got both" in refuse(photos, tmp_path / "set", "--shard-size", "1MB", "--shard-samples", 5)
    assert "shard-size must be a number of bytes such as 100MB" in refuse(
        photos, tmp_path / "set", "--shard-size", "5XB"
    )
    assert "at least 20,000 bytes" in refuse(photos, tmp_path / "set", "--shard-size", "1KB")


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (
            ("--shard-size", "1MB"),
            "shard_samples none (was built with 4,096), shard_size 1,000,000 (was built with none)",
        ),
        (("--keep-order",), "seed none (was built with 0), keep_order True (was built with False)"),
        (("--drop-duplicates",), "drop_duplicates True (was built with False)"),
    ],
)
def test_another_layout_is_refused_with_the_difference(
    photos: Path, tmp_path: Path, make: Make, refuse: Refuse, options: tuple[object, ...], difference: str
) -> None:
    make(photos, tmp_path / "set", "--size", 16)
    assert f"got {difference}. " in refuse(photos, tmp_path / "set", "--size", 16, *options)


def test_the_room_of_a_tar_is_known_before_it_is_written(photos: Path, tmp_path: Path, make: Make) -> None:
    make(photos, tmp_path / "set", "--size", 16, "--encode", "raw", "--no-json", "--val-fraction", 0)
    (shard,) = ShardSet.open(tmp_path / "set").split("train")
    assert shard.bytes == tar_bytes(60 * member_bytes(16 * 16 * 3 + 128))


def test_a_disk_that_is_too_small_is_refused_before_anything_is_built(
    photos: Path, tmp_path: Path, make: Make, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard_tool.build.make.LONG_BUILD_PHOTOS", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=12_000))
    error = refuse(photos, tmp_path / "set", "--size", 16)
    assert "must have room for about 0.2 MB; got 0.0 MB free" in error
    assert not list((tmp_path / "set").glob("*.tar"))
    make(photos, tmp_path / "set", "--size", 16, "--force")


def test_a_long_build_says_so_and_a_short_one_does_not(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["make-shards", str(photos), "--size", "16", "--threads", "1"]
    assert main([*command, "--out", str(tmp_path / "short")]) == 0
    assert "This takes" not in capsys.readouterr().err
    monkeypatch.setattr("shard_tool.build.make.LONG_BUILD_PHOTOS", 1)
    monkeypatch.setattr("shard_tool.build.estimate.LONG_BUILD_SECONDS", 0)
    assert main([*command, "--out", str(tmp_path / "long")]) == 0
    assert "This takes about 0 s on 1 thread, and 0.2 MB of the " in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "quiet"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""

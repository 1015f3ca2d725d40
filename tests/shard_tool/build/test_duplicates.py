"""`--drop-duplicates`: the first photo of equal bytes stays, and what was hashed is not hashed again."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shard_tool.build.journal import GroupRecord, Journal
from shard_tool.cli import main
from shard_tool.sources.folder import FolderSource

Make = Callable[..., str]
Refuse = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]
Rejections = Callable[[Path], dict[str, str]]

OPTIONS = ("--size", 16, "--shard-samples", 5, "--drop-duplicates")


@pytest.fixture
def copied(photos: Path) -> Path:
    """60 photos, and copies of three of them: one is before its original in the listing."""
    shutil.copy(photos / "a" / "00000.jpg", photos / "b" / "copy.jpg")
    shutil.copy(photos / "a" / "00000.jpg", photos / "z.jpg")
    shutil.copy(photos / "b" / "00031.jpg", photos / "a" / "first.jpg")
    other = bytearray((photos / "a" / "00004.jpg").read_bytes())
    other[-3] ^= 1
    (photos / "of the same size.jpg").write_bytes(other)
    return photos


def test_the_first_in_the_listing_stays(
    copied: Path, tmp_path: Path, make: Make, samples: Samples, rejections: Rejections
) -> None:
    printed = make(copied, tmp_path / "set", *OPTIONS)
    assert rejections(tmp_path / "set") == dict.fromkeys(("b/copy.jpg", "z.jpg", "b/00031.jpg"), "duplicate")
    lines = [json.loads(line) for line in (tmp_path / "set" / "rejected.jsonl").read_text().splitlines()]
    assert {line["path"]: line["detail"] for line in lines} == {
        "b/copy.jpg": "of a/00000.jpg",
        "z.jpg": "of a/00000.jpg",
        "b/00031.jpg": "of a/first.jpg",
    }
    assert "3 duplicate" in printed
    assert len(samples(tmp_path / "set")) == 61


def test_the_same_bytes_with_any_number_of_threads(copied: Path, tmp_path: Path, make: Make, hashes: Hashes) -> None:
    for threads in (1, 3):
        make(copied, tmp_path / str(threads) / "set", *OPTIONS, "--threads", threads)
    assert hashes(tmp_path / "1" / "set") == hashes(tmp_path / "3" / "set")


def test_a_duplicate_of_a_photo_that_a_table_leaves_out_is_none(
    copied: Path, tmp_path: Path, make: Make, rejections: Rejections
) -> None:
    names = [path.relative_to(copied).as_posix() for path in sorted(copied.rglob("*.jpg"))]
    lines = ["image_id,partition", *(f"{name},0" for name in names if name != "a/00000.jpg")]
    (copied / "list_eval_partition.csv").write_text("\n".join(lines))
    make(copied, tmp_path / "set", *OPTIONS)
    assert rejections(tmp_path / "set") == {
        "a/00000.jpg": "not in list_eval_partition.csv",
        "z.jpg": "duplicate",
        "b/00031.jpg": "duplicate",
    }


def test_a_limit_drops_duplicates_among_the_chosen_ones(
    copied: Path, tmp_path: Path, make: Make, samples: Samples, rejections: Rejections
) -> None:
    for seed in range(3):
        make(copied, tmp_path / str(seed), *OPTIONS, "--limit", 30, "--seed", seed)
        found = samples(tmp_path / str(seed))
        assert len(found) + len(rejections(tmp_path / str(seed))) == 30
        keys = {key for key, _ in found}
        assert len(keys & {"a/00000", "b/copy", "z"}) <= 1
        assert len(keys & {"a/first", "b/00031"}) <= 1


def test_a_build_that_goes_on_does_not_hash_again(
    copied: Path, tmp_path: Path, make: Make, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard_tool.sources.protocol.CHUNK_FILES", 5)
    make(copied, tmp_path / "whole" / "set", *OPTIONS)
    record = Journal.record

    def stop(self: Journal, group: GroupRecord) -> None:
        record(self, group)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", stop)
        assert main(["make-shards", str(copied), "--out", str(tmp_path / "set"), *map(str, OPTIONS), "--quiet"]) == 130
    read = FolderSource.read
    reads: list[int] = []

    def counting(self: FolderSource, item: int) -> bytes:
        reads.append(item)
        return read(self, item)

    monkeypatch.setattr(FolderSource, "read", counting)
    make(copied, tmp_path / "set", *OPTIONS)
    assert len(reads) == len(set(reads)) < 50, "each photo of the groups that were left is read once"
    assert hashes(tmp_path / "set") == hashes(tmp_path / "whole" / "set")


def test_a_photo_that_cannot_be_hashed_is_named_and_tried_again(
    copied: Path, tmp_path: Path, make: Make, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FolderSource.read

    def failing(self: FolderSource, item: int) -> bytes:
        if self.listing[item] == b"z.jpg":
            raise PermissionError(13, "Permission denied")
        return read(self, item)

    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "read", failing)
        assert "z.jpg (Permission denied)" in refuse(copied, tmp_path / "set", *OPTIONS, code=1)
    make(copied, tmp_path / "set", *OPTIONS)


def test_only_photos_of_equal_size_are_read(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "raw"
    source.mkdir()
    for number in range(20):
        (source / f"{number}.jpg").write_bytes(bytes(np.arange(20 + number // 2, dtype=np.uint8)) + bytes([number]))
    (source / "alone.jpg").write_bytes(b"alone in its size" * 10)
    read = FolderSource.read
    reads: list[bytes] = []

    def counting(self: FolderSource, item: int) -> bytes:
        reads.append(self.listing[item])
        return read(self, item)

    monkeypatch.setattr(FolderSource, "read", counting)
    assert main(["make-shards", str(source), "--out", str(tmp_path / "set"), "--drop-duplicates", "--quiet"]) == 2
    assert sorted(reads) == sorted([f"{number}.jpg".encode() for number in range(20)] * 2 + [b"alone.jpg"])


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "parquet"])
def test_sources_that_are_read_in_their_own_order(
    copied: Path, tmp_path: Path, make: Make, rejections: Rejections, kind: str
) -> None:
    names = [path.relative_to(copied).as_posix() for path in sorted(copied.rglob("*.jpg"))]
    source = tmp_path / f"photos.{kind}"
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        rows = [{"bytes": (copied / name).read_bytes(), "path": name} for name in names]
        parquet.write_table(pyarrow.table({"image": rows}), source, row_group_size=20)
    else:
        with tarfile.open(source, "w:gz" if kind == "tar.gz" else "w") as tar:
            for name in names:
                tar.add(copied / name, name)
    make(source, tmp_path / "set", *OPTIONS)
    assert list(rejections(tmp_path / "set").values()) == ["duplicate"] * 3

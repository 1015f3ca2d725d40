"""`--append`: a part of its own for the photos that are new; what is there stays as it is."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.format import ShardSet
from shard_tool.build.journal import GroupRecord, Journal
from shard_tool.care.contents import describe
from shard_tool.cli import main
from tests.shard_tool.test_kill import DIES_AT_A_RENAME

Make = Callable[..., str]
Refuse = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]
Rejections = Callable[[Path], dict[str, str]]
Pixels = Callable[..., Image.Image]

ROOT = Path(__file__).parents[3]
SMALL = ("--size", 16, "--shard-samples", 5)


@pytest.fixture
def grown(photos: Path, tmp_path: Path, make: Make, picture: Pixels) -> Path:
    """A folder with a finished set of its first 60 photos in `set`, and 30 more photos since."""
    (photos / "broken.jpg").write_bytes(b"nothing")
    make(photos, tmp_path / "set", *SMALL)
    for number in range(60, 90):
        picture(number).save(photos / "b" / f"{number:05d}.jpg", quality=90)
    (photos / "b" / "broken.jpg").write_bytes(b"nothing at all")
    return photos


def test_new_photos_become_a_part_of_their_own(
    grown: Path, tmp_path: Path, make: Make, hashes: Hashes, samples: Samples, rejections: Rejections
) -> None:
    before = hashes(tmp_path / "set")
    old = ShardSet.open(tmp_path / "set")
    printed = make(grown, tmp_path / "set", *SMALL, "--append")
    assert "31 new photos, part 2" in printed
    after = hashes(tmp_path / "set")
    changed = {"shardset.json", "rejected.jsonl"}
    assert {name: after[name] for name in before.keys() - changed} == {
        name: value for name, value in before.items() if name not in changed
    }
    opened = ShardSet.open(tmp_path / "set")
    assert opened.fingerprint != old.fingerprint
    assert len(opened.parts) == 2
    assert opened.rejected == 2
    assert rejections(tmp_path / "set") == dict.fromkeys(("broken.jpg", "b/broken.jpg"), "not an image")
    keys = [key for key, _ in samples(tmp_path / "set")]
    assert len(keys) == len(set(keys)) == 90
    for split, content in old.splits.items():
        assert [shard.name for shard in opened.splits[split]][: len(content)] == [shard.name for shard in content]
        numbers = [int(shard.name.rpartition("-")[2]) for shard in opened.splits[split]]
        assert numbers == sorted(set(numbers))
    assert describe(ShardSet.open(tmp_path / "set"))["samples"] == 90
    assert not (tmp_path / "set" / ".build").exists()


def test_an_append_is_the_same_after_any_kill(grown: Path, tmp_path: Path, make: Make, hashes: Hashes) -> None:
    first = tmp_path / "first" / "set"
    shutil.copytree(tmp_path / "set", first)
    make(grown, tmp_path / "set", *SMALL, "--append")
    expected = hashes(tmp_path / "set")
    code, number = -signal.SIGKILL, 0
    while code == -signal.SIGKILL:
        number += 3
        out = tmp_path / str(number) / "set"
        shutil.copytree(first, out)
        command = [sys.executable, "-c", DIES_AT_A_RENAME, str(number), "make-shards", str(grown), "--out", str(out)]
        code = subprocess.run([*command, *map(str, SMALL), "--append", "--quiet"], cwd=ROOT, check=False).returncode
        ShardSet.open(out)  # The set can be used all the time.
        make(grown, out, *SMALL, "--append")
        assert hashes(out) == expected, f"killed at rename {number}"
    assert code == 0
    assert number > 12


def test_nothing_new_is_said_and_no_error(grown: Path, tmp_path: Path, make: Make, hashes: Hashes) -> None:
    make(grown, tmp_path / "set", *SMALL, "--append")
    before = hashes(tmp_path / "set")
    assert "nothing to append" in make(grown, tmp_path / "set", *SMALL, "--append")
    assert "already complete" in make(grown, tmp_path / "set", *SMALL)
    assert hashes(tmp_path / "set") == before


def test_an_append_where_there_is_nothing_builds_the_set(photos: Path, tmp_path: Path, make: Make) -> None:
    make(photos, tmp_path / "set", *SMALL, "--append")
    assert len(ShardSet.open(tmp_path / "set").parts) == 1


def test_photos_that_only_arrived_are_refused_with_the_remedy(grown: Path, tmp_path: Path, refuse: Refuse) -> None:
    error = refuse(grown, tmp_path / "set", *SMALL)
    assert "got 31 more. Add them with --append" in error
    (grown / "a" / "00000.jpg").unlink()
    error = refuse(grown, tmp_path / "set", *SMALL)
    assert "photos 91 (was built with 61)" in error
    assert "--append" not in error


def test_a_photo_that_changed_is_refused(grown: Path, tmp_path: Path, refuse: Refuse, picture: Pixels) -> None:
    picture(99, (90, 90)).save(grown / "a" / "00000.jpg")
    assert "got 1 of another size, a/00000.jpg the first" in refuse(grown, tmp_path / "set", *SMALL, "--append")


def test_photos_that_are_gone_do_no_harm(grown: Path, tmp_path: Path, make: Make, samples: Samples) -> None:
    shutil.rmtree(grown / "a")
    make(grown, tmp_path / "set", *SMALL, "--append")
    assert len(samples(tmp_path / "set")) == 90


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--size", 24), "size 24 (is 16)"),
        (("--encode", "png"), "encode png (is jpeg), quality none (is 95)"),
        (("--crop", "none"), "crop stretch (is center)"),
        (("--no-json",), "json False (is True)"),
    ],
)
def test_samples_of_another_kind_are_refused(
    grown: Path, tmp_path: Path, refuse: Refuse, hashes: Hashes, options: tuple[object, ...], difference: str
) -> None:
    before = hashes(tmp_path / "set")
    assert f"got {difference}" in refuse(grown, tmp_path / "set", *SMALL, "--append", *options)
    assert hashes(tmp_path / "set") == before


def test_other_attributes_are_refused(grown: Path, tmp_path: Path, refuse: Refuse) -> None:
    (grown / "list_attr_celeba.csv").write_text("image_id,Male\n00061.jpg,1\n")
    assert "attributes Male (is none)" in refuse(grown, tmp_path / "set", *SMALL, "--append")


def test_a_part_may_be_spread_in_another_way(grown: Path, tmp_path: Path, make: Make, samples: Samples) -> None:
    options = ("--size", 16, "--shard-size", "20KB", "--seed", 5, "--val-fraction", 0.5, "--drop-duplicates")
    make(grown, tmp_path / "set", *options, "--append")
    assert len(samples(tmp_path / "set")) == 90


def test_keys_stay_apart_from_those_of_earlier_parts(
    photos: Path, tmp_path: Path, make: Make, samples: Samples, picture: Pixels
) -> None:
    make(photos, tmp_path / "set", *SMALL)
    shutil.copytree(photos / "a", tmp_path / "more" / "a")
    for path in (tmp_path / "more" / "a").glob("*.jpg"):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    make(tmp_path / "more", tmp_path / "set", *SMALL, "--append")
    keys = [key for key, _ in samples(tmp_path / "set")]
    assert len(keys) == len(set(keys)) == 90


def test_a_duplicate_of_an_earlier_part_is_left_out(
    photos: Path, tmp_path: Path, make: Make, rejections: Rejections
) -> None:
    make(photos, tmp_path / "set", *SMALL, "--drop-duplicates")
    shutil.copy(photos / "b" / "00031.jpg", photos / "a" / "before.jpg")
    make(photos, tmp_path / "set", *SMALL, "--drop-duplicates", "--append")
    assert rejections(tmp_path / "set") == {"a/before.jpg": "duplicate"}


def test_an_unfinished_append_waits_for_the_same_photos(
    grown: Path,
    tmp_path: Path,
    make: Make,
    refuse: Refuse,
    monkeypatch: pytest.MonkeyPatch,
    picture: Pixels,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(self: Journal, group: GroupRecord) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", stop)
        command = ["make-shards", str(grown), "--out", str(tmp_path / "set"), *map(str, SMALL), "--append", "--quiet"]
        assert main(command) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    picture(91).save(grown / "b" / "one more.jpg")
    error = refuse(grown, tmp_path / "set", *SMALL, "--append")
    assert f"delete {tmp_path / 'set' / '.build'} and the shards that shardset.json does not name" in error
    (grown / "b" / "one more.jpg").unlink()
    make(grown, tmp_path / "set", *SMALL, "--append")
    shards = {path.name for path in (tmp_path / "set").glob("*.tar")}
    assert shards == {
        f"{shard.name}.tar" for split in ShardSet.open(tmp_path / "set").splits.values() for shard in split
    }


def test_shards_that_an_append_would_overwrite_are_refused(grown: Path, tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "set" / "train-000099.tar").write_bytes(b"somebody's")
    assert "got train-000099.tar, perhaps of an append that was given up" in refuse(
        grown, tmp_path / "set", *SMALL, "--append"
    )


def test_a_set_that_does_not_know_its_photos_cannot_be_appended_to(grown: Path, tmp_path: Path, refuse: Refuse) -> None:
    path = tmp_path / "set" / "shardset.json"
    content = json.loads(path.read_text())
    listing = content["parts"][0].pop("listing")
    path.write_text(json.dumps(content))
    assert "got a set without" in refuse(grown, tmp_path / "set", *SMALL, "--append")
    content["parts"][0]["listing"] = listing
    path.write_text(json.dumps(content))
    np.save(tmp_path / "set" / listing["file"], np.zeros(3))
    assert "listing-000000.npy must be as shardset.json describes it; got other bytes" in refuse(
        grown, tmp_path / "set", *SMALL, "--append", code=1
    )


def test_two_parts_load_in_other_libraries(grown: Path, tmp_path: Path, make: Make) -> None:
    datasets = pytest.importorskip("datasets")
    make(grown, tmp_path / "set", *SMALL, "--append")
    loaded = datasets.load_dataset(str(tmp_path / "set"), split="train", streaming=True)
    opened = ShardSet.open(tmp_path / "set")
    assert sum(1 for _ in loaded) == opened.splits["train"].total

"""The command that built a set makes its damaged shards again, and takes them only if they are what they were."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from shard_tool.cli import main

Make = Callable[..., str]
Refuse = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
SMALL = ("--size", 16, "--shard-samples", 5)


@pytest.fixture
def built(photos: Path, tmp_path: Path, make: Make) -> Path:
    (photos / "broken.jpg").write_bytes(b"nothing")
    make(photos, tmp_path / "set", *SMALL)
    return tmp_path / "set"


def flip(path: Path, at: int = 700) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "gone", "swapped", "index", "index gone", "both", "photos", "rejected"]
)
def test_any_damage_is_restored(built: Path, photos: Path, make: Make, hashes: Hashes, damage: str) -> None:
    before = hashes(built)
    tar, index = built / "train-000002.tar", built / "train-000002.index"
    if damage == "flip":
        flip(tar)
    elif damage == "cut":
        tar.write_bytes(tar.read_bytes()[:-1024])
    elif damage == "swapped":
        other = built / "train-000001.tar"
        contents = tar.read_bytes(), other.read_bytes()
        other.write_bytes(contents[0])
        tar.write_bytes(contents[1])
    elif damage == "index":
        flip(index, 40)
    elif damage == "photos":
        flip(built / "photos.npy", 200)
    elif damage == "rejected":
        (built / "rejected.jsonl").unlink()
    if damage in ("gone", "both"):
        tar.unlink()
    if damage in ("index gone", "both"):
        index.unlink()
    printed = make(photos, built, *SMALL)
    assert ("are as they were" in printed) == (not damage.startswith("index"))
    assert hashes(built) == before
    assert "already complete" in make(photos, built, *SMALL)


@pytest.mark.parametrize(
    "options",
    [("--keep-order",), ("--drop-duplicates",), ("--shard-size", "30KB"), ("--limit", 90), ("--no-json",)],
)
def test_it_plans_as_the_build_did(
    tmp_path: Path, make_folder: Callable[..., Path], make: Make, hashes: Hashes, options: tuple[object, ...]
) -> None:
    raw = make_folder(tmp_path / "raw", 120, (40, 48))
    for number in range(30):
        shutil.copy(raw / "ab"[number % 2] / f"{number:05d}.jpg", raw / "a" / f"copy-{number}.jpg")
    size = () if options[0] == "--shard-size" else ("--shard-samples", 9)
    make(raw, tmp_path / "set", "--size", 16, *size, *options)
    before = hashes(tmp_path / "set")
    tars = sorted((tmp_path / "set").glob("train-*.tar"))
    assert len(tars) > 4
    for path in tars[1::2]:
        flip(path)
    make(raw, tmp_path / "set", "--size", 16, *size, *options)
    assert hashes(tmp_path / "set") == before


def test_photos_of_other_content_replace_nothing(
    built: Path, photos: Path, hashes: Hashes, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(built / "train-000001.tar")
    before = hashes(built)
    every = sorted(photos.glob("?/*.jpg"))
    for photo in every:
        photo.write_bytes(every[0].read_bytes().ljust(photo.stat().st_size, b"\0")[: photo.stat().st_size])
    assert main(["make-shards", str(photos), "--out", str(built), *map(str, SMALL), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "got others for train-000001, perhaps by photos of the same names and sizes and other content" in error
    assert hashes(built) == before


def test_other_library_versions_are_named(
    built: Path, photos: Path, hashes: Hashes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(built / "train-000001.tar")
    before = hashes(built)
    monkeypatch.setattr("shard_tool.build.make.library_versions", lambda: {"pillow": "0.1"})
    monkeypatch.setattr("shard_tool.build.reading.make_sample", lambda data, recipe: b"another")
    assert main(["make-shards", str(photos), "--out", str(built), *map(str, SMALL), "--quiet"]) == 1
    assert "pillow 0.1 (was " in capsys.readouterr().err
    assert hashes(built) == before


def test_a_file_that_is_no_index_of_ours_is_kept(built: Path, photos: Path, refuse: Refuse) -> None:
    (built / "train-000000.index").write_bytes(b"somebody's notes")
    assert "must be an index of this set; got another file" in refuse(photos, built, *SMALL)
    assert (built / "train-000000.index").read_bytes() == b"somebody's notes"


def test_what_a_killed_restore_left_does_no_harm(built: Path, photos: Path, make: Make, hashes: Hashes) -> None:
    before = hashes(built)
    (built / ".build" / "desk-1").mkdir(parents=True)
    (built / ".build" / "desk-1" / "train-000001.tar").write_bytes(b"half a shard")
    (built / "train-000001.tar").unlink()
    make(photos, built, *SMALL)
    assert hashes(built) == before
    assert not (built / ".build").exists()


def test_a_journal_of_another_build_beside_a_finished_set_means_nothing(
    built: Path, photos: Path, make: Make, hashes: Hashes
) -> None:
    before = hashes(built)
    (built / ".build").mkdir()
    (built / ".build" / "plan.json").write_text("{}")
    (built / ".build" / "group-000000.json").write_text(json.dumps({"number": 0, "shards": {}}))
    (built / "train-000003.tar").unlink()
    make(photos, built, *SMALL)
    assert hashes(built) == before


def test_an_archive_serves_as_well(photos: Path, tmp_path: Path, make: Make, hashes: Hashes) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "raw"), "zip", photos))
    make(archive, tmp_path / "set", *SMALL)
    before = hashes(tmp_path / "set")
    flip(tmp_path / "set" / "train-000002.tar")
    make(archive, tmp_path / "set", *SMALL)
    assert hashes(tmp_path / "set") == before


def test_photos_that_came_later_do_no_harm(
    built: Path, photos: Path, make: Make, refuse: Refuse, hashes: Hashes, picture: Callable[..., Image.Image]
) -> None:
    before = hashes(built)
    flip(built / "train-000001.tar")
    picture(99).save(photos / "a" / "00000b.jpg")
    make(photos, built, *SMALL)
    assert hashes(built) == before
    error = refuse(photos, built, *SMALL)
    assert f"got 1 new photo (a/00000b.jpg). Make another set of them (--out OTHER --not-in {built})" in error

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shard_tool.build.make
import shard_tool.build.reading
from shard_tool.build.journal import GroupRecord, Journal
from shard_tool.build.reading import Failure
from shard_tool.cli import main

Make = Callable[..., str]
Refuse = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]

SMALL = ("--size", 16, "--shard-samples", 5)


@pytest.fixture
def unfinished(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A build that was stopped by Ctrl-C after its second group of 20 photos."""
    record = Journal.record

    def stop(self: Journal, group: GroupRecord) -> None:
        record(self, group)
        if group.number == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", stop)
        patch.setattr("shard_tool.sources.protocol.CHUNK_FILES", 5)
        assert main(["make-shards", str(photos), "--out", str(tmp_path / "set"), *map(str, SMALL), "--quiet"]) == 130
    assert capsys.readouterr().err == "\nInterrupted. The same command goes on where it stopped.\n"
    monkeypatch.setattr("shard_tool.sources.protocol.CHUNK_FILES", 5)
    return tmp_path / "set"


def test_an_interrupted_build_keeps_its_finished_groups(unfinished: Path) -> None:
    assert not (unfinished / "shardset.json").exists()
    assert sorted(path.name for path in (unfinished / ".build").iterdir()) == [
        "group-000000.json",
        "group-000001.json",
        "lock",
        "photos.npy",
        "plan.json",
    ]


def test_finished_groups_are_not_built_again(
    unfinished: Path, photos: Path, tmp_path: Path, make: Make, hashes: Hashes
) -> None:
    shard = unfinished / "train-000000.tar"
    before = shard.stat()
    make(photos, unfinished, *SMALL)
    after = shard.stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    make(photos, tmp_path / "whole" / "set", *SMALL)
    assert hashes(unfinished) == hashes(tmp_path / "whole" / "set")
    assert not (unfinished / ".build").exists()


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000001.index", ".build/group-000001.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_group_whose_files_suffered_is_built_again(
    unfinished: Path, photos: Path, tmp_path: Path, make: Make, hashes: Hashes, name: str, damage: str
) -> None:
    path = unfinished / name
    content = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(content[: len(content) // 2])
    make(photos, unfinished, *SMALL)
    make(photos, tmp_path / "whole" / "set", *SMALL)
    assert hashes(unfinished) == hashes(tmp_path / "whole" / "set")


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--size", 24), "size 24 (was begun with 16)"),
        (("--crop", "none"), "crop stretch (was begun with center)"),
        (("--crop", 100), "crop 100 (was begun with center)"),
        (
            ("--encode", "png"),
            "encode png (was begun with jpeg), quality none (was begun with 95), subsampling none (was begun with 444)",
        ),
        (("--quality", 90), "quality 90 (was begun with 95)"),
        (("--val-fraction", 0.1), "val_fraction 0.1 (was begun with 0.05)"),
        (("--shard-samples", 6), "shard_samples 6 (was begun with 5)"),
        (("--seed", 1), "seed 1 (was begun with 0)"),
        (("--limit", 5), "limit 5 (was begun with none)"),
        (("--no-json",), "no_json True (was begun with False)"),
    ],
)
def test_other_settings_are_refused(
    unfinished: Path, photos: Path, refuse: Refuse, hashes: Hashes, options: tuple[object, ...], difference: str
) -> None:
    before = hashes(unfinished)
    assert f"got {difference}. " in refuse(photos, unfinished, *SMALL, *options)
    assert hashes(unfinished) == before


def test_other_photos_are_refused(unfinished: Path, photos: Path, refuse: Refuse) -> None:
    photo = photos / "a" / "00000.jpg"
    photo.write_bytes(photo.read_bytes() + b"\0")
    assert "got 1 changed photo (a/00000.jpg). Give the same" in refuse(photos, unfinished, *SMALL)
    photo.rename(photos / "a" / "new.jpg")
    error = refuse(photos, unfinished, *SMALL)
    assert "got 1 new photo (a/new.jpg), 1 missing photo. Give the same" in error


def test_other_labels_are_refused(unfinished: Path, photos: Path, refuse: Refuse) -> None:
    (photos / "list_attr_celeba.csv").write_text("image_id,Male\n00000.jpg,1\n")
    assert "attributes_sha256" in refuse(photos, unfinished, *SMALL)


def test_other_library_versions_are_refused(
    unfinished: Path, photos: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard_tool.build.make.library_versions", lambda: {"pillow": "99.0"})
    assert "pillow 99.0 (was begun with " in refuse(photos, unfinished, *SMALL)


def test_a_complete_set_stays_complete_under_other_library_versions(
    photos: Path, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(photos, tmp_path / "set", *SMALL)
    monkeypatch.setattr("shard_tool.build.make.library_versions", lambda: {"pillow": "99.0"})
    assert "already complete" in make(photos, tmp_path / "set", *SMALL)


def test_another_number_of_threads_is_welcome(unfinished: Path, photos: Path, make: Make) -> None:
    make(photos, unfinished, *SMALL, "--threads", 3)
    assert (unfinished / "shardset.json").exists()


def test_a_moved_source_is_the_same_source(unfinished: Path, photos: Path, tmp_path: Path, make: Make) -> None:
    shutil.move(photos, tmp_path / "elsewhere")
    make(tmp_path / "elsewhere", unfinished, *SMALL)


def test_a_complete_set_is_left_alone(photos: Path, tmp_path: Path, make: Make, refuse: Refuse, hashes: Hashes) -> None:
    make(photos, tmp_path / "set", *SMALL)
    before = hashes(tmp_path / "set"), (tmp_path / "set").stat().st_mtime_ns
    assert "already complete" in make(photos, tmp_path / "set", *SMALL)
    assert "size 24 (was built with 16)" in refuse(photos, tmp_path / "set", *SMALL, "--size", 24)
    assert (hashes(tmp_path / "set"), (tmp_path / "set").stat().st_mtime_ns) == before


def test_a_journal_that_a_kill_left_beside_a_complete_set_goes(photos: Path, tmp_path: Path, make: Make) -> None:
    make(photos, tmp_path / "set", *SMALL)
    (tmp_path / "set" / ".build").mkdir()
    (tmp_path / "set" / ".build" / "plan.json").write_text("{}")
    assert "already complete" in make(photos, tmp_path / "set", *SMALL)
    assert not (tmp_path / "set" / ".build").exists()


def test_a_build_that_was_killed_before_its_plan_goes_on(photos: Path, tmp_path: Path, make: Make) -> None:
    (tmp_path / "set" / ".build").mkdir(parents=True)
    (tmp_path / "set" / ".build" / "lock").touch()
    make(photos, tmp_path / "set", *SMALL)


def test_a_folder_of_something_else_is_refused(photos: Path, tmp_path: Path, refuse: Refuse, hashes: Hashes) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train-000000.index").write_text("precious")
    before = hashes(tmp_path / "mine")
    assert "which holds train-000000.index. Choose another." in refuse(photos, tmp_path / "mine", *SMALL)
    assert hashes(tmp_path / "mine") == before
    assert "a file" in refuse(photos, tmp_path / "mine" / "train-000000.index", *SMALL)


def test_a_second_build_in_the_same_folder_is_refused(
    unfinished: Path, photos: Path, refuse: Refuse, make: Make
) -> None:
    with open(unfinished / ".build" / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "one command at a time" in refuse(photos, unfinished, *SMALL)
    make(photos, unfinished, *SMALL)


def test_a_damaged_plan_says_what_to_do(unfinished: Path, photos: Path, refuse: Refuse) -> None:
    (unfinished / ".build" / "plan.json").write_text("{")
    assert "got damaged text. Delete" in refuse(photos, unfinished, *SMALL)


def test_a_finished_set_names_the_photos_that_are_others_now(
    photos: Path, tmp_path: Path, make: Make, refuse: Refuse
) -> None:
    (photos / "broken.jpg").write_bytes(b"nothing")
    make(photos, tmp_path / "set", *SMALL)
    (photos / "a" / "00002.jpg").rename(photos / "a" / "new.jpg")
    error = refuse(photos, tmp_path / "set", *SMALL)
    assert "got 1 new photo (a/new.jpg), 1 missing photo (a/00002.jpg)." in error
    (photos / "a" / "new.jpg").rename(photos / "a" / "00002.jpg")
    (photos / "a" / "more.jpg").write_bytes(b"something")
    error = refuse(photos, tmp_path / "set", *SMALL)
    assert f"got 1 new photo (a/more.jpg). Make another set of them (--out OTHER --not-in {tmp_path}" in error


def test_a_record_that_was_changed_is_not_believed(
    unfinished: Path, photos: Path, tmp_path: Path, make: Make, hashes: Hashes
) -> None:
    record = unfinished / ".build" / "group-000001.json"
    record.write_text(record.read_text().replace('"rejected": []', '"rejected": [["a", "b", "c"]]'))
    make(photos, unfinished, *SMALL)
    make(photos, tmp_path / "whole" / "set", *SMALL)
    assert hashes(unfinished) == hashes(tmp_path / "whole" / "set")


def test_records_of_another_build_are_not_believed(
    unfinished: Path, photos: Path, tmp_path: Path, make: Make, hashes: Hashes
) -> None:
    shutil.copytree(unfinished / ".build", tmp_path / "whole" / "set" / ".build")
    for name in ("plan.json", "photos.npy"):
        (tmp_path / "whole" / "set" / ".build" / name).unlink()
    shutil.rmtree(photos / "a")
    make(photos, tmp_path / "whole" / "set", *SMALL)
    make(photos, tmp_path / "clean" / "set", *SMALL)
    assert hashes(tmp_path / "whole" / "set") == hashes(tmp_path / "clean" / "set")


@pytest.mark.parametrize("text", ["[]", "7", "null", '{"shards": 3}', '{"sha256": "x", "number": []}'])
def test_a_record_of_any_json_is_built_again(unfinished: Path, photos: Path, make: Make, text: str) -> None:
    (unfinished / ".build" / "group-000000.json").write_text(text)
    make(photos, unfinished, *SMALL)


def test_what_a_kill_left_half_written_is_no_stranger(photos: Path, tmp_path: Path, make: Make) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".train-000000.tar.partial").write_bytes(b"half")
    make(photos, tmp_path / "set", *SMALL)
    assert not list((tmp_path / "set").glob(".*"))


def test_a_photo_that_changes_while_the_build_runs_is_read_again(
    photos: Path, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = photos / "a" / "00000.jpg"
    content = photo.read_bytes()
    original = shard_tool.build.make.make_plan

    def later(*arguments: object, **options: object) -> object:
        photo.write_bytes(b"")
        return original(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("shard_tool.build.make.make_plan", later)
        assert main(["make-shards", str(photos), "--out", str(tmp_path / "set"), *map(str, SMALL), "--quiet"]) == 1
    assert "a/00000.jpg (" in capsys.readouterr().err
    photo.write_bytes(content)
    make(photos, tmp_path / "set", *SMALL)
    assert not (tmp_path / "set" / "rejected.jsonl").read_bytes()


def test_photos_that_cannot_be_read_may_be_left_out(
    photos: Path,
    tmp_path: Path,
    make: Make,
    rejections: Callable[[Path], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = shard_tool.build.reading.sample_of

    def failing(source: Any, item: int, recipe: Any) -> Any:
        return Failure("Input/output error") if item == 7 else original(source, item, recipe)

    monkeypatch.setattr("shard_tool.build.reading.sample_of", failing)
    arguments = ["make-shards", str(photos), "--out", str(tmp_path / "set"), *map(str, SMALL), "--quiet"]
    assert main(arguments) == 1
    make(photos, tmp_path / "set", *SMALL, "--skip-unreadable")
    assert list(rejections(tmp_path / "set").values()) == ["unreadable"]

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.files import try_lock
from pipeline.format import RECORD, SUFFIX, Index, Shard, ShardSet, Split
from pipeline.shards.shard import ShardFile
from pipeline.tar import ShardWriter
from shard_tool.care.checks import _Record
from shard_tool.cli import main
from tests.helpers import encode, make_image, make_shard_set

Hashes = Callable[[Path], dict[str, str]]
Run = Callable[..., list[tuple[str, str | None, str]]]

OPTIONS = ("--size", "16", "--shard-samples", "6", "--val-fraction", "0.2", "--quiet")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Path:
    """A folder with photos in raw/ and their set, with attributes and a rejection, in set/."""
    home = tmp_path_factory.mktemp("built")
    raw = make_folder(home / "raw", 40, (40, 48))
    lines = ["image_id,Male,Smiling", *(f"{number:05d}.jpg,{1 if number % 3 else -1},1" for number in range(40))]
    (raw / "list_attr_celeba.csv").write_text("\n".join([*lines, "empty.jpg,1,1"]))
    (raw / "empty.jpg").touch()
    assert main(["make-shards", str(raw), "--out", str(home / "set"), *OPTIONS]) == 0
    assert len(list((home / "set").glob("*.tar"))) >= 8
    return home


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy of that set, to be damaged."""
    shutil.copytree(built / "set", tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that verifies and returns all problems, once it has compared the exit code with them."""

    def run(folder: Path, *options: object) -> list[tuple[str, str | None, str]]:
        code = main(["verify", str(folder), "--json", "--quiet", *map(str, options)])
        content = json.loads(capsys.readouterr().out)
        assert code == bool(content["problems"]) == (not content["whole"])
        return [(problem["file"], problem["key"], problem["problem"]) for problem in content["problems"]]

    return run


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def index_of(folder: Path, name: str) -> Index:
    return Index.from_bytes((folder / f"{name}.index").read_bytes(), name)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit shardset.json."""
    content = json.loads((folder / "shardset.json").read_bytes())
    change(content)
    (folder / "shardset.json").write_text(json.dumps(content))


def test_a_set_is_whole_after_it_was_built(built: Path, verify: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(built / "set") == verify(built / "set", "--quick") == []
    assert main(["verify", str(built / "set")]) == 0
    printed = capsys.readouterr()
    assert "is whole: 40 images in" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize("encoding", list(SUFFIX))
@pytest.mark.parametrize("labels", [{}, {"attributes": (), "classes": ("a", "b", "c")}, {"attributes": ()}])
def test_sets_of_every_encoding_and_label_are_whole(
    tmp_path: Path, verify: Run, encoding: str, labels: dict[str, tuple[str, ...]]
) -> None:
    make_shard_set(tmp_path / "set", encoding=encoding, **labels)
    assert verify(tmp_path / "set") == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found_and_repaired(
    built: Path, copy: Path, verify: Run, hashes: Hashes, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(sorted([*copy.glob("*.tar"), *copy.glob("*.index")])))
    whole = path.read_bytes()
    flip(path, data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7)))
    assert {file for file, _, _ in verify(copy)} == {path.name}
    assert verify(copy, "--repair", built / "raw") == []
    assert hashes(copy) == hashes(built / "set")


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("image", "has image bytes of another crc32: its bytes changed"),
        ("json", "has json bytes of another crc32: its bytes changed"),
        ("image header", "has a damaged tar header before its image"),
        ("json header", "has a damaged tar header before its json"),
        ("image padding", "has something in the padding after its image"),
        ("json padding", "has something in the padding after its json"),
    ],
)
def test_a_flipped_bit_is_named_by_its_sample(copy: Path, verify: Run, place: str, found: str) -> None:
    row = index_of(copy, "train-000001").records[2]
    kind, _, where = place.partition(" ")
    start, size = int(row[f"{kind}_offset"]), int(row[f"{kind}_size"])
    key = keys_of(copy, "train-000001")[2]
    flip(copy / "train-000001.tar", {"header": start - 500, "padding": start + size, "": start + size // 2}[where])
    problems = verify(copy)
    assert ("train-000001.tar", "row 2" if place == "image header" else key, found) in problems
    assert {file for file, _, _ in problems} == {"train-000001.tar"}
    assert any("has sha256" in what for _, _, what in problems)


def keys_of(folder: Path, name: str) -> list[str]:
    shards = ShardSet.open(folder)
    shard = next(shard for split in shards.splits.values() for shard in split if shard.name == name)
    file = ShardFile(shards, shard)
    return [file.key(row) for row in range(shard.samples)]


def cut(folder: Path) -> None:
    os.truncate(folder / "train-000002.tar", int(index_of(folder, "train-000002").records[3]["image_offset"]) + 5)


def swap(folder: Path) -> None:
    for suffix in ("tar", "index"):
        (folder / f"train-000000.{suffix}").rename(folder / "x")
        (folder / f"train-000001.{suffix}").rename(folder / f"train-000000.{suffix}")
        (folder / "x").rename(folder / f"train-000001.{suffix}")


DAMAGES: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]]]] = {
    "cut": (cut, [("train-000002.tar", "is cut off: ")]),
    "empty": (lambda folder: os.truncate(folder / "val-000000.tar", 0), [("val-000000.tar", "has 0 bytes")]),
    "missing shard": (lambda folder: (folder / "train-000000.tar").unlink(), [("train-000000.tar", "is missing")]),
    "missing index": (lambda folder: (folder / "train-000000.index").unlink(), [("train-000000.index", "is missing")]),
    "missing both": (
        lambda folder: [(folder / f"train-000000.{suffix}").unlink() for suffix in ("tar", "index")],
        [("train-000000.tar", "is missing"), ("train-000000.index", "is missing")],
    ),
    "cut index": (
        lambda folder: os.truncate(folder / "train-000000.index", 100),
        [("train-000000.index", "cannot be used: got a damaged index")],
    ),
    "empty index": (
        lambda folder: os.truncate(folder / "train-000000.index", 0),
        [("train-000000.index", "cannot be used: got a file that is none")],
    ),
    "index of another shard": (
        lambda folder: shutil.copy(folder / "train-000001.index", folder / "train-000000.index"),
        [("train-000000.index", "is that of train-000001.tar")],
    ),
    "swapped shards": (
        swap,
        [
            ("train-000000.tar", "holds the bytes of train-000001.tar"),
            ("train-000001.index", "is that of train-000000.tar"),
        ],
    ),
    "bad tar, no index": (
        lambda folder: [flip(folder / "train-000001.tar", 700), (folder / "train-000001.index").unlink()],
        [("train-000001.tar", "has sha256"), ("train-000001.index", "is missing")],
    ),
}


@pytest.mark.parametrize("quick", [(), ("--quick",)])
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damage_is_named_and_repaired(
    built: Path, copy: Path, verify: Run, hashes: Hashes, damage: str, quick: tuple[str, ...]
) -> None:
    do, expected = DAMAGES[damage]
    do(copy)
    problems = verify(copy, *quick)
    for file, what in expected:
        if not (quick and "cut off" in what):
            assert any(name == file and what in found for name, _, found in problems), problems
    assert verify(copy, *quick, "--repair", built / "raw") == []
    assert hashes(copy) == hashes(built / "set")


def test_an_index_that_lies_about_a_whole_tar_is_to_blame(built: Path, copy: Path, verify: Run, hashes: Hashes) -> None:
    index = index_of(copy, "train-000000")
    for field, lie in (("image_crc32", 1), ("image_offset", 512), ("image_size", 1), ("json_offset", 1 << 40)):
        records = index.records.copy()
        records[1][field] ^= lie
        (copy / "train-000000.index").write_bytes(dataclasses.replace(index, records=records).to_bytes())
        assert {file for file, _, _ in verify(copy)} == {"train-000000.index"}
        assert verify(copy, "--repair", built / "raw") == []
        assert hashes(copy) == hashes(built / "set")


def test_a_strange_tar_is_named_and_left_alone(built: Path, copy: Path, verify: Run) -> None:
    shutil.copy(copy / "train-000000.tar", copy / "train-000099.tar")
    expected = [("train-000099.tar", None, "is not of this set: shardset.json does not name it")]
    assert verify(copy) == verify(copy, "--repair", built / "raw") == expected


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda content: content["splits"]["train"]["shards"][0].update(samples=3), "must match its own fingerprint"),
        (lambda content: content["splits"]["val"]["shards"].pop(), "must match its own fingerprint"),
        (lambda content: content.update(image_size=17), "must match its own fingerprint"),
        (lambda content: content.pop("splits"), "got no 'splits'"),
        (lambda content: content["splits"]["val"]["shards"][0].update(bytes="many"), "'many' in place of"),
        (lambda content: content.update(attributes=["Male", "Male"]), "attributes that are not all different"),
        (lambda content: content.update(attributes=["Male", 1]), "in place of attributes, a list of words"),
        (lambda content: content.update(parts=[7]), "'[7]' in place of parts"),
        (lambda content: content["parts"][0].update(source=None), "part 1 whose source is no object"),
        (lambda content: content["parts"][0].update(positives={"val": 3}), "labels of val that are no list of counts"),
        (lambda content: content["parts"][0].update(positives={"x": []}), "labels of x, which the set does not have"),
        (lambda content: content["parts"][0].update(listing={"file": 1}), "a listing without file and sha256"),
        (
            lambda content: content["splits"]["train"].update(samples=999),
            "counts 999 samples in train; its shards hold",
        ),
        (
            lambda content: content["parts"][0]["positives"]["val"].__setitem__(0, 99),
            "counts 99 samples with 'Male' in val",
        ),
        (
            lambda content: content["parts"][0]["positives"]["val"].pop(),
            "got part 1 with counts of 1 labels of val in place of 2",
        ),
    ],
)
def test_an_edited_description_is_found(
    copy: Path, verify: Run, change: Callable[[dict[str, Any]], None], found: str
) -> None:
    rewrite(copy, change)
    problems = verify(copy)
    assert [file for file, _, _ in problems] == ["shardset.json"]
    assert found in problems[0][2]


def test_the_list_of_photos_is_part_of_the_set(copy: Path, verify: Run) -> None:
    listing = {"file": "listing-000000.npy", "sha256": hashlib.sha256(b"photos").hexdigest()}
    rewrite(copy, lambda content: content["parts"][0].update(listing=listing))
    (copy / "listing-000000.npy").write_bytes(b"photos")
    assert verify(copy) == []
    (copy / "listing-000000.npy").write_bytes(b"others")
    assert [(file, what[:11]) for file, _, what in verify(copy, "--quick")] == [("listing-000000.npy", "has sha256 ")]
    (copy / "listing-000000.npy").unlink()
    assert verify(copy, "--quick") == [("listing-000000.npy", None, "is missing")]


def test_other_bytes_in_the_description_than_in_the_tar_are_found(copy: Path, verify: Run) -> None:
    rewrite(copy, lambda content: content["splits"]["train"]["shards"][1].update(bytes=1 << 20))
    assert any("in place of 1,048,576" in what for _, _, what in verify(copy))


def test_rejections_are_counted(copy: Path, verify: Run) -> None:
    lines = (copy / "rejected.jsonl").read_text()
    for text, found in ((lines + lines, "has 2 lines in place of 1"), ("{}\n", "with a reason in line 1")):
        (copy / "rejected.jsonl").write_text(text)
        assert [(file, found in what) for file, _, what in verify(copy)] == [("rejected.jsonl", True)]
    (copy / "rejected.jsonl").unlink()
    assert verify(copy) == [("rejected.jsonl", None, "is missing, with 1 lines")]


def written(folder: Path, rows: list[tuple[str, bytes, bytes]], **fields: Any) -> Path:
    """A set of one shard with these keys, images and jsons, which says of itself what it is asked to."""
    folder.mkdir()
    writer = ShardWriter(folder, "train-000000")
    for key, image, meta in rows:
        writer.add(key, image, "jpg", meta)
    writer.close()
    index = index_of(folder, "train-000000")
    shard = Shard("train-000000", len(rows), index.tar_bytes, index.tar_sha256)
    ShardSet(folder, "made", 16, 3, "jpeg", {"train": Split.of([vars(shard)])}, **fields).save()
    return folder


GOOD = encode(make_image("train", 0, 16), "jpeg")
BUILT = ({"settings": {"json": True}},)


@pytest.mark.parametrize(
    ("image", "meta", "found"),
    [
        (GOOD[:-40], b"{}", "does not decode"),
        (b"no image", b"{}", "does not decode"),
        (encode(make_image("train", 0, 17), "jpeg"), b"{}", "has 17x17 pixels in place of 16x16"),
        (GOOD, b"{", "has a json that cannot be read"),
        (GOOD, b"[]", "has a json without the set's labels: []"),
        (GOOD, b"", "has no json"),
    ],
)
def test_a_sample_that_was_written_wrong_is_found(
    tmp_path: Path, verify: Run, image: bytes, meta: bytes, found: str
) -> None:
    folder = written(tmp_path / "set", [("a", GOOD, b"{}"), ("b", image, meta)], parts=BUILT)
    problems = verify(folder)
    assert [(file, key) for file, key, _ in problems] == [("train-000000.tar", "b")]
    assert found in problems[0][2]


@pytest.mark.parametrize(
    ("fields", "meta"),
    [
        ({"attributes": ("Male",)}, {"attributes": {"Smiling": 1}}),
        ({"attributes": ("Male",)}, {"attributes": {"Male": 2}}),
        ({"attributes": ("Male",)}, {"label": 0}),
        ({"classes": ("a", "b")}, {"label": 2}),
        ({"classes": ("a", "b")}, {"label": "a"}),
        ({"classes": ("a", "b")}, {}),
    ],
)
def test_labels_that_are_not_the_sets_are_found(
    tmp_path: Path, verify: Run, fields: dict[str, Any], meta: dict[str, Any]
) -> None:
    folder = written(tmp_path / "set", [("a", GOOD, json.dumps(meta).encode())], **fields)
    assert [(key, what[:20]) for _, key, what in verify(folder)] == [("a", "has a json without t")]


def test_a_key_that_stands_twice_is_found(tmp_path: Path, verify: Run) -> None:
    folder = written(tmp_path / "set", [("a", GOOD, b""), ("b", GOOD, b""), ("a", GOOD, b"")])
    assert verify(folder) == [("train-000000.tar", "a", "has a key that stands before too")]


def test_many_problems_of_one_file_are_cut_short_for_people(
    copy: Path, verify: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(copy.parent / "bad", [(f"{number:03d}", b"no image", b"") for number in range(30)])
    assert len(verify(folder)) == 30
    assert main(["verify", str(folder)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 12
    assert "and 20 more; --json has them all" in printed[10]
    assert printed[-1].endswith("is damaged: 30 problems in 1 file.")
    assert main(["verify", str(folder), "--quiet"]) == 1
    quiet = capsys.readouterr()
    assert (quiet.out, len(quiet.err.splitlines())) == ("", 11)


def test_a_damaged_set_names_the_repair(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(copy / "train-000000.tar", 700)
    assert main(["verify", str(copy)]) == 1
    assert f"Next: shard_tool verify {copy} --repair PHOTOS" in capsys.readouterr().out


@pytest.fixture
def refuse_repair(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that tries a repair, which must be refused in one line that it returns."""

    def run(folder: Path, photos: Path, *options: object) -> str:
        assert main(["verify", str(folder), "--quiet", "--repair", str(photos), *map(str, options)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return run


def test_other_photos_are_refused_with_the_difference(
    built: Path, copy: Path, tmp_path: Path, refuse_repair: Callable[..., str], hashes: Hashes
) -> None:
    (copy / "train-000001.tar").unlink()
    before = hashes(copy)
    shutil.copytree(built / "raw", tmp_path / "raw")
    (tmp_path / "raw" / "list_attr_celeba.csv").unlink()
    assert "attributes_sha256 none (was " in refuse_repair(copy, tmp_path / "raw")
    (tmp_path / "raw" / "a" / "00000.jpg").unlink()
    assert "got photos 40 (was 41), listing_sha256 " in refuse_repair(copy, tmp_path / "raw")
    assert "no such folder" in refuse_repair(copy, tmp_path / "nowhere")
    assert hashes(copy) == before


def test_photos_that_came_later_do_no_harm(built: Path, copy: Path, tmp_path: Path, verify: Run) -> None:
    (copy / "train-000001.tar").unlink()
    shutil.copytree(built / "raw", tmp_path / "raw")
    shutil.copy(tmp_path / "raw" / "a" / "00000.jpg", tmp_path / "raw" / "a" / "00000b.jpg")
    assert verify(copy, "--repair", tmp_path / "raw") == []


def test_photos_of_other_content_repair_nothing(
    built: Path, copy: Path, tmp_path: Path, verify: Run, hashes: Hashes
) -> None:
    flip(copy / "train-000001.tar", 700)
    before = hashes(copy)
    shutil.copytree(built / "raw", tmp_path / "raw")
    photos = sorted((tmp_path / "raw").glob("?/*.jpg"))
    for photo in photos:
        photo.write_bytes(photos[0].read_bytes().ljust(photo.stat().st_size, b"\0")[: photo.stat().st_size])
    problems = verify(copy, "--repair", tmp_path / "raw")
    assert ("train-000001.tar", None) in [(file, key) for file, key, what in problems if "built again" in what]
    assert "photos of the same names and sizes" in problems[-1][2]
    assert hashes(copy) == before


def test_other_library_versions_are_named_where_the_bytes_differ(
    built: Path, copy: Path, verify: Run, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(copy / "train-000001.tar", 700)
    before = hashes(copy)
    monkeypatch.setattr("shard_tool.settings.library_versions", lambda: {"pillow": "0.1"})
    monkeypatch.setattr("shard_tool.build.reading.make_sample", lambda data, recipe: GOOD)
    problems = verify(copy, "--repair", built / "raw")
    assert "pillow 0.1 (was " in problems[-1][2]
    assert hashes(copy) == before


def test_photos_that_cannot_be_read_are_a_fault_and_change_nothing(
    built: Path, copy: Path, hashes: Hashes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(copy / "train-000001.tar", 700)
    before = hashes(copy)

    def fail(self: object, item: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("shard_tool.sources.folder.FolderSource.read", fail)
    assert main(["verify", str(copy), "--quiet", "--repair", str(built / "raw")]) == 1
    assert "Input/output error" in capsys.readouterr().err
    assert hashes(copy) == before


def test_a_file_that_is_no_index_of_ours_is_kept(built: Path, copy: Path, verify: Run) -> None:
    (copy / "train-000000.index").write_bytes(b"somebody's notes")
    problems = verify(copy, "--repair", built / "raw")
    assert "is no index of leanstream's" in problems[-1][2]
    assert (copy / "train-000000.index").read_bytes() == b"somebody's notes"


def test_a_set_that_was_only_indexed_is_verified_and_not_repaired(
    tmp_path: Path, verify: Run, refuse_repair: Callable[..., str], photos: Path
) -> None:
    make_shard_set(tmp_path / "set")
    (tmp_path / "set" / "train-000000.index").unlink()
    assert verify(tmp_path / "set", "--repair", photos) == []
    flip(tmp_path / "set" / "train-000000.tar", 700)
    assert [file for file, _, _ in verify(tmp_path / "set")] == ["train-000000.tar"] * 2
    assert "must have been built by make-shards" in refuse_repair(tmp_path / "set", photos)


def test_what_a_killed_repair_left_does_no_harm(built: Path, copy: Path, verify: Run, hashes: Hashes) -> None:
    (copy / ".repair").mkdir()
    (copy / ".repair" / ".train-000001.tar.partial").write_bytes(b"half a shard")
    shutil.copy(copy / "train-000000.tar", copy / ".repair" / "train-000001.tar")
    (copy / "train-000001.tar").unlink()  # As between the two renames, and the index is old.
    assert verify(copy, "--repair", built / "raw") == []
    assert hashes(copy) == hashes(built / "set")


def test_one_repair_at_a_time(built: Path, copy: Path, refuse_repair: Callable[..., str]) -> None:
    flip(copy / "train-000001.tar", 700)
    (copy / ".repair").mkdir()
    with open(copy / ".repair" / "lock", "wb") as lock:
        assert try_lock(lock)
        assert "a repair that is still running" in refuse_repair(copy, built / "raw")


@pytest.mark.parametrize(
    "options", [("--keep-order",), ("--drop-duplicates",), ("--shard-size", "30KB"), ("--limit", "90"), ("--no-json",)]
)
def test_a_repair_plans_as_the_build_did(
    tmp_path: Path, make_folder: Callable[..., Path], verify: Run, hashes: Hashes, options: tuple[str, ...]
) -> None:
    raw = make_folder(tmp_path / "raw", 120, (40, 48))
    for number in range(30):
        shutil.copy(raw / "ab"[number % 2] / f"{number:05d}.jpg", raw / "a" / f"copy-{number}.jpg")
    size = () if options[0] == "--shard-size" else ("--shard-samples", "9")
    arguments = [str(raw), "--out", str(tmp_path / "set"), "--size", "16", "--quiet", *size, *options]
    assert main(["make-shards", *arguments]) == 0
    before = hashes(tmp_path / "set")
    tars = sorted((tmp_path / "set").glob("train-*.tar"))
    assert len(tars) > 4
    for path in tars[1::2]:
        flip(path, 700)
    assert verify(tmp_path / "set", "--quick", "--repair", raw) == []
    assert hashes(tmp_path / "set") == before


def test_a_repair_reads_archives_too(built: Path, tmp_path: Path, verify: Run, hashes: Hashes) -> None:
    archive = shutil.make_archive(str(tmp_path / "raw"), "zip", built / "raw")
    assert main(["make-shards", archive, "--out", str(tmp_path / "set"), *OPTIONS]) == 0
    before = hashes(tmp_path / "set")
    flip(tmp_path / "set" / "train-000002.tar", 700)
    assert verify(tmp_path / "set", "--repair", archive) == []
    assert hashes(tmp_path / "set") == before


@pytest.mark.parametrize("grown", [True, False])
def test_every_part_of_a_set_is_repaired(
    tmp_path: Path, make_folder: Callable[..., Path], verify: Run, hashes: Hashes, grown: bool
) -> None:
    """A second part from the same folder, grown, or from another one with only the new photos."""
    everything = make_folder(tmp_path / "all", 90, (40, 48))
    first, second = tmp_path / "first", tmp_path / "second"
    for number in range(90):
        name = f"{'ab'[number % 2]}/{number:05d}.jpg"
        for folder in ([first] if number % 3 else []) + ([second] if grown or not number % 3 else []):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(everything / name, folder / name)
    common = ("--out", str(tmp_path / "set"), *OPTIONS)
    assert main(["make-shards", str(first), *common]) == 0
    assert main(["make-shards", str(second), *common, "--append"]) == 0
    before = hashes(tmp_path / "set")
    assert verify(tmp_path / "set") == []
    tars = sorted((tmp_path / "set").glob("*.tar"))
    for path in tars[1::2]:
        path.unlink()
    assert verify(tmp_path / "set", "--repair", everything) == []
    assert hashes(tmp_path / "set") == before


@pytest.mark.parametrize("given", ["folders", "beside", "named"])
def test_a_repair_uses_the_labels_of_the_build(
    photos: Path, tmp_path: Path, verify: Run, hashes: Hashes, refuse_repair: Callable[..., str], given: str
) -> None:
    table = (photos if given == "beside" else tmp_path) / "mine.csv"
    table.write_text("file,mood\n" + "".join(f"{number:05d},m{number % 4}\n" for number in range(60)))
    labels = "folders" if given == "folders" else str(table)
    assert main(["make-shards", str(photos), "--out", str(tmp_path / "set"), *OPTIONS, "--labels", labels]) == 0
    before = hashes(tmp_path / "set")
    flip(tmp_path / "set" / "train-000003.tar", 700)
    if given == "named":
        moved = table.rename(tmp_path / "moved.csv")
        assert "labels must be the table that the set was made with, mine.csv" in refuse_repair(
            tmp_path / "set", photos
        )
    options = ("--labels", moved) if given == "named" else ()
    assert verify(tmp_path / "set", "--repair", photos, *options) == []
    assert hashes(tmp_path / "set") == before


def test_what_is_no_set_is_the_users_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "must be a finished shard set" in capsys.readouterr().err
    make_shard_set(tmp_path / "set")
    assert main(["verify", str(tmp_path / "set"), "--threads", "0"]) == 2


def test_records_of_an_index_and_of_a_check_have_the_same_fields() -> None:
    assert _Record._fields == RECORD.names


def test_a_celeba_set_is_whole_and_repaired(celeba: Path, tmp_path: Path, verify: Run, hashes: Hashes) -> None:
    arguments = [str(celeba), "--out", str(tmp_path / "set"), "--limit", "400", "--shard-samples", "100", "--quiet"]
    assert main(["make-shards", *arguments]) == 0
    before = hashes(tmp_path / "set")
    flip(tmp_path / "set" / "train-000000.tar", 20_000)
    assert verify(tmp_path / "set")
    assert verify(tmp_path / "set", "--repair", celeba) == []
    assert hashes(tmp_path / "set") == before

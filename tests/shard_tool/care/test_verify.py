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

from pipeline.format import SUFFIX, Index, Shard, ShardSet, Split
from pipeline.shards.shard import ShardFile
from pipeline.tar import ShardWriter
from shard_tool.cli import main
from tests.helpers import encode, make_image, make_shard_set

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
def test_any_flipped_bit_is_found(copy: Path, verify: Run, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted([*copy.glob("*.tar"), *copy.glob("*.index")])))
    whole = path.read_bytes()
    flip(path, data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7)))
    assert {file for file, _, _ in verify(copy)} == {file for file, _, _ in verify(copy, "--quick")} == {path.name}
    path.write_bytes(whole)


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
def test_damage_is_named(copy: Path, verify: Run, damage: str, quick: tuple[str, ...]) -> None:
    do, expected = DAMAGES[damage]
    do(copy)
    problems = verify(copy, *quick)
    for file, what in expected:
        if not (quick and "cut off" in what):
            assert any(name == file and what in found for name, _, found in problems), problems


def test_an_index_that_lies_about_a_whole_tar_is_to_blame(copy: Path, verify: Run) -> None:
    index = index_of(copy, "train-000000")
    for field, lie in (("image_crc32", 1), ("image_offset", 512), ("image_size", 1), ("json_offset", 1 << 40)):
        records = index.records.copy()
        records[1][field] ^= lie
        (copy / "train-000000.index").write_bytes(dataclasses.replace(index, records=records).to_bytes())
        [(file, _, what)] = verify(copy)
        assert (file, what) == ("train-000000.index", "says another place or crc32 of 1 sample than its tar")
    records = index.records[[1, 0, *range(2, len(index.records))]]
    (copy / "train-000000.index").write_bytes(dataclasses.replace(index, records=records).to_bytes())
    assert [file for file, _, _ in verify(copy)] == ["train-000000.index"]


def test_a_strange_tar_is_named_and_left_alone(copy: Path, verify: Run) -> None:
    shutil.copy(copy / "train-000000.tar", copy / "train-000099.tar")
    expected = [("train-000099.tar", None, "is not of this set: shardset.json does not name it")]
    assert verify(copy) == expected
    assert (copy / "train-000099.tar").exists()


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


def test_the_list_of_rejections_is_part_of_the_set(copy: Path, verify: Run) -> None:
    lines = (copy / "rejected.jsonl").read_text()
    for text in (lines + lines, "{}\n", lines.replace("a", "b", 1)):
        (copy / "rejected.jsonl").write_text(text)
        assert [(file, "has sha256 " in what) for file, _, what in verify(copy)] == [("rejected.jsonl", True)]
    (copy / "rejected.jsonl").unlink()
    assert verify(copy) == [("rejected.jsonl", None, "is missing")]


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
    assert verify(folder) == [("train-000000.tar", None, "cannot be used: got 'a' a second time")]
    folder = written(tmp_path / "two", [("a", GOOD, b""), ("b", GOOD, b"")])
    writer = ShardWriter(folder, "val-000000")
    writer.add("b", GOOD, "jpg")
    shard, made = writer.close(), ShardSet.open(folder)
    splits = {**made.splits, "val": Split.of([vars(shard)])}
    ShardSet(**{**vars(made), "splits": splits}).save()
    assert verify(folder) == [("val-000000.tar", "b", "has a key that stands in train-000000.tar too")]


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


def test_a_damaged_set_names_the_command_that_restores_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(copy / "train-000000.tar", 700)
    assert main(["verify", str(copy)]) == 1
    command = next(line for line in capsys.readouterr().out.splitlines() if "make-shards" in line)
    assert command.startswith(f"  shard_tool make-shards PHOTOS --out {copy} --size 16 ")
    assert "--shard-samples 6" in command
    assert main(["verify", str(copy), "--json"]) == 1
    assert command in json.loads(capsys.readouterr().out)["restore"]
    rewrite(copy, lambda content: content.update(parts=content["parts"] * 2))
    assert main(["verify", str(copy), "--quick"]) == 1
    assert "Next: copy these files again from where the set came" in capsys.readouterr().out


def test_a_set_that_was_only_indexed_is_restored_by_its_maker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "set", [("a", GOOD, b"")], parts=({"indexed": {"members": ["jpg"]}},))
    (folder / "train-000000.index").unlink()
    assert main(["verify", str(folder)]) == 1
    assert f"Next: shard_tool index {folder}\n" in capsys.readouterr().out
    flip(folder / "train-000000.tar", 700)
    assert main(["verify", str(folder)]) == 1
    assert f"Next: copy its tars again, then: shard_tool index {folder}\n" in capsys.readouterr().out


def test_a_check_changes_nothing(copy: Path, verify: Run) -> None:
    before = sorted(copy.iterdir())
    flip(copy / "train-000001.tar", 700)
    (copy / "train-000000.index").write_bytes(b"somebody's notes")
    assert {file for file, _, _ in verify(copy)} == {"train-000001.tar", "train-000000.index"}
    assert sorted(copy.iterdir()) == before
    assert (copy / "train-000000.index").read_bytes() == b"somebody's notes"


def test_one_of_anything_is_singular(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "set", [("a", GOOD, b"")])
    assert main(["verify", str(folder)]) == 0
    assert "is whole: 1 image in 1 shard, every hash" in capsys.readouterr().out


def test_what_is_no_set_is_the_users_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "must be a finished shard set" in capsys.readouterr().err
    make_shard_set(tmp_path / "set")
    assert main(["verify", str(tmp_path / "set"), "--threads", "0"]) == 2


def test_a_celeba_set_is_whole(celeba: Path, tmp_path: Path, verify: Run) -> None:
    arguments = [str(celeba), "--out", str(tmp_path / "set"), "--limit", "400", "--shard-samples", "100", "--quiet"]
    assert main(["make-shards", *arguments]) == 0
    assert verify(tmp_path / "set", "--readers") == []
    flip(tmp_path / "set" / "train-000000.tar", 20_000)
    assert {file for file, _, _ in verify(tmp_path / "set")} == {"train-000000.tar"}

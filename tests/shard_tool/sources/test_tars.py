import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.format import ShardSet
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import Source
from shard_tool.sources.ranges import LocalRanges
from shard_tool.sources.tars import TarSource
from tests.shard_tool.sources.packs import contents, tar_of, webdataset_of

Make = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]
Folder = Callable[..., Path]

SMALL = ("--size", 16, "--shard-samples", 5)
LONG = "long/" * 30


def opened(path: Path) -> TarSource:
    return TarSource.open(LocalRanges(str(path)), path.stem)


def metas(found: list[tuple[str, dict[str, bytes]]]) -> dict[str, dict[str, object]]:
    return {key: json.loads(members["json"]) for key, members in found}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_gives_the_bytes_of_its_folder(
    photos: Path, tmp_path: Path, make: Make, hashes: Hashes, form: int
) -> None:
    lines = ["image_id,Male", *(f"{number:05d}.jpg,{-1 if number % 3 else 1}" for number in range(60))]
    (photos / "list_attr_celeba.csv").write_text("\n".join(lines))
    make(photos, tmp_path / "folder" / "set", *SMALL)
    make(tar_of(photos, tmp_path / "raw.tar", format=form), tmp_path / "tar" / "set", *SMALL)
    assert hashes(tmp_path / "folder" / "set") == hashes(tmp_path / "tar" / "set")


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.text("aä/ ", min_size=1, max_size=8), st.binary(max_size=1500), min_size=1, max_size=12),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.sampled_from(["", "./", LONG]),
)
def test_every_photo_is_found_under_its_name(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], form: int, prefix: str
) -> None:
    named = {f"{prefix}x{name}y.jpg": data for name, data in files.items()}
    path = tar_of(named.items(), tmp_path_factory.mktemp("tar") / "a.tar", format=form)
    assert contents(opened(path)) == {name.removeprefix("./"): data for name, data in named.items()}


def test_links_folders_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("dir.jpg", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE), ("pipe.jpg", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            tar.addfile(member)
        for name in ("__MACOSX/a.jpg", "a.jpg", ".git/b.jpg", "notes.md"):
            tar.addfile(tarfile.TarInfo(name))
    source = opened(tmp_path / "a.tar")
    assert [*source.listing] == [b"a.jpg"]
    assert source.ignored == 1


def test_of_equal_names_the_last_counts(tmp_path: Path) -> None:
    path = tar_of([("a.jpg", b"old"), ("b.jpg", b"b"), ("a.jpg", b"new!")], tmp_path / "a.tar")
    assert contents(opened(path)) == {"a.jpg": b"new!", "b.jpg": b"b"}


@pytest.mark.parametrize("blocks", [1, 2, 2.5])
def test_a_tar_that_was_cut_off_is_one_line(tmp_path: Path, blocks: float) -> None:
    path = tar_of([(f"{number}.jpg", bytes(512)) for number in range(3)], tmp_path / "a.tar")
    path.write_bytes(path.read_bytes()[: int(1024 * blocks)])
    with pytest.raises(UserError, match="must be a whole tar"):
        opened(path)


def test_an_unpickled_tar_opens_its_file_again(photos: Path, tmp_path: Path) -> None:
    source = open_sources([str(webdataset_of(photos, tmp_path / "a.tar"))])
    again: Source = pickle.loads(pickle.dumps(source))
    assert contents(again) == contents(source)
    assert [again.carried(item) for item in range(60)] == [source.carried(item) for item in range(60)]


def test_what_a_webdataset_says_of_its_photos_is_carried_along(
    photos: Path, tmp_path: Path, make: Make, samples: Samples
) -> None:
    extras = {
        "json": lambda number: {"id": number, "who": "ä"} if number % 2 else {"id": number, "url": "x"},
        "txt": lambda number: f"face {number}\n",
    }
    make(webdataset_of(photos, tmp_path / "a.tar", extras), tmp_path / "set", *SMALL)
    found = metas(samples(tmp_path / "set"))
    assert found["000003"] == {
        "source": "000003.jpg",
        "text": "face 3",
        "original": {"id": 3, "who": "ä", "url": None},
    }
    assert all(set(meta["original"]) == {"id", "who", "url"} for meta in found.values())  # type: ignore[call-overload]
    assert len(found) == 60


def test_raw_samples_with_carried_fields_keep_one_stride(
    photos: Path, tmp_path: Path, make: Make, samples: Samples
) -> None:
    extras = {"txt": lambda number: "ä" * number}
    make(webdataset_of(photos, tmp_path / "a.tar", extras), tmp_path / "set", *SMALL, "--encode", "raw")
    texts = [members["json"] for _, members in samples(tmp_path / "set")]
    assert len({len(text) for text in texts}) == 1
    assert {len(json.loads(text)["text"]) for text in texts} == set(range(60))


def test_our_own_shards_give_their_attributes_and_splits_again(
    photos: Path, tmp_path: Path, make: Make, samples: Samples
) -> None:
    rows = [(f"{number:05d}.jpg", -1 if number % 3 else 1, number % 3) for number in range(60)]
    (photos / "list_attr_celeba.csv").write_text("image_id,Male\n" + "".join(f"{n},{v}\n" for n, v, _ in rows))
    (photos / "list_eval_partition.csv").write_text("image_id,partition\n" + "".join(f"{n},{p}\n" for n, _, p in rows))
    make(photos, tmp_path / "first", "--size", 48, "--shard-samples", 7)
    make(tmp_path / "first", tmp_path / "second", "--size", 16)
    first, second = ShardSet.open(tmp_path / "first"), ShardSet.open(tmp_path / "second")
    assert first.attributes == second.attributes == ("Male",)
    assert first.parts[0]["positives"] == second.parts[0]["positives"]
    for split in ("train", "val", "test"):
        before = metas(samples(tmp_path / "first", f"{split}-*.tar"))
        after = metas(samples(tmp_path / "second", f"{split}-*.tar"))
        assert before.keys() == after.keys()
        for key, meta in after.items():
            assert meta["attributes"] == before[key]["attributes"]
            assert meta["original"] == {"source": before[key]["source"]}


def test_photos_without_the_attributes_of_the_others_are_left_out(
    photos: Path, tmp_path: Path, make: Make, samples: Samples
) -> None:
    extras = {"json": lambda number: {"attributes": {"Male": number % 2}} if number != 5 else {"note": "none"}}
    make(webdataset_of(photos, tmp_path / "a.tar", extras), tmp_path / "set", *SMALL)
    found = metas(samples(tmp_path / "set"))
    assert len(found) == 59
    assert all(meta["attributes"] == {"Male": int(key[-1]) % 2} for key, meta in found.items())
    assert (
        '"path": "000005.jpg", "reason": "not in the labels in the source"'
        in (tmp_path / "set" / "rejected.jsonl").read_text()
    )


def test_a_broken_json_is_carried_as_text(photos: Path, tmp_path: Path) -> None:
    source = opened(webdataset_of(photos, tmp_path / "a.tar", {"json": lambda number: "{" if number == 2 else "[1]"}))
    assert source.carried(2) == {"original": {"json": "{"}}
    assert source.carried(3) == {"original": {"json": [1]}}


@pytest.mark.parametrize(
    ("label", "names", "numbers"),
    [
        (lambda number: str(number % 3), ("0", "1", "2"), [0, 1, 2, 0]),
        (lambda number: ["cat", "ape"][number % 2], ("ape", "cat"), [1, 0, 1, 0]),
    ],
)
def test_cls_files_are_classes(
    photos: Path, tmp_path: Path, label: Callable[[int], str], names: tuple[str, ...], numbers: list[int]
) -> None:
    source = opened(webdataset_of(photos, tmp_path / "a.tar", {"cls": label}))
    assert source.known.classes == names
    assert source.known.class_of is not None
    assert source.known.class_of[:4].tolist() == numbers


def test_several_shards_are_one_source_with_their_names_where_keys_repeat(
    make_folder: Folder, tmp_path: Path, make: Make, samples: Samples
) -> None:
    (tmp_path / "wds").mkdir()
    for name, count in (("train-000", 12), ("train-001", 9), ("validation-000", 5)):
        webdataset_of(make_folder(tmp_path / name, count), tmp_path / "wds" / f"{name}.tar")
    make(tmp_path / "wds", tmp_path / "set", *SMALL)
    train, val = (metas(samples(tmp_path / "set", f"{split}-*.tar")) for split in ("train", "val"))
    assert (len(train), len(val)) == (21, 5)
    assert train["train-001/000003"]["source"] == "train-001/000003.jpg"
    assert set(val) == {f"validation-000/{number:06d}" for number in range(5)}

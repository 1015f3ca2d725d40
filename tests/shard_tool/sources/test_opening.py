import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.format import SUFFIX, ShardSet, Split, npy_bytes
from shard_tool.sources.listing import printable
from shard_tool.sources.opening import name_of, open_sources
from shard_tool.sources.protocol import Source, Wanted, split_in_name
from tests.shard_tool.sources.packs import tar_of, webdataset_of, zip_of

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("/data/celeba-dataset.zip", "celeba-dataset"),
        ("faces.tar.gz", "faces"),
        ("faces.v2.parquet", "faces.v2"),
        ("/data/raw/", "raw"),
        ("s3://bucket/faces.ZIP", "faces"),
        ("https://host/a/faces.tgz?token=x.zip", "faces"),
        ("photos.7z", "photos.7z"),
    ],
)
def test_a_source_is_named_after_its_file(where: str, name: str) -> None:
    assert name_of(where) == name


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000001", 0),
        ("data/validation-00000-of-00001", 1),
        ("faces_test", 2),
        ("celeba.val.3", 1),
        ("training", 0),
        ("faces", -1),
        ("contest-1", -1),
        ("trainer", -1),
    ],
)
def test_splits_are_words_of_a_name(name: str, split: int) -> None:
    assert split_in_name(name) == split


def test_what_a_file_is_does_not_depend_on_its_name(photos: Path, tmp_path: Path) -> None:
    zip_of(photos, tmp_path / "download")
    tar_of(photos, tmp_path / "faces.zip", "gz")
    listings = [open_sources([str(tmp_path / name)]).listing for name in ("download", "faces.zip")]
    assert sorted(listings[0]) == sorted(listings[1])


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"7z\xbc\xaf\x27\x1c\0", r"got .*img\.zip, a 7z file, not a zip\. Unpack it \(7z x FILE\)"),
        (b"Rar!\x1a\x07\0", r"a rar file, not a zip\. Unpack it \(unrar x FILE\)"),
        (b"\xff\xd8\xff\xe0", r"a photo, not a zip\. Name the folder that it lies in"),
        (b"", r"an empty file, not a zip\. Download or copy it again"),
        (b"\n<!DOCTYPE html><html>", r"a web page, not a zip: the download was refused"),
        (b"<html><head>Quota exceeded", r"a web page, not a zip: the download was refused"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"a pointer of git-lfs .*git lfs pull"),
        (b"one,two\n", r"a text file, not a zip\. Name a folder of photos"),
    ],
)
def test_what_is_no_source_gets_a_remedy(tmp_path: Path, start: bytes, message: str) -> None:
    (tmp_path / "img.zip").write_bytes(start)
    for source in (tmp_path / "img.zip", tmp_path):
        with pytest.raises(UserError, match=message):
            open_sources([str(source)])


def test_a_source_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got no such folder or file"):
        open_sources([str(tmp_path / "nowhere")])
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="got a broken link"):
        open_sources([str(tmp_path / "link")])
    with pytest.raises(UserError, match="got an empty word"):
        open_sources([""])


def test_a_folder_of_photos_and_archives_is_both(photos: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed" / "deep"
    packed.mkdir(parents=True)
    zip_of(photos / "a", packed / "a.zip")
    assert len(open_sources([str(tmp_path / "packed")]).listing) == 30
    zip_of(photos / "a", photos / "spare.zip")
    source = open_sources([str(photos)])
    assert (len(source.listing), source.name, source.ignored) == (90, "raw", {})
    source = open_sources([str(photos)], Wanted(exclude=("*.zip",)))
    assert (len(source.listing), source.ignored) == (60, {"excluded": 1})
    source = open_sources([str(photos)], Wanted(include=("spare.zip",)))
    assert (len(source.listing), source.ignored) == (30, {"excluded": 60})


def test_a_folder_whose_photos_and_archives_have_other_labels_names_the_choice(photos: Path, tmp_path: Path) -> None:
    webdataset_of(photos / "a", photos / "a.tar", {"cls": lambda number: str(number % 2)})
    with pytest.raises(UserError, match=r"must have the same labels; .*--include and --exclude"):
        open_sources([str(photos)])
    assert open_sources([str(photos)], Wanted(include=("*.tar",))).known.classes == ("0", "1")


def test_archives_and_tables_without_images_are_counted_beside_others(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "laion"
    folder.mkdir()
    webdataset_of(photos / "a", folder / "00000.tar")
    parquet.write_table(arrow.table({"url": ["x"] * 3}), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    tar_of([("notes.md", b"no photo")], folder / "notes.tar")
    source = open_sources([str(folder)])
    assert len(source.listing) == 30
    assert source.ignored == {
        "table without images": 1, "archive without images": 1, "not an image": 1, "sidecar": 30,
    }  # fmt: skip
    parquet.write_table(arrow.table({"url": ["x"] * 3}), photos / "metadata.parquet")
    source = open_sources([str(photos)])
    assert (len(source.listing), source.ignored) == (60, {"table without images": 1})
    (folder / "00000.tar").unlink()
    (folder / "notes.tar").unlink()
    with pytest.raises(UserError, match="url"):
        open_sources([str(folder)])


def files_in(source: Source) -> int:
    return len(source.listing) + sum(source.ignored.values())


def test_every_file_is_a_photo_or_counted(photos: Path, tmp_path: Path) -> None:
    more = {
        "__MACOSX/a.jpg": b"",
        ".hidden.jpg": b"",
        "list_attr.csv": b"",
        "a.md": b"",
        "b/x.txt": b"",
        "out/c.jpg": b"",
    }
    for name, data in more.items():
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(data)
    wanted = Wanted(exclude=("out/",))
    packed = tmp_path / "packed"
    packed.mkdir()
    places = [
        photos,
        zip_of(photos, packed / "p.zip"),
        tar_of(photos, packed / "q.tar"),
        tar_of(photos, tmp_path / "r.tgz", "gz"),
    ]
    for place in places:
        source = open_sources([str(place)], wanted)
        assert (len(source.listing), files_in(source)) == (60, 66), place
        assert source.ignored["excluded"] == 1
    assert files_in(open_sources([str(packed)], wanted)) == 2 * 66
    (packed / "notes.md").touch()
    assert files_in(open_sources([str(packed), str(photos)], wanted)) == 3 * 66 + 1


def test_globs_that_match_nothing_are_errors(photos: Path, tmp_path: Path) -> None:
    zip_of(photos / "a", tmp_path / "a.zip")
    both = [str(tmp_path / "a.zip"), str(photos / "b")]
    assert len(open_sources(both, Wanted(include=("00000.jpg",))).listing) == 1
    with pytest.raises(UserError, match=r"--include must match a photo; got '\*\.gif', which matches none"):
        open_sources(both, Wanted(include=("*.jpg", "*.gif")))
    with pytest.raises(UserError, match=r"--exclude must match a file; got '\*\.gif'"):
        open_sources(both, Wanted(exclude=("*.gif",)))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(label="folders"), r"--label must be given .*--labels folders"),
        (Wanted(image="x"), r"--image must be given with .*parquet"),
        (Wanted(attributes=("x",)), r"--attributes must be given with .*parquet"),
        (Wanted(split="train"), r"--split must be given with .*--include"),
        (Wanted(config="x"), r"--config must be given with .*hf://datasets/USER/NAME"),
        (Wanted(revision="x"), r"--revision must be given with .*hf://datasets/USER/NAME"),
    ],
)
def test_an_option_that_no_source_takes_is_an_error(photos: Path, wanted: Wanted, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_sources([str(photos)], wanted)


def splits_of(source: Source) -> dict[str, int]:
    assert source.known.split_of is not None
    return dict(zip(map(printable, source.listing), source.known.split_of.tolist(), strict=True))


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"photo")
    return root


def test_folders_called_train_and_val_are_splits_however_they_are_packed(tmp_path: Path) -> None:
    raw = put(
        tmp_path / "raw", "faces/train/a/1.jpg", "faces/train/2.jpg", "faces/Validation/3.jpg", "faces/test/4.jpg"
    )
    expected = {"faces/train/a/1.jpg": 0, "faces/train/2.jpg": 0, "faces/Validation/3.jpg": 1, "faces/test/4.jpg": 2}
    for place in (raw, zip_of(raw, tmp_path / "raw.zip"), tar_of(raw, tmp_path / "raw.tar")):
        assert splits_of(open_sources([str(place)])) == expected
    named = open_sources([str(raw / "faces/train"), str(raw / "faces/test")])
    assert splits_of(named) == {"a/1.jpg": 0, "2.jpg": 0, "4.jpg": 2}


def test_archives_in_folders_called_train_and_val_are_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "sets" / split).mkdir(parents=True)
        tar_of([(f"{split}-1.jpg", b"x")], tmp_path / "sets" / split / "0.tar")
    for names in (["sets"], ["sets/*/*.tar"], ["sets/train/0.tar", "sets/val/0.tar"]):
        source = open_sources([str(tmp_path / name) for name in names])
        assert splits_of(source) == {"train-1.jpg": 0, "val-1.jpg": 1}


def test_photos_in_no_split_beside_splits_are_an_error(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", "train/1.jpg", "test/2.jpg", "preview.jpg")
    with pytest.raises(UserError, match=r"every photo must be in a split if some are; got 1 in none, in '\.' beside"):
        open_sources([str(raw)])
    source = open_sources([str(raw)], Wanted(exclude=("preview.jpg",)))
    assert splits_of(source) == {"test/2.jpg": 2, "train/1.jpg": 0}
    assert open_sources([str(put(tmp_path / "one", "train/1.jpg", "other/2.jpg"))]).known.split_of is None


def test_tables_beside_an_archive_are_its_own_unless_it_has_labels(photos: Path, tmp_path: Path) -> None:
    put(tmp_path, "CelebA/Anno/t.csv", "CelebA/Img/t.csv")
    (tmp_path / "CelebA/Eval").mkdir()
    image = tmp_path / "CelebA" / "Img"
    places = [zip_of(photos, image / "i.zip"), tar_of(photos, image / "i.tar"), tar_of(photos, image / "i.tgz", "gz")]
    for place in places:
        found = open_sources([str(place)]).side_files("t.csv")
        assert [Path(file.where).parent.name for file in found] == ["Img", "Anno"]
        assert not any(file.inside for file in found)
    assert open_sources([str(image)], Wanted(include=("i.zip",))).side_files("t.csv")[0].inside
    labelled = webdataset_of(photos / "a", image / "w.tar", {"cls": lambda number: str(number % 2)})
    assert open_sources([str(labelled)]).side_files("t.csv") == []


def shard_set(folder: Path, encoding: str) -> ShardSet:
    """A set of two images of 4 px of class `bee` and one of class `ape`, the last in val."""
    folder.mkdir(parents=True)
    splits: dict[str, Split] = {}
    for split, numbers in (("train", (0, 1)), ("val", (2,))):
        entries = []
        for number in numbers:
            image = npy_bytes(np.full((4, 4, 3), number, np.uint8)) if encoding == "raw" else b"jpeg %d" % number
            label = {"source": f"{number}.png", "label": int(number < 2)}
            entries += [(f"{number}.{SUFFIX[encoding]}", image), (f"{number}.json", json.dumps(label).encode())]
        data = tar_of(entries, folder / f"{split}-000000.tar").read_bytes()
        row = {"name": f"{split}-000000", "samples": len(numbers), "bytes": len(data)}
        splits[split] = Split.of([{**row, "sha256": hashlib.sha256(data).hexdigest()}])
    opened = ShardSet(folder, folder.name, 4, 3, encoding, splits, classes=("ape", "bee"))
    opened.save()
    return opened


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_a_shard_set_is_a_source_with_its_classes_and_splits(tmp_path: Path, encoding: str) -> None:
    shard_set(tmp_path / "faces-4", encoding)
    source = open_sources([str(tmp_path / "faces-4")])
    assert source.name == "faces-4"
    assert list(splits_of(source).values()) == [0, 0, 1]
    assert source.known.classes == ("ape", "bee")
    assert source.known.class_of is not None
    assert source.known.class_of.tolist() == [1, 1, 0]
    if encoding == "jpeg":
        assert [*source.read_through(range(3))] == [b"jpeg 0", b"jpeg 1", b"jpeg 2"]
    else:
        with Image.open(io.BytesIO(source.read(2)), formats=["PPM"]) as image:
            assert np.array_equal(np.asarray(image), np.full((4, 4, 3), 2))
    assert len(open_sources([str(tmp_path / "faces-4")], Wanted(split="val")).listing) == 1
    assert len(open_sources([str(tmp_path / "faces-4")], Wanted(include=("2.*",))).listing) == 1


def test_a_shard_set_below_a_folder_is_none_of_its_photos(photos: Path, tmp_path: Path) -> None:
    shard_set(photos / "shards" / "raw-4", "jpeg")
    put(photos, "shards/begun/.build/plan", "shards/begun/train-000000.tar")
    source = open_sources([str(photos)])
    assert (len(source.listing), source.ignored) == (60, {"shard set": 2})
    with pytest.raises(UserError, match="got an unfinished build"):
        open_sources([str(photos / "shards" / "begun")])

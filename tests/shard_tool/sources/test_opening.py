from pathlib import Path

import pytest

from pipeline.errors import UserError
from shard_tool.sources.opening import name_of, open_sources
from shard_tool.sources.protocol import split_in_name
from tests.shard_tool.sources.packs import tar_of, zip_of


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
        (b"7z\xbc\xaf\x27\x1c", r"got .*photos, a 7z file\. Unpack it \(7z x FILE\)"),
        (b"Rar!\x1a\x07", r"got .*photos, a rar file\. Unpack it \(unrar x FILE\)"),
        (b"\xff\xd8\xff\xe0", r"got .*photos, something else\. Name a folder of photos"),
        (b"", r"got .*photos, something else\. Name a folder of photos"),
    ],
)
def test_what_is_no_source_gets_a_remedy(tmp_path: Path, start: bytes, message: str) -> None:
    (tmp_path / "photos").write_bytes(start.ljust(600, b"\0") if start else b"")
    with pytest.raises(UserError, match=message):
        open_sources([str(tmp_path / "photos")])


def test_a_folder_of_archives_is_their_photos_and_one_with_photos_is_a_folder(photos: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed" / "deep"
    packed.mkdir(parents=True)
    zip_of(photos / "a", packed / "a.zip")
    assert len(open_sources([str(tmp_path / "packed")]).listing) == 30
    zip_of(photos / "a", photos / "spare.zip")
    source = open_sources([str(photos)])
    assert len(source.listing) == 60
    assert source.ignored == 1


def test_a_source_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got no such folder or file"):
        open_sources([str(tmp_path / "nowhere")])

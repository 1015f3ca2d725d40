import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.format import SUFFIX, Index, ShardSet
from pipeline.tar import ShardWriter, scan_tar
from shard_tool.sources.folder import FolderSource

Make = Callable[..., str]
Refuse = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]
Rejections = Callable[[Path], dict[str, str]]
Pixels = Callable[..., Image.Image]

SMALL = ("--size", 16, "--shard-samples", 5)


def test_every_photo_becomes_one_sample(photos: Path, tmp_path: Path, make: Make, samples: Samples) -> None:
    make(photos, tmp_path / "set", *SMALL)
    found = samples(tmp_path / "set")
    assert sorted(key for key, _ in found) == [f"{'ab'[n % 2]}/{n:05d}" for n in (*range(0, 60, 2), *range(1, 60, 2))]
    for key, members in found:
        assert set(members) == {"jpg", "json"}
        assert json.loads(members["json"]) == {"source": f"{key}.jpg"}


def test_the_set_describes_itself(photos: Path, tmp_path: Path, make: Make) -> None:
    make(photos, tmp_path / "set", *SMALL, "--val-fraction", 0.2)
    opened = ShardSet.open(tmp_path / "set")
    assert (opened.name, opened.image_size, opened.channels, opened.encoding) == ("set", 16, 3, "jpeg")
    assert sum(split.total for split in opened.splits.values()) == 60
    assert set(opened.splits) == {"train", "val"}
    assert str(tmp_path) not in (tmp_path / "set" / "shardset.json").read_text()
    for split in opened.splits.values():
        for shard in split:
            index = Index.from_bytes((opened.folder / f"{shard.name}.index").read_bytes(), shard.name)
            assert scan_tar(opened.folder / f"{shard.name}.tar").to_bytes() == index.to_bytes()
            assert (index.tar_sha256, index.tar_bytes, len(index.records)) == (shard.sha256, shard.bytes, shard.samples)


def test_any_number_of_threads_gives_the_same_bytes(photos: Path, tmp_path: Path, make: Make, hashes: Hashes) -> None:
    (photos / "broken.jpg").write_bytes(b"nothing")
    found = []
    for threads in (1, 2, 4):
        make(photos, tmp_path / str(threads) / "set", *SMALL, "--threads", threads)
        found.append(hashes(tmp_path / str(threads) / "set"))
    assert found[0] == found[1] == found[2]


def test_the_bytes_do_not_depend_on_where_the_source_lies(
    photos: Path, tmp_path: Path, make: Make, hashes: Hashes
) -> None:
    make(photos, tmp_path / "one" / "set", *SMALL)
    shutil.copytree(photos, tmp_path / "moved" / "raw")
    make(tmp_path / "moved" / "raw", tmp_path / "two" / "set", *SMALL)
    assert hashes(tmp_path / "one" / "set") == hashes(tmp_path / "two" / "set")


@pytest.mark.parametrize("encoding", list(SUFFIX))
@pytest.mark.parametrize("options", [(), ("--no-json",)])
def test_every_encoding_with_and_without_json(
    photos: Path, tmp_path: Path, make: Make, samples: Samples, encoding: str, options: tuple[str, ...]
) -> None:
    make(photos, tmp_path / "set", *SMALL, "--encode", encoding, *options)
    assert {tuple(members) for _, members in samples(tmp_path / "set")} == {
        (SUFFIX[encoding],) if options else (SUFFIX[encoding], "json")
    }


@pytest.mark.parametrize("options", [(), ("--no-json",)])
def test_raw_shards_are_one_strided_array(
    tmp_path: Path, picture: Pixels, make: Make, samples: Samples, options: tuple[str, ...]
) -> None:
    source = tmp_path / "raw"
    for number in range(20):
        path = source / ("x" * (number % 7) + f"ä{number}") / "photo.png"
        path.parent.mkdir(parents=True)
        picture(number, (40, 40)).save(path)
    names = sorted(path.relative_to(source) for path in source.rglob("*.png"))
    lines = ["image_id,Male,Smiling", *(f"{name},1,-1" for name in names)]
    (source / "list_attr_celeba.csv").write_text("\n".join(lines) + "\n")
    make(
        source, tmp_path / "set", "--size", 16, "--encode", "raw", "--shard-samples", 100, "--val-fraction", 0, *options
    )
    (shard,) = ShardSet.open(tmp_path / "set").split("train")
    index = Index.from_bytes((tmp_path / "set" / f"{shard.name}.index").read_bytes(), shard.name)
    offsets = index.records["image_offset"].astype(np.int64)
    assert len(set(np.diff(offsets).tolist())) == 1
    stride = int(offsets[1] - offsets[0])
    data = np.fromfile(tmp_path / "set" / f"{shard.name}.tar", np.uint8)
    size = 16 * 16 * 3
    skip = int(offsets[0]) + int(index.records["image_size"][0]) - size
    images = np.lib.stride_tricks.as_strided(data[skip:], (20, 16, 16, 3), (stride, 48, 3, 1))
    plain = [np.load(io.BytesIO(members["npy"])) for _, members in samples(tmp_path / "set")]
    np.testing.assert_array_equal(images, plain)
    if not options:
        texts = [members["json"] for _, members in samples(tmp_path / "set")]
        assert len({len(text) for text in texts}) == 1
        assert all(json.loads(text)["attributes"] == {"Male": 1, "Smiling": 0} for text in texts)


def test_a_partition_gives_the_splits(photos: Path, tmp_path: Path, make: Make, samples: Samples) -> None:
    lines = ["image_id,partition", *(f"{number:05d}.jpg,{number % 3}" for number in range(60))]
    (photos / "list_eval_partition.csv").write_text("\n".join(lines))
    make(photos, tmp_path / "set", *SMALL)
    for number, split in enumerate(("train", "val", "test")):
        keys = {key for key, _ in samples(tmp_path / "set", f"{split}-*.tar")}
        assert keys == {f"{'ab'[n % 2]}/{n:05d}" for n in range(number, 60, 3)}


def test_photos_that_a_table_does_not_name_are_left_out(
    photos: Path, tmp_path: Path, make: Make, rejections: Rejections
) -> None:
    lines = ["image_id,Male", *(f"{number:05d}.jpg,{-1 if number % 2 else 1}" for number in range(58))]
    (photos / "list_attr_celeba.csv").write_text("\n".join(lines))
    make(photos, tmp_path / "set", *SMALL)
    opened = ShardSet.open(tmp_path / "set")
    assert opened.attributes == ("Male",)
    assert rejections(tmp_path / "set") == {
        "a/00058.jpg": "not in list_attr_celeba.csv",
        "b/00059.jpg": "not in list_attr_celeba.csv",
    }
    counts = opened.parts[0]["positives"]
    assert sum(count for (count,) in counts.values()) == 29


def test_a_limit_takes_that_many(photos: Path, tmp_path: Path, make: Make, samples: Samples) -> None:
    make(photos, tmp_path / "set", *SMALL, "--limit", 7)
    assert len(samples(tmp_path / "set")) == 7
    make(photos, tmp_path / "more", *SMALL, "--limit", 1000)
    assert len(samples(tmp_path / "more")) == 60


def test_rejected_files_are_listed_with_their_reason(
    photos: Path, tmp_path: Path, make: Make, rejections: Rejections, samples: Samples
) -> None:
    (photos / "empty.jpg").touch()
    (photos / "text.JPG").write_text("no photo")
    whole = (photos / "a" / "00000.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (15, 15)).save(photos / "tiny.png")
    printed = make(photos, tmp_path / "set", *SMALL)
    assert rejections(tmp_path / "set") == {
        "cut.jpg": "damaged image",
        "empty.jpg": "empty file",
        "text.JPG": "not an image",
        "tiny.png": "smaller than the target",
    }
    assert len(samples(tmp_path / "set")) == 60
    assert ShardSet.open(tmp_path / "set").rejected == 4
    assert "1 damaged image, 1 empty file, 1 not an image, 1 smaller than the target" in printed


def test_photos_of_which_none_is_usable_are_no_set(tmp_path: Path, refuse: Refuse) -> None:
    source = tmp_path / "raw"
    source.mkdir()
    (source / "empty.jpg").touch()
    (source / "text.jpg").write_text("no photo")
    error = refuse(source, tmp_path / "set", *SMALL)
    assert "got 2 rejected: 1 empty file, 1 not an image" in error
    assert not (tmp_path / "set" / "shardset.json").exists()


def test_a_photo_that_cannot_be_read_fails_its_group_alone(
    photos: Path, tmp_path: Path, make: Make, refuse: Refuse, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard_tool.sources.protocol.CHUNK_FILES", 5)
    make(photos, tmp_path / "good" / "set", *SMALL)
    read = FolderSource.read
    reads: list[int] = []

    def failing(self: FolderSource, item: int) -> bytes:
        if item == 30:
            raise PermissionError(13, "Permission denied")
        return read(self, item)

    def counting(self: FolderSource, item: int) -> bytes:
        reads.append(item)
        return read(self, item)

    monkeypatch.setattr(FolderSource, "read", failing)
    error = refuse(photos, tmp_path / "set", *SMALL, code=1)
    assert "b/00001.jpg (Permission denied)" in error
    assert not (tmp_path / "set" / "shardset.json").exists()
    monkeypatch.setattr(FolderSource, "read", counting)
    make(photos, tmp_path / "set", *SMALL)
    assert 0 < len(reads) <= 25, "one group of three was left"
    assert hashes(tmp_path / "set") == hashes(tmp_path / "good" / "set")


def test_a_disk_that_fails_every_read_ends_the_build(
    photos: Path, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: FolderSource, item: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(FolderSource, "read", failing)
    assert "got 20 that could not be read" in refuse(photos, tmp_path / "set", *SMALL, code=1)


def test_a_full_disk_is_one_line_and_the_build_goes_on(
    photos: Path, tmp_path: Path, make: Make, refuse: Refuse, hashes: Hashes, full_disk: Path
) -> None:
    options = ("--size", 64, "--shard-samples", 5, "--encode", "raw")
    make(photos, tmp_path / "whole" / "set", *options)
    error = refuse(photos, full_disk / "set", *options)
    assert "No space left on device" in error
    assert "Free some space" in error
    assert not (full_disk / "set" / "shardset.json").exists()
    assert not list((full_disk / "set").glob(".*.partial"))
    # More space, the same command.
    assert os.system(f"mount -o remount,size=20m {full_disk}") == 0
    make(photos, full_disk / "set", *options)
    assert hashes(full_disk / "set") == hashes(tmp_path / "whole" / "set")


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "pipeline.tar.ShardWriter._write"])
@pytest.mark.parametrize("number", [1, 3, 10])
def test_a_disk_that_is_full_at_any_moment(
    photos: Path,
    tmp_path: Path,
    make: Make,
    refuse: Refuse,
    hashes: Hashes,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
) -> None:
    make(photos, tmp_path / "whole" / "set", *SMALL)
    module, _, name = call.rpartition(".")
    owner: Any = os if module == "os" else ShardWriter
    work, left = getattr(owner, name), number

    def full(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return work(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        error = refuse(photos, tmp_path / "set", *SMALL)
    assert "No space left on device" in error
    assert "Free some space" in error
    assert not (tmp_path / "set" / "shardset.json").exists()
    for path in (tmp_path / "set").glob("*.tar"):
        scan_tar(path)
    make(photos, tmp_path / "set", *SMALL)
    assert hashes(tmp_path / "set") == hashes(tmp_path / "whole" / "set")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_every_file_is_kept_rejected_or_counted(
    kind: str, photos: Path, tmp_path: Path, make: Make, samples: Samples, rejections: Rejections
) -> None:
    for name in ("broken.jpg", "notes.txt", ".hidden.jpg", "a/Thumbs.db", "a/film.mp4"):
        (photos / name).write_bytes(b"nothing")
    files = sum(path.is_file() for path in photos.rglob("*"))
    source = photos
    if kind != "folder":
        archived = {"tar.gz": "gztar"}.get(kind, kind)
        source = Path(shutil.make_archive(str(tmp_path / "archive"), archived, photos))
    make(source, tmp_path / "set", "--size", 16, "--limit", 50)
    ignored = ShardSet.open(tmp_path / "set").parts[0]["ignored"]
    kept, rejected = len(samples(tmp_path / "set")), len(rejections(tmp_path / "set"))
    assert kept + rejected == 50
    assert kept + rejected + sum(ignored.values()) == files
    assert ignored["beyond --limit"] == 11

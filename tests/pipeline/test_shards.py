"""Damage of every kind is an error that names the shard and, where one is known, the sample; never a short epoch."""

import itertools
import json
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline import Dataset, StreamingLoader
from pipeline.errors import ShardError, UserError
from pipeline.format import SUFFIX, Index, Shard, ShardSet, Split, npy_bytes
from pipeline.remote.transport import DEFAULT_PATIENCE
from pipeline.shards.decode import Decoder
from pipeline.shards.open_shards import OpenShards
from pipeline.shards.reads import Reader
from pipeline.shards.shard import ShardFile
from pipeline.tar import ShardWriter, scan_tar
from tests.helpers import encode, make_image, make_key, make_shard_set

ENCODINGS = sorted(SUFFIX)
VICTIM = "train-000002"
KEY = make_key("train", 2 * 8 + 3)
"""The fourth sample of the victim."""


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], ShardSet]:
    """A set of an encoding, in a folder of its own, that may be damaged."""

    def copy(encoding: str) -> ShardSet:
        return make_shard_set(tmp_path / encoding, encoding=encoding)

    return copy


def epoch(shards: ShardSet, **settings) -> list:
    with StreamingLoader(shards, **({"batch_size": 8, "threads": 2} | settings)) as loader:
        return list(itertools.islice(loader, 5))


def read(file: ShardFile, row: int, encoding: str = "raw") -> np.ndarray:
    """One image of 16 px."""
    out = np.empty((1, 16, 16, 3), np.uint8)
    Decoder().fill([file], [row], out)
    return out[0]


def victim(shards: ShardSet) -> Path:
    return shards.folder / f"{VICTIM}.tar"


def record(shards: ShardSet, row: int = 3) -> np.void:
    return Index.from_bytes((shards.folder / f"{VICTIM}.index").read_bytes(), VICTIM).records[row]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1 << bit]))


def assert_refused(shards: ShardSet, *parts: str, **settings) -> None:
    """Reading an epoch fails with one `ShardError` that says all of `parts`, and stops the threads."""
    with pytest.raises(ShardError) as caught:
        epoch(shards, **settings)
    for part in parts:
        assert part in str(caught.value)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def write_shard(folder: Path, name: str, images: dict[str, bytes], suffix: str, meta: bytes = b"") -> Shard:
    writer = ShardWriter(folder, name)
    for key, image in images.items():
        writer.add(key, image, suffix, meta)
    shard = writer.close()
    assert shard is not None
    return shard


def with_image(folder: Path, encoding: str, image: bytes) -> ShardSet:
    """A set whose crc32s are right and whose fourth sample of the victim is `image`."""
    shards = make_shard_set(folder, encoding=encoding, attributes=())
    images = {make_key("train", n): encode(make_image("train", n, 16), encoding) for n in range(16, 24)}
    changed = write_shard(folder, VICTIM, images | {KEY: image}, SUFFIX[encoding])
    rows = [vars(shard) for shard in shards.split("train")]
    rows[2] = vars(changed)
    ShardSet(folder, "changed", 16, 3, encoding, {"train": Split.of(rows)}).save()
    return ShardSet.open(folder)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_flipped_bit_in_an_image_names_shard_and_sample(copied, encoding, place):
    shards = copied(encoding)
    entry = record(shards)
    offset = {"first": 0, "middle": entry["image_size"] // 2, "last": entry["image_size"] - 1}[place]
    flip_bit(victim(shards), int(entry["image_offset"] + offset), bit=6)
    assert_refused(shards, KEY, VICTIM, "crc32")


def test_a_flipped_bit_is_found_by_whoever_reads_it_first(copied):
    shards = copied("raw")
    flip_bit(victim(shards), int(record(shards)["image_offset"]) + 200)
    file = ShardFile(shards, shards.split("train")[2])
    read(file, 2)
    for _ in range(2):
        with pytest.raises(ShardError, match=KEY):
            read(file, 3)


def test_a_raw_image_is_checked_at_its_first_read_only(copied, monkeypatch):
    shards = copied("raw")
    file = ShardFile(shards, shards.split("train")[2])
    checked: list[int] = []
    monkeypatch.setattr("pipeline.shards.decode.crc32", lambda data: checked.append(1) or zlib.crc32(data))
    decoder, out = Decoder(), np.empty((3, 16, 16, 3), np.uint8)
    for rows in ([3, 4, 3], [3, 4, 5], [5, 3, 4]):
        decoder.fill([file] * 3, rows, out)
        np.testing.assert_array_equal(out, [make_image("train", 16 + row, 16) for row in rows])
    assert len(checked) == 4  # Row 3 twice, in the run that met it first.


def test_a_damaged_name_does_not_hide_what_is_wrong(copied):
    shards = copied("jpeg")
    offset = int(record(shards)["image_offset"])
    overwrite(victim(shards), offset - 512, b"\xff" * 512)
    flip_bit(victim(shards), offset)
    assert_refused(shards, "row 3", VICTIM, "crc32")


def test_a_key_from_a_damaged_header_is_an_error(copied):
    shards = copied("raw")
    flip_bit(victim(shards), int(record(shards)["image_offset"]) - 512)
    with pytest.raises(ShardError, match=r"row 3.*tar header; got a damaged one"):
        [batch.keys for batch in epoch(shards)]


@pytest.mark.parametrize("size", [0, 512, 0.5, -512, -1])
def test_a_shard_that_is_cut_off_is_an_error_before_its_first_sample(copied, size):
    shards = copied("jpeg")
    whole = victim(shards).stat().st_size
    left = int(size * whole) if isinstance(size, float) else size if size >= 0 else whole + size
    os.truncate(victim(shards), left)
    assert_refused(shards, f"{VICTIM}.tar must have {whole} bytes; got {left}")


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_a_shard_that_is_cut_off_while_it_is_open_is_an_error(copied, encoding):
    shards = copied(encoding)
    with StreamingLoader(shards, batch_size=40, threads=1, prefetch=1) as loader:
        next(loader)
        os.truncate(victim(shards), 4096)
        with pytest.raises(ShardError, match=rf"{VICTIM}\.tar must be as long as its index says"):
            list(itertools.islice(loader, 4))


def test_a_missing_shard_is_named(copied):
    shards = copied("jpeg")
    victim(shards).unlink()
    assert_refused(shards, f"{VICTIM}.tar must exist")


def test_the_shard_of_another_set_is_refused(copied, tmp_path):
    shards = copied("raw")
    other = make_shard_set(tmp_path / "other", encoding="raw", seed=1)
    for suffix in ("tar", "index"):
        shutil.copy(other.folder / f"{VICTIM}.{suffix}", shards.folder)
    assert_refused(shards, f"{VICTIM}.index must be as shardset.json describes it", "Delete it")
    (shards.folder / f"{VICTIM}.index").unlink()
    assert_refused(shards, f"{VICTIM}.tar must be as shardset.json describes it", "Copy it again")
    assert not (shards.folder / f"{VICTIM}.index").exists(), "no index is written for a tar that is not ours"


def test_the_index_of_another_shard_is_refused(copied):
    shards = copied("raw")
    shutil.copy(shards.folder / "train-000001.index", shards.folder / f"{VICTIM}.index")
    assert_refused(shards, f"{VICTIM}.index must be as shardset.json describes it")


@pytest.mark.parametrize("offset", [0, 8, 16, 24, 32, 64, 80, -1])
def test_a_damaged_index_is_named(copied, offset):
    path = copied("jpeg").folder / f"{VICTIM}.index"
    flip_bit(path, offset % path.stat().st_size)
    assert_refused(ShardSet.open(path.parent), f"{VICTIM}.index")


def test_half_an_index_is_named(copied):
    path = copied("jpeg").folder / f"{VICTIM}.index"
    os.truncate(path, path.stat().st_size // 2)
    assert_refused(ShardSet.open(path.parent), f"{VICTIM}.index must be whole")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_missing_index_is_rebuilt_as_it_was(copied, encoding):
    shards = copied(encoding)
    path = shards.folder / f"{VICTIM}.index"
    written = path.read_bytes()
    before = epoch(shards)
    path.unlink()
    for one, other in zip(before, epoch(shards), strict=True):
        assert one.images.equal(other.images)
        assert np.array_equal(one.digests, other.digests)
    assert path.read_bytes() == written


def test_a_missing_index_costs_only_a_scan_where_nothing_can_be_written(copied, monkeypatch):
    shards = copied("raw")
    (shards.folder / f"{VICTIM}.index").unlink()

    def refuse(path: Path, _: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pipeline.shards.shard.write_atomic", refuse)
    assert len(epoch(shards)) == 5
    assert not (shards.folder / f"{VICTIM}.index").exists()


def test_a_damaged_tar_does_not_leave_an_index_behind(copied):
    shards = copied("jpeg")
    path = shards.folder / f"{VICTIM}.index"
    path.unlink()
    flip_bit(victim(shards), 600)
    assert_refused(shards, f"{VICTIM}.tar must be as shardset.json describes it", "Copy it again")
    assert not path.exists()
    flip_bit(victim(shards), 600)
    assert len(epoch(shards)) == 5


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [8, 15, 17, 32])
def test_an_image_of_another_size_names_the_sample(tmp_path, encoding, size):
    shards = with_image(tmp_path, encoding, encode(make_image("train", 19, size), encoding))
    assert_refused(shards, KEY, VICTIM)


@pytest.mark.parametrize("shape", [(16, 16), (16, 12, 4), (3, 16, 16), (768,), (1, 16, 16, 3)])
def test_an_array_of_another_shape_and_the_right_byte_count_is_refused(tmp_path, shape):
    shards = with_image(tmp_path, "raw", npy_bytes(np.zeros(shape, np.uint8)))
    assert_refused(shards, KEY, VICTIM, f"shape {shape}")


def test_an_array_of_another_type_is_refused(tmp_path):
    shards = with_image(tmp_path, "raw", npy_bytes(np.zeros((16, 16, 3), np.int8)))
    assert_refused(shards, KEY, VICTIM, "type int8")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("image", [b"", b"no image at all", bytes(4000)], ids=["empty", "text", "zeros"])
def test_bytes_that_are_no_image_name_the_sample(tmp_path, encoding, image):
    assert_refused(with_image(tmp_path, encoding, image), KEY, VICTIM)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_half_an_image_names_the_sample(tmp_path, encoding):
    image = encode(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8), encoding)
    assert_refused(with_image(tmp_path, encoding, image[: len(image) // 2]), KEY, VICTIM)


def test_a_png_with_a_broken_chunk_names_the_sample(tmp_path):
    image = encode(make_image("train", 19, 16), "png")
    chunk = image.index(b"IDAT")
    halves = [struct.pack(">I", 4) + b"IDAT" + image[chunk + 4 : chunk + 8], struct.pack(">I", 4) + b"\x03\xc1\xa1\x90"]
    crc32 = struct.pack(">I", zlib.crc32(halves[0][4:]))
    broken = image[: chunk - 4] + halves[0] + crc32 + halves[1] + bytes(8)
    assert_refused(with_image(tmp_path, "png", broken), KEY, VICTIM, "broken PNG")


@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_broken_images_never_end_in_another_error(tmp_path, encoding):
    good = encode(make_image("train", 19, 16), encoding)
    rng = np.random.default_rng(1)
    refused = 0
    for trial in range(40):
        broken = bytearray(good)
        for place in rng.integers(0, len(good), 4):
            broken[place] ^= 1 << int(rng.integers(8))
        folder = tmp_path / str(trial)
        folder.mkdir()
        shard = write_shard(folder, "train-000000", {"face": bytes(broken)}, SUFFIX[encoding])
        file = ShardFile(ShardSet(folder, "broken", 16, 3, encoding, {}), shard)
        try:
            read(file, 0, encoding)
        except ShardError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"Smiling": 1', b'"Smiling": 7'),
        (b'"Smiling": 1', b'"Frowns?": 1'),
        (b'"Smiling": 1', b'"Smiling": x'),
        (b'"attributes"', b'"attributed"'),
    ],
)
def test_labels_that_are_not_those_of_the_set_name_the_sample(copied, old, new):
    shards = copied("raw")
    entry = record(shards)
    where = victim(shards).read_bytes().index(old, int(entry["json_offset"]))
    assert where < entry["json_offset"] + entry["json_size"]
    overwrite(victim(shards), where, new)
    assert len(epoch(shards)) == 5
    assert_refused(shards, KEY, VICTIM, labels=True)


@pytest.mark.parametrize("label", [3, -1, "a", None, [1]])
def test_a_class_that_is_not_one_of_the_set_names_the_sample(tmp_path, label):
    image = encode(make_image("train", 0, 16), "jpeg")
    shard = write_shard(tmp_path, "train-000000", {"face": image}, "jpg", json.dumps({"label": label}).encode())
    splits = {"train": Split.of([vars(shard)])}
    ShardSet(tmp_path, "tiny", 16, 3, "jpeg", splits, classes=("a", "b", "c")).save()
    assert_refused(ShardSet.open(tmp_path), "'face'", "labels", labels=True)


def test_a_disk_that_fails_is_a_plain_message(copied, monkeypatch):
    shards = copied("jpeg")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pipeline.shards.decode.make_reader", Reader)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError, match=r"reading .*train-00000.*Input/output error"):
        epoch(shards)


def test_the_sample_after_the_damaged_one_is_still_read_right(copied):
    shards = copied("raw")
    flip_bit(victim(shards), int(record(shards)["image_offset"]) + 300)
    file = ShardFile(shards, shards.split("train")[2])
    with pytest.raises(ShardError):
        read(file, 3)
    np.testing.assert_array_equal(read(file, 4), make_image("train", 20, 16))


# Open shards


def test_shards_beyond_the_limit_are_closed_once_nobody_reads_them(copied):
    shards = copied("raw")
    cache = OpenShards(Dataset.open(shards).split("train"), 2, None, DEFAULT_PATIENCE)
    first = cache.open([0])[0]
    descriptor = first.descriptor
    cache.open([1, 2, 3])
    assert len(cache._files) == 2
    assert first.key(0) == make_key("train", 0), "whoever holds a shard can read it"
    assert cache.open([0])[0] is not first
    del first
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_shard_is_opened_once_and_the_least_recently_used_goes(copied):
    shards = copied("raw")
    cache = OpenShards(Dataset.open(shards).split("train"), 3, None, DEFAULT_PATIENCE)
    zero, one, two = cache.open([0, 1, 2])
    assert cache.open([0, 1, 0]) == [zero, one, zero]
    cache.open([3])
    assert cache.open([0, 1]) == [zero, one]
    assert cache.open([2])[0] is not two


def test_many_threads_read_the_same_shards_through_a_small_cache(copied):
    shards = copied("raw")
    cache = OpenShards(Dataset.open(shards).split("train"), 2, None, DEFAULT_PATIENCE)

    def read_some(seed: int) -> bool:
        for number in np.random.default_rng(seed).integers(0, 40, 60).tolist():
            if not np.array_equal(read(cache.open([number // 8])[0], number % 8), make_image("train", number, 16)):
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read_some, range(8)))
    assert len(cache._files) == 2


def test_the_index_of_a_scan_is_the_one_that_was_written(copied):
    for encoding in ENCODINGS:
        shards = copied(encoding)
        assert scan_tar(victim(shards)).to_bytes() == (shards.folder / f"{VICTIM}.index").read_bytes()

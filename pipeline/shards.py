"""Reading samples of local shards: one `pread` each, every image byte checked."""

import io
import json
import math
import os
import tarfile
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LeanstreamError, ShardError, describe_os_error
from pipeline.files import write_atomic
from pipeline.format import Index, Shard, ShardSet, Split
from pipeline.tar import BLOCK, scan_tar

_parsing = threading.Lock()
"""numpy parses headers with `ast`, whose depth counter some Python 3.11 share between threads (SystemError)."""


class ShardFile:
    """One open shard. Any number of threads may read from it; the file closes when the last reference goes."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        """Raises `ShardError` where the tar or its index is missing, cut off, or belongs to another set."""
        self.name = shard.name
        self.path = folder / f"{shard.name}.tar"
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ShardError(f"{self.path} must exist; got no such file. Copy it again, or rebuild the set.") from None
        except OSError as error:
            raise describe_os_error(error, "opening a shard") from error
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        if size != shard.bytes:
            raise ShardError(
                f"{self.path} must have {shard.bytes} bytes; got {size}. Copy it again, or rebuild the set."
            )
        records = _load_index(folder / f"{shard.name}.index", self.path, shard).records
        # One view a field: `item` of a plain array takes a tenth of the time of `item` of a record.
        self._offset, self._size, self._crc32 = (records[f"image_{part}"] for part in ("offset", "size", "crc32"))
        self._json_offset, self._json_size, self._json_crc32 = (
            records[f"json_{part}"] for part in ("offset", "size", "crc32")
        )
        self._raw_checked = np.zeros(len(records), np.bool_)
        self._npy_header = b""

    def key(self, row: int) -> str:
        """The WebDataset key of one sample, read from its tar header."""
        header = self._read(self._offset.item(row) - BLOCK, BLOCK)
        try:
            name = tarfile.TarInfo.frombuf(header, "utf-8", "strict").name
        except (tarfile.TarError, UnicodeError):
            raise self._damaged(row, "a damaged tar header", f"row {row}") from None
        return name.rpartition(".")[0]

    def crc32(self, row: int) -> int:
        """The crc32 of one sample's image, as it was written."""
        return int(self._crc32.item(row))

    def image(self, row: int) -> bytes:
        """The encoded image of one sample; `ShardError` where its crc32 is not the index's."""
        data = self._read(self._offset.item(row), self._size.item(row))
        if zlib.crc32(data) != self._crc32.item(row):
            raise self._damaged(row, "bytes of another crc32")
        return data

    def raw_image(self, row: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` [H, W, C] from an `.npy` member, which is checked at its first read since the shard was opened."""
        if not self._raw_checked.item(row):
            data = self.image(row)
            start = len(data) - out.nbytes
            if start <= 0 or data[:start] != self._npy_header:
                self._npy_header = self._checked_npy_header(row, data, out.shape)
            out[...] = np.frombuffer(data, np.uint8, out.size, start).reshape(out.shape)
            self._raw_checked[row] = True
            return
        offset = self._offset.item(row) + self._size.item(row) - out.nbytes
        try:
            count = os.preadv(self._descriptor, (out.data,), offset)
        except OSError as error:
            raise describe_os_error(error, f"reading {self.path}") from error
        if count != out.nbytes:
            raise self._cut_off(offset + count)

    def meta(self, row: int) -> dict[str, Any]:
        """The json of one sample; empty where the set has none."""
        size = self._json_size.item(row)
        if not size:
            return {}
        data = self._read(self._json_offset.item(row), size)
        if zlib.crc32(data) != self._json_crc32.item(row):
            raise self._damaged(row, "a json of another crc32")
        try:
            meta = json.loads(data)
        except ValueError:
            meta = None
        if not isinstance(meta, dict):
            raise self._damaged(row, "a json that is no object")
        return meta

    def _read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise describe_os_error(error, f"reading {self.path}") from error
        if len(data) != size:
            raise self._cut_off(offset + len(data))
        return data

    def _checked_npy_header(self, row: int, data: bytes, shape: tuple[int, ...]) -> bytes:
        """What stands before the pixels in `data`, an `.npy` file which must hold uint8 of `shape` in C order."""
        file = io.BytesIO(data)
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError("another version of .npy")
            with _parsing:
                found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError:
            raise self._damaged(row, "no .npy file") from None
        header = data[: file.tell()]
        if found != shape or fortran or dtype != np.uint8 or len(data) != len(header) + math.prod(shape):
            raise self._damaged(row, f"an array of shape {found} and type {dtype} in place of uint8 {shape}")
        return header

    def _cut_off(self, end: int) -> ShardError:
        return ShardError(
            f"{self.path} must be as long as its index says; got the end at byte {end}. "
            "Copy it again, or rebuild the set."
        )

    def _damaged(self, row: int, found: str, key: str = "") -> ShardError:
        if not key:
            try:
                key = self.key(row)
            except LeanstreamError:
                key = f"row {row}"
        return ShardError(
            f"sample '{key}' of {self.path} must be as it was written; got {found}. "
            "Copy the shard again, or rebuild the set."
        )


class ShardCache:
    """The shards of one split that are open, at most `limit` of them; safe for threads."""

    def __init__(self, shards: ShardSet, split: Split, limit: int) -> None:
        self._folder, self._split, self._limit = shards.folder, split, limit
        self._files: OrderedDict[int, ShardFile] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._files)

    def open(self, numbers: Iterable[int]) -> list[ShardFile]:
        """The shards of these numbers, in their order; they stay open for as long as the caller holds them."""
        with self._lock:
            return [self._open(number) for number in numbers]

    def clear(self) -> None:
        """Close all shards that nobody reads from; a later `open` opens them again."""
        with self._lock:
            self._files.clear()

    def _open(self, number: int) -> ShardFile:
        file = self._files.get(number)
        if file is None:
            file = self._files[number] = ShardFile(self._folder, self._split[number])
            while len(self._files) > self._limit:
                self._files.popitem(last=False)
        else:
            self._files.move_to_end(number)
        return file


def _load_index(path: Path, tar: Path, shard: Shard) -> Index:
    try:
        rebuilt = not path.exists()
        index = scan_tar(tar) if rebuilt else Index.from_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise describe_os_error(error, "reading an index") from error
    if index.tar_sha256 != shard.sha256 or index.tar_bytes != shard.bytes or len(index.records) != shard.samples:
        raise ShardError(
            f"{tar if rebuilt else path} must be as shardset.json describes it; "
            f"got {len(index.records)} samples of a tar with sha256 {index.tar_sha256[:12]}. "
            + ("Copy it again, or rebuild the set." if rebuilt else "Delete it, and it is rebuilt from the tar.")
        )
    if rebuilt:
        try:
            write_atomic(path, index.to_bytes())
        except OSError:
            pass  # A read-only set works too; the scan is then paid at every start.
    return index

"""Reading samples of local shards: one `pread` each, every byte checked."""

import json
import os
import tarfile
import threading
import weakref
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShardError, describe_os_error
from pipeline.files import write_atomic
from pipeline.format import BLOCK, Index, Shard, ShardSet, Split, scan_tar


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
        self.records = _load_index(folder / f"{shard.name}.index", self.path, shard).records
        self._raw_checked = np.zeros(len(self.records), np.bool_)

    def key(self, row: int) -> str:
        """The WebDataset key of one sample, read from its tar header."""
        offset = int(self.records["image_offset"][row]) - BLOCK
        name = tarfile.TarInfo.frombuf(self._read(offset, BLOCK), "utf-8", "strict").name
        return name.rpartition(".")[0]

    def image(self, row: int) -> bytes:
        """The encoded image of one sample; `ShardError` where its crc32 is not the index's."""
        offset, size, crc32, _, _ = self.records[row].item()
        data = self._read(offset, size)
        if zlib.crc32(data) != crc32:
            raise self._damaged(row, "bytes of another crc32")
        return data

    def raw_image(self, row: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` [H, W, C] from an `.npy` member; its crc32 is checked at the first read in this process."""
        offset, size, crc32, _, _ = self.records[row].item()
        if size < out.nbytes:
            raise self._damaged(row, f"{size} bytes for an image of {out.nbytes}")
        if self._raw_checked[row]:
            if os.preadv(self._descriptor, [out.data], offset + size - out.nbytes) != out.nbytes:
                raise self._damaged(row, "the end of the file")
            return
        data = self._read(offset, size)
        if zlib.crc32(data) != crc32:
            raise self._damaged(row, "bytes of another crc32")
        out[...] = np.frombuffer(data, np.uint8, out.size, size - out.nbytes).reshape(out.shape)
        self._raw_checked[row] = True

    def meta(self, row: int) -> dict[str, Any]:
        """The json of one sample; empty where the set has none."""
        _, _, _, offset, size = self.records[row].item()
        if not size:
            return {}
        try:
            meta = json.loads(self._read(offset, size))
        except ValueError:
            meta = None
        if not isinstance(meta, dict):
            raise self._damaged(row, "a json member that is no object")
        return meta

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise ShardError(
                f"{self.path} must be as long as its index says; got the end at byte {offset + len(data)}. "
                "Copy it again, or rebuild the set."
            )
        return data

    def _damaged(self, row: int, found: str) -> ShardError:
        try:
            key = self.key(row)
        except (ShardError, tarfile.TarError, UnicodeError):
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

    def __getitem__(self, number: int) -> ShardFile:
        with self._lock:
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
        index = Index.from_bytes(path.read_bytes(), str(path))
    except FileNotFoundError:
        index = scan_tar(tar)
        try:
            write_atomic(path, index.to_bytes())
        except OSError:
            pass  # A read-only set works too; the scan is then paid at every start.
    except OSError as error:
        raise describe_os_error(error, "reading an index") from error
    if index.tar_sha256 != shard.sha256 or index.tar_bytes != shard.bytes or len(index.records) != shard.samples:
        raise ShardError(
            f"{path} must belong to {tar.name} as shardset.json describes it; "
            f"got {len(index.records)} samples of a tar with sha256 {index.tar_sha256[:12]}. "
            "Delete it to rebuild it; if the error stays, the tar itself is another: copy the shard again."
        )
    return index

"""Local shards that are open: where their samples lie, their keys and json, and what is wrong with a damaged one."""

import json
import os
import tarfile
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import LeanstreamError, ShardError, describe_os_error
from pipeline.files import write_atomic
from pipeline.format import Index, Shard, ShardSet, Split
from pipeline.tar import BLOCK, scan_tar, split_member_name


class ShardFile:
    """One open shard. Any number of threads may read from it; the file closes when the last reference goes."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        """Raises `ShardError` where the tar or its index is missing, cut off, or belongs to another set."""
        self.name = shard.name
        self.path = folder / f"{shard.name}.tar"
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ShardError(f"{self.path} must exist; got no such file. Copy it again, or rebuild the set.") from None
        except OSError as error:
            raise describe_os_error(error, "opening a shard") from error
        weakref.finalize(self, os.close, self.descriptor)
        size = os.fstat(self.descriptor).st_size
        if size != shard.bytes:
            raise ShardError(
                f"{self.path} must have {shard.bytes} bytes; got {size}. Copy it again, or rebuild the set."
            )
        records = _load_index(folder / f"{shard.name}.index", self.path, shard).records
        # One view a field: `item` of a plain array takes a tenth of the time of `item` of a record.
        self.offset, self.size, self.crc32 = (records[f"image_{part}"] for part in ("offset", "size", "crc32"))
        """[samples] Where each image lies in the tar, its bytes, and their crc32 as they were written."""
        self._json_offset, self._json_size, self._json_crc32 = (
            records[f"json_{part}"] for part in ("offset", "size", "crc32")
        )
        self.checked = bytearray(len(records))
        """[samples] Whether an `.npy` member was compared with its crc32."""

    def key(self, row: int) -> str:
        """The WebDataset key of one sample, read from its tar header."""
        header = self._read(self.offset.item(row) - BLOCK, BLOCK)
        try:
            name = tarfile.TarInfo.frombuf(header, "utf-8", "strict").name
        except (tarfile.TarError, UnicodeError):
            raise ShardError(
                f"row {row} of {self.path} must have a tar header; got a damaged one. "
                "Copy the shard again, or rebuild the set."
            ) from None
        return split_member_name(name)[0]

    def meta(self, row: int) -> dict[str, Any]:
        """The json of one sample; empty where the set has none."""
        size = self._json_size.item(row)
        if not size:
            return {}
        data = self._read(self._json_offset.item(row), size)
        if zlib.crc32(data) != self._json_crc32.item(row):
            raise self.damaged(row, "a json of another crc32")
        try:
            meta = json.loads(data)
        except ValueError:
            meta = None
        if not isinstance(meta, dict):
            raise self.damaged(row, "a json that is no object")
        return meta

    def _read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self.descriptor, size, offset)
        except OSError as error:
            raise describe_os_error(error, f"reading {self.path}") from error
        if len(data) != size:
            raise self.cut_off(offset + len(data))
        return data

    def cut_off(self, end: int) -> ShardError:
        """The error for a tar that ends at byte `end`."""
        return ShardError(
            f"{self.path} must be as long as its index says; got the end at byte {end}. "
            "Copy it again, or rebuild the set."
        )

    def damaged(self, row: int, found: str) -> ShardError:
        """The error for a sample whose bytes changed."""
        return self._error(row, f"be as it was written; got {found}. Copy the shard again, or rebuild the set.")

    def unusable(self, row: int, why: str) -> ShardError:
        """The error for a sample that was written so; `why` reads `<rule>; got <value>`."""
        return self._error(row, f"{why}. Rebuild the set.")

    def _error(self, row: int, must: str) -> ShardError:
        try:
            name = f"sample '{self.key(row)}'"
        except LeanstreamError:
            name = f"row {row}"
        return ShardError(f"{name} of {self.path} must {must}")


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

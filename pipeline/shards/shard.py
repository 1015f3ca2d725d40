"""One shard that is open: where their samples lie, their keys and json, and what is wrong with a damaged one."""

import functools
import json
import os
import tarfile
import weakref
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from pipeline.errors import LeanstreamError, ShardError, describe_os_error
from pipeline.files import write_atomic
from pipeline.format import Index, Shard
from pipeline.tar import member_name, scan_tar, split_member_name


class Copy(NamedTuple):
    """A copy of a shard in a disk cache."""

    stem: str
    """Its file name, without extension."""
    origin: str
    """Where the shard itself is."""
    descriptor: int
    """Of the tar; the `ShardFile` closes it."""


class ShardFile:
    """One open shard. Any number of threads may read from it; the file closes when the last reference goes."""

    def __init__(self, folder: Path, shard: Shard, copy: "Copy | None" = None) -> None:
        """Open the shard in `folder`, or its copy there.

        Raises `ShardError` where the tar or its index is missing, cut off, or belongs to another set.
        """
        self.name = shard.name
        path = folder / f"{copy.stem if copy else shard.name}.tar"
        self.path = f"{copy.origin} (its copy {path})" if copy else str(path)
        """The tar, as messages name it."""
        self._remedy = f"Delete {path}, and it is fetched again" if copy else "Copy the shard again, or rebuild the set"
        self.descriptor = copy.descriptor if copy else _open(path)
        weakref.finalize(self, os.close, self.descriptor)
        size = os.fstat(self.descriptor).st_size
        if size != shard.bytes:
            raise ShardError(f"{self.path} must have {shard.bytes} bytes; got {size}. {self._remedy}.")
        self._load = functools.partial(load_index, path.with_suffix(".index"), path, shard)
        records = self._load().records
        # Copies, without the half about json. And `item` of a plain array takes a tenth of the time of a record's.
        self.offset, self.size, self.crc32 = (records[f"image_{part}"].copy() for part in ("offset", "size", "crc32"))
        """[samples] Where each image lies in the tar, its bytes, and their crc32 as they were written."""
        self.checked = bytearray(len(records))
        """[samples] Whether an `.npy` member was compared with its crc32."""

    def key(self, row: int) -> str:
        """The WebDataset key of one sample, read from its tar header."""
        try:
            name = member_name(self._read, self.offset.item(row))
        except tarfile.TarError:
            raise ShardError(
                f"row {row} of {self.path} must have a tar header; got a damaged one. {self._remedy}."
            ) from None
        return split_member_name(name)[0]

    def meta(self, row: int) -> dict[str, Any]:
        """The json of one sample, or `{"label": N}` where it has a `cls` in its place; empty where it has neither."""
        offset, size, crc32 = (column.item(row) for column in self._json)
        if not size:
            return {}
        data = self._read(offset, size)
        if zlib.crc32(data) != crc32:
            raise self.damaged(row, "a json of another crc32")
        try:
            meta = json.loads(data)
        except ValueError:
            meta = None
        if type(meta) is int:
            return {"label": meta}
        if not isinstance(meta, dict):
            raise self.damaged(row, "a json that is no object")
        return meta

    @functools.cached_property
    def _json(self) -> tuple[NDArray[Any], ...]:
        """[samples] Where each json lies, its bytes and crc32; for whoever asks for labels."""
        records = self._load().records
        return tuple(records[f"json_{part}"].copy() for part in ("offset", "size", "crc32"))

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
        return ShardError(f"{self.path} must be as long as its index says; got the end at byte {end}. {self._remedy}.")

    def damaged(self, row: int, found: str) -> ShardError:
        """The error for a sample whose bytes changed."""
        return self._error(row, f"be as it was written; got {found}. {self._remedy}.")

    def unusable(self, row: int, why: str) -> ShardError:
        """The error for a sample that was written so; `why` reads `<rule>; got <value>`."""
        return self._error(row, f"{why}. Rebuild the set.")

    def _error(self, row: int, must: str) -> ShardError:
        try:
            name = f"sample '{self.key(row)}'"
        except LeanstreamError:
            name = f"row {row}"
        return ShardError(f"{name} of {self.path} must {must}")


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ShardError(f"{path} must exist; got no such file. Copy it again, or rebuild the set.") from None
    except OSError as error:
        raise describe_os_error(error, "opening a shard") from error


def check_index(index: Index, shard: Shard, where: str, remedy: str) -> None:
    """Raise `ShardError` unless the index, which was found `where`, is that of the shard."""
    if index.tar_sha256 != shard.sha256 or index.tar_bytes != shard.bytes or len(index.records) != shard.samples:
        raise ShardError(
            f"{where} must be as shardset.json describes it; "
            f"got {len(index.records)} samples of a tar with sha256 {index.tar_sha256[:12]}. {remedy}."
        )


def load_index(path: Path, tar: Path, shard: Shard) -> Index:
    """The index of one shard, from its file or by a scan of the tar; `ShardError` where it is not `shard`'s."""
    try:
        rebuilt = not path.exists()
        index = scan_tar(tar) if rebuilt else Index.from_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise describe_os_error(error, "reading an index") from error
    if rebuilt:
        check_index(index, shard, str(tar), "Copy it again, or rebuild the set")
        try:
            write_atomic(path, index.to_bytes())
        except OSError:
            pass  # A read-only set works too; the scan is then paid at every start.
    else:
        check_index(index, shard, str(path), "Delete it, and it is rebuilt from the tar")
    return index

"""One shard that is open: where its samples lie, their keys and json, and what is wrong with a damaged one."""

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
from pipeline.files import inside, write_atomic
from pipeline.format import Index, Shard, ShardSet
from pipeline.tar import member_name, scan_tar, split_member_name


class Copy(NamedTuple):
    """A copy of a shard in a disk cache."""

    tar: Path
    descriptor: int
    """Of the tar; the `ShardFile` closes it."""


class ShardFile:
    """One open shard. Any number of threads may read from it; the file closes when the last reference goes."""

    def __init__(self, shards: ShardSet, shard: Shard, copy: Copy | None = None) -> None:
        """Open a shard of a set on this machine, or the copy of one of any set.

        Raises `ShardError` where the tar or its index is missing, cut off, or belongs to another set.
        """
        tar = copy.tar if copy else shards.folder / f"{shard.name}.tar"
        self.name, self.raw = shard.name, shards.encoding == "raw"
        self.path = f"{inside(shards.location, shard.name)}.tar (its copy {tar})" if copy else str(tar)
        """The tar, as messages name it."""
        self._remedy = f"Delete {tar}, and it is fetched again" if copy else "Copy the shard again, or rebuild the set"
        self.descriptor = copy.descriptor if copy else _open(tar)
        weakref.finalize(self, os.close, self.descriptor)
        size = os.fstat(self.descriptor).st_size
        if size != shard.bytes:
            raise ShardError(f"{self.path} must have {shard.bytes} bytes; got {size}. {self._remedy}.")
        self._load = functools.partial(load_index, tar, shard, shards.image_member)
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

    def named(self, row: int) -> str:
        """The key of a sample or, if its header is damaged too, `row N`."""
        try:
            return self.key(row)
        except LeanstreamError:
            return f"row {row}"

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
        except (ValueError, RecursionError):
            meta = None
        if type(meta) is int:
            return {"label": meta}
        if not isinstance(meta, dict):
            raise self.damaged(row, "a json that is no object")
        return meta

    def label(self, row: int, attributes: tuple[str, ...], classes: tuple[str, ...]) -> int | list[int]:
        """The 0 or 1 of each of a sample's attributes or, where the set has none, the number of its class."""
        found = self.meta(row).get("attributes" if attributes else "label")
        if attributes and isinstance(found, dict) and all(found.get(name) in (0, 1) for name in attributes):
            return [int(found[name]) for name in attributes]
        if not attributes and type(found) is int and 0 <= found < len(classes):
            return found
        raise self.unusable(row, "carry the labels of shardset.json; got others")

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
        return ShardError(
            f"sample '{self.named(row)}' of {self.path} must be as it was written; got {found}. {self._remedy}."
        )

    def unusable(self, row: int, why: str) -> ShardError:
        """The error for a sample that was written so; `why` reads `<rule>; got <value>`."""
        return ShardError(f"sample '{self.named(row)}' of {self.path} must {why}. Rebuild the set.")


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ShardError(f"{path} must exist; got no such file. Copy it again, or rebuild the set.") from None
    except OSError as error:
        raise describe_os_error(error, "opening a shard") from error


def load_index(tar: Path, shard: Shard, image_member: str = "") -> Index:
    """The index of a shard, from the file beside `tar` or by a scan of it; `ShardError` where it is not the shard's."""
    path = tar.with_suffix(".index")
    try:
        if path.exists():
            return Index.from_bytes(path.read_bytes(), str(path)).check(
                shard, str(path), "Delete it, and it is rebuilt from the tar"
            )
        index = scan_tar(tar, image_member).check(shard, str(tar), "Copy it again, or rebuild the set")
    except OSError as error:
        raise describe_os_error(error, "reading an index") from error
    try:
        write_atomic(path, index.to_bytes())
    except OSError:
        pass  # A read-only set works too; the scan is then paid at every start.
    return index

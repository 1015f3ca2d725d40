"""A zip, read in place: stored and deflated members, each found through the archive's directory.

202,599 members take 30 bytes each here, where `zipfile` takes most of a KiB.
"""

import io
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.sources.central import ENCRYPTED, Entry, entries
from shard_tool.sources.listing import Listing, Numbers, compact
from shard_tool.sources.protocol import (
    IMAGE_EXTENSIONS,
    Access,
    InputError,
    Known,
    SideFile,
    chunks_of_files,
    extension_of,
    is_hidden,
    is_table,
    one_by_one,
)
from shard_tool.sources.ranges import Ranges, RangesFile

_LOCAL = struct.Struct("<4s22x2H")
_STORED, _DEFLATED, _ENCRYPTED = 0, 8, 0xFFFF
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 96: "JPEG"}
_TABLE_BUFFER_BYTES = 1 << 17
_NAME_ROOM = 512
"""Bytes read with a member for its name and extra fields; a longer header costs a second read."""


@dataclass(frozen=True)
class ZipSource:
    """All image files in one zip."""

    file: Ranges
    name: str
    listing: Listing
    ignored: int
    offsets: Numbers
    """[inputs] Of each member's local header."""
    compressed: Numbers
    """[inputs] Bytes in the archive."""
    crc32: NDArray[np.uint32]
    methods: NDArray[np.uint16]
    """[inputs] How it is compressed."""
    tables: tuple[Entry, ...]
    known: Known = field(default_factory=Known)
    origin: dict[str, str] = field(default_factory=dict)
    access = Access.ANY_ORDER

    @classmethod
    def open(cls, file: Ranges, name: str) -> Self:
        """List the zip; raises `UserError` where it is damaged or holds no image file."""
        columns = (array("Q"), array("Q"), array("L"), array("H"))
        tables: list[Entry] = []
        ignored = 0

        def photos() -> Iterator[tuple[bytes, int]]:
            nonlocal ignored
            for entry in entries(file):
                if entry.path.endswith("/") or is_hidden(entry.path):
                    continue
                if extension_of(entry.path) in IMAGE_EXTENSIONS:
                    method = _ENCRYPTED if entry.flags & ENCRYPTED else entry.method
                    row = (entry.offset, entry.compressed, entry.crc32, method)
                    for column, value in zip(columns, row, strict=True):
                        column.append(value)
                    yield entry.path.encode(), entry.size
                elif is_table(entry.path):
                    tables.append(entry)
                else:
                    ignored += 1

        listing, order = Listing.sort(photos())
        if not len(listing):
            raise UserError(
                f"{file.where} must hold photos ({', '.join(sorted(IMAGE_EXTENSIONS))}); "
                f"got {ignored + len(tables):,} other files. Choose another archive."
            )
        offsets, compressed = (compact(column)[order] for column in columns[:2])
        crc32, methods = (np.array(column, kind)[order] for column, kind in zip(columns[2:], ("u4", "u2"), strict=True))
        return cls(file, name, listing, ignored, offsets, compressed, crc32, methods, tuple(tables))

    def chunks(self) -> NDArray[np.int64]:
        """Runs of consecutive files."""
        return chunks_of_files(len(self.listing))

    def read(self, item: int) -> bytes:
        """One member, whose crc32 is compared."""
        return self._member(
            int(self.offsets[item]),
            int(self.compressed[item]),
            int(self.listing.sizes[item]),
            int(self.crc32[item]),
            int(self.methods[item]),
        )

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """Member after member."""
        return one_by_one(self.read, items)

    def carried(self, item: int) -> dict[str, object]:
        """Nothing."""
        return {}

    def side_files(self, file_name: str) -> list[SideFile]:
        """Those inside, the least deep first."""
        found = [entry for entry in self.tables if entry.path.rpartition("/")[2] == file_name]
        found.sort(key=lambda entry: (entry.path.count("/"), entry.path))
        return [SideFile(f"{self.file.where}/{entry.path}", True, _Opener(self.file, entry)) for entry in found]

    def _member(self, offset: int, compressed: int, size: int, crc32: int, method: int) -> bytes:
        _check_method(method)
        data = self.file.read(offset, _LOCAL.size + _NAME_ROOM + compressed)
        start = _content_start(data)
        body = data[start : start + compressed]
        if len(body) < compressed:
            body += self.file.read(offset + start + len(body), compressed - len(body))
        try:
            # One byte more than there should be: an archive that lies about sizes gets no memory.
            plain = zlib.decompressobj(-15).decompress(body, size + 1) if method == _DEFLATED else body
        except zlib.error as error:
            raise InputError("damaged in the archive", str(error)) from None
        if len(plain) != size or zlib.crc32(plain) != crc32:
            raise InputError("damaged in the archive", "its crc32 is another")
        return plain


def _check_method(method: int) -> None:
    if method == _ENCRYPTED:
        raise InputError("encrypted in the archive", "unpack it with its password first")
    if method not in (_STORED, _DEFLATED):
        kind = _METHODS.get(method, f"method {method}")
        raise InputError("compression not supported", f"{kind}; unpack the archive first")


def _content_start(header: bytes) -> int:
    """Where a member's content begins behind its local header."""
    if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise InputError("damaged in the archive", "no header where the directory says")
    _, name_size, extra_size = _LOCAL.unpack_from(header)
    return int(_LOCAL.size + name_size + extra_size)


@dataclass(frozen=True)
class _Opener:
    """Opens a table in a zip, which is unpacked as it is read: CelebA's has 24 MB."""

    file: Ranges
    entry: Entry

    def __call__(self) -> BinaryIO:
        """The unpacked file; `UserError` where it cannot be had."""
        entry, where = self.entry, f"{self.file.where}/{self.entry.path}"
        try:
            _check_method(_ENCRYPTED if entry.flags & ENCRYPTED else entry.method)
            start = entry.offset + _content_start(self.file.read(entry.offset, _LOCAL.size))
        except InputError as error:
            raise _unreadable(where, f"{error.reason}: {error.detail}") from None
        packed = RangesFile(self.file, start, entry.compressed)
        plain = _Inflating(packed, where) if entry.method == _DEFLATED else packed
        return cast(BinaryIO, io.BufferedReader(_Checked(plain, entry, where), _TABLE_BUFFER_BYTES))


class _Inflating(io.RawIOBase):
    """The plain bytes of a deflated file."""

    def __init__(self, packed: io.RawIOBase, where: str) -> None:
        self._packed, self._where = packed, where
        self._inflater = zlib.decompressobj(-15)
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._inflater.eof:
            self._left = self._left or self._packed.read(1 << 16) or b""
            ends = not self._left
            try:
                plain = self._inflater.decompress(self._left, len(buffer))
            except zlib.error as error:
                raise _unreadable(self._where, str(error)) from None
            self._left = self._inflater.unconsumed_tail
            if plain or ends:
                buffer[: len(plain)] = plain
                return len(plain)
        return 0


class _Checked(io.RawIOBase):
    """A file that must have, at its end, the size and crc32 of its entry."""

    def __init__(self, file: io.RawIOBase, entry: Entry, where: str) -> None:
        self._file, self._entry, self._where = file, entry, where
        self._size = self._crc32 = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._file.readinto(buffer) or 0)
        self._size += count
        self._crc32 = zlib.crc32(buffer[:count], self._crc32)
        if not count and (self._size, self._crc32) != (self._entry.size, self._entry.crc32):
            raise _unreadable(self._where, "another crc32")
        return count


def _unreadable(where: str, why: str) -> UserError:
    return UserError(f"{where} must be readable; got '{why}'. Repair the archive, or unpack it.")

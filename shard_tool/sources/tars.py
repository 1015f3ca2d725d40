"""A tar of photos, or a WebDataset shard with what it says of them: read in place, or from its start to its end.

One pass over the headers finds every photo, after which each is one read away: in a tar on this machine in any order
(`TarSource`), in one that is compressed or behind a URL in that of the file (`StreamSource`), which is read twice, once
for the listing and once for the photos. A build that was killed reads a stream again from the start.
"""

import bz2
import contextlib
import copy
import functools
import gzip
import io
import lzma
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, describe_os_error
from pipeline.files import is_url
from pipeline.tar import ABOUT_OTHERS, BLOCK, MOST_HEADER_BYTES, split_member_name, told_by
from shard_tool.sources.carried import MAX_SIDECAR, SIDECARS, Collector, clean_path, follow, link_target, side_files
from shard_tool.sources.listing import Listing, compact
from shard_tool.sources.protocol import Access, InAnyOrder, InputError, Known, SideFile, Sieve, Wanted, extension_of
from shard_tool.sources.ranges import PIECE_BYTES, LocalRanges, RangesFile, RemoteStream, Scratch, read_whole

BLOCK_PHOTOS = 4096
"""Photos of a long stream that form a chunk."""
SHORT_PHOTOS = 4 * BLOCK_PHOTOS
"""A stream of at most so many is one chunk, and may be read at any time."""

Read = Callable[[int, int], bytes]
"""`size` bytes from `offset` of a tar, fewer only at its end."""

_DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
"""What the libraries raise at a file that is damaged or cut off."""
_SPARSE = (1 << 64) - 1
"""In place of the offset of a sparse file, whose content is no run of bytes."""
_MOST_BYTES = 1 << 62
_NO_FILES = (tarfile.DIRTYPE, b"D", b"N", b"V")
"""Folders, and what GNU tar says in incremental archives and volumes of itself."""
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_READABLE = (*tarfile.REGULAR_TYPES, *_LINKS)


class Member(NamedTuple):
    """One member of a tar that is no folder."""

    path: str
    """Cleaned."""
    kind: bytes
    offset: int
    """Of its content, or `_SPARSE`."""
    size: int
    target: str
    """Of a link, cleaned; empty where that is not in the archive."""


def members(read: Read) -> Iterator[Member]:
    """The members of a tar, and of those behind its end in the same file, as `tar --ignore-zeros` gives them.

    Not by `tarfile`, which believes every size, keeps an object for each member, calls itself for every long name,
    takes quadratic time for PAX records, and stops at the first end. Raises `tarfile.TarError`, also for a tar without
    an end and for anything else behind it.
    """
    at, ended, told = 0, False, dict[bytes, bytes]()
    while block := read(at, BLOCK):
        if block.count(0) == len(block):
            at, ended = at + BLOCK, True
            continue
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            what = f"something else behind its end, from byte {at:,} on" if ended else f"{error} at byte {at:,}"
            raise tarfile.ReadError(what) from None
        ended, kind, content = False, header.type, at + BLOCK
        size = int(told.get(b"size", header.size)) if kind not in ABOUT_OTHERS else header.size
        if not 0 <= size <= (MOST_HEADER_BYTES if kind in ABOUT_OTHERS else _MOST_BYTES):
            raise tarfile.ReadError(f"a size of {size} bytes at byte {at:,}")
        if kind in ABOUT_OTHERS:
            told = told_by(kind, exactly(read, content, size)) | told
        else:
            more = block[482] if kind == tarfile.GNUTYPE_SPARSE else 0
            while more:  # Blocks that say where the holes are.
                more, content = exactly(read, content, BLOCK)[504], content + BLOCK
            if kind in tarfile.SUPPORTED_TYPES and kind not in tarfile.REGULAR_TYPES:
                size = 0  # Folders and links have no content, whatever they say.
            if kind not in _NO_FILES:
                is_sparse = kind == tarfile.GNUTYPE_SPARSE or b"sparse" in told
                path = clean_path(_text(told, b"path") or header.name)
                target = _text(told, b"linkpath") or header.linkname
                target = clean_path(target) if kind == tarfile.LNKTYPE else link_target(path, target)
                yield Member(path, kind, _SPARSE if is_sparse else content, size, target)
            told = {}
        at = content + -(-size // BLOCK) * BLOCK
    if not ended:
        raise tarfile.ReadError("a tar that was cut off")


def _text(told: Mapping[bytes, bytes], key: bytes) -> str:
    return told.get(key, b"").partition(b"\0")[0].decode("utf-8", "surrogateescape")


def exactly(read: Read, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; `tarfile.TarError` where the tar ends before."""
    data = read(offset, size)
    if len(data) < size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _linked(read: Read) -> dict[str, Member]:
    """By the path of each link, the regular file at its end; goes over the tar twice.

    A hard link is another name of what was at its target when it was made, a symbolic one of what is there at the end.
    """
    names = {name for member in members(read) if member.kind in _LINKS for name in (member.path, member.target)}
    files: dict[str, Member] = {}
    symbolic: dict[str, str] = {}
    for member in members(read):
        if member.path not in names:
            continue
        symbolic.pop(member.path, None)
        if member.kind in tarfile.REGULAR_TYPES:
            files[member.path] = member
        elif member.kind == tarfile.LNKTYPE and member.target in files:
            files[member.path] = files[member.target]
        elif member.kind in _LINKS:
            symbolic[member.path] = member.target
    return files | {path: files[end] for path in symbolic if (end := follow(symbolic, path)) in files}


class Scan:
    """What one pass over a tar finds: its photos, one after the other, and everything else beside them."""

    def __init__(self, where: str, wanted: Wanted) -> None:
        self.where = where
        self.collector = Collector()
        self.sieve = Sieve(wanted, sidecars=SIDECARS)
        self.tables: dict[str, tuple[int, int]] = {}
        """Offset and size in the temporary file that holds them: CelebA's are 24 MB."""
        self.scratch = Scratch()

    def listing(self, read: Read, *, by_offset: bool = False) -> Listing:
        """The photos in the order of their paths or places; `UserError` where the tar is damaged, cut off or has none.

        Sets `offsets`, of the content of each, and `known`.
        """
        found = array("Q")
        try:
            listing, order = Listing.sort(self._photos(read, found))
        except _DAMAGE as error:
            if isinstance(error, OSError) and error.errno:
                raise describe_os_error(error, f"reading {self.where}") from error
            raise UserError(f"{self.where} must be a whole tar; got '{error}'. Download or copy it again.") from error
        self._count("older entry of the same path", len(found) - len(listing))
        self.sieve.require_photos(len(listing), self.where)
        self.offsets = compact(found)[order]
        if by_offset:
            places = np.argsort(self.offsets, kind="stable")
            listing = Listing((listing[place], int(listing.sizes[place])) for place in places.tolist())
            self.offsets, order = self.offsets[places], order[places]
        self.known = self.collector.known(self.where, order)
        return listing

    def _photos(self, read: Read, offsets: "array[int]") -> Iterator[tuple[bytes, int]]:
        key, photos, sidecars = "", 0, dict[str, bytes]()
        linked: dict[str, Member] | None = None
        for member in members(read):
            path = member.path
            if member.kind not in _READABLE:
                self._count("special file", 1)
                continue
            kind = self.sieve.kind(path)
            if kind not in ("photo", "sidecar", "table"):
                continue  # Also between the files of a sample: macOS puts `._a.cls` between `a.jpg` and `a.cls`.
            mine, _ = split_member_name(path)
            if mine != key:
                self._flush(photos, sidecars)
                key, photos, sidecars = mine, 0, {}
            if member.kind in _LINKS:
                linked = _linked(read) if linked is None else linked
                if path not in linked:
                    self._count("broken link", 1, kind)
                    continue
                member = linked[path]
            if kind == "photo":
                photos += 1
                offsets.append(member.offset)
                yield path.encode("utf-8", "surrogateescape"), member.size
            elif member.offset == _SPARSE:
                self._count("sparse file", 1, kind)
            elif kind == "table":
                self._count("older entry of the same path", int(path in self.tables), kind)
                self.tables[path] = self.scratch.size, member.size
                for start in range(0, member.size, PIECE_BYTES):
                    size = min(PIECE_BYTES, member.size - start)
                    self.scratch.append(exactly(read, member.offset + start, size))
            elif member.size > MAX_SIDECAR:
                self._count("sidecar too large", 1, kind)
            else:
                sidecars[extension_of(path)] = exactly(read, member.offset, member.size)
        self._flush(photos, sidecars)

    def _flush(self, photos: int, sidecars: dict[str, bytes]) -> None:
        if photos:
            self.collector.add(photos, sidecars)
        else:
            self._count("sidecar without a photo beside it", len(sidecars), "sidecar")

    def _count(self, kind: str, count: int, instead_of: str = "") -> None:
        """Files of that kind were passed over; `instead_of` is what the sieve has counted them as."""
        if count:
            self.sieve.ignored[kind] += count
            if instead_of not in ("", "photo"):
                self.sieve.ignored[instead_of] -= count

    def open_table(self, path: str) -> BinaryIO:
        """One of `tables`."""
        return cast(BinaryIO, io.BufferedReader(RangesFile(self.scratch, *self.tables[path])))


@dataclass(frozen=True)
class _Tar:
    """What both kinds of tars have in common."""

    name: str
    listing: Listing
    scan: Scan
    known: Known
    origin: dict[str, str] = field(default_factory=dict, kw_only=True)

    @property
    def ignored(self) -> Mapping[str, int]:
        """Members that are no photos."""
        return +self.scan.sieve.ignored

    def carried(self, item: int) -> dict[str, object]:
        """The fields of its json that are no labels, and its txt."""
        return self.scan.collector.carried(item)

    def side_files(self, file_name: str) -> list[SideFile]:
        """Those inside."""
        return side_files(self.scan.where, self.scan.tables, file_name, self.scan.open_table)

    def _place(self, item: int) -> tuple[int, int]:
        """Offset and size; `InputError` where the content is not to be had in one piece."""
        offset, size = int(self.scan.offsets[item]), int(self.listing.sizes[item])
        if offset == _SPARSE:
            raise InputError("sparse file in the archive", "unpack it first")
        return offset, size


@dataclass(frozen=True)
class TarSource(_Tar, InAnyOrder):
    """All image files in one tar on this machine."""

    file: LocalRanges

    @classmethod
    def open(cls, file: LocalRanges, name: str, wanted: Wanted) -> Self:
        """List the tar; raises `UserError` where it is damaged or holds no image file."""
        scan = Scan(file.where, wanted)
        listing = scan.listing(file.read)
        return cls(name, listing, scan, scan.known, file)

    def read(self, item: int) -> bytes:
        """The content of one member."""
        return read_whole(self.file, *self._place(item))


@dataclass(frozen=True)
class StreamSource(_Tar):
    """All image files of one tar that has to be read in order; the listing is in that order."""

    plain: "Plain"

    @classmethod
    def open(cls, where: str, compression: str, name: str, wanted: Wanted) -> Self:
        """List the tar, reading all of it once; raises `UserError` where it is damaged or holds no image file.

        `compression` is gz, bz2, xz, zst, or nothing.
        """
        scan = Scan(where, wanted)
        with contextlib.closing(Plain(where, compression)) as plain:
            listing = scan.listing(plain.read, by_offset=True)
        return cls(name, listing, scan, scan.known, plain)

    @property
    def access(self) -> Access:
        """A short one is read whole at any time."""
        return Access.BY_CHUNK if len(self.listing) <= SHORT_PHOTOS else Access.ONE_PASS

    def chunks(self) -> NDArray[np.int64]:
        """The whole stream, or blocks of it."""
        count = len(self.listing)
        step = count if count <= SHORT_PHOTOS else BLOCK_PHOTOS
        return np.append(np.arange(0, count, step, dtype=np.int64), count)

    def read(self, item: int) -> bytes:
        """One photo, at the cost of everything before it."""
        with contextlib.closing(copy.copy(self.plain)) as plain:
            return plain.photo(*self._place(item))

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """Photos of one pass, which goes on where the call before this one has stopped."""
        before: tuple[tuple[int, int], bytes] | None = None
        for item in items:
            found: bytes | InputError
            try:
                place = self._place(item)
                if before is None or before[0] != place:  # Links to one file follow each other.
                    before = place, self.plain.photo(*place)
                found = before[1]
            except InputError as bad:
                found = bad
            if item == len(self.listing) - 1:
                self.plain.close()
            yield found


class Plain:
    """The plain bytes of a file that may be compressed. Going back in it begins again at its start."""

    def __init__(self, where: str, compression: str) -> None:
        self.where, self.compression = where, compression
        self._local = None if is_url(where) else LocalRanges(where)
        self._file: BinaryIO | None = None
        self._at = 0

    def read(self, offset: int, size: int) -> bytes:
        """See `Read`."""
        if self._file is None or offset < self._at:
            self.close()
            raw = RemoteStream(self.where) if self._local is None else RangesFile(self._local)
            self._file, self._at = _unpacked(raw, self.compression, self.where), 0
        while self._at < offset and self._next(offset - self._at):
            pass
        return b"".join(iter(lambda: self._next(offset + size - self._at), b""))

    def _next(self, size: int) -> bytes:
        assert self._file is not None, "it was opened"
        data = self._file.read(min(size, PIECE_BYTES)) if size else b""
        self._at += len(data)
        return data

    def photo(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; `OSError` where they are not as they were when the file was listed."""
        try:
            return exactly(self.read, offset, size)
        except (UserError, *_DAMAGE) as error:
            self.close()
            raise error if isinstance(error, OSError) else OSError(f"{self.where} is not as it was: {error}") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def _unpacked(raw: io.RawIOBase, compression: str, where: str) -> BinaryIO:
    """The plain bytes of all compressed streams in a file."""
    file: Any = io.BufferedReader(raw, PIECE_BYTES)
    if compression == "gz":
        file = gzip.GzipFile(fileobj=file, mode="rb")
    elif compression in ("bz2", "xz"):
        make = bz2.BZ2Decompressor if compression == "bz2" else functools.partial(lzma.LZMADecompressor, lzma.FORMAT_XZ)
        file = io.BufferedReader(_Streams(file, make), PIECE_BYTES)
    elif compression == "zst":
        from shard_tool.sources.columns import pyarrow_of

        file = pyarrow_of(where).CompressedInputStream(file, "zstd")
    return cast(BinaryIO, file)


class _Streams(io.RawIOBase):
    """Streams of bz2 or xz one after the other; unlike `bz2.open`, which takes what is none for the end."""

    def __init__(self, packed: io.BufferedReader, make: Callable[[], Any]) -> None:
        self._packed, self._make, self._unpacker = packed, make, make()
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpacker.eof or self._begins_another():
            packed, self._left = self._left, b""
            if not packed and self._unpacker.needs_input and not (packed := self._packed.read(PIECE_BYTES)):
                raise EOFError("unexpected end of data")
            if data := self._unpacker.decompress(packed, len(buffer)):
                buffer[: len(data)] = data
                return len(data)
        return 0

    def _begins_another(self) -> bool:
        left = self._unpacker.unused_data
        while not (left := left.lstrip(b"\0")) and (left := self._packed.read(PIECE_BYTES)):
            pass  # Zeros may lie between streams.
        if left:
            self._unpacker, self._left = self._make(), left
        return bool(left)

"""A zip, read in place: stored and deflated members, each found through the archive's directory.

    [member] [member] ... [central directory] [Zip64 end] [Zip64 locator] [end of central directory]

The directory is gone through entry by entry, and 202,599 members take 30 bytes each here, where `zipfile` takes most of
a KiB. Layout: PKWARE's APPNOTE, 4.3.12 to 4.3.16.
"""

import functools
import re
import stat
import struct
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.sources.carried import clean_path, follow, link_target
from shard_tool.sources.listing import Listing, Numbers, compact
from shard_tool.sources.protocol import (
    WHATEVER,
    Access,
    InputError,
    Known,
    SideFile,
    Sieve,
    Wanted,
    chunks_of_files,
    one_by_one,
)
from shard_tool.sources.ranges import PIECE_BYTES, Ranges, pieces, read_whole

_STORED, _DEFLATED, _ENCRYPTED = 0, 8, 0xFFFF
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 96: "JPEG"}
_NAME_ROOM = 512
"""Bytes read with a member for its name and extra fields; a longer header costs a second read."""

_LOCAL = struct.Struct("<4s22x2H")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LONGEST_COMMENT = 1 << 16
_FLAG_ENCRYPTED, _FLAG_UTF8 = 1 << 0, 1 << 11
_DOS_LIKE, _UNIX_LIKE = (0, 6, 10, 11, 14), (3, 19)
"""Systems on which a member was made: those where a backslash divides folders, and those with symbolic links."""
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075
_NOWHERE = (1 << 63) - 1


class Entry(NamedTuple):
    """One member."""

    path: str
    is_folder: bool
    is_link: bool
    method: int
    """How it is compressed, or `_ENCRYPTED`."""
    crc32: int
    compressed: int
    """Bytes in the archive."""
    size: int
    """Bytes as a file."""
    offset: int
    """Of its local header."""


@dataclass(frozen=True)
class ZipSource:
    """All image files in one zip."""

    file: Ranges
    name: str
    listing: Listing
    ignored: Mapping[str, int]
    offsets: Numbers
    """[inputs] Of each member's local header."""
    compressed: Numbers
    """[inputs] Bytes in the archive."""
    crc32: NDArray[np.uint32]
    methods: NDArray[np.uint16]
    """[inputs] How it is compressed."""
    tables: Mapping[str, Entry]
    known: Known = field(default_factory=Known)
    origin: dict[str, str] = field(default_factory=dict)
    access = Access.ANY_ORDER
    takes = frozenset({"include", "exclude"})

    @classmethod
    def open(cls, file: Ranges, name: str, wanted: Wanted = WHATEVER) -> Self:
        """List the zip; raises `UserError` where it is damaged, encrypted, or holds no image file."""
        columns = (array("Q"), array("Q"), array("L"), array("H"))
        sieve, tables = Sieve(wanted), dict[str, Entry]()

        def photos() -> Iterator[tuple[bytes, int]]:
            for path, entry in _photos(file, sieve, tables):
                row = (entry.offset, entry.compressed, entry.crc32, entry.method)
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
                yield path.encode(), entry.size

        listing, order = Listing.sort(photos())
        if older := len(columns[0]) - len(listing):
            sieve.ignored["older entry of the same path"] += older
        sieve.require_photos(len(listing), file.where)
        offsets, compressed = (compact(column)[order] for column in columns[:2])
        crc32, methods = (np.array(column, kind)[order] for column, kind in zip(columns[2:], ("u4", "u2"), strict=True))
        if (methods == _ENCRYPTED).all():
            raise UserError(
                f"{file.where} must be readable without a password; got {len(listing):,} photos, all encrypted. "
                "Unpack it with its password, and name the folder."
            )
        return cls(file, name, listing, sieve.ignored, offsets, compressed, crc32, methods, tables)

    def chunks(self) -> NDArray[np.int64]:
        """Runs of consecutive files."""
        return chunks_of_files(len(self.listing))

    def read(self, item: int) -> bytes:
        """One member, whose crc32 is compared."""
        columns = (self.offsets, self.compressed, self.listing.sizes, self.crc32, self.methods)
        return _member(self.file, *(int(column[item]) for column in columns))

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """Member after member."""
        return one_by_one(self.read, items)

    def carried(self, item: int) -> dict[str, object]:
        """Nothing."""
        return {}

    def side_files(self, file_name: str) -> list[SideFile]:
        """Those inside, the least deep first."""
        found = [path for path in self.tables if path.rpartition("/")[2] == file_name]
        found.sort(key=lambda path: (path.count("/"), path))
        where, tables = self.file.where, self.tables
        return [
            SideFile(f"{where}/{path}", True, functools.partial(_open_table, self.file, tables[path]), path)
            for path in found
        ]


def _photos(file: Ranges, sieve: Sieve, tables: dict[str, Entry]) -> Iterator[tuple[str, Entry]]:
    """Path and entry of each photo; fills `tables`. Links, which are few, come last, with what they point to."""
    links: dict[str, str] = {}
    for entry in entries(file):
        if entry.is_folder:
            continue
        kind = sieve.kind(entry.path)
        if entry.is_link and kind == "photo":
            links[entry.path] = _link(file, entry)
        elif kind == "photo":
            yield entry.path, entry
        elif kind == "table" and not entry.is_link:
            if entry.path in tables:
                sieve.ignored["table"] -= 1
                sieve.ignored["older entry of the same path"] += 1
            tables[entry.path] = entry
    if links:
        ends = {path: follow(links, path) for path in links}
        found = set(ends.values())
        targets = {entry.path: entry for entry in entries(file) if entry.path in found and not entry.is_folder}
        for path, end in ends.items():
            if end in targets:
                yield path, targets[end]
            else:
                sieve.ignored["broken link"] += 1


def _link(file: Ranges, entry: Entry) -> str:
    """The path that a symbolic link points to; empty where that is not in the archive."""
    try:
        target = _member(file, entry.offset, entry.compressed, min(entry.size, 1 << 16), entry.crc32, entry.method)
    except InputError:
        return ""
    return link_target(entry.path, target.decode("utf-8", "replace"))


def _member(file: Ranges, offset: int, compressed: int, size: int, crc32: int, method: int) -> bytes:
    _check_method(method)
    room = min(_LOCAL.size + _NAME_ROOM + compressed, file.size - offset)
    if room < compressed or compressed > 2 * size + 1024:
        raise InputError("damaged in the archive", "its size cannot be")
    data = read_whole(file, offset, room)
    start = _content_start(data)
    body = data[start : start + compressed]
    if len(body) < compressed:
        end = min(offset + start + compressed, file.size)
        body += read_whole(file, offset + start + len(body), end - offset - start - len(body))
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


def _open_table(file: Ranges, entry: Entry) -> BinaryIO:
    """A table, unpacked into a temporary file: CelebA's has 24 MB. `UserError` where it cannot be had."""
    plain, crc32 = tempfile.TemporaryFile(), 0  # noqa: SIM115 (the caller closes it)
    try:
        _check_method(entry.method)
        start = entry.offset + _content_start(file.read(entry.offset, _LOCAL.size))
        inflater = zlib.decompressobj(-15)
        for piece in pieces(file, start, min(entry.compressed, max(0, file.size - start))):
            while piece and plain.tell() <= entry.size:
                data, piece = piece, b""
                if entry.method == _DEFLATED:
                    data, piece = inflater.decompress(data, PIECE_BYTES), inflater.unconsumed_tail
                crc32 = zlib.crc32(data, crc32)
                plain.write(data)
        if (plain.tell(), crc32) != (entry.size, entry.crc32):
            raise InputError("damaged in the archive", "its crc32 is another")
    except (InputError, zlib.error) as error:
        plain.close()
        why = f"{error.reason}: {error.detail}" if isinstance(error, InputError) else error
        raise UserError(
            f"{file.where}/{entry.path} must be readable; got '{why}'. Repair the archive, or unpack it."
        ) from None
    plain.seek(0)
    return cast(BinaryIO, plain)


def entries(file: Ranges) -> Iterator[Entry]:
    """All members, in the order of the directory; `UserError` where `file` is no whole zip."""
    page = ""
    for fields, name, extra, shift in _raw_entries(file):
        flags, crc32 = fields[5], fields[9]
        compressed, size, offset = fields[10], fields[11], fields[18]
        if 0xFFFFFFFF in (compressed, size, offset):
            body = _extra(extra, _ZIP64)
            wide = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
            size = next(wide, size) if size == 0xFFFFFFFF else size
            compressed = next(wide, compressed) if compressed == 0xFFFFFFFF else compressed
            offset = next(wide, offset) if offset == 0xFFFFFFFF else offset
        text = _unicode(name, extra)
        if text is None:
            page = page or _code_page(file)
            text = name.decode(page)
        if fields[2] in _DOS_LIKE or "/" not in text:
            text = text.replace("\\", "/")
        is_link = fields[2] in _UNIX_LIKE and stat.S_ISLNK(fields[17] >> 16)
        method = _ENCRYPTED if flags & _FLAG_ENCRYPTED else fields[6]
        # What no file can be as large as is damaged; reading it says so.
        numbers = (min(number, _NOWHERE) for number in (compressed, size, offset + shift))
        yield Entry(clean_path(text), text.endswith("/"), is_link, method, crc32, *numbers)


def _raw_entries(file: Ranges) -> Iterator[tuple[tuple[int, ...], bytes, bytes, int]]:
    """Fixed fields, name and extra fields of each entry, and how far its offset is off."""
    start, size, shift = _find(file)
    buffer, at, source = b"", 0, pieces(file, start, size)
    # Not by the number of entries: where a program knew no Zip64, that has wrapped at 65,536.
    while size:
        while True:
            if len(buffer) - at >= _ENTRY.size:
                fields = _ENTRY.unpack_from(buffer, at)
                name_size, extra_size, comment_size = fields[12:15]
                whole = _ENTRY.size + name_size + extra_size + comment_size
                if len(buffer) - at >= whole:
                    break
            piece = next(source, b"")
            if not piece:
                raise _damaged(file, "its directory ends early")
            buffer, at = buffer[at:] + piece, 0
        if fields[0] != b"PK\x01\x02":
            raise _damaged(file, "its directory holds something else")
        name_end = at + _ENTRY.size + name_size
        name, extra = buffer[at + _ENTRY.size : name_end], buffer[name_end : name_end + extra_size]
        yield fields, name, extra, shift
        at += whole
        size -= whole


def _extra(extra: bytes, kind: int) -> bytes:
    """The extra field of that kind; empty where there is none."""
    at = 0
    while at + 4 <= len(extra):
        found, size = struct.unpack_from("<2H", extra, at)
        if found == kind:
            return extra[at + 4 : at + 4 + size]
        at += 4 + size
    return b""


def _unicode(name: bytes, extra: bytes) -> str | None:
    """A name that is UTF-8, also without the flag that says so, or has Info-ZIP's field for it; else None."""
    path = _extra(extra, _UNICODE_PATH)
    if path[:1] == b"\1" and path[1:5] == zlib.crc32(name).to_bytes(4, "little"):
        name = path[5:]
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None


_EAST_ASIAN = re.compile("[ -~\u00b7\u2010-\u2027\u2460-\u24ff\u25a0-\u2606\u3000-\u30ff\u4e00-\u9fff\uff01-\uff9f]*")
_WORD = re.compile("[\u3005\u3040-\u30ff\u4e00-\u9fff]{2}")


def _code_page(file: Ranges) -> str:
    """The code page of all names that say nothing of theirs: one for the archive, and no two names become one.

    Japanese (cp932) or else Chinese (gbk), if every name is text in it and half of them have two of its characters side
    by side; else cp437, the standard's, in which every byte is a letter.
    """
    for page in ("cp932", "gbk"):
        names = words = 0
        for _, name, extra, _ in _raw_entries(file):
            if _unicode(name, extra) is None:
                text = name.decode(page, "replace")
                if not _EAST_ASIAN.fullmatch(text) or text.encode(page) != name:
                    break
                names += 1
                words += bool(_WORD.search(text))
        else:
            if 2 * words >= names:
                return page
    return "cp437"


def _find(file: Ranges) -> tuple[int, int, int]:
    """Start and size of the directory, and how far all offsets are off by what precedes the archive."""
    tail_start = max(0, file.size - _LONGEST_COMMENT - _END.size - _LOCATOR.size - _END64.size)
    tail = b"".join(pieces(file, tail_start, file.size - tail_start))
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0 and len(tail) - at < _END.size:
        at = tail.rfind(b"PK\x05\x06", 0, at)
    if at < 0:
        if file.read(0, 4) == b"PK\x07\x08":
            raise _part(file)
        raise _damaged(file, "no directory at its end, as after a download that broke off")
    _, disk, _, _, _, size, start, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    locator = at - _LOCATOR.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        at64 = end - _LOCATOR.size - _END64.size
        fields = _END64.unpack(file.read(at64, _END64.size).ljust(_END64.size, b"\0"))
        if fields[0] != b"PK\x06\x06":  # It may be longer; then it is where the locator says.
            at64 = _LOCATOR.unpack_from(tail, locator)[2]
            fields = _END64.unpack(file.read(at64, _END64.size).ljust(_END64.size, b"\0"))
        if fields[0] != b"PK\x06\x06":
            raise _damaged(file, "no Zip64 record where one should be")
        disk, size, start, end = fields[4], fields[8], fields[9], at64
    if disk not in (0, 0xFFFF):
        raise _part(file)
    shift = end - size - start
    if shift < 0:
        raise _damaged(file, "a directory that begins before the file does")
    return start + shift, size, shift


def _damaged(file: Ranges, what: str) -> UserError:
    return UserError(f"{file.where} must be a whole zip; got {what}. Download or copy it again.")


def _part(file: Ranges) -> UserError:
    whole = re.sub(r"\.[^./]*$", ".zip", file.where)
    return UserError(
        f"{file.where} must be one file; got a part of several. Join them: zip -s 0 {whole} --out joined.zip."
    )

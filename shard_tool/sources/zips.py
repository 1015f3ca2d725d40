"""A zip, read in place: stored and deflated members, each found through the archive's directory.

    [member] [member] ... [central directory] [Zip64 end] [Zip64 locator] [end of central directory]

The directory is gone through entry by entry, and 202,599 members take 40 bytes each here, where `zipfile` takes most of
a KiB. Layout: PKWARE's APPNOTE, 4.3.12 to 4.3.16.
"""

import functools
import io
import re
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.sources.carried import clean_path, follow, link_target, side_files
from shard_tool.sources.listing import Listing
from shard_tool.sources.protocol import InAnyOrder, InputError, Known, SideFile, Sieve, Wanted
from shard_tool.sources.ranges import PIECE_BYTES, Ranges, RangesFile, read_whole

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
_MEMBER = np.dtype([("offset", "<u8"), ("compressed", "<u8"), ("crc32", "<u4"), ("method", "<u2")])


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
class ZipSource(InAnyOrder):
    """All image files in one zip."""

    file: Ranges
    name: str
    listing: Listing
    ignored: Mapping[str, int]
    members: NDArray[np.void]
    """[inputs] What `Entry` says of each, as `_MEMBER`."""
    tables: Mapping[str, Entry]
    known: Known = field(default_factory=Known)
    origin: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, file: Ranges, name: str, wanted: Wanted) -> Self:
        """List the zip; raises `UserError` where it is damaged, encrypted, or holds no image file."""
        rows, sieve, tables = bytearray(), Sieve(wanted), dict[str, Entry]()

        def photos() -> Iterator[tuple[bytes, int]]:
            for path, entry in _photos(file, sieve, tables):
                rows.extend(struct.pack("<QQLH", entry.offset, entry.compressed, entry.crc32, entry.method))
                yield path.encode(), entry.size

        listing, order = Listing.sort(photos())
        members = np.frombuffer(rows, _MEMBER)
        sieve.ignored["older entry of the same path"] += len(members) - len(listing)
        sieve.require_photos(len(listing), file.where)
        members = members[order]
        if (members["method"] == _ENCRYPTED).all():
            raise UserError(
                f"{file.where} must be readable without a password; got {len(listing):,} photos, all encrypted. "
                "Unpack it with its password, and name the folder."
            )
        return cls(file, name, listing, +sieve.ignored, members, tables)

    def read(self, item: int) -> bytes:
        """One member, whose crc32 is compared."""
        return _member(self.file, int(self.listing.sizes[item]), *self.members[item].item())

    def side_files(self, file_name: str) -> list[SideFile]:
        """Those inside, the least deep first."""
        return side_files(self.file.where, self.tables, file_name, self._open_table)

    def _open_table(self, path: str) -> BinaryIO:
        """A table, unpacked into a temporary file: CelebA's has 24 MB. `UserError` where it cannot be had."""
        file, entry, plain = self.file, self.tables[path], tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
        try:
            _check_method(entry.method)
            start = entry.offset + _content_start(file.read(entry.offset, _LOCAL.size))
            packed = iter(functools.partial(RangesFile(file, start, entry.compressed).read, PIECE_BYTES), b"")
            plain.writelines(_unpack(packed, entry.size, entry.crc32, entry.method))
        except InputError as bad:
            plain.close()
            raise UserError(
                f"{file.where}/{entry.path} must be readable; got '{bad.reason}: {bad.detail}'. "
                "Repair the archive, or unpack it."
            ) from None
        plain.seek(0)
        return cast(BinaryIO, plain)


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
        target = _member(file, min(entry.size, 1 << 16), entry.offset, entry.compressed, entry.crc32, entry.method)
    except InputError:
        return ""
    return link_target(entry.path, target.decode("utf-8", "replace"))


def _member(file: Ranges, size: int, offset: int, compressed: int, crc32: int, method: int) -> bytes:
    _check_method(method)
    room = min(_LOCAL.size + _NAME_ROOM + compressed, file.size - offset)
    if room < compressed or compressed > 2 * size + 1024:
        raise InputError("damaged in the archive", "its size cannot be")
    data = read_whole(file, offset, room)
    start = _content_start(data)
    end = min(start + compressed, file.size - offset)
    if end > room:
        data += read_whole(file, offset + room, end - room)
    return b"".join(_unpack([data[start:end]], size, crc32, method))


def _unpack(packed: Iterable[bytes], size: int, crc32: int, method: int) -> Iterator[bytes]:
    """The plain bytes; one more than there should be at most, as an archive that lies about sizes gets no memory."""
    inflater, at, crc = zlib.decompressobj(-15), 0, 0
    try:
        for piece in packed:
            while at <= size:
                if method == _DEFLATED:
                    data = inflater.decompress(piece, min(PIECE_BYTES, size + 1 - at))
                    piece = inflater.unconsumed_tail
                else:
                    data, piece = piece, b""
                if not data:
                    break
                at, crc = at + len(data), zlib.crc32(data, crc)
                yield data
    except zlib.error as error:
        raise InputError("damaged in the archive", str(error)) from None
    if (at, crc) != (size, crc32):
        raise InputError("damaged in the archive", "its crc32 is another")


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


def entries(file: Ranges) -> Iterator[Entry]:
    """All members, in the order of the directory; `UserError` where `file` is no whole zip."""
    page = ""
    for fields, name, extra, shift in _raw_entries(file):
        flags, crc32 = fields[5], fields[9]
        compressed, size, offset = fields[10], fields[11], fields[18]
        if 0xFFFFFFFF in (compressed, size, offset):
            body = _extra(extra, _ZIP64)
            wide = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
            narrow = (size, compressed, offset)
            size, compressed, offset = (next(wide, one) if one == 0xFFFFFFFF else one for one in narrow)
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
    directory = io.BufferedReader(RangesFile(file, start, size), PIECE_BYTES)
    # Not by the number of entries: where a program knew no Zip64, that has wrapped at 65,536.
    while fixed := directory.read(_ENTRY.size):
        fields = _ENTRY.unpack(fixed.ljust(_ENTRY.size, b"\0"))
        if fields[0] != b"PK\x01\x02":
            raise _damaged(file, "its directory holds something else")
        name_size, extra_size, _ = fields[12:15]
        rest = directory.read(sum(fields[12:15]))
        if len(fixed) < _ENTRY.size or len(rest) < sum(fields[12:15]):
            raise _damaged(file, "its directory ends early")
        yield fields, rest[:name_size], rest[name_size : name_size + extra_size], shift


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
    tail = file.read(tail_start, file.size - tail_start)
    at = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
    if at < 0:
        if file.read(0, 4) == b"PK\x07\x08":
            raise _part(file)
        raise _damaged(file, "no directory at its end, as after a download that broke off")
    _, disk, _, _, _, size, start, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    locator = at - _LOCATOR.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        # Right before its locator or, where it is longer, where that says.
        for at64 in (end - _LOCATOR.size - _END64.size, _LOCATOR.unpack_from(tail, locator)[2]):
            fields = _END64.unpack(file.read(at64, _END64.size).ljust(_END64.size, b"\0"))
            if fields[0] == b"PK\x06\x06":
                break
        else:
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

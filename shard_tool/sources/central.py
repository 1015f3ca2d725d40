"""The central directory of a zip, entry by entry: neither an object for each member nor the whole of it is ever held.

    [member] [member] ... [central directory] [Zip64 end] [Zip64 locator] [end of central directory]

Layout: PKWARE's APPNOTE, 4.3.12 to 4.3.16.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.errors import UserError
from shard_tool.sources.ranges import Ranges, pieces

ENCRYPTED = 1 << 0
_UTF8 = 1 << 11
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LONGEST_COMMENT = 1 << 16


class Entry(NamedTuple):
    """One member."""

    path: str
    flags: int
    method: int
    crc32: int
    compressed: int
    """Bytes in the archive."""
    size: int
    """Bytes as a file."""
    offset: int
    """Of its local header."""


def entries(file: Ranges) -> Iterator[Entry]:
    """All members, in the order of the directory; `UserError` where `file` is no whole zip."""
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
        yield _entry(fields, name, extra, shift)
        at += whole
        size -= whole


def _entry(fields: tuple[int, ...], name: bytes, extra: bytes, shift: int) -> Entry:
    made_on, flags, method, crc32 = fields[2], fields[5], fields[6], fields[9]
    compressed, size, offset = fields[10], fields[11], fields[18]
    if 0xFFFFFFFF in (compressed, size, offset):
        wide = iter(_wide_numbers(extra))
        size = next(wide, size) if size == 0xFFFFFFFF else size
        compressed = next(wide, compressed) if compressed == 0xFFFFFFFF else compressed
        offset = next(wide, offset) if offset == 0xFFFFFFFF else offset
    return Entry(_path(name, flags, made_on), flags, method, crc32, compressed, size, offset + shift)


def _wide_numbers(extra: bytes) -> tuple[int, ...]:
    """The 8-byte numbers of the Zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            body = extra[at + 4 : at + 4 + size]
            return struct.unpack_from(f"<{len(body) // 8}Q", body)
        at += 4 + size
    return ()


def _path(name: bytes, flags: int, made_on: int) -> str:
    """A member's name. The old code page counts only where the bytes are no UTF-8, as some programs set no flag."""
    try:
        path = name.decode()
    except UnicodeDecodeError:
        path = name.decode("utf-8", "replace") if flags & _UTF8 else name.decode("cp437")
    if made_on == 0 and "/" not in path:
        path = path.replace("\\", "/")
    path = path.replace("\0", "_").lstrip("/")
    return path[2:] if path.startswith("./") else path


def _find(file: Ranges) -> tuple[int, int, int]:
    """Start and size of the directory, and how far all offsets are off by what precedes the archive."""
    tail_start = max(0, file.size - _LONGEST_COMMENT - _END.size - _LOCATOR.size - _END64.size)
    tail = b"".join(pieces(file, tail_start, file.size - tail_start))
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0 and len(tail) - at < _END.size:
        at = tail.rfind(b"PK\x05\x06", 0, at)
    if at < 0:
        raise _damaged(file, "no directory at its end, as after a download that broke off")
    _, disk, _, _, _, size, start, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    locator = at - _LOCATOR.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        at64 = end - _LOCATOR.size - _END64.size
        fields = _END64.unpack(file.read(at64, _END64.size))
        if fields[0] != b"PK\x06\x06":  # It may be longer; then it is where the locator says.
            at64 = _LOCATOR.unpack_from(tail, locator)[2]
            fields = _END64.unpack(file.read(at64, _END64.size).ljust(_END64.size, b"\0"))
        if fields[0] != b"PK\x06\x06":
            raise _damaged(file, "no Zip64 record where one should be")
        disk, size, start, end = fields[4], fields[8], fields[9], at64
    if disk not in (0, 0xFFFF):
        raise UserError(f"{file.where} must be one file; got a part of several. Join them: zip -s 0 A.zip --out B.zip.")
    shift = end - size - start
    if shift < 0:
        raise _damaged(file, "a directory that begins before the file does")
    return start + shift, size, shift


def _damaged(file: Ranges, what: str) -> UserError:
    return UserError(f"{file.where} must be a whole zip; got {what}. Download or copy it again.")

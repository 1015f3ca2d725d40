"""Bytes of a file from any place in it: `pread` on this machine, range requests elsewhere, a temporary file for more.

An open file is never pickled: another process opens it again.
"""

import errno
import functools
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, Protocol, TypeVar, cast

from pipeline.errors import UserError
from pipeline.files import is_url
from pipeline.remote.transport import filesystem, read_chunks, retrying

T = TypeVar("T")

PIECE_BYTES = 1 << 20
"""Bytes read at once where a file is walked through; a remote one costs a request each time."""
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET}
"""What a network mount answers now and then, and not the next time."""
_WAITS_S = (0.1, 1.0)


class Ranges(Protocol):
    """One file, which can be read anywhere, from any thread."""

    @property
    def where(self) -> str:
        """Path or URL, for messages."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer only at the end; `OSError` or `TransportError`."""


class LocalRanges:
    """A file on this machine, read by `pread`; `OSError` as soon as it is another one than when it was opened first."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.size, self._changed_ns = _stamp(os.stat(where))

    @functools.cached_property
    def _file(self) -> int:
        return os.open(self.where, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        """See `Ranges`."""
        if not 0 <= offset < self.size:
            return b""
        data = local_read(lambda: os.pread(self._file, min(size, self.size - offset), offset))
        if _stamp(os.fstat(self._file)) != (self.size, self._changed_ns):
            raise OSError(f"{self.where} has changed since it was listed")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            os.close(self._file)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


class RemoteRanges:
    """A file behind a URL, read by range requests that are tried again until they succeed."""

    def __init__(self, where: str) -> None:
        self.where = where
        system, path = filesystem(where)
        info = retrying(lambda: system.info(path), where)
        if info.get("size") is None or info.get("partial") is False:
            raise UserError(
                f"{where} must be on a server that says its size and gives ranges of it; got neither. "
                "Download the file and name it on this machine."
            )
        self.size = int(info["size"])

    def read(self, offset: int, size: int) -> bytes:
        """See `Ranges`."""
        end = min(offset + size, self.size)
        return retrying(lambda: self._read(offset, end), self.where) if 0 <= offset < end else b""

    def _read(self, offset: int, end: int) -> bytes:
        system, path = filesystem(self.where)  # fsspec keeps one for each thread and process.
        data = bytes(system.cat_file(path, start=offset, end=end))
        if len(data) > end - offset:
            raise UserError(
                f"{self.where} must be on a server that gives ranges; got the whole file instead. "
                "Download the file and name it on this machine."
            )
        if len(data) < end - offset:
            raise OSError(errno.EIO, f"{len(data)} bytes instead of {end - offset}")
        return data


def read_whole(file: Ranges, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; `OSError` where the file ends before."""
    data = file.read(offset, size)
    if len(data) < size:
        raise OSError(f"{file.where} has become shorter")
    return data


def open_ranges(where: str) -> Ranges:
    """The file at a path or URL."""
    return RemoteRanges(where) if is_url(where) else LocalRanges(where)


def local_read(read: Callable[[], T]) -> T:
    """What `read` gives, after a second and a third attempt where a mount failed for the moment."""
    for wait_s in _WAITS_S:
        try:
            return read()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(wait_s)
    return read()


class RemoteStream(io.RawIOBase):
    """A file behind a URL from its start to its end; after a failure it goes on where it was."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._at = 0
        self._left = memoryview(b"")
        self._chunks: Iterator[bytes] | None = None

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` or a part of it; 0 at the end."""
        if not self._left:
            chunk = retrying(self._attempt, self.where, progress=lambda: self._at)
            self._at += len(chunk)
            self._left = memoryview(chunk)
        taken = min(len(buffer), len(self._left))
        buffer[:taken] = self._left[:taken]
        self._left = self._left[taken:]
        return taken

    def _attempt(self) -> bytes:
        try:
            if self._chunks is None:
                self._chunks = read_chunks(self.where, self._at, sys.maxsize)
            return next(self._chunks, b"")
        except Exception:
            self._chunks = None
            raise


class RangesFile(io.RawIOBase):
    """All of a file as libraries want it, with a place in it, or `size` bytes from `start`."""

    def __init__(self, file: "Ranges | Scratch", start: int = 0, size: int | None = None) -> None:
        self._file, self._start = file, start
        self._size = file.size - start if size is None else size
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read from the place on."""
        data = self._file.read(self._start + self._at, max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class Scratch:
    """Bytes that would fill the memory, in a temporary file without a name: appended to, and read at any place."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self.size = 0

    def append(self, data: bytes) -> None:
        """Add `data` at the end."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=1 << 18)  # noqa: SIM115 (it lives as long as this object)
        self._file.write(data)
        self.size += len(data)

    def read(self, offset: int, size: int) -> bytes:
        """The `size` bytes from `offset`."""
        if not size:
            return b""
        assert self._file is not None, "there is a file as soon as there are bytes"
        self._file.flush()
        return os.pread(self._file.fileno(), size, offset)

    def __getstate__(self) -> bytes:
        return self.read(0, self.size)

    def __setstate__(self, state: bytes) -> None:
        self._file, self.size = None, 0
        self.append(state)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


# Files behind a URL: their listing, and each with a request of its own, by as many threads as decode.


def is_file(url: str) -> bool:
    """Whether `url` is one file and not a folder of them; `UserError` if there is neither."""
    system, path = filesystem(url)
    try:
        return bool(retrying(lambda: system.info(path), url)["type"] == "file")
    except FileNotFoundError:
        raise UserError(f"the source must be there; got nothing at {url}. Check the address.") from None


def exists(url: str) -> bool:
    """Whether there is a file that may be read."""
    try:
        return is_file(url)
    except UserError:  # Also of a server that refuses to say.
        return False


def list_files(url: str) -> Iterator[tuple[str, int]]:
    """Relative path and size of every file below `url`."""
    system, root = filesystem(url)
    root = root.rstrip("/") + "/"
    found = _s3_objects(system, root, url) if hasattr(system, "call_s3") else _objects(system, root, url)
    for path, size in found:
        relative = path.removeprefix(root)
        if relative and not relative.endswith("/"):
            yield relative, size


def _s3_objects(system: Any, root: str, url: str) -> Iterator[tuple[str, int]]:
    """Page by page: a dictionary for each of a million objects would take a GiB."""
    bucket, prefix, _ = system.split_path(root)
    asked = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = retrying(functools.partial(system.call_s3, "list_objects_v2", **asked), url)
        for entry in page.get("Contents", []):
            yield f"{bucket}/{entry['Key']}", int(entry["Size"])
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _objects(system: Any, root: str, url: str) -> Iterator[tuple[str, int]]:
    found = retrying(lambda: system.find(root.rstrip("/"), detail=True), url)
    system.invalidate_cache()  # Which would be as large once more, for as long as the process lives.
    for path, info in found.items():
        if info["type"] == "file":
            yield path, int(info["size"] or 0)


def expand(url: str) -> list[str]:
    """The URLs that a glob stands for, sorted."""
    system, path = filesystem(url)
    found: list[str] = retrying(lambda: system.glob(path), url)
    return sorted(system.unstrip_protocol(one) for one in found)


def open_file(url: str) -> BinaryIO:
    """The content of a file, read as it comes."""
    return cast(BinaryIO, io.BufferedReader(RemoteStream(url), PIECE_BYTES))


def read_file(url: str, size: int, *, most: int | None = None) -> bytes:
    """A file that has `size` bytes, or its first `most`; `OSError` if it has another size or is gone."""

    def attempt() -> bytes:
        system, path = filesystem(url)
        data = bytes(system.cat_file(path, start=0, end=most) if most else system.cat_file(path))
        if len(data) != min(size, most or size):
            raise OSError(errno.EIO, f"{len(data):,} bytes, {size:,} when it was listed")
        return data

    try:
        return retrying(attempt, url)
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, "it has gone since it was listed") from error

"""A folder on a fast disk that holds copies of shards, up to a number of bytes, for all processes of a machine.

    leanstream-<sha256>.tar            a whole shard, compared with its sha256 before it got this name
    leanstream-<sha256>.index          where its samples lie
    leanstream-<sha256>.tar.partial    being filled, locked by its filler, from the start as long as it will be
    leanstream.lock                    held while a shard comes in or goes

There is no book about it: the listing is the truth, and kernel locks, which die with their process, say who uses what.
Files have their full length before the first byte is fetched, so that the limit holds at every moment; whoever reads a
shard holds a shared lock on it, and only a shard that nobody has locked is evicted, the least recently used one first.
Other files in the folder are never touched.
"""

import contextlib
import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Self

from pipeline.errors import UserError, describe_os_error
from pipeline.format import Shard, index_bytes
from pipeline.remote.transport import pause

_NAME = re.compile(r"leanstream-([0-9a-f]{64})\.((?:tar|index)(?:\.partial)?)")
_LOCK = "leanstream.lock"
_LOOK_S = 0.01
"""Time between looks at the folder's lock, which is held for milliseconds."""
_Files = dict[str, os.stat_result]
"""The files of one shard, by what follows `leanstream-<sha256>.`"""
_Entries = dict[str, _Files]
"""The shards in the folder, by sha256."""


class NoRoomError(Exception):
    """The shards that are in use, and those that are to be spared, leave no room; the value is their bytes."""


def default_folder() -> Path:
    """Where copies of shards go unless told otherwise; `UserError` for a user who has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leanstream"
    except RuntimeError:
        raise UserError(
            "the disk cache must have a folder; got none, and a user without a home folder. "
            "Set HOME or XDG_CACHE_HOME, or name a cache folder."
        ) from None


class DiskCache:
    """The folder; safe for threads and for processes. Nothing is kept in memory but its name and its limit."""

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        """Take the folder, make it where it is missing, and clear away what a killed process left half-filled.

        Args:
            folder: on a local disk; the file system must have locks.
            limit_bytes: bytes of all copies together, those being fetched included; default: half of what is free,
                the copies that are there counted as free.

        Raises:
            UserError: where the folder cannot be used.
        """
        self.folder = folder
        with self._described():
            folder.mkdir(parents=True, exist_ok=True)
        with self._locked() as entries:
            free = shutil.disk_usage(folder).free + _bytes(*entries.values())
        self.limit_bytes = free // 2 if limit_bytes is None else limit_bytes

    def shrink(self) -> None:
        """Evict until the limit holds, or nothing is left but what is in use."""
        with self._locked() as entries, contextlib.suppress(NoRoomError):
            for sha256, file in self._victims(entries, 0, ()):
                with file:
                    self._unlink(sha256, entries[sha256])

    def stem(self, shard: Shard) -> str:
        """The name of a shard's files, without extension."""
        return f"leanstream-{shard.sha256}"

    def pin(self, shard: Shard) -> int | None:
        """A descriptor of the shard's tar that keeps it until it is closed; None where there is no whole copy."""
        tar, index = self._file(shard.sha256, "tar"), self._file(shard.sha256, "index")
        with self._described(), contextlib.suppress(FileNotFoundError), open(tar, "rb", buffering=0) as file:
            is_locked, found = _try_lock(file, fcntl.LOCK_SH), os.fstat(file.fileno())
            # Between opening and locking it may have been evicted, and even fetched again.
            is_there = is_locked and os.path.samestat(found, tar.stat())
            if is_there and (found.st_size, index.stat().st_size) == (shard.bytes, index_bytes(shard.samples)):
                _touch(file)
                return os.dup(file.fileno())  # The lock lives on with it.
        return None

    def claim(
        self, shard: Shard, spare: Collection[str] = (), stopped: threading.Event | None = None
    ) -> "Claim | None":
        """The right to fill in a shard, with room made for it; None where another one fills it, or it is whole.

        Raises `NoRoomError` where the limit is too small beside what is in use and what is to be spared (sha256s).
        """
        whole = {"tar": shard.bytes, "index": index_bytes(shard.samples)}
        with self._locked(stopped) as entries, contextlib.ExitStack() as held:
            files = entries.pop(shard.sha256, {})
            if "tar.partial" in files or {suffix: file.st_size for suffix, file in files.items()} == whole:
                return None
            self._unlink(shard.sha256, files)  # Cut off: whoever reads from it still has it, but nobody else gets it.
            victims = self._victims(entries, sum(whole.values()), spare)  # All are locked before the first one goes.
            for sha256, _ in [(sha256, held.enter_context(file)) for sha256, file in victims]:
                self._unlink(sha256, entries[sha256])
            return Claim(self, shard, stopped)

    def drop(self, shard: Shard, stopped: threading.Event | None = None) -> None:
        """Forget a copy that is damaged."""
        with self._locked(stopped) as entries:
            files = entries.get(shard.sha256, {})
            if "tar.partial" not in files:
                self._unlink(shard.sha256, files)

    @contextlib.contextmanager
    def _described(self) -> Iterator[None]:
        """What the disk refuses becomes a `UserError`."""
        try:
            yield
        except OSError as error:
            raise describe_os_error(error, f"using {self.folder} as a cache") from error

    @contextlib.contextmanager
    def _locked(self, stopped: threading.Event | None = None) -> Iterator[_Entries]:
        """The shards that are there, while no other thread or process adds one; for milliseconds."""
        with self._described(), open(self.folder / _LOCK, "ab") as file:
            while not _try_lock(file):
                pause(_LOOK_S, stopped)
            yield self._entries()

    def _entries(self) -> _Entries:
        """The shards that are whole or being filled, after everything else of ours was removed."""
        entries: _Entries = {}
        with os.scandir(self.folder) as listing:
            for item in listing:
                match = _NAME.fullmatch(item.name)
                with contextlib.suppress(FileNotFoundError):  # Whoever gives up a claim does not wait for the lock.
                    if match is not None and item.is_file(follow_symlinks=False):
                        entries.setdefault(match[1], {})[match[2]] = item.stat(follow_symlinks=False)
        for sha256, files in list(entries.items()):
            if files.keys() != {"tar", "index"} and not self._is_being_filled(sha256):
                self._unlink(sha256, entries.pop(sha256))
        return entries

    def _is_being_filled(self, sha256: str) -> bool:
        with contextlib.suppress(FileNotFoundError), open(self._file(sha256, "tar.partial"), "rb") as file:
            return not _try_lock(file)
        return False

    def _victims(self, entries: _Entries, need: int, spare: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
        """What must go for `need` more bytes to fit, oldest use first, with its locked tar; else `NoRoomError`."""
        total = need + _bytes(*entries.values())
        whole = [sha256 for sha256, files in entries.items() if "tar" in files and sha256 not in spare]
        for sha256 in sorted(whole, key=lambda sha256: entries[sha256]["tar"].st_mtime_ns):
            if total <= self.limit_bytes:
                break
            file = open(self._file(sha256, "tar"), "rb")  # noqa: SIM115 (the caller closes it)
            if _try_lock(file):
                total -= _bytes(entries[sha256])
                yield sha256, file
            else:
                file.close()
        if total > self.limit_bytes:
            raise NoRoomError(total - need)

    def _unlink(self, sha256: str, suffixes: Iterable[str]) -> None:
        for suffix in sorted(suffixes, reverse=True):  # The tar goes first: an index alone is known as a leftover.
            self._file(sha256, suffix).unlink(missing_ok=True)

    def _file(self, sha256: str, suffix: str) -> Path:
        return self.folder / f"leanstream-{sha256}.{suffix}"


def _bytes(*entries: _Files) -> int:
    return sum(file.st_size for files in entries for file in files.values())


def _try_lock(file: IO[bytes], kind: int = fcntl.LOCK_EX) -> bool:
    """Take a lock of an open file; False where another one is in the way, `OSError` on a disk that has no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _touch(file: IO[bytes]) -> None:
    """Make a tar the one that was used last; the kernel's own clock would tick only every few milliseconds."""
    now = time.time_ns()
    os.utime(file.fileno(), ns=(now, now))


class Claim:
    """A shard that is being filled in; a context manager that leaves nothing behind unless `finish` was called."""

    def __init__(self, cache: DiskCache, shard: Shard, stopped: threading.Event | None) -> None:
        """Called by `DiskCache.claim` alone, under the folder's lock."""
        self._cache, self._shard, self._stopped = cache, shard, stopped
        self.path = cache._file(shard.sha256, "tar.partial")
        """Where the bytes are before `finish`."""
        self._index = cache._file(shard.sha256, "index")
        self._tar = open(self.path, "x+b", buffering=0)  # noqa: SIM115 (closed by `__exit__` or `finish`)
        try:
            _try_lock(self._tar)
            self._tar.truncate(shard.bytes)
            with open(self._index, "xb") as file:
                file.truncate(index_bytes(shard.samples))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._tar.closed:
            self._index.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)  # Last: its lock tells others that nothing here is a leftover.
            self._tar.close()

    def write(self, data: bytes, offset: int) -> None:
        """Put a part of the tar in its place; `UserError` where the disk refuses it."""
        assert offset + len(data) <= self._shard.bytes, "no byte more than was claimed"
        view = memoryview(data)
        with self._cache._described():
            while view:
                count = os.pwrite(self._tar.fileno(), view, offset)
                view, offset = view[count:], offset + count

    def finish(self, index: bytes) -> int:
        """Give the shard its name; returns a descriptor of its tar that pins it, as `DiskCache.pin` does."""
        assert len(index) == index_bytes(self._shard.samples), "checked by the caller"
        with self._cache._described(), open(self._index, "r+b") as file:
            file.write(index)
            file.flush()
            os.fsync(file.fileno())
            os.fsync(self._tar.fileno())
            _touch(self._tar)
        with self._cache._locked(self._stopped):
            self.path.replace(self._cache._file(self._shard.sha256, "tar"))
            pinned = os.dup(self._tar.fileno())
            self._tar.close()
            fcntl.flock(pinned, fcntl.LOCK_SH)
        return pinned

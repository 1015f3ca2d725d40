"""A folder on a fast disk that holds copies of shards, up to a number of bytes, for all processes of a machine.

    leanstream-<sha256>.tar            a whole shard, compared with its sha256 before it got this name
    leanstream-<sha256>.index          where its samples lie
    leanstream-<sha256>.tar.partial    being filled, locked by its filler, from the start as long as it will be
    leanstream.lock                    held while room is made

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
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import describe_os_error
from pipeline.files import try_lock
from pipeline.format import Shard, ShardSet, index_bytes

_NAME = re.compile(r"leanstream-([0-9a-f]{64})\.(tar|index|tar\.partial|index\.partial)")
_LOCK = "leanstream.lock"


class NoRoomError(Exception):
    """The shards that are in use, and those that are to be spared, leave no room; the value is their bytes."""


def default_folder() -> Path:
    """Where copies of shards go unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leanstream"


def cache_of(shards: ShardSet) -> "DiskCache | None":
    """The cache that a set is read through; None for a set on this machine that asks for none."""
    if isinstance(shards.location, Path) and shards.cache is False:
        return None
    return DiskCache(shards.cache if isinstance(shards.cache, Path) else default_folder(), shards.cache_bytes)


@dataclass
class _Entry:
    """The files of one shard in the folder."""

    files: dict[str, os.stat_result] = field(default_factory=dict)
    """By what follows `leanstream-<sha256>.`."""

    @property
    def bytes(self) -> int:
        return sum(file.st_size for file in self.files.values())

    @property
    def used_ns(self) -> int:
        return self.files["tar"].st_mtime_ns if "tar" in self.files else 0


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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                entries = self._entries()
                if limit_bytes is None:
                    limit_bytes = (shutil.disk_usage(folder).free + sum(one.bytes for one in entries.values())) // 2
                self.limit_bytes = limit_bytes
                with contextlib.suppress(NoRoomError):  # Another process may use more just now.
                    self._make_room(entries, 0, ())
        except OSError as error:
            raise describe_os_error(error, f"using {folder} as a cache") from error

    def stem(self, shard: Shard) -> str:
        """The name of a shard's files, without extension."""
        return f"leanstream-{shard.sha256}"

    def pin(self, shard: Shard) -> int | None:
        """A descriptor of the shard's tar that keeps it until it is closed; None where there is no whole copy."""
        path = self._file(shard.sha256, "tar")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise describe_os_error(error, "opening a copy of a shard") from error
        whole = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found = os.fstat(descriptor)
            # Between opening and locking it may have been evicted, and even fetched again.
            same = os.stat(path).st_ino == found.st_ino
            sizes = (found.st_size, self._file(shard.sha256, "index").stat().st_size)
            whole = same and sizes == (shard.bytes, index_bytes(shard.samples))
            if whole:
                _touch(descriptor)
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            if not whole:
                os.close(descriptor)
        return descriptor if whole else None

    def claim(self, shard: Shard, spare: Collection[str] = ()) -> "Claim | None":
        """The right to fill in a shard, with room made for it; None where another one fills it, or it is whole.

        Raises `NoRoomError` where the limit is too small beside what is in use and what is to be spared (sha256s).
        """
        try:
            with self._locked():
                entries = self._entries()
                entry = entries.pop(shard.sha256, _Entry())
                if "tar.partial" in entry.files:
                    return None
                sizes = {suffix: found.st_size for suffix, found in entry.files.items()}
                if sizes == {"tar": shard.bytes, "index": index_bytes(shard.samples)}:
                    return None
                # Cut off, or without its index: whoever reads from it still has it, but nobody else gets it.
                self._unlink(shard.sha256, entry)
                self._make_room(entries, shard.bytes + index_bytes(shard.samples), spare)
                return Claim(self, shard)
        except OSError as error:
            raise describe_os_error(error, f"filling the cache {self.folder}") from error

    def drop(self, shard: Shard) -> None:
        """Forget a copy that is damaged."""
        with self._locked():
            if (entry := self._entries().get(shard.sha256)) is not None and "tar.partial" not in entry.files:
                self._unlink(shard.sha256, entry)

    def held_bytes(self) -> int:
        """Bytes of all copies, those being fetched in full."""
        with self._locked():
            return sum(entry.bytes for entry in self._entries().values())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep all other threads and processes from changing a name in the folder; held for milliseconds."""
        with open(self.folder / _LOCK, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _entries(self) -> dict[str, _Entry]:
        """What is there, by sha256, after what a dead filler left was removed."""
        entries: dict[str, _Entry] = {}
        with os.scandir(self.folder) as listing:
            for item in listing:
                match = _NAME.fullmatch(item.name)
                if match is not None and item.is_file(follow_symlinks=False):
                    entries.setdefault(match[1], _Entry()).files[match[2]] = item.stat(follow_symlinks=False)
        for sha256, entry in entries.items():
            if entry.files.keys() == {"tar", "index"} or self._is_being_filled(sha256, entry):
                continue
            for suffix in entry.files.keys() - ({"tar", "index"} if "tar" in entry.files else set()):
                self._file(sha256, suffix).unlink(missing_ok=True)
                del entry.files[suffix]
        return {sha256: entry for sha256, entry in entries.items() if entry.files}

    def _is_being_filled(self, sha256: str, entry: _Entry) -> bool:
        if "tar.partial" not in entry.files:
            return False
        with open(self._file(sha256, "tar.partial"), "rb") as file:
            return not try_lock(file)

    def _make_room(self, entries: dict[str, _Entry], need: int, spare: Collection[str]) -> None:
        """Evict until `need` more bytes fit, or evict nothing and raise `NoRoomError`."""
        total = need + sum(entry.bytes for entry in entries.values())
        with contextlib.ExitStack() as stack:
            victims = []
            for sha256, entry in sorted(entries.items(), key=lambda pair: pair[1].used_ns):
                if total <= self.limit_bytes:
                    break
                if sha256 in spare or "tar.partial" in entry.files:
                    continue
                file = stack.enter_context(open(self._file(sha256, "tar"), "rb"))
                if try_lock(file):
                    victims.append((sha256, entry))
                    total -= entry.bytes
            if total > self.limit_bytes:
                raise NoRoomError(total - need)
            for sha256, entry in victims:
                self._unlink(sha256, entry)

    def _unlink(self, sha256: str, entry: _Entry) -> None:
        # The tar goes first: an index alone is known as a leftover.
        for suffix in sorted(entry.files, reverse=True):
            self._file(sha256, suffix).unlink(missing_ok=True)

    def _file(self, sha256: str, suffix: str) -> Path:
        return self.folder / f"leanstream-{sha256}.{suffix}"


def _touch(descriptor: int) -> None:
    """Make a tar the one that was used last; the kernel's own clock would tick only every few milliseconds."""
    now = time.time_ns()
    os.utime(descriptor, ns=(now, now))


class Claim:
    """A shard that is being filled in; a context manager that leaves nothing behind unless `finish` was called."""

    def __init__(self, cache: DiskCache, shard: Shard) -> None:
        """Called by `DiskCache.claim` alone, under the folder's lock."""
        self._cache, self._shard = cache, shard
        self.path = cache._file(shard.sha256, "tar.partial")
        """Where the bytes are before `finish`."""
        self._index = cache._file(shard.sha256, "index.partial")
        self._descriptor: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(self._descriptor, shard.bytes)
            with open(self._index, "xb") as file:
                file.truncate(index_bytes(shard.samples))
        except BaseException:
            self._give_up()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._descriptor is not None:
            with self._cache._locked():
                self._give_up()

    def write(self, data: bytes, offset: int) -> None:
        """Put a part of the tar in its place; `UserError` where the disk refuses it."""
        assert self._descriptor is not None, "the claim is open"
        assert offset + len(data) <= self._shard.bytes, "no byte more than was claimed"
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._descriptor, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise describe_os_error(error, f"filling the cache {self._cache.folder}") from error

    def finish(self, index: bytes) -> int:
        """Give the shard its name; returns a descriptor of its tar that pins it, as `DiskCache.pin` does."""
        assert self._descriptor is not None, "the claim is open"
        assert len(index) == index_bytes(self._shard.samples), "checked by the caller"
        try:
            with open(self._index, "r+b") as file:
                file.write(index)
                file.flush()
                os.fsync(file.fileno())
            os.fsync(self._descriptor)
            _touch(self._descriptor)
            with self._cache._locked():
                os.replace(self._index, self._cache._file(self._shard.sha256, "index"))
                os.replace(self.path, self._cache._file(self._shard.sha256, "tar"))
        except OSError as error:
            raise describe_os_error(error, f"filling the cache {self._cache.folder}") from error
        pinned, self._descriptor = self._descriptor, None
        fcntl.flock(pinned, fcntl.LOCK_SH)
        return pinned

    def _give_up(self) -> None:
        assert self._descriptor is not None, "the claim is open"
        self._index.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

"""Photos that are files of their own, in a folder on this machine or behind a URL, with all folders inside."""

import errno
import functools
import heapq
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.errors import describe_os_error
from pipeline.files import is_url
from pipeline.format import SHARDSET_FILE
from shard_tool.sources import ranges
from shard_tool.sources.listing import Listing
from shard_tool.sources.protocol import (
    WHATEVER,
    InAnyOrder,
    Known,
    SideFile,
    Sieve,
    Wanted,
    extension_of,
)
from shard_tool.sources.ranges import local_read

_NOTHING_THERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
_START_BYTES = 64
"""Of a file without an extension, by which it is known."""


@dataclass(frozen=True)
class FolderSource(InAnyOrder):
    """The photos below one folder, and what else is there."""

    root: str
    """Path or URL, without a slash at its end."""
    name: str
    listing: Listing
    sieve: Sieve
    tables: tuple[str, ...] = ()
    """Relative paths of the tables inside."""
    archives: tuple[str, ...] = ()
    """Relative paths of the archives and tables of photos inside."""
    known: Known = field(default_factory=Known)
    origin: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | str, wanted: Wanted = WHATEVER) -> Self:
        """List `folder`; raises `UserError` if it is missing, unreadable or holds no photo."""
        found = cls.survey(folder, wanted)
        found.sieve.require_photos(len(found.listing), found.root)
        return found

    @classmethod
    def survey(cls, folder: Path | str, wanted: Wanted = WHATEVER) -> Self:
        """List `folder`, which may hold no photo; raises `UserError` if it is missing or unreadable.

        Files without an extension are photos by their first bytes, if there are no others.
        """
        root = str(folder).rstrip("/") or "/"
        found = cls._sort(root, wanted, bare=False)
        if not len(found.listing) and not found.archives and found.sieve.bare_files:
            found = cls._sort(root, wanted, bare=True)
        return found

    @classmethod
    def beside(cls, where: str, ignored: Mapping[str, int] | None = None) -> Self:
        """No photos, but the tables that lie in the folders above a file, and what was passed over elsewhere."""
        sieve = Sieve()
        sieve.ignored.update(ignored or {})
        return cls(where, "", Listing(()), sieve)

    @classmethod
    def _sort(cls, root: str, wanted: Wanted, *, bare: bool) -> Self:
        sieve = Sieve(wanted, bare=bare)
        tables, archives, sets = list[str](), list[str](), list[str]()

        def photos() -> Iterator[tuple[bytes, int]]:
            for path, size in ranges.list_files(root) if is_url(root) else _walk(Path(root), sieve.ignored):
                kind = sieve.kind(path)
                if kind == "photo" and bare and not extension_of(path) and not _looks_like_image(root, path, size):
                    sieve.ignored["not an image"] += 1
                elif kind == "photo":
                    yield os.fsencode(path), size
                elif kind == "table":
                    tables.append(path)
                elif kind == "archive":
                    archives.append(path)
                elif path.endswith(f"/{SHARDSET_FILE}"):
                    sets.append(path.removesuffix(SHARDSET_FILE))

        try:
            listing, _ = Listing.sort(photos())
        except OSError as error:
            raise describe_os_error(error, f"listing {root}") from error
        shards = [path for path in archives if path.startswith(tuple(sets))]
        sieve.ignored["archive"] -= len(shards)
        sieve.ignored["shard set"] += len(shards)
        name = root.rpartition("/")[2] if is_url(root) else Path(root).resolve().name
        others = sorted(set(archives).difference(shards), key=os.fsencode)
        return cls(root, name, listing, sieve, tuple(sorted(tables)), tuple(others))

    @property
    def ignored(self) -> Counter[str]:
        """Files that are no photos; a hidden folder, one of the system and a shard set on this machine count as one."""
        return Counter(dict(sorted((+self.sieve.ignored).items())))  # However the files were listed.

    def read(self, item: int) -> bytes:
        """The whole file; `OSError` if it has another size than when it was listed."""
        path, size = self.listing[item], int(self.listing.sizes[item])
        if is_url(self.root):
            return ranges.read_file(f"{self.root}/{path.decode()}", size)
        whole = os.fsencode(self.root) + b"/" + path
        data = local_read(lambda: _read_local(whole))
        if len(data) != size:
            raise OSError(f"{os.fsdecode(whole)} has {len(data):,} bytes, {size:,} when it was listed")
        return data

    def side_files(self, file_name: str) -> list[SideFile]:
        """In the folder, then inside it, then in the two folders above it, also in CelebA's Anno and Eval there."""
        root = self.root if is_url(self.root) or not self.root else str(Path(self.root).resolve())
        inside = [path for path in self.tables if path.rpartition("/")[2] == file_name]
        inside.sort(key=lambda path: (path.count("/"), path))
        found = [_side_file(f"{root}/{path}", path) for path in inside]
        above = [f"{folder}/{file_name}" for folder in _folders_near(root)]
        exists = ranges.exists if is_url(root) else os.path.isfile
        return found + [_side_file(path) for path in above if exists(path)]


def _folders_near(root: str) -> list[str]:
    """Where tables about the photos in `root` may lie; of a URL few, as each of them is a request."""
    first = root.rpartition("/")[0]
    second = first.rpartition("/")[0]
    celeba = [f"{second}/Anno", f"{second}/Eval"]
    if not root or (is_url(root) and ("?" in root or first.endswith(":/"))):
        return []
    if is_url(root):
        return [first, *celeba] if first.endswith("/Img") else [first]
    return [first, second, *celeba, f"{first}/Anno", f"{first}/Eval"]


def _side_file(where: str, path: str = "") -> SideFile:
    opener: Callable[[], Any] = functools.partial(open, where, "rb")
    return SideFile(where, bool(path), functools.partial(ranges.open_file, where) if is_url(where) else opener, path)


def _read_local(path: bytes) -> bytes:
    with open(path, "rb", buffering=0) as file:  # A buffer and a Path would double the time of a small file.
        return file.read()


def _looks_like_image(root: str, path: str, size: int) -> bool:
    from shard_tool.image import formats  # Loads Pillow.

    if is_url(root):
        start = ranges.read_file(f"{root}/{path}", size, most=_START_BYTES)
    else:
        with open(f"{root}/{path}", "rb") as file:
            start = file.read(_START_BYTES)
    return bool(formats.looks_like_image(start))


def is_set(folder: str) -> bool:
    """Whether a folder on this machine is a shard set, or one that is being made."""
    return os.path.exists(f"{folder}/{SHARDSET_FILE}") or os.path.isdir(f"{folder}/.build")


def _walk(root: Path, ignored: Counter[str]) -> Iterator[tuple[str, int]]:
    """Relative path and size of every regular file below `root`; everything else that is passed over is counted.

    No folder is entered twice, whatever the symbolic links say: real folders go first, then linked ones by path.
    """
    entered = set()
    folders = [(False, b"", str(root))]
    while folders:
        _, prefix, folder = heapq.heappop(folders)
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        if prefix and is_set(folder):
            ignored["shard set"] += 1
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                path = os.fsdecode(prefix) + entry.name
                try:
                    status = entry.stat()
                except OSError as error:
                    if error.errno not in _NOTHING_THERE:
                        raise
                    ignored["broken link" if entry.is_symlink() else "gone while it was listed"] += 1
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield path, status.st_size
                elif not stat.S_ISDIR(status.st_mode):
                    ignored["not a regular file"] += 1
                elif why := Sieve.folder(entry.name):
                    ignored[why] += 1
                else:
                    heapq.heappush(folders, (entry.is_symlink(), os.fsencode(f"{path}/"), entry.path))

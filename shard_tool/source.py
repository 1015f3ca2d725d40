"""Where photos come from: a numbered, sorted listing, and the bytes of each item.

`Source` is what the rest of the package knows. A folder is one kind of it.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, describe_os_error

IMAGE_EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif"),
    *(".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
}
"""Files with these extensions, in any case, are inputs: each ends as a sample or as a rejection with a reason."""
TABLE_EXTENSIONS = {".csv", ".txt"}
"""Files that may say something about the photos beside them."""
CHUNK_FILES = 64
"""Consecutive files of a folder that are read in one go."""


class Listing:
    """The relative paths and sizes of all inputs, in order; one byte string and two arrays instead of objects."""

    def __init__(self, entries: Iterable[tuple[bytes, int]]) -> None:
        """`entries` are (path with `/` between its parts, size in bytes), in any order."""
        # One object for each input, and not three: this is the largest moment of a build. A path holds no zero byte,
        # and so packed entries sort as their paths do: by bytes, alike in every locale and on every system.
        packed = sorted(path + b"\0" + size.to_bytes(8, "big") for path, size in entries)
        self._paths = bytearray()
        for entry in packed:  # A join would hold all of them once more.
            self._paths += entry[:-9]
        self._ends = np.cumsum(np.fromiter((len(entry) - 9 for entry in packed), np.int64, len(packed)))
        sizes = (int.from_bytes(entry[-8:], "big") for entry in packed)
        self.sizes = np.fromiter(sizes, np.int64, len(packed))
        """[inputs] Bytes of each."""

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, item: int) -> bytes:
        return bytes(self._paths[int(self._ends[item - 1]) if item else 0 : int(self._ends[item])])

    def __iter__(self) -> Iterator[bytes]:
        return (self[item] for item in range(len(self)))

    def sha256(self) -> str:
        """Hex digest of all paths and sizes: another listing has another one."""
        digest = hashlib.sha256(self._paths)
        digest.update(self._ends.astype("<i8").tobytes())
        digest.update(self.sizes.astype("<i8").tobytes())
        return digest.hexdigest()


def printable(path: bytes) -> str:
    """`path` as text that every JSON reader accepts, also where a file name is not UTF-8."""
    return path.decode("utf-8", "replace")


@dataclass(frozen=True)
class SideFile:
    """A table that came with the photos."""

    where: str
    """For messages."""
    inside: bool
    """It lies within the source, not above it, and so certainly belongs to it."""
    open: Callable[[], BinaryIO]


class Source(Protocol):
    """Numbered inputs in a fixed order."""

    @property
    def name(self) -> str:
        """A short name, of which the default output folder is made."""

    @property
    def listing(self) -> Listing:
        """Paths and sizes of the inputs."""

    @property
    def ignored(self) -> int:
        """Files that do not look like images, and were passed over."""

    def chunks(self) -> NDArray[np.int64]:
        """[chunks + 1] The first item of every run that is cheap to read in one go, then the number of items."""

    def read(self, item: int) -> bytes:
        """The bytes of one input, from any thread; an `OSError` where the read failed and may succeed later."""

    def side_files(self, file_name: str) -> list[SideFile]:
        """The tables called `file_name`, the likeliest first."""


@dataclass(frozen=True)
class FolderSource:
    """All image files below one folder."""

    root: Path
    name: str
    listing: Listing
    ignored: int
    tables: tuple[bytes, ...]
    """Relative paths of the csv and txt files inside."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """List `folder`; raises `UserError` where it is missing, unreadable or holds no image file."""
        if not folder.exists():
            raise UserError(f"the source must be a folder of photos; got no such folder: {folder}. Check the path.")
        if not folder.is_dir():
            raise UserError(f"the source must be a folder of photos; got {folder}, a file. Name the folder around it.")
        tables: list[bytes] = []
        ignored = 0

        def photos() -> Iterator[tuple[bytes, int]]:
            nonlocal ignored
            for path, entry in _walk(folder):
                extension = os.path.splitext(entry.name)[1].lower()
                if extension in IMAGE_EXTENSIONS:
                    yield path, entry.stat().st_size
                elif extension in TABLE_EXTENSIONS:
                    tables.append(path)
                else:
                    ignored += 1

        try:
            listing = Listing(photos())
        except OSError as error:
            raise describe_os_error(error, f"listing {folder}") from error
        if not len(listing):
            raise UserError(
                f"{folder} must hold photos ({', '.join(sorted(IMAGE_EXTENSIONS))}); "
                f"got {ignored + len(tables):,} other files. Put photos there, or try: shard_tool draw-faces {folder}."
            )
        return cls(folder, folder.resolve().name, listing, ignored, tuple(sorted(tables)))

    def chunks(self) -> NDArray[np.int64]:
        """Runs of consecutive files."""
        return np.append(np.arange(0, len(self.listing), CHUNK_FILES, dtype=np.int64), len(self.listing))

    def read(self, item: int) -> bytes:
        """The whole file."""
        return (self.root / os.fsdecode(self.listing[item])).read_bytes()

    def side_files(self, file_name: str) -> list[SideFile]:
        """In the folder, then inside it, then up to two folders above it."""
        here = self.root.resolve()
        inside = [path for path in self.tables if path.rpartition(b"/")[2] == file_name.encode()]
        inside.sort(key=lambda path: (path.count(b"/"), path))
        found = [self._side_file(here / os.fsdecode(path), inside=True) for path in inside]
        above = [folder / file_name for folder in here.parents[:2]]
        return found + [self._side_file(path, inside=False) for path in above if path.is_file()]

    @staticmethod
    def _side_file(path: Path, *, inside: bool) -> SideFile:
        return SideFile(str(path), inside, lambda: open(path, "rb"))


def _walk(root: Path) -> Iterator[tuple[bytes, "os.DirEntry[str]"]]:
    """Every regular file below `root` and its relative path. Hidden folders are not entered.

    No folder is entered twice, whatever the symbolic links say: real folders go first, then linked ones by path.
    """
    entered = set()
    folders, linked = [(b"", str(root))], list[tuple[bytes, str]]()
    while folders or linked:
        if not folders:
            linked.sort(reverse=True)
            folders.append(linked.pop())
        prefix, folder = folders.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + os.fsencode(entry.name)
                if entry.is_dir():
                    if not entry.name.startswith("."):
                        (linked if entry.is_symlink() else folders).append((path + b"/", entry.path))
                elif entry.is_file():
                    yield path, entry

"""A folder of photos, with all folders inside."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, describe_os_error
from shard_tool.sources.listing import Listing
from shard_tool.sources.protocol import (
    IMAGE_EXTENSIONS,
    Access,
    InputError,
    Known,
    SideFile,
    chunks_of_files,
    extension_of,
    is_table,
    one_by_one,
)
from shard_tool.sources.ranges import local_read


@dataclass(frozen=True)
class FolderSource:
    """All image files below one folder."""

    root: Path
    name: str
    listing: Listing
    ignored: int
    tables: tuple[bytes, ...]
    """Relative paths of the tables inside."""
    known: Known = field(default_factory=Known)
    origin: dict[str, str] = field(default_factory=dict)
    access = Access.ANY_ORDER

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
                if extension_of(entry.name) in IMAGE_EXTENSIONS:
                    yield path, entry.stat().st_size
                elif is_table(entry.name):
                    tables.append(path)
                else:
                    ignored += 1

        try:
            listing, _ = Listing.sort(photos())
        except OSError as error:
            raise describe_os_error(error, f"listing {folder}") from error
        if not len(listing):
            raise UserError(
                f"{folder} must hold photos ({', '.join(sorted(IMAGE_EXTENSIONS))}); "
                f"got {ignored + len(tables):,} other files. Put photos there, or try: shard_tool draw-faces {folder}."
            )
        return cls(folder, folder.resolve().name, listing, ignored, tuple(sorted(tables)))

    @staticmethod
    def holds_photos(folder: Path) -> bool:
        """Whether there is an image file below `folder`."""
        return any(extension_of(entry.name) in IMAGE_EXTENSIONS for _, entry in _walk(folder))

    def chunks(self) -> NDArray[np.int64]:
        """Runs of consecutive files."""
        return chunks_of_files(len(self.listing))

    def read(self, item: int) -> bytes:
        """The whole file."""
        path = os.fsencode(self.root) + b"/" + self.listing[item]

        def read() -> bytes:
            with open(path, "rb", buffering=0) as file:  # A buffer and a Path would double the time of a small file.
                return file.read()

        return local_read(read)

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """File after file."""
        return one_by_one(self.read, items)

    def carried(self, item: int) -> dict[str, object]:
        """Nothing."""
        return {}

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

"""A tar on this machine, read in place; also a WebDataset shard, with what it says of its photos.

One pass over the headers finds every photo; after that each is one `pread` away.
"""

import functools
import io
import lzma
import tarfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.tar import split_member_name
from shard_tool.sources.carried import MAX_SIDECAR_BYTES, SIDECARS, Collector
from shard_tool.sources.listing import Listing, Numbers, compact
from shard_tool.sources.protocol import (
    IMAGE_EXTENSIONS,
    Access,
    InputError,
    Known,
    SideFile,
    chunks_of_files,
    extension_of,
    is_hidden,
    is_table,
    one_by_one,
)
from shard_tool.sources.ranges import LocalRanges, RangesFile, read_whole
from shard_tool.sources.scratch import Scratch

DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
"""What the libraries raise at a file that is damaged or cut off."""


class Photo(NamedTuple):
    """One image file in a tar."""

    path: bytes
    size: int
    offset: int
    """Of its content."""
    member: tarfile.TarInfo


class Scan:
    """What one pass over a tar finds: its photos, one after the other, and everything else beside them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.collector = Collector()
        self.tables: dict[str, tuple[int, int]] = {}
        """Offset and size in the temporary file that holds them: CelebA's are 24 MB."""
        self.ignored = 0
        self._scratch = Scratch()

    def photos(self, tar: tarfile.TarFile) -> Iterator[Photo]:
        """The photos of `tar` in its order; `UserError` where it is damaged or cut off."""
        key, pending, sidecars = "", 0, dict[str, bytes]()
        for member in members(tar, self.where):
            path = path_of(member)
            mine, extension = split_member_name(path)
            if mine != key:
                self._flush(pending, sidecars)
                key, pending, sidecars = mine, 0, {}
            if extension_of(path) in IMAGE_EXTENSIONS:
                pending += 1
                yield Photo(path.encode("utf-8", "surrogateescape"), member.size, member.offset_data, member)
            elif extension in SIDECARS and member.size <= MAX_SIDECAR_BYTES and not is_table(path):
                sidecars[extension] = content(tar, member, self.where)
            elif is_table(path):
                self.tables[path] = self._scratch.append(content(tar, member, self.where)), member.size
            else:
                self.ignored += 1
        self._flush(pending, sidecars)

    def _flush(self, pending: int, sidecars: dict[str, bytes]) -> None:
        if pending:
            self.collector.add(pending, sidecars)
        else:
            self.ignored += len(sidecars)

    def side_files(self, file_name: str) -> list[SideFile]:
        """The tables of that name that were seen, the least deep first."""
        found = [path for path in self.tables if path.rpartition("/")[2] == file_name]
        found.sort(key=lambda path: (path.count("/"), path))
        return [SideFile(f"{self.where}/{path}", True, functools.partial(self._open, path)) for path in found]

    def _open(self, path: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(RangesFile(self._scratch, *self.tables[path])))


@dataclass(frozen=True)
class TarSource:
    """All image files in one tar on this machine."""

    file: LocalRanges
    name: str
    listing: Listing
    scan: Scan
    known: Known
    order: Numbers
    """[inputs] Which photo of the tar each one is."""
    offsets: Numbers
    """[inputs] Of its content."""
    origin: dict[str, str] = field(default_factory=dict)
    access = Access.ANY_ORDER

    @classmethod
    def open(cls, file: LocalRanges, name: str) -> Self:
        """List the tar; raises `UserError` where it is damaged or holds no image file."""
        scan, offsets = Scan(file.where), array("Q")

        def entries(tar: tarfile.TarFile) -> Iterator[tuple[bytes, int]]:
            for photo in scan.photos(tar):
                offsets.append(photo.offset)
                yield photo.path, photo.size

        with open(file.where, "rb") as binary, open_tar(binary, "r:", file.where) as tar:
            listing, order = Listing.sort(entries(tar))
            if not file.read(tar.offset, 1):  # A whole tar ends with empty blocks.
                raise not_whole(file.where, EOFError("a tar that was cut off"))
        check_photos(listing, scan)
        known = scan.collector.known(file.where, order)
        return cls(file, name, listing, scan, known, compact(order.astype(np.uint64)), compact(offsets)[order])

    @property
    def ignored(self) -> int:
        """Members that are neither images nor about them."""
        return self.scan.ignored

    def chunks(self) -> NDArray[np.int64]:
        """Runs of consecutive files."""
        return chunks_of_files(len(self.listing))

    def read(self, item: int) -> bytes:
        """The content of one member."""
        return read_whole(self.file, int(self.offsets[item]), int(self.listing.sizes[item]))

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """Member after member."""
        return one_by_one(self.read, items)

    def carried(self, item: int) -> dict[str, object]:
        """The fields of its json that are no labels, and its txt."""
        return self.scan.collector.carried(int(self.order[item]))

    def side_files(self, file_name: str) -> list[SideFile]:
        """Those inside."""
        return self.scan.side_files(file_name)


def open_tar(binary: BinaryIO, mode: str, where: str) -> tarfile.TarFile:
    """`binary` as a tar; `UserError` where it is none."""
    try:
        return tarfile.open(fileobj=binary, mode=mode)  # type: ignore[call-overload, no-any-return]
    except DAMAGE as error:
        raise not_whole(where, error) from error


def members(tar: tarfile.TarFile, where: str) -> Iterator[tarfile.TarInfo]:
    """The regular files of `tar`, without those that macOS adds; memory does not grow with their number."""
    try:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            if member.isreg() and not member.issparse() and not is_hidden(path_of(member)):
                yield member
    except DAMAGE as error:
        raise not_whole(where, error) from error


def path_of(member: tarfile.TarInfo) -> str:
    """The name of a member without a leading `./`."""
    path = member.name.lstrip("/")
    return path[2:] if path.startswith("./") else path


def content(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    """The bytes of one member."""
    file = tar.extractfile(member)
    assert file is not None, "only regular files are read"
    data = file.read()
    if len(data) < member.size:
        raise not_whole(where, EOFError("unexpected end of data"))
    return data


def check_photos(listing: Listing, scan: Scan) -> None:
    """Raise `UserError` where an archive has no photo."""
    if not len(listing):
        raise UserError(
            f"{scan.where} must hold photos ({', '.join(sorted(IMAGE_EXTENSIONS))}); "
            f"got {scan.ignored + len(scan.tables):,} other files. Choose another archive."
        )


def not_whole(where: str, error: BaseException) -> UserError:
    """What is wrong with a tar that cannot be read to its end."""
    return UserError(f"{where} must be a whole tar; got '{error}'. Download or copy it again.")

"""A tar that can only be read from its start to its end: compressed (gz, bz2, xz, zst), or behind a URL.

It is read twice: once for the listing, once for the photos. A build that was killed reads it again from the start.
"""

import bz2
import gzip
import lzma
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.files import is_url
from shard_tool.sources.columns import pyarrow_of
from shard_tool.sources.listing import Listing, Numbers, compact
from shard_tool.sources.protocol import IMAGE_EXTENSIONS, Access, InputError, Known, SideFile, extension_of
from shard_tool.sources.ranges import RemoteStream
from shard_tool.sources.tars import DAMAGE, Scan, check_photos, content, members, not_whole, open_tar, path_of

BLOCK_PHOTOS = 4096
"""Photos of a long stream that form a chunk."""
SHORT_PHOTOS = 4 * BLOCK_PHOTOS
"""A stream of at most so many is one chunk, and may be read at any time."""


@dataclass(frozen=True)
class StreamSource:
    """All image files of one tar that has to be read in order."""

    where: str
    compression: str
    """gz, bz2, xz, zst, or nothing."""
    name: str
    listing: Listing
    scan: Scan
    known: Known
    order: Numbers
    """[inputs] Which photo of the tar each one is; ascending."""
    origin: dict[str, str] = field(default_factory=dict)
    _pass: list["_Pass"] = field(default_factory=list)

    @classmethod
    def open(cls, where: str, compression: str, name: str) -> Self:
        """List the tar, reading all of it once; raises `UserError` where it is damaged or holds no image file."""
        scan, sizes = Scan(where), array("Q")

        def entries(tar: tarfile.TarFile) -> Iterator[tuple[bytes, int]]:
            for photo in scan.photos(tar):
                sizes.append(photo.size)
                yield photo.path, photo.size

        try:
            with open_stream(where, compression) as binary, open_tar(binary, "r|", where) as tar:
                arrived = Listing(entries(tar))
                while binary.read(1 << 20):  # The checksum of a compressed file stands at its end.
                    pass
        except DAMAGE as error:
            raise not_whole(where, error) from error
        _, order = Listing.sort(zip(arrived, arrived.sizes.tolist(), strict=True))
        order = np.sort(order)
        listing = arrived
        if len(order) < len(arrived):  # Of equal paths the last counts.
            listing = Listing((arrived[number], int(arrived.sizes[number])) for number in order.tolist())
        check_photos(listing, scan)
        known = scan.collector.known(where, order)
        return cls(where, compression, name, listing, scan, known, compact(order.astype(np.uint64)))

    @property
    def ignored(self) -> int:
        """Members that are neither images nor about them."""
        return self.scan.ignored

    @property
    def access(self) -> Access:
        """A short one is read whole at any time."""
        return Access.BY_CHUNK if len(self.listing) <= SHORT_PHOTOS else Access.ONE_PASS

    def chunks(self) -> NDArray[np.int64]:
        """The whole stream, or blocks of it."""
        count = len(self.listing)
        step = count if count <= SHORT_PHOTOS else BLOCK_PHOTOS
        return np.append(np.arange(0, count, step, dtype=np.int64), count)

    def read(self, item: int) -> bytes:
        """One photo, at the cost of everything before it."""
        with _Pass(self) as reading:
            return reading.take(int(self.order[item]))

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """Photos of one pass, which goes on where the call before this one has stopped."""
        for item in items:
            position = int(self.order[item])
            if self._pass and self._pass[0].position > position:
                self._pass.pop().close()
            if not self._pass:
                self._pass.append(_Pass(self))
            whole = False
            try:
                data = self._pass[0].take(position)
                whole = True
            finally:
                if not whole or item == len(self.listing) - 1:
                    self._pass.pop().close()
            yield data

    def carried(self, item: int) -> dict[str, object]:
        """The fields of its json that are no labels, and its txt."""
        return self.scan.collector.carried(int(self.order[item]))

    def side_files(self, file_name: str) -> list[SideFile]:
        """Those inside."""
        return self.scan.side_files(file_name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pass": []}


class _Pass:
    """One pass over the photos of a stream."""

    def __init__(self, source: StreamSource) -> None:
        self._where = source.where
        self._binary = open_stream(source.where, source.compression)
        self._tar = open_tar(self._binary, "r|", source.where)
        self._members = members(self._tar, source.where)
        self.position = 0
        """The photo that comes next."""

    def take(self, position: int) -> bytes:
        """The content of that photo, which is the next one or after it."""
        try:
            for member in self._members:
                if extension_of(path_of(member)) in IMAGE_EXTENSIONS:
                    self.position += 1
                    if self.position > position:
                        return content(self._tar, member, self._where)
        except (UserError, *DAMAGE) as error:  # It was whole when it was listed.
            raise OSError(str(error)) from error
        raise OSError(f"{self._where} has become shorter")

    def close(self) -> None:
        """Close the file."""
        self._tar.close()
        self._binary.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_stream(where: str, compression: str) -> BinaryIO:
    """The plain bytes of a file that may be compressed."""
    file: Any = RemoteStream(where) if is_url(where) else where
    if compression == "gz":
        opened: Any = gzip.GzipFile(fileobj=file, mode="rb") if is_url(where) else gzip.GzipFile(file, "rb")
    elif compression == "bz2":
        opened = bz2.BZ2File(file, "rb")
    elif compression == "xz":
        opened = lzma.LZMAFile(file, "rb")  # noqa: SIM115 (the caller closes it)
    elif compression == "zst":
        arrow = pyarrow_of(where)
        opened = arrow.CompressedInputStream(file if is_url(where) else arrow.OSFile(where), "zstd")
    else:
        opened = file if is_url(where) else open(file, "rb")  # noqa: SIM115 (the caller closes it)
    return cast(BinaryIO, opened)

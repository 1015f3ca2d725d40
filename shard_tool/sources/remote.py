"""What lies behind a URL: one file, a folder of photos, or a folder of archives and tables.

Photos are read one by one, each with a request of its own, by as many threads as decode.
"""

import errno
import functools
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.remote.transport import filesystem, retrying
from shard_tool.sources.listing import Listing
from shard_tool.sources.protocol import (
    IMAGE_EXTENSIONS,
    Access,
    InputError,
    Known,
    SideFile,
    Source,
    Wanted,
    chunks_of_files,
    extension_of,
    is_hidden,
    is_table,
    one_by_one,
)
from shard_tool.sources.ranges import RemoteStream

OpenFile = Callable[[str, Wanted], Source]


@dataclass(frozen=True)
class RemoteFolder:
    """All image files below a URL."""

    url: str
    """Without a slash at its end."""
    name: str
    listing: Listing
    ignored: int
    tables: tuple[str, ...]
    """Relative paths of the tables inside."""
    known: Known = field(default_factory=Known)
    access = Access.ANY_ORDER
    origin: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, url: str, files: Iterable[tuple[str, int]]) -> Self:
        """The photos among `files`, which are (relative path, bytes); raises `UserError` where there is none."""
        tables: list[str] = []
        ignored = 0

        def photos() -> Iterator[tuple[bytes, int]]:
            nonlocal ignored
            for path, size in files:
                if is_hidden(path):
                    continue
                if extension_of(path) in IMAGE_EXTENSIONS:
                    yield path.encode(), size
                elif is_table(path):
                    tables.append(path)
                else:
                    ignored += 1

        listing, _ = Listing.sort(photos())
        if not len(listing):
            raise UserError(
                f"{url} must hold photos, archives or tables; got {ignored + len(tables):,} other files. "
                "Check the address."
            )
        return cls(url, url.rpartition("/")[2], listing, ignored, tuple(sorted(tables)))

    def chunks(self) -> NDArray[np.int64]:
        """Runs of consecutive files."""
        return chunks_of_files(len(self.listing))

    def read(self, item: int) -> bytes:
        """The whole file."""
        return _read(f"{self.url}/{self.listing[item].decode()}", int(self.listing.sizes[item]))

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """File after file."""
        return one_by_one(self.read, items)

    def carried(self, item: int) -> dict[str, object]:
        """Nothing."""
        return {}

    def side_files(self, file_name: str) -> list[SideFile]:
        """Those inside, the least deep first."""
        found = [path for path in self.tables if path.rpartition("/")[2] == file_name]
        found.sort(key=lambda path: (path.count("/"), path))
        return [SideFile(f"{self.url}/{path}", True, _Opener(f"{self.url}/{path}")) for path in found]


@dataclass(frozen=True)
class _Opener:
    """Opens a table behind a URL."""

    url: str

    def __call__(self) -> BinaryIO:
        """Its content, read as it comes."""
        return cast(BinaryIO, io.BufferedReader(RemoteStream(self.url), 1 << 20))


def open_remote(url: str, wanted: Wanted, open_file: OpenFile) -> list[Source]:
    """The sources behind `url`; raises `UserError` where there is nothing to be made of it."""
    from shard_tool.sources.hub import is_dataset, open_dataset
    from shard_tool.sources.opening import ARCHIVE_EXTENSIONS

    if is_dataset(url):
        return open_dataset(url, wanted, open_file)
    if url.partition("?")[0].lower().endswith(ARCHIVE_EXTENSIONS):
        return [open_file(url, wanted)]
    system, path = filesystem(url)
    try:
        info = retrying(lambda: system.info(path), url)
    except FileNotFoundError:
        raise UserError(f"the source must be there; got nothing at {url}. Check the address.") from None
    if info["type"] == "file":
        return [open_file(url, wanted)]
    url = url.rstrip("/")
    files = list_files(url)
    first = list[tuple[str, int]]()
    for path, size in files:
        first.append((path, size))
        if extension_of(path) in IMAGE_EXTENSIONS and not is_hidden(path):
            break
    else:
        archives = sorted(path for path, _ in first if path.lower().endswith(ARCHIVE_EXTENSIONS))
        if archives:
            return [open_file(f"{url}/{path}", wanted) for path in archives]
    return [RemoteFolder.open(url, itertools.chain(first, files))]


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


def _read(url: str, size: int) -> bytes:
    def attempt() -> bytes:
        system, path = filesystem(url)
        data = bytes(system.cat_file(path))
        if len(data) != size:
            raise OSError(errno.EIO, f"{len(data)} bytes instead of {size}")
        return data

    try:
        return retrying(attempt, url)
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, "it has gone since it was listed") from error

"""What the rest of the package knows of a source.

A source is a numbered listing, cut into chunks that are cheap to read in one go, and the bytes of each item. Every
source can be pickled: another process opens its files again by itself.
"""

import enum
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from shard_tool.sources.listing import Listing

IMAGE_EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif"),
    *(".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
}
"""Files with these extensions, in any case, are inputs: each ends as a sample or as a rejection with a reason."""
CHUNK_FILES = 8
"""Consecutive files that stay together when the plan spreads them: fewer spread better; see benchmarks/spread.py."""


class Access(enum.IntEnum):
    """In which order a source is cheap to read."""

    ANY_ORDER = 0
    BY_CHUNK = 1
    """The items of a chunk together, one chunk after the other in any order."""
    ONE_PASS = 2
    """From its start to its end."""


class InputError(Exception):
    """This input can never be read, whatever is tried. `reason` is one of a few fixed phrases, `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Wanted:
    """What to take from a source that holds more than photos."""

    image: str | None = None
    """Column of the images; None: the only one there is."""
    label: str | None = None
    """Column of the classes; None: the only one that names its classes."""
    attributes: tuple[str, ...] | None = None
    """Columns of 0/1 attributes; None: all columns of truth values, and those named as CelebA's."""
    config: str | None = None
    """Configuration of a dataset on the Hub; None: the only one, or `default`."""
    split: str | None = None
    """Split of a dataset; None: all of them."""
    revision: str | None = None
    """Branch, tag or commit of a dataset on the Hub; None: its newest."""
    include: tuple[str, ...] = ()
    """Globs of paths in the source; where there are any, photos that match none are ignored."""
    exclude: tuple[str, ...] = ()
    """Globs of paths in the source; photos that match one are ignored."""


WHATEVER = Wanted()
"""Nothing in particular."""


@dataclass(frozen=True)
class SideFile:
    """A table that came with the photos."""

    where: str
    """For messages."""
    inside: bool
    """It lies within the source, not above it, and so certainly belongs to it."""
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Known:
    """What a source itself says about its inputs, in arrays beside its listing. Empty: nothing."""

    where: str = ""
    """For messages."""
    attributes: tuple[str, ...] = ()
    values: NDArray[np.int8] | None = None
    """[inputs, attributes] 0 or 1; -1 in the whole row of an input without them."""
    classes: tuple[str, ...] = ()
    class_of: NDArray[np.int32] | None = None
    """[inputs] A number into `classes`; -1: none."""
    split_of: NDArray[np.int8] | None = None
    """[inputs] A number into `pipeline.format.SPLITS`; -1: none."""


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

    @property
    def access(self) -> Access:
        """In which order it is cheap to read."""

    @property
    def known(self) -> Known:
        """Labels and splits that lie in the source itself."""

    @property
    def origin(self) -> dict[str, str]:
        """What else the source is known by, such as a commit; part of what a set is a function of."""

    def chunks(self) -> NDArray[np.int64]:
        """[chunks + 1] The first item of every run that is cheap to read in one go, then the number of items."""

    def read(self, item: int) -> bytes:
        """The bytes of one input, from any thread.

        Raises `InputError` where it can never be read, `OSError` or `TransportError` where that may succeed later.
        """

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """The bytes of each of `items`, which ascend; raises as `read` does, but yields `InputError`.

        Cheap, and bounded in memory, for neighbouring items also where `read` is not.
        """

    def carried(self, item: int) -> dict[str, object]:
        """What else the source says about one input, for the json of its sample."""

    def side_files(self, file_name: str) -> list[SideFile]:
        """The tables called `file_name`, the likeliest first."""


def chunks_of_files(count: int) -> NDArray[np.int64]:
    """Runs of consecutive files, as `Source.chunks` gives them."""
    return np.append(np.arange(0, count, CHUNK_FILES, dtype=np.int64), count)


def one_by_one(read: Callable[[int], bytes], items: Iterable[int]) -> Iterator[bytes | InputError]:
    """`Source.read_through` of a source that reads in any order."""
    for item in items:
        try:
            yield read(item)
        except InputError as bad:
            yield bad


def extension_of(path: str) -> str:
    """The extension in lower case, with its dot."""
    name = path.rpartition("/")[2]
    return "." + name.rpartition(".")[2].lower() if "." in name.strip(".") else ""


def is_table(path: str) -> bool:
    """Whether a file may say something about the photos beside it: a csv, or one of CelebA's txt lists."""
    name = path.rpartition("/")[2].lower()
    return name.endswith(".csv") or (name.endswith(".txt") and name.startswith(("list_", "identity_")))


def is_hidden(path: str) -> bool:
    """Whether a folder on the way is hidden, or one that macOS puts into its archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/")[:-1])


_SPLIT = re.compile(r"(?:^|[/_.-])(train|training|val|valid|validation|dev|eval|test|testing)(?=$|[/_.-])")
_SPLIT_NUMBERS = {"train": 0, "training": 0, "test": 2, "testing": 2}


def split_in_name(name: str) -> int:
    """The split that a file name or a split's name speaks of, as a number into `SPLITS`; -1 where there is none."""
    found = _SPLIT.search(name.lower())
    return _SPLIT_NUMBERS.get(found[1], 1) if found else -1

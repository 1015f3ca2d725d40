"""What the rest of the package knows of a source.

A source is a numbered listing, cut into chunks that are cheap to read in one go, and the bytes of each item. Every
source can be pickled: another process opens its files again by itself.
"""

import enum
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.sources.listing import Listing

IMAGE_EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif"),
    *(".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
}
"""Files with these extensions, in any case, are inputs: each ends as a sample or as a rejection with a reason."""
CHUNK_FILES = 8
"""Consecutive files that stay together when the plan spreads them: fewer spread better; see benchmarks/spread.py."""
MOST_CLASSES = 1 << 20
"""Class numbers from here on are taken for something else, as database keys."""


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
    """Globs of paths in the source; files that match one are ignored."""


@dataclass(frozen=True)
class WantedMembers(Wanted):
    """What to take from a shard of a set."""

    member: str = ""
    """Suffix of the members that are the images."""


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
    path: str = ""
    """In the source, if it lies there."""

    @property
    def folder(self) -> str:
        """The folder that it lies in, with a slash behind it, as the paths of photos beside it begin."""
        folder, slash, _ = self.path.rpartition("/")
        return folder + slash


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
    def ignored(self) -> Mapping[str, int]:
        """Files that were passed over, by kind: with the listing they are all files that were seen."""

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


class InAnyOrder:
    """What sources have in common of which every item is cheap to read."""

    access = Access.ANY_ORDER

    def chunks(self: Source) -> NDArray[np.int64]:
        """Runs of consecutive items."""
        count = len(self.listing)
        return np.append(np.arange(0, count, CHUNK_FILES, dtype=np.int64), count)

    def read_through(self: Source, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """Item after item."""
        for item in items:
            try:
                yield self.read(item)
            except InputError as bad:
                yield bad

    def carried(self, item: int) -> dict[str, object]:
        """Nothing."""
        return {}


def extension_of(path: str) -> str:
    """The extension in lower case, with its dot."""
    name = path.rpartition("/")[2]
    return "." + name.rpartition(".")[2].lower() if "." in name.strip(".") else ""


def is_table(path: str) -> bool:
    """Whether a file may say something about the photos beside it: a csv, one of CelebA's txt lists, or metadata."""
    name = path.rpartition("/")[2].lower()
    a_list = name.startswith(("list_", "identity_")) and name.endswith(".txt")
    return a_list or name.endswith(".csv") or name in ("metadata.jsonl", "dataset.json")


ARCHIVE_EXTENSIONS = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".parquet", ".arrow")
"""Files with these extensions, in any case, are sources of their own if they lie in a folder."""
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle", "System Volume Information", "lost+found"}
"""What macOS, network drives and Windows put beside photos: thumbnails and deleted files."""
_FORMATS = {
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"), "camera raw"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".m4v"), "video"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".tfrecord", ".tfrecords"), "TensorFlow records"),
    **{".jxl": "JPEG XL", ".psd": "Photoshop", ".svg": "drawings", ".exr": "OpenEXR", ".npy": "NumPy arrays"},
    **{".npz": "NumPy arrays", ".h5": "HDF5", ".hdf5": "HDF5", ".mdb": "LMDB", ".7z": "7-Zip", ".rar": "RAR"},
}
_SHOWN = {"": "without an extension"} | {one: f"{one} ({what})" for one, what in _FORMATS.items()}
"""How messages show an extension."""


class NoPhotosError(UserError):
    """A source has no photos, or `Wanted` leaves none of them; `ignored` counts what it has."""

    def __init__(self, message: str, ignored: Mapping[str, int]) -> None:
        super().__init__(message)
        self.ignored = ignored


Kind = Literal["photo", "table", "sidecar", "archive", "other"]


class Sieve:
    """Tells the photos of a source from its other files, and counts these by kind.

    What `kind` is asked about is a photo or counted, so that photos + sum(ignored.values()) is the number of files. A
    source that passes over a photo for a reason of its own counts it in `ignored`, too.

    `sidecars` are extensions, with a dot, of files about the photo of the same name. If `bare`, files without an
    extension may be photos.
    """

    def __init__(self, wanted: Wanted = WHATEVER, *, sidecars: Container[str] = (), bare: bool = False) -> None:
        self.ignored = Counter[str]()
        self._extensions = Counter[str]()
        self._include, self._exclude = ([*map(glob, globs)] for globs in (wanted.include, wanted.exclude))
        self._images = {""} | IMAGE_EXTENSIONS if bare else IMAGE_EXTENSIONS
        self._member = f".{wanted.member}" if isinstance(wanted, WantedMembers) else ""
        self._sidecars = sidecars
        self._folder, self._folder_is = "", ""

    def kind(self, path: str) -> Kind:
        """What the file at `path` is, which is relative to the source; all but photos are counted."""
        kind, why = self._judge(path)
        if kind != "photo":
            self.ignored[why] += 1
        return kind

    def includes(self, path: str) -> bool:
        """Whether one of the globs to include matches; of files that are no photos they say nothing."""
        return any(pattern.fullmatch(path) for pattern in self._include)

    def wants(self, path: str) -> bool:
        """Whether the globs leave a photo of that path."""
        return (not self._include or self.includes(path)) and not self._excludes(path)

    def _excludes(self, path: str) -> bool:
        return any(pattern.fullmatch(path) for pattern in self._exclude)

    @staticmethod
    def folder(path: str) -> str:
        """Why the files in the folder at `path` are passed over: hidden, or of the system; empty if they are not."""
        for name in path.split("/"):
            if name in _SYSTEM_FOLDERS:
                return "system folder"
            if name.startswith(".") and name not in (".", ".."):
                return "hidden"
        return ""

    @property
    def bare_files(self) -> int:
        """Files without an extension that were taken for no images."""
        return self._extensions[""]

    def require_photos(self, count: int, where: str) -> None:
        """Raise `NoPhotosError` if there are no photos, with what there is instead."""
        if count:
            return
        if left_out := self.ignored["excluded"]:
            raise NoPhotosError(
                f"--include and --exclude must leave photos in {where}; got none, and {left_out:,} "
                f"file{'s' * (left_out != 1)} that they leave out. Change the patterns: they are compared with paths "
                "below the source.",
                self.ignored,
            )
        counts = self._extensions.most_common(5)
        found = [f"{number:,} {_SHOWN.get(extension, extension)}" for extension, number in counts]
        if rest := self._extensions.total() - sum(number for _, number in counts):
            found.append(f"{rest:,} others")
        found += [f"{number:,} '{kind}'" for kind, number in (+self.ignored).items() if kind != "not an image"]
        remedy = "Convert these to such images, or name another source."
        if not found:
            found, remedy = ["no files"], f"Put photos there, or try: shard_tool draw-faces {where}."
        raise NoPhotosError(
            f"{where} must hold photos ({', '.join(sorted(IMAGE_EXTENSIONS))}), and has no images that can be read; "
            f"got {', '.join(found)}. {remedy}",
            self.ignored,
        )

    def _judge(self, path: str) -> tuple[Kind, str]:
        folder, _, name = path.rpartition("/")
        if folder != self._folder:
            self._folder, self._folder_is = folder, self.folder(folder)
        if self._folder_is or name.startswith("."):
            return "other", self._folder_is or "hidden"
        if self._exclude and self._excludes(path):
            return "other", "excluded"
        extension = extension_of(name)
        if path.endswith(self._member) if self._member else extension in self._images:
            return ("photo", "") if not self._include or self.includes(path) else ("other", "excluded")
        if is_table(name):
            return "table", "table"
        if extension in self._sidecars:
            return "sidecar", "sidecar"
        if name.lower().endswith(ARCHIVE_EXTENSIONS):
            return "archive", "archive"
        self._extensions[extension] += 1
        return "other", "not an image"


_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def glob(pattern: str) -> re.Pattern[str]:
    """What `--include` and `--exclude` compare with whole paths, in any case of letters.

    `*` and `?` stay within a name, `**` goes over folders, `folder/` is all below it, and a pattern without a slash is
    one of the name in any folder.
    """

    def translate(token: re.Match[str]) -> str:
        found = token[0]
        if len(found) > 1 and found not in _WILD:
            return found.replace("[!", "[^", 1).replace("\\", "\\\\")
        return _WILD.get(found) or re.escape(found)

    wanted = pattern.removeprefix("./").removeprefix("/")
    wanted += "**" if wanted.endswith("/") else ""
    wanted = wanted if "/" in wanted else f"**/{wanted}"
    translated = re.sub(r"\*\*/|\*\*|\*|\?|\[!?[^\]]+\]|.", translate, wanted, flags=re.DOTALL)
    return re.compile(translated, re.IGNORECASE | re.DOTALL)


SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
"""What splits are called, and the number of each into `SPLITS`."""
_SPLIT = re.compile(rf"(?:^|[/_.-])({'|'.join(SPLIT_WORDS)})(?=$|[/_.-])")


def split_in_name(name: str) -> int:
    """The split that a file name or a split's name speaks of, as a number into `SPLITS`; -1 if there is none."""
    found = _SPLIT.search(name.lower())
    return SPLIT_WORDS[found[1]] if found else -1

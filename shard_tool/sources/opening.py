"""What a path or URL is, by its content: the one place that knows all kinds of sources.

folder | zip | tar | tar.gz ... | parquet | arrow | shard set | a folder of those | a URL of those | hf://datasets/USER/NAME
"""

import dataclasses
import glob
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, describe_os_error
from pipeline.files import is_url
from pipeline.format import SHARDSET_FILE, SPLITS, SUFFIX, ShardSet
from pipeline.machine import release_memory
from shard_tool.sources import hub, protocol, ranges, tables
from shard_tool.sources.folder import FolderSource, is_set
from shard_tool.sources.listing import printable
from shard_tool.sources.protocol import (
    ARCHIVE_EXTENSIONS,
    SPLIT_WORDS,
    WHATEVER,
    NoPhotosError,
    Sieve,
    Source,
    Wanted,
    WantedMembers,
    split_in_name,
)
from shard_tool.sources.ranges import LocalRanges, Ranges, open_ranges
from shard_tool.sources.several import SeveralSources
from shard_tool.sources.tars import StreamSource, TarSource
from shard_tool.sources.zips import ZipSource

_BEGINNINGS = {
    "zip": (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"),
    "gz": (b"\x1f\x8b",),
    "bz2": (b"BZh",),
    "xz": (b"\xfd7zXZ\0",),
    "zst": (b"\x28\xb5\x2f\xfd",),
    "parquet": (b"PAR1", b"PARE"),
    "arrow": (b"\xff\xff\xff\xff", b"ARROW1"),
    "7z file": (b"7z\xbc\xaf\x27\x1c",),
    "rar file": (b"Rar!",),
    "photo": (b"\xff\xd8\xff", b"\x89PNG"),
    "pointer of git-lfs in place of the file": (b"version https://git-lfs",),
}
_REMEDIES = {
    "7z file": "Unpack it (7z x FILE) and name the folder",
    "rar file": "Unpack it (unrar x FILE) and name the folder",
    "photo": "Name the folder that it lies in",
    "pointer of git-lfs in place of the file": "Fetch the file with: git lfs pull",
    "web page": "Open it in a browser to see why (a limit, or a login), and download the file again",
    "empty file": "Download or copy it again",
}
_QUERY = re.compile(r"[?#].*")
_OPTIONS = {
    "image": "parquet files, saved datasets and hf://datasets/...",
    "label": "parquet files, saved datasets and hf://datasets/...; for folders of classes it is --labels folders",
    "attributes": "parquet files, saved datasets and hf://datasets/...; for a table beside the photos it is --labels",
    "config": "hf://datasets/USER/NAME",
    "split": "saved datasets, shard sets and hf://datasets/USER/NAME; of folders and archives choose by --include",
    "revision": "hf://datasets/USER/NAME",
}
"""The fields of `Wanted` that only some sources take, and which."""


@dataclass(frozen=True)
class _Part:
    """One of the sources that are joined."""

    source: Source
    where: str
    takes: frozenset[str] = frozenset()
    """Fields of `Wanted` that mean something to it, beside those that all tables take."""
    path: str = ""
    """Of an archive, relative to the folder that was named."""
    beside: bool = False
    """Whether tables about its photos may lie beside it."""


def open_sources(names: Sequence[str], wanted: Wanted = WHATEVER) -> Source:
    """The source behind one or more paths, globs and URLs; raises `UserError` if one of them is none.

    Splits are those that the sources say themselves; else the word train, val or test in the names of the sources; else
    folders of such names, all at one level: `train/a/1.jpg`, `val/2.jpg`. They count if there are two different ones.
    Photos beside them that are in none are an error: nobody can know where they belong.
    """
    places = [where for name in names for where in _expand(name)]
    parts = list[_Part]()
    for where in places:
        try:
            parts += _open(where, wanted)
        except NoPhotosError as error:
            parts.append(_excluded(error))
    full = [part for part in parts if len(part.source.listing)]
    if not full:
        sieve = Sieve()
        for part in parts:
            sieve.ignored.update(part.source.ignored)
        sieve.require_photos(0, ", ".join(names))
    _check_options(full, wanted)
    beside = {os.path.dirname(part.where): part.where for part in full if part.beside}
    sources = [part.source for part in parts] + [FolderSource.beside(where) for where in beside.values()]
    split_of = _splits(full)
    source = sources[0] if len(sources) == 1 and split_of is None else SeveralSources.join(sources, split_of)
    _check_globs(source, full, wanted)
    release_memory()
    return source


def _expand(name: str) -> list[str]:
    """The places that a glob stands for, sorted; a name that exists is never one."""
    if not name.strip():
        raise UserError("a source must have a name; got an empty word. Check the variable that it comes from.")
    if not glob.has_magic(name) or os.path.lexists(name):
        return [name]
    found = ranges.expand(name) if is_url(name) else sorted(glob.glob(name, recursive=True))
    if not found:
        raise UserError(f"{name} must stand for something; got no file of such a name. Check the path.")
    return found


def _open(where: str, wanted: Wanted) -> list[_Part]:
    if is_url(where):
        if hub.is_dataset(where):
            return _open_dataset(where, wanted)
        if _extension(where) or ranges.is_file(where):
            return [_Part(open_file(where, wanted), where, beside=True)]
        where = where.rstrip("/")
        return _open_set(where, wanted) if ranges.exists(f"{where}/{SHARDSET_FILE}") else _open_folder(where, wanted)
    if not os.path.exists(where):
        what = "a broken link" if os.path.islink(where) else "no such folder or file"
        raise UserError(f"the source must be there; got {what}: {where}. Check the path.")
    if not os.path.isdir(where):
        return [_Part(open_file(where, wanted), os.path.abspath(where), beside=True)]
    if is_set(where):
        return _open_set(where, wanted)
    if any(os.path.exists(f"{where}/{name}") for name in ("dataset_dict.json", "state.json")):
        return _open_saved(Path(where), wanted)
    return _open_folder(os.path.abspath(where), wanted)


def _excluded(error: NoPhotosError) -> _Part:
    """In place of a source of which the globs leave nothing; raises `error` if they are not the reason."""
    if not error.ignored.get("excluded"):
        raise error
    return _Part(FolderSource.beside("", error.ignored), "")


def _open_folder(where: str, wanted: Wanted) -> list[_Part]:
    """The photos in a folder, and those in its archives and tables; what has none is counted, if others have some."""
    folder = FolderSource.survey(where, wanted)
    counted, found = folder.sieve.ignored, list[_Part]()
    bare = [path for path in folder.archives if path.lower().endswith(".parquet") and wanted.image is None]
    bare = [path for path in bare if not tables.holds_images(f"{where}/{path}")]
    if not len(folder.listing) and len(bare) == len(folder.archives):
        bare = []  # Opening them says what is wrong.
    counted["archive"] -= len(folder.archives)
    counted["table without images"] += len(bare)
    for path in sorted(set(folder.archives).difference(bare), key=os.fsencode):
        inner = dataclasses.replace(wanted, include=()) if folder.sieve.includes(path) else wanted
        try:
            found.append(_Part(open_file(f"{where}/{path}", inner), f"{where}/{path}", path=path))
        except NoPhotosError as error:
            left_out = error.ignored.get("excluded")
            counted.update(error.ignored if left_out else {"archive without images": 1})
    if not found:
        folder.sieve.require_photos(len(folder.listing), where)
    return [_Part(folder, where), *found]


def _open_set(where: str, wanted: Wanted) -> list[_Part]:
    shard_set = ShardSet.open(where)
    if wanted.split is not None:
        shard_set.split(wanted.split)
    elif strange := next((split for split in shard_set.splits if split not in SPLITS), None):
        raise UserError(f"the splits of a source must be {', '.join(SPLITS)}; got '{strange}'. Choose one by --split.")
    member = shard_set.image_member or SUFFIX[shard_set.encoding]
    inner = WantedMembers(include=wanted.include, exclude=wanted.exclude, member=member)

    def opened(path: str) -> Any:
        raw = member == SUFFIX["raw"] and not is_url(path)
        part: Any = _RawShard.open(LocalRanges(path), "", inner) if raw else open_file(path, inner)
        known = dataclasses.replace(part.known, classes=shard_set.classes) if part.known.classes else part.known
        return dataclasses.replace(part, known=known, name=shard_set.name)

    files = [
        (-1 if wanted.split else SPLITS.index(split), f"{where}/{shard.name}.tar")
        for split, shards in shard_set.splits.items()
        if wanted.split in (None, split)
        for shard in shards
    ]
    return _open_splits(files, opened, frozenset({"split"}))


class _RawShard(TarSource):
    """A shard of a raw set: its arrays are given as PPM, which every decoder of images knows."""

    def read(self, item: int) -> bytes:
        """One image."""
        pixels = np.lib.format.read_array(io.BytesIO(super().read(item)), allow_pickle=False)
        return b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()


def _open_dataset(url: str, wanted: Wanted) -> list[_Part]:
    name, origin, files = hub.find_files(url, wanted)

    def opened(where: str) -> Any:
        part: Any = open_file(where, wanted)
        return dataclasses.replace(part, name=name, origin=part.origin | origin)

    return _open_splits(files, opened, frozenset({"config", "split", "revision"}))


def _open_saved(folder: Path, wanted: Wanted) -> list[_Part]:
    def opened(path: str) -> Any:
        return tables.ArrowSource.open(LocalRanges(path), folder.resolve().name, wanted, os.path.relpath(path, folder))

    return _open_splits(tables.saved_files(folder, wanted), opened, frozenset({"split"}))


def _open_splits(files: Iterable[tuple[int, str]], opened: Callable[[str], Any], takes: frozenset[str]) -> list[_Part]:
    """The sources of files that come with the number of their split, or with -1."""
    found = list[_Part]()
    for split, where in files:
        try:
            part = opened(where)
        except NoPhotosError as error:
            found.append(_excluded(error))
            continue
        if split >= 0:
            split_of = np.full(len(part.listing), split, np.int8)
            part = dataclasses.replace(part, known=dataclasses.replace(part.known, split_of=split_of))
        found.append(_Part(part, where if is_url(where) else os.path.abspath(where), takes))
    return found


def open_file(where: str, wanted: Wanted) -> Source:
    """The source in one file, on this machine or behind a URL."""
    try:
        file = open_ranges(where)
        kind = kind_of(file)
    except FileNotFoundError:
        raise UserError(f"the source must be there; got nothing at {where}. Check the address.") from None
    except OSError as error:
        raise describe_os_error(error, f"reading {where}") from error
    name = name_of(where)
    if kind == "zip":
        return ZipSource.open(file, name, wanted)
    if kind == "tar" and isinstance(file, LocalRanges):
        return TarSource.open(file, name, wanted)
    if kind in ("tar", "gz", "bz2", "xz", "zst"):
        return StreamSource.open(where, kind.removeprefix("tar"), name, wanted)
    if kind == "parquet":
        return tables.ParquetSource.open(file, name, wanted)
    if kind == "arrow" and isinstance(file, LocalRanges):
        return tables.ArrowSource.open(file, name, wanted)
    extension = _extension(where)
    instead = f", not a {extension[1:]}" if extension else ""
    refused = ": the download was refused" if kind == "web page" else ""
    raise UserError(
        f"the source must be a folder, a zip, a tar or a table of photos; got {where}, "
        f"a{'n' * (kind[:1] == 'e')} {kind or 'file of another kind'}{instead}{refused}. "
        f"{_REMEDIES.get(kind, 'Name a folder of photos, a zip, a tar, or parquet files')}."
    )


def kind_of(file: Ranges) -> str:
    """What the file is, by its first bytes; empty if that is unknown."""
    start = file.read(0, 512)
    if start[257:262] == b"ustar":
        return "tar"
    if kind := next((kind for kind, magics in _BEGINNINGS.items() if start.startswith(magics)), ""):
        return kind
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)", start, re.IGNORECASE):
        return "web page"
    if not start:
        return "empty file"
    if not re.search(rb"[\x00-\x08\x0e-\x1f]", start):
        return "text file"
    extension = _extension(file.where)[1:]
    return extension if extension in ("zip", "tar") else ""  # A zip may begin with a program, a tar may be an old one.


def name_of(where: str) -> str:
    """The last part of a path or URL, without the extensions of archives."""
    name = os.path.basename(_QUERY.sub("", where) if is_url(where) else os.path.abspath(where))
    return name[: len(name) - len(_extension(name))] or name


def _extension(where: str) -> str:
    path = _QUERY.sub("", where) if is_url(where) else where
    return max((one for one in ARCHIVE_EXTENSIONS if path.lower().endswith(one)), key=len, default="")


def _splits(parts: Sequence[_Part]) -> NDArray[np.int8] | None:
    """[inputs] The split that names speak of, as `open_sources` says; None if they do not."""
    if any(part.source.known.split_of is not None for part in parts):
        return None
    names, folders, counts = zip(*_runs(parts), strict=True)
    paths = ["/".join(folder) or "." for folder in folders]
    levels = itertools.zip_longest(*folders, fillvalue="")
    by_folder = ((paths, [SPLIT_WORDS.get(word.lower(), -1) for word in level]) for level in levels)
    for places, splits in itertools.chain([(names, [*map(split_in_name, names)])], by_folder):
        if len({*splits} - {-1}) < 2:
            continue
        if -1 in splits:
            outside = sum(count for count, split in zip(counts, splits, strict=True) if split < 0)
            within = next(place for place, split in zip(places, splits, strict=True) if split >= 0)
            raise UserError(
                f"every photo must be in a split if some are; got {outside:,} in none, in "
                f"'{places[splits.index(-1)]}' beside '{within}'. Move them, or leave them out by --exclude."
            )
        return np.repeat(np.array(splits, np.int8), counts)
    return None


def _runs(parts: Sequence[_Part]) -> Iterator[tuple[str, list[str], int]]:
    """Of each run of photos in one folder: its source, its folders below the one in which all lie, and its length."""
    wheres = (part.where if isinstance(part.source, FolderSource) else os.path.dirname(part.where) for part in parts)
    places = [where.split("/") for where in wheres]
    common = sum(1 for _ in itertools.takewhile(lambda names: len({*names}) == 1, zip(*places, strict=False)))
    for part, place in zip(parts, places, strict=True):
        for folder, count in part.source.listing.folders():
            yield part.source.name, [*place[common:], *printable(folder).split("/")[:-1]], count


def _check_options(parts: Sequence[_Part], wanted: Wanted) -> None:
    taken = frozenset[str]().union(*(part.takes for part in parts))
    if any(isinstance(part.source, tables.ParquetSource | tables.ArrowSource) for part in parts):
        taken |= {"image", "label", "attributes"}
    for option, takers in _OPTIONS.items():
        if getattr(wanted, option) is not None and option not in taken:
            raise UserError(
                f"--{option} must be given with a source that takes it: {takers}; got none of these. Leave it out."
            )


def _check_globs(source: Source, parts: Sequence[_Part], wanted: Wanted) -> None:
    """Raise `UserError` for a glob that no file matches: a slip of the pen would change the set in silence."""
    for pattern in wanted.include:
        matches = protocol.glob(pattern).fullmatch
        paths = itertools.chain.from_iterable((part.path, *map(os.fsdecode, part.source.listing)) for part in parts)
        if not any(map(matches, paths)):
            raise UserError(f"--include must match a photo; got '{pattern}', which matches none. Correct it.")
    if wanted.exclude and not source.ignored.get("excluded"):
        shown = "', '".join(wanted.exclude)
        raise UserError(
            f"--exclude must match a file; got '{shown}', which match none. Correct them, or leave them out."
        )

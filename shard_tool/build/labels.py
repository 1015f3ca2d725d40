"""Labels and splits: CelebA's tables, any table by `--labels`, or folder names, matched to the photos of a listing.

    list_attr_celeba.csv, .txt       1, and -1 or 0, for each attribute     found beside the photos
    list_eval_partition.csv, .txt    0 train, 1 val, 2 test                 found beside the photos
    --labels PATH                    attributes, or one column of classes; a column `split` or `partition`
    --labels folders                 the class of a photo is the folder that it lies in

A name in a table is a file name, or a path relative to the source; where none of them fits, all are tried without
their extensions. A photo that a table does not name is left out with a reason: readers of WebDataset refuse sets where
only some samples have a field, and a guessed split is no split.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, describe_os_error
from pipeline.format import SPLITS
from pipeline.machine import release_memory
from shard_tool.build.keys import name_hash
from shard_tool.build.tables import Parsed, clean_name, parse_table, stem_of
from shard_tool.sources.listing import Listing, printable
from shard_tool.sources.protocol import Known, SideFile, Source

ATTRIBUTES_FILES: Final = ("list_attr_celeba.csv", "list_attr_celeba.txt")
"""Kaggle's and CelebA's own; the first that is there counts."""
PARTITION_FILES: Final = ("list_eval_partition.csv", "list_eval_partition.txt")
FOLDERS: Final = "folders"
"""What `--labels` takes in place of a path."""
NOT_LISTED = -1

_BITS = {"1": 1, "0": 0, "-1": 0, "true": 1, "false": 0}
_SPLIT_NUMBERS = {str(number): number for number in range(len(SPLITS))}
_SPLIT_NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2, "testing": 2}
_SPLIT_COLUMNS = ("split", "partition")
_CLASS_COLUMNS = ("label", "class")
"""A column of 0 and 1 is classes under these names, and an attribute under any other."""


@dataclass(frozen=True)
class Table:
    """One table, matched to a listing: 0/1 attributes, one class for each row, or one split for each row."""

    file_name: str
    """For the reason why a photo that is not in it is left out."""
    where: str
    """Path of the file, for messages; `FOLDERS` where no file says it."""
    sha256: str
    """Of the file."""
    columns: tuple[str, ...]
    """Names of the attributes; `("partition",)` for splits; none for classes."""
    values: NDArray[np.integer[Any]]
    """[rows, columns], or [rows, 1] for classes."""
    row_of: NDArray[np.int32]
    """[photos] The row of each photo, or `NOT_LISTED`."""
    classes: tuple[str, ...] = ()
    """Names of the classes that `values` are numbers into."""

    @property
    def missing(self) -> int:
        """Photos that the table does not name."""
        return int((self.row_of == NOT_LISTED).sum())


def find_labels(source: Source, wanted: str | None) -> tuple[Table | None, Table | None]:
    """The attributes or classes of the photos, and their splits, where something says them.

    `wanted` is the path of a table, `FOLDERS`, or None for the tables that lie beside the photos. Raises `UserError`
    where a table is malformed, missing, or about other photos.
    """
    if wanted is None:
        attributes = find_attributes(source)
        release_memory()  # A large table leaves more behind than it is.
        return attributes, find_partition(source)
    labels, partition = class_folders(source.listing) if wanted == FOLDERS else read_labels(source, Path(wanted))
    return labels, partition or find_partition(source)


def find_attributes(source: Source) -> Table | None:
    """The 0/1 attributes in CelebA's table, else the labels in the source itself; `UserError` for a malformed table."""
    found = _find(source, ATTRIBUTES_FILES)
    return _known_labels(source.known) if found is None else _attributes(found, range(len(found.parsed.columns)))


def find_partition(source: Source) -> Table | None:
    """The split of each photo as a number into `SPLITS`, in CelebA's table or in the source itself; `UserError`."""
    found = _find(source, PARTITION_FILES)
    if found is None:
        return _known_splits(source.known)
    columns = len(found.parsed.columns)
    if columns != 1:
        raise UserError(
            f"{found.parsed.where} must have two columns, the name and the partition; got {columns + 1}. "
            "Repair it or move it away."
        )
    return found.table(("partition",), found.parsed.translate(0, _SPLIT_NUMBERS)[:, None])


def _known_labels(known: Known) -> Table | None:
    """The attributes or classes that lie in the source itself."""
    if known.values is not None:
        return _known_table(known, known.values, known.attributes)
    if known.class_of is not None:
        return _known_table(known, known.class_of[:, None], (), known.classes)
    return None


def _known_splits(known: Known) -> Table | None:
    """The splits that the source itself has."""
    return None if known.split_of is None else _known_table(known, known.split_of[:, None], ("partition",))


def _known_table(
    known: Known, values: NDArray[np.integer[Any]], columns: tuple[str, ...], classes: tuple[str, ...] = ()
) -> Table:
    digest = hashlib.sha256("\0".join((*columns, *classes)).encode() + values.tobytes()).hexdigest()
    rows = np.where((values >= 0).all(1), np.arange(len(values)), NOT_LISTED).astype(np.int32)
    return Table("the labels in the source", known.where, digest, columns, values, rows, classes)


def read_labels(source: Source, path: Path) -> tuple[Table | None, Table | None]:
    """The labels and the splits in any table; each is None where the table has none. `UserError` where neither is."""
    try:
        found = _match(SideFile(str(path), inside=True, open=lambda: path.open("rb")), path.name, source.listing)
    except FileNotFoundError:
        raise UserError(
            f"labels must be '{FOLDERS}' or the path of a table; got {path}, which does not exist. Check the path."
        ) from None
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    if found is None:
        raise _about_others(str(path), source.listing)
    columns = range(len(found.parsed.columns))
    split = next((column for column in columns if _is_split(found, column)), None)
    rest = [column for column in columns if column != split]
    partition = None
    if split is not None:
        splits = found.parsed.translate(split, _SPLIT_NAMES | _SPLIT_NUMBERS)
        partition = found.table(("partition",), splits[:, None])
    if len(rest) == 1 and _is_class(found.parsed, rest[0]):
        return _classes(found, rest[0]), partition
    return _attributes(found, rest) if rest else None, partition


def class_folders(listing: Listing) -> tuple[Table, Table | None]:
    """Classes by the first folders that differ, as `torchvision.datasets.ImageFolder` takes them, sorted by name.

    Where these are all called train, val, test or the like, they are the splits, and the classes lie one folder deeper.
    """
    depth = _shared_folders(listing)
    partition = None
    names, numbers = _folder_names(listing, depth)
    if names and not (numbers < 0).any() and all(name.lower() in _SPLIT_NAMES for name in names):
        splits = np.array([_SPLIT_NAMES[name.lower()] for name in names], np.int8)
        partition = _folder_table("a split folder", names, ("partition",), splits[:, None], numbers)
        names, numbers = _folder_names(listing, depth + 1)
    if len(names) < 2:
        raise UserError(
            f"labels by folders must find the photos in at least two folders; got {len(names)}. "
            "Put each class into a folder of its own, or name a table with --labels PATH."
        )
    rows = np.arange(len(names), dtype=np.int32)[:, None]
    return _folder_table("a class folder", names, (), rows, numbers, tuple(names)), partition


def _shared_folders(listing: Listing) -> int:
    """How many folders deep the first place is where the photos part."""
    shared = listing[0].split(b"/")[:-1]
    for path in listing:
        folders = path.split(b"/")[:-1]
        while folders[: len(shared)] != shared:
            shared.pop()
    return len(shared)


def _folder_names(listing: Listing, depth: int) -> tuple[list[str], NDArray[np.int32]]:
    """The names of all folders that many folders deep, sorted, and the number of each photo's, or `NOT_LISTED`."""

    def folder(path: bytes) -> str | None:
        parts = path.split(b"/", depth + 1)
        return printable(parts[depth]) if len(parts) == depth + 2 else None

    names = sorted({name for path in listing if (name := folder(path)) is not None})
    number_of: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    return names, np.fromiter((number_of.get(folder(path), NOT_LISTED) for path in listing), np.int32, len(listing))


def _folder_table(
    name: str,
    folders: list[str],
    columns: tuple[str, ...],
    values: NDArray[np.integer[Any]],
    row_of: NDArray[np.int32],
    classes: tuple[str, ...] = (),
) -> Table:
    sha256 = hashlib.sha256("\n".join(folders).encode()).hexdigest()
    return Table(name, FOLDERS, sha256, columns, values, row_of, classes)


@dataclass(frozen=True)
class _Matched:
    """A parsed table about the photos of a listing."""

    file_name: str
    parsed: Parsed
    row_of: NDArray[np.int32]

    def table(self, columns: tuple[str, ...], values: NDArray[np.integer[Any]], classes: tuple[str, ...] = ()) -> Table:
        self._check_repeated(values)
        return Table(self.file_name, self.parsed.where, self.parsed.sha256, columns, values, self.row_of, classes)

    def _check_repeated(self, values: NDArray[np.integer[Any]]) -> None:
        """A photo may stand in a table twice, if both lines say the same."""
        order = np.argsort(self.parsed.names, kind="stable")
        first, second = order[:-1], order[1:]
        same_name = np.flatnonzero(self.parsed.names[first] == self.parsed.names[second])
        differ = same_name[(values[first[same_name]] != values[second[same_name]]).any(1)]
        if len(differ):
            lines = self.parsed.lines[[first[differ[0]], second[differ[0]]]]
            raise UserError(
                f"{self.parsed.where} must say one thing of each photo; got lines {lines[0]} and {lines[1]}, "
                "which name the same photo and differ. Remove one of them."
            )


def _find(source: Source, file_names: Iterable[str]) -> _Matched | None:
    """The first of these tables that is about the photos of `source`."""
    for file_name in file_names:
        candidates = source.side_files(file_name)
        inside = [candidate for candidate in candidates if candidate.inside]
        if len(inside) > 1:
            raise UserError(
                f"a source must hold one {file_name}; got {', '.join(file.where for file in inside)}. "
                "Move the others away, or make shards of one folder at a time."
            )
        for candidate in candidates:
            found = _match(candidate, file_name, source.listing)
            if found is not None:
                return found
            if candidate.inside:
                raise _about_others(candidate.where, source.listing)
            # A table in some folder above, about other photos.
    return None


def _about_others(where: str, listing: Listing) -> UserError:
    return UserError(
        f"{where} must name the photos in its first column; got none of their names "
        f"(one is '{printable(listing[0])}'). Correct the names, or take that file away."
    )


def _is_split(found: _Matched, column: int) -> bool:
    name = found.parsed.columns[column].lower()
    if name or len(found.parsed.columns) > 1:
        return name in _SPLIT_COLUMNS
    return found.file_name in PARTITION_FILES or found.parsed.lower_words(column) <= set(_SPLIT_NAMES)


def _is_class(parsed: Parsed, column: int) -> bool:
    name = parsed.columns[column].lower()
    return not name or name in _CLASS_COLUMNS or not parsed.lower_words(column) <= set(_BITS)


def _attributes(found: _Matched, columns: Sequence[int]) -> Table:
    names = tuple(found.parsed.columns[column] for column in columns)
    if not all(names):
        raise UserError(
            f"{found.parsed.where} must have a name for each attribute; got a column without. Name it, or remove it."
        )
    values = np.empty((len(found.parsed.lines), len(columns)), np.int8)
    for place, column in enumerate(columns):
        values[:, place] = found.parsed.translate(column, _BITS)
    return found.table(names, values)


def _classes(found: _Matched, column: int) -> Table:
    """Classes in the order of their numbers where all names are numbers, else of their names."""
    words, codes = found.parsed.words[column], found.parsed.codes[:, column]
    if "" in words:
        line = found.parsed.lines[np.flatnonzero(codes == words.index(""))[0]]
        raise UserError(
            f"{found.parsed.where} must name a class in every line; got none in line {line}. Repair that line."
        )
    by_number = all(word.isdecimal() for word in words)
    names = sorted(set(words), key=lambda word: (int(word) if by_number else 0, word))
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.array([number_of[word] for word in words], np.int32)
    return found.table((), numbers[codes][:, None], tuple(names))


def _match(file: SideFile, file_name: str, listing: Listing) -> _Matched | None:
    """Parse a table and find the row of each photo; None where it names none of them."""
    with file.open() as binary:
        parsed = parse_table(binary, file.where, lambda name: _is_photo(name, listing))
    for hashes, name_of in ((parsed.names, str), (parsed.stems, stem_of)):
        row_of = _rows(hashes, listing, name_of)
        if (row_of != NOT_LISTED).any():
            return _Matched(file_name, parsed, row_of)
    return None


def _is_photo(name: str, listing: Listing) -> bool:
    """Whether `name` is the path or file name of a photo, with or without its extension."""
    stem = stem_of(name)
    near = (printable(path) for path in listing if stem.encode() in path)
    return any(stem in (stem_of(path), stem_of(path.rpartition("/")[2])) for path in near)


def _rows(names: NDArray[np.uint64], listing: Listing, name_of: Callable[[str], str]) -> NDArray[np.int32]:
    """[photos] Each photo's row: by its path if that is named, else by its file name."""
    if not len(names):
        return np.full(len(listing), NOT_LISTED, np.int32)
    order = np.argsort(names, kind="stable")
    ordered = names[order]
    found = np.full(len(listing), NOT_LISTED, np.int32)
    for whole_path in (False, True):
        wanted = (clean_name(name_of(printable(path if whole_path else path.rpartition(b"/")[2]))) for path in listing)
        hashes = np.fromiter((name_hash(name.encode()) for name in wanted), np.uint64, len(listing))
        place = np.maximum(np.searchsorted(ordered, hashes, side="right").astype(np.int64) - 1, 0)
        found = np.where(ordered[place] == hashes, order[place], found).astype(np.int32)
    return found

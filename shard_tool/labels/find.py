"""Labels and splits: tables beside the photos, any table by `--labels`, or folder names, matched to a listing.

    list_attr_celeba.csv, .txt       1, and -1 or 0, for each attribute     found beside the photos
    list_eval_partition.csv, .txt    0 train, 1 val, 2 test                 found beside the photos
    metadata.csv, .jsonl             Hugging Face's imagefolder: classes, attributes, and more for each sample's json
    dataset.json                     StyleGAN's: classes                    both found among the photos
    --labels PATH                    attributes, or one column of classes; a column `split` or `partition`
    --labels folders                 the class of a photo is the folder that it lies in

A name in a table is a path relative to the source, or a file name; else either of them in another case; where none of
them fits, all are tried without their extensions. A photo without a label is left out with a reason: readers of
WebDataset refuse sets where only some samples have a field, and a guessed split is no split.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, describe_os_error
from pipeline.format import SPLITS
from pipeline.machine import release_memory
from shard_tool.labels.tables import (
    BITS,
    CLASS_COLUMNS,
    MOST_WORDS,
    NOT_LISTED,
    SPLIT_COLUMNS,
    TEXT_COLUMNS,
    Parsed,
    Table,
    clean_name,
    parse_tables,
    stem_of,
)
from shard_tool.sources.carried import Notes
from shard_tool.sources.listing import Listing, name_hash, printable
from shard_tool.sources.protocol import MOST_CLASSES, Known, SideFile, Source

ATTRIBUTES_FILES: Final = ("list_attr_celeba.csv", "list_attr_celeba.txt")
"""Kaggle's and CelebA's own; the first that is there counts."""
PARTITION_FILES: Final = ("list_eval_partition.csv", "list_eval_partition.txt")
METADATA_FILES: Final = (("metadata.csv", "metadata.jsonl"), ("dataset.json",))
"""Those of the first kind that names photos are taken together."""
FOLDERS: Final = "folders"
"""What `--labels` takes in place of a path."""

_SPLIT_NUMBERS = {str(number): number for number in range(len(SPLITS))}
_SPLIT_NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2, "testing": 2}
_MANY_CLASSES = 10_000
"""From here on classes of which most have one photo are taken for something else."""


@dataclass(frozen=True)
class Carried:
    """What a table says of the photos beside labels, for the json of each sample; the same fields for every photo."""

    notes: Notes
    row_of: NDArray[np.int32]
    """[photos]"""
    text: str | None
    """Name of the column of captions."""
    fields: tuple[str, ...]
    """Names of the other columns."""
    sha256: str
    """Of the tables."""

    def __call__(self, item: int) -> dict[str, object]:
        """The fields of one photo."""
        row = int(self.row_of[item])
        note = self.notes[row] if row != NOT_LISTED else {}
        found: dict[str, object] = {"text": note.get(self.text)} if self.text else {}
        if self.fields:
            found["original"] = {name: note.get(name) for name in self.fields}
        return found


class Labels(NamedTuple):
    """What is said of the photos of a source."""

    labels: Table | None
    """Attributes or classes."""
    partition: Table | None
    """Splits."""
    carried: Carried | None
    notes: tuple[str, ...]
    """What the user should hear of the tables, a line each."""


def find_labels(source: Source, wanted: str | None) -> Labels:
    """The attributes or classes of the photos, their splits, and what else is said of them.

    `wanted` is the path of a table, `FOLDERS`, or None for the tables that lie beside the photos and the source itself.
    Raises `UserError` where a table is malformed, missing, or about other photos.
    """
    said: list[str] = []
    if wanted == FOLDERS:
        found = Labels(*class_folders(source.listing), None, ())
    elif wanted is not None:
        found = _tables(_read(source.listing, Path(wanted)), found=False)
    else:
        found, known = _find_metadata(source), source.known
        labels = found.labels or _known_table(known, known.values, known.attributes)
        labels = labels or _known_table(known, known.class_of, (), known.classes)
        if (celeba := _find(source, ATTRIBUTES_FILES, said)) is not None:
            labels = _attributes(celeba, range(len(celeba.parsed.columns)))
            if found.labels is not None:
                said.append(f"the labels in {found.labels.where} do not count beside {celeba.parsed.where}")
        found = found._replace(labels=labels)
    if found.partition is None:
        found = found._replace(partition=_partition(source, said))
    release_memory()  # A large table leaves more behind than it is.
    return found._replace(notes=(*found.notes, *said))


def _partition(source: Source, said: list[str]) -> Table | None:
    found = _find(source, PARTITION_FILES, said)
    if found is None:
        return _known_table(source.known, source.known.split_of, ("partition",))
    columns = len(found.parsed.columns)
    if columns != 1:
        raise UserError(
            f"{found.parsed.where} must have two columns, the name and the partition; got {columns + 1}. "
            "Repair it or move it away."
        )
    return found.table(("partition",), found.parsed.translate(0, _SPLIT_NUMBERS)[:, None])


def _known_table(
    known: Known, values: NDArray[np.integer[Any]] | None, columns: tuple[str, ...], classes: tuple[str, ...] = ()
) -> Table | None:
    """What the source itself says of each photo: `values` are of shape [photos] or [photos, columns]."""
    if values is None:
        return None
    values = values.reshape(len(values), -1)
    digest = hashlib.sha256("\0".join((*columns, *classes)).encode() + values.tobytes()).hexdigest()
    empty: NDArray[np.bool_] = values.min(axis=1) < 0
    rows = np.where(empty, NOT_LISTED, np.arange(len(values))).astype(np.int32)
    return Table("the source", known.where, digest, columns, values, rows, classes, empty)


def class_folders(listing: Listing) -> tuple[Table, Table | None]:
    """Classes by the first folders that differ, as `torchvision.datasets.ImageFolder` takes them, sorted by name.

    Where these are all called train, val, test or the like, they are the splits, and the classes lie one folder deeper.
    """
    shared = os.path.commonprefix(list({tuple(path.split(b"/")[:-1]) for path in listing}))  # noqa: RUF071 (tuples)
    depth, partition = len(shared), None
    names, numbers = _folder_names(listing, depth)
    splits = [_SPLIT_NAMES[name.lower()] for name in names if name.lower() in _SPLIT_NAMES]
    if len(set(splits)) > 1 and len(splits) < len(names):
        raise UserError(
            "labels by folders must find folders of classes, or of splits, side by side; got both: "
            f"{', '.join(map(repr, names[:8]))}. Move the classes into the folders of the splits, or leave folders out."
        )
    if names and len(splits) == len(names):
        values = np.array(splits, np.int8)[:, None]
        partition = Table("a split folder", FOLDERS, _sha256_of(names), ("partition",), values, numbers)
        names, numbers = _folder_names(listing, depth + 1)
    if len(names) < 2:
        one = names[0] if names else printable(b"".join(shared[-1:]))
        raise UserError(
            f"labels by folders must find the photos in two folders or more; got {f'one, {one!r}' if one else 'none'}. "
            "Put each class into a folder of its own, or name a table with --labels PATH."
        )
    rows = np.arange(len(names), dtype=np.int32)[:, None]
    return Table("a class folder", FOLDERS, _sha256_of(names), (), rows, numbers, tuple(names)), partition


def _sha256_of(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _folder_names(listing: Listing, depth: int) -> tuple[list[str], NDArray[np.int32]]:
    """The names of all folders that many folders deep, sorted, and the number of each photo's, or `NOT_LISTED`."""

    def folder(path: bytes) -> str | None:
        parts = path.split(b"/", depth + 1)
        # Of names that are not UTF-8 the bytes are shown: two of them are two classes.
        return clean_name(parts[depth].decode("utf-8", "backslashreplace")) if len(parts) == depth + 2 else None

    names = sorted({name for path in listing if (name := folder(path)) is not None})
    number_of: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    return names, np.fromiter((number_of.get(folder(path), NOT_LISTED) for path in listing), np.int32, len(listing))


@dataclass(frozen=True)
class _Matched:
    """A parsed table about the photos of a listing."""

    file_name: str
    parsed: Parsed
    photo_of: NDArray[np.int32]
    """[rows] The photo of each, or `NOT_LISTED`."""
    row_of: NDArray[np.int32]
    """[photos]"""

    @property
    def fits(self) -> bool:
        """Whether it names any of the photos."""
        return bool((self.row_of != NOT_LISTED).any())

    @property
    def strangers(self) -> tuple[str, ...]:
        """A line about rows that name no photo, if there are any."""
        rows = np.flatnonzero(self.photo_of == NOT_LISTED).tolist()
        if not rows:
            return ()
        first = f"'{printable(self.parsed.names[rows[0]])}' in {self.parsed.place(rows[0])}"
        return (f"rows of {self.parsed.where} that name no photo: {len(rows):,}, the first {first}",)

    def table(self, columns: tuple[str, ...], values: NDArray[np.integer[Any]], classes: tuple[str, ...] = ()) -> Table:
        """The part of it that says one thing of each photo; a row with a negative value says nothing."""
        named = self.row_of != NOT_LISTED
        empty = named & (values[self.row_of] < 0).any(1)
        if (empty == named).all():
            what = f"'{columns[0]}'" if columns else "a class"
            raise UserError(
                f"{self.parsed.where} must have {what} for some photo; got none. Fill it in, or name another table."
            )
        rows = np.where(empty, NOT_LISTED, self.row_of).astype(np.int32)
        return Table(self.file_name, self.parsed.where, self.parsed.sha256, columns, values, rows, classes, empty)


def _find(source: Source, file_names: Iterable[str], said: list[str]) -> _Matched | None:
    """The first of CelebA's tables that is about the photos of `source`."""
    for file_name in file_names:
        candidates = source.side_files(file_name)
        inside = [candidate for candidate in candidates if candidate.inside]
        if len(inside) > 1:
            raise UserError(
                f"a source must hold one {file_name}; got {', '.join(file.where for file in inside)}. "
                "Move the others away, or make shards of one folder at a time."
            )
        for candidate in candidates:
            found = _match([candidate], source.listing)
            if found.fits:
                said.extend(found.strangers)
                return found
            if candidate.inside:  # One in some folder above may be about other photos.
                raise _about_others(candidate.where, source.listing)
    return None


def _find_metadata(source: Source) -> Labels:
    """What the tables among the photos say that others than CelebA name so; those that are something else are noted."""
    said: list[str] = []
    for file_names in METADATA_FILES:
        files = [file for file_name in file_names for file in source.side_files(file_name) if file.inside]
        if not files:
            continue
        matched = _match(files, source.listing, metadata=True)
        said += [f"passed over: {why}" for why in matched.parsed.foreign]
        if matched.fits:
            tables = _tables(matched, found=True)
            return tables._replace(notes=(*said, *tables.notes))
        said.extend(matched.strangers)
    return Labels(None, None, None, tuple(said))


def _read(listing: Listing, path: Path) -> _Matched:
    try:
        found = _match([SideFile(str(path), inside=True, open=lambda: path.open("rb"))], listing)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        what = "a folder" if isinstance(error, IsADirectoryError) else "which does not exist"
        raise UserError(
            f"labels must be '{FOLDERS}' or the path of a table; got {path}, {what}. Check the path."
        ) from None
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    if not found.fits:
        raise _about_others(str(path), listing)
    return found


def _about_others(where: str, listing: Listing) -> UserError:
    return UserError(
        f"{where} must name the photos in its first column; got none of their names "
        f"(one is '{printable(listing[0])}'). Correct the names, or take that file away."
    )


def _tables(matched: _Matched, *, found: bool) -> Labels:
    """What the columns of a table mean. With `found`, nobody asked for it, and what is no label is carried along."""
    parsed, said = matched.parsed, list(matched.strangers)
    columns = list(range(len(parsed.columns)))
    meanings = _SPLIT_NAMES | _SPLIT_NUMBERS
    partition = label = None
    split = next((column for column in columns if _is_split(matched, column)), None)
    if split is not None and (not found or set() < parsed.lower_words(split) <= set(meanings)):
        partition = matched.table(("partition",), parsed.translate(split, meanings)[:, None])
        columns.remove(split)
    used = columns
    if parsed.notes is not None:
        label = next((column for column in columns if parsed.columns[column].lower() in CLASS_COLUMNS), None)
        used = [column for column in columns if column != label and set() < parsed.lower_words(column) <= set(BITS)]
    if label is None and not found and len(columns) == 1 and _is_class(parsed, columns[0]):
        label = columns[0]
    if found and label is not None and (why := _why_no_classes(parsed, label)):
        said.append(f"'{parsed.columns[label]}' of {parsed.where} is carried along, and no label: it has {why}")
        label = None
    labels = _attributes(matched, used) if label is None else _classes(matched, label)
    carried = _carried(matched, [column for column in columns if column not in (used if label is None else [label])])
    return Labels(labels, partition, carried, tuple(said))


def _carried(matched: _Matched, columns: list[int]) -> Carried | None:
    parsed = matched.parsed
    if not columns or parsed.notes is None:
        return None
    names = [parsed.columns[column] for column in columns]
    text = next((name for wanted in TEXT_COLUMNS for name in names if name.lower() == wanted), None)
    fields = tuple(name for name in names if name != text)
    return Carried(parsed.notes, matched.row_of, text, fields, parsed.sha256)


def _is_split(matched: _Matched, column: int) -> bool:
    name = matched.parsed.columns[column].lower()
    if name or len(matched.parsed.columns) > 1:
        return name in SPLIT_COLUMNS
    return matched.file_name in PARTITION_FILES or matched.parsed.lower_words(column) <= set(_SPLIT_NAMES)


def _is_class(parsed: Parsed, column: int) -> bool:
    """Whether the only column is classes; one of 0 and 1 is attributes if it is not called so, a caption is neither."""
    name = parsed.columns[column].lower()
    if parsed.notes is not None and name in TEXT_COLUMNS:
        return False
    return not name or name in CLASS_COLUMNS or not parsed.lower_words(column) <= set(BITS)


def _attributes(matched: _Matched, columns: Sequence[int]) -> Table | None:
    names = tuple(matched.parsed.columns[column] for column in columns)
    if not all(names):
        raise UserError(
            f"{matched.parsed.where} must have a name for each attribute; got a column without. Name it, or remove it."
        )
    values = [matched.parsed.translate(column, BITS) for column in columns]
    return matched.table(names, np.stack(values, 1)) if values else None


def _classes(matched: _Matched, column: int) -> Table:
    """Classes in the order of their numbers where all names are numbers, else of their names; -1 and nothing: none."""
    parsed = matched.parsed
    if why := _why_no_classes(parsed, column):
        name = f" in column '{parsed.columns[column]}'" if parsed.columns[column] else ""
        raise UserError(
            f"{parsed.where} must hold classes{name}; got {why}. Leave that column out, or name another table."
        )
    words = _class_names(parsed, column)
    names = sorted({word for word in words if word is not None})
    if all(map(str.isdecimal, names)):
        names.sort(key=int)
    number_of: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    numbers = np.array([number_of.get(word, -1) for word in words], np.int32)
    return matched.table((), numbers[parsed.codes[column]][:, None], tuple(names))


def _class_names(parsed: Parsed, column: int) -> list[str | None]:
    """The class that each word of a column stands for: pandas writes whole numbers as 6.0 if some are missing."""
    words = parsed.words[column]
    if all(re.fullmatch(r"-?[0-9]+(\.0+)?|", word) for word in words):
        words = tuple(word.partition(".")[0] for word in words)
    missing = {""} if set(words) - {""} == {"-1", "1"} else {"", "-1"}
    return [None if word in missing else word for word in words]


def _why_no_classes(parsed: Parsed, column: int) -> str:
    """What the words of a column are, if they are no classes; else nothing."""
    names = [name for name in _class_names(parsed, column) if name is not None]
    if not names:
        return "none in any line"
    if parsed.notes is not None and any(name[0] in "[{" for name in names):
        return "lists, as vectors"
    are_numbers = all(re.fullmatch(r"-?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?", name) for name in names)
    if are_numbers and re.search("[.eE]", "".join(names)):
        return "numbers with a fraction"
    longest = max((name for name in names if name.isdecimal()), key=lambda name: (len(name), name), default="0")
    if len(longest) > 18 or int(longest) >= MOST_CLASSES:
        return f"numbers that look like ids, as {longest[:40]}"
    once = int((np.bincount(parsed.codes[column]) == 1).sum())
    if len(names) > _MANY_CLASSES and (once > len(names) / 2 or len(names) >= MOST_WORDS):
        return f"{len(names):,} words that look like ids: most of them stand once"
    return ""


def _match(files: Sequence[SideFile], listing: Listing, *, metadata: bool = False) -> _Matched:
    """Parse tables and find the photo of each row; `UserError` where two rows say different things of one photo."""
    parsed = parse_tables(files, lambda name: _is_photo(name, listing), metadata=metadata)
    photo_of = _photos_of_rows(parsed, listing)
    rows = np.argsort(photo_of, kind="stable")
    rows = rows[photo_of[rows] != NOT_LISTED]
    again = np.flatnonzero(photo_of[rows[1:]] == photo_of[rows[:-1]])
    for one, other in zip(rows[again].tolist(), rows[again + 1].tolist(), strict=True):
        if parsed.differ(one, other):
            raise UserError(
                f"{parsed.where} must say one thing of each photo; got {parsed.place(one)} and {parsed.place(other)}, "
                "which name the same photo and differ. Remove one of them."
            )
    row_of = np.full(len(listing), NOT_LISTED, np.int32)
    row_of[photo_of[rows]] = rows
    return _Matched(files[0].where.rpartition("/")[2], parsed, photo_of, row_of)


def _is_photo(name: str, listing: Listing) -> bool:
    """Whether `name` is the path or file name of a photo, in any case, with or without its extension."""
    stem = stem_of(name).casefold()
    stems = (stem_of(clean_name(printable(path))).casefold() for path in listing)
    return any(stem in (path, path.rpartition("/")[2]) for path in stems)


def _photos_of_rows(parsed: Parsed, listing: Listing) -> NDArray[np.int32]:
    """[rows] The photo that each row names, or `NOT_LISTED`."""
    photo_of = np.full(len(parsed.names), NOT_LISTED, np.int32)

    def place(rows: NDArray[np.int64], given: NDArray[np.uint64], photos: NDArray[np.uint64]) -> None:
        named = np.isin(np.arange(len(listing)), photo_of)
        order = np.argsort(photos, kind="stable")
        first = np.searchsorted(photos[order], given)
        count = np.searchsorted(photos[order], given, side="right") - first
        photo_of[rows[count == 1]] = order[first[count == 1]]
        for several in np.flatnonzero(count > 1).tolist():
            row, candidates = int(rows[several]), order[first[several] : first[several] + count[several]]
            unnamed = candidates[~named[candidates]]
            if len(unnamed) != 1:
                one, other = (printable(listing[int(item)]) for item in candidates[:2])
                raise UserError(
                    f"{parsed.where} must name each photo by its path if others are called the same; got "
                    f"'{printable(parsed.names[row])}' in {parsed.place(row)}, which may be '{one}' or '{other}'. "
                    "Write the path into the table, or make shards of one of these photos."
                )
            photo_of[row] = unnamed[0]

    for spell in (str, stem_of):
        if (photo_of != NOT_LISTED).any():
            break
        for fold in (str, str.casefold):
            rows = np.flatnonzero(photo_of == NOT_LISTED)
            given = _hashes((parsed.names[row] for row in rows.tolist()), spell, fold)
            for whole in (True, False):
                left = photo_of[rows] == NOT_LISTED
                if left.any():
                    photos = _hashes((path if whole else path.rpartition(b"/")[2] for path in listing), spell, fold)
                    place(rows[left], given[left], photos)
    return photo_of


def _hashes(paths: Iterable[bytes], spell: Callable[[str], str], fold: Callable[[str], str]) -> NDArray[np.uint64]:
    names = (fold(spell(clean_name(printable(path)))) for path in paths)
    return np.fromiter((name_hash(name.encode()) for name in names), np.uint64)

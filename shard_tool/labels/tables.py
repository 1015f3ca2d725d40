"""Tables of photos, parsed: csv, tsv, `;` between the columns, blanks as in CelebA's original lists, and JSON.

    list_attr_celeba.csv       image_id,Male,Smiling      a line of column names, then a line for each photo
                               000001.jpg,-1,1
    list_attr_celeba.txt       202599                     CelebA's own: how many lines follow, the names, the lines
                               Male Smiling
                               000001.jpg -1  1
    list_eval_partition.txt    000001.jpg 0               no names: the first line is a photo already
    metadata.csv, .jsonl       {"file_name": "1.jpg", "text": "a cat"}             Hugging Face's imagefolder
    dataset.json               {"labels": [["00000/img00000000.png", 6], ...]}     StyleGAN's

Cells are kept as small numbers into the words of their column: 200,000 lines of 40 columns are 8 MB. What a table may
hold beside labels, as captions, goes to the disk.
"""

import codecs
import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import unicodedata
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.sources.carried import Notes
from shard_tool.sources.listing import Listing
from shard_tool.sources.protocol import IMAGE_EXTENSIONS, SideFile, extension_of

FILE_NAME = "file_name"
"""The column of the photos' names that makes a table Hugging Face's: what are no labels in it is carried along."""
CLASS_COLUMNS = ("label", "class")
SPLIT_COLUMNS = ("split", "partition")
TEXT_COLUMNS = ("text", "caption")
BITS = {"1": 1, "0": 0, "-1": 0, "true": 1, "false": 0}

_NAME_COLUMNS = re.compile(r"(image|img|photo|picture|file|sample)?[ _-]?(id|name|file|path|key|index|uid)?|filepath")
"""What usually stands over the names of photos."""
_BLANKS_AFTER_QUOTE = re.compile(r'" +(?=[,;\t\r\n]|$)')
_MOST_CHARACTERS = 1 << 20
"""Of a line."""
MOST_WORDS = 1 << 14
"""Different cells of a column from which on it is neither classes nor attributes, if it could be text."""
_BATCH = 1000
_UNKNOWN = -2

Rows = Iterator[tuple[int, list[str]]]
"""The number of each line that is not blank, from 1, and its cells."""
Row = list[str] | dict[str, object]
"""What a table says of a photo: the cells beside its name, or the fields of an object."""
Records = Iterator[tuple[int, str, Row]]
"""The line of each photo, from 1, the photo's name, and its row."""

NOT_LISTED = -1
"""In place of a row: the table says nothing of a photo."""


@dataclass(frozen=True)
class Table:
    """One table, matched to a listing: 0/1 attributes, one class for each row, or one split for each row."""

    file_name: str
    """For the reason why a photo that is not in it is left out."""
    where: str
    """Path of the file, for messages; `FOLDERS` where no file says it."""
    sha256: str
    columns: tuple[str, ...]
    """Names of the attributes; `("partition",)` for splits; none for classes."""
    values: NDArray[np.integer[Any]]
    """[rows, columns], or [rows, 1] for classes."""
    row_of: NDArray[np.int32]
    """[photos] The row of each photo, or `NOT_LISTED`."""
    classes: tuple[str, ...] = ()
    """Names of the classes that `values` are numbers into."""
    empty: NDArray[np.bool_] | None = None
    """[photos] Whether the table names a photo without a value for it; such a photo is `NOT_LISTED`."""

    def why_missing(self, item: int) -> str:
        """The reason for which a photo that is `NOT_LISTED` is left out."""
        what = "split" if self.columns == ("partition",) else "label"
        return f"{f'no {what}' if self.empty is not None and self.empty[item] else 'not'} in {self.file_name}"


@dataclass(frozen=True)
class Parsed:
    """The content of one table, or of several that are one, as those of each folder."""

    files: tuple[str, ...]
    starts: tuple[int, ...]
    """The first row of each file."""
    foreign: tuple[str, ...]
    """Why other files of that name are none."""
    sha256: str
    columns: tuple[str, ...]
    """Names of the columns but that of the photos; an empty one where the table has no line of them."""
    names: Listing
    """[rows] The photos' names."""
    lines: NDArray[np.uint32]
    """[rows] The line of each in its file."""
    codes: tuple[NDArray[np.integer[Any]], ...]
    """[columns][rows] Numbers into `words`."""
    words: tuple[tuple[str, ...], ...]
    """The different cells of each column."""
    notes: Notes | None
    """[rows] All cells; None where nothing is carried along."""

    @property
    def where(self) -> str:
        """For messages."""
        return self.files[0] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")

    def place(self, row: int) -> str:
        """For messages."""
        file = f" of {self.files[bisect_right(self.starts, row) - 1]}" if len(self.files) > 1 else ""
        return f"{'entry' if self.files[0].endswith('.json') else 'line'} {self.lines[row]}{file}"

    def differ(self, row: int, other: int) -> bool:
        """Whether two rows say different things."""
        if self.notes is not None:
            return self.notes[row] != self.notes[other]
        return any(codes[row] != codes[other] for codes in self.codes)

    def lower_words(self, column: int) -> set[str]:
        """The different cells of one column, in small letters, without the empty one."""
        return {word.lower() for word in self.words[column]} - {""}

    def translate(self, column: int, meanings: Mapping[str, int]) -> NDArray[np.int8]:
        """[rows] What the cells of one column mean, in any case of letters; -1: empty. `UserError` for any other."""
        codes, words = self.codes[column], self.words[column]
        meaning_of = {"": -1, **meanings}
        numbers = np.array([meaning_of.get(word.lower(), _UNKNOWN) for word in words], np.int8)
        values: NDArray[np.int8] = numbers[codes]
        unknown = np.flatnonzero(values == _UNKNOWN)
        if len(unknown):
            name = f" in column '{self.columns[column]}'" if self.columns[column] else ""
            raise UserError(
                f"{self.where} must hold {', '.join(meanings)} only{name}; got {words[codes[unknown[0]]][:60]!r} in "
                f"{self.place(int(unknown[0]))}. Repair or remove that line, or leave the column out."
            )
        return values


def parse_tables(files: Sequence[SideFile], is_photo: Callable[[str], bool], *, metadata: bool) -> Parsed:
    """Read whole tables as one. A first line whose name `is_photo` may be no line of column names.

    Names in `metadata` are relative to its folder; files that are called so and are something else are passed over.
    Raises `UserError` where a table is malformed, with the line.
    """
    columns: dict[str, _Column] = {}
    names, lines, starts, foreign = list[bytes](), array("I"), dict[str, int](), list[str]()
    notes: Notes | None = None
    digest = hashlib.sha256()
    for file in files:
        folder = file.folder if metadata else ""
        with file.open() as binary:
            try:
                titles, rich, records = _records(_HashingReader(binary, digest), file.where, is_photo)
                if metadata and not rich:
                    raise UserError(f"{file.where} must have a column '{FILE_NAME}'; got {', '.join(titles)[:99]}.")
            except UserError as error:
                if not metadata:
                    raise
                foreign.append(str(error))
                continue
            starts[file.where] = len(names)
            notes = notes or (Notes() if rich else None)
            for title in titles:
                columns.setdefault(title, _Column())
            while batch := list(itertools.islice(records, _BATCH)):
                for title, values in _by_column(titles, [row for _, _, row in batch]).items():
                    most = MOST_WORDS if rich and title.lower() not in CLASS_COLUMNS else None
                    columns.setdefault(title, _Column()).add(len(names), values, most)
                for line, name, row in batch:
                    lines.append(line)
                    names.append((folder + clean_name(name)).encode())
                    if notes is not None:
                        notes.append(row if isinstance(row, dict) else dict(zip(titles, row, strict=True)))
    return Parsed(
        tuple(starts),
        tuple(starts.values()),
        tuple(foreign),
        digest.hexdigest(),
        tuple(columns),
        Listing((name, 0) for name in names),
        np.frombuffer(lines, np.uint32),
        tuple(column.all(len(names)) for column in columns.values()),
        tuple(tuple(word.strip() for word in column.numbers) for column in columns.values()),
        notes,
    )


def _by_column(titles: list[str], rows: list[Row]) -> dict[str, Iterable[object]]:
    if titles:  # Objects have none.
        return dict(zip(titles, zip(*rows, strict=True), strict=True))
    records = [row for row in rows if isinstance(row, dict)]
    return {title: [row.get(title) for row in records] for title in dict.fromkeys(itertools.chain(*records))}


class _Column:
    """Numbers the different words of a column as they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._codes = array("B")

    def add(self, row: int, values: Iterable[object], most: int | None) -> None:
        """The cells from `row` on; where earlier ones are missing, they are empty. `most` words get a number."""
        words = [""] * (row - len(self._codes))
        words += [value if isinstance(value, str) else "" if value is None else json.dumps(value) for value in values]
        for word in dict.fromkeys(words):
            if most is None or len(self.numbers) < most:
                self.numbers.setdefault(word, len(self.numbers))
        if len(self.numbers) > 256 and self._codes.typecode == "B":
            self._codes = array("i", self._codes)
        self._codes.extend([self.numbers.get(word, 0) for word in words])

    def all(self, rows: int) -> NDArray[np.integer[Any]]:
        self.add(rows, (), None)
        return np.frombuffer(self._codes, self._codes.typecode)


def clean_name(cell: str) -> str:
    """A photo's name as a listing has it, in composed characters: `.\\a\\1.jpg` is `a/1.jpg`."""
    name = cell.strip().replace("\\", "/").removeprefix("./")
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def stem_of(name: str) -> str:
    """`name` without the extension of an image file, if it has one; other dots belong to the name."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in IMAGE_EXTENSIONS else name


def _records(file: "_HashingReader", where: str, is_photo: Callable[[str], bool]) -> tuple[list[str], bool, Records]:
    """The columns of a table of cells, whether it is Hugging Face's or StyleGAN's, and what it says of each photo."""
    kind = extension_of(where)
    if kind in (".json", ".jsonl", ".ndjson"):
        lines = _lines(file, where, -1 if kind == ".json" else _MOST_CHARACTERS)
        records = _stylegan(lines, where) if kind == ".json" else _json_lines(lines, where)
        return [], True, itertools.chain(list(itertools.islice(records, 1)), records)
    titles, rows, count = _titles(_cells(_lines(file, where), where), where, is_photo)
    place = titles.index(FILE_NAME) if FILE_NAME in titles else 0
    others = titles[:place] + titles[place + 1 :]
    return others, FILE_NAME in titles, _table_records(len(titles), place, rows, count, where)


def _lines(file: "_HashingReader", where: str, most: int = _MOST_CHARACTERS) -> Iterator[str]:
    """The lines of a text in UTF-8, or in UTF-16 with its mark; `UserError` where it is none."""
    buffered = io.BufferedReader(file)
    wide = buffered.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    text = io.TextIOWrapper(buffered, "utf-16" if wide else "utf-8-sig", "surrogateescape", newline="")
    number = 0
    try:
        for number, line in enumerate(iter(lambda: text.readline(most), ""), 1):
            if "\0" in line or len(line) == most or (not line.isascii() and re.search("[\ud800-\udfff]", line)):
                what = "one of a MiB" if len(line) == most else "other bytes"
                raise UserError(
                    f"{where} must be lines of text in UTF-8; got {what} in line {number}. Save it as UTF-8 csv."
                )
            yield line
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} must be lines of text in UTF-8; got {error.reason} after line {number}. Save it as UTF-8 csv."
        ) from None


def _json_lines(lines: Iterator[str], where: str) -> Records:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _parse_json(line)
        name = record.pop(FILE_NAME, None) if isinstance(record, dict) else None
        if not isinstance(name, str):
            raise UserError(
                f"{where} must hold an object with a text '{FILE_NAME}' in every line; got {line.strip()[:60]!r} in "
                f"line {number}. Repair or remove that line."
            )
        yield number, name, record


def _stylegan(lines: Iterator[str], where: str) -> Records:
    content = _parse_json("".join(lines))
    pairs = content.get("labels", 0) if isinstance(content, dict) else 0
    if not isinstance(pairs, list | None):
        raise UserError(
            f'{where} must be {{"labels": [["a/1.png", 6], ...]}}, as StyleGAN has it; got something else. '
            "Name another table."
        )
    for number, pair in enumerate(pairs or (), 1):
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(
                f"{where} must hold a name and a label in every entry; got {str(pair)[:60]} in entry {number}. "
                "Repair or remove that entry."
            )
        yield number, pair[0], {"label": pair[1]}


def _parse_json(text: str) -> Any:
    """The content, without NaN and infinity, which are no JSON; None where it cannot be stored as JSON again."""
    try:
        content = json.loads(text, parse_constant=lambda name: None, parse_float=_finite)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()  # Half a surrogate pair is no text.
    except (ValueError, RecursionError):
        return None
    return content


def _finite(text: str) -> float | None:
    return float(text) if math.isfinite(float(text)) else None


def _cells(lines: Iterator[str], where: str) -> Rows:
    """All lines, cut where the first one shows it: at commas, tabs or semicolons, else at blanks."""
    lines, ahead = itertools.tee(lines)
    first = next(filter(str.strip, ahead), "")
    del ahead  # It would hold all lines.
    named = re.fullmatch("sep=([,;\t])\\s*", first)  # Excel's; it is no row.
    comma = named[1] if named else max(",\t;", key=first.count)
    if comma not in first:
        yield from ((number, line.split()) for number, line in enumerate(lines, 1) if line.strip())
        return
    tidy = (_BLANKS_AFTER_QUOTE.sub('"', line) if '" ' in line else line for line in lines)
    # Strict: a quote that nobody closed would take the lines behind it into its cell.
    reader = csv.reader(tidy, delimiter=comma, skipinitialspace=True, strict=True)
    rows = ((reader.line_num, row) for row in reader if any(map(str.strip, row)))
    try:
        yield from itertools.islice(rows, 1 if named else 0, None)
    except csv.Error as error:
        raise UserError(f"{where} must be csv; got '{error}' in line {reader.line_num}. Repair that line.") from None


def _titles(rows: Rows, where: str, is_photo: Callable[[str], bool]) -> tuple[list[str], Rows, int | None]:
    """The names of the columns, the rows of photos, and how many the table says there are."""
    number, first = next(rows, (1, [""]))
    titles = [cell.strip() for cell in first]
    count, odd = None, ""
    if len(first) == 1 and re.fullmatch("[0-9]{1,9}", titles[0]):  # CelebA's own: nothing stands over the first column.
        number, names = next(rows, (number, []))
        titles, count = ["", *names], int(titles[0])
    elif len(first) == 1:
        odd = f"{titles[0][:60]!r}"
    else:
        ahead = list(itertools.islice(rows, _BATCH))
        rows = itertools.chain(ahead, rows)
        has_titles = _are_titles(titles, [row for _, row in ahead], is_photo)
        if has_titles is None:
            odd = f"{titles[:3]}, which may also be a photo,"
        elif not has_titles and len(first) > 2:
            odd = f"the photo '{titles[0]}'"
        elif not has_titles:
            return ["", ""], itertools.chain([(number, first)], rows), None
    if odd:
        raise UserError(
            f"{where} must begin with a line of column names; got {odd} in line {number}. "
            f"Write a name for each column above it, as '{FILE_NAME},label', or move the file away."
        )
    if len(set(titles)) < len(titles):
        raise UserError(
            f"{where} must name each column once; got a name twice in line {number}. Repair it or move it away."
        )
    return titles, rows, count


def _are_titles(first: list[str], rows: list[list[str]], is_photo: Callable[[str], bool]) -> bool | None:
    """Whether the first line of a table names its columns; None where it may as well be a photo and its class."""
    name, cells = clean_name(first[0]), [cell.lower() for cell in first[1:]]
    if extension_of(name) in IMAGE_EXTENSIONS:
        return False
    known = bool(_NAME_COLUMNS.fullmatch(name.lower()))
    titled = not {FILE_NAME, *CLASS_COLUMNS, *SPLIT_COLUMNS, *TEXT_COLUMNS}.isdisjoint(cells)
    # A word that stands in its column again is a class, an attribute or a split of photos.
    again = all(
        any(cell == row[place].strip().lower() for row in rows if len(row) > place)
        for place, cell in enumerate(cells, 1)
    )
    if not is_photo(name):
        return known or titled or not (again or name.isdecimal())
    if again:
        return False
    names = [clean_name(row[0]) for row in rows]
    if titled or (known and len(cells) > 1) or any(stem_of(other).lower() == name.lower() for other in names):
        return True
    numbered = name.isdecimal() and not any(extension_of(other) in IMAGE_EXTENSIONS for other in names)
    return False if numbered else None


def _table_records(width: int, place: int, rows: Rows, count: int | None, where: str) -> Records:
    photos = 0
    for line, row in rows:
        if len(row) != width:
            raise UserError(
                f"{where} must have {width} columns in every line; got {len(row)} in line {line}. "
                "Repair or remove that line."
            )
        photos += 1
        yield line, row.pop(place), row
    if count is not None and count != photos:
        raise UserError(
            f"{where} must have as many lines of photos as its first line says, {count:,}; got {photos:,}. "
            "Copy the file again, or correct that number."
        )


class _HashingReader(io.RawIOBase):
    """Passes a file on and hashes what went through."""

    def __init__(self, file: BinaryIO, digest: "hashlib._Hash") -> None:
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        self._digest.update(data)
        buffer[: len(data)] = data
        return len(data)

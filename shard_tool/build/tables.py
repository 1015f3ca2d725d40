"""A table of photos, parsed: csv, tsv, `;` between the columns, or blanks as in CelebA's original lists.

    list_attr_celeba.csv       image_id,Male,Smiling      a line of column names, then a line for each photo
                               000001.jpg,-1,1
    list_attr_celeba.txt       202599                     CelebA's own: how many lines follow, the names, the lines
                               Male Smiling
                               000001.jpg -1  1
    list_eval_partition.txt    000001.jpg 0               no names: the first line is a photo already

Cells are kept as small numbers into the words of their column: 200,000 lines of 40 columns are 8 MB.
"""

import csv
import hashlib
import io
import itertools
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.build.keys import name_hash
from shard_tool.sources.protocol import IMAGE_EXTENSIONS

Lines = Iterator[tuple[int, list[str]]]
"""The number of each line that is not blank, from 1, and its cells."""


@dataclass(frozen=True)
class Parsed:
    """The content of one table; its first column, the photos' names, is kept as hashes."""

    where: str
    """Path of the file, for messages."""
    sha256: str
    """Of the file."""
    columns: tuple[str, ...]
    """Names of the columns after the first; empty names where the table has no line of them."""
    names: NDArray[np.uint64]
    """[rows] `name_hash` of each photo's name."""
    stems: NDArray[np.uint64]
    """[rows] The same without the extension."""
    lines: NDArray[np.uint32]
    """[rows] The line of each row in the file."""
    codes: NDArray[np.integer[Any]]
    """[rows, columns] Numbers into `words`."""
    words: tuple[tuple[str, ...], ...]
    """The different cells of each column."""

    def lower_words(self, column: int) -> set[str]:
        """The different cells of one column, in small letters."""
        return {word.lower() for word in self.words[column]}

    def translate(self, column: int, meanings: Mapping[str, int]) -> NDArray[np.int8]:
        """[rows] What the cells of one column mean, in any case of letters; `UserError` names a cell of no meaning."""
        known = np.array([meanings.get(word.lower(), -1) for word in self.words[column]], np.int8)
        codes = self.codes[:, column]
        values: NDArray[np.int8] = known[codes]
        unknown = np.flatnonzero(values < 0)
        if len(unknown):
            word, name = self.words[column][codes[unknown[0]]], self.columns[column]
            raise UserError(
                f"{self.where} must hold {', '.join(meanings)} only{f' in column {name!r}' if name else ''}; "
                f"got {word!r} in line {self.lines[unknown[0]]}. Repair or remove that line, or leave the column out."
            )
        return values


def parse_table(file: BinaryIO, where: str, is_photo: Callable[[str], bool]) -> Parsed:
    """Read a whole table; a first line whose name `is_photo` is no line of column names.

    Raises `UserError` where the table is malformed, with the line.
    """
    hashed = _HashingReader(file)
    text = io.TextIOWrapper(io.BufferedReader(hashed), "utf-8-sig", newline="")
    try:
        lines = _cells(text, where)
        header, lines, count = _header(lines, where, is_photo)
        names, stems, numbers, codes, words = _rows(lines, header, where)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} must be UTF-8 text; got {error.reason}. Save it as UTF-8 csv.") from None
    if count is not None and count != len(names):
        raise UserError(
            f"{where} must have as many lines of photos as its first line says, {count:,}; got {len(names):,}. "
            "Copy the file again, or correct that number."
        )
    return Parsed(where, hashed.digest.hexdigest(), tuple(header), names, stems, numbers, codes, words)


def clean_name(cell: str) -> str:
    """A photo's name as a listing has it: `.\\a\\1.jpg` is `a/1.jpg`."""
    return cell.strip().replace("\\", "/").removeprefix("./")


def stem_of(name: str) -> str:
    """`name` without the extension of an image file, if it has one; other dots belong to the name."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in IMAGE_EXTENSIONS else name


def _cells(lines: Iterator[str], where: str) -> Lines:
    """All lines, cut where the first one shows it: at commas, tabs or semicolons, else at blanks."""
    head = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    every = itertools.chain(head, lines)
    first = head[-1] if head else ""
    between = max(",\t;", key=first.count)
    if between not in first:
        return ((number, line.split()) for number, line in enumerate(every, 1) if line.strip())
    return _csv_cells(csv.reader(every, delimiter=between, skipinitialspace=True), where)


def _csv_cells(reader: "csv._reader", where: str) -> Lines:  # type: ignore[name-defined]
    try:
        yield from ((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        raise UserError(f"{where} must be csv; got '{error}' in line {reader.line_num}. Repair that line.") from None


def _header(lines: Lines, where: str, is_photo: Callable[[str], bool]) -> tuple[list[str], Lines, int | None]:
    """The names of the columns after the first, the lines of photos, and how many the table says there are."""
    number, first = next(lines, (1, []))
    if len(first) == 1 and first[0].strip().isdecimal():  # CelebA's own lists; no name stands over the first column.
        number, names = next(lines, (number, []))
        return _distinct(["", *names], number, where), lines, int(first[0])
    if len(first) < 2:
        raise UserError(f"{where} must begin with a line of column names; got {first}. Repair it or move it away.")
    if not is_photo(clean_name(first[0])):
        return _distinct(first, number, where), lines, None
    if len(first) > 2:
        raise UserError(
            f"{where} must begin with a line of column names; got the photo '{first[0].strip()}' in line {number}. "
            "Write one name for each column above it."
        )
    return [""], itertools.chain([(number, first)], lines), None


def _distinct(names: list[str], line: int, where: str) -> list[str]:
    names = [name.strip() for name in names]
    if len(set(names)) < len(names):
        raise UserError(
            f"{where} must name each column once; got a name twice in line {line}. Repair it or move it away."
        )
    return names[1:]


def _rows(
    lines: Lines, header: list[str], where: str
) -> tuple[
    NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32], NDArray[np.integer[Any]], tuple[tuple[str, ...], ...]
]:
    names, stems, numbers = array("Q"), array("Q"), array("I")
    columns = [_Codes() for _ in header]
    codes = array("B")
    for number, row in lines:
        if len(row) != len(header) + 1:
            raise UserError(
                f"{where} must have {len(header) + 1} columns in every line; got {len(row)} in line {number}. "
                "Repair or remove that line."
            )
        name = clean_name(row[0])
        coded = [column[word] for column, word in zip(columns, row[1:], strict=True)]
        try:
            codes.extend(coded)
        except OverflowError:  # More than 256 different words in a column: classes, and mostly the only column.
            del codes[len(names) * len(header) :]
            codes = array("i", codes)
            codes.extend(coded)
        names.append(name_hash(name.encode()))
        stems.append(name_hash(stem_of(name).encode()))
        numbers.append(number)
    return (
        np.frombuffer(names, np.uint64),
        np.frombuffer(stems, np.uint64),
        np.frombuffer(numbers, np.uint32),
        np.frombuffer(codes, codes.typecode).reshape(len(names), len(header)),
        tuple(tuple(word.strip() for word in column) for column in columns),
    )


class _Codes(dict[str, int]):
    """Numbers the different words of a column as they come."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class _HashingReader(io.RawIOBase):
    """Passes a file on and hashes what went through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        self.digest.update(data)
        buffer[: len(data)] = data
        return len(data)

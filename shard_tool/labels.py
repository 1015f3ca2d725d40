"""Attributes and splits from CelebA's tables, matched to the photos of a listing.

    list_attr_celeba.csv      image_id,5_o_Clock_Shadow,...    1, and -1 or 0
    list_eval_partition.csv   image_id,partition               0 train, 1 val, 2 test

A name in a table is a file name, or a path relative to the source. A photo that a table does not name is left out with
a reason: readers of WebDataset refuse sets where only some samples have a field, and a guessed split is no split.
"""

import csv
import hashlib
import io
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.format import SPLITS
from shard_tool.keys import name_hash
from shard_tool.source import Listing, SideFile, Source

ATTRIBUTES_FILE: Final = "list_attr_celeba.csv"
PARTITION_FILE: Final = "list_eval_partition.csv"
NOT_LISTED = -1


@dataclass(frozen=True)
class Table:
    """One table, matched to a listing."""

    file_name: str
    where: str
    """Path of the file, for messages."""
    sha256: str
    """Of the file."""
    columns: tuple[str, ...]
    values: NDArray[np.int8]
    """[rows, columns]"""
    row_of: NDArray[np.int32]
    """[photos] The row of each photo, or `NOT_LISTED`."""

    @property
    def missing(self) -> int:
        """Photos that the table does not name."""
        return int((self.row_of == NOT_LISTED).sum())


def find_attributes(source: Source) -> Table | None:
    """The 0/1 attributes of the photos, where a table has them; `UserError` where it is malformed."""
    table = _find(source, ATTRIBUTES_FILE, {"1": 1, "0": 0, "-1": 0})
    if table is not None and not table.columns:
        raise UserError(f"{table.where} must have a column for each attribute; got none. Add some or move it away.")
    return table


def find_partition(source: Source) -> Table | None:
    """The split of each photo as a number into `SPLITS`, where a table has it; `UserError` where it is malformed."""
    table = _find(source, PARTITION_FILE, {str(number): number for number in range(len(SPLITS))})
    if table is not None and len(table.columns) != 1:
        raise UserError(
            f"{table.where} must have two columns, the name and the partition; got {len(table.columns) + 1}. "
            "Repair it or move it away."
        )
    return table


def _find(source: Source, file_name: str, meanings: dict[str, int]) -> Table | None:
    candidates = source.side_files(file_name)
    inside = [candidate for candidate in candidates if candidate.inside]
    if len(inside) > 1:
        raise UserError(
            f"a source must hold one {file_name}; got {', '.join(file.where for file in inside)}. "
            "Move the others away, or make shards of one folder at a time."
        )
    for candidate in candidates:
        table = _match(candidate, file_name, meanings, source.listing)
        if table.missing < len(source.listing):
            return table
        if candidate.inside:
            raise UserError(
                f"{candidate.where} must name the photos beside it; got none of their names "
                f"(one is '{source.listing[0].decode(errors='replace')}'). Correct the names or move the file away."
            )
        # A table in some folder above, about other photos.
    return None


def _match(file: SideFile, file_name: str, meanings: dict[str, int], listing: Listing) -> Table:
    with file.open() as binary:
        hashed = _HashingReader(binary)
        text = io.TextIOWrapper(io.BufferedReader(hashed), "utf-8-sig", newline="")
        try:
            columns, names, values = _parse(text, file.where, meanings)
        except UnicodeDecodeError as error:
            raise UserError(f"{file.where} must be UTF-8 text; got {error.reason}. Save it as UTF-8 csv.") from None
    row_of = _rows(names, listing)
    return Table(file_name, file.where, hashed.digest.hexdigest(), columns, values, row_of)


def _parse(
    lines: Iterable[str], where: str, meanings: dict[str, int]
) -> tuple[tuple[str, ...], NDArray[np.uint64], NDArray[np.int8]]:
    """Column names, the hash of each row's photo name, and the values [rows, columns]."""
    reader = csv.reader(lines, skipinitialspace=True)
    rows = _rows_of(reader, where)
    header = [name.strip() for name in next(rows, [])]
    if len(header) < 2:
        raise UserError(f"{where} must begin with a line of column names; got {header}. Repair it or move it away.")
    if len(set(header)) < len(header):
        raise UserError(f"{where} must name each column once; got a name twice in line 1. Repair it or move it away.")
    names, values = array("Q"), array("b")
    for row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{where} must have {len(header)} columns in every line; got {len(row)} in line {reader.line_num}. "
                "Repair or remove that line."
            )
        names.append(name_hash(row[0].strip().encode()))
        try:
            values.extend([meanings[value] for value in row[1:]])
        except KeyError as error:
            raise UserError(
                f"{where} must hold {', '.join(meanings)} only; got {error} in line {reader.line_num}. "
                "Repair or remove that line."
            ) from None
    matrix = np.frombuffer(values, np.int8).reshape(len(names), len(header) - 1)
    return tuple(header[1:]), np.frombuffer(names, np.uint64), matrix


def _rows_of(reader: "csv._reader", where: str) -> Iterator[list[str]]:  # type: ignore[name-defined]
    try:
        yield from (row for row in reader if row)
    except csv.Error as error:
        raise UserError(f"{where} must be csv; got '{error}' in line {reader.line_num}. Repair that line.") from None


def _rows(names: NDArray[np.uint64], listing: Listing) -> NDArray[np.int32]:
    """[photos] Each photo's row: by its path if that is named, else by its file name. The last of equal names wins."""
    if not len(names):
        return np.full(len(listing), NOT_LISTED, np.int32)
    order = np.argsort(names, kind="stable")
    ordered = names[order]
    found = np.full(len(listing), NOT_LISTED, np.int32)
    for whole_path in (False, True):
        wanted = (path if whole_path else path.rpartition(b"/")[2] for path in listing)
        hashes = np.fromiter(map(name_hash, wanted), np.uint64, len(listing))
        place = np.maximum(np.searchsorted(ordered, hashes, side="right").astype(np.int64) - 1, 0)
        found = np.where(ordered[place] == hashes, order[place], found).astype(np.int32)
    return found


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

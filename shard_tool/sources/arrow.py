"""A dataset that `datasets` has saved with `save_to_disk`: arrow files, whose images are read in place.

The record batches are looked through once, for where each image lies in its file; after that it is one `pread` away.
"""

import dataclasses
import json
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.build.keys import name_hash
from shard_tool.sources.columns import Columns, Facts, pyarrow_of, row_names, stored_path
from shard_tool.sources.listing import Listing, Numbers, compact
from shard_tool.sources.protocol import (
    Access,
    InputError,
    Known,
    SideFile,
    Source,
    Wanted,
    chunks_of_files,
    one_by_one,
    split_in_name,
)
from shard_tool.sources.ranges import LocalRanges, read_whole


@dataclass(frozen=True)
class ArrowSource:
    """All rows of one arrow file."""

    file: LocalRanges
    name: str
    listing: Listing
    facts: Facts
    known: Known
    offsets: Numbers
    """[inputs] Of each image in the file."""
    origin: dict[str, str] = field(default_factory=dict)
    ignored = 0
    access = Access.ANY_ORDER

    @classmethod
    def open(cls, file: LocalRanges, name: str, wanted: Wanted, base: str = "") -> Self:
        """List the rows; `base` names the file in their paths. Raises `UserError`."""
        arrow = pyarrow_of(file.where)
        offsets, sizes = array("Q"), array("Q")
        names = _Names()
        try:
            with arrow.memory_map(file.where) as mapped:
                start = mapped.read_buffer().address  # Of the map: nothing is read yet.
                mapped.seek(0)
                reader = _open_batches(arrow, mapped)
                columns = Columns.of(reader.schema, wanted, file.where)
                facts = Facts(columns, file.where)
                for batch in reader:
                    _locate(batch.column(columns.image), start, file, offsets, sizes)
                    facts.add(batch)
                    names.add(batch, columns)
        except (arrow.ArrowException, OSError) as error:
            raise UserError(f"{file.where} must be a whole arrow file; got '{error}'. Copy it again.") from error
        if not sizes:
            raise UserError(f"{file.where} must have rows; got none. Choose another file.")
        if not any(sizes):
            raise UserError(
                f"{file.where} must hold its images; got their paths only. Name the folder that the photos are in."
            )
        paths = names.distinct() or row_names(
            base or os.path.basename(file.where), 0, len(sizes), len(str(len(sizes) - 1))
        )
        listing = Listing(zip(paths, sizes, strict=True))
        return cls(file, name, listing, facts, facts.known(), compact(offsets), columns.origin)

    def chunks(self) -> NDArray[np.int64]:
        """Runs of rows."""
        return chunks_of_files(len(self.listing))

    def read(self, item: int) -> bytes:
        """One image."""
        return read_whole(self.file, int(self.offsets[item]), int(self.listing.sizes[item]))

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """Row after row."""
        return one_by_one(self.read, items)

    def carried(self, item: int) -> dict[str, object]:
        """The other columns of the row."""
        return self.facts.carried(item)

    def side_files(self, file_name: str) -> list[SideFile]:
        """None."""
        return []


def open_dataset_folder(folder: Path, wanted: Wanted) -> list[Source]:
    """The arrow files of a folder that `save_to_disk` wrote, all splits of it or the one that is wanted."""
    splits = [""]
    if (folder / "dataset_dict.json").exists():
        splits = _json(folder / "dataset_dict.json")["splits"]
    if wanted.split is not None and wanted.split not in splits:
        raise UserError(
            f"--split must be one of the dataset's, {', '.join(filter(None, splits)) or 'which has none'}; "
            f"got '{wanted.split}'. Choose one of them, or leave it out."
        )
    chosen = [wanted.split] if wanted.split else splits
    found: list[Source] = []
    for split in chosen:
        for row in _json(folder / split / "state.json")["_data_files"]:
            path = folder / split / row["filename"]
            base = path.relative_to(folder).as_posix()
            part = ArrowSource.open(LocalRanges(str(path)), folder.resolve().name, wanted, base)
            number = split_in_name(split)
            if len(chosen) > 1 and number >= 0:
                splits_of = np.full(len(part.listing), number, np.int8)
                part = dataclasses.replace(part, known=dataclasses.replace(part.known, split_of=splits_of))
            found.append(part)
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be JSON of a saved dataset; got '{error}'. Save the dataset again.") from error


def _open_batches(arrow: Any, mapped: Any) -> Any:
    """The record batches of the streaming format, or of the one with a footer."""
    try:
        return arrow.ipc.open_stream(mapped)
    except arrow.ArrowInvalid:
        reader = arrow.ipc.open_file(mapped)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        return arrow.RecordBatchReader.from_batches(reader.schema, batches)


def _locate(column: Any, start: int, file: LocalRanges, offsets: "array[int]", sizes: "array[int]") -> None:
    """Add where the images of one batch lie, from the addresses at which the mapped file shows them."""
    images = column.field("bytes") if str(column.type).startswith("struct<") else column
    wide = str(images.type) == "large_binary"
    _, ends_buffer, data = images.buffers()
    first = images.offset
    ends = np.frombuffer(ends_buffer, np.int64 if wide else np.int32)[first : first + len(images) + 1].astype(np.int64)
    place = data.address - start if data is not None else 0
    if not 0 <= place <= file.size:
        raise UserError(f"{file.where} must be uncompressed; got a compressed one. Save the dataset again.")
    offsets.extend((ends[:-1] + place).tolist())
    sizes.extend(np.diff(ends).tolist())


class _Names:
    """The paths that came with the images, as long as every image has its own."""

    def __init__(self) -> None:
        self._listing: list[bytes] | None = []
        self._hashes = array("Q")

    def add(self, batch: Any, columns: Columns) -> None:
        if columns.path_column is None:
            self._listing = None
        if self._listing is None:
            return
        for path in batch.column(columns.image).field("path").to_pylist():
            if not path:
                self._listing = None
                return
            self._listing.append(stored_path(path))
            self._hashes.append(name_hash(self._listing[-1]))

    def distinct(self) -> Iterator[bytes] | None:
        if self._listing is None or len(np.unique(np.frombuffer(self._hashes, np.uint64))) < len(self._hashes):
            return None
        return iter(self._listing)

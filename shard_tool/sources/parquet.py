"""One parquet file with a column of encoded images. Its row groups are the chunks; a few rows are in memory at a time.

A size is known only of a row group: that of a row is its share.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.build.keys import name_hash
from shard_tool.sources.columns import Columns, Facts, pyarrow_of, row_names, stored_path
from shard_tool.sources.listing import Listing
from shard_tool.sources.protocol import Access, InputError, Known, SideFile, Wanted
from shard_tool.sources.ranges import LocalRanges, Ranges, RangesFile

BATCH_ROWS = 16
"""Images that are unpacked at once."""
_FACT_ROWS = 4096
_BUFFER_BYTES = 1 << 20
_REMOTE_BUFFER_BYTES = 8 << 20


@dataclass(frozen=True)
class ParquetSource:
    """All rows of one parquet file."""

    file: Ranges
    name: str
    listing: Listing
    columns: Columns
    facts: Facts
    known: Known
    starts: NDArray[np.int64]
    """[row groups + 1] The first row of each, then the number of rows."""
    origin: dict[str, str] = field(default_factory=dict)
    ignored = 0
    access = Access.BY_CHUNK

    @classmethod
    def open(cls, file: Ranges, name: str, wanted: Wanted) -> Self:
        """List the rows; of the columns, all but the images are read. Raises `UserError`."""
        arrow = pyarrow_of(file.where)
        try:
            with _opened(file) as parquet:
                columns = Columns.of(parquet.schema_arrow, wanted, file.where)
                facts = Facts(columns, file.where)
                if columns.facts:
                    for batch in parquet.iter_batches(_FACT_ROWS, columns=columns.facts, use_threads=False):
                        facts.add(batch)
                starts, shares = _row_groups(parquet.metadata, columns)
                if not starts[-1]:
                    raise UserError(f"{file.where} must have rows; got none. Choose another file.")
                listing = _stored_names(parquet, columns, starts, shares) or _numbered(file.where, starts, shares)
        except arrow.ArrowException as error:
            raise UserError(f"{file.where} must be whole parquet; got '{error}'. Download or copy it again.") from error
        return cls(file, name, listing, columns, facts, facts.known(), starts, columns.origin)

    def chunks(self) -> NDArray[np.int64]:
        """The row groups."""
        return np.unique(self.starts)

    def read(self, item: int) -> bytes:
        """One image, at the cost of those before it in its row group."""
        return next(self._images([item]))

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """Row group after row group."""
        return self._images(items)

    def carried(self, item: int) -> dict[str, object]:
        """The other columns of the row."""
        return self.facts.carried(item)

    def side_files(self, file_name: str) -> list[SideFile]:
        """None."""
        return []

    def _images(self, items: Iterable[int]) -> Iterator[bytes]:
        arrow = pyarrow_of(self.file.where)
        wanted = iter(items)
        item = next(wanted, None)
        try:
            with _opened(self.file) as parquet:
                while item is not None:
                    group = int(np.searchsorted(self.starts, item, side="right")) - 1
                    row = int(self.starts[group])
                    for batch in parquet.iter_batches(
                        BATCH_ROWS, row_groups=[group], columns=[self.columns.bytes_column], use_threads=False
                    ):
                        images = _images_of(batch.column(0))
                        while item is not None and item < row + len(images):
                            yield images[item - row].as_py() or b""
                            item = next(wanted, None)
                        row += len(images)
                        if item is None or item >= self.starts[group + 1]:
                            break
        except arrow.ArrowException as error:
            raise OSError(f"{self.file.where}: {error}") from error


def _images_of(column: Any) -> Any:
    return column.field("bytes") if str(column.type).startswith("struct<") else column


def _opened(file: Ranges) -> Any:
    """The file as pyarrow's `ParquetFile`, which reads it buffer by buffer."""
    arrow = pyarrow_of(file.where)
    if isinstance(file, LocalRanges):
        return arrow.parquet.ParquetFile(file.where, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    return arrow.parquet.ParquetFile(RangesFile(file), buffer_size=_REMOTE_BUFFER_BYTES, pre_buffer=False)


def _row_groups(metadata: Any, columns: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First rows, and the bytes of one row, of each row group."""
    rows, shares = [], []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(leaf) for leaf in range(group.num_columns))
        size = next(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema == columns.bytes_column)
        rows.append(group.num_rows)
        shares.append(size // max(1, group.num_rows))
    return np.cumsum([0, *rows]), np.array(shares, np.int64)


def _numbered(where: str, starts: NDArray[np.int64], shares: NDArray[np.int64]) -> Listing:
    """Rows by the name of their file and their number."""
    rows = int(starts[-1])
    base = where.partition("?")[0].rstrip("/").rpartition("/")[2]
    names = row_names(base, 0, rows, len(str(rows - 1)))
    return Listing(zip(names, np.repeat(shares, np.diff(starts)).tolist(), strict=True))


def _stored_names(
    parquet: Any, columns: Columns, starts: NDArray[np.int64], shares: NDArray[np.int64]
) -> Listing | None:
    """Rows by the path that came with each image, where every one has its own; else None."""
    if columns.path_column is None:
        return None
    hashes = array("Q")

    def paths() -> Iterator[bytes]:
        for batch in parquet.iter_batches(_FACT_ROWS, columns=[columns.path_column], use_threads=False):
            for path in batch.column(0).field("path").to_pylist():
                if not path:
                    raise LookupError
                stored = stored_path(path)
                hashes.append(name_hash(stored))
                yield stored

    try:
        listing = Listing(zip(paths(), np.repeat(shares, np.diff(starts)).tolist(), strict=True))
    except LookupError:
        return None
    return listing if len(np.unique(np.frombuffer(hashes, np.uint64))) == len(hashes) else None

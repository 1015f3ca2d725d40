"""Tables with a column of encoded images: parquet files, and the arrow files that `datasets` saves with `save_to_disk`.

A parquet file is read a row group at a time, a few rows of it in memory; a size is known only of a row group, and that
of a row is its share. The batches of an arrow file are looked through once, for where each image lies; after that it
is one `pread` away. (`datasets` itself reads them too, but takes 0.9 s and 140 MB to import.)
"""

import contextlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, describe_os_error
from shard_tool.sources.columns import Columns, Facts, image_columns, pyarrow_of
from shard_tool.sources.listing import Listing, Numbers, compact, name_hash
from shard_tool.sources.protocol import (
    Access,
    InAnyOrder,
    InputError,
    Known,
    SideFile,
    Sieve,
    Wanted,
    split_in_name,
)
from shard_tool.sources.ranges import LocalRanges, Ranges, RangesFile, open_ranges, read_whole

Batches = Iterable[tuple[Any, list[int]]]

BATCH_ROWS = 16
"""Images that are unpacked at once."""
_FACT_ROWS = 4096
_BUFFER_BYTES = 1 << 20
_REMOTE_BUFFER_BYTES = 8 << 20
NO_IMAGE = "no image in the row"
"""Its bytes are null or empty, whether there is a path or not."""


@dataclass(frozen=True)
class _Table:
    """What all tables are: rows that have a name, an image and facts."""

    file: Ranges
    name: str
    listing: Listing
    rows: Numbers
    """[inputs] The row of each in the file."""
    facts: Facts
    known: Known
    ignored: Mapping[str, int]
    origin: dict[str, str]

    @classmethod
    def _list(
        cls, file: Ranges, name: str, base: str, wanted: Wanted, columns: Columns, batches: Batches, **places: Any
    ) -> Self:
        """The rows of `batches`, which come with the sizes of their images; `base` names the file in their paths."""
        facts = Facts(columns, file.where)

        def entries() -> Iterator[tuple[bytes, int]]:
            for batch, sizes in batches:
                facts.add(batch)
                paths = [None] * len(sizes)
                if columns.path_leaf:
                    paths = batch.column(columns.image).field("path").to_pylist()
                yield from zip((_stored_path(path) for path in paths), sizes, strict=True)

        listing = Listing(entries())
        if not len(listing):
            raise UserError(f"{file.where} must have rows; got none. Choose another file.")
        if not listing.sizes.any():
            raise UserError(
                f"{file.where} must hold its images; got their paths only. Name the folder that the photos are in."
            )
        if not (columns.path_leaf and _are_names(listing)):
            names = (f"{base}#{row:0{len(str(len(listing) - 1))}}".encode() for row in range(len(listing)))
            listing = Listing(zip(names, listing.sizes.tolist(), strict=True))
        rows, sieve = np.arange(len(listing)), Sieve(wanted)
        if wanted.include or wanted.exclude:
            rows = np.flatnonzero([sieve.wants(path.decode()) for path in listing])
            sieve.ignored["excluded"] = len(listing) - len(rows)
            sieve.require_photos(len(rows), file.where)
            listing = Listing((listing[row], int(listing.sizes[row])) for row in rows.tolist())
        origin = {"image_column": columns.image}  # From another column it would be another set.
        known = facts.known(rows)
        return cls(file, name, listing, compact(rows.astype(np.uint64)), facts, known, +sieve.ignored, origin, **places)

    def carried(self, item: int) -> dict[str, object]:
        """The other columns of the row."""
        return {"original": self.facts.notes[int(self.rows[item])]} if self.facts.columns.carried else {}

    def side_files(self, file_name: str) -> list[SideFile]:
        """None."""
        return []


@dataclass(frozen=True)
class ParquetSource(_Table):
    """All rows of one parquet file."""

    starts: NDArray[np.int64] = field(kw_only=True)
    """[row groups + 1] The first row of each, then the number of rows."""
    access = Access.BY_CHUNK

    @classmethod
    def open(cls, file: Ranges, name: str, wanted: Wanted) -> Self:
        """List the rows; all columns but that of the images are read. Raises `UserError`."""
        with _whole(file.where, "parquet"), _opened(file) as parquet:
            columns = Columns.of(parquet.schema_arrow, wanted, file.where)
            # An image is among the first rows, or nulls are read, which takes no time. It shows, too, that the column
            # can be read: asking for the size of an encrypted one would end the process.
            images = _images(parquet, columns, range(parquet.num_row_groups))
            empty = all(batch.null_count == len(batch) for batch in images)
            leaves = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
            leaf = leaves.index(columns.bytes_leaf)
            groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
            sizes = (group.column(leaf).total_compressed_size // max(1, group.num_rows) for group in groups)
            shares = [0 if empty else max(1, size) for size in sizes]
            read = [*columns.facts, *([columns.path_leaf] if columns.path_leaf else [])]
            batches = (
                (batch, [share] * len(batch))
                for number, share in enumerate(shares)
                for batch in parquet.iter_batches(_FACT_ROWS, row_groups=[number], columns=read, use_threads=False)
            )
            base = file.where.partition("?")[0].rpartition("/")[2]
            starts = np.cumsum([0, *(group.num_rows for group in groups)])
            return cls._list(file, name, base, wanted, columns, batches, starts=starts)

    def chunks(self) -> NDArray[np.int64]:
        """The row groups."""
        return np.unique(np.searchsorted(self.rows, self.starts))

    def read(self, item: int) -> bytes:
        """One image, at the cost of those before it in its row group."""
        data = next(self.read_through([item]))
        if isinstance(data, InputError):
            raise data
        return data

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """Row group after row group; what is damaged in one is not read on."""
        arrow = pyarrow_of(self.file.where)
        wanted = iter(items)
        item = next(wanted, None)
        try:
            parquet = _opened(self.file)
        except arrow.ArrowException as error:  # It was whole when it was listed.
            raise OSError(f"{self.file.where}: {error}") from error
        with parquet:
            while item is not None:
                group = int(np.searchsorted(self.starts, self.rows[item], side="right")) - 1
                row, end = self.starts[group : group + 2].tolist()
                damage = "fewer rows than it says"
                try:
                    for images in _images(parquet, self.facts.columns, [group]):
                        while item is not None and self.rows[item] < row + len(images):
                            yield images[int(self.rows[item]) - row].as_py() or InputError(NO_IMAGE)
                            item = next(wanted, None)
                        row += len(images)
                        if item is None or self.rows[item] >= end:
                            break
                except (arrow.ArrowException, OSError) as error:
                    if isinstance(error, MemoryError) or getattr(error, "errno", None):
                        raise OSError(f"{self.file.where}: {error}") from error
                    self.file.read(self.file.size - 1, 1)  # Raises if it is no longer the file that was listed.
                    damage = str(error)
                while item is not None and self.rows[item] < end:
                    yield InputError("damaged in the table", damage)
                    item = next(wanted, None)


@dataclass(frozen=True)
class ArrowSource(_Table, InAnyOrder):
    """All rows of one arrow file."""

    offsets: "array[int]" = field(kw_only=True)
    """[rows] Of each image in the file."""

    @classmethod
    def open(cls, file: LocalRanges, name: str, wanted: Wanted, base: str = "") -> Self:
        """List the rows; `base` names the file in their paths. Raises `UserError`."""
        arrow = pyarrow_of(file.where)
        offsets = array("Q")
        with _whole(file.where, "arrow"), arrow.memory_map(file.where) as mapped:
            start = mapped.read_buffer().address  # Of the map: nothing is read yet.
            mapped.seek(0)
            reader = _open_batches(arrow, mapped, file)
            columns = Columns.of(reader.schema, wanted, file.where)

            def batches() -> Batches:
                for batch in reader:
                    batch.validate(full=True)  # Of the images, it looks at their offsets only.
                    places, sizes = _locate(batch, columns, start, file)
                    offsets.extend(places)
                    yield batch, sizes

            base = base or os.path.basename(file.where)
            return cls._list(file, name, base, wanted, columns, batches(), offsets=offsets)

    def read(self, item: int) -> bytes:
        """One image."""
        size = int(self.listing.sizes[item])
        if not size:
            raise InputError(NO_IMAGE)
        return read_whole(self.file, self.offsets[self.rows[item]], size)


def saved_files(folder: Path, wanted: Wanted) -> list[tuple[int, str]]:
    """The arrow files of a folder that `save_to_disk` wrote, each with the number of its split or -1.

    Raises `UserError`.
    """
    splits = [""]
    if (folder / "dataset_dict.json").exists():
        splits = _names_in(folder / "dataset_dict.json", "splits")
    if wanted.split is not None and wanted.split not in splits:
        raise UserError(
            f"--split must be one of the dataset's, {', '.join(filter(None, splits)) or 'which has none'}; "
            f"got '{wanted.split}'. Choose one of them, or leave it out."
        )
    chosen = [wanted.split] if wanted.split else splits
    found = list[tuple[int, str]]()
    for split in chosen:
        for name in _names_in(folder / split / "state.json"):
            path = folder / split / name
            if not path.is_file():
                base = path.relative_to(folder)
                raise UserError(f"{folder} must have all files of its dataset; got no {base}. Save the dataset again.")
            found.append((split_in_name(split) if len(chosen) > 1 else -1, str(path)))
    if not found:
        raise UserError(f"{folder} must be a saved dataset; got no file of it. Choose another folder.")
    return found


def holds_images(where: str) -> bool:
    """Whether the parquet file at a path or URL has a column of encoded images; raises `UserError`."""
    with _whole(where, "parquet"), _opened(open_ranges(where)) as parquet:
        return bool(image_columns(parquet.schema_arrow))


@contextlib.contextmanager
def _whole(where: str, kind: str) -> Iterator[None]:
    """Raise `UserError` where Arrow cannot read the file."""
    arrow = pyarrow_of(where)
    try:
        yield
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # Arrow says most of its own as OSError, without a number.
            raise describe_os_error(error, f"reading {where}") from error
        text = " ".join(str(error).split())
        remedy = "Download or copy it again"
        if "crypt" in text or "codec" in text:
            remedy = "Write it again without encryption, in a common compression"
        raise UserError(
            f"{where} must be a whole {kind} file that pyarrow can read; got '{text}'. {remedy}."
        ) from error


def _opened(file: Ranges) -> Any:
    return pyarrow_of(file.where).parquet.ParquetFile(
        RangesFile(file),
        buffer_size=_BUFFER_BYTES if isinstance(file, LocalRanges) else _REMOTE_BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
    )


def _images(parquet: Any, columns: Columns, groups: Iterable[int]) -> Iterator[Any]:
    leaf = [columns.bytes_leaf]
    for batch in parquet.iter_batches(BATCH_ROWS, row_groups=list(groups), columns=leaf, use_threads=False):
        yield columns.images(batch)


def _open_batches(arrow: Any, mapped: Any, file: LocalRanges) -> Any:
    """The record batches of the streaming format, or of the one with a footer."""
    try:
        reader = arrow.ipc.open_stream(mapped)
    except arrow.ArrowInvalid:
        reader = arrow.ipc.open_file(mapped)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        return arrow.RecordBatchReader.from_batches(reader.schema, batches)
    if file.read(file.size - 8, 8) != b"\xff\xff\xff\xff\0\0\0\0":  # Cut off between two batches, it reads as whole.
        raise arrow.ArrowInvalid("a stream without an end")
    return reader


def _locate(batch: Any, columns: Columns, start: int, file: LocalRanges) -> tuple[list[int], list[int]]:
    """Where the images of one batch lie, and their sizes, from the addresses at which the mapped file shows them."""
    images = columns.images(batch)
    if images.null_count == len(images):
        return [0] * len(images), [0] * len(images)
    _, ends_buffer, data = images.buffers()
    kind = np.int64 if str(images.type) == "large_binary" else np.int32
    ends = np.frombuffer(ends_buffer, kind)[images.offset :][: len(images) + 1].astype(np.int64)
    place = data.address - start if data is not None else 0
    if not 0 <= place <= file.size:
        raise UserError(f"{file.where} must be uncompressed; got a compressed one. Save it again, or as parquet.")
    sizes = np.diff(ends)
    if images.null_count:  # Else not asked: it loads pyarrow.compute.
        sizes *= np.array(images.is_valid().to_pylist())
    return (ends[:-1] + place).tolist(), sizes.tolist()


def _names_in(path: Path, key: str = "_data_files") -> list[str]:
    try:
        content = json.loads(path.read_bytes())
        names = [entry["filename"] if isinstance(entry, dict) else entry for entry in content[key]]
        for name in names:
            if not isinstance(name, str) or name in ("", ".", "..") or os.path.basename(name) != name:
                raise ValueError(f"{name!r} in {key}")
        if content.get("_indices_files") or content.get("_indices_data_files"):
            raise ValueError("a selection of rows, which flatten_indices() carries out")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} must be JSON of a saved dataset; got '{error}'. Save the dataset again.") from error
    return names


def _are_names(paths: Listing) -> bool:
    """Whether every row has a path, and its own."""
    hashes = np.unique(np.fromiter((name_hash(path) for path in paths), np.uint64, len(paths)))
    return len(hashes) == len(paths) and name_hash(b"") not in hashes


def _stored_path(path: str | None) -> bytes:
    """A path that came with an image; of an absolute one, which says something of somebody's disk, the name."""
    path = (path or "").replace("\\", "/").replace("\0", "_")
    return (path.rpartition("/")[2] if path.startswith("/") or path[1:3] == ":/" else path).encode()

"""The tar of a shard: written with constant metadata, and read back where its index is missing.

A shard is USTAR without a clock or an owner in it: the same samples give the same bytes on every machine.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from pipeline.errors import ShardError
from pipeline.files import write_atomic
from pipeline.format import RECORD, SUFFIX, Index, Shard

BLOCK = tarfile.BLOCKSIZE
IMAGE_SUFFIXES = (*SUFFIX.values(), "jpeg")
"""Extensions, in lower case, of the members that are taken for images."""


class ShardWriter:
    """Write one shard and its index; a context manager.

    Both appear under their names, synced, when `close()` succeeds; an exception inside the `with` block leaves
    nothing behind. A temporary file that a crash left is overwritten by the next writer of that name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._partial = folder / f".{name}.tar.partial"
        self._file: BinaryIO | None = open(self._partial, "wb", buffering=1 << 16)  # noqa: SIM115
        self._sha256 = hashlib.sha256()
        self._offset = 0
        self._records: list[tuple[int, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @property
    def samples(self) -> int:
        """Samples added so far."""
        return len(self._records)

    @property
    def content_bytes(self) -> int:
        """Bytes written so far, without the end of the tar."""
        return self._offset

    def add(self, key: str, image: bytes, suffix: str, meta: bytes = b"") -> None:
        """Append one sample: `<key>.<suffix>` and, where `meta` is not empty, `<key>.json`."""
        image_offset = self._member(f"{key}.{suffix}", image)
        json_offset = self._member(f"{key}.json", meta) if meta else 0
        self._records.append((image_offset, json_offset, len(image), zlib.crc32(image), len(meta), zlib.crc32(meta)))

    def close(self) -> Shard | None:
        """Finish the shard and return its description; None, and no file, where it has no sample."""
        if not self._records:
            self.abort()
            return None
        assert self._file is not None, "the writer is closed"
        self._write(bytes(tar_bytes(self._offset) - self._offset))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        index = Index(np.array(self._records, RECORD), self._offset, self._sha256.hexdigest())
        # The tar goes first: an index without its tar would be the lie, a tar without its index is rebuilt.
        os.replace(self._partial, self.folder / f"{self.name}.tar")
        write_atomic(self.folder / f"{self.name}.index", index.to_bytes())
        return Shard(self.name, len(self._records), self._offset, index.tar_sha256)

    def abort(self) -> None:
        """Drop the unfinished shard."""
        if self._file is not None:
            # On a full disk closing fails as writing did, and the file must go all the same.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        self._partial.unlink(missing_ok=True)

    def _member(self, name: str, data: bytes) -> int:
        header = tar_header(name, len(data))
        offset = self._offset + len(header)
        self._write(b"".join((header, data, bytes(-len(data) % BLOCK))))
        return offset

    def _write(self, data: bytes) -> None:
        assert self._file is not None, "the writer is closed"
        self._file.write(data)
        self._sha256.update(data)
        self._offset += len(data)


def member_bytes(size: int) -> int:
    """Room of a file of `size` bytes in a tar: its header, and its content in whole blocks."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def tar_bytes(members: int) -> int:
    """Bytes of a tar whose members take `members`: two zero blocks end it; tarfile and GNU tar fill up to 20 blocks."""
    return -(-(members + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def tar_header(name: str, size: int) -> bytes:
    """The USTAR header of a file of `size` bytes; `ValueError` where `name` does not fit.

    As `tarfile` makes it, at a thirtieth of the time: beside fast decoders, tarfile's headers were a tenth of a build.
    """
    encoded = name.encode()
    if len(encoded) > tarfile.LENGTH_NAME or size >= 1 << 33:
        return _tarfile_header(name, size)
    digits = b"%011o" % size
    checksum = _PLAIN_HEADER_SUM + sum(encoded) + sum(digits)
    filled = encoded.ljust(tarfile.LENGTH_NAME, b"\0")
    return b"%b%b%b%b%06o\0 %b" % (
        filled,
        _PLAIN_HEADER[100:124],
        digits,
        _PLAIN_HEADER[135:148],
        checksum,
        _PLAIN_HEADER[156:],
    )


def _tarfile_header(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = size, 0o644, 0
    return header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


_PLAIN_HEADER = _tarfile_header("", 0)
_PLAIN_HEADER_SUM = sum(_PLAIN_HEADER[:124] + _PLAIN_HEADER[135:148] + b" " * 8 + _PLAIN_HEADER[156:])


def split_member_name(name: str) -> tuple[str, str]:
    """`a/b.c.jpg` -> (`a/b`, `c.jpg`): the key ends at the first dot of the last part, as in WebDataset."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", suffix


class Sample(NamedTuple):
    """One sample of a tar: of its members those that matter here."""

    key: str
    suffix: str
    """Of the image, in lower case: `jpg`, `left.png`."""
    image: bytes
    label: bytes
    """Its json or, where only that has a label which the loader can read, its `cls`; empty where it has neither."""


def scan_tar(path: Path, image: str = "", see: Callable[[Sample], None] = lambda sample: None) -> Index:
    """Make the index of any WebDataset tar by reading all of it once, whoever wrote it.

    `image` is the suffix of the member that is the image, where samples hold several; `see` is shown every sample.

    Raises `ShardError` where it is no tar, is cut off, or has a sample without an image, with several, or twice.
    """
    records: list[tuple[int, ...]] = []
    keys: set[str] = set()
    with open(path, "rb") as file:
        stream = _HashedReads(file.fileno())
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
                for key, members in _group(_members(tar, stream, image), path):
                    if key in keys:
                        raise ShardError(
                            f"{path} must hold the members of a sample side by side and once; "
                            f"got '{key}' a second time. {_REMEDY}."
                        )
                    keys.add(key)
                    sample, record = _describe(path, key, members)
                    see(sample)
                    records.append(record)
                end = tar.offset
        except (tarfile.TarError, UnicodeError) as error:
            raise ShardError(f"{path} must be a whole tar; got '{error}'. Build or copy this shard again.") from error
        if os.pread(file.fileno(), BLOCK, end) != bytes(BLOCK):
            raise ShardError(
                f"{path} must be a whole tar; got no end after byte {end}. Build or copy this shard again."
            )
        tar_bytes = os.fstat(file.fileno()).st_size
        stream.skip(tar_bytes)
    return Index(np.array(records, RECORD), tar_bytes, stream.digest.hexdigest())


class _Member(NamedTuple):
    name: str
    key: str
    suffix: str
    is_image: bool
    offset: int
    data: bytes
    """Of an image, json or `cls`."""


_REMEDY = "Write this shard again"


def _members(tar: tarfile.TarFile, stream: "_HashedReads", image: str) -> Iterator[_Member]:
    """The members of a tar that belong to samples."""
    for member in tar:
        # tarfile would keep every header that it has seen.
        tar.members = []  # type: ignore[attr-defined]
        if not member.isreg() or re.match(_NO_SAMPLE, member.name):
            continue
        key, suffix = split_member_name(member.name)
        is_image = _is_image(suffix.lower(), image)
        wanted = is_image or suffix.lower() in _LABELS
        data = stream.read(member.offset_data, member.size) if wanted else b""
        yield _Member(member.name, key, suffix.lower(), is_image, member.offset_data, data)


_NO_SAMPLE = re.compile(r"__[^/]*__($|/)|(.*/)?\.[^/]*$|(.*/)?[^./]*$")
"""Names that no reader takes for a part of a sample: metadata, hidden files, and those without an extension."""


_LABELS = ("json", "cls")


def _is_image(suffix: str, image: str) -> bool:
    return suffix == image.lower() if image else suffix.rpartition(".")[2] in IMAGE_SUFFIXES


def _group(members: Iterator[_Member], path: Path) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Neighbours with one key, by their suffix."""
    for key, neighbours in itertools.groupby(members, lambda member: member.key):
        sample: dict[str, _Member] = {}
        for member in neighbours:
            if member.suffix in sample:
                raise ShardError(
                    f"{path} must hold each member of a sample once; got '{member.name}' a second time. {_REMEDY}."
                )
            sample[member.suffix] = member
        yield key, sample


def _describe(path: Path, key: str, members: dict[str, _Member]) -> tuple[Sample, tuple[int, ...]]:
    images = [suffix for suffix, member in members.items() if member.is_image]
    if not images:
        raise ShardError(
            f"{path} must hold an image for every sample; got none for '{key}' "
            f"(it has {', '.join(members)}). {_REMEDY}."
        )
    if len(images) > 1:
        raise ShardError(
            f"{path} must hold one image for every sample; got {', '.join(images)} for '{key}'. "
            f"Name one: shard_tool index {path.parent} --image {images[0]}."
        )
    image, label = members[images[0]], _label(members.get("json"), members.get("cls"))
    record = (image.offset, 0, len(image.data), zlib.crc32(image.data), 0, 0)
    if label:
        record = (image.offset, label.offset, len(image.data), record[3], len(label.data), zlib.crc32(label.data))
    return Sample(key, images[0], image.data, label.data if label else b""), record


def _label(meta: _Member | None, number: _Member | None) -> _Member | None:
    """The json unless it has no label of ours and `cls` has."""
    if number is not None and labels_of(number.data) and not (meta is not None and labels_of(meta.data)):
        return number
    return meta


def labels_of(data: bytes) -> dict[str, Any]:
    """The `attributes` (name to 0 or 1) or `label` (class number) that a json or `cls` member holds; else empty."""
    try:
        meta = json.loads(data)
    except ValueError:
        return {}
    if type(meta) is int:
        meta = {"label": meta}
    if not isinstance(meta, dict):
        return {}
    attributes, label = meta.get("attributes"), meta.get("label")
    if isinstance(attributes, dict) and all(type(value) is int and value in (0, 1) for value in attributes.values()):
        return {"attributes": attributes} if attributes else {}
    return {"label": label} if type(label) is int and label >= 0 else {}


class _HashedReads:
    """Reads a file from its start to its end, and hashes all of it on the way."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._at = descriptor, 0
        self.digest = hashlib.sha256()

    def skip(self, end: int) -> None:
        """Go on to byte `end`."""
        while self._at < end and (data := os.pread(self._descriptor, min(end - self._at, _READ), self._at)):
            self.digest.update(data)
            self._at += len(data)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, which must not lie before what was read already."""
        self.skip(offset)
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise tarfile.ReadError("unexpected end of data")
        self.digest.update(data)
        self._at += size
        return data


_READ = 4 << 20
_LONG_NAME = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_MOST_BLOCKS = 9
"""Blocks before a header in which its long name is looked for: enough for every name that a file system allows."""


def member_name(read: Callable[[int, int], bytes], offset: int) -> str:
    """The name of the member whose data lies at `offset` of a tar; `read(offset, size)` reads that tar.

    A name that does not fit its header lies in a PAX or GNU entry before it. Raises `tarfile.TarError`.
    """
    start = max(0, offset - BLOCK * _MOST_BLOCKS)
    data = read(start, offset - start)
    header = len(data) - BLOCK
    for at in range(header - 2 * BLOCK, -1, -BLOCK):
        if data[at + 156 : at + 157] not in _LONG_NAME or data[at + 257 : at + 262] != b"ustar":
            continue  # Before parsing: this is asked for every key of every batch.
        try:
            entry = tarfile.TarInfo.frombuf(data[at : at + BLOCK], "utf-8", "surrogateescape")
        except tarfile.TarError:
            continue
        if at + BLOCK + -(-entry.size // BLOCK) * BLOCK == header:
            with tarfile.open(fileobj=io.BytesIO(data[at:]), mode="r:", encoding="utf-8") as tar:
                member = tar.next()
                if member is not None:
                    return member.name
    return tarfile.TarInfo.frombuf(data[header:], "utf-8", "surrogateescape").name

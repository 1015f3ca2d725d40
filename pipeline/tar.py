"""The tar of a shard: written with constant metadata, and read back where its index is missing.

A shard is USTAR without a clock or an owner in it: the same samples give the same bytes on every machine.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import ShardError
from pipeline.files import write_atomic
from pipeline.format import RECORD, SUFFIX, Index, Shard

BLOCK = tarfile.BLOCKSIZE
IMAGE_SUFFIXES = (*SUFFIX.values(), "jpeg")
"""Extensions, in lower case, of the members that are taken for images."""


class ShardWriter:
    """Write one shard and its index.

    Both appear under their names, synced, when `close()` succeeds; `abort()` leaves nothing behind. A temporary file
    that a crash left is overwritten by the next writer of that name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._partial = folder / f".{name}.tar.partial"
        self._file = open(self._partial, "wb", buffering=1 << 16)  # noqa: SIM115
        self._sha256 = hashlib.sha256()
        self.content_bytes = 0
        """Bytes written so far; until the shard is finished, without the end of the tar."""
        self._records: list[tuple[int, ...]] = []

    @property
    def samples(self) -> int:
        """Samples added so far."""
        return len(self._records)

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
        self._write(bytes(tar_bytes(self.content_bytes) - self.content_bytes))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        index = Index(np.array(self._records, RECORD), self.content_bytes, self._sha256.hexdigest())
        # The tar goes first: an index without its tar would be the lie, a tar without its index is rebuilt.
        os.replace(self._partial, self.folder / f"{self.name}.tar")
        write_atomic(self.folder / f"{self.name}.index", index.to_bytes())
        return Shard(self.name, len(self._records), self.content_bytes, index.tar_sha256)

    def abort(self) -> None:
        """Drop the shard unless it is finished."""
        # On a full disk closing fails as writing did, and the file must go all the same.
        with contextlib.suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def _member(self, name: str, data: bytes) -> int:
        header = tar_header(name, len(data))
        offset = self.content_bytes + len(header)
        self._write(b"".join((header, data, bytes(-len(data) % BLOCK))))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.content_bytes += len(data)


def member_bytes(size: int) -> int:
    """Room of a file of `size` bytes in a tar: its header, and its content in whole blocks."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def tar_bytes(members: int) -> int:
    """Bytes of a tar whose members take `members`: two zero blocks end it; tarfile and GNU tar fill up to 20 blocks."""
    return -(-(members + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def tar_header(name: str, size: int) -> bytes:
    """The USTAR header of a file of `size` bytes; `ValueError` where `name` does not fit.

    As `tarfile` makes it, at a tenth of the time: beside fast decoders, tarfile's headers were a tenth of a build.
    """
    encoded = name.encode()
    if len(encoded) > tarfile.LENGTH_NAME or size >= 1 << 33:
        return _tarfile_header(name, size)
    digits = b"%011o" % size
    header = bytearray(_PLAIN_HEADER)
    header[: len(encoded)] = encoded
    header[124:135] = digits
    header[148:154] = b"%06o" % (_PLAIN_CHECKSUM + sum(encoded) + sum(digits))
    return bytes(header)


def _tarfile_header(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = size, 0o644, 0
    return header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


_PLAIN_HEADER = _tarfile_header("", 0)
_PLAIN_CHECKSUM = int(_PLAIN_HEADER[148:154], 8) - sum(_PLAIN_HEADER[124:135])


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
    with open(path, "rb") as file:
        stream = _HashedReads(file.fileno())
        try:
            for key, members, images in _samples(stream, path, image.lower()):
                sample, record = _describe(path, key, members, images)
                see(sample)
                records.append(record)
            stream.skip(stream.size)
        except tarfile.TarError as error:
            raise ShardError(
                f"{path} must be a whole tar; got '{error}' near byte {stream.at}. Build or copy this shard again."
            ) from error
    return Index(np.array(records, RECORD), stream.size, stream.digest.hexdigest())


_Members = dict[str, tuple[int, bytes]]
"""Of one sample, by suffix: offset, and content of an image, json or `cls`."""
_NO_SAMPLE = re.compile(r"__[^/]*__($|/)|(.*/)?\.[^/]*$|(.*/)?[^./]*$")
"""Names that no reader takes for a part of a sample: metadata, hidden files, and those without an extension."""
_MOST_MEMBER_BYTES = 1 << 30
"""Of an image or a label; a record of an index ends at four times that."""


def _samples(stream: "_HashedReads", path: Path, image: str) -> Iterator[tuple[str, _Members, list[str]]]:
    """Key, members and suffixes of images of each sample."""
    keys: set[str] = set()
    files = (file for file in _files(stream.read) if not _NO_SAMPLE.match(file[0]))
    for key, neighbours in itertools.groupby(files, lambda file: split_member_name(file[0])[0]):
        members: _Members = {}
        images: list[str] = []
        for name, offset, size in neighbours:
            suffix = split_member_name(name)[1].lower()
            if key in keys or suffix in members:
                rule = "each member of a sample once" if members else "the members of a sample side by side and once"
                raise ShardError(
                    f"{path} must hold {rule}; got '{name if members else key}' a second time. Write this shard again."
                )
            if suffix == image if image else suffix.rpartition(".")[2] in IMAGE_SUFFIXES:
                images.append(suffix)
            elif suffix not in ("json", "cls"):
                members[suffix] = offset, b""
                continue
            if size > _MOST_MEMBER_BYTES:
                raise tarfile.ReadError(f"a sample of {size} bytes")
            members[suffix] = offset, stream.read(offset, size)
        keys.add(key)
        yield key, members, images


def _describe(path: Path, key: str, members: _Members, images: list[str]) -> tuple[Sample, tuple[int, ...]]:
    if len(images) != 1:
        remedy = f"Name one: shard_tool index {path.parent} --image {images[0]}" if images else "Write this shard again"
        raise ShardError(
            f"{path} must hold {'one' if images else 'an'} image for every sample; "
            f"got {', '.join(images) or 'none'} for '{key}' (it has {', '.join(members)}). {remedy}."
        )
    offset, image = members[images[0]]
    label_offset, label = members.get("json", (0, b""))
    if "cls" in members and labels_of(members["cls"][1]) and not labels_of(label):
        label_offset, label = members["cls"]
    record = (offset, label_offset, len(image), zlib.crc32(image), len(label), zlib.crc32(label))
    return Sample(key, images[0], image, label), record


def labels_of(data: bytes) -> dict[str, Any]:
    """The `attributes` (name to 0 or 1) or `label` (class number) that a json or `cls` member holds; else empty."""
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError):
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
        self._descriptor, self.at = descriptor, 0
        self.size = os.fstat(descriptor).st_size
        self.digest = hashlib.sha256()

    def skip(self, end: int) -> None:
        """Go on to byte `end`."""
        while self.at < end:
            self.read(self.at, min(end - self.at, _READ))

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, which must not lie before what was read already."""
        if offset + size > self.size:  # Before anything is allocated.
            raise tarfile.ReadError("unexpected end of data")
        self.skip(offset)
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise tarfile.ReadError("unexpected end of data")
        self.digest.update(data)
        self.at += size
        return data


_READ = 4 << 20


def _files(read: Callable[[int, int], bytes], at: int = 0) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file from the header at byte `at` to the block of zeros that ends a tar.

    Not by `tarfile`, which believes every size, calls itself for every long name, and takes quadratic time for PAX
    records. Raises `tarfile.TarError`, as must `read(offset, size)` where the tar ends too soon.
    """
    told: dict[bytes, bytes] = {}  # Of the next file.
    while (block := read(at, BLOCK)) != bytes(BLOCK):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        kind, size = header.type, header.size
        if kind in ABOUT_OTHERS:
            if not 0 <= size <= MOST_HEADER_BYTES:
                raise tarfile.ReadError(f"a name of {size} bytes")
            told = told_by(kind, read(at + BLOCK, size)) | told  # The first counts, as for tarfile.
        else:
            size = int(told.get(b"size", size))
            if size < 0 or kind == tarfile.GNUTYPE_SPARSE or b"sparse" in told:
                raise tarfile.ReadError("a sparse file" if size >= 0 else f"a file of {size} bytes")
            if header.isreg():
                path = told.get(b"path", b"").partition(b"\0")[0].decode("utf-8", "surrogateescape")
                yield path or header.name, at + BLOCK, size
            elif kind in tarfile.SUPPORTED_TYPES:
                size = 0  # Folders and links have no content, whatever they say.
            told = {}
        at += member_bytes(size)


_GNU_LONG = {tarfile.GNUTYPE_LONGNAME: b"path", tarfile.GNUTYPE_LONGLINK: b"linkpath"}
_ABOUT_NEXT = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, *_GNU_LONG)
ABOUT_OTHERS = (*_ABOUT_NEXT, tarfile.XGLTYPE)
"""Types of members that say something of those behind them."""
MOST_HEADER_BYTES = 1 << 20
"""Of the names and other records before one file."""


def told_by(kind: bytes, data: bytes) -> dict[bytes, bytes]:
    """What a member of a type in `ABOUT_OTHERS` says of the next file: path, size, linkpath, and whether it is sparse.

    Raises `tarfile.TarError`.
    """
    if kind in _GNU_LONG:
        return {_GNU_LONG[kind]: data}
    records: dict[bytes, bytes] = {}
    at = 0
    while data[at : at + 1] not in (b"", b"\0"):  # `<length> <key>=<value>\n`, one after the other.
        length, _, _ = data[at : at + 8].partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(data) - at:
            raise tarfile.ReadError("a damaged PAX record")
        key, _, value = data[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        if key == b"size" and not re.fullmatch(rb"\d{1,19}", value):
            raise tarfile.ReadError(f"a PAX record of the size {value[:40]!r}")
        if key.startswith(b"GNU.sparse."):
            records[b"sparse"] = b"yes"
        if key == b"GNU.sparse.name":
            records[b"path"] = value
        elif key in (b"path", b"size", b"linkpath") and not (key == b"path" and b"sparse" in records):
            records[key] = value
        at += int(length)
    return {} if kind == tarfile.XGLTYPE else records  # What is told of all files is neither name nor size.


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
        if data[at + 156 : at + 157] not in _ABOUT_NEXT or data[at + 257 : at + 262] != b"ustar":
            continue  # Before parsing: this is asked for every key of every batch.
        with contextlib.suppress(tarfile.TarError):
            name, content, _ = next(_files(lambda start, size: data[start : start + size], at), ("", 0, 0))
            if content == len(data):
                return name
    return tarfile.TarInfo.frombuf(data[header:], "utf-8", "surrogateescape").name

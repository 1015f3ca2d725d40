"""The shard set, format version 1: what the writer and the reader both know, and nobody else.

    faces-64/
      shardset.json                            the commit point, written last
      train-000000.tar   train-000000.index    a plain WebDataset shard, and where each of its samples lies
      val-000000.tar     val-000000.index
      rejected.jsonl                           one line for each input that was left out

A shard is USTAR with constant metadata: the same samples give the same bytes on every machine. Its index is a
header and one fixed-size little-endian record a sample, so that any sample is one `pread` away.
"""

import contextlib
import hashlib
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShardError, UserError
from pipeline.files import sync_folder, write_atomic, write_json

FORMAT_NAME = "leanstream-shardset"
FORMAT_VERSION = 1
SHARDSET_FILE = "shardset.json"
REJECTED_FILE = "rejected.jsonl"
SPLITS = ("train", "val", "test")
SUFFIX = {"jpeg": "jpg", "png": "png", "webp": "webp", "raw": "npy"}
"""File name extension of a member, by encoding."""
MAX_KEY_BYTES = 80

BLOCK = tarfile.BLOCKSIZE
RECORD = np.dtype(
    [
        ("image_offset", "<u8"),
        ("image_size", "<u4"),
        ("image_crc32", "<u4"),
        ("json_offset", "<u8"),
        ("json_size", "<u4"),
    ]
)
"""One sample of an index, 28 bytes. `json_size` is 0 where the set has no json."""
_HEADER = struct.Struct("<8sIIQQ32sI4x")
_MAGIC = b"LEANIDX\0"


@dataclass(frozen=True)
class Index:
    """Where every sample of one shard lies.

    `records` is [samples] of dtype `RECORD`, in the order of the tar.
    """

    records: NDArray[np.void]
    tar_bytes: int
    tar_sha256: str

    def to_bytes(self) -> bytes:
        """The content of the `.index` file."""
        body = self.records.tobytes()
        header = _HEADER.pack(
            _MAGIC,
            FORMAT_VERSION,
            RECORD.itemsize,
            len(self.records),
            self.tar_bytes,
            bytes.fromhex(self.tar_sha256),
            zlib.crc32(body),
        )
        return header + body

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Self:
        """Parse an `.index` file; `name` is for the message of the `ShardError` that damage raises."""
        if len(data) < _HEADER.size or data[:8] != _MAGIC:
            raise ShardError(
                f"{name} must be a leanstream index; got a file that is none. "
                "Move it away, and the index is rebuilt from the tar."
            )
        _, version, record_size, count, tar_bytes, sha256, crc32 = _HEADER.unpack_from(data)
        if version != FORMAT_VERSION:
            raise ShardError(
                f"{name} must be of index version {FORMAT_VERSION}; got {version}. Use the leanstream that wrote it."
            )
        body = data[_HEADER.size :]
        if record_size != RECORD.itemsize or len(body) != count * RECORD.itemsize or zlib.crc32(body) != crc32:
            raise ShardError(f"{name} must be whole; got a damaged index. Delete it, and it is rebuilt from the tar.")
        return cls(np.frombuffer(body, RECORD), tar_bytes, sha256.hex())


@dataclass(frozen=True)
class Shard:
    """What `shardset.json` says of one shard."""

    name: str
    """Without extension, e.g. `train-000000`."""
    samples: int
    bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar."""


class ShardWriter:
    """Write one shard and its index; a context manager.

    Both appear under their names, synced, when `close()` succeeds; an exception inside the `with` block leaves
    nothing behind. A temporary file that a crash left is overwritten by the next writer of that name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._partial = folder / f".{name}.tar.partial"
        self._file: BinaryIO | None = open(self._partial, "wb")  # noqa: SIM115 (closed by close or abort)
        self._sha256 = hashlib.sha256()
        self._offset = 0
        self._records: list[tuple[int, int, int, int, int]] = []

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

    def add(self, key: str, image: bytes, suffix: str, meta: bytes = b"") -> None:
        """Append one sample: `<key>.<suffix>` and, where `meta` is not empty, `<key>.json`."""
        image_offset = self._member(f"{key}.{suffix}", image)
        json_offset = self._member(f"{key}.json", meta) if meta else 0
        self._records.append((image_offset, len(image), zlib.crc32(image), json_offset, len(meta)))

    def close(self) -> Shard | None:
        """Finish the shard and return its description; None, and no file, where it has no sample."""
        if not self._records:
            self.abort()
            return None
        assert self._file is not None, "the writer is closed"
        # Two zero blocks end a tar; tarfile and GNU tar fill up to 20 blocks.
        self._write(bytes(2 * BLOCK + -(self._offset + 2 * BLOCK) % tarfile.RECORDSIZE))
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


def npy_bytes(image: NDArray[np.uint8]) -> bytes:
    """`image` [H, W, 3] as the bytes of an `.npy` file, whose size depends on the shape alone."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(image), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def split_member_name(name: str) -> tuple[str, str]:
    """`a/b.c.jpg` -> (`a/b`, `c.jpg`): the key ends at the first dot of the last part, as in WebDataset."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", suffix


def scan_tar(path: Path) -> Index:
    """Rebuild the index of a shard by reading the whole tar once.

    Raises `ShardError` where it is no tar, is cut off, or has a sample without an image.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        tar_bytes = file.tell()
        samples: dict[str, list[int]] = {}
        try:
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    key, suffix = split_member_name(member.name)
                    fields = samples.setdefault(key, [0, 0, 0, 0, 0])
                    if suffix == "json":
                        fields[3:] = [member.offset_data, member.size]
                    elif suffix in SUFFIX.values():
                        payload = os.pread(file.fileno(), member.size, member.offset_data)
                        if len(payload) != member.size:
                            raise tarfile.ReadError("unexpected end of data")
                        fields[:3] = [member.offset_data, member.size, zlib.crc32(payload)]
        except tarfile.TarError as error:
            raise ShardError(f"{path} must be a whole tar; got '{error}'. Build or copy this shard again.") from error
    for key, fields in samples.items():
        if not fields[0]:
            raise ShardError(f"{path} must hold an image for every sample; got none for '{key}'. Build it again.")
    return Index(np.array([tuple(fields) for fields in samples.values()], RECORD), tar_bytes, digest)


@dataclass(frozen=True)
class Split:
    """The shards of one split, as arrays: a set may have 100,000 of them."""

    names: NDArray[np.bytes_]
    """[shards]"""
    samples: NDArray[np.int64]
    """[shards] Samples in each."""
    bytes: NDArray[np.int64]
    """[shards] Size of each tar."""
    sha256: NDArray[np.bytes_]
    """[shards] Hex digest of each tar."""

    @classmethod
    def of(cls, rows: list[Mapping[str, Any]]) -> Self:
        """From the rows of `shardset.json`."""
        return cls(
            np.array([row["name"].encode() for row in rows], np.bytes_),
            np.array([row["samples"] for row in rows], np.int64),
            np.array([row["bytes"] for row in rows], np.int64),
            np.array([row["sha256"].encode() for row in rows], np.bytes_),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Shard]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Shard:
        return Shard(
            self.names[number].decode(),
            int(self.samples[number]),
            int(self.bytes[number]),
            self.sha256[number].decode(),
        )

    @property
    def total(self) -> int:
        """Samples in all shards together."""
        return int(self.samples.sum())


@dataclass(frozen=True)
class ShardSet:
    """A finished shard set: the content of `shardset.json`, and the folder it was read from."""

    folder: Path
    name: str
    image_size: int
    """Height and width of every image, pixels."""
    channels: int
    encoding: str
    """A key of `SUFFIX`."""
    splits: dict[str, Split]
    attributes: tuple[str, ...] = ()
    """Names of the 0/1 attributes that every sample's json carries; empty where it has none."""
    classes: tuple[str, ...] = ()
    """Names of the classes behind every sample's integer `label`; empty where it has none."""
    parts: tuple[dict[str, Any], ...] = ()
    """How the set was made: one entry for the build, one for each append."""
    rejected: int = 0
    """Inputs that were left out; `rejected.jsonl` has a line for each."""
    fingerprint: str = field(default="")
    """sha256 over image size, encoding and the shards' names, counts and hashes: equal sets train equally."""

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the set in `folder`.

        Raises `UserError` where there is none, and `ShardError` where its description is damaged.
        """
        folder = Path(folder)
        path = folder / SHARDSET_FILE
        try:
            data = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{folder} must be a finished shard set; got {_what_is_there(folder)}. "
                "Make one with: shard_tool make-shards PHOTOS --size 64."
            ) from None
        except ValueError as error:
            raise ShardError(f"{path} must be JSON; got '{error}'. Copy or build the set again.") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT_NAME or data.get("version") != FORMAT_VERSION:
            raise ShardError(
                f"{path} must be of format {FORMAT_NAME} version {FORMAT_VERSION}; "
                f"got {data.get('format')} version {data.get('version')}. Use the leanstream that wrote it."
                if isinstance(data, dict)
                else f"{path} must describe a shard set; got something else. Copy or build the set again."
            )
        try:
            opened = cls(
                folder,
                data["name"],
                data["image_size"],
                data["channels"],
                data["encoding"],
                {split: Split.of(content["shards"]) for split, content in data["splits"].items()},
                tuple(data["attributes"]),
                tuple(data["classes"]),
                tuple(data["parts"]),
                data["rejected"],
                data["fingerprint"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"{path} must be complete; got no valid {error}. Copy or build the set again.") from error
        if opened.fingerprint != opened.computed_fingerprint():
            raise ShardError(
                f"{path} must match its own fingerprint; got another. It was edited or damaged: copy the set again."
            )
        return opened

    def save(self) -> None:
        """Write `shardset.json` into `folder`, which completes the set."""
        sync_folder(self.folder)
        write_json(
            self.folder / SHARDSET_FILE,
            {
                "format": FORMAT_NAME,
                "version": FORMAT_VERSION,
                "name": self.name,
                "image_size": self.image_size,
                "channels": self.channels,
                "encoding": self.encoding,
                "attributes": self.attributes,
                "classes": self.classes,
                "splits": {
                    name: {"samples": split.total, "shards": [vars(shard) for shard in split]}
                    for name, split in self.splits.items()
                },
                "rejected": self.rejected,
                "parts": self.parts,
                "fingerprint": self.computed_fingerprint(),
            },
        )

    def computed_fingerprint(self) -> str:
        """The fingerprint that follows from the shards listed."""
        digest = hashlib.sha256(f"{self.image_size} {self.channels} {self.encoding}\n".encode())
        for name, split in sorted(self.splits.items()):
            digest.update(f"{name} {len(split)}\n".encode())
            digest.update(b"\n".join(split.names.tolist() + split.sha256.tolist()))
            digest.update(split.samples.astype("<i8").tobytes())
        return digest.hexdigest()

    def split(self, name: str) -> Split:
        """The shards of one split; `UserError` where the set has no such split, or an empty one."""
        if name not in self.splits or not len(self.splits[name]):
            have = ", ".join(split for split, content in self.splits.items() if len(content)) or "none"
            raise UserError(f"split must be one of the set's ({have}); got '{name}' for {self.folder}. Name another.")
        return self.splits[name]


def _what_is_there(folder: Path) -> str:
    if not folder.exists():
        return "no such folder"
    if not folder.is_dir():
        return "a file"
    if any(folder.glob("*.tar")) or any(folder.glob(".*")):
        return "an unfinished build or plain tars (no shardset.json)"
    return "a folder without shardset.json"

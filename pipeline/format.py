"""The shard set, format version 1: what the writer and the reader both know, and nobody else.

    faces-64/
      shardset.json                            the commit point, written last
      train-000000.tar   train-000000.index    a plain WebDataset shard, and where each of its samples lies
      val-000000.tar     val-000000.index
      rejected.jsonl                           one line for each input that was left out

A shard is USTAR with constant metadata: the same samples give the same bytes on every machine. Its index is a
header and one fixed-size little-endian record a sample, so that any sample is one `pread` away.
"""

import hashlib
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LeanstreamError, ShardError, UserError
from pipeline.files import Place, inside, place_of, sync_folder, write_json
from pipeline.remote.transport import DEFAULT_PATIENCE, Patience, read_bytes

FORMAT_NAME = "leanstream-shardset"
FORMAT_VERSION = 1
SHARDSET_FILE = "shardset.json"
REJECTED_FILE = "rejected.jsonl"
_BUILD_FOLDER = ".build"
"""What make-shards keeps beside the shards until the set is finished."""
SPLITS = ("train", "val", "test")
SUFFIX = {"jpeg": "jpg", "png": "png", "webp": "webp", "raw": "npy"}
"""File name extension of a member, by encoding."""
MAX_KEY_BYTES = 80
_MOST_JSON = 1 << 30
"""Bytes of a description that are read from a server."""
_MOST_PIXELS = 1 << 13
"""Of an image's side. This and the next limits are far beyond what is made: they refuse what would fill the memory."""
_MOST_SAMPLES, _MOST_BYTES = 1 << 26, 1 << 44
"""Of a shard."""
_LEAST_BYTES = 1024
"""Of a sample in a tar: its header and one block."""
_NAME = re.compile(r"[^./\0][^/\0]{0,200}")
"""Of a file in the set's folder."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""What JSON can write and no file name or terminal can."""
_SHA256 = re.compile(r"[0-9a-f]{64}")

RECORD = np.dtype(
    [
        ("image_offset", "<u8"),
        ("json_offset", "<u8"),
        ("image_size", "<u4"),
        ("image_crc32", "<u4"),
        ("json_size", "<u4"),
        ("json_crc32", "<u4"),
    ]
)
"""One sample of an index, 32 bytes. The json's fields are 0 where the set has none."""
_HEADER = struct.Struct("<8sIIQQ32sI4x")
INDEX_MAGIC = b"LEANIDX\0"
"""First bytes of an index."""


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
            INDEX_MAGIC,
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
        if len(data) < _HEADER.size or data[:8] != INDEX_MAGIC:
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

    def check(self, shard: "Shard", where: str, remedy: str) -> Self:
        """The index, if it is that of the shard and lies within its tar; else `ShardError`, `where` it was found."""
        if self.tar_sha256 != shard.sha256 or self.tar_bytes != shard.bytes or len(self.records) != shard.samples:
            raise ShardError(
                f"{where} must be as shardset.json describes it; "
                f"got {len(self.records)} samples of a tar with sha256 {self.tar_sha256[:12]}. {remedy}."
            )
        for part in ("image", "json"):
            offsets, sizes = self.records[f"{part}_offset"], self.records[f"{part}_size"].astype(np.uint64)
            if offsets.max() > shard.bytes or (offsets + sizes).max() > shard.bytes or sizes.sum() > shard.bytes:
                raise ShardError(f"{where} must lie within its tar; got a sample behind its end. {remedy}.")
        return self


def index_bytes(samples: int) -> int:
    """Size of the `.index` file of a shard of so many samples."""
    return _HEADER.size + samples * RECORD.itemsize


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


def npy_bytes(image: NDArray[np.uint8]) -> bytes:
    """`image` [H, W, 3] as the bytes of an `.npy` file, whose size depends on the shape alone."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(image), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


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
        """From the rows of `shardset.json`; `ValueError` for what cannot be a shard."""
        names, samples, sizes, sha256 = ([row[key] for row in rows] for key in ("name", "samples", "bytes", "sha256"))
        for name in names:
            _check(_is_text(name) and _NAME.fullmatch(name), "a name of a shard", name)
        for digest in sha256:
            _check(type(digest) is str and _SHA256.fullmatch(digest), "a sha256 of a shard", digest)
        for count, size in zip(samples, sizes, strict=True):
            _check(type(size) is int and 0 < size <= _MOST_BYTES, "bytes of a shard", size)
            fits = type(count) is int and 0 < count <= min(size // _LEAST_BYTES, _MOST_SAMPLES)
            _check(fits, f"samples in {size} bytes", count)
        return cls(
            np.array([name.encode() for name in names], np.bytes_),
            np.array(samples, np.int64),
            np.array(sizes, np.int64),
            np.array([digest.encode() for digest in sha256], np.bytes_),
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
    """A finished shard set: the content of `shardset.json`, and where it is."""

    location: Place
    """The folder on this machine, or a URL."""
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
    fingerprint: str = ""
    """sha256 over image size, encoding and the shards' names, counts and hashes: equal sets train equally."""
    image_member: str = ""
    """Suffix of the member that is the image, in a foreign set whose samples hold several; else empty."""

    @property
    def folder(self) -> Path:
        """The folder of a set on this machine; `UserError` for a set behind a URL."""
        if isinstance(self.location, str):
            raise UserError(f"the shard set must be on this machine; got {self.location}. Copy it here first.")
        return self.location

    @classmethod
    def open(cls, location: str | os.PathLike[str], *, patience: Patience = DEFAULT_PATIENCE) -> Self:
        """Read the description of a set.

        Args:
            location: its folder, or its URL (`s3://bucket/faces-64`).
            patience: how long a remote file is waited for.

        Raises:
            UserError: where there is no set.
            ShardError: where its description is damaged.
            TransportError: where its description could not be fetched in time.
        """
        place = place_of(location)
        path = inside(place, SHARDSET_FILE)
        try:
            data = json.loads(
                path.read_bytes() if isinstance(path, Path) else read_bytes(path, most=_MOST_JSON, patience=patience)
            )
            if not isinstance(data, dict):
                raise ValueError("something else than an object")
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{place} must be a finished shard set; got {_what_is_there(place)}.") from None
        except (ValueError, RecursionError) as error:
            if isinstance(error, LeanstreamError):
                raise
            raise ShardError(f"{path} must be JSON; got '{error}'. Copy or build the set again.") from error
        if data.get("format") != FORMAT_NAME or data.get("version") != FORMAT_VERSION:
            raise ShardError(
                f"{path} must be of format {FORMAT_NAME} version {FORMAT_VERSION}; "
                f"got {data.get('format')} version {data.get('version')}. Use the leanstream that wrote it."
            )
        try:
            opened = cls._decoded(place, data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise ShardError(f"{path} must describe a shard set; got {what}. Copy or build the set again.") from error
        if opened.fingerprint != opened.computed_fingerprint():
            raise ShardError(
                f"{path} must match its own fingerprint; got another. It was edited or damaged: copy the set again."
            )
        return opened

    @classmethod
    def _decoded(cls, place: Place, data: Mapping[str, Any]) -> Self:
        """From parsed JSON; an error names the first value that is of another type or range than a set's."""
        name, size, channels, encoding = (data[key] for key in ("name", "image_size", "channels", "encoding"))
        _check(_is_text(name) and "/" not in name and name not in ("", ".", ".."), "a name", name)
        _check(type(size) is int and 0 < size <= _MOST_PIXELS, "an image_size", size)
        _check(type(channels) is int and 0 < channels <= 4, "a number of channels", channels)
        _check(_is_text(encoding) and encoding in SUFFIX, "an encoding", encoding)
        for key in ("attributes", "classes"):
            _check(type(data[key]) is list and all(map(_is_text, data[key])), f"{key}, a list of words", data[key])
        _check(
            type(data["parts"]) is list and all(type(part) is dict for part in data["parts"]), "parts", data["parts"]
        )
        _check(type(data["rejected"]) is int and data["rejected"] >= 0, "a count of rejected inputs", data["rejected"])
        member = data.get("image_member", "")
        _check(_is_text(member), "an image_member", member)
        for split in data["splits"]:
            _check(_is_text(split) and _NAME.fullmatch(split), "a name of a split", split)
        splits = {split: Split.of(content["shards"]) for split, content in data["splits"].items()}
        shards = [shard for split in splits.values() for shard in split.names.tolist()]
        _check(len(set(shards)) == len(shards), "names of shards, each once", "one twice")
        labels = tuple(data["attributes"]), tuple(data["classes"])
        return cls(place, name, size, channels, encoding, splits, *labels, tuple(data["parts"]), data["rejected"],
                   data["fingerprint"], member)  # fmt: skip

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
                **({"image_member": self.image_member} if self.image_member else {}),
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
        member = f" {self.image_member}" if self.image_member else ""
        digest = hashlib.sha256(f"{self.image_size} {self.channels} {self.encoding}{member}\n".encode())
        for name, split in sorted(self.splits.items()):
            digest.update(f"{name} {len(split)}\n".encode())
            digest.update(b"\n".join(split.names.tolist() + split.sha256.tolist()))
            digest.update(split.samples.astype("<i8").tobytes())
        return digest.hexdigest()

    def split(self, name: str) -> Split:
        """The shards of one split; `UserError` where the set has no such split, or an empty one."""
        if not isinstance(name, str) or not len(self.splits.get(name, ())):
            have = ", ".join(split for split, content in self.splits.items() if len(content)) or "none"
            raise UserError(f"split must be one of the set's ({have}); got '{name}' for {self.location}. Name another.")
        return self.splits[name]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _SURROGATE.search(value)


def _check(holds: object, what: str, found: object) -> None:
    if not holds:
        raise ValueError(f"{str(found)[:80]!r} in place of {what}")


def _what_is_there(place: Place) -> str:
    make = "Make one with: shard_tool make-shards PHOTOS --size 64"
    if isinstance(place, str):
        return f"no {SHARDSET_FILE} there. {make}"
    if not place.exists():
        return f"no such folder. {make}"
    if not place.is_dir():
        return f"a file. {make}"
    if (place / _BUILD_FOLDER).exists():
        return "an unfinished build. Finish it with the command that began it"
    if any(place.glob("*.tar")):
        return f"tars without {SHARDSET_FILE}. If they are a WebDataset: shard_tool index {place}"
    return f"a folder without {SHARDSET_FILE}. {make}"

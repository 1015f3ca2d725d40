"""What is wrong with one shard: its tar, its index, and every sample in it.

    the tar:      size, sha256                     against shardset.json
    the index:    its own crc32, the tar it is of  against shardset.json
    each sample:  headers, crc32 of image and json, padding, decode, size, channels, labels

Where the tar is whole and its index says something else, the index is to blame; else the tar is.
"""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShardError, describe_os_error
from pipeline.format import Index, Shard, ShardSet
from pipeline.shards.picture import PICTURE_ERRORS, decode_picture, npy_header
from pipeline.tar import BLOCK, labels_of, member_name, scan_tar, split_member_name
from shard_tool.build.keys import name_hash

_READ = 1 << 20


class Problem(NamedTuple):
    """One thing that is not as it was written."""

    file: str
    """Name within the set's folder."""
    key: str | None
    """The sample that it concerns; None where it concerns the file."""
    problem: str
    """What comes after that name: `has another crc32 than its index says`."""


@dataclass(frozen=True)
class ShardReport:
    """What was found in one shard."""

    shard: Shard
    split: str
    problems: tuple[Problem, ...]
    tar_whole: bool
    """The tar is, byte for byte, the recorded one."""
    index_whole: bool
    key_hashes: NDArray[np.uint64]
    """[samples] `name_hash` of each key, 0 where it could not be read; fewer where the shard was not looked through."""
    label_counts: NDArray[np.int64] | None
    """[attributes or classes] How many samples have each; None where not every sample's json was read."""


class _Record(NamedTuple):
    """The fields of `pipeline.format.RECORD`."""

    image_offset: int
    json_offset: int
    image_size: int
    image_crc32: int
    json_size: int
    json_crc32: int


class ShardCheck:
    """The checks of one shard; `run` makes them all, once."""

    def __init__(
        self,
        shards: ShardSet,
        split: str,
        shard: Shard,
        owners: Mapping[str, str],
        tick: Callable[[int, int], None],
    ) -> None:
        """`owners` names the shard of each sha256 in the set; `tick` is told of samples and problems as they come."""
        self._set, self._split, self._shard, self._owners, self._tick = shards, split, shard, owners, tick
        self._tar, self._index = f"{shard.name}.tar", f"{shard.name}.index"
        self._problems: list[Problem] = []
        self._told = self._ticked = 0
        self._ours = any("settings" in part for part in shards.parts)
        self._wants_json = any(part.get("settings", {}).get("json") for part in shards.parts)
        self._keys: list[int] = []
        self._labels = np.zeros(len(shards.attributes) or len(shards.classes), np.int64)
        self._labelled = 0
        self._pixels = np.empty((shards.image_size, shards.image_size, 3), np.uint8)

    def run(self, *, quick: bool) -> ShardReport:
        """Check everything, or with `quick` nothing but hashes."""
        index = self._read_index()
        tar_whole = False
        try:
            with FileIO(self._set.folder / self._tar) as file:
                size, sha256 = self._check_tar(file)
                tar_whole = (size, sha256) == (self._shard.bytes, self._shard.sha256)
                # A tar of another shard is whole in itself, and checked where it belongs.
                if not quick and (tar_whole or sha256 not in self._owners):
                    self._check_samples(file, size, index or self._scan(), tar_whole)
        except FileNotFoundError:
            self._add(self._tar, None, "is missing")
        except PermissionError as error:
            raise describe_os_error(error, "reading a shard") from error
        except OSError as error:
            self._add(self._tar, None, f"could not be read: {error.strerror or error}")
        self._report(self._shard.samples - self._ticked)
        return ShardReport(
            self._shard,
            self._split,
            tuple(self._problems),
            tar_whole,
            not any(problem.file == self._index for problem in self._problems),
            np.array(self._keys, np.uint64),
            self._labels if self._labelled == self._shard.samples else None,
        )

    def _check_tar(self, file: FileIO) -> tuple[int, str]:
        """Size and sha256."""
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        if size != self._shard.bytes:
            self._add(self._tar, None, f"has {size:,} bytes in place of {self._shard.bytes:,}")
        if sha256 != self._shard.sha256:
            owner = self._owners.get(sha256)
            found = f"holds the bytes of {owner}.tar" if owner else f"has sha256 {sha256[:12]}... in place of"
            self._add(self._tar, None, found + ("" if owner else f" {self._shard.sha256[:12]}..."))
        return size, sha256

    def _read_index(self) -> Index | None:
        """The index, if it is one of this very tar."""
        try:
            data = (self._set.folder / self._index).read_bytes()
            index = Index.from_bytes(data, self._index)
        except FileNotFoundError:
            self._add(self._index, None, "is missing")
            return None
        except ShardError as error:
            self._add(self._index, None, f"cannot be used: {str(error).partition('; ')[2].partition('. ')[0]}")
            return None
        except OSError as error:
            self._add(self._index, None, f"could not be read: {error.strerror or error}")
            return None
        if index.tar_sha256 != self._shard.sha256:
            owner = self._owners.get(index.tar_sha256)
            self._add(self._index, None, f"is that of {owner}.tar" if owner else "is that of an unknown tar")
        elif (len(index.records), index.tar_bytes) != (self._shard.samples, self._shard.bytes):
            self._add(
                self._index,
                None,
                f"knows {len(index.records):,} samples in {index.tar_bytes:,} bytes in place of "
                f"{self._shard.samples:,} in {self._shard.bytes:,}",
            )
        elif index.to_bytes() != data:
            self._add(self._index, None, "has something in its padding")
        else:
            return index
        return None

    def _scan(self) -> Index | None:
        """What an index of the tar would be; None where it cannot be read that far."""
        try:
            return scan_tar(self._set.folder / self._tar, self._set.image_member)
        except ShardError as error:
            self._add(self._tar, None, f"is no whole tar: {str(error).partition('; ')[2].partition('. ')[0]}")
            return None

    def _check_samples(self, file: FileIO, size: int, index: Index | None, tar_whole: bool) -> None:
        blamed = self._index if tar_whole else self._tar
        records = [] if index is None else index.records.tolist()
        before, end = len(self._problems), 0
        if index is not None and len(records) != self._shard.samples:
            self._add(self._tar, None, f"holds {len(records):,} samples in place of {self._shard.samples:,}")
        for row, fields in enumerate(records):
            record = _Record(*fields)
            if max(record.image_offset + record.image_size, record.json_offset + record.json_size) > size:
                left = f"{len(records) - row:,} of {len(records):,} samples"
                what = f"places {left} behind the end" if tar_whole else f"is cut off: {left} are gone"
                self._add(blamed, None, what)
                return
            if self._ours and record.image_offset != end + BLOCK:
                self._add(blamed, f"row {row}", "does not follow the sample before it")
            self._check_sample(file, row, record, blamed)
            end = _padded(record.image_offset, record.image_size)
            if record.json_size:
                if self._ours and record.json_offset != end + BLOCK:
                    self._add(blamed, f"row {row}", "has a json that does not follow its image")
                end = max(end, _padded(record.json_offset, record.json_size))
            self._report(1)
        if records and self._ours and any(_pread(file, end, size - end)):
            self._add(blamed, None, "holds something after its last sample")
        if not tar_whole and len(self._problems) == before and size == self._shard.bytes:
            self._add(self._tar, None, "differs where no sample is")

    def _check_sample(self, file: FileIO, row: int, record: _Record, blamed: str) -> None:
        key = self._member_key(file, record.image_offset, record.image_size)
        self._keys.append(name_hash(key.encode(errors="surrogateescape")) if key is not None else 0)
        name = key if key is not None else f"row {row}"
        if key is None:
            self._add(blamed, name, "has a damaged tar header before its image")
        image = self._content(file, record.image_offset, record.image_size, record.image_crc32, name, "image", blamed)
        if image is not None:
            try:
                self._check_image(image, name)
            except PICTURE_ERRORS as error:
                self._add(self._tar, name, f"does not decode: {error}")
        if record.json_size:
            json_key = self._member_key(file, record.json_offset, record.json_size)
            if json_key is None:
                self._add(blamed, name, "has a damaged tar header before its json")
            elif key is not None and json_key != key:
                self._add(blamed, name, f"is followed by the json of '{json_key}'")
            meta = self._content(file, record.json_offset, record.json_size, record.json_crc32, name, "json", blamed)
            if meta is not None:
                self._check_meta(meta, name)
        elif self._wants_json or len(self._labels):
            self._add(self._tar, name, "has no json")

    def _member_key(self, file: FileIO, offset: int, size: int) -> str | None:
        """The key in the tar header of a member; None where that is damaged or of another size."""
        try:
            header = _pread(file, max(offset - BLOCK, 0), BLOCK)
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            name = member_name(lambda start, count: _pread(file, start, count), offset)
        except tarfile.TarError:
            return None
        return split_member_name(name)[0] if member.size == size else None

    def _content(
        self, file: FileIO, offset: int, size: int, crc32: int, name: str, what: str, blamed: str
    ) -> bytes | None:
        """The bytes of a member; None where they are not those that were written."""
        data = _pread(file, offset, _padded(offset, size) - offset)
        if any(data[size:]):
            self._add(blamed, name, f"has something in the padding after its {what}")
        data = data[:size]
        if zlib.crc32(data) != crc32:
            why = "its index says another one" if blamed == self._index else "its bytes changed"
            self._add(blamed, name, f"has {what} bytes of another crc32: {why}")
            return None
        return data

    def _check_image(self, data: bytes, name: str) -> None:
        is_raw, size = self._set.encoding == "raw", self._set.image_size
        height, width, channels = npy_header(data)[1] if is_raw else decode_picture(data, self._pixels)
        if (height, width) != (size, size):
            self._add(self._tar, name, f"has {width}x{height} pixels in place of {size}x{size}")
        # Training makes three of any number; our own writer writes nothing else.
        if channels != self._set.channels and self._ours:
            self._add(self._tar, name, f"has {channels} channels in place of {self._set.channels}")

    def _check_meta(self, data: bytes, name: str) -> None:
        try:
            # What else a foreign json says is not ours to judge, nor whether it is one.
            meta = json.loads(data) if self._ours else labels_of(data)
        except ValueError as error:
            self._add(self._tar, name, f"has a json that cannot be read: {error}")
            return
        labels = _labels_of(meta, self._set)
        if labels is None:
            self._add(self._tar, name, f"has a json without the set's labels: {data[:80].decode('utf-8', 'replace')}")
        else:
            self._labels[labels] += 1
            self._labelled += 1

    def _add(self, file: str, key: str | None, problem: str) -> None:
        self._problems.append(Problem(file, key, problem))

    def _report(self, samples: int) -> None:
        new = len(self._problems) - self._told
        self._told += new
        self._ticked += samples
        if samples or new:
            self._tick(samples, new)


def _labels_of(meta: Any, shards: ShardSet) -> list[int] | None:
    """Numbers of the attributes that a sample has, or of its class; None where its json is not of this set."""
    if not isinstance(meta, dict):
        return None
    if shards.attributes:
        attributes = meta.get("attributes")
        bits = [attributes.get(name) for name in shards.attributes] if isinstance(attributes, dict) else [None]
        if not all(type(bit) in (int, bool) and bit in (0, 1) for bit in bits):
            return None
        return [number for number, bit in enumerate(bits) if bit]
    if shards.classes:
        label = meta.get("label")
        return [label] if type(label) is int and 0 <= label < len(shards.classes) else None
    return []


def _padded(offset: int, size: int) -> int:
    """Where a member ends, with its padding."""
    return offset + -(-size // BLOCK) * BLOCK


def _pread(file: FileIO, offset: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, offset)

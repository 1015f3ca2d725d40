"""The tar of a shard: written with constant metadata, and read back where its index is missing.

A shard is USTAR without a clock or an owner in it: the same samples give the same bytes on every machine.
"""

import contextlib
import hashlib
import os
import tarfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from pipeline.errors import ShardError
from pipeline.files import write_atomic
from pipeline.format import RECORD, SUFFIX, Index, Shard

BLOCK = tarfile.BLOCKSIZE


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


def scan_tar(path: Path) -> Index:
    """Rebuild the index of a shard by reading the whole tar once.

    Raises `ShardError` where it is no tar, is cut off, or has a sample without an image.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        tar_bytes = file.tell()
        samples: dict[str, dict[str, int]] = {}
        try:
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    key, suffix = split_member_name(member.name)
                    kind = "json" if suffix == "json" else "image" if suffix in SUFFIX.values() else None
                    if kind is None:
                        continue
                    payload = os.pread(file.fileno(), member.size, member.offset_data)
                    if len(payload) != member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    fields = samples.setdefault(key, dict.fromkeys(RECORD.names or (), 0))
                    fields[f"{kind}_offset"] = member.offset_data
                    fields[f"{kind}_size"] = member.size
                    fields[f"{kind}_crc32"] = zlib.crc32(payload)
        except tarfile.TarError as error:
            raise ShardError(f"{path} must be a whole tar; got '{error}'. Build or copy this shard again.") from error
    for key, fields in samples.items():
        if not fields["image_offset"]:
            raise ShardError(f"{path} must hold an image for every sample; got none for '{key}'. Build it again.")
    return Index(np.array([tuple(fields.values()) for fields in samples.values()], RECORD), tar_bytes, digest)

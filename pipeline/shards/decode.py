"""Runs of samples to pixels: read together, compared with the index, decoded into the batch's memory."""

import io
import itertools
import math
import os
import threading
from collections.abc import Sequence

import numpy as np
import simplejpeg
from isal.isal_zlib import crc32  # At a tenth of zlib's time, of which every image pays some.
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import describe_os_error
from pipeline.shards.reads import Places, Reader, make_reader
from pipeline.shards.shard import ShardFile

_parsing = threading.Lock()
"""numpy parses headers with `ast`, whose depth counter some Python 3.11 share between threads (SystemError)."""


_CHECKED_AT_ONCE = 32
"""Raw members that are held for a check: few enough to stay in the processor's cache."""


class Decoder:
    """Reads and decodes samples of one encoding; belongs to one thread."""

    def __init__(self, encoding: str, reader: Reader | None = None) -> None:
        """`reader` is the fastest one of this machine unless given."""
        self._is_raw = encoding == "raw"
        self._reader = reader or make_reader()
        self._scratch = np.empty(0, np.uint8)
        self._npy_header = b""

    def fill(self, files: Sequence[ShardFile], rows: Sequence[int], out: NDArray[np.uint8]) -> None:
        """Write the images of `rows` [n], each of its file in `files` [n], to `out` uint8 [n, H, W, C], contiguous.

        Every encoded image is compared with its crc32, an `.npy` member at its first read since its shard was opened.

        Raises `ShardError` where the bytes of a sample are not what was written, are no image, or one of another size,
        and `UserError` where the system cannot read them.
        """
        if not self._is_raw:
            members = self._members(files, rows)
            if not _decode_jpegs(members, out):
                for file, row, data, image in zip(files, rows, members, out, strict=True):
                    _decode(file, row, data, image)
            return
        new = [slot for slot, (file, row) in enumerate(zip(files, rows, strict=True)) if not file.checked[row]]
        if not new:
            self._fill_pixels(files, rows, out, np.arange(len(rows)))
            return
        for begin in range(0, len(new), _CHECKED_AT_ONCE):
            self._fill_and_check(files, rows, out, new[begin : begin + _CHECKED_AT_ONCE])
        if len(new) < len(rows):
            known = np.setdiff1d(np.arange(len(rows)), new)
            chosen = known.tolist()
            self._fill_pixels([files[slot] for slot in chosen], [rows[slot] for slot in chosen], out, known)

    def _members(self, files: Sequence[ShardFile], rows: Sequence[int]) -> list[memoryview]:
        """The bytes of each member, which are those that were written; valid until the next call."""
        sizes = np.array([file.size.item(row) for file, row in zip(files, rows, strict=True)])
        offsets = np.array([file.offset.item(row) for file, row in zip(files, rows, strict=True)])
        ends = np.cumsum(sizes)
        if ends[-1] > len(self._scratch):
            self._scratch = np.empty(int(ends[-1]), np.uint8)
        self._read(files, offsets, sizes, self._scratch, ends - sizes)
        view, bounds = self._scratch.data, [0, *ends.tolist()]
        members = [view[start:end] for start, end in itertools.pairwise(bounds)]
        expected = [file.crc32.item(row) for file, row in zip(files, rows, strict=True)]
        found = list(map(crc32, members))
        if found != expected:
            slot = next(slot for slot, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
            raise files[slot].damaged(rows[slot], "bytes of another crc32")
        return members

    def _fill_and_check(
        self, files: Sequence[ShardFile], rows: Sequence[int], out: NDArray[np.uint8], slots: list[int]
    ) -> None:
        """Read whole `.npy` members, compare them with their crc32, and copy their pixels to their slots of `out`."""
        members = self._members([files[slot] for slot in slots], [rows[slot] for slot in slots])
        shape, size = out.shape[1:], out[0].nbytes
        for slot, data in zip(slots, members, strict=True):
            if not self._npy_header or data[:-size] != self._npy_header:
                self._npy_header = _checked_npy_header(files[slot], rows[slot], data, shape)
        flat = out.reshape(len(out), size)
        if len(set(map(len, members))) == 1:  # As all are that were written together: one copy instead of many.
            flat[slots] = self._scratch[: len(slots) * len(members[0])].reshape(len(slots), -1)[:, -size:]
        else:
            for slot, data in zip(slots, members, strict=True):
                flat[slot] = np.frombuffer(data[-size:], np.uint8)
        for slot in slots:
            files[slot].checked[rows[slot]] = True

    def _fill_pixels(
        self, files: Sequence[ShardFile], rows: Sequence[int], out: NDArray[np.uint8], slots: NDArray[np.int64]
    ) -> None:
        """Read nothing but the pixels of `.npy` members, straight into their slots of `out`."""
        size = out[0].nbytes
        ends = np.array([file.offset.item(row) + file.size.item(row) for file, row in zip(files, rows, strict=True)])
        self._read(files, ends - size, np.full(len(rows), size), out.reshape(-1), slots * size)

    def _read(
        self,
        files: Sequence[ShardFile],
        offsets: NDArray[np.int64],
        sizes: NDArray[np.int64],
        target: NDArray[np.uint8],
        starts: NDArray[np.int64],
    ) -> None:
        descriptors = np.array([file.descriptor for file in files])
        counts = self._reader.read(Places(descriptors, offsets, sizes, starts), target)
        if (counts != sizes).any():
            slot = int(np.argmax(counts != sizes))
            if counts[slot] < 0:
                error = OSError(int(-counts[slot]), os.strerror(int(-counts[slot])))
                raise describe_os_error(error, f"reading {files[slot].path}")
            raise files[slot].cut_off(int(offsets[slot] + counts[slot]))


def _decode_jpegs(members: list[memoryview], out: NDArray[np.uint8]) -> bool:
    """Decode JPEG files into `out` [n, H, W, 3]; False where one is anything else, or of another size.

    In as few steps of the interpreter as there can be: whatever happens under its lock, another thread waits for.
    """
    same = itertools.repeat
    try:
        decoded = list(
            map(simplejpeg.decode_jpeg, members, same("RGB"), same(False), same(False), same(0), same(0), same(1), out)
        )
    except ValueError:
        return False
    return all(image.shape == out.shape[1:] for image in decoded)


def _decode(file: ShardFile, row: int, data: memoryview, out: NDArray[np.uint8]) -> None:
    """Decode a JPEG, PNG or WebP file into `out` [H, W, 3]."""
    try:
        if len(data) and data[0] == 0xFF:
            shape = simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape
        else:
            with Image.open(io.BytesIO(data)) as image:
                shape = (image.height, image.width, 3)
                if shape == out.shape:
                    out[...] = np.asarray(image.convert("RGB"))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's PNG reader: all four.
        raise file.unusable(row, f"decode; got '{error}'") from error
    if shape != out.shape:
        raise file.unusable(row, f"be {out.shape[1]}x{out.shape[0]} pixels; got {shape[1]}x{shape[0]}")


def _checked_npy_header(file: ShardFile, row: int, data: memoryview, shape: tuple[int, ...]) -> bytes:
    """What stands before the pixels in an `.npy` file, which must hold uint8 of `shape` in C order."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError("another version of .npy")
        with _parsing:
            found, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError:
        raise file.damaged(row, "no .npy file") from None
    header = bytes(data[: stream.tell()])
    if found != shape or fortran or dtype != np.uint8 or len(data) != len(header) + math.prod(shape):
        raise file.damaged(row, f"an array of shape {found} and type {dtype} in place of uint8 {shape}")
    return header

"""Runs of samples to pixels: read together, compared with the index, decoded into the batch's memory; in threads."""

import contextlib
import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from isal.isal_zlib import crc32  # At a tenth of zlib's time, of which every image pays some.
from numpy.typing import NDArray

from pipeline.errors import describe_os_error
from pipeline.shards.picture import PICTURE_ERRORS, decode_picture, npy_header
from pipeline.shards.reads import Places, Reader, make_reader
from pipeline.shards.shard import ShardFile

_CHECKED_AT_ONCE = 32
"""Raw members that are held for a check: few enough to stay in the processor's cache."""

_JOIN_S = 2.0
"""Time that the threads have to end."""


class Decoder:
    """Reads and decodes samples; belongs to one thread."""

    def __init__(self, reader: Reader | None = None) -> None:
        """`reader` is the fastest one of this machine unless given."""
        self.reader = reader or make_reader()
        self._scratch = np.empty(0, np.uint8)
        self._npy_header = b""

    def fill(self, files: Sequence[ShardFile], rows: Sequence[int], out: NDArray[np.uint8]) -> None:
        """Write the images of `rows` [n], each of its file in `files` [n], to `out` uint8 [n, H, W, C], contiguous.

        Every encoded image is compared with its crc32, an `.npy` member at its first read since its shard was opened.

        Raises `ShardError` where the bytes of a sample are not what was written, are no image, or one of another size,
        and `UserError` where the system cannot read them.
        """
        # What was checked once is a raw row: of all others most are encoded images.
        new = [slot for slot, (file, row) in enumerate(zip(files, rows, strict=True)) if not file.checked[row]]
        encoded = [slot for slot in new if not files[slot].raw]
        if encoded:
            targets = out if len(encoded) == len(out) else [out[slot] for slot in encoded]
            self._fill_encoded(*_picked(files, rows, encoded), targets)
            new = [slot for slot in new if files[slot].raw]
        for begin in range(0, len(new), _CHECKED_AT_ONCE):
            slots = new[begin : begin + _CHECKED_AT_ONCE]
            self._fill_and_check(*_picked(files, rows, slots), out, slots)
        known = np.setdiff1d(np.arange(len(rows)), encoded + new) if encoded or new else np.arange(len(rows))
        if len(known):
            self._fill_pixels(*_picked(files, rows, known.tolist()), out, known)

    def _fill_encoded(
        self, files: Sequence[ShardFile], rows: Sequence[int], out: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
    ) -> None:
        members = self._members(files, rows)
        if not _decode_jpegs(members, out):
            for file, row, data, image in zip(files, rows, members, out, strict=True):
                _decode(file, row, data, image)

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
        members = self._members(files, rows)
        shape, size = out.shape[1:], out[0].nbytes
        for file, row, data in zip(files, rows, members, strict=True):
            if not self._npy_header or data[:-size] != self._npy_header:
                self._npy_header = _checked_npy_header(file, row, data, shape)
        flat = out.reshape(len(out), size)
        if len(set(map(len, members))) == 1:  # As all are that were written together: one copy instead of many.
            flat[slots] = self._scratch[: len(slots) * len(members[0])].reshape(len(slots), -1)[:, -size:]
        else:
            for slot, data in zip(slots, members, strict=True):
                flat[slot] = np.frombuffer(data[-size:], np.uint8)
        for file, row in zip(files, rows, strict=True):
            file.checked[row] = True

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
        counts = self.reader.read(Places(descriptors, offsets, sizes, starts), target)
        if (counts != sizes).any():
            slot = int(np.argmax(counts != sizes))
            if counts[slot] < 0:
                error = OSError(int(-counts[slot]), os.strerror(int(-counts[slot])))
                raise describe_os_error(error, f"reading {files[slot].path}")
            raise files[slot].cut_off(int(offsets[slot] + counts[slot]))


def _picked(
    files: Sequence[ShardFile], rows: Sequence[int], slots: list[int]
) -> tuple[Sequence[ShardFile], Sequence[int]]:
    """Files and rows of some slots."""
    if len(slots) == len(rows):
        return files, rows
    return [files[slot] for slot in slots], [rows[slot] for slot in slots]


def _decode_jpegs(members: list[memoryview], out: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> bool:
    """Decode JPEG files into `out`, n times [H, W, 3]; False where one is anything else, or of another size.

    In as few steps of the interpreter as there can be: whatever happens under its lock, another thread waits for.
    """
    same = itertools.repeat
    try:
        decoded = list(
            map(simplejpeg.decode_jpeg, members, same("RGB"), same(False), same(False), same(0), same(0), same(1), out)
        )
    except ValueError:
        return False
    return all(image.shape == out[0].shape for image in decoded)


def _decode(file: ShardFile, row: int, data: memoryview, out: NDArray[np.uint8]) -> None:
    """Decode a JPEG, PNG or WebP file into `out` [H, W, 3]."""
    try:
        height, width, _ = decode_picture(data, out)
    except PICTURE_ERRORS as error:
        raise file.unusable(row, f"decode; got '{error}'") from error
    if (height, width) != out.shape[:2]:
        raise file.unusable(row, f"be {out.shape[1]}x{out.shape[0]} pixels; got {width}x{height}")


def _checked_npy_header(file: ShardFile, row: int, data: memoryview, shape: tuple[int, ...]) -> bytes:
    """What stands before the pixels in an `.npy` file, which must hold uint8 of `shape` in C order."""
    try:
        header, found = npy_header(data)
    except ValueError as error:
        raise file.damaged(row, str(error)) from None
    if found != shape:
        raise file.damaged(row, f"an array of shape {found} in place of {shape}")
    return header


class _Job(NamedTuple):
    task: Future[Any]
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


class DecodeThreads:
    """Threads with a decoder each. They hold no reference to what they work for, unless they work."""

    def __init__(self, count: int, nice: int) -> None:
        """`nice`: how much less urgent than the rest of the process they are (Linux)."""
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=_work, args=(self._jobs, nice), name=f"decode_{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have a thread call `call(decoder, *arguments)`."""
        task: Future[Any] = Future()
        self._jobs.put(_Job(task, call, arguments))
        return task

    def close(self) -> None:
        """Cancel what has not begun, and end the threads; one that does not end within seconds is left to itself."""
        with contextlib.suppress(queue.Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job.task.cancel()
        for _ in self._threads:
            self._jobs.put(None)
        until = time.monotonic() + _JOIN_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0, until - time.monotonic()))


def _work(jobs: "queue.SimpleQueue[_Job | None]", nice: int) -> None:
    if nice and sys.platform == "linux":  # Where threads have a niceness of their own.
        me = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + nice)
    decoder = Decoder()
    while (job := jobs.get()) is not None:
        if job.task.set_running_or_notify_cancel():
            try:
                job.task.set_result(job.call(decoder, *job.arguments))
            except BaseException as error:
                job.task.set_exception(error)
        del job  # It refers to the loader, which may be let go meanwhile.

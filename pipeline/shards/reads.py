"""Many small reads in one call, without the interpreter lock between them.

A `pread` of one image is a system call of a microsecond or two, and the interpreter lock changes hands twice around it:
two threads that read in a loop are hardly faster than one. Linux takes a list of reads in one call (`io_submit`), and
serves those of files in the page cache within it: raw sets stream 1.8 times as fast, JPEG ones 8% faster. Where that is
not to be had (another system, a sandbox), it is `preadv` after all, with the same result.
"""

import contextlib
import ctypes
import errno
import functools
import os
import platform
import sys
import weakref
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_CALLS: Final = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
"""Numbers of io_setup, io_destroy, io_getevents and io_submit, by machine."""
_MOST: Final = 256
"""Reads a call."""
_REQUEST: Final = np.dtype(
    {
        "names": ["data", "descriptor", "address", "size", "offset"],
        "formats": ["<u8", "<u4", "<u8", "<u8", "<i8"],
        "offsets": [0, 20, 24, 32, 40],
        "itemsize": 64,
    }
)
"""`struct iocb` of linux/aio_abi.h; all of its other fields are 0, and so a plain read."""
_EVENT: Final = np.dtype([("data", "<u8"), ("request", "<u8"), ("result", "<i8"), ("result2", "<i8")])
"""`struct io_event`."""


class Places(NamedTuple):
    """What is read from where to where; all arrays are [n]."""

    descriptors: NDArray[np.int64]
    """Of open files."""
    offsets: NDArray[np.int64]
    """In the files."""
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    """In the target."""

    def part(self, which: slice) -> "Places":
        """Some of them."""
        return Places(*(values[which] for values in self))


class Reader:
    """Fills parts of a buffer from open files, by one `preadv` after the other. Belongs to one thread."""

    def read(self, places: Places, target: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Fill the `places` of `target`, which is one-dimensional and contiguous.

        Returns the bytes read, [n]: fewer than asked for at a file's end,
        and minus the error number where a read failed.
        """
        view = target.data
        counts = []
        for descriptor, offset, size, start in zip(*(values.tolist() for values in places), strict=True):
            try:
                counts.append(os.preadv(descriptor, (view[start : start + size],), offset))
            except OSError as error:
                counts.append(-(error.errno or errno.EIO))
        return np.array(counts, np.int64)


def make_reader() -> Reader:
    """The fastest reader that this machine has."""
    try:
        return LinuxReader()
    except OSError:
        return Reader()


class LinuxReader(Reader):
    """`io_submit`, up to 256 reads at once. Raises `OSError` where the system has it not, or has no more of it."""

    def __init__(self) -> None:
        if sys.platform != "linux" or platform.machine() not in _CALLS:
            raise OSError(errno.ENOSYS, "io_submit is not known here")
        setup, destroy, self._get, self._submit = _CALLS[platform.machine()]
        self._context = ctypes.c_ulong(0)
        _call(setup, ctypes.c_long(_MOST), ctypes.byref(self._context))
        weakref.finalize(self, _forget, destroy, self._context)
        self._requests = np.zeros(_MOST, _REQUEST)
        self._requests["data"] = np.arange(_MOST)
        self._pointers = (self._requests.ctypes.data + _REQUEST.itemsize * np.arange(_MOST)).astype(np.uint64)
        self._first = ctypes.c_void_p(self._pointers.ctypes.data)
        self._events = np.zeros(_MOST, _EVENT)

    def read(self, places: Places, target: NDArray[np.uint8]) -> NDArray[np.int64]:
        """As `Reader.read`."""
        counts = np.empty(len(places.sizes), np.int64)
        done = 0
        while done < len(counts):
            part = slice(done, done + _MOST)
            taken = self._read(places.part(part), target, counts[part])
            done += taken
            if not taken:  # The next one cannot be read this way, as on a file system without it.
                rest = slice(done, None)
                counts[rest] = super().read(places.part(rest), target)
                break
        return counts

    def _read(self, places: Places, target: NDArray[np.uint8], counts: NDArray[np.int64]) -> int:
        """Submit up to `_MOST` reads and wait for those that were taken, the first ones; returns their number."""
        requests = self._requests[: len(counts)]
        requests["descriptor"], requests["offset"] = places.descriptors, places.offsets
        requests["address"], requests["size"] = target.ctypes.data + places.starts, places.sizes
        try:
            taken = _call(self._submit, self._context, ctypes.c_long(len(counts)), self._first)
        except OSError:
            return 0
        left = taken
        while left:
            # The kernel may still write into the buffer: nothing but the end of all reads leaves this loop.
            with contextlib.suppress(InterruptedError):
                count = ctypes.c_long(left)
                found = _call(self._get, self._context, count, count, ctypes.c_void_p(self._events.ctypes.data), None)
                counts[self._events["data"][:found].astype(np.int64)] = self._events["result"][:found]
                left -= found
        return taken


def _call(number: int, *arguments: object) -> int:
    """A system call by its number, without the interpreter lock; `OSError` where it fails."""
    result = int(_libc().syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _forget(destroy: int, context: ctypes.c_ulong) -> None:
    with contextlib.suppress(OSError):
        _call(destroy, context)

"""The listing of a source: paths and sizes of all inputs, in a few bytes each.

folder of a run of inputs:  img_align_celeba/       held once
file names, one string:     000001.jpg000002.jpg... and where each ends
"""

import hashlib
import itertools
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint32] | NDArray[np.uint64]


class Listing:
    """The relative paths and sizes of numbered inputs; one byte string and two arrays instead of objects."""

    def __init__(self, entries: Iterable[tuple[bytes, int]]) -> None:
        """`entries` are (path with `/` between its parts, size in bytes), in the order of the listing."""
        self._names, self._folders = bytearray(), bytearray()
        ends, sizes = array("Q"), array("Q")
        self._run_starts, self._run_ends = array("Q"), array("Q")
        folder, previous, self._ascending = None, b"", True
        for path, size in entries:
            cut = path.rfind(b"/") + 1
            if path[:cut] != folder:
                folder = path[:cut]
                self._run_starts.append(len(ends))
                self._folders += folder
                self._run_ends.append(len(self._folders))
            self._names += path[cut:]
            ends.append(len(self._names))
            sizes.append(size)
            self._ascending = self._ascending and (previous < path or not previous)
            previous = path
        self._ends = compact(ends)
        self.sizes: Numbers = compact(sizes)
        """[inputs] Bytes of each; of a table's row, its share of the row group."""

    @classmethod
    def sort(cls, entries: Iterable[tuple[bytes, int]]) -> tuple[Self, NDArray[np.int64]]:
        """The listing ordered by the bytes of the paths, and the number among `entries` of each input.

        Of entries with the same path the last one counts, as when an archive is unpacked.
        """
        arrived = cls(entries)
        if arrived._ascending:  # No object for each input: most archives are in order.
            return arrived, np.arange(len(arrived), dtype=np.int64)
        # A path holds no zero byte, and so packed entries sort as their paths do: by bytes, alike in every locale.
        packed = sorted(path + b"\0" + number.to_bytes(6, "big") for number, path in enumerate(arrived))
        last = [entry[:-7] != after[:-7] for entry, after in itertools.pairwise([*packed, b""])]
        packed = list(itertools.compress(packed, last))
        order = np.fromiter((int.from_bytes(entry[-6:], "big") for entry in packed), np.int64, len(packed))
        return cls(zip((entry[:-7] for entry in packed), arrived.sizes[order].tolist(), strict=True)), order

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, item: int) -> bytes:
        first = int(self._ends[item - 1]) if item else 0
        folder = self._folder(bisect_right(self._run_starts, item) - 1)
        return folder + self._names[first : int(self._ends[item])]

    def __iter__(self) -> Iterator[bytes]:
        return (self[item] for item in range(len(self)))

    def folders(self) -> Iterator[tuple[bytes, int]]:
        """The folder of each run of inputs, with a slash at its end if it is not empty, and their number."""
        for run, (first, end) in enumerate(itertools.pairwise([*self._run_starts, len(self)])):
            yield self._folder(run), end - first

    def _folder(self, run: int) -> bytes:
        return bytes(self._folders[self._run_ends[run - 1] if run else 0 : self._run_ends[run]])

    def sha256(self) -> str:
        """Hex digest of all paths and sizes: another listing has another one."""
        digest = hashlib.sha256()
        for path in self:
            digest.update(path + b"\0")
        digest.update(self.sizes.astype("<i8").tobytes())
        return digest.hexdigest()


class JoinedListing(Listing):
    """Several listings one after the other, each below a prefix."""

    def __init__(self, listings: Sequence[Listing], prefixes: Sequence[bytes]) -> None:
        self._listings, self.prefixes = listings, prefixes
        self._starts = array("Q", itertools.accumulate(map(len, listings), initial=0))
        self.sizes = compact(np.concatenate([listing.sizes for listing in listings]))

    def locate(self, item: int) -> tuple[int, int]:
        """The number of the listing that `item` is in, and its number there."""
        part = bisect_right(self._starts, item) - 1
        return part, item - self._starts[part]

    def __getitem__(self, item: int) -> bytes:
        part, inner = self.locate(item)
        return self.prefixes[part] + self._listings[part][inner]

    def __iter__(self) -> Iterator[bytes]:
        for prefix, listing in zip(self.prefixes, self._listings, strict=True):
            yield from (prefix + path for path in listing)


def compact(numbers: "array[int] | NDArray[np.unsignedinteger]") -> Numbers:
    """`numbers` in 4 bytes each where they fit, else in 8."""
    wide = np.frombuffer(numbers, np.uint64) if isinstance(numbers, array) else numbers
    return wide.astype(np.uint32) if wide.max(initial=0) < 1 << 32 else wide.astype(np.uint64)


def printable(path: bytes) -> str:
    """`path` as text that every JSON reader accepts, also where a file name is not UTF-8."""
    return path.decode("utf-8", "replace")


def name_hash(name: bytes) -> int:
    """64 bits that stand for `name` where 200,000 strings would cost too much memory."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")

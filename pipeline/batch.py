"""What the loader hands over, and the buffers under it."""

import weakref
from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.counter import make_key, philox
from pipeline.open_shards import OpenShards


class Buffer:
    """Memory for the images of one batch, and the event after which a copy out of it has finished."""

    def __init__(self, shape: tuple[int, ...], pinned: bool) -> None:
        self.array: NDArray[np.uint8] = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).numpy()
        self.copied: torch.cuda.Event | None = None


class BufferPool:
    """Buffers that are used again, but only after every tensor on them is gone and its copy has finished.

    A caller that keeps its batches makes the pool grow by as many buffers; the surplus is freed afterwards.
    """

    def __init__(self, shape: tuple[int, ...], *, pinned: bool, keep: int) -> None:
        self._shape, self._pinned, self._keep = shape, pinned, keep
        # A deque: its operations are atomic, and a buffer comes back from whichever thread drops the last tensor.
        self._free: deque[Buffer] = deque()
        self._living: weakref.WeakSet[Buffer] = weakref.WeakSet()

    def take(self) -> Buffer:
        """A buffer that nobody looks at."""
        try:
            buffer = self._free.popleft()
        except IndexError:
            buffer = Buffer(self._shape, self._pinned)
            self._living.add(buffer)
            return buffer
        if buffer.copied is not None:
            buffer.copied.synchronize()
            buffer.copied = None
        return buffer

    def lend(self, buffer: Buffer) -> torch.Tensor:
        """The images [B, C, H, W], uint8, channels-last; the buffer returns when the last tensor on them is gone."""
        view = buffer.array[...]
        tensor = torch.from_numpy(view)
        # The tensor's storage holds `view`, and so does every tensor derived from it: it dies with the last of them.
        weakref.finalize(view, self._give_back, buffer).atexit = False
        return tensor.permute(0, 3, 1, 2)

    def clear(self) -> None:
        """Free the buffers that nobody looks at, and those that are lent as they come back."""
        self._keep = 0
        self._free.clear()

    def _give_back(self, buffer: Buffer) -> None:
        if len(self._living) <= self._keep:
            self._free.append(buffer)


def digests(shards: NDArray[np.int64], rows: NDArray[np.int64], crc32: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of (shard, row, crc32) for each sample [n]; their sum over an epoch proves what was seen."""
    high, low, _, _ = philox((shards, rows, crc32, np.zeros_like(rows)), make_key("audit"))
    hashes: NDArray[np.uint64] = (high << 32 | low).astype(np.uint64)
    return hashes


@dataclass(frozen=True, eq=False)
class Samples:
    """Where the samples of a batch came from; all arrays are [B]."""

    shards: NDArray[np.int64]
    rows: NDArray[np.int64]
    crc32: NDArray[np.int64]
    files: OpenShards

    @cached_property
    def digests(self) -> NDArray[np.uint64]:
        """A hash of (shard, row, crc32) for each."""
        return digests(self.shards, self.rows, self.crc32)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Their WebDataset keys, read from the tars."""
        files = self.files.open(self.shards.tolist(), late=True)
        return tuple(file.key(row) for file, row in zip(files, self.rows.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive samples of the order, or one process's part of them."""

    images: torch.Tensor
    """uint8 [B, C, H, W] in channels-last memory, RGB; pinned when a GPU is there."""
    positions: torch.Tensor
    """int64 [B], the positions of the samples in the run's order."""
    labels: torch.Tensor | None
    """int8 [B, A] of 0/1 attributes or int64 [B] of classes; None unless asked for."""
    _samples: Samples = field(repr=False)
    _buffer: Buffer | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def keys(self) -> tuple[str, ...]:
        """The WebDataset keys [B], read from the tars when first asked for."""
        return self._samples.keys

    @property
    def digests(self) -> NDArray[np.uint64]:
        """[B], a hash of (shard, row, crc32) for each sample that was handed over."""
        return self._samples.digests

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`, by an asynchronous copy where its memory is pinned."""
        device = torch.device(device)
        if device == self.images.device:
            return self
        moved = replace(
            self,
            images=self.images.to(device, non_blocking=True),
            positions=self.positions.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            _buffer=None,
        )
        if device.type == "cuda" and self._buffer is not None:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._buffer.copied = event
        return moved

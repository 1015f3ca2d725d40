"""What the loader hands over, and the buffers under it."""

import math
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.counter import make_key, philox
from pipeline.shards.open_shards import OpenShards

_ALIGNMENT = 64
"""Bytes; a line of a processor's cache."""


class Layout(NamedTuple):
    """The images of a batch, and behind them its noise, in one piece of memory."""

    images: tuple[int, int, int, int]
    """[B, H, W, C]"""
    noise: int
    """Normals for each sample; 0: none."""
    margin: int = 0
    """Bytes before the images."""

    @property
    def noise_offset(self) -> int:
        """Bytes before the noise, a multiple of 64."""
        return -(-(self.margin + math.prod(self.images)) // _ALIGNMENT) * _ALIGNMENT

    @property
    def bytes(self) -> int:
        """Memory for both."""
        return self.noise_offset + 4 * self.images[0] * self.noise

    def split(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Views of `memory`, uint8 [bytes]: the images uint8 [B, H, W, C] and the noise float32 [B, noise]."""
        images = memory[self.margin : self.margin + math.prod(self.images)].view(self.images)
        if not self.noise:
            return images, None
        return images, memory[self.noise_offset :].view(torch.float32).view(-1, self.noise)


class Buffer:
    """Memory for the images and the noise of one batch, and the event after which a copy out of it has finished."""

    def __init__(self, layout: Layout, pinned: bool) -> None:
        memory = torch.empty(layout.bytes, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        self.array: NDArray[np.uint8] = memory.numpy()
        images, noise = layout.split(memory)
        self.images: NDArray[np.uint8] = images.numpy()
        self.noise: NDArray[np.float32] | None = None if noise is None else noise.numpy()
        self.copied: torch.cuda.Event | None = None


class BufferPool:
    """Buffers that are used again, but only after every tensor on them is gone and its copy has finished.

    A caller that keeps its batches makes the pool grow by as many buffers; the surplus is freed afterwards.
    """

    def __init__(self, layout: Layout, *, pinned: bool, keep: int) -> None:
        self._layout, self._pinned, self._keep = layout, pinned, keep
        # A deque: its operations are atomic, and a buffer comes back from whichever thread drops the last tensor.
        self._free: deque[Buffer] = deque()
        self._living: weakref.WeakSet[Buffer] = weakref.WeakSet()

    def take(self) -> Buffer:
        """A buffer that nobody looks at."""
        try:
            buffer = self._free.popleft()
        except IndexError:
            buffer = Buffer(self._layout, self._pinned)
            self._living.add(buffer)
            return buffer
        if buffer.copied is not None:
            buffer.copied.synchronize()
            buffer.copied = None
        return buffer

    def lend(self, buffer: Buffer) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The images [B, C, H, W], uint8, channels-last, and the noise [B, noise], float32.

        The buffer returns when the last tensor on either is gone.
        """
        view = buffer.array[...]
        memory = torch.from_numpy(view)
        # The tensor's storage holds `view`, and so does every tensor derived from it: it dies with the last of them.
        weakref.finalize(view, self._give_back, buffer).atexit = False
        images, noise = self._layout.split(memory)
        return images.permute(0, 3, 1, 2), noise

    def clear(self) -> None:
        """Free the buffers that nobody looks at, and those that are lent as they come back."""
        self._keep = 0
        self._free.clear()

    def _give_back(self, buffer: Buffer) -> None:
        if len(self._living) <= self._keep:
            self._free.append(buffer)


def digests(shards: NDArray[np.int64], rows: NDArray[np.int64], crc32: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of (shard, row, crc32) for each sample [n]; their sum over an epoch proves what was seen."""
    high, low, _, _ = philox(shards, rows, crc32, key=make_key("audit"))
    hashes: NDArray[np.uint64] = high << 32 | low
    return hashes


@dataclass(frozen=True, eq=False)
class Samples:
    """Where the samples of a batch came from; all arrays are [B]."""

    shards: NDArray[np.int64]
    rows: NDArray[np.int64]
    crc32: NDArray[np.int64]
    files: OpenShards

    def __getitem__(self, part: "slice | NDArray[np.int64]") -> "Samples":
        return Samples(self.shards[part], self.rows[part], self.crc32[part], self.files)

    @cached_property
    def digests(self) -> NDArray[np.uint64]:
        """A hash of (shard, row, crc32) for each."""
        return digests(self.shards, self.rows, self.crc32)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Their WebDataset keys, read from the tars."""
        files = self.files.open(self.shards.tolist(), late=True)
        return tuple(file.key(row) for file, row in zip(files, self.rows.tolist(), strict=True))


class Skipped(NamedTuple):
    """A damaged sample that was left out of a batch."""

    position: int
    shard: str
    """Its tar."""
    key: str
    reason: str


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive samples of the order, or one process's part of them, without those that were left out."""

    images: torch.Tensor
    """uint8 [B, C, H, W] in channels-last memory, RGB; pinned when a GPU is there."""
    positions: torch.Tensor
    """int64 [B], the positions of the samples in the run's order; always on the CPU, where what follows from them is
    computed: to get them back from a GPU, the program would have to wait for it."""
    labels: torch.Tensor | None
    """int8 [B, A] of 0/1 attributes or int64 [B] of classes; None unless asked for."""
    noise: torch.Tensor | None
    """float32 [B, noise], standard normals drawn by seed and position, the same bits everywhere; None unless asked
    for; pinned as the images are."""
    _samples: Samples = field(repr=False)
    _buffer: Buffer | None = field(default=None, repr=False)
    skipped: tuple[Skipped, ...] = ()
    """Damaged samples that were left out, where the loader was told to."""

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

    def to(self, device: torch.device | str, part: slice = slice(None)) -> "Batch":
        """The samples of `part` on `device`: images, labels and noise; positions stay on the CPU.

        The copy is asynchronous where the memory is pinned.
        """
        device = torch.device(device)
        whole = range(len(self))
        batch = self if whole[part] == whole else self._part(part, part)
        if device == self.images.device:
            return batch
        # To the CPU it waits, or the tensors would be handed over before their values are there.
        wait = device.type == "cpu"
        moved = batch._changed(lambda tensor: tensor.to(device, non_blocking=not wait), _buffer=None)
        if device.type == "cuda" and self._buffer is not None:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._buffer.copied = event
        return moved

    def without(self, slots: NDArray[np.int64], skipped: tuple[Skipped, ...]) -> "Batch":
        """A copy that lacks some samples."""
        kept = np.delete(np.arange(len(self)), slots)
        batch = self._part(kept, torch.from_numpy(kept))
        return replace(
            batch, images=batch.images.contiguous(memory_format=torch.channels_last), _buffer=None, skipped=skipped
        )

    def _part(self, part: "slice | NDArray[np.int64]", index: slice | torch.Tensor) -> "Batch":
        return self._changed(
            lambda tensor: tensor[index], positions=self.positions[index], _samples=self._samples[part]
        )

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor], **others: Any) -> "Batch":
        return replace(
            self,
            images=change(self.images),
            labels=None if self.labels is None else change(self.labels),
            noise=None if self.noise is None else change(self.noise),
            **others,
        )

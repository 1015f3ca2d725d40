"""The streaming loader: plain WebDataset shards in, batches out, exact from any position.

    positions ──> order ──> (shard, row) ──> decode threads ──> batches, in order
                            planned ahead     pread, crc32,      into a buffer that
                            by `prefetch`     libjpeg-turbo      is used again

Threads and not processes: libjpeg-turbo decodes without the interpreter lock, nothing is copied between processes,
and memory does not grow with copies of the interpreter. What is ahead is bounded by `prefetch` batches.
"""

import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.batch import Batch, Buffer, BufferPool
from pipeline.counter import draw_words, make_key, philox
from pipeline.errors import ConfigError, ShardError, UserError
from pipeline.format import ShardSet
from pipeline.machine import usable_cores
from pipeline.order import Order
from pipeline.shards import ShardCache, ShardFile

_CHUNK = 32
"""Images a decode task: enough to forget the cost of a task, few enough to keep all threads busy."""
_PLAN = 8192
"""Positions located at once; at most an epoch."""
_BIT = {0: 0, 1: 1}
"""What an attribute may be."""


@dataclass
class _Planned:
    """A batch whose images are being decoded."""

    positions: NDArray[np.int64]
    shards: NDArray[np.int64]
    rows: NDArray[np.int64]
    buffer: Buffer
    labels: NDArray[np.int8] | NDArray[np.int64] | None
    crc32: NDArray[np.int64]
    tasks: list[Future[None]]


class StreamingLoader:
    """An endless iterable of `Batch`, and a context manager that stops its threads.

        with StreamingLoader("shards/faces-64", batch_size=256) as loader:
            for batch in loader:
                images = batch.to("cuda").images.float() / 255

    Batch k holds the positions [start + k * batch_size, start + (k + 1) * batch_size) of the order, or of those the
    ones that belong to `rank`. The same arguments give the same batches, whatever the number of threads.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | ShardSet,
        *,
        split: str = "train",
        batch_size: int,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int | None = None,
        prefetch: int = 3,
        window: int | None = None,
        lanes: int | None = None,
        flip: bool = False,
        labels: bool = False,
        pin_memory: bool | None = None,
    ) -> None:
        """Open the set; nothing is read before the first batch.

        Args:
            shards: a shard set or its folder.
            split: `train`, `val` or `test`.
            batch_size: samples in a global batch; each process gets batch_size / world_size of them.
            seed: names the order and the flips.
            start: the first position, from 0; position p lies in epoch p // samples.
            rank: this process's number; it takes the positions with p % world_size == rank.
            world_size: number of processes; must divide batch_size.
            threads: decode threads; default the usable cores.
            prefetch: batches decoded ahead.
            window: shards whose samples are mixed with each other, in each lane (default: see `pipeline.order`).
            lanes: streams that a batch is drawn from (default: see `pipeline.order`).
            flip: mirror each image left to right with probability 1/2, drawn by position.
            labels: give `Batch.labels` from the samples' json.
            pin_memory: page-locked image memory; default: if there is a CUDA device.

        Raises:
            UserError: for arguments or a set that cannot be used.
            ShardError: while iterating, where a shard is damaged; it names shard and sample.
        """
        self.shards = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
        _at_least(1, batch_size=batch_size, world_size=world_size, prefetch=prefetch)
        _at_least(0, start=start, rank=rank)
        if threads is not None:
            _at_least(1, threads=threads)
        if rank >= world_size:
            raise ConfigError(f"rank must be below world_size {world_size}; got {rank}. Count ranks from 0.")
        if batch_size % world_size:
            raise ConfigError(
                f"batch_size must be a multiple of world_size {world_size}; got {batch_size}. Choose another."
            )
        if labels and not (self.shards.attributes or self.shards.classes):
            raise UserError(f"labels must be in the set; got none in {self.shards.folder}. Leave labels=True out.")
        split_shards = self.shards.split(split)
        self.order = Order(split_shards.samples, seed=seed, window=window, lanes=lanes)
        self.position = start
        """Position at which the next batch starts."""
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._class_numbers = {number: number for number in range(len(self.shards.classes))}
        self._seed, self._flip, self._labels, self._prefetch = seed, flip, labels, prefetch
        self._files = ShardCache(self.shards, split_shards, 2 * self.order.window * self.order.lanes)
        self._threads = threads or usable_cores()
        pinned = torch.cuda.is_available() if pin_memory is None else pin_memory
        size, channels = self.shards.image_size, self.shards.channels
        shape = (batch_size // world_size, size, size, channels)
        self._pool = BufferPool(shape, pinned=pinned, keep=prefetch + 2)
        self._plans = self._plan(start)
        self._ahead: deque[_Planned] = deque()
        self._executor: ThreadPoolExecutor | None = ThreadPoolExecutor(self._threads, "decode")

    @property
    def samples(self) -> int:
        """Samples in the split: the length of an epoch."""
        return self.order.total

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch; raises what a decode thread raised, and nothing can be read after that."""
        if self._executor is None:
            raise UserError("the loader must be open; got a closed one. Make a new one from the position you are at.")
        try:
            while len(self._ahead) <= self._prefetch:
                self._ahead.append(self._start(*next(self._plans)))
            planned = self._ahead.popleft()
            for task in planned.tasks:
                task.result()
        except BaseException:
            self.close()
            raise
        self.position += self._batch_size
        return Batch(
            self._pool.lend(planned.buffer),
            torch.from_numpy(planned.positions),
            None if planned.labels is None else torch.from_numpy(planned.labels),
            digests(planned.shards, planned.rows, planned.crc32),
            partial(_find_keys, self._files, planned.shards, planned.rows),
            planned.buffer,
        )

    def close(self) -> None:
        """Stop all threads and free what was read ahead; batches that were handed over stay valid."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None
            self._ahead.clear()
            self._pool.clear()
            self._files.clear()

    def _plan(self, start: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """Positions, shards and rows of this process's part of every batch from `start` on."""
        batch, world = self._batch_size, self._world_size
        batches = max(1, min(_PLAN, self.order.total) // batch)
        while True:
            positions = np.arange(start, start + batches * batch, dtype=np.int64)
            positions = positions[positions % world == self._rank]
            shards, rows = self.order.locate(positions)
            for part in np.split(np.arange(len(positions)), batches):
                yield positions[part], shards[part], rows[part]
            start += batches * batch

    def _start(self, positions: NDArray[np.int64], shards: NDArray[np.int64], rows: NDArray[np.int64]) -> _Planned:
        assert self._executor is not None, "checked by the caller"
        planned = _Planned(
            positions,
            shards,
            rows,
            self._pool.take(),
            self._empty_labels(len(positions)),
            np.empty(len(positions), np.int64),
            [],
        )
        mirrored = (draw_words(positions, "flip", self._seed) & 1).tolist() if self._flip else None
        for begin in range(0, len(positions), _CHUNK):
            slots = range(begin, min(begin + _CHUNK, len(positions)))
            planned.tasks.append(self._executor.submit(self._decode, planned, slots, mirrored))
        return planned

    def _empty_labels(self, count: int) -> NDArray[np.int8] | NDArray[np.int64] | None:
        if not self._labels:
            return None
        if self.shards.attributes:
            return np.empty((count, len(self.shards.attributes)), np.int8)
        return np.empty(count, np.int64)

    def _decode(self, planned: _Planned, slots: range, mirrored: list[int] | None) -> None:
        """Fill `slots` of a batch; runs in a decode thread."""
        part = slice(slots.start, slots.stop)
        images = planned.buffer.array[part]
        files = self._files.open(planned.shards[part].tolist())
        rows = planned.rows[part].tolist()
        read = ShardFile.raw_image if self.shards.encoding == "raw" else decode_image
        scratch = np.empty_like(images[0])
        for slot, file, row, image in zip(slots, files, rows, images, strict=True):
            if mirrored is not None and mirrored[slot]:
                read(file, row, scratch)
                _mirror(scratch, image)
            else:
                read(file, row, image)
        planned.crc32[part] = [file.crc32(row) for file, row in zip(files, rows, strict=True)]
        if planned.labels is not None:
            planned.labels[part] = [self._label(file, row) for file, row in zip(files, rows, strict=True)]

    def _label(self, file: ShardFile, row: int) -> int | list[int]:
        meta = file.meta(row)
        try:
            if self.shards.attributes:
                attributes = meta["attributes"]
                return [_BIT[attributes[name]] for name in self.shards.attributes]
            return self._class_numbers[meta["label"]]
        except (KeyError, TypeError):
            raise ShardError(
                f"sample '{file.key(row)}' of {file.path} must carry the labels of shardset.json; got others. "
                "Rebuild the set."
            ) from None


def decode_image(file: ShardFile, row: int, out: NDArray[np.uint8]) -> None:
    """Decode one JPEG, PNG or WebP sample into `out` uint8 [H, W, 3].

    Raises `ShardError` where its bytes are not what was written, are no image, or one of another size.
    """
    data = file.image(row)
    try:
        if data[:2] == b"\xff\xd8":
            shape = simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape
        else:
            with Image.open(io.BytesIO(data)) as image:
                shape = (image.height, image.width, 3)
                if shape == out.shape:
                    out[...] = np.asarray(image.convert("RGB"))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's PNG reader: all four.
        raise ShardError(
            f"sample '{file.key(row)}' of {file.path} must decode; got '{error}'. Rebuild the set."
        ) from error
    if shape != out.shape:
        raise ShardError(
            f"sample '{file.key(row)}' of {file.path} must be {out.shape[1]}x{out.shape[0]} pixels; "
            f"got {shape[1]}x{shape[0]}. Rebuild the set with one size."
        )


def _mirror(image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Write `image` [H, W, C] into `out`, left to right."""
    for channel in range(image.shape[2]):  # Long strided loops: three times as fast as short loops over the channels.
        out[:, :, channel] = image[:, ::-1, channel]


def digests(shards: NDArray[np.int64], rows: NDArray[np.int64], crc32: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of (shard, row, crc32) for each sample [n]; their sum over an epoch proves what was seen."""
    high, low, _, _ = philox((shards, rows, crc32, np.zeros_like(rows)), make_key("audit"))
    hashes: NDArray[np.uint64] = (high << 32 | low).astype(np.uint64)
    return hashes


def _find_keys(files: ShardCache, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[str, ...]:
    pairs = zip(shards.tolist(), rows.tolist(), strict=True)
    return tuple(files.open((number,))[0].key(row) for number, row in pairs)


def _at_least(lowest: int, **values: int) -> None:
    for name, value in values.items():
        if value < lowest:
            raise ConfigError(f"{name} must be at least {lowest}; got {value}. Choose a larger one.")

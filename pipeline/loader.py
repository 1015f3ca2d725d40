"""The streaming loader: plain WebDataset shards in, batches out, exact from any position.

    positions ──> order ──> (shard, row) ──> open shards ──> decode threads ──> batches, in order
                            planned one       remote ones      many reads a call,  into a buffer that
                            block ahead       fetched ahead    crc32, libjpeg      is used again

Threads and not processes: libjpeg-turbo decodes without the interpreter lock, nothing is copied between processes,
and memory does not grow with copies of the interpreter. What is ahead is bounded by `prefetch` batches.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batch import Batch, Buffer, BufferPool, Layout, Samples
from pipeline.counter import draw_words
from pipeline.errors import ConfigError, LeanstreamError, ShardError, UserError
from pipeline.format import ShardSet
from pipeline.machine import local_processes, usable_cores
from pipeline.noise import normal
from pipeline.order import Order
from pipeline.remote.cache import cache_of
from pipeline.remote.transport import DEFAULT_PATIENCE, Patience
from pipeline.shards.decode import Decoder
from pipeline.shards.open_shards import Lookahead, OpenShards, check_cache_limit, closed_error
from pipeline.shards.shard import ShardFile

_LEAST_CHUNK, _MOST_CHUNK = 32, 256
"""Images a decode task: every hand-over between threads costs as much as decoding one or two."""
_TASKS_A_THREAD = 4
"""Tasks that are ready for each thread, at least: few, but enough to keep all of them busy."""
_PLAN = 8192
"""Positions located at once; at most an epoch."""
RAM_BYTES = 32 << 20
"""Memory for decoded batches, unless told otherwise."""
_MOST_AHEAD = 8
"""Batches decoded ahead, at most, where the memory allows more."""
_BIT = {0: 0, 1: 1}
"""What an attribute may be."""


class _Plan(NamedTuple):
    """Where the samples of a batch are; all arrays are [n]."""

    positions: NDArray[np.int64]
    shards: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass
class _Started:
    """A batch whose images are being decoded."""

    plan: _Plan
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
        nice: int = 0,
        prefetch: int | None = None,
        ram_bytes: int = RAM_BYTES,
        window: int | None = None,
        lanes: int | None = None,
        flip: bool = False,
        labels: bool = False,
        noise: int = 0,
        pin_memory: bool | None = None,
        cache: str | os.PathLike[str] | bool | None = None,
        cache_bytes: int | None = None,
        patience: Patience = DEFAULT_PATIENCE,
    ) -> None:
        """Open the set; nothing is read before the first batch.

        Args:
            shards: a shard set, its folder, or its URL (`s3://bucket/faces-64`).
            split: `train`, `val` or `test`.
            batch_size: samples in a global batch; each process gets batch_size / world_size of them.
            seed: names the order, the flips and the noise.
            start: the first position, from 0; position p lies in epoch p // samples.
            rank: this process's number; it takes the positions with p % world_size == rank.
            world_size: number of processes; must divide batch_size.
            threads: decode threads; default the usable cores.
            nice: from 0 to 19, how far the loop's own threads go before them (Linux), for a loop that computes on the
                cores itself: one of its threads that had to wait would keep all others waiting.
            prefetch: batches decoded ahead; default: as many as `ram_bytes` allow, from 1 to 8.
            ram_bytes: memory for images and noise: the batches ahead, the one handed over and the one before it.
            window: shards whose samples are mixed with each other, in each lane (default: see `pipeline.order`).
            lanes: streams that a batch is drawn from (default: see `pipeline.order`).
            flip: mirror each image left to right with probability 1/2, drawn by position.
            labels: give `Batch.labels` from the samples' json.
            noise: standard normals for each sample in `Batch.noise`, drawn by position; 0: none.
            pin_memory: page-locked memory for images and noise; default: if there is a CUDA device.
            cache: folder of a disk cache to read the shards through, or True for the default one; default: what the
                set was opened with. A set behind a URL is always read through one.
            cache_bytes: limit of that cache; default: half of what is free there.
            patience: how long a remote file is waited for.

        Raises:
            UserError: for arguments or a set that cannot be used.
            ShardError: while iterating, where a shard is damaged; it names shard and sample.
            TransportError: while iterating, where a shard could not be fetched in time.
        """
        self.shards = _opened(shards, cache, cache_bytes, patience)
        _at_least(1, batch_size=batch_size, world_size=world_size, threads=threads)
        _at_least(1, prefetch=prefetch, ram_bytes=ram_bytes)
        _at_least(0, start=start, rank=rank, nice=nice, noise=noise)
        if rank >= world_size:
            raise ConfigError(f"rank must be below world_size {world_size}; got {rank}. Count ranks from 0.")
        if batch_size % world_size:
            raise ConfigError(
                f"batch_size must be a multiple of world_size {world_size}; got {batch_size}. Choose another."
            )
        if labels and not (self.shards.attributes or self.shards.classes):
            raise UserError(f"labels must be in the set; got none in {self.shards.location}. Leave labels=True out.")
        split_shards = self.shards.split(split)
        self.order = Order(split_shards.samples, seed=seed, window=window, lanes=lanes)
        self.position = start
        """Position at which the next batch starts: it counts what was handed over, not what is decoded ahead."""
        self._split = split
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._class_numbers = {number: number for number in range(len(self.shards.classes))}
        self._seed, self._flip, self._labels = seed, flip, labels
        self._threads = threads or usable_cores()
        size, channels = self.shards.image_size, self.shards.channels
        layout = Layout((batch_size // world_size, size, size, channels), noise)
        self.prefetch = prefetch or max(1, min(ram_bytes // layout.bytes - 2, _MOST_AHEAD))
        """Batches that are decoded ahead."""
        disk_cache = cache_of(self.shards)
        limit = 2 * self.order.window * self.order.lanes
        self._files = OpenShards(self.shards, split_shards, limit, cache=disk_cache, patience=patience)
        self._expect = Lookahead(self._files, self.order, rank, world_size)
        if disk_cache is not None:
            ahead, processes = (self.prefetch + 1) * batch_size, min(world_size, local_processes())
            lanes = min(self.order.lanes, len(self.order.lanes_of(rank, world_size)) * processes)
            check_cache_limit(disk_cache, split_shards, self.order, lanes=lanes, ahead=ahead)
        pinned = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._pool = BufferPool(layout, pinned=pinned, keep=self.prefetch + 2)
        ahead = batch_size // world_size * (self.prefetch + 1)
        self._chunk = min(max(ahead // (_TASKS_A_THREAD * self._threads), _LEAST_CHUNK), _MOST_CHUNK)
        self._decoders = threading.local()
        self._executor = ThreadPoolExecutor(self._threads, "decode", _step_back, (nice,))
        self._closed = False
        self._planned = start
        self._next_plans: Future[list[_Plan]] | None = None
        self._plans: deque[_Plan] = deque()
        self._ahead: deque[_Started] = deque()

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
        if self._closed:
            raise closed_error()
        try:
            while len(self._ahead) <= self.prefetch:
                self._ahead.append(self._start(self._next_plan()))
            started = self._ahead.popleft()
            for task in started.tasks:
                task.result()
        except BaseException as error:
            if self._closed:  # By another thread, while this one was waiting.
                raise closed_error() from error
            self.close()
            raise
        self.position += self._batch_size
        plan = started.plan
        images, noise = self._pool.lend(started.buffer)
        return Batch(
            images,
            torch.from_numpy(plan.positions),
            None if started.labels is None else torch.from_numpy(started.labels),
            noise,
            Samples(plan.shards, plan.rows, started.crc32, self._files),
            started.buffer,
        )

    def epoch(self) -> Iterator[Batch]:
        """The batches up to the first one that reaches the end of the epoch that `position` lies in.

        No batch is padded, cut or repeated: where `samples` is no multiple of the batch size, the last batch holds the
        first samples of the next epoch too, and the next call goes on behind them. After a resume within an epoch it
        gives what is left of it.
        """
        end = (self.position // self.samples + 1) * self.samples
        while self.position < end:
            yield next(self)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, in values that JSON knows; equal on all ranks.

        It holds `position` and what gives it a meaning: the set's fingerprint, split, seed, window, lanes and flip.
        Batch size, ranks, threads and memory are not in it, and may be others when the run goes on.
        """
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batch after which `state_dict` gave `state`, whether or not this loader was read from.

        Raises `ConfigError`, and stays where it is, where the state is of another order or set, or of no loader.
        """
        if self._closed:
            raise closed_error()
        position = state.get("position")
        if type(position) is not int or position < 0 or self._identity().keys() - state.keys():
            raise ConfigError(f"state must be what state_dict() gave; got {dict(state)}. Load the loader's own state.")
        others = {name: state[name] for name, here in self._identity().items() if state[name] != here}
        if others:
            found = ", ".join(f"{name} {value!r} (here {self._identity()[name]!r})" for name, value in others.items())
            raise ConfigError(f"state must be of the same set and order; got {found}. Make the loader as it was made.")
        running: list[Future[Any]] = [task for started in self._ahead for task in started.tasks if not task.cancel()]
        wait(running if self._next_plans is None else [*running, self._next_plans])  # A plan moves `_planned`.
        self._ahead.clear()
        self._plans.clear()
        self._next_plans = None
        self._planned = self.position = position
        if self._expect is not None:
            self._expect.forget()

    def close(self) -> None:
        """Stop all threads and free what was read ahead; batches that were handed over stay valid."""
        if not self._closed:
            self._closed = True
            self._files.close()  # First: decode threads may be waiting for a shard.
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._ahead.clear()
            self._pool.clear()

    def _identity(self) -> dict[str, Any]:
        """What the sample at a position, as it is handed over, is a function of."""
        return {
            "fingerprint": self.shards.fingerprint,
            "split": self._split,
            "seed": self._seed,
            "window": self.order.window,
            "lanes": self.order.lanes,
            "flip": self._flip,
        }

    def _next_plan(self) -> _Plan:
        """The plan of the next batch; while a block of them is used up, a decode thread makes the next."""
        if not self._plans:
            if self._next_plans is None:
                self._next_plans = self._executor.submit(self._plan, self.prefetch + 1)
            self._plans.extend(self._next_plans.result())
            self._next_plans = self._executor.submit(
                self._plan, max(1, min(_PLAN, self.order.total) // self._batch_size)
            )
        return self._plans.popleft()

    def _plan(self, batches: int) -> list[_Plan]:
        """This process's part of the next so many batches."""
        end = self._planned + batches * self._batch_size
        positions = np.arange(self._planned, end, dtype=np.int64)
        self._planned = end
        positions = positions[positions % self._world_size == self._rank]
        shards, rows = self.order.locate(positions)
        return [_Plan(*parts) for parts in zip(*(np.split(a, batches) for a in (positions, shards, rows)), strict=True)]

    def _start(self, plan: _Plan) -> _Started:
        self._expect(self.position, int(plan.positions[-1]) + 1)
        count = len(plan.positions)
        started = _Started(plan, self._pool.take(), self._empty_labels(count), np.empty(count, np.int64), [])
        for begin in range(0, count, self._chunk):
            part = slice(begin, min(begin + self._chunk, count))
            started.tasks.append(self._executor.submit(self._decode, started, part))
        return started

    def _empty_labels(self, count: int) -> NDArray[np.int8] | NDArray[np.int64] | None:
        if not self._labels:
            return None
        if self.shards.attributes:
            return np.empty((count, len(self.shards.attributes)), np.int8)
        return np.empty(count, np.int64)

    def _decode(self, started: _Started, part: slice) -> None:
        """Fill one part of a batch; runs in a decode thread."""
        plan, images, noise = started.plan, started.buffer.images[part], started.buffer.noise
        files = self._files.open(plan.shards[part].tolist())
        rows = plan.rows[part].tolist()
        try:
            decoder = self._decoders.decoder
        except AttributeError:
            decoder = self._decoders.decoder = Decoder(self.shards.encoding)
        try:
            decoder.fill(files, rows, images)
        except LeanstreamError:
            raise
        except Exception as error:
            error.add_note(
                f"while decoding positions {plan.positions[part][[0, -1]].tolist()} of {self.shards.location}"
            )
            raise
        if self._flip:
            _mirror(images, np.flatnonzero(draw_words(plan.positions[part], "flip", self._seed) & 1))
        if noise is not None:
            noise[part] = normal(plan.positions[part], noise.shape[1], seed=self._seed, stream="latent")
        started.crc32[part] = [file.crc32.item(row) for file, row in zip(files, rows, strict=True)]
        if started.labels is not None:
            started.labels[part] = [self._label(file, row) for file, row in zip(files, rows, strict=True)]

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


def _opened(
    shards: str | os.PathLike[str] | ShardSet,
    cache: str | os.PathLike[str] | bool | None,
    cache_bytes: int | None,
    patience: Patience,
) -> ShardSet:
    if not isinstance(shards, ShardSet):
        return ShardSet.open(shards, cache=cache or False, cache_bytes=cache_bytes, patience=patience)
    if cache is not None:
        shards = replace(shards, cache=cache if isinstance(cache, bool) else Path(cache))
    return shards if cache_bytes is None else replace(shards, cache_bytes=cache_bytes)


def _mirror(images: NDArray[np.uint8], chosen: NDArray[np.int64]) -> None:
    """Turn the `chosen` ones of `images` [n, H, W, C] left to right."""
    for channel in range(images.shape[3]):  # Long strided loops: three times as fast as short loops over the channels.
        images[chosen, :, :, channel] = images[chosen, :, ::-1, channel]


def _at_least(lowest: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < lowest:
            raise ConfigError(f"{name} must be at least {lowest}; got {value}. Choose a larger one.")


def _step_back(nice: int) -> None:
    """Make the calling thread less urgent than the rest of its process, where threads have a niceness of their own."""
    if nice and sys.platform == "linux":
        me = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + nice)

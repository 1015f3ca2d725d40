"""The streaming loader: plain WebDataset shards in, batches out, exact from any position.

    positions ──> order ──> (shard, row) ──> open shards ──> decode threads ──> batches, in order
                            planned one       remote ones      many reads a call,  into a buffer that
                            block ahead       fetched ahead    crc32, libjpeg      is used again

Threads and not processes: libjpeg-turbo decodes without the interpreter lock, nothing is copied between processes,
and memory does not grow with copies of the interpreter. What is ahead is bounded by `prefetch` batches.
"""

import contextlib
import operator
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn, Self

import numpy as np
import torch
import torch.utils.data
from numpy.typing import NDArray

from pipeline.batch import Batch, Buffer, BufferPool, Layout, Samples, Skipped
from pipeline.counter import draw_words, normal
from pipeline.errors import ConfigError, LeanstreamError, ShardError, StoppedError, UserError
from pipeline.machine import local_processes, usable_cores
from pipeline.order import Order
from pipeline.remote.transport import Patience
from pipeline.shards.dataset import Dataset, Source
from pipeline.shards.decode import Decoder, DecodeThreads
from pipeline.shards.open_shards import Lookahead, OpenShards, check_cache_limit, closed_error
from pipeline.shards.shard import ShardFile

_LEAST_CHUNK, _MOST_CHUNK = 32, 256
"""Images a decode task: every hand-over between threads costs as much as decoding one or two."""
_TASKS_A_THREAD = 4
"""Tasks that are ready for each thread, at least: few, but enough to keep all of them busy."""
_MOST_THREADS = 4
"""More of them wait for the interpreter's lock rather than decode, and the training loop with them."""
_PLAN = 8192
"""Positions located at once; at most an epoch."""
RAM_BYTES = 32 << 20
"""Memory for decoded batches, unless told otherwise."""
_MOST_AHEAD = 8
"""Batches decoded ahead, at most, where the memory allows more."""
_MARGIN = 16
"""Bytes before images that are decoded: to memory aligned to 32 bytes libjpeg-turbo writes past the caches, which takes
it 12% longer. Raw ones are copied 8% faster to where they are aligned."""
_MOST = 1 << 60
"""Of any number: what follows from it still fits 64 bits."""
_LOOK_S = 0.2
"""Time between looks at whether to stop, while a batch is waited for."""


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
    tasks: list[Future[Any]] = field(default_factory=list)
    damaged: dict[int, tuple[Skipped, ShardError]] = field(default_factory=dict)
    """By place in the batch, what is to be left out."""


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
        shards: Source | Sequence[Source] | Dataset,
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
        on_error: Literal["raise", "skip"] | None = None,
        stop: Callable[[], bool] | None = None,
        pin_memory: bool | None = None,
        cache: str | os.PathLike[str] | bool | None = None,
        cache_bytes: int | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Open the set; nothing is read before the first batch.

        Args:
            shards: a shard set, its folder, or its URL (`s3://bucket/faces-64`); or a list of them, which are read as
                one. With `*N` behind it (`"shards/rare*3"`) a set is read N times in each epoch of training.
            split: `train`, `val` or `test`.
            batch_size: samples in a global batch; each process gets batch_size / world_size of them.
            seed: names the order, the flips and the noise.
            start: the first position, from 0; position p lies in epoch p // samples.
            rank: this process's number; it takes the positions with p % world_size == rank.
            world_size: number of processes; must divide batch_size.
            threads: decode threads; default: `decode_threads()`.
            nice: from 0 to 19, how far the loop's own threads go before them (Linux), for a loop that computes on the
                cores itself: one of its threads that had to wait would keep all others waiting.
            prefetch: batches decoded ahead; default: as many as `ram_bytes` allow, from 1 to 8.
            ram_bytes: memory for images and noise: the batches ahead, the one handed over and the one before it.
            window: shards whose samples are mixed with each other, in each lane (default: see `pipeline.order`).
            lanes: streams that a batch is drawn from (default: see `pipeline.order`).
            flip: mirror each image left to right with probability 1/2, drawn by position.
            labels: give `Batch.labels` from the samples' json.
            noise: standard normals for each sample in `Batch.noise`, drawn by position; 0: none.
            stop: asked several times a second while a batch is waited for; once it says True, `next` raises
                `StoppedError`. The loader stands where it was, and may be read on.
            pin_memory: page-locked memory for images and noise; default: if there is a CUDA device.
            on_error: what a damaged sample does: `raise`, or `skip` to hand over its batch without it and list it in
                `Batch.skipped`. A shard that cannot be opened is an error always.
            cache, cache_bytes, patience: as `Dataset.open` takes them; default, as for `on_error`: what the dataset was
                opened with.

        Raises:
            UserError: for arguments or sets that cannot be used.
            ShardError: while iterating, where a shard is damaged; it names shard and sample. It comes in the place of
                the batch that cannot be had, after all batches before that one.
            TransportError: while iterating, where a shard could not be fetched in time.
        """
        batch_size, world_size, ram_bytes = _whole(1, batch_size=batch_size, world_size=world_size, ram_bytes=ram_bytes)
        start, rank, nice, noise = _whole(0, start=start, rank=rank, nice=nice, noise=noise)
        threads, prefetch = _whole(1, or_none=True, threads=threads, prefetch=prefetch)
        (seed,), (window, lanes) = _whole(None, seed=seed), _whole(None, or_none=True, window=window, lanes=lanes)
        if rank >= world_size:
            raise ConfigError(f"rank must be below world_size {world_size}; got {rank}. Count ranks from 0.")
        if batch_size % world_size:
            raise ConfigError(
                f"batch_size must be a multiple of world_size {world_size}; got {batch_size}. Choose another."
            )
        self._pid = os.getpid()
        self._check_process()
        given: dict[str, Any] = {"cache": cache, "cache_bytes": cache_bytes, "patience": patience, "on_error": on_error}
        self.shards = Dataset.open(shards, **given)
        if labels:
            self.shards.require_labels()
        split_shards = self.shards.split(split)
        self.order = Order(split_shards.samples, seed=seed, window=window, lanes=lanes)
        self.position = start
        """Position at which the next batch starts: it counts what was handed over, not what is decoded ahead."""
        self._split, self._seed, self._flip, self._labels = split, seed, flip, labels
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._stop = stop
        size, channels = self.shards.image_size, self.shards.channels
        margin = 0 if self.shards.encoding == "raw" else _MARGIN
        layout = Layout((batch_size // world_size, size, size, channels), noise, margin)
        self.prefetch = prefetch or max(1, min(ram_bytes // layout.bytes - 2, _MOST_AHEAD))
        """Batches that are decoded ahead."""
        disk_cache = self.shards.open_cache()
        if disk_cache is not None:
            ahead, processes = (self.prefetch + 1) * batch_size, min(world_size, local_processes())
            together = min(self.order.lanes, len(self.order.lanes_of(rank, world_size)) * processes)
            check_cache_limit(disk_cache, split_shards, self.order, lanes=together, ahead=ahead)
            disk_cache.shrink()
        limit = 2 * self.order.window * self.order.lanes
        self._files = OpenShards(split_shards, limit, disk_cache, self.shards.patience)
        self._expect = Lookahead(self._files, self.order, rank, world_size)
        pinned = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._pool = BufferPool(layout, pinned=pinned, keep=self.prefetch + 2)
        threads = threads or decode_threads()
        ahead = batch_size // world_size * (self.prefetch + 1)
        self._chunk = min(max(ahead // (_TASKS_A_THREAD * threads), _LEAST_CHUNK), _MOST_CHUNK)
        self._threads = DecodeThreads(threads, nice)
        self._planned = start
        self._next_plans: Future[list[_Plan]] | None = None
        self._plans: deque[_Plan] = deque()
        self._ahead: deque[_Started] = deque()
        # With the last reference to the loader, or at the interpreter's exit, all threads end.
        self._end = weakref.finalize(self, _end, self._pid, self._files, self._threads)

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
        self._check_open()
        try:
            while len(self._ahead) <= self.prefetch:
                self._ahead.append(self._start(self._next_plan()))
            started = self._ahead[0]
            self._wait(started.tasks)
            for task in started.tasks:
                task.result()
            batch = self._batch(started)
        except StoppedError:
            raise
        except BaseException as error:
            if not self._end.alive:  # Closed by another thread, while this one was waiting.
                raise closed_error() from error
            self.close()
            raise
        self._ahead.popleft()
        self.position += self._batch_size
        return batch

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
        self._check_open()
        try:
            (position,) = _whole(0, position=state["position"])
            missing = self._identity().keys() - state.keys()
        except (ConfigError, TypeError, KeyError, AttributeError):
            missing = {"position"}
        if missing:
            raise ConfigError(f"state must be what state_dict() gave; got {state!r}. Load the loader's own state.")
        others = {name: state[name] for name, here in self._identity().items() if state[name] != here}
        if others:
            found = ", ".join(f"{name} {value!r} (here {self._identity()[name]!r})" for name, value in others.items())
            raise ConfigError(f"state must be of the same set and order; got {found}. Make the loader as it was made.")
        running: list[Future[Any]] = [task for started in self._ahead for task in started.tasks if not task.cancel()]
        self._wait(running if self._next_plans is None else [*running, self._next_plans])  # A plan moves `_planned`.
        self._ahead.clear()
        self._plans.clear()
        self._next_plans = None
        self._planned = self.position = position
        self._expect.forget()

    def close(self) -> None:
        """Stop all threads and free what was read ahead; batches that were handed over stay valid."""
        if self._end.alive and os.getpid() == self._pid:
            self._end()
            self._ahead.clear()
            self._pool.clear()

    def __reduce__(self) -> NoReturn:
        raise _other_process("a copy for another process")

    def _check_open(self) -> None:
        self._check_process()
        if not self._end.alive:
            raise closed_error()

    def _check_process(self) -> None:
        """Raise `UserError` in another process than the loader's own, where its threads and locks are not."""
        if os.getpid() != self._pid:
            raise _other_process(f"process {os.getpid()}, a fork of process {self._pid}")
        if torch.utils.data.get_worker_info() is not None:
            raise _other_process("a worker process of a DataLoader")

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

    def _wait(self, tasks: Sequence[Future[Any]]) -> None:
        """Until all are done; in slices, so that a request to stop is heard."""
        for task in tasks:
            while not task.done():
                with contextlib.suppress(TimeoutError, CancelledError):
                    task.exception(_LOOK_S)
                if not task.done() and self._stop is not None and self._stop():
                    raise StoppedError(f"asked to stop, while waiting for the samples from position {self.position} on")

    def _next_plan(self) -> _Plan:
        """The plan of the next batch; while a block of them is used up, a decode thread makes the next."""
        if not self._plans:
            if self._next_plans is None:
                self._next_plans = self._threads.submit(self._plan, self.prefetch + 1)
            self._wait([self._next_plans])
            self._plans.extend(self._next_plans.result())
            self._next_plans = self._threads.submit(
                self._plan, max(1, min(_PLAN, self.order.total) // self._batch_size)
            )
        return self._plans.popleft()

    def _plan(self, _: Decoder, batches: int) -> list[_Plan]:
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
        started = _Started(plan, self._pool.take(), self._empty_labels(count), np.empty(count, np.int64))
        for begin in range(0, count, self._chunk):
            part = slice(begin, min(begin + self._chunk, count))
            started.tasks.append(self._threads.submit(self._decode, started, part))
        if started.buffer.noise is not None:
            # Apart: drawn for few samples at once, threads would mostly hand the interpreter's lock to each other.
            for begin in range(0, count, _MOST_CHUNK):
                part = slice(begin, min(begin + _MOST_CHUNK, count))
                started.tasks.append(self._threads.submit(self._draw, started, part))
        return started

    def _empty_labels(self, count: int) -> NDArray[np.int8] | NDArray[np.int64] | None:
        if not self._labels:
            return None
        if self.shards.attributes:
            return np.empty((count, len(self.shards.attributes)), np.int8)
        return np.empty(count, np.int64)

    def _decode(self, decoder: Decoder, started: _Started, part: slice) -> None:
        """Fill one part of a batch; runs in a decode thread."""
        plan, images = started.plan, started.buffer.images[part]
        files = self._files.open(plan.shards[part].tolist())
        rows = plan.rows[part].tolist()
        try:
            self._fill(decoder, started, files, rows, part)
        except ShardError:
            if self.shards.on_error == "raise":
                raise
            self._fill_what_is_whole(decoder, started, files, rows, part)
        if self._flip:
            _mirror(images, np.flatnonzero(draw_words(plan.positions[part], "flip", self._seed) & 1))

    def _draw(self, _: Decoder, started: _Started, part: slice) -> None:
        """Fill one part of a batch's noise; runs in a decode thread."""
        noise = started.buffer.noise
        assert noise is not None, "asked for"
        noise[part] = normal(started.plan.positions[part], noise.shape[1], seed=self._seed, stream="latent")

    def _fill(
        self, decoder: Decoder, started: _Started, files: Sequence[ShardFile], rows: Sequence[int], part: slice
    ) -> None:
        try:
            decoder.fill(files, rows, started.buffer.images[part])
        except LeanstreamError:
            raise
        except Exception as error:
            at = started.plan.positions[part][[0, -1]].tolist()
            error.add_note(f"while decoding positions {at} of {self.shards.location}")
            raise
        started.crc32[part] = [file.crc32.item(row) for file, row in zip(files, rows, strict=True)]
        if started.labels is not None:
            labels = self.shards.attributes, self.shards.classes
            started.labels[part] = [file.label(row, *labels) for file, row in zip(files, rows, strict=True)]

    def _fill_what_is_whole(
        self, decoder: Decoder, started: _Started, files: Sequence[ShardFile], rows: Sequence[int], part: slice
    ) -> None:
        """One sample after the other; notes those that are damaged."""
        for slot, file, row in zip(range(part.start, part.stop), files, rows, strict=True):
            try:
                self._fill(decoder, started, [file], [row], slice(slot, slot + 1))
            except ShardError as error:
                position = int(started.plan.positions[slot])
                started.damaged[slot] = Skipped(position, file.path, file.named(row), str(error)), error

    def _batch(self, started: _Started) -> Batch:
        """What is handed over of a batch that is decoded."""
        plan = started.plan
        images, noise = self._pool.lend(started.buffer)
        batch = Batch(
            images,
            torch.from_numpy(plan.positions),
            None if started.labels is None else torch.from_numpy(started.labels),
            noise,
            Samples(plan.shards, plan.rows, started.crc32, self._files),
            started.buffer,
        )
        if not started.damaged:
            return batch
        slots = sorted(started.damaged)
        if len(slots) == len(batch):
            raise started.damaged[slots[0]][1]
        skipped = tuple(started.damaged[slot][0] for slot in slots)
        return batch.without(np.array(slots), skipped)


def decode_threads(processes: int = 1) -> int:
    """How many serve each of `processes` on this machine best: its part of the cores, at most 4."""
    return min(max(1, usable_cores() // processes), _MOST_THREADS)


def _end(pid: int, files: OpenShards, threads: DecodeThreads) -> None:
    """Close the shards and end the threads; in a fork there are none."""
    if os.getpid() == pid:
        files.close()  # First: decode threads may be waiting for a shard.
        threads.close()


def _whole(least: int | None, *, or_none: bool = False, **values: object) -> list[Any]:
    """The values as ints, of whichever library they are; `ConfigError` where one is no whole number, or below."""
    found: list[int | None] = []
    for name, value in values.items():
        try:
            if isinstance(value, bool):
                raise TypeError
            number = None if value is None and or_none else operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise ConfigError(f"{name} must be a whole number; got {value!r}. Write one.") from None
        if least is not None and number is not None and number < least:
            raise ConfigError(f"{name} must be at least {least}; got {value}. Choose a larger one.")
        if least is not None and number is not None and number > _MOST:
            raise ConfigError(f"{name} must be at most {_MOST:,}; got {value}. Choose a smaller one.")
        found.append(number)
    return found


def _other_process(found: str) -> UserError:
    return UserError(
        f"a loader must be read in the process that made it; got {found}. Read it without worker processes: its own "
        "threads decode ahead. If several processes share the data, each makes a loader, with rank and world_size."
    )


def _mirror(images: NDArray[np.uint8], chosen: NDArray[np.int64]) -> None:
    """Turn the `chosen` ones of `images` [n, H, W, C] left to right."""
    for channel in range(images.shape[3]):  # Long strided loops: three times as fast as short loops over the channels.
        images[chosen, :, :, channel] = images[chosen, :, ::-1, channel]

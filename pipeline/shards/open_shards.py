"""The shards that are open, and the threads that open them ahead of their need.

    open([3, 8])  ──> asked for ─┐
    expect(now, soon) ──> now ───┼──> up to 4 threads ──> disk cache ──> ShardFile
                          soon ──┘                        (only fetched, so that it may be evicted)

A shard on this machine, unless it is read through a disk cache too, is opened when it is asked for, several at a time:
on a mounted drive an `open` may take a second.
"""

import contextlib
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from concurrent.futures import Future, InvalidStateError

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, ShardError, UserError
from pipeline.format import index_bytes
from pipeline.order import Order
from pipeline.remote.cache import DiskCache, NoRoomError
from pipeline.remote.fetch import fetch
from pipeline.remote.transport import Patience, pause
from pipeline.shards.dataset import Shards
from pipeline.shards.shard import Copy, ShardFile

_FETCHING, _OPENING = 4, 8
"""Threads, with and without a cache. A thread holds up to two chunks of a shard while it fetches."""
_EVALUATION = 3
"""Shards that a loader with one lane and windows of one shard has open together."""
_LOOK_S = 0.05
"""Time between looks whether there is room in the cache."""
_JOIN_S = 2.0
"""Time that a closing loader waits for threads whose file system cannot be interrupted."""


class OpenShards:
    """The open shards of one split, at most `limit` of them beside those that are needed now; safe for threads."""

    def __init__(self, shards: Shards, limit: int, cache: DiskCache | None, patience: Patience) -> None:
        self._shards, self._limit, self._cache, self._patience = shards, limit, cache, patience
        self._lock = threading.Lock()
        self._files: OrderedDict[int, ShardFile] = OrderedDict()
        self._opening: dict[int, Future[ShardFile]] = {}
        """Shards that were asked for or are being opened; a failure stays, since whoever meets it closes the loader."""
        self._asked: deque[int] = deque()
        self._now: deque[int] = deque()
        self._soon: deque[int] = deque()
        self._needed: frozenset[int] = frozenset()
        self._near: frozenset[int] = frozenset()
        self._threads: set[threading.Thread] = set()
        self._stopped = threading.Event()
        self._pid = os.getpid()

    def open(self, numbers: Iterable[int], *, late: bool = False) -> list[ShardFile]:
        """The shards of these numbers, in their order; they stay open for as long as the caller holds them.

        A `late` look, at a batch that may have outlived its loader, works after `close` too. Raises what opening or
        fetching one of them raised.
        """
        numbers = list(numbers)
        if os.getpid() != self._pid:  # A fork has no threads of ours, and perhaps a lock that nobody will release.
            opened = {number: self._load(number, None) for number in dict.fromkeys(numbers)}
            return [opened[number] for number in numbers]
        found: dict[int, ShardFile] = {}
        waited: dict[int, Future[ShardFile]] = {}
        with self._lock:
            for number in dict.fromkeys(numbers):
                file = self._files.get(number)
                if file is not None:
                    self._files.move_to_end(number)
                    found[number] = file
                elif not self._stopped.is_set():
                    waited[number] = self._ask(number, again=late)
            self._start_threads()
        for number, future in waited.items():
            found[number] = future.result()
        for number in numbers:
            if number not in found:
                if not late:
                    raise closed_error()
                found[number] = self._load(number, None)  # Its waits end with the patience.
        return [found[number] for number in numbers]

    def expect(self, now: Iterable[int], soon: Iterable[int]) -> None:
        """Open the shards `now`, fetch those that are needed `soon`, and let go of all others.

        Of what is not read through a cache nothing is fetched: what is needed soon is opened then.
        """
        now, soon = list(now), [number for number in soon if self._shards.cached[number]]
        with self._lock:
            self._needed, self._near = frozenset(now), frozenset(now + soon)
            self._now, self._soon = (
                deque(number for number in numbers if number not in self._files and number not in self._opening)
                for numbers in (now, soon)
            )
            self._keep(self._near)
            self._start_threads()

    def close(self) -> None:
        """Close all shards that nobody reads from, and end all threads and whoever waits in `open`."""
        with self._lock:
            self._stopped.set()
            unfinished = list(self._opening.values())
            for queue in (self._opening, self._asked, self._now, self._soon, self._files):
                queue.clear()
            threads = list(self._threads)
        for future in unfinished:
            _fail(future, closed_error())
        until = time.monotonic() + _JOIN_S
        for thread in threads:
            thread.join(max(0, until - time.monotonic()))

    def _ask(self, number: int, *, again: bool) -> "Future[ShardFile]":
        future = self._opening.get(number)
        if future is None or (again and future.done()):
            future = self._opening[number] = Future()
            self._asked.append(number)
        return future

    def _start_threads(self) -> None:
        """As many threads as there are jobs; they end when there are none."""
        jobs = len(self._asked) + len(self._now) + len(self._soon)
        most = _OPENING if self._cache is None else _FETCHING
        for number in range(min(jobs, most - len(self._threads))):
            thread = threading.Thread(target=self._work, name=f"fetch_{number}", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                job = self._next_job()
                if job is None:
                    self._threads.discard(threading.current_thread())
                    return
            number, future = job
            if future is None:
                self._prefetch(number)
                continue
            try:
                file = self._load(number, self._stopped)
            except BaseException as error:
                _fail(future, error)
                continue
            with self._lock:
                self._opening.pop(number, None)
                if not self._stopped.is_set():
                    self._files[number] = file
                    self._trim()
            with contextlib.suppress(InvalidStateError):  # Closed meanwhile.
                future.set_result(file)

    def _next_job(self) -> "tuple[int, Future[ShardFile] | None] | None":
        """What is asked for first, then what is needed now, then what is needed soon, which nobody waits for."""
        if self._stopped.is_set():
            return None
        if self._asked:
            number = self._asked.popleft()
            return number, self._opening[number]
        while self._now:
            number = self._now.popleft()
            if number not in self._files and number not in self._opening:
                self._opening[number] = Future()
                return number, self._opening[number]
        while self._soon:
            number = self._soon.popleft()
            if number not in self._files and number not in self._opening:
                return number, None
        return None

    def _load(self, number: int, stopped: threading.Event | None) -> ShardFile:
        shards, shard = self._shards[number]
        cache = self._cache
        if cache is None or not self._shards.cached[number]:
            return ShardFile(shards, shard)
        for last in (False, True):
            descriptor = self._fetch(number, cache, stopped)
            try:
                return ShardFile(shards, shard, Copy(cache.folder / f"{cache.stem(shard)}.tar", descriptor))
            except ShardError:
                if last:
                    raise
                cache.drop(shard, stopped)  # It was damaged since it was fetched.
        raise AssertionError("the loop returns or raises")

    def _fetch(self, number: int, cache: DiskCache, stopped: threading.Event | None) -> int:
        """Fetch a shard that somebody waits for; where the cache is full, wait until others let go of theirs."""
        until = time.monotonic() + self._patience.deadline_s
        while True:
            try:
                return self._fetched(number, cache, self._needed, stopped)
            except NoRoomError as error:
                with self._lock:
                    self._keep(self._needed)
                needed = int(sizes_in_cache(self._shards, sorted(self._needed | {number})).sum())
                if needed > cache.limit_bytes or time.monotonic() > until:
                    raise UserError(
                        f"cache_bytes must hold the shards that are open together, {needed:,} bytes for this process; "
                        f"got {cache.limit_bytes:,} for {cache.folder}, of which {error.args[0]:,} are in use. "
                        "Raise it, or take a smaller window."
                    ) from error
            pause(_LOOK_S, stopped)

    def _prefetch(self, number: int) -> None:
        """Have a shard in the cache; a failure is nobody's yet, it will be met again when the shard is needed."""
        assert self._cache is not None, "only a cache is filled ahead"
        try:
            os.close(self._fetched(number, self._cache, self._near, self._stopped))
        except NoRoomError:
            with self._lock:
                self._soon.clear()
        except Exception:
            pass

    def _fetched(self, number: int, cache: DiskCache, spare: frozenset[int], stopped: threading.Event | None) -> int:
        """A descriptor of the copy of a shard; those of the shards to `spare` stay in the cache."""
        shards, shard = self._shards[number]
        hashes = {self._shards[other][1].sha256 for other in spare}
        return fetch(shards, shard, cache, spare=hashes, patience=self._patience, stopped=stopped)

    def _keep(self, numbers: frozenset[int]) -> None:
        for number in [number for number in self._files if number not in numbers]:
            del self._files[number]

    def _trim(self) -> None:
        while len(self._files) > max(self._limit, len(self._needed)):
            self._files.popitem(last=False)


class Lookahead:
    """Tells `OpenShards` which shards are needed now and soon, whenever the answer changes; belongs to one thread."""

    def __init__(self, files: OpenShards, order: Order, rank: int, world_size: int) -> None:
        self._files, self._lanes = files, order.lanes_of(rank, world_size)
        # An order of its own: the loader's is in use by another thread.
        self._order = Order(order.samples, seed=order.seed, window=order.window, lanes=order.lanes)
        self._low = self._high = -1

    def forget(self) -> None:
        """The positions that come next may lie anywhere."""
        self._low = self._high = -1

    def __call__(self, begin: int, end: int) -> None:
        """The positions [begin, end) are being read."""
        if begin >= self._low or end > self._high:
            needed = self._order.needed(begin, end, self._lanes)
            self._low, self._high = needed.low, needed.high
            self._files.expect(needed.now, needed.soon)


def check_cache_limit(cache: DiskCache, shards: Shards, order: Order, *, lanes: int, ahead: int) -> None:
    """Raise `ConfigError` where a cache is too small for the shards that are open together.

    These are, in each lane, the window that is being left and the one that is being entered, and what lies between
    them: at an epoch's end a window may be shorter than the batches ahead. And a few more, for an evaluation that
    reads another split shard after shard meanwhile.

    Args:
        cache: the cache.
        shards: those of the split that is read.
        order: over these shards.
        lanes: lanes that are read through this cache.
        ahead: positions between the oldest and the newest that are being read.
    """
    rows = -(-ahead // order.lanes)
    between = int(np.searchsorted(np.cumsum(np.sort(shards.samples)), rows, side="right"))
    epoch_ends = 1 + ahead // order.total  # The shards on both sides of one may be there in part.
    count = min(len(shards), lanes * (2 * order.window + between + 2 * epoch_ends))
    sizes = np.sort(sizes_in_cache(shards, slice(None)))
    needed = int(sizes[-count:].sum()) + _EVALUATION * int(sizes[-1])
    if needed > cache.limit_bytes:
        raise ConfigError(
            f"cache_bytes must hold the {count + _EVALUATION} shards that are open together, {needed:,} bytes; got "
            f"{cache.limit_bytes:,} for {cache.folder}. Raise it, or take a smaller window (now {order.window})."
        )


def sizes_in_cache(shards: Shards, numbers: list[int] | slice) -> NDArray[np.int64]:
    """Bytes that each of these shards takes in a cache."""
    each = index_bytes(1) - index_bytes(0)
    sizes: NDArray[np.int64] = (shards.bytes + each * shards.samples + index_bytes(0)) * shards.cached
    return sizes[numbers]


def closed_error() -> UserError:
    """The error for a loader that is used after its end."""
    return UserError("the loader must be open; got a closed one. Make a new one from the position you are at.")


def _fail(future: "Future[ShardFile]", error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):  # Closed meanwhile.
        future.set_exception(error)

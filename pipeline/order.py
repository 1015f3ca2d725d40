"""The order of training: position -> (shard, row), a pure function that stores and replays nothing.

Epoch e permutes the shards and lays their rows in one line of N; the line is cut into L lanes of equal count, each
lane into windows at every W-th shard, and the rows of a window are permuted. Position p = e*N + i belongs to lane
p mod L, so that a batch mixes all lanes and a process that takes every R-th position (R divides L) reads only its
own lanes' shards. Every epoch is a bijection between its N positions and the N samples.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.counter import permutation
from pipeline.errors import ConfigError

Key = TypeVar("Key")
Value = TypeVar("Value")

_MOST_LANES = 4096
OPEN_SHARDS = 64
"""Shards whose rows are mixed with each other at any moment, by default; that many rows are held as indices."""


def default_lanes(shards: int) -> int:
    """8 from 64 shards on, else 1; never a function of the number of processes."""
    return 8 if shards >= 64 else 1


def default_window(lanes: int) -> int:
    """Shards a window, so that all lanes together mix `OPEN_SHARDS`; a set that fits one gets a full shuffle."""
    return max(1, OPEN_SHARDS // lanes)


@dataclass(frozen=True)
class Window:
    """A window of one lane in one epoch."""

    epoch: int
    lane: int
    number: int
    """Counted from 0 in each lane and epoch."""
    stop: int
    """The lane's first position behind this window, where its next window begins."""


@dataclass(frozen=True)
class Needed:
    """The shards behind some consecutive positions, and behind those that come next."""

    now: list[int]
    """Numbers of the shards in all windows that the positions touch, in the order in which windows begin."""
    soon: list[int]
    """Numbers of the shards in the windows that follow, nearest first, without those of `now`."""
    low: int
    """The answer holds for positions that begin below `low` ..."""
    high: int
    """... and end at or below `high`."""


class Order:
    """The order over one split.

    Memory is O(shards) for two epochs and O(rows) for the windows that are open, two a lane.
    """

    def __init__(
        self, samples: NDArray[np.int64], *, seed: int = 0, window: int | None = None, lanes: int | None = None
    ) -> None:
        """`samples` [shards] is the number of samples in each shard; all must be positive."""
        if len(samples) == 0 or samples.min() < 1:
            raise ConfigError("the shards must hold at least one sample each; got none. Build the set again.")
        self.lanes = default_lanes(len(samples)) if lanes is None else lanes
        if not 1 <= self.lanes <= _MOST_LANES:
            rule = "at least 1" if self.lanes < 1 else f"at most {_MOST_LANES}"
            raise ConfigError(f"lanes must be {rule}; got {lanes}. Leave it out for the default.")
        self.window = default_window(self.lanes) if window is None else window
        if self.window < 1:
            raise ConfigError(f"window must be at least 1 shard; got {window}. Leave it out for the default.")
        self.samples = samples.astype(np.int64)
        self.seed = seed
        self.total = int(samples.sum())
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], NDArray[np.int32 | np.int64]] = OrderedDict()

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shard numbers and row numbers, both int64 of shape [n], for `positions` [n], any and in any order."""
        lines = np.empty_like(positions)
        shards = np.empty_like(positions)
        rows = np.empty_like(positions)
        epochs = positions // self.total
        for number in np.unique(epochs).tolist():
            chosen = np.flatnonzero(epochs == number)
            epoch = self._epoch(number)
            line = self._lines(epoch, positions[chosen] - number * self.total)
            lines[chosen] = line
            place = np.searchsorted(epoch.starts, line, side="right") - 1
            shards[chosen] = epoch.shards[place]
            rows[chosen] = line - epoch.starts[place]
        return shards, rows

    def lanes_of(self, rank: int, world_size: int) -> range:
        """The lanes from which a process that takes the positions p with p % world_size == rank reads."""
        step = math.gcd(self.lanes, world_size)
        return range(rank % step, self.lanes, step)

    def window_at(self, position: int, lane: int) -> Window:
        """The window of `lane` that holds its first position at or behind `position`."""
        first = position + (lane - position) % self.lanes
        epoch = self._epoch(first // self.total)
        place = (first - epoch.number * self.total - (lane - epoch.phase) % self.lanes) // self.lanes
        cuts = epoch.cuts[lane]
        number = int(np.searchsorted(cuts, place, side="right")) - 1
        return Window(epoch.number, lane, number, first + (int(cuts[number + 1]) - place) * self.lanes)

    def window_shards(self, window: Window) -> NDArray[np.int64]:
        """Numbers of the shards in a window, in the order of the epoch's line."""
        epoch = self._epoch(window.epoch)
        begin, end = epoch.lane_starts[window.lane] + epoch.cuts[window.lane][window.number : window.number + 2]
        first = np.searchsorted(epoch.starts, begin, side="right") - 1
        return epoch.shards[first : np.searchsorted(epoch.starts, end, side="left")]

    def needed(self, begin: int, end: int, lanes: Iterable[int]) -> Needed:
        """The shards that the positions [begin, end) touch in `lanes`, and those of the next window of each lane."""
        touched, following = [], []
        low, high = math.inf, math.inf
        for lane in lanes:
            window = self.window_at(begin, lane)
            low = min(low, window.stop - self.lanes + 1)
            touched.append((begin, window))
            while window.stop < end:
                start, window = window.stop, self.window_at(window.stop, lane)
                touched.append((start, window))
            high = min(high, window.stop)
            following.append((window.stop, self.window_at(window.stop, lane)))
        now = self._shards_in_turn(touched)
        soon = self._shards_in_turn(following)
        return Needed(list(now), [number for number in soon if number not in now], int(low), int(high))

    def _shards_in_turn(self, windows: list[tuple[int, Window]]) -> dict[int, None]:
        """The shards of windows that begin at these positions, the earliest first, each once."""
        in_turn = sorted(windows, key=lambda pair: pair[0])
        return dict.fromkeys(number for _, window in in_turn for number in self.window_shards(window).tolist())

    def _lines(self, epoch: "_Epoch", index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places in the epoch's line of N rows for `index`, places in the epoch's order."""
        line = np.empty_like(index)
        lane_of = (index + epoch.phase) % self.lanes
        for lane in range(self.lanes):
            chosen = np.flatnonzero(lane_of == lane)
            if not len(chosen):
                continue
            place = (index[chosen] - (lane - epoch.phase) % self.lanes) // self.lanes
            cuts = epoch.cuts[lane]
            window_of = np.searchsorted(cuts, place, side="right") - 1
            for window in np.unique(window_of).tolist():
                inside = window_of == window
                rows = self._window(epoch.number, lane, window, int(cuts[window + 1] - cuts[window]))
                line[chosen[inside]] = epoch.lane_starts[lane] + cuts[window] + rows[place[inside] - cuts[window]]
        return line

    def _epoch(self, number: int) -> "_Epoch":
        return _cached(self._epochs, number, lambda: _Epoch(self, number), 2)

    def _window(self, epoch: int, lane: int, window: int, rows: int) -> NDArray[np.int32 | np.int64]:
        dtype = np.int32 if rows < 1 << 31 else np.int64
        return _cached(
            self._windows,
            (epoch, lane, window),
            lambda: permutation(rows, "rows", self.seed, epoch, lane, window).astype(dtype),
            2 * self.lanes,
        )


class _Epoch:
    """One epoch's shards in their order, and where its lanes and windows are cut."""

    def __init__(self, order: Order, number: int) -> None:
        self.number = number
        self.phase = number * order.total % order.lanes
        self.shards = permutation(len(order.samples), "shards", order.seed, number)
        self.starts = np.concatenate([[0], np.cumsum(order.samples[self.shards])])
        first = (np.arange(order.lanes) - self.phase) % order.lanes
        counts = np.maximum(0, (order.total - first + order.lanes - 1) // order.lanes)
        self.lane_starts = np.concatenate([[0], np.cumsum(counts)])
        self.cuts = [
            self._window_cuts(int(begin), int(end), order.window)
            for begin, end in zip(self.lane_starts[:-1], self.lane_starts[1:], strict=True)
        ]

    def _window_cuts(self, begin: int, end: int, window: int) -> NDArray[np.int64]:
        """Where the windows of the lane [begin, end) start and end, counted from `begin`."""
        first_shard = int(np.searchsorted(self.starts, begin, side="right")) - 1
        inner = self.starts[first_shard + window :: window]
        return np.concatenate([[begin], inner[inner < end], [end]]) - begin


def _cached(cache: OrderedDict[Key, Value], key: Key, make: Callable[[], Value], limit: int) -> Value:
    """The value of `key`, made where it is missing; the least recently used values beyond `limit` go."""
    if key in cache:
        cache.move_to_end(key)
        return cache[key]
    value = cache[key] = make()
    while len(cache) > limit:
        cache.popitem(last=False)
    return value

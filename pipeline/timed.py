"""The loader with a clock at its seams, for `pipeline.stats`."""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from pipeline.loader import StreamingLoader, _Plan, _Started
from pipeline.shards.decode import Decoder
from pipeline.shards.reads import Places, Reader, make_reader
from pipeline.shards.shard import ShardFile


class Clock:
    """Adds up the seconds of stages, from any thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to `stage`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def reset(self) -> None:
        """Begin again with nothing."""
        with self._lock:
            self.seconds.clear()


class _TimedReader:
    """A reader whose time is measured."""

    def __init__(self, reader: Reader, clock: Clock) -> None:
        self._reader, self._clock = reader, clock

    def read(self, places: Places, target: NDArray[np.uint8]) -> NDArray[np.int64]:
        """As `Reader.read`."""
        with self._clock.measure("read"):
            return self._reader.read(places, target)


class TimedLoader(StreamingLoader):
    """The loader as it is, with a clock at the seams: a few microseconds for each task of 32 images."""

    clock: Clock

    def watch(self, clock: Clock) -> None:
        """Measure from now on; nothing must have been read yet."""
        self.clock = clock
        opened = self._files.open

        def timed(numbers: Iterable[int], *, late: bool = False) -> list[ShardFile]:
            with clock.measure("open"):
                return opened(numbers, late=late)

        self._files.open = timed  # type: ignore[method-assign]

    def _plan(self, batches: int) -> list[_Plan]:
        with self.clock.measure("plan"):
            return super()._plan(batches)

    def _next_plan(self) -> _Plan:
        with self.clock.measure("next: plan"):
            return super()._next_plan()

    def _start(self, plan: _Plan) -> _Started:
        with self.clock.measure("next: hand over"):
            return super()._start(plan)

    def _decode(self, started: _Started, part: slice) -> None:
        if not hasattr(self._decoders, "decoder"):
            self._decoders.decoder = Decoder(self.shards.encoding, _TimedReader(make_reader(), self.clock))
        with self.clock.measure("task"):
            super()._decode(started, part)

    def sample_bytes(self, limit: int) -> list[bytes]:
        """The members of the first samples of the order, as many as `limit` bytes hold."""
        found: list[bytes] = []
        for begin in range(0, self.samples, 256):
            positions = np.arange(begin, min(begin + 256, self.samples))
            shards, rows = self.order.locate(positions)
            for file, row in zip(self._files.open(shards.tolist()), rows.tolist(), strict=True):
                data = os.pread(file.descriptor, file.size.item(row), file.offset.item(row))
                limit -= len(data)
                if limit < 0 and found:
                    return found
                found.append(data)
        return found

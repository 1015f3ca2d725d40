"""What no loader can beat: the decoder alone, and a gather from memory alone, on the same bytes in the same order.

The samples lie in memory, each thread works through its share of a permutation into buffers that it uses again, and
nothing is handed over.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from benchmarks.loaders.samples import pixels, stored_bytes, tars
from benchmarks.loaders.variants import Variant
from pipeline.format import ShardSet


def images_per_s(source: Path, variant: Variant, batch_size: int, workers: int, seconds: float) -> float:
    """Images a second over at least `seconds`, after a warm-up."""
    samples = ShardSet.open(source).split("train").total
    stored = (sample for tar in tars(source) for sample in stored_bytes(tar))
    if variant.encoding == "jpeg":
        fill = _decoder(list(stored), batch_size, variant.mode.endswith("fast"))
    else:
        fill = _gatherer(stored, samples, batch_size)
    _run(fill, samples, batch_size, workers, seconds / 4)
    return _run(fill, samples, batch_size, workers, seconds)


def _decoder(stored: list[bytes], batch_size: int, fast: bool) -> Callable[[], Callable[[NDArray[np.int64]], None]]:
    height, width, _, _ = simplejpeg.decode_jpeg_header(stored[0])

    def in_thread() -> Callable[[NDArray[np.int64]], None]:
        buffer = np.empty((batch_size, height, width, 3), np.uint8)
        places = list(buffer)

        def fill(rows: NDArray[np.int64]) -> None:
            for row, place in zip(rows.tolist(), places, strict=False):
                simplejpeg.decode_jpeg(stored[row], "RGB", fastdct=fast, buffer=place)

        return fill

    return in_thread


def _gatherer(
    stored: Iterable[bytes], samples: int, batch_size: int
) -> Callable[[], Callable[[NDArray[np.int64]], None]]:
    arrays = (pixels(sample).reshape(-1) for sample in stored)
    first = next(arrays)
    images = np.empty((samples, len(first)), np.uint8)
    images[0] = first
    for row, array in enumerate(arrays, 1):
        images[row] = array

    def in_thread() -> Callable[[NDArray[np.int64]], None]:
        buffer = np.empty((batch_size, images.shape[1]), np.uint8)

        def fill(rows: NDArray[np.int64]) -> None:
            # Without a mode, numpy checks the rows and writes through a second buffer.
            np.take(images, rows, axis=0, out=buffer[: len(rows)], mode="clip")

        return fill

    return in_thread


def _run(
    fill: Callable[[], Callable[[NDArray[np.int64]], None]], samples: int, batch_size: int, threads: int, seconds: float
) -> float:
    """Threads that fill batches until the time is over; the sum of their speeds."""

    def work(number: int) -> float:
        filler = fill()
        # All threads together see every sample once an epoch.
        order = np.random.default_rng(0).permutation(samples)[number::threads]
        batches = np.split(order, range(batch_size, len(order), batch_size))
        done, began = 0, time.perf_counter()
        while True:
            for rows in batches:
                filler(rows)
                done += len(rows)
                if (elapsed := time.perf_counter() - began) >= seconds:
                    return done / elapsed

    with ThreadPoolExecutor(threads) as executor:
        return sum(executor.map(work, range(threads)))

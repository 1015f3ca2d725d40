"""What a loader could do at best: decoding, or gathering, of what is in memory already, and nothing else."""

import io
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

_BATCH = 256
_CHUNK = 32
"""Images in the buffer that a thread decodes into again and again, as the loader's tasks have them."""


@dataclass(frozen=True)
class Turn:
    """Images in so many seconds, and the processor time of the whole process."""

    images: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @staticmethod
    def sum(turns: Sequence["Turn"]) -> "Turn":
        """All of them together."""
        return Turn(
            sum(turn.images for turn in turns),
            sum(turn.seconds for turn in turns),
            sum(turn.cpu_seconds for turn in turns),
        )


def bare_gather(pixels: NDArray[np.uint8], threads: int) -> Callable[[float], Turn]:
    """A function that copies random rows of `pixels` [n, bytes] into batches, on so many threads, for some seconds."""

    def gather(number: int, stop: threading.Event) -> int:
        rows = np.random.default_rng(number).integers(0, len(pixels), (64, _BATCH))
        out = np.empty((_BATCH, pixels.shape[1]), np.uint8)
        batches = 0
        while not stop.is_set():
            pixels.take(rows[batches % len(rows)], axis=0, out=out, mode="clip")
            batches += 1
        return batches * _BATCH

    return _on_threads(gather, threads)


def bare_decode(members: Sequence[bytes], shape: tuple[int, int, int], threads: int) -> Callable[[float], Turn]:
    """A function that decodes `members`, images of `shape` [H, W, 3], on so many threads, for some seconds."""

    def decode(number: int, stop: threading.Event) -> int:
        out = np.empty((_CHUNK, *shape), np.uint8)
        mine = members[number::threads] or members
        done = 0
        while not stop.is_set():
            data = mine[done % len(mine)]
            if data[:1] == b"\xff":
                simplejpeg.decode_jpeg(data, "RGB", buffer=out[done % _CHUNK])
            else:
                with Image.open(io.BytesIO(data)) as image:
                    out[done % _CHUNK] = np.asarray(image.convert("RGB"))
            done += 1
        return done

    return _on_threads(decode, threads)


def _on_threads(work: Callable[[int, threading.Event], int], threads: int) -> Callable[[float], Turn]:
    def run(seconds: float) -> Turn:
        stop = threading.Event()
        with ThreadPoolExecutor(threads, "limit") as executor:
            began, cpu = time.perf_counter(), time.process_time()
            futures: list[Future[int]] = [executor.submit(work, number, stop) for number in range(threads)]
            try:
                stop.wait(seconds)
            finally:
                stop.set()
            images = sum(future.result() for future in futures)
            return Turn(max(1, images), time.perf_counter() - began, time.process_time() - cpu)

    return run

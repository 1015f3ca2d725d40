"""How fast shard sets stream on this machine, where the time goes, and how far that is from the limit.

    python -m pipeline.stats shards/faces-64
    python -m pipeline.stats shards/faces-64 shards/more --batch-size 64 --threads 4 --json

The limit is what the decoder alone does on the same machine, in the same minutes, on as many threads: the same bytes,
already in memory, into a buffer that is used again; for raw sets a gather of rows that are in memory. Loader and limit
take turns, so that whatever else the machine does weighs on both.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import EXIT_DONE, ConfigError, LeanstreamError, report_error
from pipeline.files import expand_home
from pipeline.loader import StreamingLoader, decode_threads
from pipeline.machine import PeakMemory, show_bytes, usable_cores
from pipeline.shards.decode import Decoder
from pipeline.shards.picture import decode_picture, is_npy

EXIT_INTERRUPTED = 130
ROUNDS = 3
"""Turns of the loader and the limit."""
LIMIT_BYTES = 48 << 20
"""Members that are held in memory for the limit: more than a processor caches."""
_BATCH, _CHUNK = 256, 32
"""Rows that the bare gather copies at once; images in the buffer that the bare decoder uses again and again."""


@dataclass(frozen=True)
class Settings:
    """How to read, and for how long."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Folders or URLs of shard sets, which are read as one."""
    split: str = "train"
    """Split to read."""
    batch_size: int = 256
    """Samples in a batch."""
    threads: int | None = None
    """Decode threads, of the loader and of the limit; by default the loader's."""
    prefetch: int | None = None
    """Batches decoded ahead; by default what fits the loader's memory."""
    window: int | None = None
    """Shards mixed in each lane; by default as in training."""
    lanes: int | None = None
    """Lanes; by default as in training."""
    flip: bool = False
    """Mirror half of the images."""
    labels: bool = False
    """Read the labels too."""
    seconds: float = 8.0
    """Time for loader and limit together."""
    json: bool = False
    """Print everything as JSON."""
    debug: bool = False
    """Show the full traceback of an error."""


class Turn(NamedTuple):
    """Images in so many seconds, and the processor time of the whole process."""

    images: int
    seconds: float
    cpu_seconds: float

    @staticmethod
    def sum(turns: Sequence["Turn"]) -> "Turn":
        """All of them together."""
        images, seconds, cpu_seconds = (sum(figures) for figures in zip(*turns, strict=True))
        return Turn(int(images), seconds, cpu_seconds)


def measure(settings: Settings) -> dict[str, Any]:
    """Let loader and limit take turns; raises what the loader raises.

    Rates are images a second. `peak_bytes` is the process's highest PSS while the loader ran, all libraries included,
    `loader_bytes` what of it came since the set was opened. `stage_seconds` are the decode threads', `next_seconds`
    the loop's.
    """
    if settings.seconds <= 0:
        raise ConfigError(f"seconds must be more than 0; got {settings.seconds}. Leave it out for the default.")
    memory = PeakMemory(0.05)
    before = memory.sample()
    turn_s = settings.seconds / 2 / ROUNDS
    arguments = dataclasses.asdict(settings)
    for name in ("shards", "seconds", "json", "debug"):
        del arguments[name]
    opening = time.perf_counter()
    with TimedLoader(list(settings.shards), pin_memory=False, **arguments) as loader:
        threads = settings.threads or decode_threads()
        with memory:
            next(loader)
            first_batch = time.perf_counter() - opening
            loader.seconds.clear()
            loads = [_load(loader, turn_s)]
        limit, name = _limit(loader, threads)
        limits = [limit(turn_s)]
        for _ in range(ROUNDS - 1):
            loads.append(_load(loader, turn_s))
            limits.append(limit(turn_s))
        load, bare = (Turn.sum(turns) for turns in (loads, limits))
        spent = loader.seconds
        busy = {name: spent[name] for name in ("plan", "open", "read")}
        busy["decode"] = max(0.0, spent["task"] - spent["open"] - spent["read"])
        loop = {"plan": spent["next: plan"], "hand over": spent["next: hand over"]}
        return {
            "images": load.images,
            "seconds": load.seconds,
            "loader_rate": load.images / load.seconds,
            "limit_rate": bare.images / bare.seconds,
            "limit": name,
            "ratio": load.images / load.seconds / (bare.images / bare.seconds),
            "loader_cores": load.cpu_seconds / load.seconds,
            "limit_cores": bare.cpu_seconds / bare.seconds,
            "first_batch_seconds": first_batch,
            "peak_bytes": memory.peak,
            "loader_bytes": memory.peak - before,
            "stage_seconds": {**busy, "idle": max(0.0, threads * load.seconds - sum(busy.values()))},
            "next_seconds": {**loop, "wait for images": max(0.0, load.seconds - sum(loop.values()))},
            "threads": threads,
            "prefetch": loader.prefetch,
            "batch_size": settings.batch_size,
            "window": loader.order.window,
            "lanes": loader.order.lanes,
            "samples": loader.samples,
            "encoding": loader.shards.encoding,
            "image_size": loader.shards.image_size,
        }


class TimedLoader(StreamingLoader):
    """The loader as it is, with a clock at its seams: a few microseconds for each task of 32 images or more."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seconds = collections.defaultdict[str, float](float)
        """By stage; a task opens, reads and decodes."""
        self._timing = threading.Lock()
        self._files.open = self._timed("open", self._files.open)  # type: ignore[method-assign]
        for stage, method in (("next: plan", "_next_plan"), ("next: hand over", "_start"), ("plan", "_plan")):
            setattr(self, method, self._timed(stage, getattr(self, method)))

    def _timed(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self._measured(stage):
                return call(*arguments, **options)

        return timed

    @contextlib.contextmanager
    def _measured(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            with self._timing:
                self.seconds[stage] += time.perf_counter() - began

    def _decode(self, decoder: Decoder, *arguments: Any) -> None:
        if not hasattr(decoder.reader.read, "__wrapped__"):
            decoder.reader.read = self._timed("read", decoder.reader.read)  # type: ignore[method-assign]
        with self._measured("task"):
            super()._decode(decoder, *arguments)

    def sample_bytes(self, limit: int) -> Iterator[bytes]:
        """The members of the first samples of the order, as many as `limit` bytes hold, at least one."""
        found = False
        for begin in range(0, self.samples, _BATCH):
            shards, rows = self.order.locate(np.arange(begin, min(begin + _BATCH, self.samples)))
            for file, row in zip(self._files.open(shards.tolist()), rows.tolist(), strict=True):
                data = os.pread(file.descriptor, file.size.item(row), file.offset.item(row))
                limit -= len(data)
                if limit < 0 and found:
                    return
                found = True
                yield data


def _load(loader: TimedLoader, seconds: float) -> Turn:
    """Read for so long. The batches that were ready before the turn are not counted in it."""
    before = loader.seconds.copy()
    for _ in range(loader.prefetch + 1):
        next(loader)
    loader.seconds = before
    images, began, cpu = 0, time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - began) < seconds or not images:
        images += len(next(loader))
    return Turn(images, spent, time.process_time() - cpu)


def _limit(loader: TimedLoader, threads: int) -> tuple[Callable[[float], Turn], str]:
    """A function that decodes, or gathers, the loader's samples for so many seconds; and what it is."""
    members = list(loader.sample_bytes(LIMIT_BYTES))
    shape = (loader.shards.image_size, loader.shards.image_size, loader.shards.channels)
    if loader.shards.encoding == "raw":
        count = int(np.prod(shape))
        pixels = np.stack([np.frombuffer(data, np.uint8, offset=len(data) - count) for data in members])
        return bare_gather(pixels, threads), "a bare gather from memory"
    members = [data for data in members if not is_npy(data)]  # Of sets of several encodings.
    name = "simplejpeg" if members[0][:1] == b"\xff" else "Pillow"
    return bare_decode(members, shape, threads), f"bare {name} from memory"


def bare_gather(pixels: NDArray[np.uint8], threads: int) -> Callable[[float], Turn]:
    """A function that copies random rows of `pixels` [n, bytes] into batches, on so many threads, for some seconds."""

    def gather(number: int) -> Iterator[int]:
        rows = np.random.default_rng(number).integers(0, len(pixels), (64, _BATCH))
        out = np.empty((_BATCH, pixels.shape[1]), np.uint8)
        while True:
            for chosen in rows:
                pixels.take(chosen, axis=0, out=out, mode="clip")
                yield _BATCH

    return functools.partial(_on_threads, gather, threads)


def bare_decode(members: Sequence[bytes], shape: tuple[int, int, int], threads: int) -> Callable[[float], Turn]:
    """A function that decodes `members`, images of `shape` [H, W, 3], on so many threads, for some seconds."""

    def decode(number: int) -> Iterator[int]:
        out = np.empty((_CHUNK, *shape), np.uint8)
        mine = members[number::threads] or members
        while True:
            for place, data in enumerate(mine):
                if data[:1] == b"\xff":
                    simplejpeg.decode_jpeg(data, "RGB", buffer=out[place % _CHUNK])
                else:
                    decode_picture(data, out[place % _CHUNK])
                yield 1

    return functools.partial(_on_threads, decode, threads)


def _on_threads(work: Callable[[int], Iterable[int]], threads: int, seconds: float) -> Turn:
    """Each thread works until the time is over."""
    stop = threading.Event()

    def run(number: int) -> int:
        images = 0
        for done in work(number):
            images += done
            if stop.is_set():
                break
        return images

    with ThreadPoolExecutor(threads, "limit") as executor:
        began, cpu = time.perf_counter(), time.process_time()
        futures = [executor.submit(run, number) for number in range(threads)]
        try:
            stop.wait(seconds)
        finally:
            stop.set()
        images = sum(future.result() for future in futures)
        return Turn(images, time.perf_counter() - began, time.process_time() - cpu)


def show(stats: dict[str, Any], shards: Sequence[str], console: Console) -> None:
    """Print what was measured."""
    console.print(
        f"[bold]{escape(', '.join(shards))}[/]: {stats['samples']:,} images of {stats['image_size']} px, "
        f"{stats['encoding']}; batches of {stats['batch_size']}, {stats['threads']} threads, "
        f"{stats['prefetch']} batches ahead, window {stats['window']}, lanes {stats['lanes']}",
        highlight=False,
    )
    rates = Table("", "images/s", "cores busy", "images per core second", box=None)
    for column in rates.columns[1:]:
        column.justify = "right"
    by_core = []
    for name, kind in (("the loader", "loader"), (stats["limit"], "limit")):
        rate, cores = stats[f"{kind}_rate"], stats[f"{kind}_cores"]
        by_core.append(rate / max(cores, 1e-9))
        rates.add_row(name, f"{rate:,.0f}", f"{cores:.2f}", f"{by_core[-1]:,.0f}")
    rates.add_row("ratio", f"{stats['ratio']:.2f}", "", f"{by_core[0] / by_core[1]:.2f}")
    console.print(rates)
    for title, stages in (("decode threads", stats["stage_seconds"]), ("the loop", stats["next_seconds"])):
        total = sum(stages.values()) or 1.0
        shares = ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in stages.items())
        console.print(f"{title}: {shares}", highlight=False)
    console.print(
        f"first batch after {stats['first_batch_seconds']:.2f} s; peak memory {show_bytes(stats['peak_bytes'])}, "
        f"{show_bytes(stats['loader_bytes'])} of them since the set was opened",
        highlight=False,
    )
    if max(stats["loader_cores"], stats["limit_cores"]) < 0.8 * min(stats["threads"], usable_cores()):
        console.print("The cores were busy elsewhere: measure again on a quiet machine, or compare by core second.")
    if stats["encoding"] == "raw" and stats["images"] < stats["samples"]:
        console.print("Less than an epoch was read: each row's crc32 was checked, once. Give more --seconds.")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    try:
        settings = tyro.cli(
            Settings,
            prog="python -m pipeline.stats",
            description="Measure how fast shard sets stream on this machine, and how far that is from the limit.",
            args=expand_home(sys.argv[1:] if argv is None else argv),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as stop:  # tyro has printed help or what is wrong with the arguments.
        return stop.code if isinstance(stop.code, int) else EXIT_DONE
    try:
        stats = measure(settings)
    except (LeanstreamError, OSError) as error:
        if settings.debug:
            traceback.print_exc()
        return report_error(error, "reading the set")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if settings.json:
        print(json.dumps(stats, indent=1))
    else:
        show(stats, settings.shards, Console())
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())

"""How fast a shard set streams on this machine, where the time goes, and how far that is from the limit.

    python -m pipeline.stats shards/faces-64
    python -m pipeline.stats shards/faces-64 --batch-size 64 --threads 4 --json

The limit is what the decoder alone does on the same machine, in the same minutes, on as many threads: the same bytes,
already in memory, into a buffer that is used again; for raw sets a gather of rows that are in memory. Loader and limit
take turns, so that whatever else the machine does weighs on both.
"""

import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import EXIT_DONE, ConfigError, LeanstreamError, report_error
from pipeline.limits import Turn, bare_decode, bare_gather
from pipeline.machine import PeakMemory, usable_cores
from pipeline.timed import Clock, TimedLoader

EXIT_INTERRUPTED = 130
ROUNDS = 3
"""Turns of the loader and the limit."""
LIMIT_BYTES = 48 << 20
"""Members that are held in memory for the limit: more than a processor caches."""
STAGES = ("plan", "open", "read", "task", "next: plan", "next: hand over")
"""What `TimedLoader` measures; a task opens, reads and decodes."""
_MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """How to read, and for how long."""

    shards: tyro.conf.Positional[str]
    """Folder or URL of a shard set."""
    split: str = "train"
    """Split to read."""
    batch_size: int = 256
    """Samples in a batch."""
    threads: int | None = None
    """Decode threads, of the loader and of the limit; by default one for each core."""
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


@dataclass(frozen=True)
class Stats:
    """What was measured. Rates are images a second."""

    images: int
    """Handed over."""
    seconds: float
    """That the loader had for them."""
    loader_rate: float
    limit_rate: float
    limit: str
    """What the limit is."""
    ratio: float
    """loader_rate / limit_rate."""
    loader_cores: float
    """Processor time over time, of the loader's turns."""
    limit_cores: float
    first_batch_seconds: float
    """From the call that opens the set to the first batch; imports are not in it."""
    peak_bytes: int
    """Highest PSS of the process while the loader ran, mapped pages and all libraries included."""
    loader_bytes: int
    """The same over what the process had before it opened the set."""
    stage_seconds: dict[str, float]
    """Time of the decode threads, by stage; `idle` is the rest of `threads` times `seconds`."""
    next_seconds: dict[str, float]
    """Time that the loop spent in the loader: planning, handing work over, waiting for images."""
    threads: int
    prefetch: int
    batch_size: int
    window: int
    lanes: int
    samples: int
    """In an epoch."""
    encoding: str
    image_size: int


def measure(settings: Settings) -> Stats:
    """Let loader and limit take turns; raises what the loader raises."""
    if settings.seconds <= 0:
        raise ConfigError(f"seconds must be more than 0; got {settings.seconds}. Leave it out for the default.")
    clock, memory = Clock(), PeakMemory(0.05)
    before = memory.sample()
    threads = settings.threads or usable_cores()
    turn = settings.seconds / 2 / ROUNDS
    opening = time.perf_counter()
    with TimedLoader(
        settings.shards,
        split=settings.split,
        batch_size=settings.batch_size,
        threads=settings.threads,
        prefetch=settings.prefetch,
        window=settings.window,
        lanes=settings.lanes,
        flip=settings.flip,
        labels=settings.labels,
        pin_memory=False,
    ) as loader:
        loader.watch(clock)
        with memory:
            next(loader)
            first_batch = time.perf_counter() - opening
            clock.reset()
            loads = [_load(loader, turn, clock)]
        loader_stages = [dict(clock.seconds)]
        limit, name = _limit(loader, threads)
        limits = [limit(turn)]
        for _ in range(ROUNDS - 1):
            loads.append(_load(loader, turn, clock))
            loader_stages.append(dict(clock.seconds))
            limits.append(limit(turn))
        stages = {name: sum(turn.get(name, 0.0) for turn in loader_stages) for name in STAGES}
        loads_total, limits_total = Turn.sum(loads), Turn.sum(limits)
        return Stats(
            images=loads_total.images,
            seconds=loads_total.seconds,
            loader_rate=loads_total.rate,
            limit_rate=limits_total.rate,
            limit=name,
            ratio=loads_total.rate / limits_total.rate,
            loader_cores=loads_total.cpu_seconds / loads_total.seconds,
            limit_cores=limits_total.cpu_seconds / limits_total.seconds,
            first_batch_seconds=first_batch,
            peak_bytes=memory.peak,
            loader_bytes=memory.peak - before,
            stage_seconds=_thread_stages(stages, threads * loads_total.seconds),
            next_seconds=_loop_stages(stages, loads_total.seconds),
            threads=threads,
            prefetch=loader.prefetch,
            batch_size=settings.batch_size,
            window=loader.order.window,
            lanes=loader.order.lanes,
            samples=loader.samples,
            encoding=loader.shards.encoding,
            image_size=loader.shards.image_size,
        )


def _limit(loader: TimedLoader, threads: int) -> tuple[Callable[[float], Turn], str]:
    """A function that decodes, or gathers, the loader's samples for so many seconds; and what it is."""
    members = loader.sample_bytes(LIMIT_BYTES)
    size, channels = loader.shards.image_size, loader.shards.channels
    if loader.shards.encoding == "raw":
        count = size * size * channels
        pixels = np.stack([np.frombuffer(data, np.uint8, offset=len(data) - count) for data in members])
        return bare_gather(pixels, threads), "a bare gather from memory"
    name = "simplejpeg" if members[0][:1] == b"\xff" else "Pillow"
    return bare_decode(members, (size, size, channels), threads), f"bare {name} from memory"


def _load(loader: TimedLoader, seconds: float, clock: Clock) -> Turn:
    """Read for so long. The batches that were ready before the turn are not counted in it."""
    for _ in range(loader.prefetch + 1):
        next(loader)
    clock.reset()
    images, began, cpu = 0, time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - began) < seconds or not images:
        images += len(next(loader))
    return Turn(images, spent, time.process_time() - cpu)


def _thread_stages(stages: Mapping[str, float], available: float) -> dict[str, float]:
    found = {name: stages[name] for name in ("plan", "open", "read")}
    found["decode"] = max(0.0, stages["task"] - stages["open"] - stages["read"])
    found["idle"] = max(0.0, available - sum(found.values()))
    return found


def _loop_stages(stages: Mapping[str, float], seconds: float) -> dict[str, float]:
    found = {"plan": stages["next: plan"], "hand over": stages["next: hand over"]}
    found["wait for images"] = max(0.0, seconds - sum(found.values()))
    return found


def show(stats: Stats, shards: str, console: Console) -> None:
    """Print what was measured."""
    console.print(
        f"[bold]{escape(shards)}[/]: {stats.samples:,} images of {stats.image_size} px, {stats.encoding}; "
        f"batches of {stats.batch_size}, {stats.threads} threads, {stats.prefetch} batches ahead, "
        f"window {stats.window}, lanes {stats.lanes}",
        highlight=False,
    )
    rates = Table("", "images/s", "cores busy", "images per core second", box=None)
    for column in rates.columns[1:]:
        column.justify = "right"
    for name, rate, cores in (
        ("the loader", stats.loader_rate, stats.loader_cores),
        (stats.limit, stats.limit_rate, stats.limit_cores),
    ):
        rates.add_row(name, f"{rate:,.0f}", f"{cores:.2f}", f"{rate / max(cores, 1e-9):,.0f}")
    rates.add_row(
        "ratio", f"{stats.ratio:.2f}", "", f"{stats.ratio * stats.limit_cores / max(stats.loader_cores, 1e-9):.2f}"
    )
    console.print(rates)
    for title, stages in (("decode threads", stats.stage_seconds), ("the loop", stats.next_seconds)):
        total = sum(stages.values()) or 1.0
        shares = ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in stages.items())
        console.print(f"{title}: {shares}", highlight=False)
    console.print(
        f"first batch after {stats.first_batch_seconds:.2f} s; peak memory {stats.peak_bytes / _MIB:,.0f} MiB, "
        f"{stats.loader_bytes / _MIB:,.0f} MiB of them since the set was opened",
        highlight=False,
    )
    if max(stats.loader_cores, stats.limit_cores) < 0.8 * min(stats.threads, usable_cores()):
        console.print("The cores were busy elsewhere: measure again on a quiet machine, or compare by core second.")
    if stats.encoding == "raw" and stats.images < stats.samples:
        console.print("Less than an epoch was read: each row's crc32 was checked, once. Give more --seconds.")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    try:
        settings = tyro.cli(
            Settings,
            prog="python -m pipeline.stats",
            description="Measure how fast a shard set streams on this machine, and how far that is from the limit.",
            args=argv,
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
        print(json.dumps(dataclasses.asdict(stats), indent=1))
    else:
        show(stats, settings.shards, Console())
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())

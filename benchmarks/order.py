"""How far the order of training is from a full shuffle, on shards sorted by label; and how often shards are fetched.

    python benchmarks/order.py              (seconds; no photos, no torch)
    python benchmarks/order.py --sets 4     (how long a seek takes in 10^9 samples of several sets)

Every shard holds samples of one class alone, as in a set that was made class by class, and a class fills several
shards. A batch of a full shuffle is a fair draw of all classes; what an order does worse shows as classes that are
missing from its batches, and as a larger distance of a batch's classes from those of the set (total variation: the
share of a batch that would have to be of other classes). Shuffle buffers, as other loaders have them, stand beside.

The sets of a seek are descriptions in memory, without files. A cold seek finds a batch anywhere in the order, and the
shards that it needs, with nothing known of that epoch.
"""

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import Dataset
from pipeline.format import ShardSet, Split
from pipeline.order import Order, default_lanes, default_window

CLASSES = 64
SHARD_SAMPLES = 1024
ROUND = 8
"""Batches that a slow drift is measured over."""
SEEKS = 9


@dataclass(frozen=True)
class Mixture:
    """What the batches of an epoch hold, on average."""

    classes: float
    """Classes in a batch."""
    distance: float
    """Total variation distance between a batch's classes and the set's, 0 to 1."""
    drift: float
    """The same of `ROUND` batches in a row."""


def main() -> None:
    """Print both tables, or how long a seek takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, help=f"a multiple of {CLASSES} (default: 512); of --sets any (100,000)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--sets", type=int, default=0, help="measure a seek in so many sets instead")
    parser.add_argument("--samples", type=int, default=10**9, help="of all those sets together")
    options = parser.parse_args()
    if options.sets:
        return show_seek(options.sets, options.shards or 100_000, options.samples, options.batch_size)
    shards, batch_size = options.shards or 512, options.batch_size
    if shards < CLASSES or shards % CLASSES:
        parser.error(f"--shards must be a multiple of {CLASSES}; got {shards}")
    console = Console()
    table = Table(title=f"{shards} shards of {SHARD_SAMPLES} samples, one class each; batches of {batch_size}")
    table.add_column("order", no_wrap=True)
    for column in ("shards mixed", f"classes in a batch, of {CLASSES}", "distance of a batch", f"of {ROUND} batches"):
        table.add_column(column, justify="right")
    for name, mixed, labels in orders(shards):
        found = mixture(labels, batch_size)
        table.add_row(name, mixed, f"{found.classes:.1f}", f"{found.distance:.3f}", f"{found.drift:.3f}")
    console.print(table)
    nodes = (1, 2, 4, 8)
    fetches = Table("lanes", *(f"{count} nodes" for count in nodes), title="Times that the set is fetched in an epoch")
    for lanes in (1, 8):
        fetches.add_row(str(lanes), *(f"{fetched(shards, lanes, count) / shards:.3f}" for count in nodes))
    console.print(fetches)
    print(f"With 8 lanes it may be {1 + 8 / shards:.3f} times: each lane may begin within a shard.")


def show_seek(sets: int, shards: int, samples: int, batch_size: int) -> None:
    """Print how long it takes to open `sets` of so many shards and samples together, and to find a batch in them."""
    made = [described_set(number, shards // sets, samples // sets) for number in range(sets)]
    began = time.perf_counter()
    split = Dataset.open(made).split("train")
    order = Order(split.samples)
    built_s = time.perf_counter() - began
    seeks = [seek_s(split.samples, position, batch_size) for position in spread_positions(order)]
    print(
        f"{split.total:,} samples in {len(split):,} shards of {sets} sets, window {order.window}, lanes {order.lanes}: "
        f"dataset and order in {built_s:.3f} s, a cold seek of a batch of {batch_size} in "
        f"{statistics.median(seeks):.3f} s (median of {len(seeks)}, at most {max(seeks):.3f})"
    )


def described_set(number: int, shards: int, samples: int) -> ShardSet:
    """A set without files: so many samples, spread evenly over its shards."""
    counts = np.diff(np.linspace(0, samples, shards + 1).astype(np.int64))
    names = np.array([f"train-{shard:06d}".encode() for shard in range(shards)])
    sha256 = [hashlib.sha256(f"{number} {shard}".encode()).hexdigest().encode() for shard in range(shards)]
    split = Split(names, counts, counts * 4096, np.array(sha256))
    described = ShardSet(Path(f"set-{number}"), f"set-{number}", 64, 3, "jpeg", {"train": split})
    return replace(described, fingerprint=described.computed_fingerprint())


def spread_positions(order: Order) -> list[int]:
    """Positions all over the first three epochs."""
    return [round(3 * order.total * (seek + 0.5) / SEEKS) for seek in range(SEEKS)]


def seek_s(samples: NDArray[np.int64], position: int, batch_size: int) -> float:
    """Seconds to find the batch at a position, and the shards that it needs, in an order of which nothing is known."""
    order = Order(samples)
    began = time.perf_counter()
    order.locate(np.arange(position, position + batch_size))
    order.needed(position, position + batch_size, range(order.lanes))
    return time.perf_counter() - began


def orders(shards: int) -> Iterator[tuple[str, str, NDArray[np.int64]]]:
    """Name, shards mixed at a time, and the classes of an epoch in its order."""
    yield "full shuffle", str(shards), streamed(shards, shards, 1)
    default = default_lanes(shards)
    for window, lanes in ((1, 1), (1, 8), (4, 8), (8, 8), (16, 8), (32, 8), (64, 1)):
        is_default = (window, lanes) == (default_window(default), default)
        name = f"window {window}, lanes {lanes}{' (default)' if is_default else ''}"
        yield name, str(min(shards, window * lanes)), streamed(shards, window, lanes)
    for samples in (1000, 10_000):
        yield f"buffer of {samples:,} samples", f"{samples / SHARD_SAMPLES:.1f}", buffered(shards, samples)


def classes_of(shards: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The class of the samples in each of `shards`, in a set of `count` shards that is sorted by class."""
    return shards * CLASSES // count


def streamed(shards: int, window: int, lanes: int) -> NDArray[np.int64]:
    """The classes of our first epoch."""
    order = Order(np.full(shards, SHARD_SAMPLES), window=window, lanes=lanes)
    return classes_of(order.locate(np.arange(order.total))[0], shards)


def buffered(shards: int, samples: int) -> NDArray[np.int64]:
    """The classes of an epoch of shuffled shards behind a shuffle buffer: each new sample replaces a random one."""
    draw = np.random.default_rng(0)
    coming = np.repeat(draw.permutation(shards), SHARD_SAMPLES)
    slots = np.concatenate([np.arange(samples), draw.integers(0, samples, len(coming) - samples)])
    # A sample leaves its slot when the next one for that slot comes: neighbours once the samples are sorted by slot.
    order = np.argsort(slots, kind="stable")
    is_last = np.append(slots[order][1:] != slots[order][:-1], True)
    left = order[1:][~is_last[:-1]] - samples
    out = np.empty_like(coming)
    out[left] = coming[order[:-1][~is_last[:-1]]]
    out[len(coming) - samples :] = draw.permutation(coming[order[is_last]])
    return classes_of(out, shards)


def mixture(labels: NDArray[np.int64], batch_size: int) -> Mixture:
    """What the batches of an epoch hold, given the classes of its samples, `labels`, in their order."""

    def counts(size: int) -> NDArray[np.int64]:
        batches = labels[: len(labels) // size * size].reshape(-1, size)
        return np.stack([np.bincount(batch, minlength=CLASSES) for batch in batches])

    def distance(size: int) -> float:
        return float(np.abs(counts(size) / size - 1 / CLASSES).sum(1).mean() / 2)

    return Mixture(float((counts(batch_size) > 0).sum(1).mean()), distance(batch_size), distance(ROUND * batch_size))


def fetched(shards: int, lanes: int, nodes: int) -> int:
    """Shards that all nodes together need in the second epoch, each node those of its own positions."""
    sizes = np.random.default_rng(0).integers(SHARD_SAMPLES // 2, SHARD_SAMPLES, shards)
    order = Order(sizes, lanes=lanes)
    positions = np.arange(order.total, 2 * order.total)
    return sum(len(np.unique(order.locate(positions[positions % nodes == node])[0])) for node in range(nodes))


if __name__ == "__main__":
    main()

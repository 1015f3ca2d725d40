"""How evenly a sorted folder is spread over the shards, against a shuffle of all photos.

    python benchmarks/spread.py

The folder is sorted by class, each class a run of neighbours. For each shard the share of each class is compared with
the share in the whole set; the figure is the root mean square of that deviation, divided by the one of a full shuffle.
1.0 is a full shuffle, below is more even, above is more sorted. `first` is a folder cut into shards as it lies.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.counter import permutation
from shard_tool.build.plan import make_groups
from shard_tool.options import GROUP_SHARDS
from shard_tool.sources.protocol import CHUNK_FILES


def shards_of(count: int, shard_samples: int, seed: int | None, chunk: int = CHUNK_FILES) -> list[NDArray[np.int64]]:
    """The items of every shard of a folder of `count` photos, in two levels; without a seed, as they lie."""
    chunks = np.append(np.arange(0, count, chunk), count)
    shards: list[NDArray[np.int64]] = []
    for items in make_groups(chunks, np.ones(count, np.bool_), shard_samples * GROUP_SHARDS, seed):
        mixed = items if seed is None else items[permutation(len(items), seed, len(shards))]
        shards += np.array_split(mixed, -(-len(items) // shard_samples))
    return shards


def deviation(shards: list[NDArray[np.int64]], class_photos: int) -> float:
    """Root mean square deviation of class shares in the shards, in units of that of a full shuffle."""
    count = sum(map(len, shards))
    classes = -(-count // class_photos)
    share = np.bincount(np.arange(count) // class_photos, minlength=classes) / count
    squares = expected = 0.0
    for items in shards:
        found = np.bincount(items // class_photos, minlength=classes) / len(items)
        squares += float(((found - share) ** 2).sum())
        expected += float((share * (1 - share)).sum()) / len(items) * (count - len(items)) / max(count - 1, 1)
    return (squares / expected) ** 0.5 if expected else 0.0


def main() -> None:
    """Print one line for each size of folder, shard and class."""
    print("photos   shard  class   first  spread")
    for count, shard_samples in ((1_000, 100), (10_000, 1_000), (20_000, 4_096), (202_599, 4_096)):
        for class_photos in sorted({20, 200, 2_000, count // 10, count // 2}):
            if class_photos * 2 > count:
                continue
            first, spread = (deviation(shards_of(count, shard_samples, seed), class_photos) for seed in (None, 0))
            print(f"{count:7,} {shard_samples:6,} {class_photos:6,}  {first:6.2f}  {spread:6.2f}")


if __name__ == "__main__":
    main()

"""Which inputs form a group: chunks of the source are dealt out to the groups, like cards, in an order by seed.

    chunks of the listing     0  1  2  3 | 4  5  6  7 | 8  9        four groups: hands of four chunks
    mixed within each hand    2  0  3  1 | 5  4  7  6 | 9  8
    one of each for a group   2,5,.. 0,4,8 3,7,.. 1,6,9

Every group takes one chunk of each stretch of the listing. So a folder that is sorted by person or class gives groups
that are alike, more so than a shuffle of all photos would; `benchmarks/spread.py` measures it.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.counter import permutation


def make_groups(
    chunks: NDArray[np.int64], chosen: NDArray[np.bool_], group_items: int, seed: int | None
) -> tuple[NDArray[np.int64], ...]:
    """The items of each group, ascending; about equal groups of at most about `group_items`.

    Args:
        chunks: [chunks + 1] The first item of each chunk, then the number of items.
        chosen: [inputs] Which inputs take part.
        group_items: most items of a group, give or take half a chunk.
        seed: of the dealing; None keeps the order of the listing.
    """
    before = np.concatenate([[0], np.cumsum(chosen)])
    counts = before[chunks[1:]] - before[chunks[:-1]]
    used = np.flatnonzero(counts)
    counts = counts[used]
    total = int(counts.sum())
    groups = max(1, -(-total // group_items))
    order = np.arange(len(used)) if seed is None else _dealt(len(used), groups, seed)
    # A chunk belongs to the group in which its middle lies.
    middles = np.cumsum(counts[order]) - counts[order] / 2
    group_of = np.empty(len(used), np.int32)
    group_of[order] = np.minimum(middles * groups / max(total, 1), groups - 1)
    group_of_item = np.repeat(group_of, counts)
    items = np.flatnonzero(chosen)[np.argsort(group_of_item, kind="stable")]
    ends = np.cumsum(np.bincount(group_of_item, minlength=groups))
    return tuple(part for part in np.split(items, ends[:-1]) if len(part))


def _dealt(count: int, groups: int, seed: int) -> NDArray[np.int64]:
    """The numbers below `count`, those of the first group first."""
    mixed = np.argsort(permutation(count, "chunks", seed), kind="stable")
    in_hands = np.lexsort((mixed, np.arange(count) // groups))
    seats = np.arange(count) % groups
    if rest := count % groups:  # The last hand is not enough for all.
        seats[-rest:] = permutation(groups, "seats", seed)[:rest]
    return in_hands[np.argsort(seats, kind="stable")]

"""Which sample a wrong sum of the audit points to.

A sum cannot be taken apart, but one fault in an epoch leaves a difference that only few samples can explain:

    found - expected = -hash(a)             a was not trained
                       +hash(b)             b was trained once too often
                       hash(b) - hash(a)    b was trained in the place of a

A difference that two or more faults left is explained by chance as rarely as samples^2 / 2^64.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SEARCHED = 1 << 23
"""Samples of an epoch up to which exchanged ones are searched: their hashes are held, 8 bytes each."""

Place = tuple[int, int]
"""Shard number and row."""


class Hashes(NamedTuple):
    """Samples and their hashes, [N] each."""

    shards: NDArray[np.int64]
    rows: NDArray[np.int64]
    values: NDArray[np.uint64]


Samples = Callable[[], Iterator[Hashes]]


class Fault(NamedTuple):
    """What explains a wrong sum."""

    missing: Place | None
    """Was not trained."""
    surplus: Place | None
    """Was trained once too often, or in the place of the one that is missing."""


def find_fault(difference: int, due: Samples, every: Samples, count: int) -> Fault | None:
    """The one fault that leaves `difference`, found minus expected modulo 2^64; None where no single one does.

    `due` are the `count` samples that an epoch should have trained so far, `every` all that there are. Time is that of
    a few passes over them.
    """
    lost = _place_of(np.uint64(-difference % 2**64), due)
    if lost is not None:
        return Fault(lost, None)
    surplus = _place_of(np.uint64(difference % 2**64), every)
    if surplus is not None:
        return Fault(None, surplus)
    if not 0 < count <= SEARCHED:
        return None
    held = np.sort(np.concatenate([part.values for part in due()]))
    for part in every():
        # Unsigned arithmetic wraps around, as the sums do.
        wanted = part.values - np.uint64(difference % 2**64)
        at = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
        hits = np.flatnonzero(held[at] == wanted)
        if len(hits):
            hit = int(hits[0])
            return Fault(_place_of(wanted[hit], due), (int(part.shards[hit]), int(part.rows[hit])))
    return None


def _place_of(value: np.uint64, samples: Samples) -> Place | None:
    for part in samples():
        hits = np.flatnonzero(part.values == value)
        if len(hits):
            return int(part.shards[hits[0]]), int(part.rows[hits[0]])
    return None

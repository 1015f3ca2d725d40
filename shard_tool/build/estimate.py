"""What a build will take, from some of its photos: said in a dry run, and before a long build begins."""

import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.counter import permutation
from pipeline.errors import UserError
from pipeline.format import RECORD
from pipeline.machine import usable_cores
from pipeline.tar import member_bytes
from shard_tool.build.place import Place
from shard_tool.build.plan import Plan
from shard_tool.build.reading import Made, Rejection, samples_of
from shard_tool.display import megabytes
from shard_tool.image.photo import quiet_pillow
from shard_tool.options import Options
from shard_tool.sources.protocol import Access, Source

ESTIMATE_PHOTOS = 64
"""Photos that are turned into samples, to know their size, their time and how many will be rejected."""
LONG_BUILD_PHOTOS = 4096
"""A build of fewer photos begins at once."""
LONG_BUILD_SECONDS = 60


@dataclass(frozen=True)
class Estimate:
    """What all photos of a plan will take."""

    seconds: float
    """Time on one core."""
    bytes: int
    """Room of the shards."""
    tried: int
    """Photos it was made from."""
    reasons: Counter[str]
    """Why some of those will be missing."""

    @property
    def rejected(self) -> float:
        """The share of photos that will be missing."""
        return self.reasons.total() / self.tried if self.tried else 0.0


def estimate(source: Source, plan: Plan, options: Options, chunks: int = 1) -> Estimate:
    """Make some samples of `plan`, one after the other, and write nothing.

    They come from everywhere, or from so many `chunks` where every chunk costs time.
    """
    chosen = np.sort(_some_photos(source, plan, chunks))
    read = chosen[plan.split_of[chosen] >= 0].tolist()
    sizes: list[int] = []
    reasons = Counter(plan.why_left_out(item)[0] for item in chosen.tolist() if plan.is_left_out(item))
    began = time.monotonic()
    with quiet_pillow():
        for item, outcome in zip(read, samples_of(source, read, options), strict=True):
            if isinstance(outcome, Made):
                meta = member_bytes(len(plan.meta(item))) if not options.no_json else 0
                sizes.append(member_bytes(len(outcome.sample)) + meta + RECORD.itemsize)
            else:
                reasons[outcome.reason if isinstance(outcome, Rejection) else outcome.error] += 1
    share = plan.photos / max(len(chosen), 1)
    return Estimate((time.monotonic() - began) * share, round(sum(sizes) * share), len(chosen), reasons)


def _some_photos(source: Source, plan: Plan, chunks: int) -> NDArray[np.int64]:
    items = np.concatenate(plan.groups)
    if source.access is not Access.ANY_ORDER:
        starts = source.chunks()
        in_pass = source.access is Access.ONE_PASS
        some = np.arange(1) if in_pass else permutation(len(starts) - 1, "chunks")[:chunks]
        chunk_of = np.searchsorted(starts, items, side="right") - 1
        items = items[np.isin(chunk_of, some)] if np.isin(chunk_of, some).any() else items
    return items[permutation(len(items), "estimate")[:ESTIMATE_PHOTOS]]


def warn(place: Place, expected: Estimate, share: float, threads: int, *, force: bool, quiet: bool) -> None:
    """Say on stderr what `share` of the build, which is left of it, will take, where that is long.

    Raises `UserError` where the disk has no room for it, unless `force` is given.
    """
    needed = place.room_for(round(expected.bytes * share))
    free = free_bytes(place.workshop)
    if needed > free and not force:
        raise UserError(
            f"{place.workshop} must have room for about {megabytes(needed)}; got {megabytes(free)} free. "
            "Free some space, choose another folder, or give --force to begin all the same."
        )
    seconds = expected.seconds * share / min(threads, usable_cores())
    if seconds >= LONG_BUILD_SECONDS and not quiet:
        print(
            f"This takes about {show_time(seconds)} on {threads} thread{'s' * (threads > 1)}, and "
            f"{megabytes(needed)} of the {megabytes(free)} that are free. It may be stopped at any time and goes on "
            "when the same command is run again.",
            file=sys.stderr,
            flush=True,
        )


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk on which `folder` lies, or will lie."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def show_time(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )

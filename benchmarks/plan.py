"""What a plan costs for each photo, and what follows for a billion of them.

    python benchmarks/plan.py                      # one million made-up paths
    python benchmarks/plan.py --photos 100000

Nothing is read but made-up paths like `00/1f/0123456789.jpg`; memory is what the process has more after each step, its
peak counted from before the listing. Figures for a billion are the measured ones, multiplied.
"""

import argparse
import pickle
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.machine import tree_pss
from shard_tool.build.plan import Plan, make_plan
from shard_tool.sources.listing import Listing
from shard_tool.sources.protocol import InAnyOrder, InputError, Known, SideFile

BILLION = 10**9
LIST_KEYS = 1000
"""Keys that a bucket names in one answer."""


@dataclass(frozen=True)
class MadeUp(InAnyOrder):
    """A source of paths without photos."""

    listing: Listing
    name: str = "made-up"
    ignored: Mapping[str, int] = field(default_factory=dict)
    known: Known = field(default_factory=Known)

    @property
    def origin(self) -> dict[str, str]:
        """Nowhere."""
        return {}

    def read(self, item: int) -> bytes:
        """Nothing."""
        raise InputError("made up")

    def side_files(self, file_name: str) -> list[SideFile]:
        """None."""
        return []


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="What a plan costs for each photo.")
    parser.add_argument("--photos", type=int, default=1_000_000)
    photos = parser.parse_args().photos
    paths = ((f"{number % 256:02x}/{number % 65536 // 256:02x}/{number:010d}.jpg") for number in range(photos))
    before, began = tree_pss(), time.perf_counter()
    listing = Listing((path.encode(), 100_000) for path in sorted(paths))
    listed, listed_s = tree_pss(), time.perf_counter() - began
    began = time.perf_counter()
    plan = make_plan(
        MadeUp(listing), None, None, val_fraction=0.05, shard_samples=4096, group_samples=16384, seed=0, limit=None
    )
    planned, planned_s = tree_pss(), time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    group = next(plan.iter_groups())
    show(
        plan,
        photos,
        (listed - before, planned - before, peak - before),
        (listed_s, planned_s),
        len(pickle.dumps(group)),
    )


def show(plan: Plan, photos: int, memory: tuple[int, int, int], seconds: tuple[float, float], group_bytes: int) -> None:
    """Print what was measured, and the same for a billion."""
    names = ("memory of the listing", "memory of listing and plan", "peak memory while it is made")
    sizes = dict(zip(names, memory, strict=True))
    sizes["plan as it goes to a worker"] = len(pickle.dumps(plan))
    for name, size in sizes.items():
        each = size / photos
        print(f"{name:30} {each:8.1f} bytes a photo {each * BILLION / 1e9:12,.0f} GB for a billion")
    for name, second in zip(("time to make the listing", "time to plan"), seconds, strict=True):
        each = second / photos
        print(f"{name:30} {each * 1e6:8.1f} us a photo    {each * BILLION / 3600:12,.1f} h for a billion")
    items = len(plan.groups[0])
    print(f"{'photos of a group':30} {items:8,}               {BILLION / items:12,.0f} groups for a billion")
    print(f"{'a task besides the plan':30} {group_bytes / 1e3:8,.0f} kB")
    requests = BILLION // LIST_KEYS
    print(f"{'requests to list a bucket':30} {1 / LIST_KEYS:8.3f} a photo       {requests:12,} for a billion")


if __name__ == "__main__":
    main()

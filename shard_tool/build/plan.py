"""Which photo goes where: a pure function of the listing and the settings, in two levels.

    chunks of the source --dealt out by seed--> groups --samples permuted by seed--> shards of the group, by split

A group is the atomic unit of a build. Its photos, its shards' names and their order are known before anything is read,
so that groups can be built in any order, by anyone, and give the same bytes. Where shards are limited by bytes, a
group has one run of samples a split, and cuts it into as many shards as it takes: `train-000007-000`, `-001` and so on.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.counter import permutation
from pipeline.format import SPLITS
from pipeline.machine import release_memory
from shard_tool.build.keys import Keys, in_share
from shard_tool.build.labels import NOT_LISTED, Table
from shard_tool.build.spread import make_groups
from shard_tool.sources.listing import Listing, printable
from shard_tool.sources.protocol import Access, Source

GROUP_SHARDS = 4
"""Full shards a group; what a kill can cost, and how far photos that lie side by side are spread at least."""
DUPLICATE = -2
"""In place of a split: the input has the bytes of an earlier one. Beside `NOT_LISTED`."""


@dataclass(frozen=True)
class PlannedShard:
    """One shard before its photos are read; those that are rejected will be missing from it."""

    split: str
    name: str
    items: NDArray[np.int64]
    """[samples] In the order of the shard; of several shards, where they are limited by bytes."""


@dataclass(frozen=True)
class Group:
    """The atomic unit of a build."""

    number: int
    shards: tuple[PlannedShard, ...]
    left_out: NDArray[np.int64]
    """Items that are not read: a table does not name them, or they are duplicates. In listing order."""


@dataclass(frozen=True)
class Plan:
    """The whole build on paper. Memory is a few bytes for each input."""

    listing: Listing
    keys: Keys
    attributes: Table | None
    """The labels: 0/1 attributes, or one class for each photo."""
    partition: Table | None
    split_of: NDArray[np.int8]
    """[inputs] A number into `SPLITS`, or `NOT_LISTED`, or `DUPLICATE`."""
    groups: tuple[NDArray[np.int64], ...]
    """The items of each group, in listing order."""
    shard_samples: int | None
    """Most samples in a shard; None where it is limited by bytes."""
    seed: int | None
    """Of all permutations; None: everything keeps the order of the listing."""
    carried: Callable[[int], dict[str, object]]
    """What else the source says about an input, for the json of its sample."""
    first: Mapping[str, int] = field(default_factory=dict)
    """By split, the number of the first shard, where it is not 0."""
    stays: Mapping[int, int] = field(default_factory=dict)
    """For each duplicate, the item with the same bytes that stays."""

    @property
    def photos(self) -> int:
        """Inputs that take part; some of them may be left out without being read."""
        return sum(len(items) for items in self.groups)

    def without(self, stays: Mapping[int, int]) -> "Plan":
        """This plan where the keys of `stays` are left out as duplicates of its values; groups keep their items."""
        split_of = self.split_of.copy()
        split_of[list(stays)] = DUPLICATE
        return replace(self, split_of=split_of, stays=stays)

    def shard_numbers(self) -> dict[str, list[int]]:
        """By split, the number of the first shard and the one after the last, whether it got samples or not."""
        found: dict[str, list[int]] = {}
        for shard in (shard for group in self.iter_groups() for shard in group.shards):
            number = int(shard.name.rpartition("-")[2])
            found.setdefault(shard.split, [number, number])[1] = number + 1
        return found

    def samples(self) -> dict[str, int]:
        """Samples in each split if none is rejected."""
        splits = np.concatenate([self.split_of[items] for items in self.groups])
        return {name: int((splits == number).sum()) for number, name in enumerate(SPLITS)}

    def iter_groups(self, finished: Set[int] = frozenset()) -> Iterator[Group]:
        """All groups in order but those `finished`; only the current one is held."""
        following = [self.first.get(split, 0) for split in SPLITS]
        for number, items in enumerate(self.groups):
            shards: list[PlannedShard] = []
            for split, split_name in enumerate(SPLITS):
                mine = items[self.split_of[items] == split]
                if not len(mine):
                    continue
                if self.seed is not None:
                    mine = mine[permutation(len(mine), "samples", self.seed, number, split)]
                parts = 1 if self.shard_samples is None else -(-len(mine) // self.shard_samples)
                for part in np.array_split(mine, parts):
                    shards.append(PlannedShard(split_name, f"{split_name}-{following[split]:06d}", part))
                    following[split] += 1
            if number not in finished:
                yield Group(number, tuple(shards), items[self.split_of[items] < 0])

    def is_left_out(self, item: int) -> bool:
        """Whether `item` is rejected without being read."""
        return bool(self.split_of[item] < 0)

    def why_left_out(self, item: int) -> tuple[str, str]:
        """The reason for which `item` is left out, and a detail."""
        if self.split_of[item] == DUPLICATE:
            return "duplicate", f"of {printable(self.listing[self.stays[item]])}"
        tables = [table for table in (self.partition, self.attributes) if table is not None]
        return next(f"not in {table.file_name}" for table in tables if table.row_of[item] == NOT_LISTED), ""

    def meta(self, item: int) -> bytes:
        """The json of one sample."""
        source = json.dumps(printable(self.listing[item]), ensure_ascii=False)
        carried = self._carried_json(item)
        if self.attributes is None:
            return f'{{"source":{source}{carried}}}'.encode()
        row = self.attributes.values[self.attributes.row_of[item]]
        if self.attributes.classes:
            labels = f'"label":{row[0]}'
        else:
            labels = _attributes_format(self.attributes.columns) % tuple(row.tolist())
        return f'{{"source":{source},{labels}{carried}}}'.encode()

    def longest_meta(self) -> int:
        """Bytes that hold every json of the set; all attributes take the same room, and a label that of the highest."""
        lengths = ((_json_bytes(path) + self._carried_bytes(item), item) for item, path in enumerate(self.listing))
        free, longest = max(lengths, default=(0, 0))
        if self.attributes is not None and self.attributes.classes:
            return len(f'{{"source":,"label":{len(self.attributes.classes) - 1}}}') + free
        if self.attributes is None or self.attributes.row_of[longest] != NOT_LISTED:
            return len(self.meta(longest))
        listed = int(np.argmax(self.attributes.row_of != NOT_LISTED))
        return len(self.meta(listed)) - _json_bytes(self.listing[listed]) - self._carried_bytes(listed) + free

    def _carried_json(self, item: int) -> str:
        """Further fields of a json."""
        carried = self.carried(item)
        return "," + json.dumps(carried, ensure_ascii=False, separators=(",", ":"))[1:-1] if carried else ""

    def _carried_bytes(self, item: int) -> int:
        return len(self._carried_json(item).encode())


def make_plan(
    source: Source,
    attributes: Table | None,
    partition: Table | None,
    *,
    val_fraction: float,
    shard_samples: int | None,
    seed: int | None,
    limit: int | None,
    group_samples: int | None = None,
    among: NDArray[np.bool_] | None = None,
    taken: NDArray[np.uint64] | None = None,
    first: Mapping[str, int] | None = None,
) -> Plan:
    """Plan a build.

    Args:
        source: where the photos are.
        attributes: labels; an input without them is left out.
        partition: splits; an input without one is left out.
        val_fraction: share of `val` where there is no `partition`.
        shard_samples: most samples in a shard; None where shards are limited by bytes.
        seed: of the order; None keeps that of the listing.
        limit: takes that many inputs, spread over the whole listing by `seed`: the first ones of a sorted folder would
            all be of one person or class. Without a seed, it is those first ones.
        group_samples: most samples in a group; by default four full shards.
        among: [inputs] the inputs that may take part; by default all.
        taken: hashes of keys that samples already have elsewhere.
        first: the number of the first shard of a split, where that is not 0.
    """
    count = len(source.listing)
    keys = Keys(source.listing, taken)
    if partition is not None:
        rows = partition.row_of
        split_of = np.where(rows == NOT_LISTED, NOT_LISTED, partition.values[rows, 0]).astype(np.int8)
    else:
        in_val = (val_fraction > 0 and in_share(keys[item], val_fraction) for item in range(count))
        split_of = np.fromiter(in_val, np.bool_, count).astype(np.int8)
    if attributes is not None:
        split_of[attributes.row_of == NOT_LISTED] = NOT_LISTED
    if group_samples is None:
        assert shard_samples is not None, "groups of shards that are limited by bytes need a size of their own"
        group_samples = shard_samples * GROUP_SHARDS
    chosen = _limited(np.ones(count, np.bool_) if among is None else among, limit, seed)
    groups = make_groups(source.chunks(), chosen, group_samples, None if source.access is Access.ONE_PASS else seed)
    release_memory()  # What reading tables, hashing keys and permuting has left.
    return Plan(
        listing=source.listing,
        keys=keys,
        attributes=attributes,
        partition=partition,
        split_of=split_of,
        groups=groups,
        shard_samples=shard_samples,
        seed=seed,
        carried=source.carried,
        first=first or {},
    )


def _limited(among: NDArray[np.bool_], limit: int | None, seed: int | None) -> NDArray[np.bool_]:
    if limit is None:
        return among
    items = np.flatnonzero(among)
    if seed is not None:
        items = items[permutation(len(items), "limit", seed)]
    chosen = np.zeros(len(among), np.bool_)
    chosen[items[:limit]] = True
    return chosen


@functools.cache
def _attributes_format(columns: tuple[str, ...]) -> str:
    """What follows the source in a json, with `%d` for each value: ten times as fast as encoding a dict."""
    names = (json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in columns)
    return '"attributes":{' + ",".join(f"{name}:%d" for name in names) + "}"


def _json_bytes(path: bytes) -> int:
    return len(json.dumps(printable(path), ensure_ascii=False).encode())

"""Which photo goes where: a pure function of the listing and the settings, in two levels.

    chunks of the source --dealt out by seed--> groups --samples permuted by seed--> shards of the group, by split

A group is the atomic unit of a build. Its photos, its shards' names and their order are known before anything is read,
so that groups can be built in any order, by anyone, and give the same bytes. Where shards are limited by bytes, a
group has one run of samples a split, and cuts it into as many shards as it takes: `train-000007-000`, `-001` and so on.

    chunks of the listing     0  1  2  3 | 4  5  6  7 | 8  9        four groups: hands of four chunks
    mixed within each hand    2  0  3  1 | 5  4  7  6 | 9  8
    one of each for a group   2,5,.. 0,4,8 3,7,.. 1,6,9

Every group takes one chunk of each stretch of the listing. So a folder that is sorted by person or class gives groups
that are alike, more so than a shuffle of all photos would; `benchmarks/spread.py` measures it.
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
from shard_tool.labels.tables import NOT_LISTED, Table
from shard_tool.sources.listing import Listing, printable
from shard_tool.sources.protocol import Access, Source

DUPLICATE, ELSEWHERE = -2, -3
"""In place of a split, beside `NOT_LISTED`: the input has the bytes of an earlier one; another set holds it."""


Carries = Callable[[int], dict[str, object]]
"""Gives fields for the json of an input."""


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

    @property
    def items(self) -> NDArray[np.int64]:
        """Those that are read, shard after shard."""
        return np.concatenate([np.empty(0, np.int64), *(shard.items for shard in self.shards)])


@dataclass(frozen=True)
class Plan:
    """The whole build on paper. Memory is a few bytes for each input."""

    listing: Listing
    keys: Keys
    attributes: Table | None
    """The labels: 0/1 attributes, or one class for each photo."""
    partition: Table | None
    split_of: NDArray[np.int8]
    """[inputs] A number into `SPLITS`, or `NOT_LISTED`, `DUPLICATE`, `ELSEWHERE`."""
    groups: tuple[NDArray[np.int64], ...]
    """The items of each group, in listing order."""
    shard_samples: int | None
    """Most samples in a shard; None where it is limited by bytes."""
    seed: int | None
    """Of all permutations; None: everything keeps the order of the listing."""
    carried: Carries
    """What else the source says about an input, for the json of its sample."""
    stays: Mapping[int, int] = field(default_factory=dict)
    """For each duplicate, the item with the same bytes that stays."""

    @property
    def photos(self) -> int:
        """Inputs that take part; some of them may be left out without being read."""
        return sum(len(items) for items in self.groups)

    def without(self, stays: Mapping[int, int], elsewhere: NDArray[np.int64]) -> "Plan":
        """This plan without the keys of `stays`, duplicates of its values, and what is `elsewhere`.

        Groups keep their items.
        """
        split_of = self.split_of.copy()
        split_of[list(stays)] = DUPLICATE
        split_of[elsewhere] = ELSEWHERE
        return replace(self, split_of=split_of, stays=stays)

    def samples(self) -> dict[str, int]:
        """Samples in each split if none is rejected."""
        splits = np.concatenate([self.split_of[items] for items in self.groups])
        return {name: int((splits == number).sum()) for number, name in enumerate(SPLITS)}

    def iter_groups(self, finished: Set[int] = frozenset()) -> Iterator[Group]:
        """All groups in order but those `finished`; only the current one is held."""
        following = [0] * len(SPLITS)
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
        if self.split_of[item] == ELSEWHERE:
            return "in another set", ""
        tables = [table for table in (self.partition, self.attributes) if table is not None]
        return next(table.why_missing(item) for table in tables if table.row_of[item] == NOT_LISTED), ""

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
    carried: Carries | None = None,
    *,
    val_fraction: float,
    shard_samples: int | None,
    group_samples: int,
    seed: int | None,
    limit: int | None,
    val_by_folder: bool = False,
) -> Plan:
    """Plan a build.

    Args:
        source: where the photos are.
        attributes: labels; an input without them is left out.
        partition: splits; an input without one is left out.
        carried: what tables say of an input beside these, for its json.
        val_fraction: share of `val` where there is no `partition`.
        shard_samples: most samples in a shard; None where shards are limited by bytes.
        group_samples: most samples in a group.
        seed: of the order; None keeps that of the listing.
        limit: takes that many inputs, spread over the whole listing by `seed`: the first ones of a sorted folder would
            all be of one person or class. Without a seed, it is those first ones.
        val_by_folder: whether all inputs of a folder are of one split.
    """
    count = len(source.listing)
    keys = Keys(source.listing)
    if partition is not None:
        rows = partition.row_of
        split_of = np.where(rows == NOT_LISTED, NOT_LISTED, partition.values[rows, 0]).astype(np.int8)
    else:
        names = (
            (_folder_of(path) for path in source.listing) if val_by_folder else (keys[item] for item in range(count))
        )
        in_val = (val_fraction > 0 and in_share(name, val_fraction) for name in names)
        split_of = np.fromiter(in_val, np.bool_, count).astype(np.int8)
    if attributes is not None:
        split_of[attributes.row_of == NOT_LISTED] = NOT_LISTED
    chosen = _limited(count, limit, seed)
    said: Carries = source.carried
    if carried is not None:
        said = _Carried(said, carried)
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
        carried=said,
    )


@dataclass(frozen=True)
class _Carried:
    """What the source says of an input, and what tables say beside it."""

    by_source: Carries
    by_table: Carries

    def __call__(self, item: int) -> dict[str, object]:
        here, there = self.by_source(item), self.by_table(item)
        both = [said["original"] for said in (here, there) if isinstance(said.get("original"), dict)]
        joined = {name: value for said in both for name, value in said.items()}  # type: ignore[attr-defined]
        return {**here, **there, **({"original": joined} if both else {})}


def _folder_of(path: bytes) -> str:
    return printable(path.rpartition(b"/")[0])


def _limited(count: int, limit: int | None, seed: int | None) -> NDArray[np.bool_]:
    if limit is None:
        return np.ones(count, np.bool_)
    items = np.arange(count) if seed is None else permutation(count, "limit", seed)
    chosen = np.zeros(count, np.bool_)
    chosen[items[:limit]] = True
    return chosen


@functools.cache
def _attributes_format(columns: tuple[str, ...]) -> str:
    """What follows the source in a json, with `%d` for each value: ten times as fast as encoding a dict."""
    names = (json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in columns)
    return '"attributes":{' + ",".join(f"{name}:%d" for name in names) + "}"


def _json_bytes(path: bytes) -> int:
    return len(json.dumps(printable(path), ensure_ascii=False).encode())


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

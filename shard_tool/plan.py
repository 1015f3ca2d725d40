"""Which photo goes where: a pure function of the listing and the settings, in two levels.

    chunks of the source --permuted by seed--> groups --samples permuted by seed--> shards of the group, by split

A group is the atomic unit of a build. Its photos, its shards' names and their order are known before anything is read,
so that groups can be built in any order, by anyone, and give the same bytes.
"""

import functools
import json
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.counter import permutation
from pipeline.format import SPLITS
from shard_tool.keys import Keys, in_share
from shard_tool.labels import NOT_LISTED, Table
from shard_tool.sources.listing import Listing, printable
from shard_tool.sources.protocol import Access, Source

GROUP_SHARDS = 4
"""Full shards a group; what a kill can cost, and how far photos that lie side by side are spread at least."""


@dataclass(frozen=True)
class PlannedShard:
    """One shard before its photos are read; those that are rejected will be missing from it."""

    split: str
    name: str
    items: NDArray[np.int64]
    """[samples] In the order of the shard."""


@dataclass(frozen=True)
class Group:
    """The atomic unit of a build."""

    number: int
    shards: tuple[PlannedShard, ...]
    unlisted: NDArray[np.int64]
    """Items that a table leaves out, in listing order."""


@dataclass(frozen=True)
class Plan:
    """The whole build on paper. Memory is a few bytes for each input."""

    listing: Listing
    keys: Keys
    attributes: Table | None
    """The labels: 0/1 attributes, or one class for each photo."""
    partition: Table | None
    split_of: NDArray[np.int8]
    """[inputs] A number into `SPLITS`, or `NOT_LISTED` where a table does not name the input."""
    groups: tuple[NDArray[np.int64], ...]
    """The items of each group."""
    shard_samples: int
    seed: int
    carried: Callable[[int], dict[str, object]]
    """What else the source says about an input, for the json of its sample."""

    @property
    def photos(self) -> int:
        """Inputs that will be read."""
        return sum(len(items) for items in self.groups)

    def samples(self) -> dict[str, int]:
        """Samples in each split if none is rejected."""
        splits = np.concatenate([self.split_of[items] for items in self.groups])
        return {name: int((splits == number).sum()) for number, name in enumerate(SPLITS)}

    def iter_groups(self, finished: Set[int] = frozenset()) -> Iterator[Group]:
        """All groups in order but those `finished`; only the current one is held."""
        first = [0] * len(SPLITS)
        for number, items in enumerate(self.groups):
            shards: list[PlannedShard] = []
            for split, split_name in enumerate(SPLITS):
                mine = items[self.split_of[items] == split]
                if not len(mine):
                    continue
                mixed = mine[permutation(len(mine), "samples", self.seed, number, split)]
                for part in np.array_split(mixed, -(-len(mixed) // self.shard_samples)):
                    shards.append(PlannedShard(split_name, f"{split_name}-{first[split]:06d}", part))
                    first[split] += 1
            if number not in finished:
                yield Group(number, tuple(shards), np.sort(items[self.split_of[items] == NOT_LISTED]))

    def is_unlisted(self, item: int) -> bool:
        """Whether a table leaves `item` out."""
        return bool(self.split_of[item] == NOT_LISTED)

    def why_unlisted(self, item: int) -> str:
        """The reason for which a table leaves `item` out."""
        tables = [table for table in (self.partition, self.attributes) if table is not None]
        return next(f"not in {table.file_name}" for table in tables if table.row_of[item] == NOT_LISTED)

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
    shard_samples: int,
    seed: int,
    limit: int | None,
) -> Plan:
    """Plan a build.

    `val_fraction` counts where there is no `partition`. `limit` takes that many inputs, spread over the whole listing
    by `seed`: the first ones of a sorted folder would all be of one person or class.
    """
    count = len(source.listing)
    keys = Keys(source.listing)
    if partition is not None:
        rows = partition.row_of
        split_of = np.where(rows == NOT_LISTED, NOT_LISTED, partition.values[rows, 0]).astype(np.int8)
    else:
        in_val = (val_fraction > 0 and in_share(keys[item], val_fraction) for item in range(count))
        split_of = np.fromiter(in_val, np.bool_, count).astype(np.int8)
    if attributes is not None:
        split_of[attributes.row_of == NOT_LISTED] = NOT_LISTED
    chunks = source.chunks()
    in_pass = source.access is Access.ONE_PASS
    order = np.arange(len(chunks) - 1) if in_pass else permutation(len(chunks) - 1, "chunks", seed)
    groups = _group(chunks, order, _chosen(count, limit, seed), shard_samples * GROUP_SHARDS)
    return Plan(source.listing, keys, attributes, partition, split_of, groups, shard_samples, seed, source.carried)


def _chosen(count: int, limit: int | None, seed: int) -> NDArray[np.bool_]:
    chosen = np.ones(count, np.bool_)
    if limit is not None:
        chosen[permutation(count, "limit", seed)[limit:]] = False
    return chosen


def _group(
    chunks: NDArray[np.int64], order: NDArray[np.int64], chosen: NDArray[np.bool_], group_items: int
) -> tuple[NDArray[np.int64], ...]:
    """Chunks in that order, cut into groups of about equal size and at most about `group_items`."""
    items = [np.flatnonzero(chosen[chunks[chunk] : chunks[chunk + 1]]) + chunks[chunk] for chunk in order.tolist()]
    ends = np.cumsum([len(chunk) for chunk in items])
    total = int(ends[-1])
    groups = -(-total // group_items)
    # A chunk belongs to the group in which its middle lies.
    middles = ends - np.array([len(chunk) for chunk in items]) / 2
    group_of = np.minimum((middles * groups / total).astype(np.int64), groups - 1)
    parts = [[items[chunk] for chunk in np.flatnonzero(group_of == number).tolist()] for number in range(groups)]
    return tuple(np.concatenate(part) for part in parts if part)


@functools.cache
def _attributes_format(columns: tuple[str, ...]) -> str:
    """What follows the source in a json, with `%d` for each value: ten times as fast as encoding a dict."""
    names = (json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in columns)
    return '"attributes":{' + ",".join(f"{name}:%d" for name in names) + "}"


def _json_bytes(path: bytes) -> int:
    return len(json.dumps(printable(path), ensure_ascii=False).encode())

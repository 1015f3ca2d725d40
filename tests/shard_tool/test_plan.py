from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shard_tool.labels import NOT_LISTED, Table
from shard_tool.plan import Plan, make_plan
from shard_tool.sources.listing import Listing
from shard_tool.sources.protocol import Access, InputError, Known, SideFile


class Numbers:
    """A source of numbered inputs, in chunks of 8."""

    name = "numbers"
    ignored = 0
    access = Access.ANY_ORDER
    known = Known()

    def __init__(self, count: int) -> None:
        self.listing = Listing([(f"{number:06d}.jpg".encode(), 1) for number in range(count)])

    def chunks(self) -> NDArray[np.int64]:
        return np.append(np.arange(0, len(self.listing), 8, dtype=np.int64), len(self.listing))

    def read(self, item: int) -> bytes:
        raise AssertionError("a plan reads nothing")

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        raise AssertionError("a plan reads nothing")

    def carried(self, item: int) -> dict[str, object]:
        return {}

    def side_files(self, file_name: str) -> list[SideFile]:
        return []


def plan(count: int, **changes: object) -> Plan:
    options: dict[str, object] = {"val_fraction": 0.1, "shard_samples": 10, "seed": 0, "limit": None, "partition": None}
    options |= changes
    return make_plan(Numbers(count), attributes=None, **options)  # type: ignore[arg-type]


def table(columns: tuple[str, ...], values: list[list[int]], row_of: list[int]) -> Table:
    return Table("t.csv", "t.csv", "0", columns, np.array(values, np.int8), np.array(row_of, np.int32))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 60), st.integers(0, 5), st.integers(1, 800) | st.none())
def test_every_photo_has_one_place(count: int, shard_samples: int, seed: int, limit: int | None) -> None:
    made = plan(count, shard_samples=shard_samples, seed=seed, limit=limit)
    groups = list(made.iter_groups())
    placed = np.concatenate([shard.items for group in groups for shard in group.shards])
    assert len(placed) == len(set(placed.tolist())) == made.photos == min(count, limit or count)
    names = [shard.name for group in groups for shard in group.shards]
    assert len(names) == len(set(names))
    assert max(len(shard.items) for group in groups for shard in group.shards) <= shard_samples
    assert sum(made.samples().values()) == made.photos


def test_shards_of_a_split_are_numbered_without_a_gap() -> None:
    names = [shard.name for group in plan(500).iter_groups() for shard in group.shards]
    for split in ("train", "val"):
        numbers = [int(name.split("-")[1]) for name in names if name.startswith(split)]
        assert numbers == list(range(len(numbers)))


def test_a_finished_group_is_left_out_and_changes_no_other() -> None:
    made = plan(500)
    groups = {group.number: group for group in made.iter_groups()}
    assert len(groups) > 5
    rest = list(made.iter_groups({0, 3}))
    assert [group.number for group in rest] == sorted(set(groups) - {0, 3})
    for group in rest:
        for shard, same in zip(group.shards, groups[group.number].shards, strict=True):
            assert shard.name == same.name
            np.testing.assert_array_equal(shard.items, same.items)


def test_the_order_of_a_plan_never_changes() -> None:
    first = next(plan(40, shard_samples=4, seed=7).iter_groups())
    assert [(shard.name, shard.items.tolist()) for shard in first.shards] == [
        ("train-000000", [2, 10, 0, 7]),
        ("train-000001", [9, 11, 13, 14]),
        ("train-000002", [4, 3, 8, 6]),
        ("train-000003", [1, 5, 15, 12]),
    ]


def test_another_seed_is_another_order_of_the_same_photos() -> None:
    one, other = (np.concatenate(plan(300, seed=seed).groups) for seed in (0, 1))
    assert one.tolist() != other.tolist()
    assert sorted(one) == sorted(other)


def test_a_sorted_folder_does_not_become_sorted_shards() -> None:
    made = plan(4000, shard_samples=100, val_fraction=0.0)
    means = [shard.items.mean() for group in made.iter_groups() for shard in group.shards]
    assert np.std(means) < 4000 / 8


def test_a_limit_spreads_over_the_whole_source() -> None:
    chosen = np.sort(np.concatenate(plan(10_000, limit=100).groups))
    assert len(chosen) == 100
    assert chosen[0] < 500
    assert chosen[-1] > 9500
    assert np.array_equal(chosen, np.sort(np.concatenate(plan(10_000, limit=100).groups)))


def test_a_partition_decides_the_splits_and_leaves_out_what_it_does_not_name() -> None:
    partition = table(("partition",), [[0], [1], [2]], [0, 1, 2, NOT_LISTED, 0])
    made = plan(5, partition=partition)
    (group,) = made.iter_groups()
    assert {shard.split: sorted(shard.items.tolist()) for shard in group.shards} == {
        "train": [0, 4],
        "val": [1],
        "test": [2],
    }
    assert group.unlisted.tolist() == [3]
    assert made.why_unlisted(3) == "not in t.csv"


def test_the_json_holds_source_and_attributes(tmp_path: Path) -> None:
    attributes = table(("Male", '100% "sure"'), [[1, 0]], [0, NOT_LISTED])
    made = make_plan(Numbers(2), attributes, None, val_fraction=0, shard_samples=10, seed=0, limit=None)
    assert made.meta(0) == b'{"source":"000000.jpg","attributes":{"Male":1,"100% \\"sure\\"":0}}'
    assert made.is_unlisted(1)
    assert made.longest_meta() == len(made.meta(0))
    assert plan(1).meta(0) == b'{"source":"000000.jpg"}'


@given(st.lists(st.text('aä"\\', min_size=1, max_size=9), min_size=1, max_size=9, unique=True))
def test_the_longest_json_is_known_beforehand(names: list[str]) -> None:
    source = Numbers(0)
    source.listing = Listing(sorted((f"{name}.jpg".encode(), 1) for name in names))
    made = make_plan(source, None, None, val_fraction=0, shard_samples=10, seed=0, limit=None)
    assert made.longest_meta() == max(len(made.meta(item)) for item in range(len(names)))

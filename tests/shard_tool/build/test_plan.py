from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.spread import deviation
from shard_tool.build.plan import Plan, make_plan
from shard_tool.labels.tables import NOT_LISTED, Table
from shard_tool.options import GROUP_SHARDS
from shard_tool.sources.listing import Listing
from shard_tool.sources.protocol import Access, InputError, Known, SideFile


class Numbers:
    """A source of numbered inputs, in chunks of 8."""

    name = "numbers"
    ignored: ClassVar[dict[str, int]] = {}
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
    if "group_samples" not in options:
        options["group_samples"] = GROUP_SHARDS * options["shard_samples"]  # type: ignore[operator]
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
        ("train-000000", [2, 26, 0, 7]),
        ("train-000001", [25, 27, 29, 30]),
        ("train-000002", [4, 3, 24, 6]),
        ("train-000003", [1, 5, 31, 28]),
    ]


def test_another_seed_is_another_order_of_the_same_photos() -> None:
    one, other = (np.concatenate(plan(300, seed=seed).groups) for seed in (0, 1))
    assert one.tolist() != other.tolist()
    assert sorted(one) == sorted(other)


def shards_of(made: Plan) -> list[NDArray[np.int64]]:
    return [shard.items for group in made.iter_groups() for shard in group.shards]


@settings(max_examples=20, deadline=None)
@given(st.integers(2_000, 30_000), st.integers(100, 4_096), st.integers(2, 200), st.integers(0, 3))
def test_a_folder_sorted_by_class_becomes_shards_like_those_of_a_full_shuffle(
    count: int, shard_samples: int, classes: int, seed: int
) -> None:
    class_photos = count // classes
    sorted_as_it_lies = plan(count, shard_samples=shard_samples, val_fraction=0.0, seed=None)
    spread = plan(count, shard_samples=shard_samples, val_fraction=0.0, seed=seed)
    assert deviation(shards_of(spread), class_photos) < 1.8
    if len(shards_of(spread)) > 1:
        assert deviation(shards_of(sorted_as_it_lies), class_photos) > 2


def test_without_a_seed_everything_keeps_the_order_of_the_listing() -> None:
    made = plan(500, seed=None, val_fraction=0.2)
    groups = list(made.iter_groups())
    assert len(groups) > 5
    for split in ("train", "val"):
        shards = [shard for group in groups for shard in group.shards if shard.split == split]
        items = np.concatenate([shard.items for shard in shards])
        assert np.array_equal(items, np.sort(items))
        assert [shard.name for shard in shards] == sorted(shard.name for shard in shards)
    assert np.concatenate(plan(500, seed=None, limit=30).groups).tolist() == list(range(30))


def test_a_group_takes_a_chunk_of_every_stretch_of_the_listing() -> None:
    made = plan(800, shard_samples=50)
    assert [len(items) for items in made.groups] == [200] * 4
    for items in made.groups:
        assert np.bincount(items // 32).tolist() == [8] * 25


def test_shards_that_bytes_limit_are_planned_as_one_run_of_a_group() -> None:
    made = plan(500, shard_samples=None, group_samples=100)
    groups = list(made.iter_groups())
    assert [shard.name for shard in groups[2].shards] == ["train-000002", "val-000002"]
    assert sum(len(shard.items) for group in groups for shard in group.shards) == 500


def test_what_another_set_holds_is_left_out_with_a_reason() -> None:
    made = plan(20).without({}, np.array([3, 5]))
    assert sorted(np.concatenate([group.left_out for group in made.iter_groups()]).tolist()) == [3, 5]
    assert made.why_left_out(5) == ("in another set", "")


def test_folders_are_of_one_split_as_a_whole() -> None:
    source = Numbers(0)
    source.listing = Listing([(f"{number % 50:02d}/{number}.jpg".encode(), 1) for number in range(1000)])
    options: dict[str, object] = {"val_fraction": 0.3, "shard_samples": 10, "seed": 0, "limit": None}
    made = make_plan(source, None, None, group_samples=40, val_by_folder=True, **options)  # type: ignore[arg-type]
    splits = {(path.partition(b"/")[0], split) for path, split in zip(source.listing, made.split_of, strict=True)}
    assert len(splits) == 50
    assert 5 < sum(split for _, split in splits) < 25


def test_duplicates_are_left_out_and_groups_keep_their_items() -> None:
    made = plan(500)
    fewer = made.without({7: 3, 499: 0}, np.empty(0, np.int64))
    assert [group.left_out.tolist() for group in fewer.iter_groups() if len(group.left_out)] in (
        [[7], [499]],
        [[499], [7]],
    )
    assert fewer.photos == 500
    assert sum(fewer.samples().values()) == 498
    assert fewer.why_left_out(499) == ("duplicate", "of 000000.jpg")
    assert [items.tolist() for items in fewer.groups] == [items.tolist() for items in made.groups]


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
    assert group.left_out.tolist() == [3]
    assert made.why_left_out(3) == ("not in t.csv", "")


def test_the_json_holds_source_and_attributes(tmp_path: Path) -> None:
    attributes = table(("Male", '100% "sure"'), [[1, 0]], [0, NOT_LISTED])
    sizes = {"shard_samples": 10, "group_samples": 40}
    made = make_plan(Numbers(2), attributes, None, val_fraction=0, seed=0, limit=None, **sizes)
    assert made.meta(0) == b'{"source":"000000.jpg","attributes":{"Male":1,"100% \\"sure\\"":0}}'
    assert made.is_left_out(1)
    assert made.longest_meta() == len(made.meta(0))
    assert plan(1).meta(0) == b'{"source":"000000.jpg"}'


@given(st.lists(st.text('aä"\\', min_size=1, max_size=9), min_size=1, max_size=9, unique=True))
def test_the_longest_json_is_known_beforehand(names: list[str]) -> None:
    source = Numbers(0)
    source.listing = Listing(sorted((f"{name}.jpg".encode(), 1) for name in names))
    made = make_plan(source, None, None, val_fraction=0, shard_samples=10, group_samples=40, seed=0, limit=None)
    assert made.longest_meta() == max(len(made.meta(item)) for item in range(len(names)))

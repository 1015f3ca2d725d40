import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.counter import permutation
from pipeline.errors import ConfigError
from pipeline.order import OPEN_SHARDS, Order, default_lanes, default_window

PINNED_SIZES = np.array([3, 4, 2, 5])
PINNED = [
    *[(2, 0), (3, 4), (2, 1), (3, 3), (0, 1), (3, 2), (0, 0), (1, 0), (0, 2), (1, 1), (3, 0), (1, 3), (3, 1), (1, 2)],
    *[(0, 2), (2, 0), (0, 0), (2, 1), (0, 1), (3, 3), (1, 2), (3, 0), (1, 0), (3, 2), (1, 1), (3, 4), (1, 3), (3, 1)],
]
"""Two epochs of PINNED_SIZES with seed 7, windows of one shard, two lanes."""

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(np.array)
orders = st.builds(
    Order,
    sizes,
    seed=st.integers(0, 1 << 62),
    window=st.none() | st.integers(1, 14),
    lanes=st.none() | st.integers(1, 9),
)


def pairs(order: Order, positions: list[int] | range) -> list[tuple[int, int]]:
    shards, rows = order.locate(np.array(positions, np.int64))
    return list(zip(shards.tolist(), rows.tolist(), strict=True))


def spelled_out(order: Order, epoch: int) -> list[tuple[int, int]]:
    """One epoch made as ARCHITECTURE.md tells it, with lists of all samples."""
    shards = permutation(len(order.samples), "shards", order.seed, epoch).tolist()
    line = [(shard, row) for shard in shards for row in range(order.samples[shard])]
    lane_of = [(epoch * order.total + index) % order.lanes for index in range(order.total)]
    lanes, begin = [], 0
    for lane in range(order.lanes):
        rows = line[begin : begin + lane_of.count(lane)]
        begin += len(rows)
        met = list(dict.fromkeys(shard for shard, _ in rows))
        shuffled = []
        for number, first in enumerate(range(0, len(met), order.window)):
            window = [row for row in rows if row[0] in met[first : first + order.window]]
            places = permutation(len(window), "rows", order.seed, epoch, lane, number).tolist()
            shuffled += [window[place] for place in places]
        lanes.append(iter(shuffled))
    return [next(lanes[lane]) for lane in lane_of]


def test_the_order_is_pinned_for_good():
    assert pairs(Order(PINNED_SIZES, seed=7, window=1, lanes=2), range(28)) == PINNED


@settings(max_examples=150, deadline=None)
@given(orders, st.integers(0, 1000))
def test_the_order_is_the_one_that_the_design_tells(order, epoch):
    start = epoch * order.total
    assert pairs(order, range(start, start + order.total)) == spelled_out(order, epoch)


@settings(max_examples=150, deadline=None)
@given(orders, st.integers(0, 1 << 40))
def test_every_epoch_hands_out_every_sample_once(order, epoch):
    start = epoch * order.total
    every = [(shard, row) for shard, count in enumerate(order.samples.tolist()) for row in range(count)]
    assert sorted(pairs(order, range(start, start + order.total))) == every


@settings(max_examples=100, deadline=None)
@given(orders, st.integers(0, 50), st.integers(1, 30), st.randoms(use_true_random=False))
def test_a_position_has_one_sample_however_it_is_asked_for(order, start, batch, random):
    positions = list(range(start, start + 2 * order.total + 3))
    expected = dict(zip(positions, pairs(order, positions), strict=True))

    def fresh() -> Order:
        return Order(order.samples, seed=order.seed, window=order.window, lanes=order.lanes)

    alone = fresh()
    assert [pairs(alone, [position])[0] for position in positions] == list(expected.values())
    backwards = fresh()
    assert [pairs(backwards, [position])[0] for position in positions[::-1]] == list(expected.values())[::-1]
    batches = [positions[first : first + batch] for first in range(0, len(positions), batch)]
    assert [pair for part in batches for pair in pairs(order, part)] == list(expected.values())
    subset = [random.choice(positions) for _ in range(20)]
    assert pairs(fresh(), subset) == [expected[position] for position in subset]


def test_no_positions_have_no_samples():
    assert pairs(Order(PINNED_SIZES), []) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=8, max_size=40), st.sampled_from([2, 4, 6, 8]), st.integers(0, 20))
def test_ranks_that_divide_the_lanes_share_out_the_shards(counts, lanes, epoch):
    order = Order(np.array(counts), seed=1, window=3, lanes=lanes)
    for world_size in (ranks for ranks in range(2, lanes + 1) if lanes % ranks == 0):
        reads = []
        for rank in range(world_size):
            positions = np.arange(epoch * order.total, (epoch + 1) * order.total)
            reads.append({shard for shard, _ in pairs(order, positions[positions % world_size == rank])})
        # Each lane is one piece of the line of shards, so that at most the shards on its two borders have two readers.
        assert sum(map(len, reads)) <= len(counts) + lanes - 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_a_lane_mixes_at_most_the_shards_of_its_window(counts, window, lanes, epoch):
    order = Order(np.array(counts), seed=3, window=window, lanes=lanes)
    first = epoch * order.total
    for lane in range(lanes):
        lane_positions = [p for p in range(first, first + order.total) if p % lanes == lane]
        shards = [shard for shard, _ in pairs(order, lane_positions)]
        finished: set[int] = set()
        while shards:  # A window is left for good once a shard of the next one is seen.
            ahead: list[int] = []
            for shard in shards:
                if shard not in ahead and len(ahead) == window:
                    break
                ahead = ahead if shard in ahead else [*ahead, shard]
            count = next((place for place, shard in enumerate(shards) if shard not in ahead), len(shards))
            assert not finished & set(shards[:count])
            finished |= set(ahead)
            shards = shards[count:]


def test_a_window_that_holds_the_set_is_a_full_shuffle():
    order = Order(np.full(20, 50), seed=0)
    assert order.window >= 20
    shards = np.array(pairs(order, range(1000)))[:, 0]
    for part in shards.reshape(4, 250):
        assert len(set(part.tolist())) == 20


def test_epochs_and_seeds_give_unrelated_orders():
    def epoch(number: int, seed: int) -> list[tuple[int, int]]:
        return pairs(Order(np.full(30, 20), seed=seed), range(number * 600, (number + 1) * 600))

    runs = [epoch(0, 0), epoch(1, 0), epoch(2, 0), epoch(0, 1)]
    for number, one in enumerate(runs):
        for other in runs[:number]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 12, "one is expected by chance"


def test_defaults_depend_on_the_shards_alone():
    assert [default_lanes(shards) for shards in (1, 63, 64, 100_000)] == [1, 1, 8, 8]
    assert [default_window(lanes) for lanes in (1, 8, 1000)] == [OPEN_SHARDS, OPEN_SHARDS // 8, 1]
    order = Order(np.full(64, 2))
    assert (order.lanes, order.window, order.total) == (8, 8, 128)


def test_a_billion_samples_are_sought_with_few_windows_in_memory(monkeypatch):
    made: list[int] = []

    def counted(count: int, *key: int | str):
        made.append(count)
        return permutation(count, *key)

    monkeypatch.setattr("pipeline.order.permutation", counted)
    order = Order(np.full(100_000, 10_000), seed=1)
    position = 3 * 10**9 + 123_456_789
    together = pairs(order, range(position, position + 64))
    assert made == [100_000] + [80_000] * 8, "one epoch and one window a lane"
    order.locate(np.array([0, order.total - 8, position]))
    assert made[9:] == [100_000, 80_000, 40_000], "the windows in between are not made"
    assert pairs(order, range(position, position + 64)) == together
    for far in range(0, 20 * order.total, order.total // 2 + 12_345):
        order.locate(np.array([far]))
        assert len(order._windows) <= 2 * order.lanes
        assert len(order._epochs) <= 2
    held = sum(rows.nbytes for rows in order._windows.values())
    assert held <= 2 * OPEN_SHARDS * 10_000 * 4


@pytest.mark.parametrize(
    ("samples", "settings", "message"),
    [
        ([], {}, "shards must hold at least one sample"),
        ([3, 0, 2], {}, "shards must hold at least one sample"),
        ([3], {"lanes": 0}, "lanes must be at least 1; got 0"),
        ([3], {"window": 0}, "window must be at least 1 shard; got 0"),
        ([3], {"window": -5}, "window must be at least 1 shard; got -5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(samples, settings, message):
    with pytest.raises(ConfigError, match=message):
        Order(np.array(samples, np.int64), **settings)


# Which shards a reader needs


def walk(order: Order, lanes: range, start: int, stop: int, step: int):
    """`needed` of every batch of `step` positions, asked for only where the answer before does not hold any more."""
    needed = None
    for begin in range(start, stop, step):
        end = min(stop, begin + step)
        if needed is None or begin >= needed.low or end > needed.high:
            needed = order.needed(begin, end, lanes)
        yield begin, end, needed


@settings(max_examples=150, deadline=None)
@given(orders, st.integers(0, 200), st.integers(1, 40), st.integers(1, 6), st.data())
def test_the_shards_that_positions_touch_are_known_before_they_are_located(order, start, step, world_size, data):
    rank = data.draw(st.integers(0, world_size - 1))
    lanes = order.lanes_of(rank, world_size)
    for begin, end, needed in walk(order, lanes, start, start + 3 * order.total, step):
        own = [position for position in range(begin, end) if position % world_size == rank]
        assert {position % order.lanes for position in own} <= set(lanes)
        assert {shard for shard, _ in pairs(order, own)} <= set(needed.now)
        assert not set(needed.now) & set(needed.soon)
        assert len(set(needed.now)) == len(needed.now)
        assert needed == order.needed(begin, end, lanes) or (needed.low, needed.high) != (begin, end)
        fresh = order.needed(begin, end, lanes)
        assert (set(fresh.now), set(fresh.soon)) == (set(needed.now), set(needed.soon))


@settings(max_examples=100, deadline=None)
@given(orders, st.integers(0, 200))
def test_windows_follow_each_other_and_hold_the_shards_of_their_positions(order, start):
    for lane in range(order.lanes):
        position = start
        while position < start + 2 * order.total:
            window = order.window_at(position, lane)
            inside = [p for p in range(position, window.stop) if p % order.lanes == lane]
            assert inside, "a window holds the position it was asked for"
            assert {shard for shard, _ in pairs(order, inside)} <= set(order.window_shards(window).tolist())
            assert len(order.window_shards(window)) <= order.window
            assert order.window_at(inside[-1], lane) == window
            position = window.stop


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=8, max_size=60),
    st.sampled_from([1, 2, 4, 6, 8]),
    st.integers(1, 5),
    st.integers(0, 20),
)
def test_nodes_that_divide_the_lanes_fetch_the_set_about_once_an_epoch(counts, lanes, window, epoch):
    order = Order(np.array(counts), seed=1, window=window, lanes=lanes)
    start, stop = epoch * order.total, (epoch + 1) * order.total
    for nodes in (count for count in range(1, lanes + 1) if lanes % count == 0):
        fetched = 0
        for node in range(nodes):
            held: set[int] = set()
            # A node holds the shards of its lanes' windows and drops them when it leaves the windows.
            for begin in range(start, stop):
                windows = [order.window_at(begin, lane) for lane in order.lanes_of(node, nodes)]
                now = {number for one in windows if one.epoch == epoch for number in order.window_shards(one).tolist()}
                fetched += len(now - held)
                held = now
        assert len(counts) <= fetched <= len(counts) * (1 + lanes / len(counts))

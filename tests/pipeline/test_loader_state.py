import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import StreamingLoader
from pipeline.errors import ConfigError, UserError
from pipeline.format import ShardSet

Make = Callable[..., ShardSet]


def keys(loader: StreamingLoader, batches: int) -> list[tuple[str, ...]]:
    return [batch.keys for batch in itertools.islice(loader, batches)]


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(state))
    assert loaded == state, "plain values only"
    return loaded


def test_a_state_counts_what_was_handed_over_and_not_what_is_decoded_ahead(shard_set: Make) -> None:
    with StreamingLoader(shard_set(), batch_size=8, threads=2, prefetch=5) as loader:
        assert loader.state_dict()["position"] == 0
        for number in range(1, 4):
            next(loader)
            assert loader.state_dict()["position"] == loader.position == 8 * number


@pytest.mark.parametrize("read_before", [0, 1, 7])
@pytest.mark.parametrize("at", [0, 3, 12])
def test_a_loader_goes_on_behind_the_last_batch(shard_set: Make, read_before: int, at: int) -> None:
    shards = shard_set()
    with StreamingLoader(shards, batch_size=8, threads=2, seed=5, flip=True) as loader:
        keys(loader, at)
        state = through_json(loader.state_dict())
        expected = keys(loader, 9)
    with StreamingLoader(shards, batch_size=8, threads=1, prefetch=1, seed=5, flip=True) as other:
        keys(other, read_before)
        other.load_state_dict(state)
        assert other.position == 8 * at
        assert keys(other, 9) == expected


def test_a_loader_can_go_back_and_forth(shard_set: Make) -> None:
    with StreamingLoader(shard_set(), batch_size=8, threads=3) as loader:
        states, expected = [], []
        for _ in range(12):
            states.append(loader.state_dict())
            expected.append(next(loader).keys)
        for number in (0, 11, 3, 3, 7):
            loader.load_state_dict(states[number])
            assert next(loader).keys == expected[number]


def test_a_loader_behind_a_disk_cache_can_go_back_and_forth(shard_set: Make, tmp_path: Path) -> None:
    shards = shard_set(samples={"train": 160})
    order: dict[str, Any] = {"batch_size": 4, "threads": 2, "prefetch": 1, "window": 1, "lanes": 2}
    room = 14 * max(path.stat().st_size for path in shards.folder.glob("*.tar"))
    with StreamingLoader(shards, **order, cache=tmp_path / "cache", cache_bytes=room) as loader:
        states, expected = [], []
        for _ in range(60):
            states.append(loader.state_dict())
            expected.append(next(loader).keys)
        for number in (0, 59, 20, 19, 40, 3):
            loader.load_state_dict(states[number])
            assert keys(loader, 2)[0] == expected[number]


def test_batch_size_and_ranks_may_change(shard_set: Make) -> None:
    shards = shard_set()
    with StreamingLoader(shards, batch_size=8, threads=1) as loader:
        keys(loader, 3)
        state = loader.state_dict()
        expected = [key for batch in keys(loader, 3) for key in batch]
    found: dict[int, str] = {}
    for rank in range(2):
        with StreamingLoader(shards, batch_size=12, threads=1, rank=rank, world_size=2) as loader:
            loader.load_state_dict(state)
            for batch in itertools.islice(loader, 2):
                found.update(zip(batch.positions.tolist(), batch.keys, strict=True))
            assert loader.position == 48
    assert [found[position] for position in range(24, 48)] == expected


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"seed": 4}, "seed 3 (here 4)"),
        ({"window": 2}, "window 64 (here 2)"),
        ({"lanes": 2}, "lanes 1 (here 2)"),
        ({"split": "val"}, "split 'train' (here 'val')"),
        ({"flip": True}, "flip False (here True)"),
    ],
)
def test_another_order_is_refused_with_the_difference(shard_set: Make, settings: Any, found: str) -> None:
    shards = shard_set()
    with StreamingLoader(shards, batch_size=8, threads=1, seed=3) as loader:
        state = loader.state_dict()
    with StreamingLoader(shards, **{"batch_size": 8, "threads": 1, "seed": 3} | settings) as other:
        next(other)
        with pytest.raises(ConfigError, match="must be of the same set and order") as error:
            other.load_state_dict(state)
        assert found in str(error.value)
        assert other.position == 8
        next(other)


def test_another_set_is_refused(shard_set: Make) -> None:
    with StreamingLoader(shard_set(), batch_size=8, threads=1) as loader:
        state = loader.state_dict()
    found = pytest.raises(ConfigError, match=f"got fingerprint '{state['fingerprint']}'")
    with StreamingLoader(shard_set(seed=1), batch_size=8, threads=1) as other, found:
        other.load_state_dict(state)


@pytest.mark.parametrize("change", [{"position": -1}, {"position": 1.5}, {"position": True}, {"position": None}, None])
def test_what_is_no_state_is_refused(shard_set: Make, change: dict[str, Any] | None) -> None:
    with StreamingLoader(shard_set(), batch_size=8, threads=1) as loader:
        state = {"epoch": 3} if change is None else loader.state_dict() | change
        with pytest.raises(ConfigError, match="must be what state_dict"):
            loader.load_state_dict(state)


def test_a_closed_loader_knows_its_state_and_takes_no_other(shard_set: Make) -> None:
    with StreamingLoader(shard_set(), batch_size=8, threads=1) as loader:
        next(loader)
    assert loader.state_dict()["position"] == 8
    with pytest.raises(UserError, match="loader must be open"):
        loader.load_state_dict(loader.state_dict())


# Epochs: 40 samples


@pytest.mark.parametrize(("batch_size", "batches"), [(8, [5, 5, 5]), (12, [4, 3, 3]), (64, [1, 1, 1]), (7, [6, 6, 6])])
def test_epochs_follow_each_other_without_a_gap(shard_set: Make, batch_size: int, batches: list[int]) -> None:
    with StreamingLoader(shard_set(), batch_size=batch_size, threads=1) as loader:
        positions = [[batch.positions.tolist() for batch in loader.epoch()] for _ in batches]
    assert [len(epoch) for epoch in positions] == batches
    read = [position for epoch in positions for batch in epoch for position in batch]
    assert read == list(range(batch_size * sum(batches)))


def test_a_resumed_epoch_is_what_is_left_of_it(shard_set: Make) -> None:
    with StreamingLoader(shard_set(), batch_size=8, threads=1, start=40 + 16) as loader:
        assert [batch.positions[0].item() for batch in loader.epoch()] == [56, 64, 72]
        assert [batch.positions[0].item() for batch in loader.epoch()] == [80, 88, 96, 104, 112]


def test_an_epoch_that_is_left_early_goes_on_where_it_was_left(shard_set: Make) -> None:
    with StreamingLoader(shard_set(), batch_size=8, threads=1) as loader:
        for batch in loader.epoch():
            if batch.positions[0] == 8:
                break
        assert [batch.positions[0].item() for batch in loader.epoch()] == [16, 24, 32]

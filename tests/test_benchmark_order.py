"""The figures of docs/loader.md about the order say what they claim to say."""

import numpy as np
import pytest

from benchmarks.order import (
    CLASSES,
    SHARD_SAMPLES,
    buffered,
    classes_of,
    described_set,
    fetched,
    mixture,
    seek_s,
    show_seek,
    spread_positions,
    streamed,
)
from pipeline import Dataset
from pipeline.order import Order

SHARDS = 128
FULL = mixture(np.random.default_rng(3).permutation(classes_of(np.arange(SHARDS), SHARDS).repeat(SHARD_SAMPLES)), 256)


def test_a_window_of_all_shards_is_a_full_shuffle() -> None:
    found = mixture(streamed(SHARDS, SHARDS, 1), 256)
    assert found.classes == pytest.approx(FULL.classes, rel=0.01)
    assert found.distance == pytest.approx(FULL.distance, rel=0.03)
    assert found.drift == pytest.approx(FULL.drift, rel=0.1)


def test_the_more_shards_are_mixed_the_nearer_is_a_full_shuffle() -> None:
    mixtures = [mixture(streamed(SHARDS, window, 8), 256) for window in (1, 2, 4, 8)]
    for worse, better in zip(mixtures, [*mixtures[1:], FULL], strict=True):
        assert better.classes > worse.classes
        assert better.distance < worse.distance
        assert better.drift < worse.drift


def test_an_epoch_holds_every_class_as_often_as_the_set() -> None:
    expected = [SHARDS * SHARD_SAMPLES // CLASSES] * CLASSES
    for labels in (streamed(SHARDS, 8, 8), buffered(SHARDS, 1000)):
        assert np.bincount(labels).tolist() == expected


def test_sorted_batches_are_as_far_away_as_can_be() -> None:
    found = mixture(classes_of(np.arange(CLASSES), CLASSES).repeat(256), 256)
    assert (found.classes, found.distance) == (1, pytest.approx(1 - 1 / CLASSES))


@pytest.mark.parametrize("nodes", [1, 2, 4, 8])
def test_nodes_that_divide_the_lanes_fetch_the_set_once(nodes: int) -> None:
    assert SHARDS <= fetched(SHARDS, 8, nodes) <= SHARDS + 8


def test_nodes_beyond_the_lanes_fetch_it_again() -> None:
    assert fetched(SHARDS, 1, 4) > 3 * SHARDS


def test_sets_without_files_are_sought_in_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    split = Dataset.open([described_set(number, 40, 10_003) for number in range(3)]).split("train")
    assert (len(split), split.total) == (120, 30_009)
    positions = spread_positions(Order(split.samples))
    assert [position // split.total for position in positions] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(seek_s(split.samples, position, 16) > 0 for position in positions)
    show_seek(3, 120, 30_009, 16)
    assert "30,009 samples in 120 shards of 3 sets, window 8, lanes 8" in capsys.readouterr().out

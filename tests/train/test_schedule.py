from itertools import pairwise

import pytest

from train.config import OptimConfig
from train.schedule import ema_decay, learning_rate


def test_warm_up_rises_linearly_and_the_first_update_moves() -> None:
    config = OptimConfig(learning_rate=1.0, schedule="constant", warmup_images=100)
    rates = [learning_rate(config, position, 1000) for position in range(0, 200, 10)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[5] == pytest.approx(0.51)
    assert all(before < after for before, after in pairwise(rates[:11]))
    assert set(rates[10:]) == {1.0}


def test_cosine_ends_at_zero() -> None:
    config = OptimConfig(learning_rate=2.0, warmup_images=0)
    assert [learning_rate(config, position, 1000) for position in (0, 250, 500, 1000, 2000)] == pytest.approx(
        [2.0, 1 + 0.5**0.5, 1.0, 0.0, 0.0]
    )


def test_ema_forgets_the_start_and_reaches_its_halflife() -> None:
    # 5% of what has been seen, then the value.
    assert ema_decay(10_000, 1_000, 50) == pytest.approx(0.5)
    assert ema_decay(10_000, 200_000, 10_000) == pytest.approx(0.5)
    assert ema_decay(10_000, 400_000, 10_000) == pytest.approx(0.5)
    assert ema_decay(10_000, 64, 64) == pytest.approx(2.0**-20)


def test_ema_over_two_updates_is_that_over_one_of_both() -> None:
    one, both = ema_decay(1_000, 10**6, 64), ema_decay(1_000, 10**6, 128)
    assert one is not None
    assert one**2 == pytest.approx(both)


def test_the_average_moves_at_most_64_times_in_a_halflife() -> None:
    assert ema_decay(6_400, 10**6, 99) is None
    assert ema_decay(6_400, 10**6, 100) == pytest.approx(0.5 ** (1 / 64))
    assert ema_decay(6_400, 640, 16) is not None, "at first the half-life is short"

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.curves import draw_curves, short, ticks, value_range


def record(position: int, **values: float) -> dict[str, float]:
    return {"position": position, "loss": 1.0, "psnr_db": 20.0, "kl_nats": 3.0, "images_per_s": 100.0, **values}


def test_there_is_no_picture_of_fewer_than_two_lines() -> None:
    assert draw_curves([], "x") is None
    assert draw_curves([record(16)], "x") is None


@pytest.mark.parametrize("loss", [1.0, math.nan, 1e30, -5e4])
def test_any_numbers_give_a_picture(loss: float) -> None:
    records = [record(position, loss=loss) for position in range(16, 160, 16)]
    picture = draw_curves(records, "x")
    assert picture is not None
    assert picture.size == (1120, 644)


def test_held_out_figures_are_drawn_over_those_of_training() -> None:
    records: list[dict[str, object]] = [dict(record(position)) for position in range(16, 1600, 16)]
    without = draw_curves(records, "x")
    scores = {"val": {"psnr_db": 25.0, "rate_nats": 4.0}}
    drawn = draw_curves([*records, {"position": 800, "epoch": 1, "scores": scores}], "x")
    assert without is not None
    assert drawn is not None
    orange = (np.asarray(drawn) == (204, 102, 34)).all(-1)
    assert not (np.asarray(without) == (204, 102, 34)).all(-1).any()
    assert orange[44:].any()


def test_the_first_steep_values_do_not_flatten_the_rest() -> None:
    positions = np.arange(1.0, 1001.0)
    values = np.where(positions < 20, 1e6, positions / 1000)
    low, high = value_range([(positions, values)])
    assert -0.1 < low < 0.1
    assert 1 < high < 1.2


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_and_inside(low: float, share: float) -> None:
    high = low + max(share, 1e-5 * abs(low))
    found = ticks(low, high)
    assert len(found) <= 7
    slack = 1e-6 * (high - low)
    assert all(low - slack <= value <= high + slack for value in found)


@pytest.mark.parametrize(("value", "text"), [(0.05, "0.05"), (1500, "1.5k"), (2e6, "2M"), (-12_000, "-12k"), (0, "0")])
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text

import itertools

import numpy as np
import pytest
import torch

from explore.latent import discrepancy
from explore.latent.discrepancy import FLOORS, SCALES, compare, squared_mmd
from train.evaluate import Gaussian


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return sum(2 * len(x) * scale / (2 * len(x) * scale + np.square(x - y).sum()) for scale in SCALES)


def by_definition(first: np.ndarray, second: np.ndarray) -> float:
    """Gretton et al. 2012, equation 3, pair by pair."""
    within = [
        np.mean([kernel(rows[i], rows[j]) for i, j in itertools.permutations(range(len(rows)), 2)])
        for rows in (first, second)
    ]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in first for y in second])


@pytest.mark.parametrize("block", [1, 3, 4, 256])
def test_blocks_of_any_size_add_up_to_the_definition(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(discrepancy, "_BLOCK", block)
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((7, 3)), rng.standard_normal((9, 3)) + 1
    found = squared_mmd(*(torch.from_numpy(rows).float() for rows in (first, second)))
    assert found == pytest.approx(by_definition(first, second), abs=1e-5)


@pytest.mark.parametrize("distance", [0.0, 1.0, 30.0])
def test_two_points_have_the_closed_form(distance: float):
    here, there = torch.zeros(300, 5), torch.zeros(280, 5)
    there[:, 2] = distance
    expected = 2 * sum(1 - 10 * scale / (10 * scale + distance**2) for scale in SCALES)
    assert squared_mmd(here, there) == pytest.approx(expected, abs=1e-5)


def test_draws_of_one_distribution_give_zero_on_average():
    torch.manual_seed(0)
    found = torch.tensor([squared_mmd(torch.randn(20, 4), torch.randn(30, 4)) for _ in range(400)])
    assert abs(found.mean()) < 3 * found.std() / 20
    # The biased estimate, which counts each row with itself, would be off by this:
    assert found.mean() < 0.1 * len(SCALES) * (1 / 20 + 1 / 30)


def test_the_prior_the_fitted_gaussian_and_chance_stand_side_by_side():
    torch.manual_seed(1)
    spread = torch.tensor([3.0, 1.0, 0.2])
    draws = 1 + spread * torch.randn(1000, 3)
    fitted = Gaussian(torch.ones(3, dtype=torch.float64), spread.square().diag().double())
    found = compare(draws, fitted, seed=0)
    assert (found.images, FLOORS) == (1000, 4)
    chance = abs(found.floor) + 5 * found.floor_std
    assert found.standard > 10 * chance
    assert abs(found.fitted) < 3 * chance
    assert compare(draws, fitted, seed=0) == found
    assert compare(draws, fitted, seed=1).floor != found.floor


def test_no_more_rows_are_compared_than_is_bearable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(discrepancy, "MOST", 50)
    draws = torch.cat([torch.randn(50, 2), torch.full((50, 2), torch.nan)])
    found = compare(draws, Gaussian.standard(2), seed=0)
    assert found.images == 50
    assert np.isfinite(found.standard)

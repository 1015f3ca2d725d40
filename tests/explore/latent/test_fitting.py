"""Fits on draws whose distribution is known."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from explore.latent.fitting import Aggregate, fit_mixture, least_images, shrunk
from train.mixture import Mixture

CENTRES = torch.tensor([[4.0, 0, 0, 0], [-4, 0, 0, 0], [0, 5, 0, 0]])
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])


def clusters() -> Mixture:
    """Three clusters in four dimensions, each longer in one direction."""
    covariances = torch.stack(
        [torch.diag(torch.tensor([1.0, 1, 1, 1]).index_fill(0, torch.tensor(i), 0.2)) for i in (0, 1, 3)]
    )
    return Mixture.of(WEIGHTS, CENTRES, covariances)


def drawn(count: int, first: int = 0) -> NDArray[np.float32]:
    return np.asarray(clusters().draw(torch.arange(first, first + count), seed=11).numpy())


def gaussian_of(draws: NDArray[np.float32]) -> Mixture:
    aggregate = Aggregate(draws.shape[1])
    aggregate.add(torch.from_numpy(draws), torch.full(draws.shape, -50.0))
    return Mixture.single(aggregate.gaussian())


def test_known_components_are_found_again() -> None:
    found = fit_mixture(drawn(3000), 3, seed=0)
    order = [int((found.means - centre).norm(dim=1).argmin()) for centre in CENTRES.double()]
    assert sorted(order) == [0, 1, 2]
    torch.testing.assert_close(found.means[order], CENTRES.double(), atol=0.12, rtol=0)
    torch.testing.assert_close(found.weights[order], WEIGHTS.double(), atol=0.03, rtol=0)
    covariances = found.factors @ found.factors.mT
    truth = clusters().factors @ clusters().factors.mT
    torch.testing.assert_close(covariances[order], truth, atol=0.15, rtol=0)
    assert float(found.weights.sum()) == pytest.approx(1.0)


def test_held_out_draws_of_clusters_are_likelier_under_the_mixture_than_under_one_gaussian() -> None:
    train, held_out = drawn(2000), torch.from_numpy(drawn(2000, first=50_000))
    mixture, single = fit_mixture(train, 3, seed=0), gaussian_of(train)
    truth = float(clusters().log_density(held_out).mean())
    assert float(mixture.log_density(held_out).mean()) == pytest.approx(truth, abs=0.05)
    assert float(single.log_density(held_out).mean()) < truth - 0.5


def test_the_same_draws_and_seed_give_the_same_mixture() -> None:
    first, second = (fit_mixture(drawn(600), 4, seed=3) for _ in range(2))
    assert all(value.equal(vars(second)[name]) for name, value in vars(first).items())


@pytest.mark.parametrize(("dimensions", "components"), [(64, 10), (16, 10), (3, 2)])
def test_as_few_images_as_are_allowed_make_a_mixture_that_holds(dimensions: int, components: int) -> None:
    """Held-out draws are not much less likely than under the truth: the covariances are not those of a few points."""
    count = least_images(components, dimensions)
    truth = Mixture.standard(dimensions)
    draws, held_out = (truth.draw(torch.arange(first, first + count), seed=0) for first in (0, count))
    found = fit_mixture(draws.numpy(), components, seed=0)
    assert bool(torch.isfinite(found.factors).all())
    loss = float((truth.log_density(held_out) - found.log_density(held_out)).mean())
    assert loss < 1.5 * dimensions


def test_dimensions_of_very_different_scales_can_be_fitted() -> None:
    scales = np.geomspace(1e-3, 10, 12).astype(np.float32)
    draws = Mixture.standard(12).draw(torch.arange(400), seed=1).numpy() * scales
    found = fit_mixture(draws, 3, seed=0)
    assert bool(torch.isfinite(found.log_density(torch.from_numpy(draws))).all())


def test_covariances_are_drawn_to_their_mean_the_more_the_fewer_images_there_are() -> None:
    covariances = torch.stack([torch.eye(2), 3 * torch.eye(2)]).double()
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    few, many = (shrunk(weights, covariances, count)[0, 0, 0] for count in (8, 8_000_000))
    assert float(few) == pytest.approx(1.5)  # 4 images of its own, and 4 that have the mean, 2
    assert float(many) == pytest.approx(1.0, abs=1e-5)


def test_the_gaussian_is_that_of_means_and_variances_together() -> None:
    means = torch.from_numpy(drawn(500))
    aggregate = Aggregate(4)
    for part in torch.split(means, 64):
        aggregate.add(part, torch.full(part.shape, 0.5))
    found = aggregate.gaussian()
    torch.testing.assert_close(found.mean, means.double().mean(0))
    expected = torch.cov(means.double().T, correction=0) + torch.eye(4, dtype=torch.float64) * np.exp(0.5)
    torch.testing.assert_close(found.covariance, expected)

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.evaluate import Gaussian
from train.mixture import Mixture


def covariance(seed: int, size: int = 3) -> torch.Tensor:
    root = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    means = torch.tensor([[8.0, 0, 0], [-8, 0, 0]], dtype=torch.float64)
    return Mixture.of(torch.tensor([0.25, 0.75]), means, torch.stack([covariance(0), covariance(1)]))


def test_draws_have_the_weights_means_and_covariances_of_the_components(mixture: Mixture) -> None:
    numbers = torch.arange(20_000)
    latents, chosen = mixture.draw(numbers, seed=5), mixture.choose(numbers, 5)
    assert (latents.dtype, latents.shape) == (torch.float32, (20_000, 3))
    for component in range(2):
        mine = latents[chosen == component].double()
        assert len(mine) / 20_000 == pytest.approx(float(mixture.weights[component]), abs=0.01)
        torch.testing.assert_close(mine.mean(0), mixture.means[component], atol=0.1, rtol=0)
        torch.testing.assert_close(torch.cov(mine.T), covariance(component), atol=0.15, rtol=0.06)


@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, 10_000), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_draw_belongs_to_its_number_in_any_batch(mixture: Mixture, first: int, count: int, seed: int) -> None:
    together = mixture.draw(torch.arange(first, first + count), seed=seed)
    alone = torch.cat([mixture.draw(torch.tensor([first + place]), seed=seed) for place in range(count)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


def test_another_seed_gives_other_draws(mixture: Mixture) -> None:
    numbers = torch.arange(16)
    assert mixture.draw(numbers, seed=0).equal(mixture.draw(numbers, seed=0))
    assert not mixture.draw(numbers, seed=0).equal(mixture.draw(numbers, seed=1))


def test_at_temperature_0_draws_are_the_components_means(mixture: Mixture) -> None:
    numbers = torch.arange(64)
    latents = mixture.draw(numbers, seed=1, temperature=0.0)
    assert latents.equal(mixture.means[mixture.choose(numbers, 1)].float())
    assert len(latents.unique(dim=0)) == 2


def test_the_density_is_that_of_the_textbook(mixture: Mixture) -> None:
    latents = mixture.draw(torch.arange(50), seed=2)
    components = torch.distributions.MultivariateNormal(mixture.means, scale_tril=mixture.factors)
    textbook = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights), components)
    torch.testing.assert_close(mixture.log_density(latents), textbook.log_prob(latents.double()))


def test_one_component_draws_as_the_gaussian_does() -> None:
    gaussian = Gaussian(torch.arange(3.0, dtype=torch.float64), covariance(3))
    from pipeline.counter import normal

    noise = torch.from_numpy(normal(np.arange(20), 3, seed=4, stream="new faces"))
    torch.testing.assert_close(Mixture.single(gaussian).draw(torch.arange(20), seed=4), gaussian.sample(noise))


def test_a_dimension_in_which_nothing_varies_can_be_drawn() -> None:
    flat = Gaussian(torch.ones(2, dtype=torch.float64), torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)))
    latents = Mixture.single(flat).draw(torch.arange(100), seed=0)
    assert float((latents[:, 1] - 1).abs().max()) < 0.01

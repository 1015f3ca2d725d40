import math
from typing import Any

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from tests.train.tiny import tiny_config, tiny_model
from train.config import LossConfig
from train.models import Output
from train.objectives import Sigma, kl_divergence, objective

OBJECTIVES: list[Any] = ["optimal_sigma", "mse"]


def test_kl_is_torchs() -> None:
    mean, logvar = torch.randn(5, 7), torch.randn(5, 7)
    expected = reference_kl(Normal(mean, logvar.mul(0.5).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_divergence(mean, logvar), expected)


def output(error: float, count: int = 2) -> tuple[Output, torch.Tensor]:
    """Answers that are off by `error` everywhere, mean 1 and log-variance 0 in 3 dimensions: KL 1.5."""
    images = torch.full((count, 3, 4, 4), 0.5)
    return Output(images + error, torch.ones(count, 3), torch.zeros(count, 3)), images


def test_mse_is_the_weighted_mean_square_plus_kl() -> None:
    answer, images = output(0.1)
    terms = objective(LossConfig("mse", mse_weight=100.0), answer, images, 123.0)
    torch.testing.assert_close(terms.squared_error, torch.full((2,), 48 * 0.01))
    torch.testing.assert_close(terms.kl, torch.full((2,), 1.5))
    torch.testing.assert_close(terms.loss, torch.full((2,), 100 * 0.01 + 1.5))


def test_optimal_sigma_is_a_gaussian_likelihood_plus_kl() -> None:
    answer, images = output(0.1)
    terms = objective(LossConfig("optimal_sigma"), answer, images, 0.04)
    likelihood = Normal(answer.images, math.sqrt(0.04)).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(terms.loss, 1.5 - likelihood)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_adds_up_over_micro_batches(name: Any) -> None:
    config = tiny_config(loss={"objective": name})
    images, noise = torch.rand(64, 3, 32, 32), torch.randn(64, 4)

    def gradients(micro_batch: int) -> torch.Tensor:
        model = tiny_model(config).double()
        for part in torch.split(torch.arange(64), micro_batch):
            answer = model(images[part].double(), noise[part].double())
            (objective(config.loss, answer, images[part], 0.05).loss.sum() / 64).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    whole, parts = gradients(64), gradients(16)
    assert float((whole - parts).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_arithmetic_stays_float32_under_autocast(name: Any) -> None:
    answer, images = output(0.1)
    expected = objective(LossConfig(name), answer, images, 0.04)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(LossConfig(name), answer, images, 0.04)
    assert {term.dtype for term in found} == {torch.float32}
    assert all(term.equal(other) for term, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_answers_are_compared_in_float32(name: Any) -> None:
    answer, images = output(0.125)
    half = Output(*(values.bfloat16() for values in answer))
    assert objective(LossConfig(name), half, images, 0.04).loss.equal(
        objective(LossConfig(name), answer, images, 0.04).loss
    )


def test_sigma_starts_as_a_uniform_pixel_and_then_is_the_first_error() -> None:
    assert Sigma().variance == pytest.approx(1 / 12)
    # Bias-corrected: nothing of the start is left after one update.
    assert Sigma().updated(0.03, 64, 2000).variance == pytest.approx(0.03)


def test_sigma_is_the_average_with_the_halflife() -> None:
    sigma = Sigma().updated(0.08, 500, 1000).updated(0.02, 500, 1000)
    keep = 0.5**0.5
    assert sigma.variance == pytest.approx((keep * 0.08 + 0.02) / (keep + 1))
    assert sigma.weight == pytest.approx(0.5)


def test_sigma_does_not_depend_on_how_equal_images_are_batched() -> None:
    one, many = Sigma().updated(0.5, 1000, 700), Sigma()
    one = one.updated(0.1, 60, 700)
    for images in (300, 300, 400):
        many = many.updated(0.5, images, 700)
    for _ in range(6):
        many = many.updated(0.1, 10, 700)
    assert many.variance == pytest.approx(one.variance)


def test_sigma_has_a_floor() -> None:
    assert Sigma().updated(0.0, 64, 2000).variance == 1e-6

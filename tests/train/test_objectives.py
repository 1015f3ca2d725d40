import math
from typing import Any

import pytest
import torch
from torch.distributions import Laplace, Normal
from torch.distributions import kl_divergence as reference_kl

from tests.train.tiny import tiny_config, tiny_model
from train.config import LossConfig
from train.models import Output
from train.objectives import Factors, Likelihood, RunningError, Terms, factors_of, kl_divergence, laplacian_l1
from train.objectives import objective as weighed

OBJECTIVES: list[Any] = ["optimal_sigma", "l1", "mse", "beta"]


PERCEPTUAL: list[Any] = [(name, weight) for name in OBJECTIVES for weight in (0.0, 0.5)]


def gaussian(variance: float) -> Likelihood:
    return Likelihood("gaussian", variance)


def objective(
    config: LossConfig, answer: Output, images: torch.Tensor, likelihood: Likelihood, kl_weight: float = 1.0
) -> Terms:
    return weighed(config, answer, images, factors_of(config, likelihood, images[0].numel(), kl_weight))


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
    terms = objective(LossConfig("mse", mse_weight=100.0), answer, images, gaussian(123.0))
    torch.testing.assert_close(terms.squared_error, torch.full((2,), 48 * 0.01))
    torch.testing.assert_close(terms.kl, torch.full((2,), 1.5))
    torch.testing.assert_close(terms.loss, torch.full((2,), 100 * 0.01 + 1.5))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_factors_may_be_tensors(name: Any) -> None:
    """As in a recorded graph, which reads them anew each time."""
    answer, images = output(0.1)
    config = LossConfig(name, perceptual_weight=0.5)
    factors = factors_of(config, gaussian(0.04), 48, 0.7)
    expected = weighed(config, answer, images, factors)
    found = weighed(config, answer, images, Factors(*torch.tensor(factors).unbind()))
    assert all(term.equal(other) for term, other in zip(found, expected, strict=True))


def test_the_error_of_a_grey_answer_needs_no_model() -> None:
    answer, images = output(0.1)
    terms = objective(LossConfig("mse"), answer, images + 0.25, gaussian(1.0))
    torch.testing.assert_close(terms.grey_error, torch.full((2,), 48 * 0.0625))


def test_optimal_sigma_is_a_gaussian_likelihood_plus_kl() -> None:
    answer, images = output(0.1)
    terms = objective(LossConfig("optimal_sigma"), answer, images, gaussian(0.04))
    likelihood = Normal(answer.images, math.sqrt(0.04)).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(terms.loss, 1.5 - likelihood)


def test_l1_is_a_laplace_likelihood_plus_kl() -> None:
    answer, images = output(-0.1)
    terms = objective(LossConfig("l1"), answer, images, Likelihood("laplace", 0.07))
    torch.testing.assert_close(terms.error, torch.full((2,), 48 * 0.1))
    torch.testing.assert_close(terms.squared_error, torch.full((2,), 48 * 0.01))
    torch.testing.assert_close(terms.loss, 1.5 - Laplace(answer.images, 0.07).log_prob(images).flatten(1).sum(1))


def test_beta_weighs_the_kl_against_a_likelihood_of_variance_one() -> None:
    answer, images = output(0.1)
    loss = objective(LossConfig("beta", beta=4.0), answer, images, gaussian(0.04)).loss
    likelihood = (Normal(answer.images, 1.0).log_prob(images) + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)
    torch.testing.assert_close(loss, 4 * 1.5 - likelihood)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_kl_in_warm_up_counts_in_part(name: Any) -> None:
    answer, images = output(0.1)
    full, half, none = (objective(LossConfig(name), answer, images, gaussian(0.04), w).loss for w in (1.0, 0.5, 0.0))
    torch.testing.assert_close(full - half, half - none)
    assert (full > none).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_free_bits_are_free_for_each_image(name: Any) -> None:
    answer, images = output(0.1)
    answer = Output(answer.images, torch.tensor([[0.1, 0, 0], [3.0, 0, 0]]).requires_grad_(), answer.logvar)
    terms = objective(LossConfig(name, free_bits=2.0), answer, images, gaussian(0.04))
    torch.testing.assert_close(terms.kl.detach(), torch.tensor([0.005, 4.5]))
    (gradient,) = torch.autograd.grad(terms.loss.sum(), answer.mean)
    assert gradient[0].abs().max() == 0
    assert gradient[1, 0] > 0


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_a_running_error_is_the_scale_that_is_most_likely(kind: Any) -> None:
    errors = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 0.1
    images = torch.full((1, 1, 1, 4000), 0.5)
    answers = images + errors
    at = Likelihood(kind, float(Likelihood(kind, 1.0).error(answers, images)) / 4000)
    best = float(at.nats(at.error(answers, images), 4000))
    for factor in (0.9, 1.1):
        other = Likelihood(kind, factor * at.scale)
        assert float(other.nats(other.error(answers, images), 4000)) > best
    assert at.std == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize(("name", "perceptual"), PERCEPTUAL)
def test_the_gradient_adds_up_over_micro_batches(name: Any, perceptual: float) -> None:
    config = tiny_config(loss={"objective": name, "perceptual_weight": perceptual})
    images, noise = torch.rand(64, 3, 32, 32), torch.randn(64, 4)
    likelihood = Likelihood.of(config.loss, RunningError(0.05, 1))

    def gradients(micro_batch: int) -> torch.Tensor:
        model = tiny_model(config).double()
        for part in torch.split(torch.arange(64), micro_batch):
            answer = model(images[part].double(), noise[part].double())
            (objective(config.loss, answer, images[part], likelihood).loss.sum() / 64).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    whole, parts = gradients(64), gradients(16)
    assert float((whole - parts).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize(("name", "perceptual"), PERCEPTUAL)
def test_loss_arithmetic_stays_float32_under_autocast(name: Any, perceptual: float) -> None:
    answer, images = output(0.1)
    config = LossConfig(name, perceptual_weight=perceptual)
    expected = objective(config, answer, images, gaussian(0.04))
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(config, answer, images, gaussian(0.04))
    assert {term.dtype for term in found} == {torch.float32}
    assert all(term.equal(other) for term, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_answers_are_compared_in_float32(name: Any) -> None:
    answer, images = output(0.125)
    half = Output(*(values.bfloat16() for values in answer))
    assert objective(LossConfig(name), half, images, gaussian(0.04)).loss.equal(
        objective(LossConfig(name), answer, images, gaussian(0.04)).loss
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_perceptual_gradient_is_finite_in_half_precision(dtype: torch.dtype) -> None:
    config = tiny_config(loss={"perceptual_weight": 0.5})
    model, images = tiny_model(config), torch.rand(4, 3, 32, 32)
    with torch.autocast("cpu", dtype):
        answer = model(images, torch.randn(4, 4))
    objective(config.loss, answer, images, gaussian(0.01)).loss.sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_a_pyramid_counts_a_uniform_difference_at_its_last_level_alone() -> None:
    # 32 px are halved twice, so that what is left weighs 16 and has a sixteenth of the pixels.
    found = laplacian_l1(torch.full((2, 3, 32, 32), -0.25))
    torch.testing.assert_close(found, torch.full((2,), 16 * 3 * 8 * 8 * 0.25))


def test_a_pyramid_sees_at_which_scale_an_error_lies() -> None:
    """One in blocks costs more than one in single pixels, where a squared error sees no difference."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    fine, coarse = ((-1.0) ** (rows // step + columns // step) for step in (1, 8))
    fine, coarse = (laplacian_l1(values.expand(1, 3, 32, 32)) for values in (fine, coarse))
    # Single pixels average out at the first halving: they are seen by one level.
    assert float(fine) == pytest.approx(3 * 32 * 32)
    assert float(coarse) > 1.4 * float(fine)


def test_a_perceptual_term_is_weighed_in_units_of_the_scale() -> None:
    answer, images = output(0.1)
    plain, weighed = (
        objective(LossConfig("optimal_sigma", perceptual_weight=weight), answer, images, gaussian(0.04)).loss
        for weight in (0.0, 0.5)
    )
    torch.testing.assert_close(weighed - plain, 0.5 / 0.2 * laplacian_l1(answer.images - images))


def variance(error: RunningError) -> float:
    return Likelihood.of(LossConfig("optimal_sigma"), error).scale


def test_a_scale_starts_as_that_of_a_uniform_pixel_and_then_is_the_first_error() -> None:
    assert variance(RunningError()) == pytest.approx(1 / 12)
    assert Likelihood.of(LossConfig("l1"), RunningError()).scale == pytest.approx(1 / 4)
    # Bias-corrected: nothing of the start is left after one update.
    assert variance(RunningError().updated(0.03, 64, 2000)) == pytest.approx(0.03)


def test_a_running_error_is_the_average_with_the_halflife() -> None:
    error = RunningError().updated(0.08, 500, 1000).updated(0.02, 500, 1000)
    keep = 0.5**0.5
    assert variance(error) == pytest.approx((keep * 0.08 + 0.02) / (keep + 1))
    assert error.weight == pytest.approx(0.5)


def test_a_running_error_does_not_depend_on_how_equal_images_are_batched() -> None:
    one, many = RunningError().updated(0.5, 1000, 700), RunningError()
    one = one.updated(0.1, 60, 700)
    for images in (300, 300, 400):
        many = many.updated(0.5, images, 700)
    for _ in range(6):
        many = many.updated(0.1, 10, 700)
    assert variance(many) == pytest.approx(variance(one))


def test_a_scale_has_a_floor() -> None:
    perfect = RunningError().updated(0.0, 64, 2000)
    assert variance(perfect) == 1e-6
    assert Likelihood.of(LossConfig("l1"), perfect).scale == 1e-3

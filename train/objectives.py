"""Losses that are sums over images, given constants from earlier updates.

No statistic of the current batch enters a loss: so any micro-batch and any number of processes give the same
gradient. What must follow the data, the decoder's optimal scale, is state that an update changes after it was used.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from train.config import LossConfig
from train.models import Output

_START = {"gaussian": 1 / 12, "laplace": 1 / 4}
"""Variance, and mean absolute deviation, of a value anywhere in [0, 1]: the scale before anything is known."""
_FLOOR = {"gaussian": 1e-6, "laplace": 1e-3}
_COARSEST = 8
"""Side of the smallest picture in a Laplacian pyramid, pixels."""


class Terms(NamedTuple):
    """Per image [B], float32: `loss` to be summed, errors summed over pixels, `kl` in nats."""

    loss: Tensor
    squared_error: Tensor
    error: Tensor
    """What the likelihood's scale follows: squared or absolute differences."""
    kl: Tensor
    grey_error: Tensor
    """Squared error of a plain grey answer: of a model that has learned nothing."""


class Factors(NamedTuple):
    """loss = `error` * error + `constant` + `kl` * KL + `pyramid` * pyramid distance, of each image.

    Functions of the position and of earlier updates: numbers, or tensors of no dimension, which a recorded graph reads
    anew at each run.
    """

    error: float | Tensor
    constant: float | Tensor
    kl: float | Tensor
    pyramid: float | Tensor


@dataclass(frozen=True)
class RunningError:
    """The mean error as state: a bias-corrected exponential average over earlier updates.

    The optimal variance of a Gaussian decoder is its mean squared error (Rybkin et al. 2021, arXiv 2006.13202,
    equation 5), the optimal scale of a Laplace decoder its mean absolute error. Theirs is the batch's own; an average
    over earlier updates keeps the loss a sum over images.
    """

    weighted_sum: float = 0.0
    weight: float = 0.0

    def updated(self, error: float, images: int, halflife_images: int) -> "RunningError":
        """The state after an update of `images` whose mean error a pixel and channel was the given one."""
        decay = 0.5 ** (images / halflife_images)
        return RunningError(
            decay * self.weighted_sum + (1 - decay) * error,
            decay * self.weight + (1 - decay),
        )


@dataclass(frozen=True)
class Likelihood:
    """How probable the decoder says an intensity in [0, 1] is: a density of one scale around its answer."""

    kind: Literal["gaussian", "laplace"]
    scale: float
    """The Gaussian's variance, or the Laplace density's mean absolute deviation."""

    @classmethod
    def of(cls, config: LossConfig, running: RunningError) -> "Likelihood":
        """The one of an objective, at the scale that is optimal for the errors so far."""
        kind: Literal["gaussian", "laplace"] = "laplace" if config.objective == "l1" else "gaussian"
        return cls(kind, max(running.weighted_sum / running.weight, _FLOOR[kind]) if running.weight else _START[kind])

    @property
    def std(self) -> float:
        """Standard deviation of an intensity."""
        return math.sqrt(self.scale) if self.kind == "gaussian" else math.sqrt(2) * self.scale

    def error(self, answers: Tensor, images: Tensor) -> Tensor:
        """The differences [B] that the density depends on, summed over pixels and channels."""
        differences = (answers - images).flatten(1)
        return differences.square().sum(1) if self.kind == "gaussian" else differences.abs().sum(1)

    def nats(self, error: Tensor, dimensions: int) -> Tensor:
        """Negative log-density [B] of images of so many dimensions, given their summed errors."""
        slope, constant = self.line(dimensions)
        return slope * error + constant

    def line(self, dimensions: int) -> tuple[float, float]:
        """Slope and constant of `nats`, which is linear in the error."""
        if self.kind == "gaussian":
            return 0.5 / self.scale, 0.5 * dimensions * math.log(2 * math.pi * self.scale)
        return 1 / self.scale, dimensions * math.log(2 * self.scale)


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) in nats, [B] (Kingma and Welling 2013, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)


def laplacian_l1(differences: Tensor) -> Tensor:
    """Distance [B] of pictures over the levels of their Laplacian pyramids, summed over pixels and channels.

    The Lap1 of Bojanowski et al. 2018 (arXiv 1707.05776): the absolute differences of level j weigh 4^j, so that each
    level counts alike although it has a quarter of the pixels of the one before. `differences` [B, 3, H, W] are those
    of the pictures: a pyramid is linear. Here a picture is halved by averaging and doubled by linear interpolation.
    """
    weight, total = 1.0, torch.zeros_like(differences[:, 0, 0, 0])
    while min(differences.shape[2:]) > _COARSEST:
        coarser = functional.avg_pool2d(differences, 2)
        blurred = functional.interpolate(coarser, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + weight * (differences - blurred).abs().flatten(1).sum(1)
        weight, differences = 4 * weight, coarser
    return total + weight * differences.abs().flatten(1).sum(1)


def factors_of(config: LossConfig, likelihood: Likelihood, dimensions: int, kl_weight: float = 1.0) -> Factors:
    """What an objective weighs its terms by, for images of so many dimensions.

    optimal_sigma, l1: negative log-likelihood + KL, in nats. mse: mse_weight * mean squared error + KL. beta: the
    negative log-likelihood under a Gaussian of variance 1 + beta * KL (Higgins et al. 2017), constants left out.

    `kl_weight` is the warm-up's factor of the KL divergence. `perceptual_weight` times `laplacian_l1` is added, in
    units of the decoder's standard deviation: with it a weight of 1 stays as strong beside the likelihood while the
    answers get better.
    """
    pyramid = config.perceptual_weight / likelihood.std
    if config.objective == "mse":
        return Factors(config.mse_weight / dimensions, 0.0, kl_weight, pyramid)
    if config.objective == "beta":
        return Factors(0.5, 0.0, config.beta * kl_weight, pyramid)
    return Factors(*likelihood.line(dimensions), kl_weight, pyramid)


def objective(config: LossConfig, output: Output, images: Tensor, factors: Factors) -> Terms:
    """The loss of each image; `images` [B, 3, H, W] in [0, 1], float32. All terms are float32.

    Of the KL divergence, what lies below `free_bits` nats an image has no gradient (after Kingma et al. 2016, arXiv
    1606.04934, with the image as the group).
    """
    differences = output.images.float() - images
    squared_error = differences.square().flatten(1).sum(1)
    error = differences.abs().flatten(1).sum(1) if config.objective == "l1" else squared_error
    kl = kl_divergence(output.mean.float(), output.logvar.float())
    loss = factors.error * error + factors.constant + factors.kl * kl.clamp(min=config.free_bits)
    if config.perceptual_weight:
        loss = loss + factors.pyramid * laplacian_l1(differences)
    return Terms(loss, squared_error, error, kl, (images - 0.5).square().flatten(1).sum(1))

"""Losses that are sums over images, given constants from earlier updates.

No statistic of the current batch enters a loss: so any micro-batch and any number of processes give the same
gradient. What must follow the data, the optimal sigma, is state that an update changes after it was used.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from train.config import LossConfig
from train.models import Output

_UNIFORM_VARIANCE = 1 / 12
"""Of a value anywhere in [0, 1]: sigma squared before anything is known."""


class Terms(NamedTuple):
    """Per image [B], float32: `loss` to be summed, `squared_error` summed over pixels, `kl` in nats."""

    loss: Tensor
    squared_error: Tensor
    kl: Tensor


@dataclass(frozen=True)
class Sigma:
    """The decoder's variance as state: a bias-corrected exponential average of the mean squared error.

    Rybkin et al. 2021 (arXiv 2006.13202), equation 5: the optimal variance is the mean squared error. Theirs is the
    batch's own; an average over earlier updates keeps the loss a sum over images.
    """

    weighted_sum: float = 0.0
    weight: float = 0.0

    @property
    def variance(self) -> float:
        """Sigma squared, in units of squared intensity (images in [0, 1])."""
        return max(self.weighted_sum / self.weight, 1e-6) if self.weight else _UNIFORM_VARIANCE

    def updated(self, mean_squared_error: float, images: int, halflife_images: int) -> "Sigma":
        """The state after an update of `images` whose mean squared error a pixel and channel was the given one."""
        decay = 0.5 ** (images / halflife_images)
        return Sigma(
            decay * self.weighted_sum + (1 - decay) * mean_squared_error,
            decay * self.weight + (1 - decay),
        )


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) in nats, [B] (Kingma and Welling 2013, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)


def objective(config: LossConfig, output: Output, images: Tensor, variance: float) -> Terms:
    """The loss of each image; `images` [B, 3, H, W] in [0, 1], `variance` is `Sigma.variance` (optimal_sigma only).

    mse: mse_weight * mean squared error + KL. optimal_sigma: the negative log-likelihood under a Gaussian of that
    variance + KL, in nats.
    """
    with torch.autocast(images.device.type, enabled=False):
        squared_error = (output.images.float() - images).square().flatten(1).sum(1)
        kl = kl_divergence(output.mean.float(), output.logvar.float())
        dimensions = images[0].numel()
        if config.objective == "mse":
            loss = config.mse_weight / dimensions * squared_error + kl
        else:
            constant = 0.5 * dimensions * math.log(2 * math.pi * variance)
            loss = squared_error / (2 * variance) + constant + kl
    return Terms(loss, squared_error, kl)

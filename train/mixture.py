"""A mixture of Gaussians over the latent space: what new faces are drawn from, with one component or more.

A draw belongs to its number and the seed, as all randomness here does: its component follows from one counter-based
word, its noise from others, and so it is the same in any batch.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.counter import draw_words, normal
from train.gaussian import Gaussian

_DRAWN_AT_ONCE = 512
_JITTER = 1e-6
"""Added to variances, so that a dimension in which nothing varies has a Cholesky factor too."""


@dataclass(frozen=True)
class Mixture:
    """Gaussians with weights that add up to 1; all float64 on the CPU."""

    weights: Tensor
    """[K]"""
    means: Tensor
    """[K, Z]"""
    factors: Tensor
    """[K, Z, Z], lower triangular: the covariances' Cholesky factors."""

    @classmethod
    def of(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> "Mixture":
        """From covariances [K, Z, Z]."""
        jitter = _JITTER * torch.eye(means.shape[1], dtype=torch.float64)
        return cls(weights.double(), means.double(), torch.linalg.cholesky(covariances.double() + jitter))

    @classmethod
    def single(cls, gaussian: Gaussian) -> "Mixture":
        """One component."""
        return cls.of(torch.ones(1), gaussian.mean[None], gaussian.covariance[None])

    @classmethod
    def standard(cls, dimensions: int) -> "Mixture":
        """N(0, I)."""
        eye = torch.eye(dimensions, dtype=torch.float64)
        return cls(torch.ones(1, dtype=torch.float64), torch.zeros(1, dimensions, dtype=torch.float64), eye[None])

    @property
    def latent(self) -> int:
        """Z, the dimensions of the latent space."""
        return self.means.shape[1]

    def choose(self, numbers: Tensor, seed: int) -> Tensor:
        """The component, int64 [B], of the draws of these numbers [B]."""
        words = draw_words(numbers.numpy(), "component", seed)
        edges = self.weights.cumsum(0).numpy()
        chosen = np.searchsorted(edges / edges[-1], words / 2.0**32, side="right")
        return torch.from_numpy(np.minimum(chosen, len(edges) - 1))

    def draw(self, numbers: Tensor, *, seed: int, temperature: float = 1.0) -> Tensor:
        """Latents [B, Z], float32, of draws `numbers` (int64 [B], on the CPU).

        `temperature` scales the spread within a component: 0 gives its mean.
        """
        latents = torch.empty(len(numbers), self.latent)
        # A part at a time: random words and noise take many times the memory of what comes of them.
        for part, drawn in zip(torch.split(numbers, _DRAWN_AT_ONCE), torch.split(latents, _DRAWN_AT_ONCE), strict=True):
            normals = normal(part.numpy(), self.latent, seed=seed, stream="new faces")
            noise = temperature * torch.from_numpy(normals).double()
            chosen = self.choose(part, seed)
            for component in sorted(set(chosen.tolist())):
                mine = chosen == component
                drawn[mine] = (self.means[component] + noise[mine] @ self.factors[component].T).float()
        return latents

    def log_density(self, latents: Tensor) -> Tensor:
        """Natural logarithm of the density at `latents` [B, Z], float64 [B]."""
        values = latents.double().cpu()
        found = []
        for weight, mean, factor in zip(self.weights, self.means, self.factors, strict=True):
            whitened = torch.linalg.solve_triangular(factor, (values - mean).T, upper=False)
            volume = factor.diagonal().log().sum() + 0.5 * self.latent * math.log(2 * math.pi)
            found.append(weight.log() - 0.5 * whitened.square().sum(0) - volume)
        return torch.stack(found).logsumexp(0)

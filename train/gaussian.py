"""Where new faces are drawn from: a Gaussian over the latent space."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian over the latent space: the aggregate posterior's, or N(0, I)."""

    mean: Tensor
    """float64 [Z]"""
    covariance: Tensor
    """float64 [Z, Z]"""

    @classmethod
    def standard(cls, dimensions: int) -> "Gaussian":
        """The prior N(0, I)."""
        return cls(torch.zeros(dimensions, dtype=torch.float64), torch.eye(dimensions, dtype=torch.float64))

    def sample(self, noise: Tensor) -> Tensor:
        """Latents [B, Z], float32, of standard normal `noise` [B, Z]."""
        jitter = 1e-6 * torch.eye(len(self.mean), dtype=torch.float64)
        factor = torch.linalg.cholesky(self.covariance + jitter)
        latents: Tensor = self.mean + noise.cpu().double() @ factor.T
        return latents.float()

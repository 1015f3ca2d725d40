"""Sums over latents and attributes, from which directions follow: one pass, nothing kept of an image.

z [B, Z], y [B, A] ──> count, sums, products, in float64 ──> means, covariances of z, of y, and of y with z
"""

import torch
from torch import Tensor


class Moments:
    """First and second moments of latents z [Z] and 0/1 attributes y [A], added up a batch at a time."""

    def __init__(self, dimensions: int, attributes: int) -> None:
        self.count = 0
        # One table for all of it: the moments of (z, y) together, around zero.
        self._first = torch.zeros(dimensions + attributes, dtype=torch.float64)
        self._second = torch.zeros(dimensions + attributes, dimensions + attributes, dtype=torch.float64)
        self._dimensions = dimensions

    def add(self, latents: Tensor, labels: Tensor) -> None:
        """Add `latents` [B, Z] and their `labels` [B, A]."""
        joined = torch.cat([latents.cpu().double(), labels.cpu().double()], dim=1)
        self._first += joined.sum(0)
        self._second += joined.T @ joined
        self.count += len(joined)

    @property
    def shares(self) -> Tensor:
        """[A] By attribute, the share of images that have it, float64."""
        return self._first[self._dimensions :] / self.count

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances, float64: [Z, Z] of the latents, [A, A] of the attributes, [A, Z] of one with the other."""
        mean = self._first / self.count
        covariance = self._second / self.count - torch.outer(mean, mean)
        size = self._dimensions
        return covariance[:size, :size], covariance[size:, size:], covariance[size:, :size]

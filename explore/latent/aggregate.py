"""The aggregate posterior q(z) = E_x q(z|x) in numbers: where it lies beside the prior, dimension by dimension.

images ──> encode ──> q(z|x) ──┬──> sums, float64 ──> mean, covariance, KL of each dimension
                               └──> a draw of each image [N, Z], the only thing that grows with N
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from explore.encode import Encoded, encoded, tracked
from explore.model import Trained
from train.evaluate import ACTIVE_VARIANCE

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Aggregate:
    """Means over the images."""

    kl_nats: Array
    """[Z] KL(q(z|x) || N(0, 1)) of each dimension, nats an image; their sum is the rate."""
    mean: Array
    """[Z]"""
    covariance: Array
    """[Z, Z], that of the posterior means plus the mean posterior variances on its diagonal."""
    variance_of_means: Array
    """[Z] How much the posterior means vary from image to image."""
    images: int

    @property
    def std(self) -> Array:
        """[Z]"""
        return np.asarray(np.sqrt(np.diag(self.covariance)))

    @property
    def order(self) -> NDArray[np.intp]:
        """[Z] The dimensions, that of the largest KL first."""
        return np.argsort(-self.kl_nats, kind="stable")

    @property
    def active(self) -> NDArray[np.bool_]:
        """[Z] Whether a dimension is in use."""
        return np.asarray(self.variance_of_means > ACTIVE_VARIANCE)

    @property
    def eigenvalues(self) -> Array:
        """[Z] Of the covariance, the largest first; N(0, I) has nothing but ones."""
        return np.asarray(np.linalg.eigvalsh(self.covariance)[::-1])

    @property
    def correlation(self) -> Array:
        """[Z, Z]"""
        return np.asarray(self.covariance / np.outer(self.std, self.std))

    @property
    def gaussian_kl_nats(self) -> float:
        """KL divergence of the Gaussian with this mean and covariance from N(0, I)."""
        eigenvalues = self.eigenvalues
        return float(0.5 * (np.sum(eigenvalues - 1 - np.log(eigenvalues)) + np.sum(self.mean**2)))


@dataclass(frozen=True)
class Draws:
    """A posterior sample of each image, and what the image is."""

    latents: NDArray[np.float32]
    """[N, Z]"""
    keys: tuple[str, ...]
    """[N]"""
    splits: tuple[str, ...]
    """[N]"""
    labels: NDArray[np.int8] | None
    """[N, A] of 0/1 attributes, where they were asked for."""


def aggregate(
    trained: Trained, splits: Sequence[str], limit: int, seed: int, labels: bool, console: Console
) -> tuple[Aggregate, Draws]:
    """Sums over the first `limit` images of the splits, one split after the other, and a draw of each image."""
    size = trained.model.latent
    total = min(limit, sum(trained.count(split) for split in splits))
    latents = np.empty((total, size), np.float32)
    attributes = np.empty((total, len(trained.require_attributes())), np.int8) if labels else None
    keys: list[str] = []
    origins: list[str] = []
    kl, first, variance = (torch.zeros(size, dtype=torch.float64) for _ in range(3))
    second = torch.zeros(size, size, dtype=torch.float64)
    for split, batch in _batches(trained, splits, total, labels, console):
        part = slice(batch.first, batch.first + len(batch))
        latents[part] = batch.sample(seed).cpu().numpy()
        if attributes is not None:
            assert batch.labels is not None, "they were asked for, and the set has some"
            attributes[part] = batch.labels.numpy()
        assert batch.keys is not None, "they were asked for"
        keys += batch.keys
        origins += [split] * len(batch)
        mean, logvar = batch.mean.cpu().double(), batch.logvar.cpu().double()
        kl += 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(0)
        first += mean.sum(0)
        second += mean.T @ mean
        variance += logvar.exp().sum(0)
    average = first / total
    of_means = second / total - torch.outer(average, average)
    covariance = of_means + torch.diag(variance / total)
    found = Aggregate((kl / total).numpy(), average.numpy(), covariance.numpy(), np.diag(of_means.numpy()), total)
    return found, Draws(latents, tuple(keys), tuple(origins), attributes)


def _batches(
    trained: Trained, splits: Sequence[str], total: int, labels: bool, console: Console
) -> Iterator[tuple[str, Encoded]]:
    """The batches of several splits, each with its split's name; their images are numbered as those of one."""
    done = 0
    for split in splits:
        count = min(total - done, trained.count(split))
        if count:
            batches = encoded(trained, split, count, labels=labels, keys=True)
            for batch in tracked(batches, count, f"encoding {split}", console):
                yield split, replace(batch, first=done + batch.first)
            done += count

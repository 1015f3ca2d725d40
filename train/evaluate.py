"""Figures and pictures of a model on a split: one exact pass, streamed."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import ShardSet, StreamingLoader
from train.models import FaceVAE
from train.objectives import kl_divergence


@dataclass(frozen=True)
class Score:
    """Means over the images of a split."""

    psnr_db: float
    """Peak signal-to-noise ratio of the posterior mean's reconstruction, dB, intensities in [0, 1]."""
    mse: float
    """Mean squared error of the same, a pixel and channel."""
    rate_nats: float
    """KL divergence from the prior, nats an image."""
    images: int


def stream_images(
    shards: ShardSet, split: str, limit: int | None, device: torch.device, batch_size: int = 64
) -> Iterator[Tensor]:
    """The first `limit` images (default: all, each once) of the split's order, float32 [B, 3, H, W] in [0, 1]."""
    with StreamingLoader(shards, split=split, batch_size=batch_size) as loader:
        left = loader.samples if limit is None else min(limit, loader.samples)
        while left > 0:
            images = next(loader).to(device).images[:left]
            left -= len(images)
            yield images.float() / 255


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [B] in dB of float images [B, 3, H, W] in [0, 1]."""
    mse = (images - others).square().flatten(1).mean(1)
    return -10 * torch.log10(mse.clamp(min=1e-10))


@torch.inference_mode()
def score(model: FaceVAE, shards: ShardSet, split: str, device: torch.device) -> Score:
    """Score `model`, in evaluation mode, on every image of the split."""
    model.eval()
    decibels = squared = rate = 0.0
    count = 0
    for images in stream_images(shards, split, None, device):
        mean, logvar = model.encode(images)
        found = psnr(images, model.decode(mean))
        decibels += float(found.double().sum())
        squared += float((10 ** (-found.double() / 10)).sum())
        rate += float(kl_divergence(mean, logvar).double().sum())
        count += len(images)
    return Score(decibels / count, squared / count, rate / count, count)


@torch.inference_mode()
def mean_image_psnr(shards: ShardSet, split: str, *, fitted_on: str = "train") -> float:
    """PSNR in dB, mean over the split, of always answering with the mean picture of another split: the floor."""
    cpu = torch.device("cpu")
    size = shards.image_size
    total, count = torch.zeros(3, size, size, dtype=torch.float64), 0
    for images in stream_images(shards, fitted_on, None, cpu):
        total += images.double().sum(0)
        count += len(images)
    average = (total / count).float()
    found = torch.cat([psnr(images, average) for images in stream_images(shards, split, None, cpu)])
    return float(found.mean())


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
        latents: Tensor = self.mean + noise.double().cpu() @ factor.T
        return latents.float()


@torch.inference_mode()
def aggregate_posterior(model: FaceVAE, shards: ShardSet, split: str, limit: int, device: torch.device) -> Gaussian:
    """Mean and covariance of q(z) = E_x q(z|x) over the first `limit` images of a split, streamed.

    Its covariance is that of the posterior means plus the mean of the posterior variances (law of total variance).
    Sums are float64, so that subtracting the mean's square costs no digits that matter.
    """
    model.eval()
    first = torch.zeros(model.latent, dtype=torch.float64)
    second = torch.zeros(model.latent, model.latent, dtype=torch.float64)
    variance = torch.zeros(model.latent, dtype=torch.float64)
    count = 0
    for images in stream_images(shards, split, limit, device):
        mean, logvar = (values.double().cpu() for values in model.encode(images))
        first += mean.sum(0)
        second += mean.T @ mean
        variance += logvar.exp().sum(0)
        count += len(images)
    average = first / count
    covariance = second / count - torch.outer(average, average) + torch.diag(variance / count)
    return Gaussian(average, covariance)

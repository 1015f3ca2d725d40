"""Figures and pictures of a model on a split: one exact pass, streamed."""

import functools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline import Dataset, StreamingLoader
from pipeline.counter import normal
from train.device import halving, pins_memory
from train.gaussian import Gaussian as Gaussian
from train.models import FaceVAE
from train.objectives import Likelihood, kl_divergence
from train.similarity import detail, psnr, ssim

ACTIVE_VARIANCE = 0.01
"""A latent dimension is in use where its posterior means vary by more (Burda et al. 2016, arXiv 1509.00519)."""


BATCH_SIZE = 32
"""Images of 64 px at once."""


@dataclass(frozen=True)
class Score:
    """Means over the images of a split."""

    psnr_db: float
    """Peak signal-to-noise ratio of the posterior mean's reconstruction, dB, intensities in [0, 1]."""
    ssim: float
    """Structural similarity of the same."""
    mse: float
    """Mean squared error of the same, a pixel and channel."""
    sharpness: float
    """Mean squared Laplacian of the reconstructions over that of the images: 1 is as sharp."""
    rate_nats: float
    """KL divergence from the prior, nats an image."""
    distortion_nats: float
    """Negative log-density of the image given a posterior sample, nats, with the scale that training ended with."""
    bits_per_dimension: float
    """Rate and distortion together, a pixel and channel, in bits, for intensities in 256 steps: smaller is better."""
    active_units: int
    """Latent dimensions that carry anything."""
    images: int


def batch_for(image_size: int) -> int:
    """Images at once: fewer of larger ones, so that a layer's values take the same memory at any size."""
    return max(8, min(BATCH_SIZE, BATCH_SIZE * 64**2 // image_size**2))


def stream_images(
    shards: Dataset, split: str, limit: int | None, device: torch.device, batch_size: int | None = None
) -> Iterator[Tensor]:
    """The first `limit` images (default: all, each once) of the split's order, float32 [B, 3, H, W] in [0, 1].

    Damaged ones are missing where the dataset was opened so; else they are an error.
    """
    batch_size = batch_size or batch_for(shards.image_size)
    # Shard after shard: the least to fetch and to keep of a set that is far away.
    with StreamingLoader(
        shards,
        split=split,
        batch_size=batch_size,
        window=1,
        lanes=1,
        pin_memory=pins_memory(device),
    ) as loader:
        end = loader.samples if limit is None else min(limit, loader.samples)
        while loader.position < end:
            batch = next(loader)
            if count := int((batch.positions < end).sum()):
                yield batch.to(device, slice(count)).images.float().div_(255)


_FIGURES = ("psnr", "ssim", "mse", "detail", "answered detail", "rate", "distortion")


def _figures(model: FaceVAE, likelihood: Likelihood, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """`_FIGURES` of each image, float32 [B, 7], and the means of the posteriors [B, Z]."""
    mean, logvar = model.encode(images)
    answers = model.decode(mean)
    sampled = model.decode(mean + torch.exp(0.5 * logvar) * noise)
    found = (
        psnr(images, answers),
        ssim(images, answers),
        (images - answers).square().flatten(1).mean(1),
        detail(images),
        detail(answers),
        kl_divergence(mean, logvar),
        likelihood.nats(likelihood.error(sampled, images), images[0].numel()),
    )
    return torch.stack(found, dim=1), mean


@torch.inference_mode()
def score(
    model: FaceVAE, shards: Dataset, split: str, device: torch.device, likelihood: Likelihood, *, seed: int = 0
) -> Score:
    """Score `model`, in evaluation mode, on every image of the split; `seed` draws the posterior samples."""
    model.eval()
    dimensions = shards.channels * shards.image_size**2
    sums: dict[str, float] = defaultdict(float)
    first = torch.zeros(model.latent, dtype=torch.float64)
    second = torch.zeros_like(first)
    count = 0
    measure = functools.partial(_figures, model, likelihood)
    for images in stream_images(shards, split, None, device):
        noise = torch.from_numpy(normal(np.arange(count, count + len(images)), model.latent, seed=seed, stream="score"))
        figures, means = (values.cpu().double() for values in halving(measure, images, noise.to(device)))
        for name, values in zip(_FIGURES, figures.T, strict=True):
            sums[name] += float(values.sum())
        first += means.sum(0)
        second += means.square().sum(0)
        count += len(images)
    rate, distortion = sums["rate"] / count, sums["distortion"] / count
    return Score(
        psnr_db=sums["psnr"] / count,
        ssim=sums["ssim"] / count,
        mse=sums["mse"] / count,
        sharpness=sums["answered detail"] / sums["detail"] if sums["detail"] else 1.0,
        rate_nats=rate,
        distortion_nats=distortion,
        bits_per_dimension=bits_per_dimension(rate + distortion, dimensions),
        active_units=int((second / count - (first / count).square() > ACTIVE_VARIANCE).sum()),
        images=count,
    )


def bits_per_dimension(nats: float, dimensions: int) -> float:
    """Nats an image as bits a pixel and channel, of intensities in 256 steps."""
    # The density is one of intensities in [0, 1], of which a step of 8 bits is 1/256.
    return nats / (dimensions * math.log(2)) + 8


@torch.inference_mode()
def mean_image_psnr(shards: Dataset, split: str, *, fitted_on: str = "train") -> float:
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


@torch.inference_mode()
def aggregate_posterior(model: FaceVAE, shards: Dataset, split: str, limit: int, device: torch.device) -> Gaussian:
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
        mean, logvar = (values.cpu().double() for values in halving(model.encode, images))
        first += mean.sum(0)
        second += mean.T @ mean
        variance += logvar.exp().sum(0)
        count += len(images)
    average = first / count
    covariance = second / count - torch.outer(average, average) + torch.diag(variance / count)
    return Gaussian(average, covariance)

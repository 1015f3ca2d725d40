"""How true a model's reconstructions are: figures of one pass over a split, as training computes them, and more."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from rich.console import Console

from explore.encode import encoded, tracked
from explore.model import Trained
from train.evaluate import bits_per_dimension
from train.objectives import kl_divergence
from train.similarity import detail, ms_ssim, psnr, ssim

Figure = list[float]
"""A figure once for each seed, or once where no seed enters it."""


@torch.inference_mode()
def fidelity(trained: Trained, split: str, count: int, seeds: Sequence[int], console: Console) -> dict[str, Figure]:
    """Means over the first `count` images of a split, by name.

    PSNR in dB, SSIM, MS-SSIM, squared error and sharpness are those of the posterior mean's reconstruction; the
    distortion is that of a posterior sample for each of `seeds`, with the scale that training ended with.
    """
    architecture, likelihood = trained.model.architecture, trained.likelihood
    dimensions = 3 * architecture.image_size**2
    sums: dict[str, float] = defaultdict(float)
    distortions = dict.fromkeys(seeds, 0.0)
    batches = encoded(trained, split, count)
    for batch in tracked(batches, count, f"reconstructing {split}", console):
        answers = trained.model.decode(batch.mean)
        found = {
            "psnr_db": psnr(batch.images, answers),
            "ssim": ssim(batch.images, answers),
            "ms_ssim": ms_ssim(batch.images, answers),
            "mse": (batch.images - answers).square().flatten(1).mean(1),
            "detail": detail(batch.images),
            "answered detail": detail(answers),
            "rate_nats": kl_divergence(batch.mean, batch.logvar),
        }
        for name, values in found.items():
            sums[name] += float(values.cpu().double().sum())
        for seed in seeds:
            sampled = trained.model.decode(batch.sample(seed))
            nats = likelihood.nats(likelihood.error(sampled, batch.images), dimensions)
            distortions[seed] += float(nats.cpu().double().sum())
    real, answered = sums.pop("detail"), sums.pop("answered detail")
    figures = {name: [total / count] for name, total in sums.items()}
    figures["sharpness"] = [answered / real if real else 1.0]
    figures["distortion_nats"] = [total / count for total in distortions.values()]
    figures["bits_per_dimension"] = [
        bits_per_dimension(figures["rate_nats"][0] + nats, dimensions) for nats in figures["distortion_nats"]
    ]
    return figures

"""This project's loader: the shard set as it is, threads."""

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.loaders.variants import NOISE, Variant
from pipeline import StreamingLoader


def batches(source: Path, data: Path, variant: Variant, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """Endless images [B, 3, H, W], fully shuffled."""
    noise = NOISE if variant.mode == "noise" else 0
    with StreamingLoader(source, batch_size=batch_size, threads=workers, noise=noise) as loader:
        for batch in loader:
            yield batch.images

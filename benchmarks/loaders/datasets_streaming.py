"""datasets, streaming: the very same tars through its webdataset builder, a shuffle buffer of 1,000 samples."""

from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import load_dataset
from torch.utils.data import DataLoader

from benchmarks.loaders.samples import tars
from benchmarks.loaders.variants import Variant


def batches(source: Path, data: Path, variant: Variant, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """Endless images [B, 3, H, W]."""
    files = {"train": [str(tar) for tar in tars(source)]}
    dataset = load_dataset("webdataset", data_files=files, split="train", streaming=True)
    column = "jpg" if variant.encoding == "jpeg" else "npy"
    dataset = dataset.select_columns([column]).shuffle(seed=0, buffer_size=1000).repeat(None).with_format("torch")
    for batch in DataLoader(dataset, batch_size=batch_size, num_workers=workers):
        images = batch[column]
        # It takes an array of bytes for a list of numbers, and makes 64-bit integers of them.
        yield images if variant.encoding == "jpeg" else images.to(torch.uint8).permute(0, 3, 1, 2)

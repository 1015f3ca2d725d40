"""webdataset: the very same tars, worker processes, its shuffle buffer of 1,000 samples and its Pillow decoder.

The json of each sample is passed over, not parsed: nobody here asks for it.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import webdataset

from benchmarks.loaders.samples import tars
from benchmarks.loaders.variants import Variant


def _is_image(name: str) -> bool:
    return not name.endswith(".json")


def batches(source: Path, data: Path, variant: Variant, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """Endless images [B, 3, H, W]."""
    urls = [str(tar) for tar in tars(source)]
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), select_files=_is_image).repeat().shuffle(1000)
    if variant.encoding == "jpeg":
        dataset = dataset.decode("torchrgb8").to_tuple("jpg")
    else:
        dataset = dataset.decode().to_tuple("npy")
    loader = webdataset.WebLoader(dataset.batched(batch_size, partial=False), batch_size=None, num_workers=workers)
    for (images,) in loader:
        yield images if variant.encoding == "jpeg" else torch.as_tensor(images).permute(0, 3, 1, 2)

"""litdata: chunks of 64 MB of the same bytes, worker processes, its own shuffle."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from numpy.typing import NDArray

from benchmarks.loaders.decoders import DECODERS
from benchmarks.loaders.samples import pixels, stored_bytes, tars
from benchmarks.loaders.variants import Variant


class _Images(StreamingDataset):
    """Images [H, W, 3] as tensors."""

    def __init__(self, data: Path, decoder: str) -> None:
        super().__init__(str(data), shuffle=True)
        self._decode = DECODERS.get(decoder)

    def __getitem__(self, index: Any) -> torch.Tensor:
        image = super().__getitem__(index)
        return torch.from_numpy(self._decode(image)) if self._decode else image


def convert(source: Path, data: Path, encoding: str) -> None:
    """Write the images of the shard set `source` into the folder `data`."""
    samples = partial(_samples, encoding=encoding)
    optimize(samples, [str(tar) for tar in tars(source)], str(data), chunk_bytes="64MB", num_workers=1, verbose=False)


def _samples(tar: str, encoding: str) -> Iterator[bytes | NDArray[Any] | torch.Tensor]:
    for sample in stored_bytes(Path(tar)):
        yield sample if encoding == "jpeg" else torch.from_numpy(pixels(sample))


def batches(source: Path, data: Path, variant: Variant, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """Endless images [B, 3, H, W]."""
    dataset = _Images(data, variant.mode)
    loader = StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers, persistent_workers=True)
    while True:
        for images in loader:
            yield images.permute(0, 3, 1, 2)

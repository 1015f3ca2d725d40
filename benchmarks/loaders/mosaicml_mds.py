"""mosaicml-streaming: MDS shards of the same bytes, worker processes, its own shuffle."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # Beside a CPU build of torch its compiled half does not load, and its Python half stumbles over operators that it
    # lacks. `streaming` imports it for a class that is not used here, and calls no operator: declaring them is enough.
    _operators = torch.library.Library("torchvision", "DEF")  # They last as long as this object.
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from benchmarks.loaders.decoders import DECODERS
from benchmarks.loaders.samples import pixels, stored_bytes, tars
from benchmarks.loaders.variants import Variant


class _Images(StreamingDataset):
    """Images [H, W, 3] as tensors."""

    def __init__(self, data: Path, decoder: str, batch_size: int) -> None:
        super().__init__(local=str(data), shuffle=True, batch_size=batch_size)
        self._decode = DECODERS.get(decoder)

    def __getitem__(self, at: Any) -> torch.Tensor:
        image = super().__getitem__(at)["image"]
        return torch.from_numpy(self._decode(image) if self._decode else image)


def convert(source: Path, data: Path, encoding: str) -> None:
    """Write the images of the shard set `source` into the MDS folder `data`."""
    column = "bytes"
    if encoding == "raw":
        height, width, channels = pixels(next(stored_bytes(tars(source)[0]))).shape
        column = f"ndarray:uint8:{height},{width},{channels}"  # With the shape, no sample has to state it.
    with MDSWriter(out=str(data), columns={"image": column}) as writer:
        for tar in tars(source):
            for sample in stored_bytes(tar):
                writer.write({"image": sample if encoding == "jpeg" else pixels(sample)})


def batches(source: Path, data: Path, variant: Variant, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """Endless images [B, 3, H, W]."""
    clean_stale_shared_memory()
    dataset = _Images(data, variant.mode, batch_size)
    loader: DataLoader[torch.Tensor] = DataLoader(
        dataset, batch_size=batch_size, num_workers=workers, persistent_workers=True
    )
    while True:
        for images in loader:
            yield images.permute(0, 3, 1, 2)

"""ffcv: one .beton file, threads, code compiled by numba.

ffcv's own field encodes JPEG anew, with the colours at half resolution; `_StoredJpeg` puts in the bytes as they are, so
that its decoder has the same work as the others'. What is read back is the library's own field and decoder, which
always takes libjpeg-turbo's fast, approximate DCT.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ffcv.fields import RGBImageField
from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks.loaders.samples import pixels, stored_bytes, tars
from benchmarks.loaders.variants import Variant


class _StoredJpeg(RGBImageField):
    """Takes (file, height, width) in place of pixels."""

    def encode(self, destination: Any, field: Any, malloc: Callable[[int], Any]) -> None:
        data, height, width = field
        destination["mode"] = IMAGE_MODES["jpg"]
        destination["height"], destination["width"] = height, width
        destination["data_ptr"], storage = malloc(len(data))
        storage[:] = np.frombuffer(data, np.uint8)


class _Samples:
    """The samples of a shard set by number; bytes are held, since the writer's processes are forks of this one."""

    def __init__(self, source: Path, encoding: str) -> None:
        self._stored = [sample for tar in tars(source) for sample in stored_bytes(tar)]
        self._encoding = encoding
        self._size = Image.open(io.BytesIO(self._stored[0])).size if encoding == "jpeg" else (0, 0)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, number: int) -> tuple[Any]:
        data = self._stored[number]
        return ((data, *self._size[::-1]),) if self._encoding == "jpeg" else (pixels(data),)


def convert(source: Path, data: Path, encoding: str) -> None:
    """Write the images of the shard set `source` into `data`, a folder with one file."""
    data.mkdir(parents=True)
    field = _StoredJpeg() if encoding == "jpeg" else RGBImageField(write_mode="raw")
    writer = DatasetWriter(str(data / "images.beton"), {"image": field}, num_workers=1)
    writer.from_indexed_dataset(_Samples(source, encoding))


def batches(source: Path, data: Path, variant: Variant, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """Endless images [B, 3, H, W], fully shuffled."""
    loader = Loader(
        str(data / "images.beton"),
        batch_size=batch_size,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()]},
        custom_fields={"image": RGBImageField},
    )
    while True:
        for (images,) in loader:
            yield images

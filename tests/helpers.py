"""Small shard sets for tests, written with the format alone: no photos, no shard tool."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.format import SUFFIX, Shard, ShardSet, Split, npy_bytes
from pipeline.tar import ShardWriter

SAMPLES = {"train": 40, "val": 12}


def make_image(split: str, number: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth colour gradient [size, size, 3], another one for each sample, brighter to the right than to the left."""
    rng = np.random.default_rng([seed, number, *split.encode()])
    low, high = rng.uniform(0, 120, 3), rng.uniform(136, 255, 3)
    across, down = np.linspace(0, 1, size)[None, :, None], np.linspace(0, 1, size)[:, None, None]
    share = rng.uniform(0.2, 0.8, 3)
    return np.rint(low + (high - low) * (share * across + (1 - share) * down)).astype(np.uint8)


def encode(image: NDArray[np.uint8], encoding: str) -> bytes:
    """`image` [H, W, 3] as the bytes of a member of a set of this encoding."""
    if encoding == "raw":
        return npy_bytes(image)
    if encoding == "jpeg":
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), 92, "RGB", "444"))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, encoding, quality=92)
    return buffer.getvalue()


def make_key(split: str, number: int) -> str:
    """The WebDataset key of a sample of `make_shard_set`."""
    return f"{split}/face-{number:05d}"


def make_attributes(number: int, names: Sequence[str]) -> dict[str, int]:
    """The 0/1 attributes of sample `number`: the bits of its number."""
    return {name: number >> bit & 1 for bit, name in enumerate(names)}


def make_shard_set(
    folder: Path,
    *,
    samples: Mapping[str, int] = SAMPLES,
    shard_samples: int = 8,
    size: int = 16,
    encoding: str = "jpeg",
    attributes: Sequence[str] = ("Smiling",),
    classes: Sequence[str] = (),
    seed: int = 0,
    name: str = "tiny",
) -> ShardSet:
    """Write a finished shard set into `folder` and open it.

    Sample `number` of a split is `make_image(split, number, size, seed)` with the key `make_key(split, number)`, in
    shard `number // shard_samples`; it has `make_attributes(number, attributes)`, or the class `number % len(classes)`.
    `shard_samples` may leave the last shard shorter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, Split] = {}
    for split, count in samples.items():
        shards: list[Shard] = []
        for first in range(0, count, shard_samples):
            writer = ShardWriter(folder, f"{split}-{len(shards):06d}")
            for number in range(first, min(first + shard_samples, count)):
                meta: dict[str, object] = {"source": f"{make_key(split, number)}.jpg"}
                if attributes:
                    meta["attributes"] = make_attributes(number, attributes)
                elif classes:
                    meta["label"] = number % len(classes)
                image = encode(make_image(split, number, size, seed), encoding)
                writer.add(make_key(split, number), image, SUFFIX[encoding], json.dumps(meta).encode())
            shard = writer.close()
            assert shard is not None
            shards.append(shard)
        splits[split] = Split.of([vars(shard) for shard in shards])
    made = ShardSet(folder, name, size, 3, encoding, splits, tuple(attributes), () if attributes else tuple(classes))
    made.save()
    return ShardSet.open(folder)

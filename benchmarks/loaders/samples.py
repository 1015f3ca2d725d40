"""The stored bytes of a shard set read back in order, and decoders for formats that hold plain bytes."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image


def tars(folder: Path) -> list[Path]:
    """The shards of a set, in order."""
    return sorted(folder.glob("*.tar"))


def stored_bytes(tar: Path) -> Iterator[bytes]:
    """The images of a tar, JPEG files or `.npy` files."""
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.name.endswith(".json"):
                continue
            file = archive.extractfile(member)
            assert file is not None, "a shard holds plain files"
            yield file.read()


def pixels(data: bytes) -> NDArray[np.uint8]:
    """The array [H, W, 3] in an `.npy` file."""
    image: NDArray[np.uint8] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return image


def _decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def _decode_with_simplejpeg(data: bytes) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
    return image


DECODERS: dict[str, Callable[[bytes], NDArray[np.uint8]]] = {
    "pillow": _decode_with_pillow,
    "simplejpeg": _decode_with_simplejpeg,
}
"""JPEG bytes -> [H, W, 3]."""

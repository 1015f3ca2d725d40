"""JPEG bytes -> pixels, for loaders whose format holds plain bytes and leaves the decoding to their user."""

import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image


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

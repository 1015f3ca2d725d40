"""What an encoded image says of itself before anything is decoded."""

import io
import threading
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

_parsing = threading.Lock()
"""numpy parses headers with `ast`, whose depth counter some Python 3.11 share between threads (SystemError)."""
_WIDE = ("I", "F")
"""First letters of Pillow's modes of more than 8 bits, which no conversion to RGB scales."""


class Header(NamedTuple):
    """Encoding (a key of `pipeline.format.SUFFIX`), height and width."""

    encoding: str
    height: int
    width: int


def read_header(data: bytes) -> Header:
    """The header of a JPEG, PNG, WebP or `.npy` file, told apart by its first bytes.

    Raises `ValueError` with a few words where the loader would not read it as it was meant.
    """
    if data[:2] == b"\xff\xd8":
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in ("CMYK", "YCCK"):
            raise ValueError(f"a JPEG in {colours}")
        return Header("jpeg", height, width)
    if data[:6] == b"\x93NUMPY":
        return _npy(data)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
            if image.mode.startswith(_WIDE):
                raise ValueError("a PNG of more than 8 bits")
            return Header((image.format or "").lower(), image.height, image.width)
    except (OSError, SyntaxError) as error:
        raise ValueError("bytes that are no JPEG, PNG, WebP or .npy file") from error


def _npy(data: bytes) -> Header:
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("another version of .npy")
    with _parsing:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if len(shape) != 3 or shape[2] != 3 or fortran or dtype != np.uint8:
        raise ValueError(f"an array of shape {shape} and type {dtype} in place of uint8 [H, W, 3]")
    if len(data) != stream.tell() + int(np.prod(shape)):
        raise ValueError("an .npy file that is not whole")
    return Header("raw", shape[0], shape[1])

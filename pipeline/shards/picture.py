"""What the image of a sample may be (JPEG, PNG, WebP or `.npy`), and the one way in which pictures are opened.

Pillow tries every format that it knows unless it is told which, and one of them, EPS, is a program that it runs.
"""

import functools
import io
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

# Plugins are imported by name: Pillow's own search for one would load forty more.
from PIL import Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

SAMPLE_FORMATS = ("JPEG", "PNG", "WEBP")
PICTURE_ERRORS = (ValueError, OSError, SyntaxError, Image.DecompressionBombError)
"""What Pillow and simplejpeg raise at a picture that is damaged, absurdly large, or of another format."""
_DECODED_HERE = frozenset(("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM"))
"""Formats that Pillow decodes by itself: for others it may start a program, as Ghostscript for EPS."""
_WIDE = ("I", "F")
"""First letters of Pillow's modes of more than 8 bits, which no conversion to RGB scales."""
_MOST_PIXELS = 1 << 28
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the type of colour in the header."""
_NPY_MAGIC = b"\x93NUMPY"
_parsing = threading.Lock()
"""numpy parses headers with `ast`, whose depth counter some Python 3.11 share between threads (SystemError)."""


class Header(NamedTuple):
    """Encoding (a key of `pipeline.format.SUFFIX`), height and width."""

    encoding: str
    height: int
    width: int


def open_picture(file: bytes | memoryview | Path | BinaryIO, formats: Sequence[str] = SAMPLE_FORMATS) -> Image.Image:
    """The picture in `file`, which is of one of `formats`: its header read, no pixel decoded.

    Raises `PICTURE_ERRORS`, of which `PIL.UnidentifiedImageError` (an `OSError`) where it is of another format. Bytes
    that are damaged may make Pillow raise nearly anything else, here and where the pixels are decoded.
    """
    assert _DECODED_HERE.issuperset(formats), f"formats must be some of {sorted(_DECODED_HERE)}; got {formats}"
    if isinstance(file, bytes | memoryview):
        height, width = _png_size(file) or (0, 0)
        if height * width > _MOST_PIXELS:  # Pillow would take memory for the frames of a PNG before it looks at that.
            raise Image.DecompressionBombError(f"a PNG of {width}x{height} pixels")
        file = io.BytesIO(file)
    return Image.open(file, formats=tuple(formats))


def read_header(data: bytes) -> Header:
    """What a JPEG, PNG, WebP or `.npy` file, told apart by its first bytes, says of itself.

    Raises `ValueError` with a few words where the loader would not read it as it was meant.
    """
    if _is_jpeg(data):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in ("CMYK", "YCCK"):
            raise ValueError(f"a JPEG in {colours}")
        return Header("jpeg", height, width)
    if is_npy(data):
        height, width, channels = npy_header(data)[1]
        if channels != 3:
            raise ValueError(f"an array of shape {(height, width, channels)} in place of uint8 [H, W, 3]")
        return Header("raw", height, width)
    try:
        with open_picture(data) as image:
            header, mode = Header((image.format or "").lower(), image.height, image.width), image.mode
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError("bytes that are no JPEG, PNG, WebP or .npy file") from error
    if mode.startswith(_WIDE):
        raise ValueError("a PNG of more than 8 bits")
    return header


def decode_picture(data: bytes | memoryview, out: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Decode a JPEG, PNG or WebP file into `out` uint8 [H, W, 3]; returns its own height, width and channels.

    Where height and width are not those of `out`, nothing is decoded. Raises `PICTURE_ERRORS`.
    """
    if _is_jpeg(data):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (height, width) == out.shape[:2]:
            simplejpeg.decode_jpeg(data, "RGB", buffer=out)
        return height, width, {"Gray": 1, "CMYK": 4, "YCCK": 4}.get(colours, 3)
    size = _png_size(data)
    if size is not None and size != out.shape[:2]:
        return *size, _PNG_CHANNELS.get(data[25], 3)
    try:
        with open_picture(data) as image:
            if (image.height, image.width) == out.shape[:2]:
                out[...] = np.asarray(image.convert("RGB"))
            return image.height, image.width, len(image.getbands())
    except UnidentifiedImageError:
        raise ValueError("bytes that are no JPEG, PNG or WebP file") from None
    except (*PICTURE_ERRORS, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__} {error}") from error


def npy_header(data: bytes | memoryview) -> tuple[bytes, tuple[int, int, int]]:
    """What stands before the pixels of an `.npy` file, and its shape [H, W, C].

    Raises `ValueError` with a few words where it is not a whole one of uint8 in C order.
    """
    header = bytes(data[: 10 + int.from_bytes(data[8:10], "little")])
    shape, fortran, dtype = _parse_npy(header)
    if len(shape) != 3 or min(shape) < 1 or fortran or dtype != np.uint8:
        raise ValueError(f"an array of shape {shape} and type {dtype} in place of uint8 [H, W, C]")
    if len(data) != len(header) + math.prod(shape):
        raise ValueError("an .npy file that is not whole")
    return header, (shape[0], shape[1], shape[2])


@functools.lru_cache(4)  # A set has one header, and parsing it takes as long as copying the pixels behind it.
def _parse_npy(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    stream = io.BytesIO(header)
    if header[:8] != _NPY_MAGIC + b"\1\0":
        raise ValueError("another version of .npy" if header.startswith(_NPY_MAGIC) else "no .npy file")
    stream.seek(8)
    try:
        with _parsing:
            return np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # It evaluates what it reads: nonsense ends in an error of nearly any type.
        raise ValueError("no .npy file") from error


def is_npy(data: bytes | memoryview) -> bool:
    """Whether a member says that it is an `.npy` file."""
    return data[: len(_NPY_MAGIC)] == _NPY_MAGIC


def _is_jpeg(data: bytes | memoryview) -> bool:
    return data[:2] == b"\xff\xd8"


def _png_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Height and width in the header of a PNG; None where it is another file."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 26:
        return None
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")

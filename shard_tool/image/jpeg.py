"""JPEG: libjpeg-turbo straight into an array, then a resampler that uses SIMD. A file that lacks pixels is an error.

    bytes -> simplejpeg, scaled -> [H, W, 3] -> cykooz-resizer (Lanczos) -> [h, w, 3]

Both let go of the interpreter lock. Against Pillow's `draft` and `resize`, CPU time of a photo fell by a fifth from 600
to 64 pixels, and by half from 178x218 to 64.

libjpeg paints something for the pixels that it does not find, and warns. Pillow ignores that; here it is an error.
"""

import re
import struct
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from shard_tool.image.recipe import Frame, PhotoError

try:
    from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
    from cykooz_resizer.structs import CropBox
except ImportError:  # There is no wheel for every platform, and Pillow can do it too.
    Resizer = None

MOST_PIXELS = 4_000_000
"""Decoded pixels of the largest photo that the fast resampler gets: it takes copies."""

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset((0xC0, 0xC1, 0xC9))
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_SOS, _EOI = 0xDA, 0xD9
_NOTHING_BUT_PIXELS = frozenset((0xC4, 0xDB, 0xDD, 0xE0, 0xFE))
"""Markers that change no colour: Huffman and quantization tables, restarts, JFIF, comments."""
_MARKER = re.compile(rb"\xff+[^\0\xff\xd0-\xd7]")
"""A marker, also in compressed data, in which 255 is followed by 0 or by a restart."""

_thread = threading.local()


class Header(NamedTuple):
    """What a JPEG says of itself before its first pixel."""

    width: int
    height: int
    bits: int
    progressive: bool
    plain: bool
    """Grey or YCbCr with 8 bits, without Exif, profile or Adobe's marker: there is nothing to know but its size."""


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG; None if it is another file, or damaged before its first scan.

    Most photos of a prepared collection are plain, and this takes a tenth of the time of opening them with Pillow.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    plain = True
    for kind, at, end in _segments(data):
        if kind in _SOF and end <= len(data):
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at)
            plain = plain and bits == 8 and channels in (1, 3) and width > 0 and height > 0
            return Header(width, height, bits, kind in _PROGRESSIVE, plain)
        plain = plain and kind in _NOTHING_BUT_PIXELS
    return None


def decode(data: bytes, colours: str, header: Header, scale: int) -> NDArray[np.uint8]:
    """The pixels [H, W, channels] of a JPEG in the `colours` of simplejpeg, decoded `scale` times smaller.

    Raises `PhotoError` if libjpeg warns of anything, or if scans are missing.
    """
    height, width = -(-header.height // scale), -(-header.width // scale)
    least = {"min_height": height, "min_width": width}  # It scales by as much as these allow, and that is `scale`.
    pixels: NDArray[np.uint8]
    try:
        pixels = simplejpeg.decode_jpeg(data, colours, **least)
    except ValueError as error:
        if "memory" in str(error):
            raise MemoryError from None
        try:
            pixels = simplejpeg.decode_jpeg(_without_oddities(data), colours, **least)
        except (ValueError, LookupError):
            raise PhotoError("damaged image", str(error)) from None
    if pixels.shape[:2] != (height, width):
        raise PhotoError("damaged image", "it has two sizes")
    if _lacks_scans(data):
        raise PhotoError("damaged image", "scans are missing")
    return pixels


def decode_and_resize(data: bytes, header: Header, scale: int, frame: Frame) -> NDArray[np.uint8]:
    """The pixels [h, w, 3] of `frame` of a JPEG in grey or colours, decoded `scale` times smaller; see `decode`."""
    if Resizer is not None and header.width * header.height <= MOST_PIXELS * scale * scale:
        return resize(decode(data, "RGB", header, scale), frame, scale)
    pixels = decode(data, "RGBX", header, scale)  # Pillow takes four channels without a copy.
    image = as_image(pixels, "RGBX").resize((frame.width, frame.height), Image.Resampling.LANCZOS, frame.box(scale))
    return np.ascontiguousarray(np.asarray(image)[..., :3])


def as_image(pixels: NDArray[np.uint8], mode: str) -> Image.Image:
    """Decoded pixels as an image of that mode, without a copy."""
    return Image.frombuffer(mode, (pixels.shape[1], pixels.shape[0]), pixels, "raw", mode, 0, 1)


def resize(pixels: NDArray[np.uint8], frame: Frame, scale: int) -> NDArray[np.uint8]:
    """The pixels [h, w, 3] of `frame` of a photo that was decoded `scale` times smaller to `pixels` [H, W, 3]."""
    if not hasattr(_thread, "resizer"):
        _thread.resizer = Resizer()  # One that threads share would let them wait for each other.
    source = ImageData(pixels.shape[1], pixels.shape[0], PixelType.U8x3, pixels.tobytes())
    target = ImageData(frame.width, frame.height, PixelType.U8x3)
    _thread.resizer.resize(source, target, _options(frame, scale))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(frame.height, frame.width, 3)


@lru_cache(maxsize=64)  # Photos of one set tend to be of one size.
def _options(frame: Frame, scale: int) -> "ResizeOptions":
    left, top, right, bottom = frame.box(scale)
    box = CropBox(left, top, right - left, bottom - top)
    return ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.lanczos3), crop_box=box)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Kind, start and end of the contents of every segment up to the end of the image."""
    at = 2
    while found := _MARKER.search(data, at):  # Passes over the compressed data of a scan, and over junk.
        length_at = found.end()
        kind, start = data[length_at - 1], length_at + 2
        if kind == _EOI or start > len(data):
            return
        at = length_at + (data[length_at] << 8 | data[length_at + 1])
        yield kind, start, at


def _lacks_scans(data: bytes) -> bool:
    """Whether some coefficient of some channel never gets its lowest bit: libjpeg takes zeros for it, and is silent."""
    progressive = False
    lowest: dict[int, bytearray] = {}  # By channel, for each of 64 coefficients.
    for kind, at, end in _segments(data):
        if kind in _SOF:
            progressive = kind in _PROGRESSIVE
            lowest = {channel: bytearray(b"\1" * 64) for channel in data[at + 6 : end : 3]}
        elif kind == _SOS:
            first, last, bits = data[end - 3 : end] if progressive else (0, 63, 0)
            for channel in data[at + 1 : end - 3 : 2]:
                lowest[channel][first : last + 1] = bytes((bits & 15,)) * (last + 1 - first)
            if not any(map(any, lowest.values())):
                return False
    return True


def _without_oddities(data: bytes) -> bytes:
    """The same image without what libjpeg warns of though it costs no pixel.

    That is a missing end, zeros before the end, bytes between the tables, a strange version of JFIF, and the parameters
    of progressive scans in a file without such. Any other bytes behind a scan may be pixels that it lost track of.
    """
    end = data.rstrip(b"\0").removesuffix(b"\xff\xd9").rstrip(b"\0")
    odd = bytearray(end + (b"\0" if end.endswith(b"\xff") else b"") + b"\xff\xd9")
    tables, first_scan, sequential = b"\xff\xd8", len(odd), False
    for kind, at, after in _segments(data):
        if kind in _SOF:
            sequential = kind in _SEQUENTIAL
        elif kind == 0xE0 and data[at : at + 5] == b"JFIF\0":
            odd[at + 5] = 1
        elif kind == _SOS:
            first_scan = min(first_scan, at - 4)
            if sequential:
                odd[after - 3 : after] = b"\0\x3f\0"
        if first_scan == len(odd):
            tables += odd[at - 4 : after]
    return bytes(tables + odd[first_scan:])

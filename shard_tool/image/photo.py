"""One photo's bytes to one sample's bytes.

    open by content -> pixel limit -> frame -> scaled decode -> resize -> sRGB -> upright -> background -> encode
    formats.py         here           crop.py  jpeg.py, or Pillow        colour.py  here                   encode.py

JPEG files are decoded at 1/2, 1/4 or 1/8 of their size where that leaves `MARGINS` times the target: several times as
fast, and at least 50 dB from the full decode for portraits.
"""

import contextlib
import threading

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin

from shard_tool.image.colour import averageable, to_srgb
from shard_tool.image.crop import Frame, frame_of
from shard_tool.image.encode import encode, library_versions
from shard_tool.image.formats import PhotoError, open_image, quiet_pillow
from shard_tool.image.jpeg import decode_and_resize, plain_header
from shard_tool.image.recipe import Recipe

__all__ = [
    "MAX_FILE_BYTES",
    "PhotoError",
    "Recipe",
    "encode",
    "library_versions",
    "make_sample",
    "quiet_pillow",
    "upright_square",
]

MAX_PIXELS = 100_000_000
"""Photos of more are rejected before a pixel is decoded."""
MAX_FILE_BYTES = 1 << 28
MARGINS = {8: 2.3, 4: 2.3, 2: 2.0}
"""How many times the target size a decode at 1/8, 1/4 and 1/2 must leave. With 2.0 for all, a fifth of 512-pixel
portraits missed 50 dB at 64 pixels; from 600 pixels nothing is lost."""

_BIG_PIXELS = 5_000_000
_PLENTY = contextlib.nullcontext()
_one_big_photo = threading.Lock()
"""Photos of more pixels than `_BIG_PIXELS` are decoded one at a time, or memory would grow with the threads."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def make_sample(data: bytes, recipe: Recipe) -> bytes:
    """The encoded sample of the photo file `data`; raises `PhotoError` where none can be made. Thread-safe."""
    return encode(_square_of(data, recipe), recipe)


def upright_square(data: bytes, recipe: Recipe) -> Image.Image:
    """The photo in `data` as an RGB image of `recipe.size` squared; raises `PhotoError`."""
    square = _square_of(data, recipe)
    return square if isinstance(square, Image.Image) else Image.fromarray(square)


def _square_of(data: bytes, recipe: Recipe) -> Image.Image | NDArray[np.uint8]:
    try:
        square = _plain_square(data, recipe)
        if square is not None:
            return square
        with open_image(data) as image:
            return _square(image, data, recipe)
    except (PhotoError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise PhotoError("too many pixels", str(error)) from None
    except Exception as error:  # Decoders raise nearly anything at damaged bytes.
        raise PhotoError("damaged image", f"{type(error).__name__}: {error}") from None


def _plain_square(data: bytes, recipe: Recipe) -> NDArray[np.uint8] | None:
    """The short way for a JPEG of which nothing but its size must be known; None where it is another file."""
    header = plain_header(data)
    if header is None or recipe.crop == "pad":
        return None
    width, height, progressive = header
    _check_pixels(width, height)
    frame = frame_of(width, height, recipe)
    scale = _decode_scale(frame, recipe)
    with _room_for(width, height, scale, progressive=progressive):
        return decode_and_resize(data, width, height, scale, frame)


def _square(image: Image.Image, data: bytes, recipe: Recipe) -> Image.Image | NDArray[np.uint8]:
    width, height = image.size
    _check_pixels(width, height)
    frame = frame_of(width, height, recipe)
    scale = _decode_scale(frame, recipe) if isinstance(image, JpegImagePlugin.JpegImageFile) else 1
    with _room_for(width, height, scale, progressive="progressive" in image.info):
        small = _decode_and_resize(image, data, scale, frame)
    profile, turn = image.info.get("icc_profile"), _UPRIGHT.get(_orientation(image))
    if isinstance(small, np.ndarray):
        if not profile and turn is None and frame.width == frame.height:
            return small
        small = Image.fromarray(small)
    square = to_srgb(small, profile, recipe.background_rgb)
    if turn is not None:
        square = square.transpose(turn)
    if square.width != square.height:
        padded = Image.new("RGB", (recipe.size, recipe.size), recipe.background_rgb)
        padded.paste(square, ((recipe.size - square.width) // 2, (recipe.size - square.height) // 2))
        return padded
    return square


def _decode_and_resize(image: Image.Image, data: bytes, scale: int, frame: Frame) -> Image.Image | NDArray[np.uint8]:
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        width, height = image.size
        if image.mode == "RGB" or (image.mode == "L" and "icc_profile" not in image.info):
            pixels = decode_and_resize(data, width, height, scale, frame)
            if pixels is not None:
                return pixels
        # Pillow scales by as much as this size allows, and that is `scale`.
        image.draft(None, (max(1, width // scale), max(1, height // scale)))
    return averageable(image).resize((frame.width, frame.height), Image.Resampling.LANCZOS, frame.box(scale))


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise PhotoError("too many pixels", f"{width}x{height}, at most {MAX_PIXELS // 10**6} million are decoded")


def _decode_scale(frame: Frame, recipe: Recipe) -> int:
    """How many times smaller a JPEG may be decoded."""
    if recipe.exact:
        return 1
    return next((scale for scale, margin in MARGINS.items() if frame.shrink >= margin * scale), 1)


def _room_for(width: int, height: int, scale: int, *, progressive: bool) -> contextlib.AbstractContextManager[object]:
    # A progressive file keeps its coefficients at full size.
    pixels = width * height if progressive else width * height // (scale * scale)
    return _one_big_photo if pixels > _BIG_PIXELS else _PLENTY


def _orientation(image: Image.Image) -> int:
    if isinstance(image, JpegImagePlugin.JpegImageFile) and not {"exif", "xmp"} & image.info.keys():
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Metadata may be damaged in any way, and the pixels are good all the same.
        return 1

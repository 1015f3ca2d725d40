"""One photo's bytes to one sample's bytes.

    open by content -> pixel limit -> frame -> scaled decode -> resize -> sRGB -> upright -> background -> encode
    formats.py         here           recipe.py  jpeg.py, or Pillow     colour.py  here                   here

JPEG files are decoded at 1/2, 1/4 or 1/8 of their size if that leaves `MARGINS` times the target: several times as
fast, and at least 50 dB from the full decode for portraits.
"""

import contextlib
import importlib.metadata
import io
import threading

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, JpegImagePlugin, features

from pipeline.errors import UserError
from pipeline.format import npy_bytes
from shard_tool.image import jpeg
from shard_tool.image.colour import averageable, to_srgb
from shard_tool.image.formats import open_image, quiet_pillow
from shard_tool.image.recipe import Frame, PhotoError, Recipe, frame_of

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

_PILLOW_LIBRARIES = {
    "pillow": "pil",
    "libjpeg-turbo": "libjpeg_turbo",
    "libwebp": "webp",
    "zlib": "zlib",
    "zlib-ng": "zlib_ng",
    "littlecms": "littlecms2",
    "libavif": "avif",
    "libtiff": "libtiff",
}
_PACKAGES = ("simplejpeg", "cykooz-resizer", "pillow-heif")
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


def encode(square: Image.Image | NDArray[np.uint8], recipe: Recipe) -> bytes:
    """The bytes of an RGB image, or of its pixels [H, W, 3], in the set's encoding."""
    if recipe.encode in ("jpeg", "raw"):
        pixels = np.ascontiguousarray(square)
        if recipe.encode == "raw":
            return npy_bytes(pixels)
        return bytes(simplejpeg.encode_jpeg(pixels, recipe.quality, "RGB", recipe.subsampling))
    # Made from the pixels alone: Pillow carries comments and profiles along, and writes them into what it saves.
    image = Image.fromarray(np.asarray(square))
    buffer = io.BytesIO()
    if recipe.encode == "webp":
        image.save(buffer, "WEBP", quality=recipe.quality, method=4)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def _square_of(data: bytes, recipe: Recipe) -> Image.Image | NDArray[np.uint8]:
    try:
        square = _plain_square(data, recipe)
        if square is not None:
            return square
        with open_image(data) as image:
            return _square(image, data, recipe)
    except PhotoError:
        raise
    except MemoryError:  # No fault of the photo: with more of it there would be a sample.
        raise UserError(
            "a photo must fit into the memory while it is decoded; got too little for one. "
            "Close other programs, or use fewer threads: --threads 1."
        ) from None
    except Image.DecompressionBombError as error:
        raise PhotoError("too many pixels", str(error)) from None
    except Exception as error:  # Decoders raise nearly anything at damaged bytes.
        raise PhotoError("damaged image", str(error) or type(error).__name__) from None


def _plain_square(data: bytes, recipe: Recipe) -> NDArray[np.uint8] | None:
    """The short way for a JPEG of which nothing but its size must be known; None if it is another file."""
    if recipe.crop == "pad":
        return None
    header = jpeg.read_header(data)
    if header is None or not header.plain:
        return None
    _check_pixels(header.width, header.height)
    frame = frame_of(header.width, header.height, recipe)
    scale = _decode_scale(frame, recipe)
    with _room_for(header.width, header.height, scale, progressive=header.progressive):
        return jpeg.decode_and_resize(data, header, scale, frame)


def _square(image: Image.Image, data: bytes, recipe: Recipe) -> Image.Image:
    width, height = image.size
    _check_pixels(width, height)
    frame = frame_of(width, height, recipe)
    scale = _decode_scale(frame, recipe) if isinstance(image, JpegImagePlugin.JpegImageFile) else 1
    with _room_for(width, height, scale, progressive="progressive" in image.info):
        small = _decode_and_resize(image, data, scale, frame)
    square = to_srgb(small, image.info.get("icc_profile"), recipe.background_rgb)
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        square = square.transpose(turn)
    if square.width != square.height:
        padded = Image.new("RGB", (recipe.size, recipe.size), recipe.background_rgb)
        padded.paste(square, ((recipe.size - square.width) // 2, (recipe.size - square.height) // 2))
        return padded
    return square


def _decode_and_resize(image: Image.Image, data: bytes, scale: int, frame: Frame) -> Image.Image:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return averageable(image).resize((frame.width, frame.height), Image.Resampling.LANCZOS, frame.box(scale))
    header = jpeg.read_header(data)
    if header is None:
        raise PhotoError("damaged image", "a JPEG without pixels")
    if image.mode == "RGB" or (image.mode == "L" and "icc_profile" not in image.info):
        return Image.fromarray(jpeg.decode_and_resize(data, header, scale, frame))
    whole = jpeg.as_image(jpeg.decode(data, "GRAY" if image.mode == "L" else "CMYK", header, scale), image.mode)
    small = whole.resize((frame.width, frame.height), Image.Resampling.LANCZOS, frame.box(scale))
    # Adobe's count the white, and not the ink.
    return ImageChops.invert(small) if image.mode == "CMYK" and "adobe" in image.info else small


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


def library_versions() -> dict[str, str]:
    """What decides about the bytes of a sample besides the photo and the recipe."""
    versions = {name: features.version(key) for name, key in _PILLOW_LIBRARIES.items()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass  # Not installed: it decides about nothing.
    return {name: str(version) for name, version in versions.items() if version}

"""One photo's bytes to one sample's bytes.

    open by content -> pixel limit -> frame -> scaled decode -> resize -> sRGB -> upright -> padding -> encode
    formats.py         here           recipe.py  jpeg.py, or Pillow     colour.py  here                here

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

__all__ = ["PhotoError", "Recipe", "encode", "library_versions", "make_sample", "quiet_pillow", "upright_square"]

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
_BIG_PIXELS = 5_000_000
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
    pixels = np.ascontiguousarray(square)
    if recipe.encode == "raw":
        return npy_bytes(pixels)
    if recipe.encode == "jpeg":
        return bytes(simplejpeg.encode_jpeg(pixels, recipe.quality, "RGB", recipe.subsampling))
    buffer = io.BytesIO()
    # Made from the pixels alone: Pillow carries comments and profiles along, and writes them into what it saves.
    Image.fromarray(pixels).save(buffer, recipe.encode, quality=recipe.quality, method=4)  # A PNG heeds neither.
    return buffer.getvalue()


def _square_of(data: bytes, recipe: Recipe) -> Image.Image | NDArray[np.uint8]:
    try:
        header = jpeg.read_header(data)
        if header is not None and header.plain:
            frame, scale, room = _plan(header.width, header.height, header, recipe)
            with room:
                pixels = jpeg.decode_and_resize(data, header, scale, frame)
            return pixels if recipe.crop != "pad" else _padded(Image.fromarray(pixels), recipe)
        with open_image(data) as image:
            return _padded(_upright(image, data, header, recipe), recipe)
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


def _plan(
    width: int, height: int, header: jpeg.Header | None, recipe: Recipe
) -> tuple[Frame, int, contextlib.AbstractContextManager[object]]:
    """The frame of a photo, how many times smaller it may be decoded if it is a JPEG, and what to do that within."""
    if width * height > MAX_PIXELS:
        raise PhotoError("too many pixels", f"{width}x{height}, at most {MAX_PIXELS // 10**6} million are decoded")
    frame, scale = frame_of(width, height, recipe), 1
    if header is not None and not recipe.exact:
        scale = next((scale for scale, margin in MARGINS.items() if frame.shrink >= margin * scale), 1)
    # A progressive file keeps its coefficients at full size.
    decoded = width * height if header is not None and header.progressive else width * height // scale**2
    return frame, scale, _one_big_photo if decoded > _BIG_PIXELS else contextlib.nullcontext()


def _upright(image: Image.Image, data: bytes, header: jpeg.Header | None, recipe: Recipe) -> Image.Image:
    frame, scale, room = _plan(*image.size, header, recipe)
    with room:
        small = _decode_and_resize(image, data, header, scale, frame)
    square = to_srgb(small, image.info.get("icc_profile"), recipe.background)
    try:
        turn = _UPRIGHT.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    except Exception:  # Metadata may be damaged in any way, and the pixels are good all the same.
        turn = None
    return square if turn is None else square.transpose(turn)


def _decode_and_resize(
    image: Image.Image, data: bytes, header: jpeg.Header | None, scale: int, frame: Frame
) -> Image.Image:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return averageable(image).resize((frame.width, frame.height), Image.Resampling.LANCZOS, frame.box(1))
    if header is None:
        raise PhotoError("damaged image", "a JPEG without pixels")
    if image.mode == "RGB" or (image.mode == "L" and "icc_profile" not in image.info):
        return Image.fromarray(jpeg.decode_and_resize(data, header, scale, frame))
    whole = jpeg.as_image(jpeg.decode(data, "GRAY" if image.mode == "L" else "CMYK", header, scale), image.mode)
    small = whole.resize((frame.width, frame.height), Image.Resampling.LANCZOS, frame.box(scale))
    # Adobe's count the white, and not the ink.
    return ImageChops.invert(small) if image.mode == "CMYK" and "adobe" in image.info else small


def _padded(image: Image.Image, recipe: Recipe) -> Image.Image:
    if image.width == image.height:
        return image
    padded = Image.new("RGB", (recipe.size, recipe.size), recipe.background)
    padded.paste(image, ((recipe.size - image.width) // 2, (recipe.size - image.height) // 2))
    return padded


def library_versions() -> dict[str, str]:
    """What decides about the bytes of a sample besides the photo and the recipe."""
    versions = {name: features.version(key) for name, key in _PILLOW_LIBRARIES.items()}
    for name in ("simplejpeg", "cykooz-resizer", "pillow-heif"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {name: version for name, version in versions.items() if version}

"""One photo's bytes to one sample's bytes.

    open by content -> pixel limit -> scaled decode -> crop and resize -> upright -> encode, nothing but pixels

JPEG files are decoded at 1/2, 1/4 or 1/8 of their size where that leaves twice the target: four times as fast, and
within 51 dB of the full decode. Pillow's decoder measured as fast as simplejpeg's here, and takes every JPEG there is.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Plugins are imported by name: Pillow's own search for one would load forty more, at the first damaged file.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from pipeline.errors import UserError
from pipeline.format import SUFFIX, npy_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")
MAX_PIXELS = 100_000_000
"""Photos of more are rejected before a pixel is decoded."""
MAX_FILE_BYTES = 1 << 28
MARGIN = 2
"""A scaled decode leaves at least this many times the target size."""

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


@dataclass(frozen=True)
class Recipe:
    """How every photo of a set becomes a sample."""

    size: int
    """Height and width of a sample, pixels."""
    crop: int | str
    """`center`: the largest centred square; `none`: the whole photo, stretched; N: a centred square of N pixels."""
    encoding: str
    """A key of `pipeline.format.SUFFIX`."""
    quality: int
    """Of jpeg and webp, 1 to 100."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size must be at least 1 pixel; got {self.size}. Use 64 or 128.")
        if self.crop not in ("center", "none") and not (isinstance(self.crop, int) and self.crop >= self.size):
            raise UserError(
                f"crop must be center, none or at least the size, {self.size}; got {self.crop}. "
                "Choose a larger square, or a smaller size."
            )
        if self.encoding not in SUFFIX:
            raise UserError(f"encode must be one of {', '.join(SUFFIX)}; got '{self.encoding}'. Use jpeg.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality must be from 1 to 100; got {self.quality}. 95 is a good choice.")


class PhotoError(Exception):
    """This input can never become a sample. `reason` is one of a few fixed phrases, `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def make_sample(data: bytes, recipe: Recipe) -> bytes:
    """The encoded sample of the photo file `data`; raises `PhotoError` where none can be made. Thread-safe."""
    return encode(upright_square(data, recipe), recipe)


def upright_square(data: bytes, recipe: Recipe) -> Image.Image:
    """The photo in `data` as an RGB image of `recipe.size` squared; raises `PhotoError`."""
    if not data:
        raise PhotoError("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _square(image, recipe)
    except (PhotoError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise PhotoError(*_what_it_is(data)) from None
    except Image.DecompressionBombError as error:
        raise PhotoError("too many pixels", str(error)) from None
    except Exception as error:  # Decoders raise nearly anything at damaged bytes.
        raise PhotoError("damaged image", f"{type(error).__name__}: {error}") from None


def encode(image: Image.Image, recipe: Recipe) -> bytes:
    """The bytes of an RGB `image` in the set's encoding, without any metadata."""
    if recipe.encoding == "raw":
        return npy_bytes(np.asarray(image))
    buffer = io.BytesIO()
    if recipe.encoding == "jpeg":
        image.save(buffer, "JPEG", quality=recipe.quality, subsampling=0)
    elif recipe.encoding == "webp":
        image.save(buffer, "WEBP", quality=recipe.quality, method=4)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def library_versions() -> dict[str, str]:
    """What decides about the bytes of a sample besides the photo and the recipe."""
    names = {"pillow": "pil", "libjpeg-turbo": "libjpeg_turbo", "libwebp": "webp", "zlib": "zlib", "zlib-ng": "zlib_ng"}
    return {name: str(version) for name, key in names.items() if (version := features.version(key))}


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings from the person's terminal: what matters of them becomes a rejection."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _square(image: Image.Image, recipe: Recipe) -> Image.Image:
    width, height = image.size
    pixels = width * height
    if pixels > MAX_PIXELS:
        raise PhotoError("too many pixels", f"{width}x{height}, at most {MAX_PIXELS // 10**6} million are decoded")
    crop_width, crop_height = _crop_size(width, height, recipe)
    # No box is ever moved off the centre, so that cropping and turning upright commute.
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    scale = 1
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        scale = _decode_scale(min(crop_width, crop_height), recipe.size)
        # Pillow scales by as much as this size allows, and that is `scale`.
        image.draft(None, (max(1, width // scale), max(1, height // scale)))
        if not image.info.get("progressive"):
            pixels //= scale * scale  # A progressive file keeps its coefficients at full size.
    box = (left / scale, top / scale, (left + crop_width) / scale, (top + crop_height) / scale)
    with _one_big_photo if pixels > _BIG_PIXELS else contextlib.nullcontext():
        square = _over_white(_load(image).resize((recipe.size, recipe.size), Image.Resampling.LANCZOS, box))
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        square = square.transpose(turn)
    square.info = {}  # Pillow carries comments and profiles along, and writes them into what it saves.
    return square


def _crop_size(width: int, height: int, recipe: Recipe) -> tuple[int, int]:
    crop_width, crop_height = width, height
    if recipe.crop == "center":
        crop_width = crop_height = min(width, height)
    elif isinstance(recipe.crop, int):
        crop_width = crop_height = recipe.crop
        if recipe.crop > min(width, height):
            raise PhotoError("smaller than the crop", f"{width}x{height}, the crop is {recipe.crop}")
    if min(crop_width, crop_height) < recipe.size:
        raise PhotoError("smaller than the target", f"{width}x{height}, the target is {recipe.size}")
    return crop_width, crop_height


def _decode_scale(pixels: int, size: int) -> int:
    """How many times smaller a JPEG may be decoded when `pixels` of it become `size`."""
    return next((scale for scale in (8, 4, 2) if pixels >= MARGIN * size * scale), 1)


def _load(image: Image.Image) -> Image.Image:
    """All pixels of the first frame as RGB, or as RGBA where some are transparent; 16 bits become their upper 8."""
    image.load()
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode not in ("1", "L", "P", "CMYK", "YCbCr", "RGBX", "HSV"):
        raise PhotoError("pixels not supported", f"mode {image.mode} of {image.format}; save it with 8 bits a channel")
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    opaque = Image.new("RGBA", image.size, "white")
    opaque.alpha_composite(image)
    return opaque.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Metadata may be damaged in any way, and the pixels are good all the same.
        return 1


def _what_it_is(data: bytes) -> tuple[str, str]:
    """Reason and detail for bytes that no decoder takes."""
    if data[:4] == b"\0\5\x16\7":
        return "not an image", "a macOS resource fork (AppleDouble), which copies between systems leave behind"
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("ascii", "replace")
        return "image format not supported", f"brand '{brand}', perhaps HEIC; save it as JPEG"
    if not data.strip(b"\0"):
        return "not an image", f"{len(data):,} zero bytes"
    return "not an image", f"it begins with {data[:12]!r}"

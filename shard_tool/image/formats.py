"""Which image a file is, told by its first bytes and never by its name; or the reason why it is none."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

# Plugins are imported by name: Pillow's own search for one would load forty more, at the first damaged file.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
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

from pipeline.shards.picture import open_picture

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")
_MOST_METADATA = 8 << 20
"""Bytes of a PNG's profile or text. Pillow stops at one MiB, and profiles of scanners are larger."""
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HEIC_EXTRA = "pip install 'leanstream[heic]'"
_OUR_FORMATS = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"BM", "BMP"),
    (8, b"WEBP", "WebP"),
    (4, b"ftypavi", "AVIF"),
)
"""Offset and first bytes of the formats that are read: where they stand in front of nonsense, the file is damaged."""
_OTHER_FORMATS = (
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "a Photoshop file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
)
"""First bytes of images that nothing here decodes: a person should read their name, and not `not an image`."""


class PhotoError(Exception):
    """This input can never become a sample. `reason` is one of a few fixed phrases, `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def open_image(data: bytes) -> Image.Image:
    """The image in `data`, its header read and no pixel decoded.

    Raises `PhotoError` where it is of no format that can be read; whatever a decoder raises where it is damaged.
    """
    if not data:
        raise PhotoError("empty file")
    try:
        return open_picture(data, FORMATS)
    except UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
            return _open_heic(data)
        raise PhotoError(*_what_it_is(data)) from None


def _open_heic(data: bytes) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise PhotoError(
            "image format not supported", f"HEIC, as phones make it; {_HEIC_EXTRA} makes it readable"
        ) from None
    try:
        image: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    except SyntaxError as error:
        raise PhotoError("damaged image", f"HEIC: {error}") from None
    return image


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings from the person's terminal: what matters of them becomes a rejection."""
    pixels, chunk = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    logger = logging.getLogger("PIL")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        Image.MAX_IMAGE_PIXELS = None
        PngImagePlugin.MAX_TEXT_CHUNK = _MOST_METADATA
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = pixels, chunk
            logger.setLevel(level)


def _what_it_is(data: bytes) -> tuple[str, str]:
    """Reason and detail for bytes that no decoder takes."""
    if data[:4] == b"\0\5\x16\7":
        return "not an image", "a macOS resource fork (AppleDouble), which copies between systems leave behind"
    for offset, start, name in _OUR_FORMATS:
        if data.startswith(start, offset):
            if name in ("WebP", "AVIF") and not features.check(name.lower()):
                return "image format not supported", f"{name}; this Pillow was built without it"
            return "damaged image", f"it begins as {name}, and its header makes no sense"
    for start, name in _OTHER_FORMATS:
        if data.startswith(start):
            return "image format not supported", f"{name}; save it as JPEG or PNG"
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("ascii", "replace")
        return "image format not supported", f"brand '{brand}', perhaps a film; save it as JPEG or PNG"
    if not data.strip(b"\0"):
        return "not an image", f"{len(data):,} zero bytes"
    return "not an image", f"it begins with {data[:12]!r}"

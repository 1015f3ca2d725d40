"""Which image a file is, told by its first bytes and never by its name; or the reason why it is none."""

import contextlib
import io
import logging
import re
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

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
from shard_tool.image.jpeg import read_header
from shard_tool.image.recipe import PhotoError

_MOST_METADATA = 8 << 20
"""Bytes of a PNG's profile or text. Pillow stops at one MiB, and profiles of scanners are larger."""
_FIRST_BYTES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n",
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "a camera's raw file (CR2)": rb"II\*\0....CR",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)",
    "PPM": rb"P[1-6]\s+[#\d]",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "a Photoshop file": rb"8BPS",
    "a camera's raw file (CR3)": rb"....ftypcrx ",
    "a camera's raw file (RAF)": rb"FUJIFILMCCD-RAW",
    "a camera's raw file (ORF)": rb"IIR[OS]|MMOR",
    "a camera's raw file (RW2)": rb"IIU\0",
    "a camera's raw file (CRW)": rb"II\x1a\0\0\0HEAP",
    "a camera's raw file (X3F)": rb"FOVb",
    "a camera's raw file (MRW)": rb"\0MRM",
    "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?RADIANCE",
    "a GIMP file": rb"gimp xcf",
    "an icon": rb"\0\0[\x01\x02]\0[^\0]\0|icns",
}
"""First bytes of pictures, by the name of their format: those that are read, and those that nothing here decodes."""
_OTHER_FILES = {
    "PDF": rb"%PDF",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<\?xml.*)?(<!.*)?<svg",
    "PostScript": rb"%!PS",
    "a web page (HTML)": rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml.*)?(<!.*)?<(!DOCTYPE )?(html|head|body|script|meta)",
    "XML": rb"(\xef\xbb\xbf)?\s*<\?xml",
    "a zip archive": rb"PK\x03\x04",
    "gzip": rb"\x1f\x8b",
    "a macOS resource fork (AppleDouble), which copies between systems leave behind": rb"\0\x05\x16\x07",
}
"""Other things that are called .jpg, or are taken for pictures."""
_READABLE = frozenset(("JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF", "AVIF", "HEIC", "PPM"))
_DNG_VERSION, _SUBFILE_TYPE, _MAKE = 50706, 254, 271
_CAMERA_COLOURS = {32803, 34892}
"""Photometric interpretations of a sensor's pixels, and of a DNG's."""
_quiet, _quiet_users, _quiet_lock = contextlib.ExitStack(), 0, threading.Lock()


def looks_like_image(first_bytes: bytes) -> str:
    """The name of the picture format ("JPEG", ...) of which a file begins with these bytes (32 do); empty: none.

    Also of formats that nothing here decodes: such a file is a photo, and is listed as rejected.
    """
    return _first_match(first_bytes, _FIRST_BYTES)


def open_image(data: bytes) -> Image.Image:
    """The image in `data`, its header read and no pixel decoded.

    Raises `PhotoError` if it is of no format that can be read; whatever a decoder raises if it is damaged.
    """
    if not data:
        raise PhotoError("empty file")
    name = looks_like_image(data[:64])
    if name not in _READABLE:
        raise PhotoError(*_what_it_is(data, name))
    if name == "PNG":
        _check_png(data)
    if name == "TIFF":
        _refuse_camera_raw(data)
    try:
        return open_picture(data, ("AVIF",) if name == "HEIC" else (name.upper(),))  # They have a brand in common.
    except UnidentifiedImageError:
        if name != "HEIC":
            raise PhotoError(*_what_it_is(data, name)) from None
    try:
        from pillow_heif import HeifImageFile

        image: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    except ImportError:
        hint = "HEIC, as phones make it; pip install 'leanstream[heic]' makes it readable"
        raise PhotoError("image format not supported", hint) from None
    except SyntaxError as error:
        raise PhotoError("damaged image", f"HEIC: {error}") from None
    return image


def _check_png(data: bytes) -> None:
    """Raise if a chunk that counts for the pixels is not what was written: Pillow does not look at the sums of IDAT."""
    at, view = 8, memoryview(data)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        kind, checksum = data[at + 4 : at + 8], int.from_bytes(data[end : end + 4], "big")
        if kind in (b"IHDR", b"PLTE", b"IDAT") and zlib.crc32(view[at + 4 : end]) != checksum:
            raise PhotoError("damaged image", f"PNG: the checksum of its {kind.decode()} at byte {at:,} is wrong")
        at = end + 4


def _refuse_camera_raw(data: bytes) -> None:
    """Raise if a TIFF is a camera's raw file: its first image is a thumbnail, and the photo is no picture yet."""
    first, *inner = _tiff_directories(data) or ({},)
    photometric = {tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) for tags in (first, *inner)}
    if _DNG_VERSION in first or first.get(_SUBFILE_TYPE, 0) & 1 or photometric & _CAMERA_COLOURS:
        made = "DNG" if _DNG_VERSION in first else str(first.get(_MAKE, "")).strip("\0 ") or "TIFF"
        detail = f"a camera's raw file ({made}), in which a picture is but a thumbnail; save it as JPEG or PNG"
        raise PhotoError("image format not supported", detail)


def _tiff_directories(data: bytes) -> list[Mapping[int, Any]]:
    """Tags of the first image of a TIFF, then those of the images inside it; nothing if they cannot be read."""
    file = io.BytesIO(data)

    def directory(at: int | None = None) -> TiffImagePlugin.ImageFileDirectory_v2:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if b"+" in data[2:4] else 8])
        file.seek(tags.next if at is None else at)
        tags.load(file)
        return tags

    try:
        first = directory()
        return [first, *map(directory, first.get(TiffImagePlugin.SUBIFD, ())[:8])]
    except Exception:  # A directory may be damaged in any way, and Pillow is going to say how.
        return []


def _what_it_is(data: bytes, name: str) -> tuple[str, str]:
    """Reason and detail for bytes that no decoder takes, and that begin as the format `name`."""
    if name in _READABLE:
        header = read_header(data)
        if header is not None and header.bits != 8:
            return "image format not supported", f"{header.bits}-bit JPEG; save it with 8 bits a channel"
        if name in ("WebP", "AVIF") and not features.check(name.lower()):
            return "image format not supported", f"{name}; this Pillow was built without it"
        try:
            Image.OPEN[name.upper()][0](io.BytesIO(data), "")  # It says what Pillow's search for a format swallows.
        except Exception as error:
            said = any(TiffImagePlugin.BITSPERSAMPLE in tags for tags in _tiff_directories(data)[:1])
            if said and str(error) == "unknown pixel mode":  # Else they were cut off with the end of the file.
                return "pixels not supported", f"{name} of unusual numbers or channels; save it with 8 bits a channel"
            return "damaged image", f"it begins as {name}, and its header makes no sense: {error}"
        return "damaged image", f"it begins as {name}, and its header makes no sense"
    if not name and data[4:8] == b"ftyp":
        name = f"brand '{data[8:12].decode('ascii', 'replace')}', perhaps a film"
    other = _first_match(data, _OTHER_FILES)
    if name or other in ("PDF", "SVG"):
        return "image format not supported", f"{name or other}; save it as JPEG or PNG"
    if other:
        return "not an image", other
    if not data.strip(b"\0"):
        return "not an image", f"{len(data):,} zero bytes"
    start = data[:40].decode("utf-8", "ignore")  # The end may be half a letter.
    if start and "".join(start.split()).isprintable() and len(data[:40]) < len(start.encode()) + 4:
        return "not an image", f"text, it begins with {start!r}"
    return "not an image", f"it begins with {data[:12]!r}"


def _first_match(data: bytes, patterns: Mapping[str, bytes]) -> str:
    return next((name for name, start in patterns.items() if re.match(start, data[:1000], re.DOTALL)), "")


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings from the person's terminal: what matters of them becomes a rejection.

    Threads may be in it at the same time: the first to come changes Pillow's settings, the last to leave restores them.
    """
    global _quiet_users
    with _quiet_lock:
        if not _quiet_users:
            logger = logging.getLogger("PIL")
            _quiet.enter_context(warnings.catch_warnings(action="ignore"))
            _quiet.callback(logger.setLevel, logger.level)
            _quiet.callback(setattr, PngImagePlugin, "MAX_TEXT_CHUNK", PngImagePlugin.MAX_TEXT_CHUNK)
            logger.setLevel(logging.CRITICAL + 1)
            PngImagePlugin.MAX_TEXT_CHUNK = _MOST_METADATA
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if not _quiet_users:
                _quiet.close()

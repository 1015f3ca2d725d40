"""Photos of every kind, made by hand where Pillow cannot write them, and what the tests ask of a sample."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shard_tool.image.photo import PhotoError, Recipe, make_sample, quiet_pillow, upright_square

RECIPE = Recipe(size=64, crop="center", encode="png")


def pixels(data: bytes, recipe: Recipe = RECIPE) -> NDArray[np.int16]:
    """The sample [size, size, 3] of a photo, as numbers that may be subtracted."""
    return np.asarray(upright_square(data, recipe)).astype(np.int16)


def reason(data: bytes, recipe: Recipe = RECIPE) -> str:
    """Why a photo, which must be rejected, is rejected."""
    return rejection(data, recipe).reason


def rejection(data: bytes, recipe: Recipe = RECIPE) -> PhotoError:
    """The reason and the detail of a photo that must be rejected."""
    with quiet_pillow(), pytest.raises(PhotoError) as error:
        make_sample(data, recipe)
    return error.value


def psnr(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB of two images of 0 to 255."""
    error = float(np.mean((one.astype(float) - other) ** 2))
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: NDArray[Any], *extra: bytes) -> bytes:
    """A PNG of `values` [H, W, channels], 8 or 16 bits by their dtype, with `extra` chunks before the pixels."""
    height, width, channels = values.shape
    bits = values.dtype.itemsize * 8
    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    big_endian = values.astype(values.dtype.newbyteorder(">"))
    rows = b"".join(b"\0" + row.tobytes() for row in big_endian)
    chunks = [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is this large, and has no pixel."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(b"")), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_16(values: NDArray[np.uint16]) -> bytes:
    """An uncompressed little-endian TIFF of 16 bits a channel, [H, W, 3]."""
    return tiff(values, 16, photometric=2)


def tiff(values: NDArray[Any], bits: int, photometric: int, tags: dict[int, int] | None = None) -> bytes:
    """An uncompressed little-endian TIFF of `values` [H, W, channels], or [H, W / 8, 1] if `bits` is 1.

    Photometric interpretations are 0: grey, white is zero; 1: grey, black is zero; 2: RGB. `tags` are added or changed.
    """
    height, width, channels = values.shape
    body = values.astype(values.dtype.newbyteorder("<")).tobytes()
    counted = {
        256: (4, 1, width * 8 if bits == 1 else width),
        257: (4, 1, height),
        258: (3, channels, 8 if channels > 2 else bits),  # bits of each, stored right behind the header
        259: (3, 1, 1),
        262: (3, 1, photometric),
        273: (4, 1, 14),  # where the pixels begin
        277: (3, 1, channels),
        278: (4, 1, height),
        279: (4, 1, len(body)),
        **{tag: (4, 1, value) for tag, value in (tags or {}).items()},
    }
    head = b"II*\0" + struct.pack("<I", 14 + len(body)) + struct.pack("<3H", bits, bits, bits)
    entries = (struct.pack("<HHII", tag, *entry) for tag, entry in sorted(counted.items()))
    return head + body + struct.pack("<H", len(counted)) + b"".join(entries) + bytes(4)


def icc_profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """A version 2 ICC profile with these tags."""
    tags = {b"desc": _text(b"desc", b"made"), b"cprt": _text(b"text", b"none"), b"wtpt": xyz(0.9642, 1, 0.8249), **tags}
    table, body = b"", b""
    first = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, first + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    header = struct.pack(">I4sI4s4s4s", first + len(body), bytes(4), 0x02400000, kind, space, pcs)
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(x: float, y: float, z: float) -> bytes:
    """A colour as a tag of a profile."""
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in (x, y, z)))


def gamma(exponent: float) -> bytes:
    """A curve as a tag of a profile."""
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(exponent * 256))


def _text(kind: bytes, text: bytes) -> bytes:
    if kind == b"text":
        return kind + bytes(4) + text + b"\0"
    return kind + bytes(4) + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(12 + 67)


ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""XYZ of the red, green and blue of a wide gamut, for the D50 white of profiles."""
ADOBE_GAMMA = 2.19921875


def wide_gamut_profile() -> bytes:
    """Adobe RGB (1998), made by hand."""
    colours = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), (xyz(*colour) for colour in ADOBE_RGB), strict=True))
    return icc_profile(b"RGB ", {**colours, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(ADOBE_GAMMA))})


def grey_profile(exponent: float) -> bytes:
    """A grey profile with a plain gamma."""
    return icc_profile(b"GRAY", {b"kTRC": gamma(exponent)})


def red_cyan_profile() -> bytes:
    """A CMYK profile of a strange press: its cyan ink is red, its other colours are white, black is black."""
    white, red, black = bytes((255, 128, 128)), bytes((138, 209, 198)), bytes((0, 128, 128))
    corners = [black if k else red if c else white for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i in (0, 4, 8) else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + identity * 4 + b"".join(corners) + identity * 3
    return icc_profile(b"CMYK", {b"A2B0": table}, b"Lab ")


def cmyk_jpeg(inks: tuple[int, int, int, int], *, adobe: bool = True, ycck: bool = False) -> bytes:
    """A JPEG of one colour in 0 to 255 of each ink.

    With Adobe's marker channels count the white, and not the ink. YCCK is CMY as if it were RGB, in YCbCr, and black.
    """
    if ycck:
        luma, blue, red = Image.new("RGB", (1, 1), inks[:3]).convert("YCbCr").getpixel((0, 0))  # type: ignore[misc]
        inks = (255 - luma, 255 - blue, 255 - red, inks[3])
    if not adobe:
        inks = tuple(255 - ink for ink in inks)  # type: ignore[assignment]  # Pillow is going to invert them.
    data = save(Image.new("CMYK", (160, 160), inks), "JPEG", quality=100, subsampling=0)
    start = data.index(b"\xff\xee")
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    assert data[start + 4 : start + 9] == b"Adobe"
    if not adobe:
        return data[:start] + data[start + 2 + length :]
    transform = start + 2 + length - 1
    return data[:transform] + (b"\2" if ycck else b"\0") + data[transform + 1 :]


def stored_as(upright: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The rows that a camera stores of what stands upright in `upright` [H, W, ...], by Exif's table:

    the 0th row is the visual top, top, bottom, bottom, left, right, right, left (for 1 to 8), and the 0th column the
    visual left, right, right, left, top, top, bottom, bottom.
    """
    height, width = upright.shape[:2]
    x, y = np.arange(width), np.arange(height)
    sides = {"top": y, "bottom": y[::-1], "left": x, "right": x[::-1]}
    row = ("top", "top", "bottom", "bottom", "left", "right", "right", "left")[orientation - 1]
    column = ("left", "right", "right", "left", "top", "top", "bottom", "bottom")[orientation - 1]
    if row in ("top", "bottom"):
        return upright[sides[row][:, None], sides[column][None, :]]
    return upright[sides[column][None, :], sides[row][:, None]]


def with_orientation(orientation: int) -> Image.Exif:
    """Exif data that says how the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif

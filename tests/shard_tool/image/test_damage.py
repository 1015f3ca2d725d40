"""Files that lack pixels: libjpeg and others paint something in their place, and none of it may become a sample."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from shard_tool.image import jpeg
from shard_tool.image.formats import quiet_pillow
from shard_tool.image.photo import make_sample
from tests.shard_tool.pictures import (
    RECIPE,
    grey_profile,
    pixels,
    reason,
    rejection,
    save,
    wide_gamut_profile,
    with_orientation,
)

EOI = b"\xff\xd9"
JPEGS: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("RGB", {}),
    "grey": ("L", {}),
    "progressive": ("RGB", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_rows": 1}),
    "Exif": ("RGB", {"exif": with_orientation(6)}),
    "profile": ("RGB", {"icc_profile": wide_gamut_profile()}),
    "grey profile": ("L", {"icc_profile": grey_profile(1.8)}),
    "CMYK": ("CMYK", {}),
    "large": ("RGB", {}),
}


@pytest.fixture(params=JPEGS)
def whole(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A JPEG of one of these kinds, full of details."""
    if request.param == "large":
        monkeypatch.setattr(jpeg, "MOST_PIXELS", 1000)
    mode, options = JPEGS[request.param]
    return save(noise().convert(mode), "JPEG", **options)


def noise() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    return Image.fromarray(small).resize((500, 400))


def scan_starts(data: bytes) -> list[int]:
    return [at - 4 for kind, at, _ in jpeg._segments(data) if kind == 0xDA]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data, at: data[:at],
        lambda data, at: data[:at] + EOI,
        lambda data, at: data[:at] + EOI + data[at:],
        lambda data, at: data[:at] + bytes(len(data) - at),
        lambda data, at: data[:at] + bytes(len(data) - at - 2) + EOI,
        lambda data, at: data[: at - 2100] + data[at - 52 :],
        lambda data, at: data[: at - 1000] + bytes(512) + data[at - 488 :],
        lambda data, at: data[:at] + data[at - 600 :],
    ],
    ids=["cut off", "early end", "early end inside", "zeros to the end", "zeros", "missing", "zeros inside", "twice"],
)
def test_a_jpeg_that_lacks_pixels_is_rejected(
    whole: bytes, damage: Callable[[bytes, int], bytes], share: float
) -> None:
    assert reason(damage(whole, int(len(whole) * share))) == "damaged image"


def test_the_rejection_is_what_libjpeg_says(whole: bytes) -> None:
    assert rejection(whole[: len(whole) // 2] + EOI).detail == "Corrupt JPEG data: premature end of data segment"


def test_a_lost_restart_marker_is_noticed() -> None:
    data = save(noise(), "JPEG", restart_marker_rows=1)
    for number in (0, 3, 7):
        at = data.index(bytes((0xFF, 0xD0 + number)), scan_starts(data)[0])
        assert reason(data[:at] + data[at + 2 :]) == "damaged image"


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-2],
        lambda data: data[:-1],
        lambda data: data[:-2] + bytes(100) + EOI,
        lambda data: data[:-2] + bytes(100),
        lambda data: data + b"trailing data" * 100,
        lambda data: data + bytes(5000),
        lambda data: data[:2] + b"\xff\xff\xff" + data[2:],
        lambda data: data[: (at := data.index(b"\xff\xdb"))] + b"junk between the tables" + data[at:],
        lambda data: data.replace(b"JFIF\0\1", b"JFIF\0\7", 1),
    ],
    ids=["no end", "half an end", "zeros", "zeros, no end", "trailing", "zeros behind", "fill", "junk", "JFIF 7"],
)
def test_a_jpeg_that_is_odd_and_lacks_nothing_is_the_same_picture(
    whole: bytes, change: Callable[[bytes], bytes]
) -> None:
    with quiet_pillow():
        np.testing.assert_array_equal(pixels(change(whole)), pixels(whole))


def test_a_sequential_jpeg_may_have_nonsense_about_progression() -> None:
    data = save(noise(), "JPEG")
    at = scan_starts(data)[0] + 5 + 2 * 3
    assert data[at : at + 3] == b"\0\x3f\0"
    np.testing.assert_array_equal(pixels(data[:at] + b"\0\0\0" + data[at + 3 :]), pixels(data))


def test_bytes_behind_the_pixels_may_be_pixels_that_were_lost_track_of(whole: bytes) -> None:
    assert reason(whole[:-2] + b"garbage before the end" + EOI) == "damaged image"


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("exif", [b"", with_orientation(6)])
def test_a_progressive_jpeg_needs_all_scans(mode: str, exif: bytes) -> None:
    data = save(noise().convert(mode), "JPEG", progressive=True, exif=exif)
    starts = scan_starts(data)
    assert len(starts) >= 6
    for start in starts[1:]:
        assert reason(data[:start] + EOI) == "damaged image"
        assert reason(data[:start]) == "damaged image"
    assert reason(data[: starts[2]] + b"garbage between scans" + data[starts[2] :]) == "damaged image"


def test_a_sequential_jpeg_may_have_a_scan_for_each_channel_and_needs_all() -> None:
    """Made of the scans of three grey ones."""
    parts = [save(channel, "JPEG", quality=95) for channel in noise().convert("YCbCr").split()]
    scans = []
    for number, part in enumerate(parts, 1):
        start = scan_starts(part)[0]
        scans.append(part[start : start + 5] + bytes((number,)) + part[start + 6 : -2])
    head = parts[0][: scan_starts(parts[0])[0]]
    at = head.index(b"\xff\xc0")
    end = at + 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    frame = (
        head[at : at + 3] + b"\x11" + head[at + 4 : at + 9] + b"\3" + b"".join(bytes((n, 0x11, 0)) for n in (1, 2, 3))
    )
    head = head[:at] + frame + head[end:]
    whole = head + b"".join(scans) + EOI
    assert np.abs(pixels(whole) - pixels(save(noise(), "PNG"))).mean() < 3
    for missing in range(3):
        rest = scans[:missing] + scans[missing + 1 :]
        assert reason(head + b"".join(rest) + EOI) == "damaged image"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "PPM"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.99])
def test_other_files_that_were_cut_off_are_rejected(kind: str, share: float) -> None:
    data = save(noise(), kind)
    assert reason(data[: int(len(data) * share)]) == "damaged image"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_compressed_tiff_that_was_cut_off_is_rejected(compression: str) -> None:
    data = save(noise(), "TIFF", compression=compression)
    for share in (0.001, 0.1, 0.5, 0.95):
        assert reason(data[: int(len(data) * share)]) == "damaged image"


def test_a_png_is_what_its_checksums_say() -> None:
    data = save(noise(), "PNG")
    idat = data.index(b"IDAT")
    last = data.rindex(b"IDAT")
    for at in (data.index(b"IHDR") + 6, idat + 200, last + 100, data.rindex(b"IEND") - 5):
        assert reason(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]) == "damaged image"


@pytest.mark.parametrize("error", [MemoryError(), ValueError("Insufficient memory (case 4)")])
def test_too_little_memory_is_no_fault_of_the_photo(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", fail)
    with pytest.raises(UserError, match=r"a photo must fit into the memory .* Close other programs"):
        make_sample(save(noise(), "JPEG"), replace(RECIPE, exact=True))

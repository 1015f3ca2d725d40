import io
import struct
import sys
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from shard_tool.image.colour import srgb_transform
from shard_tool.image.photo import quiet_pillow
from tests.shard_tool.pictures import (
    ADOBE_GAMMA,
    ADOBE_RGB,
    RECIPE,
    cmyk_jpeg,
    grey_profile,
    pixels,
    png,
    png_chunk,
    reason,
    red_cyan_profile,
    rejection,
    save,
    tiff,
    tiff_16,
    wide_gamut_profile,
)

SRGB = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])
"""XYZ of sRGB's red, green and blue, for the D50 white of profiles."""


def srgb_of_linear(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """IEC 61966-2-1."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def true_srgb(adobe: tuple[int, int, int]) -> NDArray[np.float64]:
    """The sRGB levels of a colour of the wide gamut, computed without any colour management."""
    linear = (np.array(adobe) / 255) ** ADOBE_GAMMA
    return srgb_of_linear(linear @ np.array(ADOBE_RGB) @ np.linalg.inv(SRGB))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("colour", [(200, 80, 60), (60, 120, 200), (128, 128, 128), (90, 160, 100), (0, 255, 0)])
def test_a_wide_gamut_becomes_srgb(kind: str, colour: tuple[int, int, int]) -> None:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}
    image = Image.new("RGB", (150, 150), colour)
    data = save(image, kind, icc_profile=wide_gamut_profile(), **options.get(kind, {}))
    expected = true_srgb(colour)
    assert np.abs(pixels(data) - expected).max() <= 4
    if colour == (200, 80, 60):
        assert np.abs(expected - colour).max() > 15


def test_transparent_photos_and_palettes_have_profiles_too() -> None:
    image = Image.new("RGBA", (150, 150), (200, 80, 60, 255))
    image.paste((0, 0, 0, 0), (75, 0, 150, 150))
    found = pixels(save(image, "PNG", icc_profile=wide_gamut_profile()))
    assert np.abs(found[32, 8] - true_srgb((200, 80, 60))).max() <= 2
    assert found[32, 56].tolist() == [255] * 3  # The background is sRGB already.
    palette = Image.new("RGB", (150, 150), (60, 120, 200)).quantize()
    found = pixels(save(palette, "PNG", icc_profile=wide_gamut_profile()))
    assert np.abs(found - true_srgb((60, 120, 200))).max() <= 2


@pytest.mark.parametrize("level", [20, 64, 128, 200])
@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_is_honoured(level: int, mode: str) -> None:
    image = Image.new("L", (150, 150), level).convert(mode)
    found = pixels(save(image, "PNG", icc_profile=grey_profile(1.0)))
    assert np.abs(found - srgb_of_linear(np.array(level / 255))).max() <= 2
    if mode == "L":
        jpeg = save(image, "JPEG", quality=100, icc_profile=grey_profile(1.0))
        assert np.abs(pixels(jpeg) - found).max() <= 3


def test_a_cmyk_profile_is_honoured() -> None:
    for data in (
        save(Image.new("CMYK", (150, 150), (255, 0, 0, 0)), "TIFF", icc_profile=red_cyan_profile()),
        save(Image.new("CMYK", (150, 150), (255, 0, 0, 0)), "JPEG", quality=100, icc_profile=red_cyan_profile()),
    ):
        assert np.abs(pixels(data) - (255, 0, 0)).max() <= 16
    no_ink = save(Image.new("CMYK", (150, 150), (0, 0, 0, 0)), "TIFF", icc_profile=red_cyan_profile())
    assert pixels(no_ink).min() >= 253


@pytest.mark.parametrize("inks", [(0, 200, 60, 20), (250, 10, 10, 0), (0, 0, 0, 180), (30, 60, 90, 120)])
def test_all_ways_to_store_inks_give_the_same_colours(inks: tuple[int, int, int, int]) -> None:
    expected = [(255 - ink) * (255 - inks[3]) / 255 for ink in inks[:3]]
    assert np.abs(pixels(save(Image.new("CMYK", (150, 150), inks), "TIFF")) - expected).max() <= 2
    for data in (cmyk_jpeg(inks), cmyk_jpeg(inks, adobe=False), cmyk_jpeg(inks, ycck=True)):
        assert Image.open(io.BytesIO(data)).mode == "CMYK"
        assert np.abs(pixels(data) - expected).max() <= 6


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile at all",
        wide_gamut_profile()[:200],
        wide_gamut_profile().replace(b"acsp", b"____"),
        red_cyan_profile(),
        grey_profile(1.0),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
)
def test_a_profile_that_is_damaged_or_of_something_else_is_ignored(profile: bytes) -> None:
    image = Image.new("RGB", (150, 150), (200, 80, 60))
    for kind in ("PNG", "TIFF"):
        assert pixels(save(image, kind, icc_profile=profile)).reshape(-1, 3).tolist() == [[200, 80, 60]] * 4096


def test_a_png_may_have_a_large_profile() -> None:
    large = wide_gamut_profile() + np.random.default_rng(0).bytes(3 << 20)
    image = Image.new("RGB", (150, 150), (200, 80, 60))
    with quiet_pillow():
        found = pixels(save(image, "PNG", icc_profile=large))
    assert np.abs(found - true_srgb((200, 80, 60))).max() <= 2


def test_a_profile_with_flipped_bytes_is_used_or_ignored() -> None:
    random = np.random.default_rng(0)
    good = np.frombuffer(wide_gamut_profile(), np.uint8)
    for profile in (good, np.frombuffer(red_cyan_profile(), np.uint8)):
        for _ in range(25):
            bad = profile.copy()
            bad[random.integers(0, len(bad), 6)] = random.integers(0, 256, 6)
            srgb_transform(bad.tobytes(), "RGB")
            srgb_transform(bad.tobytes(), "CMYK")


def test_srgb_under_any_name_changes_nothing(odd: Path) -> None:
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photos = [Image.open(io.BytesIO(path.read_bytes())) for path in odd.glob("mixed_wild/*.jp*g")]
    found = {photo.info.get("icc_profile") for photo in photos} - {None}
    assert len(found) >= 2
    for profile in (made, *found):
        assert srgb_transform(profile, "RGB") is None
    assert srgb_transform(wide_gamut_profile(), "RGB") is not None


def test_threads_share_a_transform() -> None:
    """Colours that change from pixel to pixel would show it, if threads mixed up their last ones."""
    transform = srgb_transform(wide_gamut_profile(), "RGB")
    assert transform is not None
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (200, 200, 3), np.uint8)) for _ in range(8)]
    expected = [np.asarray(ImageCms.applyTransform(image, transform)) for image in images]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            found = np.asarray(ImageCms.applyTransform(images[number], transform))
            if not np.array_equal(found, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def ramp(bits: int, channels: int) -> NDArray[np.uint16]:
    """A picture in 16-bit levels, [120, 150, channels]; each has a low byte that rounds nothing."""
    x, y = np.meshgrid(np.linspace(0, 1, 150), np.linspace(0, 1, 120))
    levels = np.stack([x, y, (x + y) / 2][:channels], -1) * 255
    return (levels.astype(np.uint16) << (bits - 8)) + 0x35


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_become_their_upper_8(channels: int) -> None:
    values = ramp(16, channels)
    expected = pixels(png((values >> 8).astype(np.uint8)))
    found = [pixels(png(values)), pixels(tiff_16(values)) if channels == 3 else None]
    if channels == 1:
        image = Image.fromarray(values[..., 0])
        found = [*found, *(pixels(save(image, kind)) for kind in ("TIFF", "PPM"))]
    for one in found:
        if one is not None:
            np.testing.assert_array_equal(one, expected)


def test_a_transparent_grey_of_16_bits_is_laid_over_the_background() -> None:
    values = np.full((120, 150, 1), 0x1234, np.uint16)
    values[:, 75:] = 0x8000
    found = pixels(png(values, png_chunk(b"tRNS", b"\x12\x34")))
    assert found[32, 8].tolist() == [255] * 3
    assert found[32, 56].tolist() == [128] * 3


def test_grey_and_alpha_of_16_bits() -> None:
    values = np.full((120, 120, 2), 0xFFFF, np.uint16)
    values[..., 0] = 0x4000
    assert np.abs(pixels(png(values)) - 64).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(picture, mode: str) -> None:
    grey = picture(2, mode="L")
    image = grey.convert("RGB").convert(mode)
    data = save(image, "TIFF" if mode == "CMYK" else "PNG")
    assert Image.open(io.BytesIO(data)).mode == mode
    found = pixels(data)
    assert found.shape == (64, 64, 3)
    tolerance = 40 if mode == "1" else 3
    assert np.abs(found - pixels(save(grey, "PNG"))).mean() < tolerance


@pytest.mark.parametrize(("background", "expected"), [("white", 255), ("black", 0), ("#404040", 64)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparency_is_laid_over_the_background(mode: str, background: str, expected: int) -> None:
    image = Image.new("RGBA", (128, 128), (200, 200, 200, 255))
    image.paste((10, 10, 10, 0), (64, 0, 128, 128))
    options = {}
    if mode == "P":
        image = image.convert("RGB").quantize(16)
        options = {"transparency": image.getpixel((100, 0))}
    elif mode in ("RGB", "L"):
        image = image.convert(mode)
        options = {"transparency": image.getpixel((100, 0))}
    else:
        image = image.convert(mode)
    found = pixels(save(image, "PNG", **options), replace(RECIPE, background=background))
    assert np.abs(found[32, 8] - 200).max() <= 1
    assert found[32, 56].tolist() == [expected] * 3


def test_a_palette_may_be_half_transparent() -> None:
    image = Image.new("P", (128, 128), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.paste(1, (64, 0, 128, 128))
    with quiet_pillow():
        found = pixels(save(image, "PNG", transparency=bytes((255, 128))))
    assert found[32, 8].tolist() == [200, 0, 0]
    assert np.abs(found[32, 56] - (127, 227, 127)).max() <= 1


def test_what_is_hidden_does_not_shine_through_at_the_edges() -> None:
    """Averaging colours without their alpha would draw a green line here."""
    image = Image.new("RGBA", (130, 130), (255, 255, 255, 255))
    image.paste((0, 255, 0, 0), (67, 0, 130, 130))
    assert pixels(save(image, "PNG")).min() >= 254


@pytest.mark.parametrize(
    ("kind", "bits", "number_format", "detail"),
    [
        (np.float32, 32, 3, "TIFF of floating point numbers"),
        (np.float64, 64, 3, "TIFF of unusual numbers or channels"),
        (np.uint32, 32, 1, "TIFF of 32-bit or signed numbers"),
        (np.int16, 16, 2, "TIFF of 32-bit or signed numbers"),
    ],
)
def test_numbers_that_are_no_colours_are_rejected_by_name(
    kind: type, bits: int, number_format: int, detail: str
) -> None:
    for photometric in (0, 1):
        values = np.ones((100, 100, 1), kind)
        error = rejection(tiff(values, bits, photometric, {339: number_format}))
        assert error.reason == "pixels not supported"
        assert error.detail.startswith((detail, "TIFF of unusual numbers"))
    assert rejection(save(Image.new("F", (100, 100)), "TIFF")).detail.startswith("TIFF of floating point numbers")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [(np.uint8, 1), (np.uint8, 8), (np.uint16, 16)])
def test_white_is_zero_if_a_tiff_says_so(kind: type, bits: int, compressed: bool) -> None:
    most = np.iinfo(kind).max
    values = np.full((96, 96, 1), most, kind)
    values[:, 48:] = 0
    stored = np.packbits(values, axis=1) if bits == 1 else values
    for photometric, left, right in ((1, 255, 0), (0, 0, 255)):
        data = tiff(stored, bits, photometric)
        if compressed:
            body = zlib.compress(stored.astype(np.dtype(kind).newbyteorder("<")).tobytes())
            body = body.ljust(stored.nbytes, b"\0")
            data = data[:14] + body + data[14 + stored.nbytes :]
            data = data.replace(struct.pack("<HHII", 259, 3, 1, 1), struct.pack("<HHII", 259, 3, 1, 8))
        found = pixels(data)
        assert (found[:, :28] == left).all()
        assert (found[:, 36:] == right).all()


def test_channels_of_16_bits_one_after_the_other_are_not_misread() -> None:
    values = np.zeros((100, 100, 3), np.uint16)
    assert rejection(tiff(values, 16, 2, {284: 2})).detail.startswith("16-bit TIFF, channel after channel")


def test_heic_of_a_phone_with_its_gamut(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (the extra `heic`)")
    image = Image.new("RGB", (150, 150), (200, 80, 60))
    buffer = io.BytesIO()
    heif.from_pillow(image).save(buffer, quality=100, icc_profile=wide_gamut_profile())
    assert np.abs(pixels(buffer.getvalue()) - true_srgb((200, 80, 60))).max() <= 8
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert reason(buffer.getvalue()) == "image format not supported"

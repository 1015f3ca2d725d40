import io
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from shard_tool.photo import PhotoError, Recipe, library_versions, make_sample, quiet_pillow, upright_square

RECIPE = Recipe(size=64, crop="center", encoding="png", quality=95)
Encoded = Callable[..., bytes]
Pixels = Callable[..., Image.Image]


def pixels(data: bytes, recipe: Recipe = RECIPE) -> np.ndarray[Any, Any]:
    return np.asarray(upright_square(data, recipe)).astype(np.int16)


def reason(data: bytes, recipe: Recipe = RECIPE) -> str:
    with quiet_pillow(), pytest.raises(PhotoError) as error:
        make_sample(data, recipe)
    return error.value.reason


def psnr(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF"])
def test_every_common_format_is_read(picture: Pixels, encoded: Encoded, kind: str) -> None:
    image = picture(1)
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    close = pixels(encoded(image, kind, **lossless)) - pixels(encoded(image, "PNG"))
    assert np.abs(close).mean() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(picture: Pixels, encoded: Encoded, mode: str) -> None:
    grey = picture(2, mode="L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 77)
        assert image.mode == "I;16"
    else:
        image = grey.convert("RGB").convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    assert Image.open(io.BytesIO(data)).mode == mode
    sample = upright_square(data, RECIPE)
    assert (sample.mode, sample.size) == ("RGB", (64, 64))
    tolerance = 40 if mode == "1" else 3
    assert np.abs(np.asarray(sample) - pixels(encoded(grey, "PNG"))).mean() < tolerance


def test_a_cmyk_jpeg_keeps_its_colours(picture: Pixels, encoded: Encoded) -> None:
    image = Image.new("RGB", (200, 200), (200, 40, 90))
    found = pixels(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found - np.array([200, 40, 90])).max() < 6


def test_transparency_is_laid_over_white(encoded: Encoded) -> None:
    image = Image.new("RGBA", (128, 128), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (64, 0, 128, 128))
    found = pixels(encoded(image, "PNG"))
    assert found[32, 8].tolist() == [255, 0, 0]
    assert found[32, 56].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_colour_is_laid_over_white(encoded: Encoded, mode: str) -> None:
    image = Image.new("RGB", (128, 128), (10, 10, 10))
    image = image.quantize() if mode == "P" else image.convert(mode)
    transparent = (10, 10, 10) if mode == "RGB" else image.getpixel((0, 0))
    assert pixels(encoded(image, "PNG", transparency=transparent)).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", ["center", "stretch", 151])
def test_photos_stand_upright(picture: Pixels, encoded: Encoded, orientation: int, crop: int | str) -> None:
    image = picture(3, (200, 260))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    recipe = Recipe(64, crop, "png", 95)
    # Pillow rounds between its horizontal and its vertical pass.
    assert np.abs(pixels(data, recipe) - pixels(encoded(upright, "PNG"), recipe)).max() <= 3


def test_nothing_but_pixels_survives(picture: Pixels, encoded: Encoded) -> None:
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    data = encoded(picture(4), "JPEG", exif=exif, comment=b"SecretComment", icc_profile=b"SecretProfile" * 20)
    for encoding in ("jpeg", "png", "webp", "raw"):
        sample = make_sample(data, Recipe(64, "center", encoding, 95))
        assert b"Secret" not in sample
        assert b"Exif" not in sample


def test_damaged_metadata_costs_no_photo(picture: Pixels, encoded: Encoded) -> None:
    data = encoded(picture(4), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage")
    with quiet_pillow():
        assert len(make_sample(data, RECIPE)) > 0


def test_only_the_first_frame_counts(picture: Pixels, encoded: Encoded) -> None:
    frames = [picture(5), picture(6)]
    for kind in ("GIF", "WEBP", "MPO", "TIFF"):
        moving = encoded(frames[0].copy(), kind, save_all=True, append_images=[frames[1].copy()])
        assert np.abs(pixels(moving) - pixels(encoded(frames[0], "PNG"))).mean() < 6


def test_the_content_decides_and_not_the_name(odd: Path) -> None:
    for path in (*odd.glob("webp_named_jpg/*"), *odd.glob("png_named_jpg_rgba/*")):
        assert upright_square(path.read_bytes(), RECIPE).size == (64, 64)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty file"),
        (b"Dear diary, this is no picture.", "not an image"),
        (bytes(500), "not an image"),
        (b"\0\5\x16\7" + bytes(200), "not an image"),
        (b"\0\0\0\x18ftypheic" + bytes(200), "image format not supported"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "not an image"),
        (png_header(30_000, 30_000), "too many pixels"),
        (png_header(200, 200), "damaged image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 200 200\n", "not an image"),
    ],
)
def test_every_rejection_has_its_reason(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_a_photo_that_was_cut_off_is_rejected(picture: Pixels, encoded: Encoded) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = encoded(picture(7), kind)
        assert reason(data[: len(data) // 2]) in ("damaged image", "not an image"), kind


def test_no_damage_is_more_than_a_rejection(picture: Pixels, encoded: Encoded) -> None:
    random = np.random.default_rng(0)
    with quiet_pillow():
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
            good = np.frombuffer(encoded(picture(8), kind), np.uint8)
            for _ in range(40):
                bad = good.copy()
                bad[random.integers(0, len(bad), 12)] = random.integers(0, 256, 12)
                try:
                    make_sample(bad.tobytes(), RECIPE)
                except PhotoError as error:
                    assert error.reason  # noqa: PT017 (either outcome is right)


def test_small_photos_are_never_enlarged(picture: Pixels, encoded: Encoded) -> None:
    small = encoded(picture(9, (63, 200)), "PNG")
    assert reason(small) == "smaller than the target"
    assert reason(small, Recipe(64, "stretch", "png", 95)) == "smaller than the target"
    assert reason(encoded(picture(9, (100, 139)), "PNG"), Recipe(64, 140, "png", 95)) == "smaller than the crop"
    assert len(make_sample(encoded(picture(9, (64, 64)), "PNG"), RECIPE)) > 0


def test_the_crop_is_the_centre(encoded: Encoded) -> None:
    image = Image.new("RGB", (300, 200), "black")
    image.paste("white", (100, 50, 200, 150))
    data = encoded(image, "PNG")
    # Antialiasing mixes a little of what lies beyond the crop into its outermost pixels.
    assert pixels(data, Recipe(50, 100, "png", 95))[2:-2, 2:-2].min() > 250
    assert pixels(data, Recipe(50, "center", "png", 95))[:, 0].max() == 0
    stretched = pixels(data, Recipe(60, "stretch", "png", 95))
    assert stretched[30, 30].tolist() == [255] * 3
    assert stretched[30, 15].tolist() == [0] * 3


@pytest.mark.parametrize("size", [64, 128])
def test_the_scaled_decode_is_within_50_db_of_the_full_one(portraits: Path, encoded: Encoded, size: int) -> None:
    recipe = Recipe(size, "center", "png", 95)
    values = [
        psnr(pixels(path.read_bytes(), recipe), pixels(encoded(Image.open(path).convert("RGB"), "PPM"), recipe))
        for path in sorted(portraits.rglob("*.jpg"))[:900:30]
    ]
    assert min(values) > 48
    assert np.mean(values) > 50


def test_the_scaled_decode_leaves_the_margin(
    picture: Pixels, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def spy(self: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        seen.append(self.size)
        return resize(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    for width, height in ((600, 600), (1023, 1200), (511, 512), (512, 2000), (178, 218)):
        upright_square(encoded(picture(0, (width, height)), "JPEG"), RECIPE)
        assert min(seen[-1]) >= min(2 * RECIPE.size, min(width, height))
        assert min(seen[-1]) <= 4 * RECIPE.size


def test_each_encoding_holds_the_image(picture: Pixels, encoded: Encoded) -> None:
    data = encoded(picture(10), "PNG")
    exact = pixels(data)
    samples = {kind: make_sample(data, Recipe(64, "center", kind, 95)) for kind in ("jpeg", "png", "webp", "raw")}
    np.testing.assert_array_equal(np.load(io.BytesIO(samples.pop("raw"))), exact)
    for kind, sample in samples.items():
        image = Image.open(io.BytesIO(sample))
        assert (image.format, image.mode, image.size) == (kind.upper(), "RGB", (64, 64))
        assert np.abs(np.asarray(image) - exact).mean() < 2
    assert Image.open(io.BytesIO(samples["jpeg"])).layer[1][1:3] == (1, 1)  # type: ignore[attr-defined]


def test_big_photos_are_decoded_one_at_a_time(
    picture: Pixels, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard_tool.photo._BIG_PIXELS", 1000)
    data = encoded(picture(0, (400, 400)), "PNG")
    inside, most = 0, 0
    load = Image.Image.resize

    def spy(self: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return load(self, *arguments, **options)
        finally:
            inside -= 1

    monkeypatch.setattr(Image.Image, "resize", spy)
    threads = [threading.Thread(target=make_sample, args=(data, RECIPE)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_versions_name_what_decides_about_the_bytes() -> None:
    assert {"pillow", "libjpeg-turbo"} <= set(library_versions())

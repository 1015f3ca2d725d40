import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shard_tool.image.formats import PhotoError, open_image
from shard_tool.image.photo import quiet_pillow
from tests.shard_tool.pictures import pixels, png_header, reason, save, tiff_16


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF"])
def test_every_common_format_is_read(picture, kind: str) -> None:
    image = picture(1)
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    close = pixels(save(image, kind, **lossless)) - pixels(save(image, "PNG"))
    assert np.abs(close).mean() < 4


@pytest.mark.parametrize("options", [{"progressive": True}, {"progressive": True, "quality": 100, "subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_progressive_jpeg_is_the_same_picture(picture, mode: str, options: dict[str, object]) -> None:
    image = picture(1, (700, 600), mode=mode)
    assert Image.open(io.BytesIO(save(image, "JPEG", **options))).info["progressive"]
    assert np.abs(pixels(save(image, "JPEG", **options)) - pixels(save(image, "PNG"))).mean() < 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "MPO", "TIFF"])
def test_only_the_first_frame_counts(picture, kind: str) -> None:
    first, second = picture(5), picture(6)
    moving = save(first.copy(), kind, save_all=True, append_images=[second.copy()])
    assert Image.open(io.BytesIO(moving)).n_frames == 2  # type: ignore[attr-defined]
    assert np.abs(pixels(moving) - pixels(save(first, "PNG"))).mean() < 6


def test_the_content_decides_and_not_the_name(odd: Path) -> None:
    for path in (*odd.glob("webp_named_jpg/*"), *odd.glob("png_named_jpg_rgba/*")):
        assert pixels(path.read_bytes()).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty file"),
        (b"Dear diary, this is no picture.", "not an image"),
        (bytes(500), "not an image"),
        (b"\0\5\x16\7" + bytes(200), "not an image"),
        (b"\0\0\0\x18ftypisom" + bytes(200), "image format not supported"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200), "image format not supported"),
        (b"8BPS\0\1" + bytes(200), "image format not supported"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "damaged image"),
        (b"\x89PNG\r\n\x1a\n", "damaged image"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "damaged image"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "not an image"),
        (png_header(30_000, 30_000), "too many pixels"),
        (png_header(200, 200), "damaged image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 200 200\n", "not an image"),
    ],
)
def test_every_rejection_has_its_reason(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_heic_without_its_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(PhotoError) as error:
        open_image(b"\0\0\0\x18ftypheic" + bytes(200))
    assert error.value.reason == "image format not supported"
    assert "pip install 'leanstream[heic]'" in error.value.detail


def heic(image: Image.Image, **options: object) -> bytes:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (the extra `heic`)")
    buffer = io.BytesIO()
    heif.from_pillow(image).save(buffer, **options)
    return buffer.getvalue()


def test_heic_is_read_with_its_extra(picture) -> None:
    image = picture(3)
    assert np.abs(pixels(heic(image, quality=95)) - pixels(save(image, "PNG"))).mean() < 3


def test_damaged_heic_is_rejected(picture) -> None:
    data = heic(picture(3))
    with quiet_pillow():
        for cut in (20, 200, len(data) // 2):
            assert reason(data[:cut]) == "damaged image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "PPM"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_a_photo_that_was_cut_off_is_rejected(picture, kind: str, share: float) -> None:
    data = save(picture(7), kind)
    assert reason(data[: int(len(data) * share)]) == "damaged image"


def test_pillow_says_nothing_of_damaged_files(caplog: pytest.LogCaptureFixture) -> None:
    strange = bytearray(tiff_16(np.zeros((80, 80, 3), np.uint16)))
    where = strange.index(struct.pack("<HHII", 277, 3, 1, 3)) + 8
    strange[where] = 200
    assert reason(bytes(strange)) == "damaged image"
    assert not caplog.records


def test_pillow_is_left_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with quiet_pillow():
        assert Image.MAX_IMAGE_PIXELS is None
    assert before == Image.MAX_IMAGE_PIXELS

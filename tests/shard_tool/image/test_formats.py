import io
import logging
import struct
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from shard_tool.image.formats import looks_like_image, open_image, quiet_pillow
from shard_tool.image.recipe import PhotoError
from tests.shard_tool.pictures import pixels, png_header, reason, rejection, save, tiff, tiff_16


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


def small(photometric: int = 2, tags: dict[int, int] | None = None) -> bytes:
    return tiff(np.zeros((80, 80, 3 if photometric == 2 else 1), np.uint8), 8, photometric, tags)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<!DOCTYPE html>\n<html lang='en'>", "a web page (HTML)"),
        (b"\n <!-- saved from --> <HTML>", "a web page (HTML)"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- made by hand -->\n<svg>", "SVG"),
        (b"<?xml version='1.0'?><rdf>", "XML"),
        (b"%PDF-1.7\n", "PDF"),
        (b"BMW, M3, 1987 and other cars", "text, it begins with 'BMW, M3"),
        ("Ein Gruß aus Übersee".encode(), "text, it begins with 'Ein Gruß"),
        (b"PK\3\4" + bytes(30), "a zip archive"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\xff\x4f\xff\x51" + bytes(40), "JPEG 2000"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(200), "a camera's raw file (CR2)"),
        (b"\0\0\0\x18ftypcrx " + bytes(200), "a camera's raw file (CR3)"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(200), "a camera's raw file (RAF)"),
        (b"IIRO\x08\0\0\0" + bytes(200), "a camera's raw file (ORF)"),
        (b"IIU\0\x18\0\0\0" + bytes(200), "a camera's raw file (RW2)"),
        (small(tags={50706: 0x401}), "a camera's raw file (DNG)"),
        (small(tags={254: 1}), "a camera's raw file (TIFF)"),
        (small(photometric=32803), "a camera's raw file (TIFF)"),
        (save(Image.new("RGB", (80, 80)), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "12-bit JPEG"),
    ],
)
def test_what_is_not_decoded_is_called_by_its_name(data: bytes, name: str) -> None:
    assert rejection(data).detail.startswith(name)


def test_a_raw_file_is_known_by_the_pictures_inside_it() -> None:
    """As in a NEF or ARW: what is read first is a thumbnail, and the sensor's pixels have their own directory."""
    inner = struct.pack("<HHHII", 1, 262, 3, 1, 32803) + bytes(4)
    place = len(small(tags={330: 0}))
    assert rejection(small(tags={330: place}) + inner).detail.startswith("a camera's raw file")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF"])
def test_pictures_are_known_by_their_first_bytes(picture, kind: str) -> None:
    for mode in ("RGB", "L"):
        assert looks_like_image(save(picture(1, mode=mode), kind)[:32]).upper() == kind


@pytest.mark.parametrize(
    "start", [b"", b"\xff", b"BMW is a car, and this is a text", b"P5 is a word", bytes(32), b"%PDF", b"PK\3\4"]
)
def test_other_files_do_not_look_like_images(start: bytes) -> None:
    assert looks_like_image(start) == ""


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


def pillow_settings() -> tuple[object, ...]:
    return Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, logging.getLogger("PIL").level, warnings.filters[:]


def test_pillow_is_quiet_as_long_as_any_thread_wants_it() -> None:
    """Two that overlap, neither inside the other: the first to come leaves first."""
    before, second_is_in, first_is_out = pillow_settings(), threading.Event(), threading.Event()
    seen: list[tuple[object, ...]] = []

    def second() -> None:
        with quiet_pillow():
            second_is_in.set()
            first_is_out.wait(60)
            seen.append(pillow_settings())

    thread = threading.Thread(target=second)
    with quiet_pillow():
        quiet = pillow_settings()
        thread.start()
        assert second_is_in.wait(60)
    first_is_out.set()
    thread.join()
    assert seen == [quiet] != [before]
    assert pillow_settings() == before


def test_the_limit_of_pillow_against_bombs_always_holds() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with quiet_pillow():
        assert before == Image.MAX_IMAGE_PIXELS is not None

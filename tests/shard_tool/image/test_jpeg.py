import io
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shard_tool.image import jpeg
from shard_tool.image.photo import MARGINS, Recipe, make_sample, quiet_pillow, upright_square
from shard_tool.image.recipe import Frame
from tests.shard_tool.conftest import DATA
from tests.shard_tool.pictures import RECIPE, cmyk_jpeg, pixels, psnr, save, wide_gamut_profile, with_orientation


def sizes_decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Height and width of every JPEG that is decoded from now on."""
    seen = []
    decode = jpeg.simplejpeg.decode_jpeg

    def spy(*arguments, **options):
        found = decode(*arguments, **options)
        seen.append(found.shape[:2])
        return found

    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", spy)
    return seen


@pytest.mark.skipif(jpeg.Resizer is None, reason="cykooz-resizer is not installed on this platform")
class TestTheFastWay:
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}])
    @pytest.mark.parametrize("size", [(600, 600), (511, 333), (178, 218), (1301, 700)])
    def test_it_agrees_with_the_resampler_of_pillow(self, picture, monkeypatch, mode, options, size) -> None:
        data = save(picture(3, size, mode=mode), "JPEG", **options)
        for crop in ("center", "pad", "stretch", 150):
            recipe = replace(RECIPE, crop=crop)
            seen = sizes_decoded(monkeypatch)
            fast = pixels(data, recipe)
            assert len(seen) == 1
            monkeypatch.setattr(jpeg, "Resizer", None)
            slow = pixels(data, recipe)
            monkeypatch.undo()
            assert np.abs(fast - slow).max() <= 2

    def test_it_leaves_the_margin(self, monkeypatch) -> None:
        seen = sizes_decoded(monkeypatch)
        for width, height in ((600, 600), (1023, 1200), (511, 512), (512, 2000), (178, 218), (256, 256), (4000, 3000)):
            pixels(save(Image.new("RGB", (width, height)), "JPEG"))
            scale = round(height / seen[-1][0])
            assert seen[-1] == (-(-height // scale), -(-width // scale))
            assert scale == 1 or min(width, height) / scale >= MARGINS[scale] * 64
            larger = [other for other, margin in MARGINS.items() if other > scale]
            assert all(min(width, height) / other < MARGINS[other] * 64 for other in larger)

    @pytest.mark.parametrize("size", [(300, 200), (65500, 3)])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"hello"}, {"restart_marker_rows": 1}])
    def test_a_plain_header_is_read_without_pillow(self, size, options) -> None:
        for mode in ("RGB", "L"):
            data = save(Image.new(mode, size), "JPEG", **options)
            header = jpeg.read_header(data)
            assert header is not None
            assert header.plain
            assert (header.width, header.height, header.progressive) == (*size, "progressive" in options)

    def test_whoever_says_more_than_pixels_has_no_plain_header(self, picture) -> None:
        image = picture(0)
        others = [
            save(image, "JPEG", exif=with_orientation(6)),
            save(image, "JPEG", icc_profile=wide_gamut_profile()),
            save(image, "JPEG", xmp=b"<x/>"),
            cmyk_jpeg((1, 2, 3, 4)),
            cmyk_jpeg((1, 2, 3, 4), adobe=False),
            save(image, "PNG"),
            save(image, "MPO", save_all=True, append_images=[picture(1)]),
        ]
        headers = [jpeg.read_header(data) for data in others]
        assert not any(header and header.plain for header in headers)

    def test_the_beginnings_of_a_file_have_its_header_or_none(self, picture) -> None:
        data = save(picture(0), "JPEG", comment=b"c" * 30)
        headers = [jpeg.read_header(data[:length]) for length in range(700)]
        found = [header and (header.width, header.height, header.plain) for header in headers]
        assert set(found) == {None, (200, 240, True)}
        assert headers[-1] is not None
        assert found == sorted(found, key=lambda header: header is not None)

    def test_exact_decodes_every_pixel(self, picture, monkeypatch) -> None:
        data = save(picture(0, (600, 610)), "JPEG")
        seen = sizes_decoded(monkeypatch)
        exact = pixels(data, replace(RECIPE, exact=True))
        assert seen == [(610, 600)]
        whole = pixels(save(Image.open(io.BytesIO(data)), "PNG"))
        assert np.abs(exact - whole).max() <= 2

    def test_large_photos_are_not_copied_for_it(self, picture, monkeypatch) -> None:
        def fail(*_: object) -> None:
            raise AssertionError("resized there")

        data = save(picture(0, (300, 300)), "JPEG")
        fast = pixels(data)
        monkeypatch.setattr(jpeg, "MOST_PIXELS", 1000)
        monkeypatch.setattr(jpeg, "resize", fail)
        assert np.abs(pixels(data) - fast).max() <= 2

    def test_every_processor_gives_the_same_bytes(self) -> None:
        from cykooz_resizer import CpuExtensions, Resizer

        random = np.random.default_rng(0)
        plain = Resizer()
        plain.cpu_extensions = CpuExtensions.none
        for height, width, size in ((150, 150, 64), (300, 300, 128), (218, 178, 64), (37, 91, 64)):
            image = random.integers(0, 256, (height, width, 3), np.uint8)
            side = min(height, width)
            left, top = (width - side) // 2, (height - side) // 2
            frame = Frame(left, top, left + side, top + side, size, size)
            fast = jpeg.resize(image, frame, 1)
            jpeg._thread.resizer, ours = plain, jpeg._thread.resizer
            slow = jpeg.resize(image, frame, 1)
            jpeg._thread.resizer = ours
            np.testing.assert_array_equal(fast, slow)

    def test_threads_do_not_disturb_each_other(self, picture) -> None:
        files = [save(picture(number, (200 + 30 * number, 300)), "JPEG") for number in range(6)]
        recipe = replace(RECIPE, encode="jpeg")
        expected = [make_sample(data, recipe) for data in files]
        wrong = []

        def work(number: int) -> None:
            for turn in range(30):
                which = (number + turn) % len(files)
                if make_sample(files[which], recipe) != expected[which]:
                    wrong.append(which)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def fidelities(folder: Path, size: int, most: int) -> list[float]:
    """PSNR between the scaled and the full decode of up to `most` photos; 99 dB where both are one."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    values = []
    for path in paths[:: -(-len(paths) // most)]:
        data = path.read_bytes()
        scaled, full = (
            np.asarray(upright_square(data, Recipe(size, "center", "png", 95, upscale=True, exact=exact)))
            for exact in (False, True)
        )
        values.append(psnr(scaled, full))
    return values


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize(
    "folder", ["gan512", "ccby_large", "celeba", "utk200", "anime96", "odd/gray350", "odd/mixed_wild"]
)
def test_the_scaled_decode_is_within_50_db_of_the_full_one(folder: str, size: int) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip(f"the photos of {DATA / folder} are not on this machine")
    with quiet_pillow():
        values = fidelities(DATA / folder, size, 40)
    assert np.mean(values) >= 50
    if folder in ("gan512", "celeba", "utk200", "odd/gray350"):  # Portraits only; the others hold landscapes too.
        assert min(values) >= 50

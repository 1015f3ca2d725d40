import io
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from shard_tool.image.photo import library_versions, make_sample
from tests.shard_tool.pictures import RECIPE, pixels, save, wide_gamut_profile, with_orientation

ENCODINGS = ("jpeg", "png", "webp", "raw")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_nothing_but_pixels_survives(picture, encoding: str, kind: str) -> None:
    exif = with_orientation(6)
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 29: "SecretPlace"})
    profile = wide_gamut_profile().replace(b"none", b"Secr")
    options = {"JPEG": {"comment": b"SecretComment"}, "TIFF": {"description": "SecretComment"}}.get(kind, {})
    data = save(picture(4), kind, exif=exif, icc_profile=profile, xmp=b"<SecretXmp/>", **options)
    assert b"Secr" in data
    sample = make_sample(data, replace(RECIPE, encode=encoding))
    for trace in (
        b"Secr",
        b"Exif",
        b"EXIF",
        b"eXIf",
        b"ICC",
        b"iCCP",
        b"XMP",
        b"adobe",
        b"Adobe",
        b"tEXt",
        b"\xff\xfe",
    ):
        if trace != b"\xff\xfe" or encoding == "jpeg":
            assert trace not in sample[:600], trace
    if encoding != "raw":
        image = Image.open(io.BytesIO(sample))
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "loop", "background"}
        assert not image.getexif()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_each_encoding_holds_the_image(picture, kind: str) -> None:
    data = save(picture(10), kind)
    exact = pixels(data)
    samples = {encoding: make_sample(data, replace(RECIPE, encode=encoding)) for encoding in ENCODINGS}
    np.testing.assert_array_equal(np.load(io.BytesIO(samples.pop("raw"))), exact)
    np.testing.assert_array_equal(Image.open(io.BytesIO(samples["png"])), exact)
    for encoding, sample in samples.items():
        image = Image.open(io.BytesIO(sample))
        assert (image.format, image.mode, image.size) == (encoding.upper(), "RGB", (64, 64))
        assert np.abs(np.asarray(image) - exact).mean() < 2


@pytest.mark.parametrize("subsampling", ["444", "420"])
def test_a_jpeg_keeps_as_much_colour_as_it_is_told_to(picture, subsampling: str) -> None:
    sample = make_sample(save(picture(10), "PNG"), replace(RECIPE, encode="jpeg", subsampling=subsampling))
    assert simplejpeg.decode_jpeg_header(sample) == (64, 64, "YCbCr", subsampling)


@pytest.mark.parametrize("encoding", ["jpeg", "webp"])
def test_quality_decides_about_the_size(picture, encoding: str) -> None:
    data = save(picture(10), "PNG")
    sizes = [len(make_sample(data, replace(RECIPE, encode=encoding, quality=quality))) for quality in (10, 60, 95, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_the_versions_name_what_decides_about_the_bytes() -> None:
    assert {"pillow", "libjpeg-turbo", "simplejpeg", "littlecms"} <= set(library_versions())
    assert all(library_versions().values())

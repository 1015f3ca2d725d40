import threading
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shard_tool.image import jpeg, photo
from shard_tool.image.photo import make_sample, quiet_pillow, upright_square
from tests.shard_tool.pictures import RECIPE, png_header, reason, save, wide_gamut_profile


def test_damaged_metadata_costs_no_photo(picture) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = save(picture(4), kind, exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage", icc_profile=b"garbage")
        with quiet_pillow():
            assert upright_square(data, RECIPE).size == (64, 64)


def test_a_photo_is_too_large_before_a_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.core, "new", fail)
    monkeypatch.setattr(Image.core, "fill", fail)
    assert reason(png_header(30_000, 30_000)) == "too many pixels"
    assert reason(png_header(10_001, 10_000)) == "too many pixels"


@pytest.mark.parametrize(
    ("kind", "place", "name", "options"),
    [
        ("PNG", photo, "averageable", {}),
        ("JPEG", jpeg, "decode", {}),
        ("JPEG", jpeg, "decode", {"icc_profile": wide_gamut_profile()}),
    ],
)
def test_big_photos_are_decoded_one_at_a_time(
    picture, monkeypatch: pytest.MonkeyPatch, kind: str, place: ModuleType, name: str, options: dict[str, object]
) -> None:
    monkeypatch.setattr("shard_tool.image.photo._BIG_PIXELS", 1000)
    data = save(picture(0, (400, 400)), kind, **options)
    inside, most = 0, 0
    work = getattr(place, name)

    def spy(*arguments: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return work(*arguments)
        finally:
            inside -= 1

    monkeypatch.setattr(place, name, spy)
    threads = [threading.Thread(target=make_sample, args=(data, RECIPE)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.parametrize("name", ["crop", "quality", "subsampling", "background", "upscale", "exact"])
def test_every_setting_reaches_the_sample(picture, name: str) -> None:
    """Each changes the bytes of some photo, and so belongs to the recipe."""
    recipe = replace(RECIPE, encode="jpeg", crop="pad")
    value = {"crop": "center", "quality": 50, "subsampling": "420", "background": "black"}.get(name, True)
    data = save(picture(1, (50, 40) if name == "upscale" else (600, 500)), "JPEG")
    if name == "upscale":
        assert reason(data, recipe) == "smaller than the target"
        assert make_sample(data, replace(recipe, upscale=True))
    else:
        assert make_sample(data, recipe) != make_sample(data, replace(recipe, **{name: value}))


def test_a_sample_does_not_depend_on_what_was_made_before(picture) -> None:
    files = [save(picture(number, (200 + number, 300)), kind) for number, kind in enumerate(("JPEG", "PNG", "WEBP"))]
    first = [make_sample(data, RECIPE) for data in files]
    assert [make_sample(data, RECIPE) for data in reversed(files)] == first[::-1]
    assert len({bytes(np.array(upright_square(data, RECIPE))) for data in files}) == 3

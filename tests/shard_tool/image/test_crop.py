from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from shard_tool.image.photo import upright_square
from shard_tool.image.recipe import PhotoError, Recipe, frame_of
from tests.shard_tool.pictures import RECIPE, pixels, reason, rejection, save, stored_as, with_orientation


def landmarks(width: int, height: int) -> NDArray[np.uint8]:
    """A picture of which every part can be told: smooth, and different in each corner."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.rint(np.stack([x, y, (1 - x) * y], -1) * 255).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", ["center", "stretch", "pad", 151])
@pytest.mark.parametrize("size", [(200, 260), (261, 200), (700, 500)])
def test_photos_stand_upright(orientation: int, crop: int | str, size: tuple[int, int]) -> None:
    upright = landmarks(*size)
    stored = Image.fromarray(np.ascontiguousarray(stored_as(upright, orientation)))
    recipe = replace(RECIPE, crop=crop, background="#ff00ff")
    truth = pixels(save(Image.fromarray(upright), "PNG"), recipe)
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 100, "subsampling": 0}), ("TIFF", {})):
        found = pixels(save(stored, kind, exif=with_orientation(orientation), **options), recipe)
        difference = np.abs(found - truth)
        # The horizontal pass rounds before the vertical one; JPEG rounds too, and rings at the edge of the padding.
        assert difference.max() <= (4 if kind != "JPEG" else 12), kind
        assert difference.mean() < 1, kind


@pytest.mark.parametrize("crop", ["center", 64])
@pytest.mark.parametrize("size", [(65, 64), (64, 65), (64, 67), (91, 64)])
def test_a_crop_of_the_samples_size_copies_whole_pixels(size: tuple[int, int], crop: int | str) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    left, top = (size[0] - 64) // 2, (size[1] - 64) // 2
    found = pixels(save(Image.fromarray(photo), "PNG"), replace(RECIPE, crop=crop))
    np.testing.assert_array_equal(found, photo[top : top + 64, left : left + 64])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(65, 64), (64, 69), (200, 301), (700, 601)])
def test_the_centre_of_a_turned_photo_is_off_by_a_pixel_at_most(orientation: int, size: tuple[int, int]) -> None:
    """In a picture whose levels are the places of its pixels."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    upright = np.stack([x, y, x], -1) * 255 / max(size)
    stored = np.ascontiguousarray(stored_as(np.rint(upright).astype(np.uint8), orientation))
    found = pixels(save(Image.fromarray(stored), "PNG", exif=with_orientation(orientation)))
    middle = found[24:40, 24:40, :2].mean(axis=(0, 1)) * max(size) / 255
    assert np.abs(middle - (np.array(size) - 1) / 2).max() <= 1


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    image = Image.fromarray(landmarks(200, 200))
    turned = save(image, "JPEG", exif=with_orientation(orientation))
    np.testing.assert_array_equal(pixels(turned), pixels(save(image, "JPEG")))


def test_the_crop_is_the_centre() -> None:
    image = Image.new("RGB", (300, 200), "black")
    image.paste("white", (100, 50, 200, 150))
    data = save(image, "PNG")
    # Antialiasing mixes a little of what lies beyond the crop into its outermost pixels.
    assert pixels(data, Recipe(50, 100, "png", 95))[2:-2, 2:-2].min() > 250
    assert pixels(data, Recipe(50, "center", "png", 95))[:, 0].max() == 0
    stretched = pixels(data, Recipe(60, "stretch", "png", 95))
    assert stretched[30, 30].tolist() == [255] * 3
    assert stretched[30, 15].tolist() == [0] * 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("size", "bars"), [((300, 200), (0, 10)), ((200, 300), (10, 0)), ((200, 200), (0, 0))])
def test_padding_shows_the_whole_photo(kind: str, size: tuple[int, int], bars: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 0, 0))
    found = pixels(save(image, kind, quality=100), Recipe(60, "pad", "png", 95, background="#0000c8"))
    across, down = bars
    photo = found[down : 60 - down, across : 60 - across]
    assert np.abs(photo - (200, 0, 0)).max() <= 3
    around = np.ones((60, 60), bool)
    around[down : 60 - down, across : 60 - across] = False
    assert (found[around] == (0, 0, 200)).all()


def test_padding_a_thin_line_leaves_a_pixel_of_it() -> None:
    found = pixels(save(Image.new("RGB", (400, 2), "white"), "PNG"), Recipe(64, "pad", "png", 95, background="black"))
    assert (found.max(axis=(1, 2)) == 255).sum() == 1


def test_small_photos_are_never_enlarged_unasked() -> None:
    small = save(Image.fromarray(landmarks(63, 200)), "PNG")
    assert reason(small) == "smaller than the target"
    assert reason(small, replace(RECIPE, crop="stretch")) == "smaller than the target"
    assert upright_square(small, replace(RECIPE, crop="pad")).size == (64, 64)
    assert reason(save(Image.new("RGB", (63, 20)), "PNG"), replace(RECIPE, crop="pad")) == "smaller than the target"
    assert reason(save(Image.new("RGB", (100, 139)), "PNG"), replace(RECIPE, crop=140)) == "smaller than the crop"
    assert upright_square(save(Image.new("RGB", (64, 64)), "PNG"), RECIPE).size == (64, 64)


@pytest.mark.parametrize("crop", ["center", "pad", "stretch", 80])
def test_photos_below_the_least_size_are_rejected(crop: int | str) -> None:
    recipe = replace(RECIPE, crop=crop, upscale=True, min_size=90)
    for kind in ("PNG", "JPEG"):
        error = rejection(save(Image.new("RGB", (300, 89)), kind), recipe)
        assert (error.reason, error.detail) == ("smaller than the minimum", "300x89, the shorter side must have 90")
        assert upright_square(save(Image.new("RGB", (90, 300)), kind), recipe).size == (64, 64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_small_photos_are_enlarged_on_request(kind: str) -> None:
    small = landmarks(32, 40)
    recipe = replace(RECIPE, upscale=True)
    data = save(Image.fromarray(small), kind, quality=100)
    truth = landmarks(64, 80)[8:72]
    assert np.abs(pixels(data, recipe) - truth).mean() < 4
    assert np.abs(pixels(data, replace(recipe, crop=20)) - pixels(data, recipe)).mean() > 4
    assert reason(data, replace(recipe, crop=33)) == "smaller than the crop"
    assert upright_square(save(Image.new("RGB", (1, 1)), kind), recipe).size == (64, 64)


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300), st.sampled_from(["center", "pad", "stretch", 300])
)
def test_a_frame_lies_in_the_centre_and_commutes_with_turning(
    width: int, height: int, size: int, crop: int | str
) -> None:
    recipe = Recipe(size, crop, "png", 95)
    try:
        frame = frame_of(width, height, recipe)
    except PhotoError:
        with pytest.raises(PhotoError):
            frame_of(height, width, recipe)
        return
    turned = frame_of(height, width, recipe)
    assert (frame.left, frame.right, frame.width) == (turned.top, turned.bottom, turned.height)
    assert (frame.top, frame.bottom, frame.height) == (turned.left, turned.right, turned.width)
    assert 0 <= frame.left <= width - frame.right <= frame.left + 1
    assert 0 <= frame.top <= height - frame.bottom <= frame.top + 1
    assert max(frame.width, frame.height) == size
    assert frame.shrink >= 1 or (crop == "pad" and min(frame.width, frame.height) == 1)

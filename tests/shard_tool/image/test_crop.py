from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from shard_tool.image.crop import frame_of
from shard_tool.image.formats import PhotoError
from shard_tool.image.photo import upright_square
from shard_tool.image.recipe import Recipe
from tests.shard_tool.pictures import RECIPE, pixels, reason, save, stored_as, with_orientation


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
    assert frame.left == width - frame.right >= 0
    assert frame.top == height - frame.bottom >= 0
    assert max(frame.width, frame.height) == size
    assert frame.shrink >= 1 or (crop == "pad" and min(frame.width, frame.height) == 1)

from dataclasses import replace

import pytest

from pipeline.errors import UserError
from shard_tool.image.recipe import Recipe

RECIPE = Recipe(64, "center", "jpeg", 95)
OTHERS = {
    "size": 32,
    "crop": "pad",
    "encode": "webp",
    "quality": 90,
    "subsampling": "420",
    "background": "black",
    "upscale": True,
    "exact": True,
    "min_size": 65,
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_setting_is_part_of_the_description(name: str) -> None:
    assert replace(RECIPE, **{name: OTHERS[name]}).describe() != RECIPE.describe()
    assert set(OTHERS) == set(RECIPE.__dataclass_fields__)


def test_settings_that_make_equal_samples_are_described_alike() -> None:
    assert replace(RECIPE, background="#FFFFFF").describe() == RECIPE.describe()
    for encoding in ("png", "raw"):
        lossless = replace(RECIPE, encode=encoding)
        described = lossless.describe()
        assert (described["quality"], described["subsampling"]) == (None, None)
    assert replace(RECIPE, crop="none").describe() == replace(RECIPE, crop="stretch").describe()
    for crop, least in (("center", 64), ("stretch", 64), (100, 100), ("pad", 1)):
        recipe = replace(RECIPE, crop=crop)
        assert replace(recipe, min_size=least).describe() == recipe.describe()
        assert replace(recipe, min_size=least + 1).describe() != recipe.describe()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": 0}, "size must be from 1 to 4,096 pixels; got 0"),
        ({"size": 100_000, "upscale": True}, "size must be from 1 to 4,096 pixels; got 100,000"),
        ({"min_size": -1}, "min-size must be at least 0 pixels; got -1"),
        ({"encode": "png", "quality": 50}, "quality must be left out unless encode is jpeg or webp; got 50 with png"),
        (
            {"encode": "raw", "quality": 50},
            "quality must be left out .* got 50 with raw. Leave it out, or use --encode",
        ),
        ({"encode": "webp", "subsampling": "420"}, "subsampling must be left out unless encode is jpeg; got 420 with"),
        ({"crop": 63}, "crop must be center, pad, stretch or at least the size, 64; got 63"),
        ({"crop": "middle"}, "crop must be .*; got middle"),
        ({"crop": 0, "upscale": True}, "or at least 1; got 0"),
        ({"encode": "gif"}, "encode must be one of .*; got 'gif'"),
        ({"quality": 0}, "quality must be from 1 to 100; got 0"),
        ({"quality": 101}, "quality must be from 1 to 100; got 101"),
        ({"subsampling": "411"}, "subsampling must be 444 or 420; got '411'"),
        ({"background": "mauve"}, "background must be white, black or #rrggbb; got 'mauve'"),
        ({"background": "#fff"}, "background must be white, black or #rrggbb; got '#fff'"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(RECIPE, **setting)


def test_a_recipe_has_defaults() -> None:
    assert Recipe() == RECIPE
    assert Recipe(crop="none").crop == "stretch"


def test_a_background_is_written_in_one_way() -> None:
    assert replace(RECIPE, background="#0A64FF").background == "#0a64ff"
    assert replace(RECIPE, background="Black").background == "#000000"

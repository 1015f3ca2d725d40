"""The settings that decide how a photo becomes a sample, and which part of a photo they take."""

import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.format import SUFFIX

CROPS = ("center", "pad", "stretch")
MAX_SIZE = 4096
"""Of a sample, pixels: a typo must not make samples of gigabytes."""
_SUBSAMPLINGS = ("444", "420")
_COLOURS = {"white": "#ffffff", "black": "#000000"}


class PhotoError(Exception):
    """This input can never become a sample. `reason` is one of a few fixed phrases, `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Recipe:
    """How every photo of a set becomes a sample: all settings that decide about its bytes."""

    size: int = 64
    """Height and width of the samples, pixels."""
    crop: Literal["center", "pad", "stretch", "none"] | int = "center"
    """center: the largest centred square; N: a centred square of N pixels; pad: the whole photo, with background on two
    sides; stretch, or none: the whole photo, stretched to a square."""
    encode: Literal["jpeg", "png", "webp", "raw"] = "jpeg"
    """Encoding of the samples; raw (.npy) needs no decoding and the most space."""
    quality: int = 95
    """Quality of jpeg and webp, 1 to 100."""
    subsampling: Literal["444", "420"] = "444"
    """Of jpeg: 444 keeps a colour for each pixel; 420 one for four pixels, in less space."""
    background: str = "white"
    """What lies behind transparent pixels and beside padded photos: white, black or #rrggbb."""
    upscale: bool = False
    """Enlarge photos that are smaller than the samples. Otherwise they are rejected."""
    exact: bool = False
    """Decode every pixel of large JPEG photos. Otherwise they are decoded at a fraction of their size, several times as
    fast, and hardly a pixel differs by more than a level or two."""
    min_size: int = 0
    """Least pixels of a photo's shorter side; smaller ones are rejected."""

    def __post_init__(self) -> None:
        if self.crop == "none":
            object.__setattr__(self, "crop", "stretch")
        if not 1 <= self.size <= MAX_SIZE:
            raise UserError(f"size must be from 1 to {MAX_SIZE:,} pixels; got {self.size:,}. Use 64 or 128.")
        smallest = 1 if self.upscale else self.size
        if self.crop not in CROPS and not (isinstance(self.crop, int) and self.crop >= smallest):
            rule = f"{', '.join(CROPS)} or at least {'1' if self.upscale else f'the size, {self.size}'}"
            raise UserError(f"crop must be {rule}; got {self.crop}. Choose a larger square, or a smaller size.")
        if self.encode not in SUFFIX:
            raise UserError(f"encode must be one of {', '.join(SUFFIX)}; got '{self.encode}'. Use jpeg.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality must be from 1 to 100; got {self.quality}. 95 is a good choice.")
        if self.subsampling not in _SUBSAMPLINGS:
            raise UserError(f"subsampling must be 444 or 420; got '{self.subsampling}'. Use 444.")
        if not re.fullmatch("#[0-9a-f]{6}", self._background_hex()):
            raise UserError(f"background must be white, black or #rrggbb; got '{self.background}'. Use white.")
        if self.min_size < 0:
            raise UserError(f"min-size must be at least 0 pixels; got {self.min_size}. Leave it out to take all.")
        default = {field.name: field.default for field in fields(Recipe)}
        for name, encodings in (("quality", ("jpeg", "webp")), ("subsampling", ("jpeg",))):
            if self.encode not in encodings and getattr(self, name) != default[name]:
                raise UserError(
                    f"{name} must be left out unless encode is {' or '.join(encodings)}; "
                    f"got {getattr(self, name)} with {self.encode}. Leave it out, or use --encode jpeg."
                )

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """The background's red, green and blue, 0 to 255."""
        red, green, blue = bytes.fromhex(self._background_hex()[1:])
        return red, green, blue

    def describe(self) -> dict[str, Any]:
        """The settings in the form that `shardset.json` records: equal for recipes that make equal samples."""
        # What the other settings reject already, min_size does not change.
        least = self.crop if isinstance(self.crop, int) else 1 if self.upscale or self.crop == "pad" else self.size
        return {
            "size": self.size,
            "crop": self.crop,
            "encode": self.encode,
            "quality": self.quality if self.encode in ("jpeg", "webp") else None,
            "subsampling": self.subsampling if self.encode == "jpeg" else None,
            "background": self._background_hex(),
            "upscale": self.upscale,
            "exact": self.exact,
            "min_size": self.min_size if self.min_size > least else 0,
        }

    def _background_hex(self) -> str:
        colour = self.background.lower()
        return _COLOURS.get(colour, colour)


@dataclass(frozen=True)
class Frame:
    """A part of a photo as it is stored, and the size that it is resized to.

    It lies in the centre, so cropping and resizing come before turning the photo upright, which takes the fewest pixels
    then. Of an odd remainder the right or the bottom of what is stored has one pixel more: half a pixel would blur all,
    and the centre of a turned photo is off by one of its pixels at most.
    """

    left: int
    top: int
    right: int
    bottom: int
    """Edges in pixels of the whole photo."""
    width: int
    height: int
    """Pixels after the resize; the sample's size, or less on one side if background fills the rest."""

    @property
    def shrink(self) -> float:
        """How many pixels of the photo become one, along the side where they are fewest."""
        return min((self.right - self.left) / self.width, (self.bottom - self.top) / self.height)

    def box(self, scale: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in a photo that was decoded `scale` times smaller."""
        return self.left / scale, self.top / scale, self.right / scale, self.bottom / scale


def frame_of(width: int, height: int, recipe: Recipe) -> Frame:
    """The frame of a photo of that size; raises `PhotoError` if the photo is too small for it."""
    size = recipe.size
    if min(width, height) < recipe.min_size:
        raise PhotoError("smaller than the minimum", f"{width}x{height}, the shorter side must have {recipe.min_size}")
    wide, high = width, height
    if recipe.crop == "center":
        wide = high = min(width, height)
    elif isinstance(recipe.crop, int):
        wide = high = recipe.crop
        if recipe.crop > min(width, height):
            raise PhotoError("smaller than the crop", f"{width}x{height}, the crop is {recipe.crop}")
    longest = max(wide, high)
    enlarged = longest < size if recipe.crop == "pad" else min(wide, high) < size
    if enlarged and not recipe.upscale:
        raise PhotoError("smaller than the target", f"{width}x{height}, the target is {size}")
    left, top = (width - wide) // 2, (height - high) // 2
    inner_width = inner_height = size
    if recipe.crop == "pad":
        inner_width, inner_height = max(1, round(wide * size / longest)), max(1, round(high * size / longest))
    return Frame(left, top, left + wide, top + high, inner_width, inner_height)

"""The settings that decide how a photo becomes a sample, and which part of a photo they take."""

import re
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from pipeline.errors import UserError
from pipeline.format import SUFFIX

CROPS = ("center", "pad", "stretch")
MAX_SIZE = 4096
"""Of a sample, pixels: a typo must not make samples of gigabytes."""
_COLOURS = {"white": "#ffffff", "black": "#000000"}
_ENCODINGS_WITH = {"quality": ("jpeg", "webp"), "subsampling": ("jpeg",)}
"""Settings that only some encodings have."""


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
        if self.subsampling not in ("444", "420"):
            raise UserError(f"subsampling must be 444 or 420; got '{self.subsampling}'. Use 444.")
        background = _COLOURS.get(self.background.lower(), self.background.lower())
        if not re.fullmatch("#[0-9a-f]{6}", background):
            raise UserError(f"background must be white, black or #rrggbb; got '{self.background}'. Use white.")
        object.__setattr__(self, "background", background)
        if self.min_size < 0:
            raise UserError(f"min-size must be at least 0 pixels; got {self.min_size}. Leave it out to take all.")
        for name, encodings in _ENCODINGS_WITH.items():
            if self.encode not in encodings and getattr(self, name) != getattr(Recipe, name):
                raise UserError(
                    f"{name} must be left out unless encode is {' or '.join(encodings)}; "
                    f"got {getattr(self, name)} with {self.encode}. Leave it out, or use --encode jpeg."
                )

    def describe(self) -> dict[str, Any]:
        """The settings in the form that `shardset.json` records: equal for recipes that make equal samples."""
        # What the other settings reject already, min_size does not change.
        least = self.crop if isinstance(self.crop, int) else 1 if self.upscale or self.crop == "pad" else self.size
        settings = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        settings |= {name: None for name, encodings in _ENCODINGS_WITH.items() if self.encode not in encodings}
        return settings | {"min_size": self.min_size if self.min_size > least else 0}


class Frame(NamedTuple):
    """The part of a photo as it is stored that a sample shows, and the size in pixels that it is resized to.

    It lies in the centre, and so can be cut out before the photo is turned upright. Of an odd remainder the right or
    the bottom has one pixel more: half a pixel would blur all.
    """

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int

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
    decisive = max(width, height) if recipe.crop == "pad" else min(width, height)
    if isinstance(recipe.crop, int) and recipe.crop > decisive:
        raise PhotoError("smaller than the crop", f"{width}x{height}, the crop is {recipe.crop}")
    if decisive < size and not recipe.upscale:
        raise PhotoError("smaller than the target", f"{width}x{height}, the target is {size}")
    if recipe.crop == "pad":
        return Frame(0, 0, width, height, *(max(1, round(side * size / decisive)) for side in (width, height)))
    if recipe.crop == "stretch":
        return Frame(0, 0, width, height, size, size)
    square = recipe.crop if isinstance(recipe.crop, int) else decisive
    left, top = (width - square) // 2, (height - square) // 2
    return Frame(left, top, left + square, top + square, size, size)

"""The settings that decide how a photo becomes a sample."""

import re
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.format import SUFFIX

CROPS = ("center", "pad", "stretch")
SUBSAMPLINGS = ("444", "420")
_COLOURS = {"white": "#ffffff", "black": "#000000"}


@dataclass(frozen=True)
class Recipe:
    """How every photo of a set becomes a sample: all settings that decide about its bytes."""

    size: int
    """Height and width of a sample, pixels."""
    crop: int | str
    """`center`: the largest centred square; N: a centred square of N pixels; `pad`: the whole photo, with background
    beside or above it; `stretch`: the whole photo, its sides stretched to the same length."""
    encoding: str
    """A key of `pipeline.format.SUFFIX`."""
    quality: int
    """Of jpeg and webp, 1 to 100."""
    subsampling: str = "444"
    """Of jpeg: `444` keeps a colour for each pixel, `420` one for each square of four."""
    background: str = "white"
    """`white`, `black` or `#rrggbb`: what lies behind transparent pixels, and beside a padded photo."""
    upscale: bool = False
    """Whether photos that are smaller than a sample are enlarged, and not rejected."""
    exact: bool = False
    """Whether every pixel of a JPEG is decoded, also where a scaled decode would do."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size must be at least 1 pixel; got {self.size}. Use 64 or 128.")
        smallest = 1 if self.upscale else self.size
        if self.crop not in CROPS and not (isinstance(self.crop, int) and self.crop >= smallest):
            rule = f"{', '.join(CROPS)} or at least {'1' if self.upscale else f'the size, {self.size}'}"
            raise UserError(f"crop must be {rule}; got {self.crop}. Choose a larger square, or a smaller size.")
        if self.encoding not in SUFFIX:
            raise UserError(f"encode must be one of {', '.join(SUFFIX)}; got '{self.encoding}'. Use jpeg.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality must be from 1 to 100; got {self.quality}. 95 is a good choice.")
        if self.subsampling not in SUBSAMPLINGS:
            raise UserError(f"subsampling must be 444 or 420; got '{self.subsampling}'. Use 444.")
        if not re.fullmatch("#[0-9a-f]{6}", self._background_hex()):
            raise UserError(f"background must be white, black or #rrggbb; got '{self.background}'. Use white.")

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """The background's red, green and blue, 0 to 255."""
        red, green, blue = bytes.fromhex(self._background_hex()[1:])
        return red, green, blue

    def describe(self) -> dict[str, Any]:
        """The settings in the form that `shardset.json` records: equal for recipes that make equal samples."""
        jpeg = self.encoding == "jpeg"
        return {
            "size": self.size,
            "crop": self.crop,
            "encode": self.encoding,
            "quality": self.quality if jpeg or self.encoding == "webp" else None,
            "subsampling": self.subsampling if jpeg else None,
            "background": self._background_hex(),
            "upscale": self.upscale,
            "exact": self.exact,
        }

    def _background_hex(self) -> str:
        colour = self.background.lower()
        return _COLOURS.get(colour, colour)

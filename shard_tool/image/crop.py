"""Which part of a photo becomes the sample, and how large it is then."""

from dataclasses import dataclass

from shard_tool.image.formats import PhotoError
from shard_tool.image.recipe import Recipe


@dataclass(frozen=True)
class Frame:
    """A part of a photo, and the size that it is resized to. It never lies off the centre.

    So cropping and resizing commute with turning the photo upright, which is done last, to the fewest pixels.
    """

    left: float
    top: float
    right: float
    bottom: float
    """Edges in pixels of the whole photo; they may lie between two of them."""
    width: int
    height: int
    """Pixels after the resize; the sample's size, or less on one side where background fills the rest."""

    @property
    def shrink(self) -> float:
        """How many pixels of the photo become one, along the side where they are fewest."""
        return min((self.right - self.left) / self.width, (self.bottom - self.top) / self.height)

    def box(self, scale: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in a photo that was decoded `scale` times smaller."""
        return self.left / scale, self.top / scale, self.right / scale, self.bottom / scale


def frame_of(width: int, height: int, recipe: Recipe) -> Frame:
    """The frame of a photo of that size; raises `PhotoError` where the photo is too small for it."""
    size = recipe.size
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
    left, top = (width - wide) / 2, (height - high) / 2
    inner_width = inner_height = size
    if recipe.crop == "pad":
        inner_width, inner_height = max(1, round(wide * size / longest)), max(1, round(high * size / longest))
    return Frame(left, top, left + wide, top + high, inner_width, inner_height)

"""The brush: smooth outlines, anti-aliased masks, soft light and colour, on Pillow and a little numpy.

Everything is an outline (points [N, 2] in pixels) that becomes a mask (8-bit coverage) through which colour is pasted.
A mask covers only its outline's box, and everything soft is made at low resolution and enlarged: that makes it fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import cos, radians, sin

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Points = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)

_GRID = 32


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` of the way from a to b."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def scale(colour: Colour, red: float, green: float, blue: float) -> Colour:
    """The colour with each channel multiplied, and cut at 255."""
    return min(255, round(colour[0] * red)), min(255, round(colour[1] * green)), min(255, round(colour[2] * blue))


def luminance(colour: Colour) -> float:
    """How light the colour is, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def ramp(colours: Sequence[Colour], place: float) -> Colour:
    """The colour at `place` (0 to 1) of the line through these colours."""
    at = place * (len(colours) - 1)
    first = min(int(at), len(colours) - 2)
    return mix(colours[first], colours[first + 1], at - first)


def points(*pairs: tuple[float, float]) -> Points:
    """Points [N, 2]."""
    return np.array(pairs, dtype=np.float64)


def mirrored(right: Points) -> Points:
    """A closed symmetric outline from its right half, which runs from the top to the bottom."""
    left = right[::-1] * (-1.0, 1.0)
    return np.concatenate([right, left[np.abs(left[:, 0]) > 1e-9]])


def smooth(controls: Points, *, closed: bool = True, steps: int = 8) -> Points:
    """A Catmull-Rom curve through the controls [..., N, 2], `steps` points to each piece."""
    if closed:
        knots = np.concatenate([controls[..., -1:, :], controls, controls[..., :2, :]], axis=-2)
    else:
        before = 2 * controls[..., :1, :] - controls[..., 1:2, :]
        after = 2 * controls[..., -1:, :] - controls[..., -2:-1, :]
        knots = np.concatenate([before, controls, after], axis=-2)
    windows = np.lib.stride_tricks.sliding_window_view(knots, 4, axis=-2)
    curve = np.moveaxis(windows @ _catmull_rom(steps), -1, -2).reshape(*controls.shape[:-2], -1, 2)
    return curve if closed else np.concatenate([curve, controls[..., -1:, :]], axis=-2)


def ellipse(x: float, y: float, rx: float, ry: float, *, tilt: float = 0.0, power: float = 2.0) -> Points:
    """An ellipse, or with a higher power the rounded rectangle in the same box; tilt in degrees."""
    return moved(turned(_unit_ellipse(power) * (rx, ry), tilt), x, y)


def moved(outline: Points, right: float, down: float) -> Points:
    """The outline moved."""
    result: Points = outline + np.array([right, down])
    return result


def turned(outline: Points, degrees: float) -> Points:
    """The outline turned about the origin, clockwise on the picture."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    result: Points = outline @ np.array([[c, s], [-s, c]])
    return result


def stroke(line: Points, width: float | Points, *, taper: bool = True) -> Points:
    """The outlines of brush strokes along lines [..., N, 2]; with `taper` they run out thin at both ends."""
    ends = np.concatenate([line[..., :1, :], line, line[..., -1:, :]], axis=-2)
    along = ends[..., 2:, :] - ends[..., :-2, :]
    length = np.sqrt(np.maximum((along**2).sum(axis=-1, keepdims=True), 1e-18))
    half = np.asarray(width, dtype=np.float64)[..., None] / 2 * (_taper(line.shape[-2]) if taper else 1.0)
    offset = np.stack([-along[..., 1], along[..., 0]], axis=-1) / length * half
    return np.concatenate([line + offset, (line - offset)[..., ::-1, :]], axis=-2)


def ring(outline: Points, width: float) -> list[Points]:
    """A frame of this width along a closed outline, as pieces to paint together."""
    closed = np.concatenate([outline, outline[:2]])
    half = len(outline) // 2
    return [stroke(closed[: half + 2], width, taper=False), stroke(closed[half:], width, taper=False)]


@cache
def _catmull_rom(steps: int) -> Points:
    t = np.arange(steps) / steps
    weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
    return np.stack(weights) / 2


@cache
def _unit_ellipse(power: float) -> Points:
    angle = np.linspace(0.0, 2 * np.pi, 40, endpoint=False)
    axes = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    result: Points = np.sign(axes) * np.abs(axes) ** (2 / power)
    return result


@cache
def _taper(length: int) -> Points:
    result: Points = np.sin(np.pi * np.linspace(0.04, 0.96, length))[:, None] ** 0.6
    return result


@cache
def _fade_table(opacity: float) -> list[int]:
    return [round(value * opacity) for value in range(256)]


@dataclass(frozen=True)
class Mask:
    """Coverage 0 to 255 of a box of the picture; nothing is covered outside."""

    image: Image.Image
    left: int
    top: int

    def times(self, other: Mask) -> Mask:
        """What both cover."""
        return Mask(ImageChops.multiply(self.image, self._part_of(other)), self.left, self.top)

    def without(self, other: Mask) -> Mask:
        """What this one covers and the other does not."""
        return Mask(ImageChops.multiply(self.image, ImageChops.invert(self._part_of(other))), self.left, self.top)

    def faded(self, opacity: float) -> Mask:
        """The same with less coverage."""
        return Mask(self.image.point(_fade_table(opacity)), self.left, self.top)

    def _part_of(self, other: Mask) -> Image.Image:
        left, top = self.left - other.left, self.top - other.top
        return other.image.crop((left, top, left + self.image.width, top + self.image.height))


class Canvas:
    """The picture in work, square, in pixels."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.image = Image.new("RGB", (size, size))

    def mask(self, *outlines: Points, blur: float = 0.0, opacity: float = 1.0) -> Mask:
        """The union of closed outlines; `blur` is the standard deviation of its soft edge in pixels."""
        cover = round(255 * opacity)
        return self.carved(*((outline, cover) for outline in outlines), blur=blur)

    def carved(self, *layers: tuple[Points, int], blur: float = 0.0) -> Mask:
        """Closed outlines laid on each other in turn, each with its own coverage: 255 adds, 0 cuts away."""
        corners = np.concatenate([outline for outline, cover in layers if cover])
        margin = 2.5 * blur + 1
        low = np.floor(np.clip(corners.min(axis=0) - margin, 0, self.size)).astype(int)
        high = np.ceil(np.clip(corners.max(axis=0) + margin, 0, self.size)).astype(int)
        width, height = (int(n) for n in high - low)
        if width < 1 or height < 1:
            return Mask(Image.new("L", (1, 1)), 0, 0)
        work = min(3.0, 1.6 / blur) if blur else _supersampling(width, height)
        shape = max(1, round(width * work)), max(1, round(height * work))
        zoom = np.array(shape) / (width, height)
        drawn = Image.new("L", shape)
        pen = ImageDraw.Draw(drawn)
        for outline, cover in layers:
            pen.polygon(((outline - low) * zoom - 0.5).ravel().tolist(), fill=cover)
        if blur:
            drawn = drawn.filter(ImageFilter.GaussianBlur(blur * work))
            drawn = drawn.resize((width, height), Image.Resampling.BILINEAR)
        else:
            drawn = drawn.reduce(int(work))
        return Mask(drawn, int(low[0]), int(low[1]))

    def paint(self, mask: Mask, colour: Colour, opacity: float = 1.0) -> None:
        """Lay a colour on what the mask covers."""
        if opacity < 1.0:
            mask = mask.faded(opacity)
        # Pillow pastes an image through a mask three times as fast as a colour.
        self.image.paste(Image.new("RGB", mask.image.size, colour), (mask.left, mask.top), mask.image)

    def lay(self, coarse: Canvas, mask: Mask) -> None:
        """Lay a smaller version of the picture, enlarged, on what the mask covers."""
        size, zoom = mask.image.size, coarse.size / self.size
        box = (mask.left * zoom, mask.top * zoom, (mask.left + size[0]) * zoom, (mask.top + size[1]) * zoom)
        enlarged = coarse.image.resize(size, Image.Resampling.BILINEAR, box=box)
        self.image.paste(enlarged, (mask.left, mask.top), mask.image)

    def gradient(self, start: Colour, end: Colour, start_at: Points, end_at: Points) -> None:
        """Cover the whole canvas with colours that change from one pixel position to another."""
        at = (np.arange(_GRID) + 0.5) * (self.size / _GRID)
        direction = (end_at - start_at) / max(float((end_at - start_at) @ (end_at - start_at)), 1e-9)
        share = (at[None, :] - start_at[0]) * direction[0] + (at[:, None] - start_at[1]) * direction[1]
        share = np.clip(share, 0.0, 1.0)[:, :, None]
        share = share * share * (3 - 2 * share)
        colours = np.array(start) + (np.array(end) - np.array(start)) * share
        small = Image.fromarray((colours + 0.5).astype(np.uint8))
        self.image.paste(small.resize(self.image.size, Image.Resampling.BILINEAR))

    def fill(
        self, *outlines: Points, colour: Colour, opacity: float = 1.0, blur: float = 0.0, within: Mask | None = None
    ) -> None:
        """Paint closed outlines in one go."""
        mask = self.mask(*outlines, blur=blur, opacity=opacity)
        self.paint(mask if within is None else mask.times(within), colour)


def _supersampling(width: int, height: int) -> int:
    longest = max(width, height)
    return 4 if longest <= 160 else 3 if longest <= 320 else 2

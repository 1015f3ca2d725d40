"""The picture in work: pose, light, colours, and anti-aliased masks to paint through.

Parts are designed in head units: the origin is between the eyes, x to the right, y down, the head about 2 wide; the
eyes are at y = 0, the mouth at 0.77, the chin at about 1.25. Everything soft is made at low resolution and enlarged,
and a mask covers only its outlines' box: that makes it fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from demo.outlines import Points, rotation
from demo.traits import Person

Colour = tuple[int, ...]
Shift = Points | tuple[float, float]
Layer = tuple[Colour, Points, float, float]
"""What to fill, with its opacity and blur."""
Place = Literal["head", "body", "face", "hairline", "bangs", "visor", "lenses", "chin", "lips", "whiskers", "nose"]
"""What an outline is fixed to, and so how it moves with the head."""


def colours(codes: str) -> tuple[Colour, ...]:
    """Colours from their hexadecimal codes."""
    return tuple(tuple(bytes.fromhex(code)) for code in codes.split())


WHITE: Colour = (255, 255, 255)
_DUSK: Colour = (58, 28, 52)
_PALE_SKIN, _OTHER_SKIN = colours("fde6d8 fcdece f9dac4"), colours("eeb88e dca274 c2865a a06844 7c4e36 623c2c")
_HAIR = {
    "Black_Hair": colours("221e28 1a1a22 2c2226"),
    "Blond_Hair": colours("f4ce7e e8b85c dea650"),
    "Brown_Hair": colours("5c3624 7e4a2c 8c4628"),
    "Gray_Hair": colours("d6d8de b8bcc4 a0a5b0"),
}
# Each a light, a dark and an accent colour.
_WALLS = (
    *("c4e2e8 78b2cc f8ecd6", "fcd6be ec988c ffeec8", "cedec4 7caa8c f4f0ce", "e0d0f0 9e88d0 fadae2"),
    *("fae2aa ecac60 fff4dc", "96c4c4 347080 cee2c8", "f6c8d0 d47a98 fce8d6", "7a88ba 383e70 bea0c8"),
    *("e8e4dc b2aca8 faf4e8", "6e9284 2c4a4e c0c496"),
)
# How far each turns with the face if not wholly, and its distance in front of the surface if any.
_TURN: dict[Place, float] = {"head": 0.0, "body": 0.0, "hairline": 0.6, "bangs": 0.8, "visor": 1.2}
_DEPTH: dict[Place, float] = {"lenses": 0.1, "chin": 0.1, "lips": 0.12, "whiskers": 0.22, "nose": 0.35}
_SURFACE_RADIUS = 1.3
_NECK = (0.0, 1.0)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` of the way from a to b."""
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b, strict=True))


def scale(colour: Colour, *channels: float) -> Colour:
    """The colour with red, green and blue multiplied, and cut at 255."""
    return tuple(min(255, round(value * times)) for value, times in zip(colour, channels, strict=True))


class Mask(NamedTuple):
    """Coverage 0 to 255 of a box of the picture; nothing is covered outside."""

    cover: Image.Image
    left: int
    top: int

    def times(self, other: Mask, *, inverted: bool = False) -> Mask:
        """What both cover."""
        left, top = self.left - other.left, self.top - other.top
        part = other.cover.crop((left, top, left + self.cover.width, top + self.cover.height))
        return Mask(ImageChops.multiply(self.cover, ImageChops.invert(part) if inverted else part), self.left, self.top)

    def without(self, other: Mask) -> Mask:
        """What this one covers and the other does not."""
        return self.times(other, inverted=True)


class Scene:
    """The picture in work, with the pose, the light and the colours that its parts share; first the wall behind."""

    def __init__(self, person: Person, size: int) -> None:
        self.person, self.size = person, size
        self.unit = size * person.between("pose.scale", 0.248, 0.266)
        self.yaw, self.roll = person.between("pose.yaw", -0.13, 0.13), person.between("pose.roll", -7.0, 7.0)
        self.pitch, self.sway = person.between("pose.pitch", -0.05, 0.05), person.between("pose.x", -0.14, 0.14)
        move = (self.sway, person.between("pose.y", -0.07, 0.07))
        self.origin = np.multiply((0.5, 0.475), size) + np.multiply(move, self.unit)
        self.side = person.pick("light.side", (-1.0, 1.0))
        self.light = np.array((self.side * person.between("light.angle", 0.5, 0.9), -0.6))
        self.image = _wall(person, self.light[0]).resize((size, size), Image.Resampling.BILINEAR)

        tones = _PALE_SKIN if person.has("Pale_Skin") else _OTHER_SKIN
        self.skin = _ramp(tones, person.between("skin.tone", 0.0, 1.0))
        tones = next(tones for name, tones in _HAIR.items() if person.has(name))
        self.hair = _ramp(tones, person.between("hair.tone", 0.0, 1.0))
        dark = 1.0 - _luminance(self.skin) / 255
        self.dark_skin, dark_hair = dark > 0.49, _luminance(self.hair) <= 60
        self.skin_shadow = scale(self.skin, 0.83, 0.68 - 0.04 * dark, 0.68)
        self.skin_deep = scale(self.skin, 0.58, 0.40, 0.40)
        self.skin_light = mix(self.skin, (255, 240, 218), 0.55 - 0.25 * dark)
        self.blush = mix(self.skin, (244, 66, 84), 0.62)
        self.hair_shadow = scale(self.hair, 0.62, 0.56, 0.62)
        self.hair_light = mix(self.hair, (140, 130, 165) if dark_hair else (255, 240, 214), 0.45)
        self.brow = self.hair if dark_hair else scale(self.hair, 0.72, 0.66, 0.66)

    def fill(
        self,
        colour: Colour,
        *outlines: Points,
        on: Place = "face",
        opacity: float = 1.0,
        blur: float = 0.0,
        shift: Shift = (0.0, 0.0),
        within: Mask | None = None,
    ) -> None:
        """Paint the union of closed outlines; parameters as those of `mask`."""
        mask = self.mask(*outlines, on=on, blur=blur, shift=shift)
        self.paint(colour, mask.times(within) if within else mask, opacity)

    def layer(self, *layers: Layer, on: Place = "face", within: Mask | None = None) -> None:
        """Fill one after the other."""
        for colour, outline, opacity, blur in layers:
            self.fill(colour, outline, on=on, opacity=opacity, blur=blur, within=within)

    def cast(
        self, *outlines: Points, on: Place, drop: float, opacity: float, blur: float, within: Mask | None = None
    ) -> None:
        """Paint the shadow of something that stands out by the drop."""
        shift = (-0.45 * drop * self.light[0], drop)
        self.fill(_DUSK, *outlines, on=on, opacity=opacity, blur=blur, shift=shift, within=within)

    def shade(self, colour: Colour, *outlines: Points, on: Place, reach: float, blur: float, opacity: float) -> None:
        """Paint all that is outside the outlines, or by the reach inside them and looks away from the light."""
        everything = Mask(Image.new("L", (self.size, self.size), 255), 0, 0)
        lit = self.mask(*outlines, on=on, blur=blur, shift=reach * self.light)
        self.paint(colour, everything.without(lit), opacity)

    def paint(self, colour: Colour, mask: Mask, opacity: float = 1.0) -> None:
        """Lay a colour on what the mask covers."""
        cover = mask.cover.point(_faded(opacity)) if opacity < 1 else mask.cover
        # Pillow pastes an image through a mask three times as fast as a colour.
        self.image.paste(Image.new("RGB", cover.size, colour), (mask.left, mask.top), cover)

    @contextmanager
    def soft(self, mask: Mask, top: Colour, bottom: Colour | None = None, *, times: int = 4) -> Iterator[Scene]:
        """A scene with so many times fewer pixels, for what is soft; in the end it is laid on what the mask covers.

        Its colours go from `top` to `bottom` over the height of the mask.
        """
        coarse, (width, height) = copy(self), mask.cover.size
        coarse.size = max(48, self.size // times)
        zoom = coarse.size / self.size
        coarse.unit, coarse.origin = self.unit * zoom, self.origin * zoom
        share = np.clip(((np.arange(coarse.size)[:, None, None] + 0.5) / zoom - mask.top) / height, 0.0, 1.0)
        column = np.array(top) + np.subtract(bottom or top, top) * share * share * (3 - 2 * share) + 0.5
        coarse.image = Image.fromarray(column.astype(np.uint8)).resize(
            (coarse.size, coarse.size), Image.Resampling.NEAREST
        )
        yield coarse
        box = (mask.left * zoom, mask.top * zoom, (mask.left + width) * zoom, (mask.top + height) * zoom)
        enlarged = coarse.image.resize(mask.cover.size, Image.Resampling.BILINEAR, box=box)
        self.image.paste(enlarged, (mask.left, mask.top), mask.cover)

    def mask(self, *outlines: Points, on: Place = "face", blur: float = 0.0, shift: Shift = (0.0, 0.0)) -> Mask:
        """The union of closed outlines [..., N, 2] in head units.

        `blur` is the standard deviation of the soft edge; `shift` goes along the picture and not with the head.
        """
        placed = [piece for outline in outlines for piece in self._placed(outline, on, shift)]
        blur, margin = blur * self.unit, 2.5 * blur * self.unit + 1
        corners = np.concatenate(placed) if placed else np.zeros((1, 2)) - margin
        low = np.floor(np.clip(corners.min(axis=0) - margin, 0, self.size)).astype(int)
        high = np.ceil(np.clip(corners.max(axis=0) + margin, 0, self.size)).astype(int)
        width, height = (int(n) for n in high - low)
        if width < 1 or height < 1:
            return Mask(Image.new("L", (1, 1)), 0, 0)
        longest = max(width, height)
        work = min(3.0, 1.6 / blur) if blur else 4 if longest <= 160 else 3 if longest <= 320 else 2
        shape = max(1, round(width * work)), max(1, round(height * work))
        drawn, zoom = Image.new("L", shape), np.array(shape) / (width, height)
        pen = ImageDraw.Draw(drawn)
        for piece in placed:
            pen.polygon(((piece - low) * zoom - 0.5).ravel().tolist(), fill=255)
        if blur:
            drawn = drawn.filter(ImageFilter.GaussianBlur(blur * work))
            cover = drawn.resize((width, height), Image.Resampling.BILINEAR)
        else:
            cover = drawn.reduce(int(work))
        return Mask(cover, int(low[0]), int(low[1]))

    def _placed(self, outline: Points, on: Place, shift: Shift) -> Points:
        turn, depth = _TURN.get(on, 1.0), _DEPTH.get(on, 0.0)
        x, y = outline[..., 0], outline[..., 1] + self.pitch * (turn + depth)
        if turn:
            x = _SURFACE_RADIUS * np.sin(np.arcsin(np.clip(x / _SURFACE_RADIUS, -0.98, 0.98)) + self.yaw * turn)
        turned = np.stack([x + depth * self.yaw, y], axis=-1)
        tilted = (turned - _NECK) @ rotation(self.roll) + _NECK
        # The body follows the head only halfway to the side.
        held = turned - (self.sway / 2, 0.0) if on == "body" else tilted
        return np.reshape((held + shift) * self.unit + self.origin, (-1, *outline.shape[-2:]))


@cache
def _faded(opacity: float) -> list[int]:
    return [round(value * opacity) for value in range(256)]


def _luminance(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _ramp(tones: Sequence[Colour], place: float) -> Colour:
    at = np.linspace(0.0, 1.0, len(tones))
    return tuple(round(float(np.interp(place, at, channel))) for channel in zip(*tones, strict=True))


def _wall(person: Person, light: float) -> Image.Image:
    # Smooth everywhere, so a coarse grid enlarged is the same picture for a small part of the work.
    grid = np.arange(80)
    x, y = (grid + 0.5) / 80, (grid[:, None] + 0.5) / 80
    bright, dark, accent = (np.array(tone) for tone in colours(person.pick("wall.palette", _WALLS)))
    slope = person.between("wall.slope", 0.2, 1.0)
    share = np.clip(0.5 - 0.8 * light * (x - 0.5) + slope * (y - 0.5), 0.0, 1.0)
    wall = bright + (dark - bright) * share[:, :, None]
    ranges = {"x": (0.0, 1.0), "y": (0.0, 0.9), "size": (0.01, 0.07), "opacity": (0.2, 0.7)}
    blobs = [[person.between(f"wall.blob{n}.{name}", *limits) for name, limits in ranges.items()] for n in range(3)]
    halo = (0.5, 0.45, 0.12, 0.22)
    for tone, glow in zip((accent, bright, dark, np.array(WHITE)), [*blobs, halo], strict=True):
        right, down, spread, opacity = glow
        near = np.exp(-((x - right) ** 2) / spread) * np.exp(-((y - down) ** 2) / spread)
        wall += (tone - wall) * (opacity * near)[:, :, None]
    # Ordered dither (interleaved gradient noise): rounding alone would show as steps in so slow a gradient.
    dither = (52.9829189 * ((0.06711056 * grid + 0.00583715 * grid[:, None]) % 1.0)) % 1.0
    return Image.fromarray(np.clip(wall + dither[:, :, None], 0.0, 255.0).astype(np.uint8))

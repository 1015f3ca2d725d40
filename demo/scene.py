"""What all parts of a portrait share: the pose, the light, the colours, and the wall behind.

Parts are designed in head units: the origin is between the eyes, x to the right, y down, the head about 2 wide; the
eyes are at y = 0, the mouth at 0.77, the chin at about 1.25.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, radians, sin

import numpy as np
from PIL import Image

from demo.paint import (
    Canvas,
    Colour,
    Mask,
    Points,
    luminance,
    mix,
    points,
    ramp,
    scale,
)
from demo.traits import Person

_SURFACE_RADIUS = 1.3
_NECK = points((0.0, 1.0))
_DUSK: Colour = (58, 28, 52)

_PALE_SKIN: tuple[Colour, ...] = ((253, 230, 216), (252, 222, 206), (249, 218, 196))
_OTHER_SKIN: tuple[Colour, ...] = (
    (238, 184, 142),
    (220, 162, 116),
    (194, 134, 90),
    (160, 104, 68),
    (124, 78, 54),
    (98, 60, 44),
)
_HAIR: dict[str, tuple[Colour, ...]] = {
    "Black_Hair": ((34, 30, 40), (26, 26, 34), (44, 34, 38)),
    "Blond_Hair": ((244, 206, 126), (232, 184, 92), (222, 166, 80)),
    "Brown_Hair": ((92, 54, 36), (126, 74, 44), (140, 70, 40)),
    "Gray_Hair": ((214, 216, 222), (184, 188, 196), (160, 165, 176)),
}
_WALLS: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((196, 226, 232), (120, 178, 204), (248, 236, 214)),
    ((252, 214, 190), (236, 152, 140), (255, 238, 200)),
    ((206, 222, 196), (124, 170, 140), (244, 240, 206)),
    ((224, 208, 240), (158, 136, 208), (250, 218, 226)),
    ((250, 226, 170), (236, 172, 96), (255, 244, 220)),
    ((150, 196, 196), (52, 112, 128), (206, 226, 200)),
    ((246, 200, 208), (212, 122, 152), (252, 232, 214)),
    ((122, 136, 186), (56, 62, 112), (190, 160, 200)),
    ((232, 228, 220), (178, 172, 168), (250, 244, 232)),
    ((110, 146, 132), (44, 74, 78), (192, 196, 150)),
)


@dataclass(frozen=True)
class Pose:
    """How the head is held: from head units to pixels."""

    unit: float
    origin: Points
    roll: float
    yaw: float
    pitch: float
    sway: float

    def head(self, outline: Points) -> Points:
        """What sits on the head and is seen from all sides alike: it only tilts, about the neck."""
        c, s = cos(radians(self.roll)), sin(radians(self.roll))
        result: Points = ((outline - _NECK) @ np.array([[c, s], [-s, c]]) + _NECK) * self.unit + self.origin
        return result

    def face(self, outline: Points, *, turn: float = 1.0, depth: float = 0.0) -> Points:
        """What lies on the front of the head: it also turns to the side, with `depth` in front of the surface."""
        around = np.arcsin(np.clip(outline[..., 0] / _SURFACE_RADIUS, -0.98, 0.98)) + self.yaw * turn
        x = _SURFACE_RADIUS * np.sin(around) + depth * self.yaw
        return self.head(np.stack([x, outline[..., 1] + self.pitch * (turn + depth)], axis=-1))

    def body(self, outline: Points) -> Points:
        """What hangs from the shoulders: it only follows the head halfway to the side."""
        return (outline - (self.sway / 2, 0.0)) * self.unit + self.origin


@dataclass(frozen=True)
class Palette:
    """The colours of one person."""

    skin: Colour
    skin_shadow: Colour
    skin_deep: Colour
    skin_light: Colour
    blush: Colour
    hair: Colour
    hair_shadow: Colour
    hair_light: Colour
    wall: tuple[Colour, Colour, Colour]


@dataclass(frozen=True)
class Scene:
    """The picture in work with all that its parts need to know."""

    canvas: Canvas
    person: Person
    pose: Pose
    palette: Palette
    light: Points
    """The direction to the light in the picture, [2], about 1 long."""

    def px(self, units: float) -> float:
        """Head units as pixels."""
        return units * self.pose.unit

    def frame(self) -> Points:
        """The outline of the whole picture in pixels."""
        return points((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)) * (2 * self.canvas.size)

    def coarse(self, times: int = 4) -> Scene:
        """The same scene on a canvas so many times smaller, for what is soft; `lay` puts it into this one."""
        size = max(48, self.canvas.size // times)
        zoom = size / self.canvas.size
        pose = replace(self.pose, unit=self.pose.unit * zoom, origin=self.pose.origin * zoom)
        return replace(self, canvas=Canvas(size), pose=pose)

    def lay(self, coarse: Scene, mask: Mask) -> None:
        """Lay what was painted on the coarse scene on what the mask covers."""
        self.canvas.lay(coarse.canvas, mask)

    def fill(
        self, *outlines: Points, colour: Colour, opacity: float = 1.0, blur: float = 0.0, within: Mask | None = None
    ) -> None:
        """Paint outlines that are in pixels; the blur is in head units."""
        self.canvas.fill(*outlines, colour=colour, opacity=opacity, blur=self.px(blur), within=within)

    def shade(self, *outlines: Points, reach: float, blur: float, colour: Colour, opacity: float) -> None:
        """Darken the side of a shape that looks away from the light, and all around; meant for a coarse scene."""
        lit = [outline + self.light * self.px(reach) for outline in outlines]
        everything = Mask(Image.new("L", (self.canvas.size,) * 2, round(255 * opacity)), 0, 0)
        self.canvas.paint(everything.without(self.canvas.mask(*lit, blur=self.px(blur))), colour)

    def cast(self, *outlines: Points, drop: float, blur: float, opacity: float, within: Mask | None = None) -> None:
        """Lay the soft shadow that a shape throws on what is below it."""
        moved = [outline + self.px(drop) * points((-0.45 * self.light[0], 1.0)) for outline in outlines]
        self.fill(*moved, colour=_DUSK, opacity=opacity, blur=blur, within=within)


def set_scene(person: Person, size: int) -> Scene:
    """A scene with the wall painted and nobody in front of it yet."""
    unit = size * person.between("pose.scale", 0.248, 0.266)
    sway, lift = person.between("pose.x", -0.14, 0.14), person.between("pose.y", -0.07, 0.07)
    pose = Pose(
        unit=unit,
        origin=points((0.5 * size + sway * unit, 0.475 * size + lift * unit))[0],
        roll=person.between("pose.roll", -7.0, 7.0),
        yaw=person.between("pose.yaw", -0.13, 0.13),
        pitch=person.between("pose.pitch", -0.05, 0.05),
        sway=sway,
    )
    side = person.pick("light.side", (-1.0, 1.0)) * person.between("light.angle", 0.5, 0.9)
    scene = Scene(Canvas(size), person, pose, _palette(person), points((side, -0.6))[0])
    _paint_wall(scene)
    return scene


def _palette(person: Person) -> Palette:
    skin = ramp(_PALE_SKIN if person.has("Pale_Skin") else _OTHER_SKIN, person.between("skin.tone", 0.0, 1.0))
    hair_name = next(name for name in _HAIR if person.has(name))
    hair = ramp(_HAIR[hair_name], person.between("hair.tone", 0.0, 1.0))
    dark = 1.0 - luminance(skin) / 255
    return Palette(
        skin=skin,
        skin_shadow=scale(skin, 0.83, 0.68 - 0.04 * dark, 0.68),
        skin_deep=scale(skin, 0.58, 0.40, 0.40),
        skin_light=mix(skin, (255, 240, 218), 0.55 - 0.25 * dark),
        blush=mix(skin, (244, 66, 84), 0.62),
        hair=hair,
        hair_shadow=scale(hair, 0.62, 0.56, 0.62),
        hair_light=mix(hair, (255, 240, 214) if luminance(hair) > 60 else (140, 130, 165), 0.45),
        wall=person.pick("wall.palette", _WALLS),
    )


def _paint_wall(scene: Scene) -> None:
    # Smooth everywhere, so a coarse grid enlarged is the same picture for a small part of the work.
    person, size = scene.person, scene.canvas.size
    grid = np.arange(80)
    x, y = (grid[None, :] + 0.5) / 80, (grid[:, None] + 0.5) / 80
    light, dark, accent = (np.array(colour, dtype=np.float64) for colour in scene.palette.wall)
    slope = person.between("wall.slope", 0.2, 1.0)
    share = np.clip(0.5 - 0.8 * scene.light[0] * (x - 0.5) + slope * (y - 0.5), 0.0, 1.0)
    wall = light + (dark - light) * share[:, :, None]
    for blob, colour in enumerate((accent, light, dark)):
        name = f"wall.blob{blob}"
        spread = person.between(f"{name}.size", 0.01, 0.07)
        across = np.exp(-((x - person.between(f"{name}.x", 0.0, 1.0)) ** 2) / spread)
        down = np.exp(-((y - person.between(f"{name}.y", 0.0, 0.9)) ** 2) / spread)
        wall += (colour - wall) * (person.between(f"{name}.opacity", 0.2, 0.7) * down * across)[:, :, None]
    halo = 0.22 * np.exp(-((y - 0.45) ** 2) / 0.12) * np.exp(-((x - 0.5) ** 2) / 0.12)
    wall += (255.0 - wall) * halo[:, :, None]
    # Ordered dither (interleaved gradient noise): rounding alone would show as steps in so slow a gradient.
    dither = (52.9829189 * ((0.06711056 * grid[None, :] + 0.00583715 * grid[:, None]) % 1.0)) % 1.0
    small = Image.fromarray(np.clip(wall + dither[:, :, None], 0.0, 255.0).astype(np.uint8))
    scene.canvas.image.paste(small.resize((size, size), Image.Resampling.BILINEAR))

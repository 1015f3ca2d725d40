"""Hair on the head and in the face.

Head hair is one silhouette. It is painted whole behind the head, and again in front of it with an opening cut out for
the face: so any style goes with any face, and nothing can come apart between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo.head import face_outline
from demo.paint import Points, mirrored, mix, points, scale, smooth, stroke
from demo.scene import Pose, Scene
from demo.traits import Person

HAT_RIM = -0.80
"""Height of a hat's lower edge in head units: hair above it is under the hat."""

_TUFT = ((1.0, 0.0), (0.97, 0.09), (0.88, 0.2))
_ABOVE_RIM = points((-3.0, -3.0), (3.0, -3.0), (3.0, HAT_RIM - 0.12), (-3.0, HAT_RIM - 0.12))


@dataclass(frozen=True)
class HeadHair:
    """The shape of the hair, in head units."""

    silhouette: Points
    opening: Points
    """The region in front of the head that hair leaves free."""
    fringe: Points
    """The bangs, which lie over the opening; empty if there are none."""
    parting: float
    crown: float
    ends: float


def comb(person: Person) -> HeadHair:
    """Shape the hair: short, to the jaw or over the shoulders; straight or in waves; with or without bangs."""
    style = person.pick("hair.style", ("short", "jaw", "long", "long"))
    volume = person.between("hair.volume", 0.0, 0.13)
    side, crown = 1.12 + volume, -1.45 - volume
    ends = {"short": 0.28, "jaw": 0.98, "long": 2.2}[style] + person.between("hair.length", -0.08, 0.08)
    top = points((0.0, crown), (0.58, crown + 0.13), (side - 0.1, -0.88), (side, -0.45))
    below = {
        "short": points((side + 0.02, 0.0), (side - 0.08, ends), (0.8, ends + 0.12), (0.0, ends + 0.1)),
        "jaw": points((side + 0.08, 0.1), (side + 0.1, 0.6), (side - 0.02, ends), (0.7, ends + 0.08), (0.0, ends)),
        "long": points((side + 0.06, 0.2), (side + 0.1, 0.9), (side + 0.14, 1.6), (side + 0.05, ends), (0.0, ends)),
    }[style]
    silhouette = smooth(mirrored(np.concatenate([top, below])), steps=12)
    if person.has("Wavy_Hair"):
        silhouette = _waved(silhouette)
    parting = person.between("hair.parting", -0.5, 0.5)
    fringe = _fringe(person) if person.has("Bangs") else np.empty((0, 2))
    return HeadHair(silhouette, _opening(parting, short=style == "short"), fringe, parting, crown, ends)


def paint_back_hair(scene: Scene, hair: HeadHair) -> None:
    """Paint the hair behind the head and the neck."""
    palette, pose = scene.palette, scene.pose
    layers = [(pose.head(hair.silhouette), 255)]
    if scene.person.has("Wearing_Hat"):
        layers.append((pose.head(_ABOVE_RIM), 0))
    scene.canvas.paint(scene.canvas.carved(*layers), mix(palette.hair_shadow, palette.hair, 0.2))


def shade_forehead(soft: Scene, hair: HeadHair) -> None:
    """Lay the shadow of the front hair on the skin, on a coarse scene."""
    opening = soft.pose.face(hair.opening, turn=0.6)
    soft.shade(opening, reach=-0.07, blur=0.04, colour=soft.palette.skin_deep, opacity=0.5)
    if len(hair.fringe):
        soft.cast(soft.pose.face(hair.fringe, turn=0.8), drop=0.07, blur=0.035, opacity=0.4)


def paint_front_hair(scene: Scene, hair: HeadHair) -> None:
    """Paint the hair in front of the head, round the opening for the face."""
    palette, soft = scene.palette, scene.coarse(2)
    silhouette = soft.pose.head(hair.silhouette)
    bright = mix(palette.hair, palette.hair_light, 0.2)
    soft.canvas.gradient(
        bright, scale(palette.hair, 0.84, 0.82, 0.86), *soft.pose.head(points((0.0, -1.5), (0.0, 1.2)))
    )
    soft.shade(silhouette, reach=0.24, blur=0.14, colour=palette.hair_shadow, opacity=0.85)
    soft.cast(soft.pose.face(hair.opening, turn=0.6), drop=0.0, blur=0.05, opacity=0.22)
    arc = points((-0.85, -0.85), (-0.5, -1.13), (0.0, -1.24), (0.5, -1.13), (0.85, -0.85))
    gloss = soft.pose.head(stroke(smooth(arc, closed=False), 0.16)) + soft.light * soft.px(0.08)
    soft.fill(gloss, colour=palette.hair_light, opacity=0.6, blur=0.05)
    dark, light = _strands(soft, hair)
    soft.fill(*dark, colour=palette.hair_shadow, opacity=0.5)
    soft.fill(*light, colour=palette.hair_light, opacity=0.36)

    pose = scene.pose
    layers = [(pose.head(hair.silhouette), 255), (pose.face(hair.opening, turn=0.6), 0)]
    if len(hair.fringe):
        layers.append((pose.face(hair.fringe, turn=0.8), 255))
    if scene.person.has("Wearing_Hat"):
        layers.append((pose.head(_ABOVE_RIM), 0))
    scene.lay(soft, scene.canvas.carved(*layers))


def paint_beard(scene: Scene) -> None:
    """Paint a beard, full or a goatee, unless the person has none."""
    person, palette, soft = scene.person, scene.palette, scene.coarse()
    if person.has("No_Beard"):
        return
    outline = face_outline(scene)
    chin = float(outline[:, 1].max())
    grown = person.between("beard.length", 0.06, 0.2)
    if person.chance("beard.full", 0.65):
        inner = smooth(
            points((0.0, 1.04), (0.28, 0.99), (0.5, 0.8), (0.7, 0.5), (0.84, 0.1), (0.9, -0.2)), closed=False
        )
        inner = np.concatenate([inner[::-1] * (-1.0, 1.0), inner])

        def shape(pose: Pose) -> Points:
            return np.concatenate([pose.head(_jaw(outline, chin, grown)), pose.face(inner)])
    else:
        half = person.between("beard.goatee", 0.26, 0.34)
        right = ((0.0, 1.04), (half, 0.99), (half + 0.05, 1.1), (half * 0.7, chin + grown * 0.6), (0.0, chin + grown))

        def shape(pose: Pose) -> Points:
            return pose.face(smooth(mirrored(points(*right))), depth=0.1)

    soft.fill(soft.frame(), colour=scale(palette.hair, 0.86, 0.82, 0.84))
    soft.shade(shape(soft.pose), reach=0.16, blur=0.1, colour=palette.hair_shadow, opacity=0.75)
    mask = scene.canvas.mask(shape(scene.pose), blur=scene.px(0.014))
    scene.lay(soft, mask)
    x = np.linspace(-0.76, 0.76, 17)
    tufts = [
        np.stack([np.stack([x * pull, low + step + 0.4 * np.sqrt(1 - x**2)], axis=1) for pull, step in _TUFT], axis=1)
        for low in (0.5, 0.72)
    ]
    hairs = scene.pose.face(stroke(np.concatenate(tufts), 0.026), depth=0.1)
    scene.fill(*hairs, colour=palette.hair_light, opacity=0.3, within=mask)


def paint_mustache(scene: Scene) -> None:
    """Paint a mustache between nose and lip; the mouth's corners stay free, so that a smile shows."""
    person, palette, pose = scene.person, scene.palette, scene.pose
    if not person.has("Mustache"):
        return
    half = person.between("mustache.width", 0.29, 0.35)
    curl = person.between("mustache.curl", -0.07, 0.03)
    right = points(
        (0.0, 0.565),
        (0.1, 0.55),
        (half * 0.65, 0.59),
        (half + 0.03, 0.655 + curl),
        (half, 0.70 + curl),
        (half * 0.55, 0.685),
        (0.08, 0.675),
        (0.0, 0.66),
    )
    mask = scene.canvas.mask(pose.face(smooth(mirrored(right)), depth=0.22), blur=scene.px(0.008))
    scene.canvas.paint(mask, scale(palette.hair, 0.84, 0.8, 0.82))
    x = np.linspace(0.02, 0.26, 6)
    hairs = np.stack([np.stack([x + 0.05 * step, 0.57 + 0.055 * step + 0 * x], axis=1) for step in range(3)], axis=1)
    both = [*pose.face(stroke(hairs, 0.02), depth=0.22), *pose.face(stroke(hairs * (-1.0, 1.0), 0.02), depth=0.22)]
    scene.fill(*both, colour=palette.hair_light, opacity=0.4, within=mask)


def _waved(outline: Points) -> Points:
    along = np.gradient(outline, axis=0)
    length = np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)
    # Distance from the crown on either side, so that the waves mirror each other.
    run = np.cumsum(length)
    run = np.minimum(run, run[-1] - run)
    outward = np.stack([along[:, 1], -along[:, 0]], axis=1) / length[:, None]
    crest = np.abs(np.sin(np.pi * run / 0.42)) - 0.35
    waved: Points = outline + outward * (0.13 * crest)[:, None]
    return waved


def _opening(parting: float, *, short: bool) -> Points:
    # Short hair ends in front of the ears; longer hair covers them and falls on both sides of the neck.
    edge = 0.9 if short else 0.87
    side = (
        points((1.5, -0.06), (1.7, 0.6), (1.7, 2.6))
        if short
        else points((0.86, 0.35), (0.9, 0.9), (0.8, 1.5), (0.6, 2.6))
    )
    hairline = points(
        (-edge, -0.1),
        (-edge + 0.02, -0.42),
        (-0.74 + 0.1 * parting, -0.72),
        (-0.36 + 0.5 * parting, -0.93),
        (parting, -1.04),
        (0.36 + 0.5 * parting, -0.93),
        (0.74 + 0.1 * parting, -0.72),
        (edge - 0.02, -0.42),
        (edge, -0.1),
    )
    return smooth(np.concatenate([(side * (-1.0, 1.0))[::-1], hairline, side]))


def _fringe(person: Person) -> Points:
    x = np.linspace(-0.93, 0.93, 49)
    locks = person.pick("bangs.locks", (5, 6, 7))
    saw = np.abs(((x + 1) * locks / 2) % 1.0 - 0.5) * 2
    depth = 0.12 if person.has("Wavy_Hair") else 0.07
    slope = person.between("bangs.slope", -0.05, 0.05)
    temples = 0.16 * np.clip((np.abs(x) - 0.7) / 0.23, 0.0, 1.0) ** 2
    y = person.between("bangs.length", -0.55, -0.5) - depth * saw**1.5 + slope * x + temples
    top = points((0.97, -0.7), (0.7, -1.12), (0.0, -1.28), (-0.7, -1.12), (-0.97, -0.7))
    return np.concatenate([np.stack([x, y], axis=1), smooth(top, closed=False)])


def _jaw(outline: Points, chin: float, grown: float) -> Points:
    lower = outline[outline[:, 1] > -0.22]
    right, left = lower[lower[:, 0] > 0], lower[lower[:, 0] <= 0]
    edge = np.concatenate([right[np.argsort(right[:, 1])], left[np.argsort(-left[:, 1])]])
    push = np.clip((edge[:, 1] - 0.3) / (chin - 0.3), 0.0, 1.0)
    return np.stack([edge[:, 0] * (1.0 + 0.05 * push), edge[:, 1] + grown * push**2], axis=1)


def _strands(scene: Scene, hair: HeadHair) -> tuple[list[Points], list[Points]]:
    person, pose = scene.person, scene.pose
    n = np.arange(18)
    share = (n // 2 + np.array([person.between(f"strand{k}", 0.1, 0.9) for k in n])) / 9
    side = np.where(n % 2, 1.0, -1.0)
    reach = side * (0.52 + 0.65 * share)
    end = hair.ends * (0.3 + 0.7 * share) - 0.1
    controls = (
        (hair.parting * 0.8 + 0.06 * side, hair.crown + 0.03 + 0.2 * (1 - share)),
        (reach * 0.62 + hair.parting * 0.3, hair.crown + 0.16 + 0.3 * (1 - share)),
        (reach, -0.62 + 0 * n),
        (reach * 1.02, (end - 0.62) / 2),
        (reach * 0.98, end),
    )
    lines = smooth(np.stack([np.stack(pair, axis=1) for pair in controls], axis=1), closed=False, steps=7)
    if person.has("Wavy_Hair"):
        y = lines[..., 1]
        lines[..., 0] += 0.055 * np.sin(2 * np.pi * y / 0.42 + n[:, None]) * np.clip((y + 1.2) / 0.4, 0.0, 1.0)
    dark = list(pose.head(stroke(lines[::3], 0.05)))
    light = list(pose.head(stroke(np.concatenate([lines[1::3], lines[2::3]]), 0.035)))
    if len(hair.fringe):
        k = np.arange(10)
        x = -0.81 + 0.18 * k + np.array([person.between(f"bangs.strand{j}", -0.06, 0.06) for j in k])
        bend = np.where(k % 2, 0.03, -0.03)
        falling = (
            (0.35 * x + 0.5 * hair.parting, hair.crown + 0.12 + 0.14 * np.abs(x)),
            (0.85 * x + bend + 0.1 * hair.parting, -0.98 + 0 * x),
            (x, -0.54 + 0 * x),
        )
        lines = smooth(np.stack([np.stack(pair, axis=1) for pair in falling], axis=1), closed=False)
        dark += list(pose.face(stroke(lines[::2], 0.045), turn=0.8))
        light += list(pose.face(stroke(lines[1::2], 0.035), turn=0.8))
    return dark, light

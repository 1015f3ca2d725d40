"""What people put on below the hat: clothes, a necklace, earrings, glasses."""

from __future__ import annotations

import numpy as np

from demo.head import Face
from demo.paint import (
    WHITE,
    Colour,
    Points,
    ellipse,
    luminance,
    mirrored,
    mix,
    moved,
    points,
    ring,
    scale,
    smooth,
    stroke,
)
from demo.scene import Scene
from demo.traits import Person

_CLOTHES: tuple[Colour, ...] = (
    (44, 74, 112),
    (208, 92, 76),
    (240, 236, 226),
    (66, 122, 110),
    (226, 168, 72),
    (120, 86, 140),
    (56, 58, 70),
    (206, 130, 148),
    (132, 160, 190),
)
_FRAMES_ON_LIGHT: tuple[Colour, ...] = ((28, 28, 34), (92, 44, 24), (24, 44, 92), (120, 22, 42))
_FRAMES_ON_DARK: tuple[Colour, ...] = ((16, 16, 20), (244, 206, 120), (236, 236, 240), (226, 70, 60))
_GOLD: Colour = (238, 188, 74)
_SILVER: Colour = (222, 228, 236)
_GEMS: tuple[Colour, ...] = ((22, 150, 128), (204, 32, 74), (44, 98, 206))


def neckline(person: Person) -> Points:
    """Where skin shows above the clothes, in head units: round or pointed."""
    deep = person.between("clothes.deep", 1.66, 1.76)
    if person.chance("clothes.pointed", 0.4):
        right = points((0.0, 1.2), (0.5, 1.28), (0.62, 1.4), (0.3, deep), (0.0, deep + 0.28))
    else:
        right = points((0.0, 1.2), (0.5, 1.28), (0.64, 1.42), (0.44, deep - 0.06), (0.0, deep + 0.06))
    return smooth(mirrored(right))


def paint_clothes(scene: Scene, neck: Points) -> None:
    """Paint the shoulders in a shirt; the neck comes over it."""
    person, soft = scene.person, scene.coarse()
    colour = person.pick("clothes.colour", _CLOTHES)
    broad = person.between("clothes.broad", 1.55, 1.95)
    right = ((0.0, 1.25), (0.55, 1.32), (1.0, 1.5), (broad, 1.72), (broad + 0.35, 2.3), (broad + 0.4, 3.2), (0.0, 3.2))
    shoulders = smooth(mirrored(points(*right)))
    ends = soft.pose.body(points((0.0, 1.3), (0.0, 2.2)))
    soft.canvas.gradient(mix(colour, WHITE, 0.12), scale(colour, 0.82, 0.8, 0.86), *ends)
    soft.shade(soft.pose.body(shoulders), reach=0.3, blur=0.16, colour=scale(colour, 0.6, 0.55, 0.66), opacity=0.8)
    scene.lay(soft, scene.canvas.mask(scene.pose.body(shoulders)))
    collar = ring(scene.pose.body(neck), scene.px(0.1))
    scene.fill(*collar, colour=scale(colour, 0.8, 0.78, 0.84))


def paint_necklace(scene: Scene) -> None:
    """Paint pearls or a chain with a pendant; they hang low enough for any beard."""
    person, pose = scene.person, scene.pose
    if not person.has("Wearing_Necklace"):
        return
    low = person.between("necklace.low", 1.68, 1.74)
    t = np.linspace(-1.0, 1.0, 17)
    line = np.stack([t * 0.6, 1.34 + (low - 1.34) * (1 - np.abs(t) ** 2.2)], axis=1)
    shadow = pose.body(stroke(moved(line, 0.0, 0.05), 0.06))
    scene.fill(shadow, colour=scene.palette.skin_deep, opacity=0.55, blur=0.02)

    def beads(x: float, y: float, rx: float, ry: float) -> Points:
        return pose.body(ellipse(x, y, rx, ry)[None] + line[:, None])

    if person.chance("necklace.pearls", 0.5):
        scene.fill(*beads(0.0, 0.0, 0.062, 0.062), colour=(246, 238, 232))
        scene.fill(*beads(0.0, 0.03, 0.04, 0.022), colour=(190, 170, 176), opacity=0.6, blur=0.01)
        scene.fill(*beads(-0.015, -0.02, 0.02, 0.02), colour=WHITE)
        return
    metal = person.pick("necklace.metal", (_GOLD, _SILVER))
    scene.fill(pose.body(stroke(line, 0.06, taper=False)), colour=metal)
    scene.fill(pose.body(stroke(moved(line, 0.0, -0.012), 0.016, taper=False)), colour=WHITE, opacity=0.7)
    scene.fill(pose.body(ellipse(0.0, low + 0.08, 0.1, 0.12)), colour=metal)
    scene.fill(pose.body(ellipse(0.0, low + 0.08, 0.065, 0.085)), colour=person.pick("necklace.gem", _GEMS))
    scene.fill(pose.body(ellipse(-0.02, low + 0.05, 0.02, 0.025)), colour=WHITE, opacity=0.9)


def paint_earrings(scene: Scene) -> None:
    """Paint hoops or drops; over the hair, so that they show with any style."""
    person = scene.person
    if not person.has("Wearing_Earrings"):
        return
    hoops = person.chance("earrings.hoops", 0.5)
    metal = person.pick("earrings.metal", (_GOLD, _SILVER))
    gem = person.pick("earrings.gem", _GEMS)

    def pair(y: float, rx: float, ry: float, *, right: float = 0.0) -> list[Points]:
        ears = (side * 1.03 - 0.3 * scene.pose.yaw for side in (-1.0, 1.0))
        return [scene.pose.head(ellipse(x + right, y, rx, ry)) for x in ears]

    scene.fill(*pair(0.6, 0.12, 0.18), colour=(40, 20, 30), opacity=0.35, blur=0.04)
    if hoops:
        scene.fill(*(piece for hoop in pair(0.56, 0.13, 0.17) for piece in ring(hoop, scene.px(0.06))), colour=metal)
        glint = [piece for hoop in pair(0.555, 0.135, 0.175) for piece in ring(hoop, scene.px(0.015))]
        scene.fill(*glint, colour=WHITE, opacity=0.6)
    else:
        scene.fill(*pair(0.4, 0.055, 0.055), *pair(0.58, 0.105, 0.15), colour=metal)
        scene.fill(*pair(0.585, 0.07, 0.11), colour=gem)
        scene.fill(*pair(0.54, 0.02, 0.03, right=-0.02), colour=WHITE, opacity=0.9)


def paint_glasses(scene: Scene, face: Face) -> None:
    """Paint glasses with clear lenses."""
    person, pose = scene.person, scene.pose
    if not person.has("Eyeglasses"):
        return
    dark_skin = luminance(scene.palette.skin) < 130
    colour = person.pick("glasses.colour", _FRAMES_ON_DARK if dark_skin else _FRAMES_ON_LIGHT)
    shape = person.pick("glasses.shape", ("round", "square", "cat"))
    width = person.between("glasses.width", 0.06, 0.085)
    rx, ry, power = {"round": (0.335, 0.315, 2.0), "square": (0.355, 0.265, 4.5), "cat": (0.36, 0.27, 2.8)}[shape]
    lenses: list[Points] = []
    frames: list[Points] = []
    for side in (-1.0, 1.0):
        lens = ellipse(0.0, 0.0, rx, ry, power=power)
        if shape == "cat":
            lens[:, 1] -= 0.09 * np.clip(side * lens[:, 0] / rx, 0.0, 1.0) ** 2 * (lens[:, 1] < 0.1)
        lenses.append(pose.face(moved(lens, side * 0.43, 0.03), depth=0.1))
        frames += ring(lenses[-1], scene.px(width))
        hinge = pose.face(points((side * (0.43 + rx), -0.06)), depth=0.1)
        ear = pose.head(points((side * 1.02 - 0.3 * pose.yaw, -0.04)))
        frames.append(stroke(np.concatenate([hinge, ear]), scene.px(width * 0.8), taper=False))
    bridge = points((-0.43 + rx, -0.03), (0.0, -0.08), (0.43 - rx, -0.03))
    frames.append(pose.face(stroke(smooth(bridge, closed=False), width * 0.9, taper=False), depth=0.15))
    glass = scene.canvas.mask(*lenses)
    scene.canvas.paint(glass, WHITE, 0.08)
    band = points((-0.04, -0.4), (0.12, -0.4), (-0.1, 0.4), (-0.26, 0.4))
    sheen = [pose.face(moved(band, side * 0.43, 0.0), depth=0.1) for side in (-1.0, 1.0)]
    scene.fill(*sheen, colour=WHITE, opacity=0.2, blur=0.012, within=glass)
    scene.cast(*frames, drop=0.05, blur=0.02, opacity=0.3, within=face.mask)
    scene.fill(*frames, colour=colour)

"""Hats: a beanie, a cap, a hat with a brim. All end at one height, above bangs and brows."""

from __future__ import annotations

import numpy as np

from demo.hair import HAT_RIM
from demo.head import Face
from demo.paint import WHITE, Colour, Points, ellipse, mirrored, mix, points, scale, smooth, stroke
from demo.scene import Scene

# No hair colour is near any of these: a hat must not be taken for hair in a small picture.
_COLOURS: tuple[Colour, ...] = (
    (214, 58, 62),
    (34, 142, 148),
    (62, 98, 196),
    (240, 120, 60),
    (142, 74, 176),
    (48, 148, 86),
    (226, 74, 132),
)


def paint_hat(scene: Scene, face: Face) -> None:
    """Paint the hat of a person who wears one."""
    person = scene.person
    if person.has("Wearing_Hat"):
        paint = person.pick("hat.style", (_paint_beanie, _paint_cap, _paint_brim))
        paint(scene, person.pick("hat.colour", _COLOURS), face)


def _dome(scene: Scene, colour: Colour, right: Points) -> None:
    shape, soft = smooth(mirrored(right), steps=10), scene.coarse()
    soft.canvas.gradient(mix(colour, WHITE, 0.2), colour, *soft.pose.head(points((0.0, -1.75), (0.0, -0.9))))
    shadow = scale(colour, 0.55, 0.48, 0.58)
    soft.shade(soft.pose.head(shape), reach=0.3, blur=0.17, colour=shadow, opacity=0.85)
    glow = soft.pose.head(ellipse(0.0, -1.34, 0.34, 0.16)) + soft.light * soft.px(0.3)
    soft.fill(glow, colour=WHITE, opacity=0.28, blur=0.12)
    scene.lay(soft, scene.canvas.mask(scene.pose.head(shape)))


def _paint_beanie(scene: Scene, colour: Colour, face: Face) -> None:
    pose, person, soft = scene.pose, scene.person, scene.coarse()
    right = ((0.0, -1.12), (0.7, -1.06), (1.16, -0.92), (1.2, -0.72), (1.12, -0.6), (0.7, -0.73), (0.0, HAT_RIM))
    band = smooth(mirrored(points(*right)))
    scene.cast(pose.head(band), drop=0.1, blur=0.05, opacity=0.4, within=face.mask)
    if person.chance("hat.bobble", 0.5):
        _paint_bobble(scene, colour)
    _dome(scene, colour, points((0.0, -1.64), (0.6, -1.55), (1.02, -1.24), (1.13, -0.85), (0.6, -0.9), (0.0, -0.95)))
    cuff = mix(colour, WHITE, 0.3) if person.chance("hat.light cuff", 0.5) else scale(colour, 0.78, 0.72, 0.8)
    soft.fill(soft.frame(), colour=cuff)
    shadow = scale(cuff, 0.55, 0.48, 0.58)
    soft.shade(soft.pose.head(band), reach=0.22, blur=0.12, colour=shadow, opacity=0.8)
    mask = scene.canvas.mask(pose.head(band))
    scene.lay(soft, mask)
    x = np.linspace(-1.15, 1.15, 17)
    lines = np.stack([np.stack([x * (1 + 0.01 * k), -1.14 + 0.28 * k + 0 * x], axis=1) for k in range(3)], axis=1)
    scene.fill(*pose.head(stroke(lines, 0.03)), colour=scale(cuff, 0.72, 0.65, 0.74), opacity=0.55, within=mask)


def _paint_bobble(scene: Scene, colour: Colour) -> None:
    soft = scene.coarse()
    soft.fill(soft.frame(), colour=mix(colour, WHITE, 0.78))
    ball = ellipse(0.0, -1.67, 0.23, 0.2)
    soft.shade(soft.pose.head(ball), reach=0.1, blur=0.07, colour=mix(colour, WHITE, 0.25), opacity=0.8)
    scene.lay(soft, scene.canvas.mask(scene.pose.head(ball), blur=scene.px(0.02)))


def _paint_cap(scene: Scene, colour: Colour, face: Face) -> None:
    pose = scene.pose
    right = ((0.0, -1.1), (0.62, -1.06), (1.02, -0.9), (1.06, -0.72), (0.95, -0.66), (0.55, -0.78), (0.0, -0.82))
    visor = smooth(mirrored(points(*right)))
    placed = pose.face(visor, turn=1.2)
    scene.cast(placed, drop=0.13, blur=0.05, opacity=0.42, within=face.mask)
    _dome(scene, colour, points((0.0, -1.64), (0.6, -1.54), (1.03, -1.2), (1.14, -0.82), (0.6, -0.84), (0.0, -0.9)))
    seam = points((0.0, -1.64), (0.4, -1.4), (0.5, -0.95))
    seams = [pose.face(stroke(smooth(seam * (s, 1.0), closed=False), 0.022), turn=0.8) for s in (-1.0, 1.0)]
    scene.fill(*seams, pose.face(ellipse(0.0, -1.64, 0.08, 0.04), turn=0.8), colour=scale(colour, 0.6, 0.55, 0.62))
    scene.fill(pose.face(ellipse(0.0, -1.27, 0.17, 0.14), turn=0.8), colour=mix(colour, WHITE, 0.82))
    soft = scene.coarse()
    ends = soft.pose.head(points((0.0, -1.1), (0.0, -0.7)))
    soft.canvas.gradient(mix(colour, WHITE, 0.12), scale(colour, 0.62, 0.56, 0.64), *ends)
    scene.lay(soft, scene.canvas.mask(placed))
    stitch = points((-0.9, -0.8), (-0.5, -0.93), (0.0, -0.97), (0.5, -0.93), (0.9, -0.8))
    line = pose.face(stroke(smooth(stitch, closed=False), 0.018), turn=1.2)
    scene.fill(line, colour=scale(colour, 0.6, 0.55, 0.62), opacity=0.7)


def _paint_brim(scene: Scene, colour: Colour, face: Face) -> None:
    pose, soft = scene.pose, scene.coarse()
    wide = scene.person.between("hat.brim", 1.45, 1.7)
    right = ((0.0, -1.2), (0.8, -1.16), (wide - 0.1, -0.98), (wide, -0.86), (wide - 0.3, -0.77), (0.7, -0.78))
    brim = smooth(mirrored(points(*right, (0.0, HAT_RIM + 0.02))))
    scene.cast(pose.head(brim), drop=0.12, blur=0.06, opacity=0.42, within=face.mask)
    ends = soft.pose.head(points((0.0, -1.1), (0.0, -0.76)))
    soft.canvas.gradient(mix(colour, WHITE, 0.1), scale(colour, 0.66, 0.6, 0.68), *ends)
    shadow = scale(colour, 0.5, 0.44, 0.52)
    soft.shade(soft.pose.head(brim), reach=0.3, blur=0.15, colour=shadow, opacity=0.7)
    scene.lay(soft, scene.canvas.mask(pose.head(brim)))
    crown = ((0.0, -1.64), (0.5, -1.7), (0.84, -1.56), (0.98, -1.2), (1.02, -0.98), (0.6, -0.93), (0.0, -0.91))
    _dome(scene, colour, points(*crown))
    ribbon = points((0.0, -1.1), (0.55, -1.13), (0.97, -1.2), (1.02, -1.0), (0.6, -0.94), (0.0, -0.91))
    scene.fill(pose.head(smooth(mirrored(ribbon), steps=4)), colour=scale(colour, 0.4, 0.34, 0.42))

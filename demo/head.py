"""The head itself: neck, ears, skin, nose, mouth, cheeks, eyes and brows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from demo.outlines import Points, columns, ellipse, half, line, moved, pair, stroke
from demo.paint import WHITE, Layer, Mask, Scene, colours, mix, scale

_IRISES = colours("603a22 462a1e 865c30 587a46 467ca8 6098bc 707e8a")
_LIPSTICKS = colours("ce1436 ba1058 e2285c 960a32")
_LASH = (44, 28, 30)


def face_outline(scene: Scene) -> Points:
    """The edge of the face, the skull under the hair included."""
    person = scene.person
    jaw, cheek = person.between("face.jaw", 0.60, 0.75), person.between("face.cheek", 0.87, 0.95)
    chin = person.between("face.chin", 1.20, 1.32) + 0.04 * person.has("Mouth_Slightly_Open")
    point = person.between("face.point", 0.25, 0.36)
    upper = ((0.0, -1.34), (0.52, -1.22), (0.88, -0.84), (0.98, -0.3), (0.98, 0.1))
    outline = half(*upper, (cheek, 0.45), (jaw, 0.84), (point, chin - 0.08), (0.0, chin))
    # The chin is further in front than the skull, so it turns further to the side.
    outline[:, 0] += scene.yaw * 0.8 * np.clip((outline[:, 1] + 0.4) / 1.5, 0.0, 1.0)
    return outline


def paint_neck(scene: Scene, neckline: Points) -> None:
    """Paint neck and chest down to the neckline (a closed outline), with the head's shadow on them."""
    shadow, chin = scene.skin_shadow, face_outline(scene)
    wide = scene.person.between("neck.width", 0.42, 0.52)
    neck = half((0.0, 0.6), (wide, 0.62), (wide, 1.1), (wide + 0.06, 1.5), (0.0, 1.74))
    with scene.soft(scene.mask(neck, neckline, on="body"), scene.skin) as soft:
        soft.shade(shadow, neck, neckline, on="body", reach=0.2, blur=0.12, opacity=0.8)
        soft.fill(shadow, chin, on="head", shift=(0.0, 0.26), opacity=0.85, blur=0.07)
        soft.cast(chin, on="head", drop=0.15, opacity=0.34, blur=0.05)


def paint_ears(scene: Scene) -> None:
    """Paint the ears; hair and the face come over them."""
    shadow, turned = scene.skin_shadow, -0.3 * scene.yaw
    ear = moved(pair(ellipse(1.0, 0.12, 0.15, 0.25, tilt=10)), turned, 0.0)
    with scene.soft(scene.mask(ear, on="head"), scene.skin) as soft:
        soft.shade(shadow, ear, on="head", reach=0.08, blur=0.05, opacity=0.8)
        soft.fill(shadow, moved(pair(ellipse(1.0, 0.12, 0.07, 0.15, tilt=10)), turned, 0.0), on="head", blur=0.025)


def paint_skin(scene: Scene, shade_forehead: Callable[[Scene], None]) -> Mask:
    """Paint the skin of the face, rounded by the light, with the cheeks that blush and that a smile lifts."""
    person, outline, toward = scene.person, face_outline(scene), scene.side
    skin, shadow, deep, lit = scene.skin, scene.skin_shadow, scene.skin_deep, scene.skin_light
    left, right = pair(ellipse(0.52, 0.3, 0.2, 0.12))
    spots: list[Layer] = [
        (lit, left, 0.4 - 0.15 * toward, 0.09),
        (lit, right, 0.4 + 0.15 * toward, 0.09),
        (shadow, pair(ellipse(0.4, -0.1, 0.27, 0.16)), 0.42, 0.08),
        (lit, ellipse(0.2 * toward, -0.62, 0.36, 0.2), 0.5, 0.13),
    ]
    if person.has("Rosy_Cheeks"):
        spots.append((scene.blush, pair(ellipse(0.6, 0.42, 0.22, 0.15, tilt=-14)), 0.85, 0.075))
    if person.has("Smiling"):
        spots.append((deep, pair(stroke(line((0.30, 0.44), (0.47, 0.53), (0.55, 0.68)), 0.045)), 0.4, 0.02))
        spots.append((lit, pair(ellipse(0.56, 0.33, 0.17, 0.1, tilt=-12)), 0.5, 0.06))
    face = scene.mask(outline, on="head")
    with scene.soft(face, mix(skin, lit, 0.4), skin) as soft:
        soft.shade(shadow, outline, on="head", reach=0.3, blur=0.2, opacity=0.8)
        soft.shade(deep, moved(outline, 0.0, -0.07), on="head", reach=0.04, blur=0.07, opacity=0.36)
        soft.layer(*spots)
        shade_forehead(soft)
    if person.chance("freckles", 0.2):
        freckles = []
        for n in range(22):
            x, y = person.between(f"freckle{n}.x", -0.62, 0.62), person.between(f"freckle{n}.y", 0.2, 0.44)
            freckles.append(ellipse(x, y, person.between(f"freckle{n}.size", 0.009, 0.017), 0.012))
        scene.fill(deep, np.stack(freckles), opacity=0.42, within=face)
    return face


def paint_nose(scene: Scene) -> None:
    """Paint the nose, small or big."""
    person, away, big = scene.person, -scene.side, scene.person.has("Big_Nose")
    wide = person.between("nose.width", *((1.75, 2.0) if big else (0.78, 0.95)))
    tip = person.between("nose.length", 0.44, 0.5) + 0.03 * big
    shadow, lit = scene.skin_shadow, scene.skin_light
    bridge = ((away * 0.08, -0.16), (away * 0.1 * wide, 0.1), (away * 0.16 * wide, tip - 0.08), (0.0, tip - 0.04))
    right = ((0.0, -0.17), (0.09, -0.14), (0.15, -0.08), (0.19, -0.01), (0.14, 0.03), (0.05, 0.045), (0.0, 0.055))
    ball = moved(half(*right) * wide, 0.0, tip)
    scene.layer(
        (shadow, line(*bridge, (away * 0.02, -0.16), closed=True), 0.75, 0.035),
        (shadow, ellipse(0.0, tip + 0.07, 0.17 * wide, 0.05), 0.85, 0.04),
        (mix(scene.skin, scene.blush, 0.16 if big else 0.08), ball, 0.9, 0.022),
        on="nose",
    )
    bright = scene.mask(ball, on="nose", shift=scene.light * 0.09 * wide, blur=0.05)
    scene.paint(shadow, scene.mask(ball, on="nose", blur=0.022).without(bright), 0.9)
    scene.layer(
        (lit, ellipse(away * -0.02, tip - 0.33, 0.025 * wide, 0.16), 0.7, 0.025),
        (mix(lit, WHITE, 0.5), ellipse(away * -0.03 * wide, tip - 0.09, 0.05 * wide, 0.045), 0.75, 0.025),
        (scene.skin_deep, pair(ellipse(0.085 * wide, tip + 0.02, 0.045 * wide, 0.026, tilt=-14)), 0.85, 0.008),
        on="nose",
    )


def paint_mouth(scene: Scene) -> None:
    """Paint the mouth: neutral or smiling, closed or a little open, with or without lipstick."""
    person = scene.person
    smiling, opened, painted = (person.has(name) for name in ("Smiling", "Mouth_Slightly_Open", "Wearing_Lipstick"))
    reach = person.between("mouth.width", *((0.43, 0.49) if smiling else (0.25, 0.30)))
    lift = person.between("mouth.smile", *((0.17, 0.21) if smiling else (-0.025, 0.015)))
    gap = person.between("mouth.gap", 0.19, 0.23) if opened else 0.0
    full = person.between("mouth.fullness", 0.85, 1.2)
    t = np.linspace(-1.0, 1.0, 33)
    arch = 1 - t**2
    middle = 0.77 + lift * 0.45 - lift * t**2 - 0.05 * opened
    upper = middle - 0.3 * gap * arch + 0.012 * np.exp(-((t / 0.25) ** 2)) * (not opened)
    lower = middle + 0.7 * gap * arch**0.7
    top = upper - 0.075 * full * arch**0.6 * (1 - 0.3 * np.exp(-((t / 0.13) ** 2)))
    bottom = lower + 0.105 * full * arch**0.75 * (0.8 if smiling else 1.0)

    def between(above: Points, below: Points) -> Points:
        return np.concatenate([columns(t * reach, above), columns(t * reach, below)[::-1]])

    lips = person.pick("mouth.lipstick", _LIPSTICKS) if painted else mix(scene.skin_shadow, (190, 78, 84), 0.38)
    below = between(bottom + 0.02, bottom + 0.075 * arch)
    scene.fill(scene.skin_shadow, below, on="lips", opacity=0.7, blur=0.03)
    scene.fill(scale(lips, 0.86, 0.8, 0.84), between(top, upper + 0.01), on="lips")
    scene.fill(lips, between(lower - 0.01, bottom), on="lips")
    if opened:
        inside = scene.mask(between(upper, lower), on="lips")
        scene.paint((86, 22, 34), inside)
        tongue = ellipse(0.0, float(lower.max()), 0.17, 0.085)
        scene.fill((212, 92, 98), tongue, on="lips", blur=0.015, within=inside)
        teeth = between(upper, upper + 0.38 * gap * arch)
        scene.fill((252, 248, 240), teeth, on="lips", opacity=1.0 if smiling else 0.85, within=inside)
    else:
        crease = stroke(columns(t * reach * 1.04, middle + 0.004), 0.034)
        scene.fill(scale(scene.skin_deep, 0.7, 0.55, 0.6), crease, on="lips")
    shine = ellipse(0.12 * reach, float(lower[16] + bottom[16]) / 2, 0.36 * reach, 0.018)
    scene.fill(WHITE, shine, on="lips", opacity=0.6 if painted else 0.3, blur=0.014)


def paint_eyes(scene: Scene, face: Mask) -> None:
    """Paint both eyes, wide or narrow, looking somewhere near the viewer."""
    person, deep = scene.person, scene.skin_deep
    apart, wide = person.between("eyes.apart", 0.39, 0.44), person.between("eyes.width", 0.235, 0.265)
    high = person.between("eyes.height", *((0.065, 0.08) if person.has("Narrow_Eyes") else (0.155, 0.185)))
    slant = person.between("eyes.slant", -0.02, 0.045)
    t = np.linspace(-1.0, 1.0, 21)
    arch, x = 1 - t**2, apart + t * wide
    upper = columns(x, -slant * t - high * arch**0.7)
    lower = columns(x, -slant * t + (0.45 if person.has("Smiling") else 0.72) * high * arch**0.85)
    opening = scene.mask(pair(np.concatenate([upper, lower[::-1]])))
    scene.paint((250, 246, 244), opening)
    colour, toward = person.pick("eyes.colour", _IRISES), scene.side
    gaze_x, gaze_y = person.between("eyes.gaze.x", -0.06, 0.06), person.between("eyes.gaze.y", -0.03, 0.02)
    for radius, right, down, paint, opacity, blur in (
        (0.15, 0.0, 0.0, scale(colour, 0.45, 0.45, 0.5), 1.0, 0.0),
        (0.128, 0.0, 0.0, colour, 1.0, 0.0),
        (0.08, 0.0, 0.05, mix(colour, (255, 236, 190), 0.45), 1.0, 0.022),
        (0.068, 0.0, 0.0, (18, 14, 18), 1.0, 0.0),
        (0.038, toward * 0.05, -0.045, WHITE, 1.0, 0.0),
        (0.016, toward * -0.045, 0.045, WHITE, 0.8, 0.0),
    ):
        discs = (ellipse(gaze_x + side * apart + right, gaze_y + down, radius, radius) for side in (-1.0, 1.0))
        scene.fill(paint, *discs, opacity=opacity, blur=blur, within=opening)

    lid = np.concatenate([moved(upper, 0.0, -0.05), moved(upper, 0.0, 0.05)[::-1]])
    scene.fill(_LASH, pair(lid), opacity=0.42, blur=0.018, within=opening)
    thick = columns(0.0, 0.03 + 0.018 * t)
    wing = [(apart + 1.13 * wide, -slant - 0.05)]
    scene.fill(_LASH, pair(np.concatenate([upper + 0.3 * thick, wing, (upper - thick)[::-1]])))
    crease, rim = stroke(moved(upper[3:-1], 0.0, -0.075), 0.026), stroke(moved(lower[2:-2], 0.0, 0.012), 0.022)
    scene.fill(deep, pair(crease), opacity=0.5, blur=0.008, within=face)
    scene.fill(deep, pair(rim), opacity=0.55, within=face)


def paint_brows(scene: Scene) -> None:
    """Paint the eyebrows, in the colour of the hair."""
    person, bushy = scene.person, scene.person.has("Bushy_Eyebrows")
    thick = person.between("brows.width", *((0.15, 0.18) if bushy else (0.045, 0.06)))
    arched, slant = person.between("brows.arch", 0.01, 0.06), person.between("brows.slant", 0.0, 0.045)
    inner, outer = ((0.17, -0.355 - slant), (0.35, -0.385 - 0.4 * arched)), (0.74, -0.30 - 0.3 * arched)
    brow = line(*inner, (0.54, -0.375 - arched), outer)
    widths = thick * np.interp(np.linspace(0, 1, len(brow)), [0, 0.25, 0.6, 1], [0.85, 1.05, 0.85, 0.3])
    strokes = [pair(stroke(brow, widths))]
    if bushy:
        roots = brow[1:-6:3]
        hairs = np.stack([moved(roots, *step) for step in ((-0.01, 0.05), (0.03, -0.03), (0.08, -0.105))], axis=1)
        strokes.append(pair(stroke(hairs, 0.03)))
    scene.fill(scene.brow, *strokes, opacity=0.96, blur=0.007)

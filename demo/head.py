"""The head itself: neck, ears, skin, nose, mouth, cheeks, eyes and brows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo.paint import (
    WHITE,
    Colour,
    Mask,
    Points,
    ellipse,
    luminance,
    mirrored,
    mix,
    moved,
    points,
    scale,
    smooth,
    stroke,
)
from demo.scene import Pose, Scene
from demo.traits import Person

_IRIS: tuple[Colour, ...] = (
    (96, 58, 34),
    (70, 42, 30),
    (134, 92, 48),
    (88, 122, 70),
    (70, 124, 168),
    (96, 152, 188),
    (112, 126, 138),
)
_LIPSTICKS: tuple[Colour, ...] = ((206, 20, 54), (186, 16, 88), (226, 40, 92), (150, 10, 50))
_LASH: Colour = (44, 28, 30)


@dataclass(frozen=True)
class Face:
    """The painted skin: its outline in pixels and its mask."""

    outline: Points
    mask: Mask


def face_outline(scene: Scene) -> Points:
    """The edge of the face in head units, the skull under the hair included."""
    person = scene.person
    jaw = person.between("face.jaw", 0.60, 0.75)
    cheek = person.between("face.cheek", 0.87, 0.95)
    chin = person.between("face.chin", 1.20, 1.32) + 0.04 * person.has("Mouth_Slightly_Open")
    point = person.between("face.point", 0.25, 0.36)
    right = points(
        (0.0, -1.34),
        (0.52, -1.22),
        (0.88, -0.84),
        (0.98, -0.3),
        (0.98, 0.1),
        (cheek, 0.45),
        (jaw, 0.84),
        (point, chin - 0.08),
        (0.0, chin),
    )
    outline = smooth(mirrored(right))
    # The chin is further in front than the skull, so it turns further to the side.
    outline[:, 0] += scene.pose.yaw * 0.8 * np.clip((outline[:, 1] + 0.4) / 1.5, 0.0, 1.0)
    return outline


def paint_neck(scene: Scene, neckline: Points) -> None:
    """Paint neck and chest down to the neckline (a closed outline in head units), with the head's shadow on them."""
    palette, soft = scene.palette, scene.coarse()
    width = scene.person.between("neck.width", 0.42, 0.52)
    right = points((0.0, 0.6), (width, 0.62), (width, 1.1), (width + 0.06, 1.5), (0.0, 1.74))
    neck = smooth(mirrored(right))
    shapes = soft.pose.body(neck), soft.pose.body(neckline)
    soft.fill(soft.frame(), colour=palette.skin)
    soft.shade(*shapes, reach=0.2, blur=0.12, colour=palette.skin_shadow, opacity=0.8)
    chin = soft.pose.head(face_outline(scene))
    soft.fill(moved(chin, 0.0, soft.px(0.26)), colour=palette.skin_shadow, opacity=0.85, blur=0.07)
    soft.cast(chin, drop=0.15, blur=0.05, opacity=0.34)
    scene.lay(soft, scene.canvas.mask(scene.pose.body(neck), scene.pose.body(neckline)))


def paint_ears(scene: Scene) -> None:
    """Paint the ears; hair and the face come over them."""
    palette, soft = scene.palette, scene.coarse()

    def ears(pose: Pose, rx: float, ry: float) -> list[Points]:
        return [pose.head(ellipse(s * 1.0 - 0.3 * pose.yaw, 0.12, rx, ry, tilt=s * 10)) for s in (-1.0, 1.0)]

    soft.fill(soft.frame(), colour=palette.skin)
    soft.shade(*ears(soft.pose, 0.15, 0.25), reach=0.08, blur=0.05, colour=palette.skin_shadow, opacity=0.8)
    soft.fill(*ears(soft.pose, 0.07, 0.15), colour=palette.skin_shadow, blur=0.025)
    scene.lay(soft, scene.canvas.mask(*ears(scene.pose, 0.15, 0.25)))


def shape_face(scene: Scene) -> Face:
    """The face as it will stand in the picture; nothing is painted yet."""
    outline = scene.pose.head(face_outline(scene))
    return Face(outline, scene.canvas.mask(outline))


def paint_skin(soft: Scene) -> None:
    """Paint the skin of the face on a coarse scene, rounded by the light."""
    palette, pose = soft.palette, soft.pose
    outline = pose.head(face_outline(soft))
    centre, across = outline.mean(axis=0), soft.light * soft.px(1.3)
    start = mix(palette.skin, palette.skin_light, 0.4)
    soft.canvas.gradient(start, palette.skin, centre + across, centre - across)
    soft.shade(outline, reach=0.3, blur=0.2, colour=palette.skin_shadow, opacity=0.8)
    soft.shade(moved(outline, 0.0, -soft.px(0.07)), reach=0.04, blur=0.07, colour=palette.skin_deep, opacity=0.36)
    toward = float(np.sign(soft.light[0]))
    for side in (-1.0, 1.0):
        cheekbone = pose.face(ellipse(side * 0.52, 0.3, 0.2, 0.12))
        soft.fill(cheekbone, colour=palette.skin_light, opacity=0.4 + 0.15 * side * toward, blur=0.09)
        socket = pose.face(ellipse(side * 0.4, -0.1, 0.27, 0.16))
        soft.fill(socket, colour=palette.skin_shadow, opacity=0.42, blur=0.08)
    forehead = pose.face(ellipse(0.2 * toward, -0.62, 0.36, 0.2))
    soft.fill(forehead, colour=palette.skin_light, opacity=0.5, blur=0.13)


def paint_cheeks(soft: Scene) -> None:
    """Paint the blush of rosy cheeks, and the cheeks that a smile lifts, on a coarse scene."""
    palette, pose = soft.palette, soft.pose
    if soft.person.has("Rosy_Cheeks"):
        blush = [pose.face(ellipse(side * 0.6, 0.42, 0.22, 0.15, tilt=-side * 14)) for side in (-1.0, 1.0)]
        soft.fill(*blush, colour=palette.blush, opacity=0.85, blur=0.075)
    if soft.person.has("Smiling"):
        right = smooth(points((0.30, 0.44), (0.47, 0.53), (0.55, 0.68)), closed=False)
        folds = [pose.face(stroke(right * (side, 1.0), 0.045)) for side in (-1.0, 1.0)]
        soft.fill(*folds, colour=palette.skin_deep, opacity=0.4, blur=0.02)
        apples = [pose.face(ellipse(side * 0.56, 0.33, 0.17, 0.1, tilt=-side * 12)) for side in (-1.0, 1.0)]
        soft.fill(*apples, colour=palette.skin_light, opacity=0.5, blur=0.06)


def paint_freckles(scene: Scene, face: Face) -> None:
    """Paint freckles on some faces."""
    person = scene.person
    if not person.chance("freckles", 0.2):
        return
    spots = [
        scene.pose.face(
            ellipse(
                person.between(f"freckle{n}.x", -0.62, 0.62),
                person.between(f"freckle{n}.y", 0.2, 0.44),
                person.between(f"freckle{n}.size", 0.009, 0.017),
                0.012,
            )
        )
        for n in range(22)
    ]
    scene.fill(*spots, colour=scene.palette.skin_deep, opacity=0.42, within=face.mask)


def paint_nose(soft: Scene) -> None:
    """Paint the form of the nose on a coarse scene."""
    palette, (wide, tip) = soft.palette, _nose(soft.person)
    away = -float(np.sign(soft.light[0]))

    def place(outline: Points) -> Points:
        return soft.pose.face(outline, depth=0.35)

    bridge = points(
        (away * 0.08, -0.16),
        (away * 0.1 * wide, 0.1),
        (away * 0.16 * wide, tip - 0.08),
        (0.0, tip - 0.04),
        (away * 0.02, -0.16),
    )
    soft.fill(place(smooth(bridge)), colour=palette.skin_shadow, opacity=0.75, blur=0.035)
    soft.fill(place(ellipse(0.0, tip + 0.07, 0.17 * wide, 0.05)), colour=palette.skin_shadow, opacity=0.85, blur=0.04)
    right = points((0.0, -0.17), (0.09, -0.14), (0.15, -0.08), (0.19, -0.01), (0.14, 0.03), (0.05, 0.045), (0.0, 0.055))
    ball = place(moved(smooth(mirrored(right)) * wide, 0.0, tip))
    mask = soft.canvas.mask(ball, blur=soft.px(0.022))
    soft.canvas.paint(mask, mix(palette.skin, palette.blush, 0.16 if wide > 1 else 0.08), 0.9)
    lit = soft.canvas.mask(ball + soft.light * soft.px(0.09 * wide), blur=soft.px(0.05))
    soft.canvas.paint(mask.without(lit), palette.skin_shadow, 0.9)
    ridge = place(ellipse(-away * 0.02, tip - 0.33, 0.025 * wide, 0.16))
    soft.fill(ridge, colour=palette.skin_light, opacity=0.7, blur=0.025)
    shine = place(ellipse(-away * 0.03 * wide, tip - 0.09, 0.05 * wide, 0.045))
    soft.fill(shine, colour=mix(palette.skin_light, WHITE, 0.5), opacity=0.75, blur=0.025)


def paint_nostrils(scene: Scene) -> None:
    """Paint what is sharp about the nose."""
    wide, tip = _nose(scene.person)
    holes = [ellipse(s * 0.085 * wide, tip + 0.02, 0.045 * wide, 0.026, tilt=-s * 14) for s in (-1.0, 1.0)]
    placed = [scene.pose.face(hole, depth=0.35) for hole in holes]
    scene.fill(*placed, colour=scene.palette.skin_deep, opacity=0.85, blur=0.008)


def _nose(person: Person) -> tuple[float, float]:
    big = person.has("Big_Nose")
    wide = person.between("nose.width", 1.75, 2.0) if big else person.between("nose.width", 0.78, 0.95)
    return wide, person.between("nose.length", 0.44, 0.5) + 0.03 * big


def paint_mouth(scene: Scene) -> None:
    """Paint the mouth: neutral or smiling, closed or a little open, with or without lipstick."""
    person, palette, pose = scene.person, scene.palette, scene.pose
    smiling, opened = person.has("Smiling"), person.has("Mouth_Slightly_Open")
    half = person.between("mouth.width", 0.43, 0.49) if smiling else person.between("mouth.width", 0.25, 0.30)
    lift = person.between("mouth.smile", 0.17, 0.21) if smiling else person.between("mouth.smile", -0.025, 0.015)
    gap = person.between("mouth.gap", 0.19, 0.23) if opened else 0.0
    full = person.between("mouth.fullness", 0.85, 1.2)
    t = np.linspace(-1.0, 1.0, 33)
    arch = 1 - t**2
    middle = 0.77 + lift * 0.45 - lift * t**2 - 0.05 * opened
    upper = middle - 0.3 * gap * arch + 0.012 * np.exp(-((t / 0.25) ** 2)) * (not opened)
    lower = middle + 0.7 * gap * arch**0.7
    bow = arch**0.6 * (1 - 0.3 * np.exp(-((t / 0.13) ** 2)))
    top = upper - 0.075 * full * bow
    bottom = lower + 0.105 * full * arch**0.75 * (0.8 if smiling else 1.0)

    def outline(above: Points, below: Points) -> Points:
        x = t * half
        edge = np.concatenate([np.stack([x, above], axis=1), np.stack([x, below], axis=1)[::-1]])
        return pose.face(edge, depth=0.12)

    bare = mix(palette.skin_shadow, (190, 78, 84), 0.38)
    painted = person.has("Wearing_Lipstick")
    lips = person.pick("mouth.lipstick", _LIPSTICKS) if painted else bare
    scene.fill(outline(bottom + 0.02, bottom + 0.075 * arch), colour=palette.skin_shadow, opacity=0.7, blur=0.03)
    scene.fill(outline(top, upper + 0.01), colour=scale(lips, 0.86, 0.8, 0.84))
    scene.fill(outline(lower - 0.01, bottom), colour=lips)
    if opened:
        _paint_open_mouth(scene, outline(upper, lower), outline(upper, upper + 0.38 * gap * arch), smiling=smiling)
    else:
        crease = stroke(np.stack([t * half * 1.04, middle + 0.004], axis=1), 0.034)
        scene.fill(pose.face(crease, depth=0.12), colour=scale(palette.skin_deep, 0.7, 0.55, 0.6))
    shine = pose.face(ellipse(0.12 * half, float(lower[16] + bottom[16]) / 2, 0.36 * half, 0.018), depth=0.12)
    scene.fill(shine, colour=WHITE, opacity=0.6 if painted else 0.3, blur=0.014)


def _paint_open_mouth(scene: Scene, inside: Points, teeth: Points, *, smiling: bool) -> None:
    mask = scene.canvas.mask(inside)
    scene.canvas.paint(mask, (86, 22, 34))
    middle, low = inside.mean(axis=0), inside[:, 1].max()
    tongue = ellipse(float(middle[0]), float(low), scene.px(0.17), scene.px(0.085))
    scene.fill(tongue, colour=(212, 92, 98), blur=0.015, within=mask)
    scene.fill(teeth, colour=(252, 248, 240), opacity=1.0 if smiling else 0.85, within=mask)


def paint_eyes(scene: Scene, face: Face) -> None:
    """Paint both eyes, wide or narrow, looking somewhere near the viewer."""
    person, palette, pose = scene.person, scene.palette, scene.pose
    apart = person.between("eyes.apart", 0.39, 0.44)
    wide = person.between("eyes.width", 0.235, 0.265)
    narrow = person.has("Narrow_Eyes")
    high = person.between("eyes.height", 0.065, 0.08) if narrow else person.between("eyes.height", 0.155, 0.185)
    slant = person.between("eyes.slant", -0.02, 0.045)
    cheeks_up = 0.45 if person.has("Smiling") else 0.72

    def both(right: Points) -> tuple[Points, Points]:
        return pose.face(right * (-1.0, 1.0)), pose.face(right)

    t = np.linspace(-1.0, 1.0, 21)
    arch = 1 - t**2
    x, tilt = apart + t * wide, -slant * t
    upper = np.stack([x, tilt - high * arch**0.7], axis=1)
    lower = np.stack([x, tilt + cheeks_up * high * arch**0.85], axis=1)
    openings = scene.canvas.mask(*both(np.concatenate([upper, lower[::-1]])))
    scene.canvas.paint(openings, (250, 246, 244))
    _paint_irises(scene, apart, openings)
    lid = np.concatenate([moved(upper, 0.0, -0.05), moved(upper, 0.0, 0.05)[::-1]])
    scene.fill(*both(lid), colour=_LASH, opacity=0.42, blur=0.018, within=openings)
    wing = points((apart + 1.13 * wide, -slant - 0.05))
    thick = np.stack([0 * t, 0.03 + 0.018 * t], axis=1)
    scene.fill(*both(np.concatenate([upper + 0.3 * thick, wing, (upper - thick)[::-1]])), colour=_LASH)
    crease = stroke(moved(upper[3:-1], 0.0, -0.075), 0.026)
    scene.fill(*both(crease), colour=palette.skin_deep, opacity=0.5, blur=0.008, within=face.mask)
    rim = stroke(moved(lower[2:-2], 0.0, 0.012), 0.022)
    scene.fill(*both(rim), colour=palette.skin_deep, opacity=0.55, within=face.mask)


def _paint_irises(scene: Scene, apart: float, openings: Mask) -> None:
    person = scene.person
    colour = person.pick("eyes.colour", _IRIS)
    gaze_x, gaze_y = person.between("eyes.gaze.x", -0.06, 0.06), person.between("eyes.gaze.y", -0.03, 0.02)
    centres = scene.pose.face(points((gaze_x - apart, gaze_y), (gaze_x + apart, gaze_y)))

    def discs(radius: float, right: float = 0.0, down: float = 0.0) -> list[Points]:
        disc = ellipse(scene.px(right), scene.px(down), scene.px(radius), scene.px(radius))
        return [disc + centre for centre in centres]

    toward = float(np.sign(scene.light[0]))
    scene.fill(*discs(0.15), colour=scale(colour, 0.45, 0.45, 0.5), within=openings)
    scene.fill(*discs(0.128), colour=colour, within=openings)
    scene.fill(*discs(0.08, 0.0, 0.05), colour=mix(colour, (255, 236, 190), 0.45), blur=0.022, within=openings)
    scene.fill(*discs(0.068), colour=(18, 14, 18), within=openings)
    scene.fill(*discs(0.038, toward * 0.05, -0.045), colour=WHITE, within=openings)
    scene.fill(*discs(0.016, -toward * 0.045, 0.045), colour=WHITE, opacity=0.8, within=openings)


def paint_brows(scene: Scene) -> None:
    """Paint the eyebrows, in the colour of the hair."""
    person, palette, pose = scene.person, scene.palette, scene.pose
    bushy = person.has("Bushy_Eyebrows")
    thick = person.between("brows.width", 0.15, 0.18) if bushy else person.between("brows.width", 0.045, 0.06)
    arched = person.between("brows.arch", 0.01, 0.06)
    slant = person.between("brows.slant", 0.0, 0.045)
    colour = scale(palette.hair, 0.72, 0.66, 0.66) if luminance(palette.hair) > 60 else palette.hair
    line = points(
        (0.17, -0.355 - slant), (0.35, -0.385 - 0.4 * arched), (0.54, -0.375 - arched), (0.74, -0.30 - 0.3 * arched)
    )
    brow = smooth(line, closed=False)
    widths = thick * np.interp(np.linspace(0, 1, len(brow)), [0, 0.25, 0.6, 1], [0.85, 1.05, 0.85, 0.3])
    right = [stroke(brow, widths)]
    if bushy:
        roots = brow[1:-6:3]
        hairs = np.stack([moved(roots, -0.01, 0.05), moved(roots, 0.03, -0.03), moved(roots, 0.08, -0.105)], axis=1)
        right += list(stroke(hairs, 0.03))
    both = [pose.face(shape * (side, 1.0)) for side in (-1.0, 1.0) for shape in right]
    scene.fill(*both, colour=colour, opacity=0.96, blur=0.007)

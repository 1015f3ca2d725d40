"""What people change about themselves: hair and beard, clothes and jewels, glasses and hats.

Head hair is one silhouette. It is painted whole behind the head, and again in front of it with an opening cut out for
the face: so any style goes with any face, and nothing can come apart between the two.
"""

from __future__ import annotations

import numpy as np

from demo.head import face_outline
from demo.outlines import Points, columns, ellipse, half, line, moved, pair, points, ring, smooth, stroke
from demo.paint import WHITE, Layer, Mask, Place, Scene, colours, mix, scale

_HEAD: Place = "head"
_HAT_RIM = -0.80
_ABOVE_RIM = points((-3.0, -3.0), (3.0, -3.0), (3.0, _HAT_RIM - 0.12), (-3.0, _HAT_RIM - 0.12))

_CLOTHES = colours("2c4a70 d05c4c f0ece2 427a6e e2a848 78568c 383a46 ce8294 84a0be")
# No hair colour is near any of these: a hat must not be taken for hair in a small picture.
_HATS = colours("d63a3e 228e94 3e62c4 f0783c 8e4ab0 309456 e24a84")
_FRAMES_ON_LIGHT, _FRAMES_ON_DARK = colours("1c1c22 5c2c18 182c5c 78162a"), colours("101014 f4ce78 ececf0 e2463c")
_METALS, _GEMS = colours("eebc4a dee4ec"), colours("169680 cc204a 2c62ce")


class HeadHair:
    """The hair of one person: short, to the jaw or over the shoulders; straight or in waves; with or without bangs."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.person = scene, scene.person
        self.style = self.person.pick("hair.style", ("short", "jaw", "long", "long"))
        self.parting = self.person.between("hair.parting", -0.5, 0.5)
        volume = self.person.between("hair.volume", 0.0, 0.13)
        side, self.crown = 1.12 + volume, -1.45 - volume
        self.end = (
            self.person.between("hair.length", -0.08, 0.08) + {"short": 0.28, "jaw": 0.98, "long": 2.2}[self.style]
        )
        top = ((0.0, self.crown), (0.58, self.crown + 0.13), (side - 0.1, -0.88), (side, -0.45))
        below = {
            "short": ((0.02, 0.0), (-0.08, self.end), (0.8 - side, self.end + 0.12), (-side, self.end + 0.1)),
            "jaw": ((0.08, 0.1), (0.1, 0.6), (-0.02, self.end), (0.7 - side, self.end + 0.08), (-side, self.end)),
            "long": ((0.06, 0.2), (0.1, 0.9), (0.14, 1.6), (0.05, self.end), (-side, self.end)),
        }[self.style]
        silhouette = half(*top, *((side + x, y) for x, y in below), steps=12)
        self.silhouette = _waved(silhouette) if self.person.has("Wavy_Hair") else silhouette
        self.opening = self._opening()
        self.bangs = [self._bangs()] if self.person.has("Bangs") else []

    def paint_behind(self) -> None:
        """Paint the hair behind the head and the neck."""
        colour = mix(self.scene.hair_shadow, self.scene.hair, 0.2)
        self.scene.paint(colour, self._under_hat(self.scene.mask(self.silhouette, on="head")))

    def shade_forehead(self, soft: Scene) -> None:
        """Lay the shadow of the front hair on the skin."""
        soft.shade(soft.skin_deep, self.opening, on="hairline", reach=-0.07, blur=0.04, opacity=0.5)
        soft.cast(*self.bangs, on="bangs", drop=0.07, opacity=0.4, blur=0.035)

    def paint_in_front(self) -> None:
        """Paint the hair in front of the head, round the opening for the face."""
        scene = self.scene
        free = scene.mask(self.opening, on="hairline").without(scene.mask(*self.bangs, on="bangs"))
        mask = self._under_hat(scene.mask(self.silhouette, on="head").without(free))
        gloss = stroke(line((-0.85, -0.85), (-0.5, -1.13), (0.0, -1.24), (0.5, -1.13), (0.85, -0.85)), 0.16)
        top, bottom = mix(scene.hair, scene.hair_light, 0.2), scale(scene.hair, 0.84, 0.82, 0.86)
        with scene.soft(mask, top, bottom, times=2) as soft:
            soft.shade(scene.hair_shadow, self.silhouette, on="head", reach=0.24, blur=0.14, opacity=0.85)
            soft.cast(self.opening, on="hairline", drop=0.0, opacity=0.22, blur=0.05)
            soft.fill(scene.hair_light, gloss, on="head", shift=0.08 * scene.light, opacity=0.6, blur=0.05)
            for strands, place in self._strands():
                dark = np.arange(len(strands)) % 3 == 0
                soft.fill(scene.hair_shadow, stroke(strands[dark], 0.05), on=place, opacity=0.5)
                soft.fill(scene.hair_light, stroke(strands[~dark], 0.035), on=place, opacity=0.36)

    def _under_hat(self, mask: Mask) -> Mask:
        return mask.without(self.scene.mask(*[_ABOVE_RIM] * self.person.has("Wearing_Hat"), on="head"))

    def _opening(self) -> Points:
        # Short hair ends in front of the ears; longer hair covers them and falls on both sides of the neck.
        edge, side = 0.87, points((0.86, 0.35), (0.9, 0.9), (0.8, 1.5), (0.6, 2.6))
        if self.style == "short":
            edge, side = 0.9, points((1.5, -0.06), (1.7, 0.6), (1.7, 2.6))
        right = points((0.36, -0.93), (0.74, -0.72), (edge - 0.02, -0.42), (edge, -0.1))
        leaning = columns([0.5 * self.parting, 0.1 * self.parting, 0.0, 0.0], 0.0)
        hairline = ((right * (-1.0, 1.0) + leaning)[::-1], points((self.parting, -1.04)), right + leaning)
        return smooth(np.concatenate([(side * (-1.0, 1.0))[::-1], *hairline, side]), closed=True)

    def _bangs(self) -> Points:
        x = np.linspace(-0.93, 0.93, 49)
        saw = np.abs(((x + 1) * self.person.pick("bangs.locks", (5, 6, 7)) / 2) % 1.0 - 0.5) * 2
        depth = 0.12 if self.person.has("Wavy_Hair") else 0.07
        temples = 0.16 * np.clip((np.abs(x) - 0.7) / 0.23, 0.0, 1.0) ** 2
        low = self.person.between("bangs.length", -0.55, -0.5) + self.person.between("bangs.slope", -0.05, 0.05) * x
        top = line((0.97, -0.7), (0.7, -1.12), (0.0, -1.28), (-0.7, -1.12), (-0.97, -0.7))
        return np.concatenate([columns(x, low - depth * saw**1.5 + temples), top])

    def _strands(self) -> list[tuple[Points, Place]]:
        n = np.arange(18)
        share = (n // 2 + np.array([self.person.between(f"strand{k}", 0.1, 0.9) for k in n])) / 9
        side = np.where(n % 2, 1.0, -1.0)
        reach, end = side * (0.52 + 0.65 * share), self.end * (0.3 + 0.7 * share) - 0.1
        falling = [
            columns(self.parting * 0.8 + 0.06 * side, self.crown + 0.03 + 0.2 * (1 - share)),
            columns(reach * 0.62 + self.parting * 0.3, self.crown + 0.16 + 0.3 * (1 - share)),
            *(columns(reach, -0.62), columns(reach * 1.02, (end - 0.62) / 2), columns(reach * 0.98, end)),
        ]
        lines = smooth(np.stack(falling, axis=1), steps=7)
        if self.person.has("Wavy_Hair"):
            y = lines[..., 1]
            lines[..., 0] += 0.055 * np.sin(2 * np.pi * y / 0.42 + n[:, None]) * np.clip((y + 1.2) / 0.4, 0.0, 1.0)
        strands = [(lines, _HEAD)]
        if self.bangs:
            x = 0.18 * np.arange(10) - 0.81 + [self.person.between(f"bangs.strand{k}", -0.06, 0.06) for k in range(10)]
            bend = np.where(np.arange(10) % 2, 0.03, -0.03) + 0.1 * self.parting
            root = columns(0.35 * x + 0.5 * self.parting, self.crown + 0.12 + 0.14 * np.abs(x))
            bangs = np.stack([root, columns(0.85 * x + bend, -0.98), columns(x, -0.54)], axis=1)
            strands.append((smooth(bangs), "bangs"))
        return strands


def paint_beard(scene: Scene) -> None:
    """Paint a beard, full or a goatee, unless the person has none."""
    person = scene.person
    if person.has("No_Beard"):
        return
    outline, grown = face_outline(scene), person.between("beard.length", 0.06, 0.2)
    chin = float(outline[:, 1].max())
    full = person.chance("beard.full", 0.65)
    place: Place = "head" if full else "chin"
    if full:
        push = np.clip((outline[:, 1] - 0.3) / (chin - 0.3), 0.0, 1.0)
        shape = columns(outline[:, 0] * (1.0 + 0.05 * push), outline[:, 1] + grown * push**2)
        free = ((1.2, -1.6), (1.2, -0.3), (0.9, -0.2), (0.84, 0.1), (0.7, 0.5), (0.5, 0.8), (0.28, 0.99), (0.0, 1.04))
        mask = scene.mask(shape, on=place, blur=0.014).without(scene.mask(half((0.0, -1.6), *free), blur=0.014))
    else:
        wide = person.between("beard.goatee", 0.26, 0.34)
        low = ((wide + 0.05, 1.1), (wide * 0.7, chin + grown * 0.6), (0.0, chin + grown))
        shape = half((0.0, 1.04), (wide, 0.99), *low)
        mask = scene.mask(shape, on=place, blur=0.014)
    with scene.soft(mask, scale(scene.hair, 0.86, 0.82, 0.84)) as soft:
        soft.shade(scene.hair_shadow, shape, on=place, reach=0.16, blur=0.1, opacity=0.75)
    x, height = np.tile(np.linspace(-0.76, 0.76, 17), 2), np.repeat((0.5, 0.72), 17)
    steps = ((1.0, 0.0), (0.97, 0.09), (0.88, 0.2))
    hairs = np.stack([columns(x * pull, height + step + 0.4 * np.sqrt(1 - x**2)) for pull, step in steps], axis=1)
    scene.fill(scene.hair_light, stroke(hairs, 0.026), on="chin", opacity=0.3, within=mask)


def paint_mustache(scene: Scene) -> None:
    """Paint a mustache between nose and lip; the mouth's corners stay free, so that a smile shows."""
    person = scene.person
    if not person.has("Mustache"):
        return
    wide, curl = person.between("mustache.width", 0.29, 0.35), person.between("mustache.curl", -0.07, 0.03)
    upper = ((0.0, 0.565), (0.1, 0.55), (wide * 0.65, 0.59), (wide + 0.03, 0.655 + curl))
    shape = half(*upper, (wide, 0.70 + curl), (wide * 0.55, 0.685), (0.08, 0.675), (0.0, 0.66))
    mask = scene.mask(shape, on="whiskers", blur=0.008)
    scene.paint(scale(scene.hair, 0.84, 0.8, 0.82), mask)
    x = np.linspace(0.02, 0.26, 6)
    hairs = np.stack([columns(x + 0.05 * step, 0.57 + 0.055 * step) for step in range(3)], axis=1)
    scene.fill(scene.hair_light, pair(stroke(hairs, 0.02)), on="whiskers", opacity=0.4, within=mask)


def paint_clothes(scene: Scene) -> Points:
    """Paint the shoulders in a shirt, and tell its neckline, round or pointed; the neck comes over it."""
    person, colour = scene.person, scene.person.pick("clothes.colour", _CLOTHES)
    deep, broad = person.between("clothes.deep", 1.66, 1.76), person.between("clothes.broad", 1.55, 1.95)
    pointed = ((0.62, 1.4), (0.3, deep), (0.0, deep + 0.28))
    low = pointed if person.chance("clothes.pointed", 0.4) else ((0.64, 1.42), (0.44, deep - 0.06), (0.0, deep + 0.06))
    neckline = half((0.0, 1.2), (0.5, 1.28), *low)
    below = ((broad, 1.72), (broad + 0.35, 2.3), (broad + 0.4, 3.2), (0.0, 3.2))
    shirt = half((0.0, 1.25), (0.55, 1.32), (1.0, 1.5), *below)
    with scene.soft(scene.mask(shirt, on="body"), mix(colour, WHITE, 0.12), scale(colour, 0.82, 0.8, 0.86)) as soft:
        soft.shade(scale(colour, 0.6, 0.55, 0.66), shirt, on="body", reach=0.3, blur=0.16, opacity=0.8)
    scene.fill(scale(colour, 0.8, 0.78, 0.84), ring(neckline, 0.1), on="body")
    return neckline


def paint_necklace(scene: Scene) -> None:
    """Paint pearls or a chain with a pendant; they hang low enough for any beard."""
    person = scene.person
    if not person.has("Wearing_Necklace"):
        return
    low, t = person.between("necklace.low", 1.68, 1.74), np.linspace(-1.0, 1.0, 17)
    chain = columns(t * 0.6, 1.34 + (low - 1.34) * (1 - np.abs(t) ** 2.2))
    scene.fill(scene.skin_deep, stroke(moved(chain, 0.0, 0.05), 0.06), on="body", opacity=0.55, blur=0.02)
    metal, gem = person.pick("necklace.metal", _METALS), person.pick("necklace.gem", _GEMS)
    if person.chance("necklace.pearls", 0.5):
        rows: list[Layer] = [
            ((246, 238, 232), ellipse(0.0, 0.0, 0.062, 0.062) + chain[:, None], 1.0, 0.0),
            ((190, 170, 176), ellipse(0.0, 0.03, 0.04, 0.022) + chain[:, None], 0.6, 0.01),
            (WHITE, ellipse(-0.015, -0.02, 0.02, 0.02) + chain[:, None], 1.0, 0.0),
        ]
    else:
        rows = [
            (metal, stroke(chain, 0.06, taper=False), 1.0, 0.0),
            (WHITE, stroke(moved(chain, 0.0, -0.012), 0.016, taper=False), 0.7, 0.0),
            (metal, ellipse(0.0, low + 0.08, 0.1, 0.12), 1.0, 0.0),
            (gem, ellipse(0.0, low + 0.08, 0.065, 0.085), 1.0, 0.0),
            (WHITE, ellipse(-0.02, low + 0.05, 0.02, 0.025), 0.9, 0.0),
        ]
    scene.layer(*rows, on="body")


def paint_earrings(scene: Scene) -> None:
    """Paint hoops or drops; over the hair, so that they show with any style."""
    person = scene.person
    if not person.has("Wearing_Earrings"):
        return
    metal, gem = person.pick("earrings.metal", _METALS), person.pick("earrings.gem", _GEMS)
    ears = moved(points((-1.03, 0.0), (1.03, 0.0)), -0.3 * scene.yaw, 0.0)[:, None, None]
    scene.fill((40, 20, 30), ears + ellipse(0.0, 0.6, 0.12, 0.18), on="head", opacity=0.35, blur=0.04)
    if person.chance("earrings.hoops", 0.5):
        scene.fill(metal, ears + ring(ellipse(0.0, 0.56, 0.13, 0.17), 0.06), on="head")
        scene.fill(WHITE, ears + ring(ellipse(0.0, 0.555, 0.135, 0.175), 0.015), on="head", opacity=0.6)
    else:
        for colour, *drop in ((metal, 0.4, 0.055, 0.055), (metal, 0.58, 0.105, 0.15), (gem, 0.585, 0.07, 0.11)):
            scene.fill(colour, ears + ellipse(0.0, *drop), on="head")
        scene.fill(WHITE, ears + ellipse(-0.02, 0.54, 0.02, 0.03), on="head", opacity=0.9)


def paint_glasses(scene: Scene, face: Mask) -> None:
    """Paint glasses with clear lenses."""
    person = scene.person
    if not person.has("Eyeglasses"):
        return
    frames = _FRAMES_ON_DARK if scene.dark_skin else _FRAMES_ON_LIGHT
    width = person.between("glasses.width", 0.06, 0.085)
    shapes = ((0.335, 0.315, 2.0, 0.0), (0.355, 0.265, 4.5, 0.0), (0.36, 0.27, 2.8, 0.09))
    rx, ry, power, cat = person.pick("glasses.shape", shapes)
    lens = ellipse(0.0, 0.0, rx, ry, power=power)
    lens[:, 1] -= cat * np.clip(lens[:, 0] / rx, 0.0, 1.0) ** 2 * (lens[:, 1] < 0.1)
    lenses = pair(moved(lens, 0.43, 0.03))
    bridge = line((-0.43 + rx, -0.03), (0.0, -0.08), (0.43 - rx, -0.03))
    frame = [*(ring(lens, width) for lens in lenses), stroke(bridge, width * 0.9, taper=False)]
    # The ears do not turn as far as what lies on the face.
    arms = (points((s * (0.43 + rx), -0.06), (s * 1.02 - 1.15 * scene.yaw, -0.04)) for s in (-1.0, 1.0))
    frame += [stroke(arm, width * 0.8, taper=False) for arm in arms]
    glass = scene.mask(lenses, on="lenses")
    scene.paint(WHITE, glass, 0.08)
    sheen = points((-0.04, -0.4), (0.12, -0.4), (-0.1, 0.4), (-0.26, 0.4))
    bands = (moved(sheen, side * 0.43, 0.0) for side in (-1.0, 1.0))
    scene.fill(WHITE, *bands, on="lenses", opacity=0.2, blur=0.012, within=glass)
    scene.cast(*frame, on="lenses", drop=0.05, opacity=0.3, blur=0.02, within=face)
    scene.fill(person.pick("glasses.colour", frames), *frame, on="lenses")


def paint_hat(scene: Scene, face: Mask) -> None:
    """Paint the hat of a person who wears one: a beanie, a cap, or a hat with a brim."""
    person = scene.person
    if not person.has("Wearing_Hat"):
        return
    style, colour = person.pick("hat.style", ("beanie", "cap", "brim")), person.pick("hat.colour", _HATS)
    dark, edge_colour = scale(colour, 0.6, 0.55, 0.62), colour
    on: Place = "visor" if style == "cap" else "head"
    dome = half((0.0, -1.64), (0.6, -1.55), (1.02, -1.22), (1.13, -0.83), (0.6, -0.87), (0.0, -0.92), steps=10)
    if style == "beanie":
        outer = ((0.7, -1.06), (1.16, -0.92), (1.2, -0.72), (1.12, -0.6), (0.7, -0.73))
        edge = half((0.0, -1.12), *outer, (0.0, _HAT_RIM))
        light = person.chance("hat.light cuff", 0.5)
        edge_colour = mix(colour, WHITE, 0.3) if light else scale(colour, 0.78, 0.72, 0.8)
        if person.chance("hat.bobble", 0.5):
            ball = ellipse(0.0, -1.67, 0.23, 0.2)
            with scene.soft(scene.mask(ball, on="head", blur=0.02), mix(colour, WHITE, 0.78)) as soft:
                soft.shade(mix(colour, WHITE, 0.25), ball, on="head", reach=0.1, blur=0.07, opacity=0.8)
    elif style == "cap":
        outer = ((0.62, -1.06), (1.02, -0.9), (1.06, -0.72), (0.95, -0.66), (0.55, -0.78))
        edge = half((0.0, -1.1), *outer, (0.0, -0.82))
    else:
        upper = ((0.0, -1.64), (0.5, -1.7), (0.84, -1.56), (0.98, -1.2))
        dome = half(*upper, (1.02, -0.98), (0.6, -0.93), (0.0, -0.91), steps=10)
        wide = person.between("hat.brim", 1.45, 1.7)
        outer = ((0.8, -1.16), (wide - 0.1, -0.98), (wide, -0.86), (wide - 0.3, -0.77), (0.7, -0.78))
        edge = half((0.0, -1.2), *outer, (0.0, _HAT_RIM + 0.02))

    scene.cast(edge, on=on, drop=0.12, opacity=0.42, blur=0.05, within=face)
    for shape in (edge, dome) if style == "brim" else (dome, edge):
        felt, dim, place = (colour, 1.0, _HEAD) if shape is dome else (edge_colour, 0.66, on)
        mask = scene.mask(shape, on=place)
        with scene.soft(mask, mix(felt, WHITE, 0.2 * dim), scale(felt, dim, dim, dim)) as soft:
            soft.shade(scale(felt, 0.53, 0.46, 0.56), shape, on=place, reach=0.28, blur=0.15, opacity=0.8)
            if shape is dome:
                glow, shift = ellipse(0.0, -1.34, 0.34, 0.16), 0.3 * scene.light
                soft.fill(WHITE, glow, on="head", shift=shift, opacity=0.28, blur=0.12)
    if style == "beanie":
        x = np.linspace(-1.15, 1.15, 17)
        ribs = np.stack([columns(x * (1 + 0.01 * k), 0.28 * k - 1.14) for k in range(3)], axis=1)
        scene.fill(scale(edge_colour, 0.72, 0.65, 0.74), stroke(ribs, 0.03), on="head", opacity=0.55, within=mask)
    elif style == "cap":
        seams = pair(stroke(line((0.0, -1.64), (0.39, -1.42), (0.49, -1.1)), 0.022))
        scene.fill(dark, seams, ellipse(0.0, -1.64, 0.08, 0.04), on="bangs")
        scene.fill(mix(colour, WHITE, 0.82), ellipse(0.0, -1.27, 0.17, 0.14), on="bangs")
        stitch = stroke(line((-0.9, -0.8), (-0.5, -0.93), (0.0, -0.97), (0.5, -0.93), (0.9, -0.8)), 0.018)
        scene.fill(dark, stitch, on="visor", opacity=0.7)
    else:
        lower = ((0.97, -1.2), (1.02, -1.0), (0.6, -0.94), (0.0, -0.91))
        ribbon = half((0.0, -1.1), (0.55, -1.13), *lower, steps=4)
        scene.fill(scale(colour, 0.4, 0.34, 0.42), ribbon, on="head")


def _waved(outline: Points) -> Points:
    along = np.gradient(outline, axis=0)
    length = np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)
    # Distance from the crown on either side, so that the waves mirror each other.
    run = np.cumsum(length)
    run = np.minimum(run, run[-1] - run)
    crest = np.abs(np.sin(np.pi * run / 0.42)) - 0.35
    waved: Points = outline + columns(along[:, 1], -along[:, 0]) * (0.13 * crest / length)[:, None]
    return waved

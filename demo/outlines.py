"""Smooth outlines: points [N, 2], x to the right and y down; an array [..., N, 2] is many of them."""

from __future__ import annotations

from functools import cache
from math import cos, radians, sin

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]


def points(*pairs: tuple[float, float]) -> Points:
    """Points [N, 2]."""
    return np.array(pairs, dtype=np.float64)


def columns(x: npt.ArrayLike, y: npt.ArrayLike) -> Points:
    """Points [..., 2] from their coordinates, either of which may be one number for all."""
    both = np.empty((*np.broadcast(x, y).shape, 2))
    both[..., 0], both[..., 1] = x, y
    return both


def half(*right: tuple[float, float], steps: int = 8) -> Points:
    """A smooth symmetric outline from its right half, which runs from the top to the bottom."""
    controls = points(*right)
    left = controls[::-1] * (-1.0, 1.0)
    return smooth(np.concatenate([controls, left[np.abs(left[:, 0]) > 1e-9]]), closed=True, steps=steps)


def line(*pairs: tuple[float, float], closed: bool = False) -> Points:
    """A smooth line."""
    return smooth(points(*pairs), closed=closed)


def smooth(controls: Points, *, closed: bool = False, steps: int = 8) -> Points:
    """A Catmull-Rom curve through the controls [..., N, 2], `steps` points to each piece."""
    if closed:
        knots = np.take(controls, range(-1, controls.shape[-2] + 2), axis=-2, mode="wrap")
    else:
        before, after = 2 * controls[..., 0, :] - controls[..., 1, :], 2 * controls[..., -1, :] - controls[..., -2, :]
        knots = np.concatenate([before[..., None, :], controls, after[..., None, :]], axis=-2)
    windows = np.lib.stride_tricks.sliding_window_view(knots, 4, axis=-2)
    curve = np.moveaxis(windows @ _catmull_rom(steps), -1, -2).reshape(*controls.shape[:-2], -1, 2)
    return curve if closed else np.concatenate([curve, controls[..., -1:, :]], axis=-2)


def ellipse(x: float, y: float, rx: float, ry: float, *, tilt: float = 0.0, power: float = 2.0) -> Points:
    """An ellipse, or with a higher power the rounded rectangle in the same box; tilt in degrees."""
    return moved(_unit_ellipse(power) * (rx, ry) @ rotation(tilt), x, y)


def moved(outline: Points, right: float, down: float) -> Points:
    """The outline moved."""
    return np.add(outline, (right, down))


def pair(right: Points) -> Points:
    """An outline on the left, mirrored, and on the right: [2, ..., N, 2]."""
    return np.stack([right * (-1.0, 1.0), right])


def stroke(along: Points, width: float | Points, *, taper: bool = True) -> Points:
    """The outlines of brush strokes along lines [..., N, 2]; with `taper` they run out thin at both ends."""
    ends = np.concatenate([along[..., :1, :], along, along[..., -1:, :]], axis=-2)
    way = ends[..., 2:, :] - ends[..., :-2, :]
    length = np.sqrt(np.maximum((way**2).sum(axis=-1, keepdims=True), 1e-18))
    reach = np.asarray(width, dtype=np.float64)[..., None] / 2 * (_taper(along.shape[-2]) if taper else 1.0)
    offset = columns(-way[..., 1], way[..., 0]) / length * reach
    return np.concatenate([along + offset, (along - offset)[..., ::-1, :]], axis=-2)


def ring(outline: Points, width: float) -> Points:
    """A frame of this width along a closed outline of an even number of points, in two pieces: [2, N, 2]."""
    around, middle = np.concatenate([outline, outline[:2]]), len(outline) // 2
    return stroke(np.stack([around[: middle + 2], around[middle:]]), width, taper=False)


@cache
def _catmull_rom(steps: int) -> Points:
    t = np.arange(steps) / steps
    return np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]) / 2


@cache
def _unit_ellipse(power: float) -> Points:
    angle = np.linspace(0.0, 2 * np.pi, 40, endpoint=False)
    axes = columns(np.cos(angle), np.sin(angle))
    return np.copysign(np.abs(axes) ** (2 / power), axes)


@cache
def _taper(length: int) -> Points:
    return np.power(np.sin(np.pi * np.linspace(0.04, 0.96, length))[:, None], 0.6)


def rotation(degrees: float) -> Points:
    """The matrix that turns outlines clockwise on the picture."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    return points((c, s), (-s, c))

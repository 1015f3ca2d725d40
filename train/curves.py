"""The course of a run as one picture, drawn from its metrics: loss, PSNR, rate, speed over images seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _FAINT, _GRID = (250, 249, 246), (40, 42, 48), (120, 122, 128), (226, 224, 218)
_TRAIN, _HELD_OUT = (52, 101, 164), (204, 102, 34)
_PANEL = (560, 300)
_MARGIN = (64, 40, 22, 34)
"""Left, top, right, bottom of a panel."""
_SCALE = 2
"""Lines are drawn this much larger and then reduced, which smooths them."""

Series = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Positions and values, both [n]."""


@dataclass(frozen=True)
class Panel:
    """One figure over the images seen."""

    title: str
    training: Series
    held_out: Series


def draw_curves(records: Sequence[dict[str, Any]], title: str) -> Image.Image | None:
    """The picture of the lines of `metrics.jsonl`; None as long as there are fewer than two."""
    training = [record for record in records if "loss" in record]
    if len(training) < 2:
        return None
    scored = [{"position": record["position"], **record["scores"]["val"]} for record in records if "val" in
              record.get("scores", {})]  # fmt: skip
    panels = [
        Panel("loss", _series(training, "loss"), _series([], "")),
        Panel("PSNR, dB", _series(training, "psnr_db"), _series(scored, "psnr_db")),
        Panel("rate, nats an image", _series(training, "kl_nats"), _series(scored, "rate_nats")),
        Panel("images a second", _series(training, "images_per_s"), _series([], "")),
    ]
    end = max(record["position"] for record in records)
    width, height = _PANEL
    picture = Image.new("RGB", (2 * width, 2 * height + 44), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN[0], 14), title, _INK, ImageFont.load_default(17))
    _legend(draw, 2 * width - _MARGIN[2], 16, ["training"] + (["held-out images"] if scored else []))
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        picture.paste(_draw_panel(panel, float(end)), (column * width, 44 + row * height))
    return picture


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers in [low, high], about `count` of them: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number as an axis shows it: 0.05, 20, 1.5k, 2M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{suffix}"
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def value_range(series: Sequence[Series]) -> tuple[float, float]:
    """What the vertical axis shows: all values but the first steep ones, which would flatten the rest."""
    values = []
    for positions, found in series:
        if len(found):
            late = found[positions >= 0.05 * positions[-1]]
            values.append(late[np.isfinite(late)])
    shown = np.concatenate(values) if values else np.zeros(0)
    if not len(shown):
        return 0.0, 1.0
    low, high = float(shown.min()), float(shown.max())
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _series(records: Sequence[dict[str, Any]], name: str) -> Series:
    positions = np.array([record["position"] for record in records], np.float64)
    return positions, np.array([record.get(name, math.nan) for record in records], np.float64)


def _draw_panel(panel: Panel, end: float) -> Image.Image:
    width, height = _PANEL
    left, top, right, bottom = _MARGIN
    inner = (width - left - right, height - top - bottom)
    low, high = value_range([panel.training, panel.held_out])
    image = Image.new("RGB", _PANEL, _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    draw.text((left, top - 22), panel.title, _INK, ImageFont.load_default(14))
    plot = Image.new("RGB", (inner[0] * _SCALE, inner[1] * _SCALE), (255, 255, 255))
    pen = ImageDraw.Draw(plot)
    for value in ticks(low, high):
        y = (high - value) / (high - low) * inner[1]
        pen.line([(0, y * _SCALE), (plot.width, y * _SCALE)], _GRID, _SCALE)
        draw.text((left - 8, top + y), short(value), _FAINT, font, anchor="rm")
    for value in ticks(0, end):
        x = value / end * inner[0]
        pen.line([(x * _SCALE, 0), (x * _SCALE, plot.height)], _GRID, _SCALE)
        draw.text((left + x, top + inner[1] + 7), short(value), _FAINT, font, anchor="ma")
    _draw_line(pen, plot.size, panel.training, end, (low, high))
    _draw_dots(pen, plot.size, panel.held_out, end, (low, high))
    image.paste(plot.resize(inner, Image.Resampling.LANCZOS), (left, top))
    draw.rectangle((left - 1, top - 1, left + inner[0], top + inner[1]), outline=(200, 198, 192))
    draw.text((left + inner[0], top - 6), "images seen", _FAINT, font, anchor="rb")
    return image


def _draw_line(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], series: Series, end: float, limits: tuple[float, float]
) -> None:
    """The mean in each column of a few pixels, over the faint range of what was averaged."""
    x, y = _pixels(series, end, limits, size)
    columns: dict[int, list[float]] = {}
    for column, value in zip((x / (2 * _SCALE)).astype(int).tolist(), y.tolist(), strict=True):
        columns.setdefault(column, []).append(value)
    middle = [((column + 0.5) * 2 * _SCALE, float(np.mean(values))) for column, values in columns.items()]
    pale = tuple((3 * 255 + part) // 4 for part in _TRAIN)
    for (place, _), values in zip(middle, columns.values(), strict=True):
        if len(values) > 1:
            pen.line([(place, min(values)), (place, max(values))], pale, 2 * _SCALE)
    pen.line(middle, _TRAIN, 2 * _SCALE, joint="curve")


def _draw_dots(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], series: Series, end: float, limits: tuple[float, float]
) -> None:
    x, y = _pixels(series, end, limits, size)
    places = list(zip(x.tolist(), y.tolist(), strict=True))
    if len(places) > 1:
        pen.line(places, _HELD_OUT, 2 * _SCALE, joint="curve")
    radius = (3 if len(places) < 60 else 2) * _SCALE
    for place in places:
        pen.circle(place, radius, _HELD_OUT)


def _pixels(
    series: Series, end: float, limits: tuple[float, float], size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    positions, values = series
    whole = np.isfinite(values)
    low, high = limits
    y = (high - values[whole]) / (high - low) * size[1]
    # Far outside is outside all the same, and Pillow's coordinates have an end.
    return positions[whole] / end * size[0], np.clip(y, -size[1], 2 * size[1])


def _legend(draw: ImageDraw.ImageDraw, right: int, top: int, names: list[str]) -> None:
    font = ImageFont.load_default(13)
    for name, colour in reversed(list(zip(names, (_TRAIN, _HELD_OUT), strict=False))):
        right -= round(font.getlength(name))
        draw.text((right, top), name, _INK, font)
        draw.line([(right - 28, top + 9), (right - 8, top + 9)], colour, 3)
        right -= 48

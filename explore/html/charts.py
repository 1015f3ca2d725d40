"""The course of a run as line charts, in coordinates that a page can draw: it chooses the colours, light or dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.curves import short, ticks, value_range

WIDTH, HEIGHT = 400, 236
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 10, 12, 26
_COLUMNS = 160
"""Points of a line: more cannot be told apart."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A round number on an axis."""

    place: float
    text: str


@dataclass(frozen=True)
class Chart:
    """One figure over the images seen; all coordinates are those of a picture of `WIDTH` x `HEIGHT`."""

    title: str
    unit: str
    across: list[Tick]
    up: list[Tick]
    training: str
    """Points of a polyline: the mean of each column."""
    band: str
    """Points of a polygon: from the least to the largest of each column."""
    held_out: list[Point]
    last: str
    """The newest values, in words."""

    @property
    def held_out_line(self) -> str:
        """Points of a polyline."""
        return _points(self.held_out)

    @property
    def text(self) -> str:
        """For who does not see it."""
        return f"{self.title}{f' in {self.unit}' if self.unit else ''} over the images seen. {self.last}"


FRAME = (_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM)
"""Left, top, right and bottom of the plot."""


def charts_of(records: Sequence[dict[str, Any]]) -> list[Chart]:
    """Loss, PSNR, rate and speed of the lines of `metrics.jsonl`; none as long as there are fewer than two."""
    training = [record for record in records if "loss" in record]
    if len(training) < 2:
        return []
    scored = [
        {"position": record["position"], **record["scores"]["val"]}
        for record in records
        if isinstance(record.get("scores"), dict) and "val" in record["scores"]
    ]
    end = max(record["position"] for record in records)
    return [
        _chart("Loss", "", training, "loss", [], "", end),
        _chart("PSNR", "dB", training, "psnr_db", scored, "psnr_db", end),
        _chart("Rate", "nats an image", training, "kl_nats", scored, "rate_nats", end),
        _chart("Speed", "images a second", training, "images_per_s", [], "", end),
    ]


def _chart(
    title: str,
    unit: str,
    training: Sequence[dict[str, Any]],
    name: str,
    scored: Sequence[dict[str, Any]],
    scored_name: str,
    end: float,
) -> Chart:
    x, y = _series(training, name)
    held_x, held_y = _series(scored, scored_name)
    low, high = value_range([(x, y), (held_x, held_y)])
    left, top, right, bottom = FRAME

    def place(position: float, value: float) -> Point:
        # Beyond the frame it is cut off; far beyond it needs no exact place.
        share = min(max((value - low) / (high - low), -0.5), 1.5)
        return round(left + position / end * (right - left), 1), round(bottom - share * (bottom - top), 1)

    columns: dict[int, list[tuple[float, float]]] = {}
    for position, value in zip(x.tolist(), y.tolist(), strict=True):
        columns.setdefault(min(int(position / end * _COLUMNS), _COLUMNS - 1), []).append((position, value))
    middles = [tuple(np.mean(points, 0).tolist()) for points in columns.values()]
    lower = [
        place(middle[0], min(v for _, v in points)) for middle, points in zip(middles, columns.values(), strict=True)
    ]
    upper = [
        place(middle[0], max(v for _, v in points)) for middle, points in zip(middles, columns.values(), strict=True)
    ]
    last = [f"{'training ' if len(held_y) else ''}{short(middles[-1][1])}"] if middles else []
    last += [f"held-out images {short(float(held_y[-1]))}"] if len(held_y) else []
    return Chart(
        title,
        unit,
        [Tick(place(value, low)[0], short(value)) for value in ticks(0, end, 4)],
        [Tick(place(0, value)[1], short(value)) for value in ticks(low, high)],
        _points([place(*middle) for middle in middles]),
        _points(upper + lower[::-1]),
        [place(*point) for point in zip(held_x.tolist(), held_y.tolist(), strict=True)],
        f"Newest: {', '.join(last)}." if last else "",
    )


def _series(records: Sequence[dict[str, Any]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = [(record["position"], record.get(name)) for record in records]
    whole = [(x, y) for x, y in found if isinstance(y, int | float) and math.isfinite(y)]
    values = np.array(whole, np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)

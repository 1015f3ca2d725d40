"""Numbers, names and sizes as a person reads them, and nothing of this machine in them."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.machine import show_bytes
from train.display import duration

_PLACE = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\",;]+|(?<![\w:/.<])~?(?:/[^\s/'\",;]+)+/?")
"""A URL, or an absolute path."""
_UNITS: dict[str, Callable[[float], str]] = {
    "db": lambda value: f"{value:.2f} dB",
    "bytes": show_bytes,
    "s": lambda value: duration(value) if value >= 1 else f"{value:.3g} s",
    "ms": lambda value: f"{value:.1f} ms",
    "nats": lambda value: f"{value:,.1f} nats",
    "degrees": lambda value: f"{value:.1f}°",
    "share": lambda value: f"{100 * value:.1f}%",
}
"""By the last word of a name."""
_ACRONYMS = {
    word.lower(): word
    for word in (
        "PSNR",
        "SSIM",
        "MS-SSIM",
        "KL",
        "MMD",
        "FID",
        "KID",
        "AUC",
        "GPU",
        "PSS",
        "GIF",
        "PCA",
        "MSE",
    )
} | {"tsne": "t-SNE"}
UNKNOWN = "\N{EN DASH}"
_MOST_PARTS = 8
"""Values of a list that are shown one by one."""


def without_places(text: str) -> str:
    """`text` with the last part in place of every absolute path and URL: they say something of the machine's owner."""
    return _PLACE.sub(lambda found: re.split(r"[/?#]", re.sub(r"[?#].*", "", found[0]).rstrip("/"))[-1] or "/", text)


def label(name: str) -> str:
    """A name of JSON as words: `mean_psnr_db` is `mean PSNR`."""
    words = re.split(r"[_\s-]+", name.strip("_"))
    if len(words) > 1 and words[-1] in _UNITS:
        words = words[:-1]
    return without_places(" ".join(_ACRONYMS.get(word.lower(), word) for word in words))


def show(value: Any, name: str = "") -> str:
    """A value as text; the last word of its `name` says in what it is measured."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value, name)
    if isinstance(value, list | tuple):
        return _several(list(value), name)
    if isinstance(value, Mapping):
        return ", ".join(f"{label(key)} {show(part, key)}" for key, part in value.items())
    return without_places(str(value))


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of nested tables, names of inner ones behind those of the outer."""
    for name, value in values.items():
        where = f"{before} · {name}" if before else str(name)
        if isinstance(value, Mapping):
            yield from flat(value, where)
        else:
            yield where, value


def _number(value: float, name: str) -> str:
    if not math.isfinite(value):
        return UNKNOWN if math.isnan(value) else str(value)
    unit = _UNITS.get(re.split(r"[_\s·-]+", name)[-1])
    if unit is not None:
        return unit(value)
    if isinstance(value, int) or (value == round(value) and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _several(values: list[Any], name: str) -> str:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(values) > _MOST_PARTS and len(numbers) == len(values) and all(map(math.isfinite, numbers)):
        mean = sum(numbers) / len(numbers)
        low, high, middle = (_number(value, name) for value in (min(numbers), max(numbers), mean))
        return f"{len(numbers):,} values from {low} to {high}, mean {middle}"
    shown = ", ".join(show(value, name) for value in values[:_MOST_PARTS])
    return f"{shown} and {len(values) - _MOST_PARTS:,} more" if len(values) > _MOST_PARTS else shown or "none"

"""The look of all figures: matplotlib without a display, colours that colour-blind people tell apart."""

from contextlib import AbstractContextManager
from typing import Any

from pipeline.errors import UserError

try:
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure
except ImportError as error:
    raise UserError(
        "figures must be drawn by matplotlib; got no such package. Install it: pip install 'leanstream[explore]'"
    ) from error

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
"""Okabe and Ito's palette, in the order in which to use it."""
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
"""Colour maps for amounts, and for amounts on both sides of zero."""
BACKGROUND, INK = "#faf9f6", "#282a30"

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "white",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 120,
    "figure.facecolor": BACKGROUND,
    "font.size": 9,
    "grid.color": "#e4e2dc",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.facecolor": BACKGROUND,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def style() -> AbstractContextManager[None]:
    """The house style, for the block in which a figure is made and saved."""
    return rc_context(_STYLE)


def figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches at 120 dots an inch; call it, and save it, within `style()`.

    No pyplot: it would keep every figure alive.
    """
    return Figure(figsize=(width, height), layout="constrained")

"""The figure of `explore fit-prior`: how far new faces of each prior are from real ones, and how likely its latents."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from explore.figures.style import COLOURS, INK, figure
from explore.latent.priors import GAUSSIAN, MIXTURE, STANDARD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from explore.fit_prior import Measured

_COLOUR = {STANDARD: COLOURS[3], GAUSSIAN: COLOURS[1], MIXTURE: COLOURS[2]}
_NEUTRAL = "#b9b6ae"


def draw(
    measured: "Mapping[str, Measured]", real: float, encoded: float, facts: Mapping[str, Any], default: str
) -> "Figure":
    """Two panels of bars, one for each measure; call it, and save it, within `style()`."""
    names = {STANDARD: "N(0, I)", GAUSSIAN: "one Gaussian", MIXTURE: f"mixture of {facts['components']}"}
    picture = figure(11, 3.9)
    left, right = picture.subplots(1, 2, width_ratios=(5, 4))
    kinds = list(measured)
    bars = [names[kind] + ("\n(default)" if kind == default else "") for kind in kinds]
    values = [measured[kind].swd for kind in kinds] + [encoded, real]
    errors = [measured[kind].swd_deviation for kind in kinds] + [0.0, 0.0]
    _bars(
        left,
        [*bars, "training photos,\nencoded and decoded", "training photos:\nthe floor"],
        values,
        [_COLOUR[kind] for kind in kinds] + [_NEUTRAL, _NEUTRAL],
        [f"{value:.1f}" for value in values],
        errors,
    )
    left.axvline(real, color=INK, linewidth=0.8, linestyle=":")
    left.set_title("New faces: distance from held-out photos")
    left.set_xlabel(
        "sliced Wasserstein distance x 1,000, smaller is better\n"
        f"{facts['pictures']:,} pictures each; mean and deviation of {facts['draws']} sets of draws"
    )
    gains = [measured[kind].nats - measured[STANDARD].nats for kind in kinds]
    _bars(
        right,
        bars,
        gains,
        [_COLOUR[kind] for kind in kinds],
        [f"{measured[kind].nats:.1f}" for kind in kinds],
        [measured[kind].nats_error for kind in kinds],
    )
    right.set_title("Held-out latents: log-likelihood")
    right.set_xlabel(
        "nats an image above N(0, I), larger is better\n"
        f"{facts['held_out']:,} images of {facts['held_out_from']}; the mean is at the bar's end"
    )
    picture.suptitle(
        f"Priors fitted to {facts['images']:,} of {facts['of']:,} training images", fontsize=12, fontweight="bold"
    )
    return picture


def _bars(
    axes: "Axes", names: list[str], values: list[float], colours: list[str], texts: list[str], errors: list[float]
) -> None:
    places = range(len(names))
    axes.barh(places, values, color=colours, height=0.68, xerr=errors, error_kw={"ecolor": INK, "elinewidth": 1})
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    # Room for the numbers at the bars' ends.
    low, high = min(0.0, *values), max(0.0, *values)
    span = (high - low) or 1.0
    axes.set_xlim(low - (0.22 * span if low < 0 else 0), high + 0.22 * span)
    for place, value, text, error in zip(places, values, texts, errors, strict=True):
        end = value + error if value >= 0 else value - error
        axes.annotate(
            text,
            (end, place),
            xytext=(4 if value >= 0 else -4, 0),
            textcoords="offset points",
            ha="left" if value >= 0 else "right",
            va="center",
        )

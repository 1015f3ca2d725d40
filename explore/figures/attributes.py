"""The figures of `explore attributes`: how well each attribute is told, and how alike the directions are."""

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from explore.figures.style import COLOURS, DIVERGING, INK, figure
from explore.latent.directions import Directions


def auc_figure(directions: Directions, chosen: Sequence[int]) -> Figure:
    """A bar for each attribute, the best on top, with its standard error, and marks of the two projections."""
    known = [number for number in chosen if not math.isnan(directions.auc[number])]
    places = range(len(known))
    drawn = figure(8, 1.6 + 0.2 * max(len(known), 4))
    axes = drawn.add_subplot()
    axes.barh(
        places,
        [directions.auc[number] - 0.5 for number in known],
        left=0.5,
        color=COLOURS[5],
        label="linear discriminant",
        xerr=[directions.auc_errors[number] for number in known],
        error_kw={"ecolor": INK, "elinewidth": 0.8, "capsize": 1.5},
    )
    for values, marker, colour, label in (
        (directions.auc_adjusted, "D", COLOURS[3], "projection on the adjusted direction"),
        (directions.auc_plain, "o", COLOURS[7], "projection on the plain direction"),
    ):
        axes.scatter(
            [values[number] for number in known], places, s=14, color=colour, marker=marker, label=label, zorder=3
        )
    axes.axvline(0.5, color=INK, linewidth=0.8)
    axes.set_yticks(places, [directions.names[number] for number in known])
    axes.set_ylim(len(known) - 0.4, -0.6)
    axes.set_xlim(min(0.45, *(directions.auc_adjusted[number] - 0.02 for number in known), 0.45), 1)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("area under the ROC curve (0.5 is guessing, 1 is perfect); whiskers: one standard error")
    axes.set_title(f"Attributes told from latents: {directions.held_out:,} faces of {directions.held_out_from}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.6 / (0.2 * max(len(known), 4) + 1)), ncols=3)
    return drawn


def cosine_figure(names: Sequence[str], matrices: Mapping[str, Tensor]) -> Figure:
    """Heat maps of cosine similarities [A, A], side by side, in one order that puts like beside like."""
    order = _order(list(matrices.values())[-1])
    side = 1 + 0.15 * max(len(names), 10)
    drawn = figure(2 * side + 2.6, side + 1.6)
    drawn.set_layout_engine("compressed")  # Square panels leave no room between them.
    axes = drawn.subplots(1, len(matrices), sharey=True)
    for ax, (kind, matrix) in zip(axes, matrices.items(), strict=True):
        shown = matrix[order][:, order]
        image = ax.imshow(shown.numpy(), cmap=DIVERGING, vmin=-1, vmax=1)
        count = len(names)
        mean = float((matrix.abs().sum() - count) / (count * (count - 1)))
        ax.set_title(f"{kind} directions:\nmean |cosine| {mean:.2f}")
        ax.set_xticks(range(count), [names[number] for number in order], rotation=90, fontsize=7)
        ax.set_yticks(range(count), [names[number] for number in order], fontsize=7)
        ax.grid(visible=False)
    drawn.colorbar(image, ax=axes, label="cosine similarity", shrink=0.8, aspect=30)
    return drawn


def _order(matrix: Tensor) -> list[int]:
    """By the leading eigenvector: the two ends of the largest contrast stand at the two ends."""
    leading = torch.linalg.eigh(matrix).eigenvectors[:, -1]
    if leading[leading.abs().argmax()] < 0:
        leading = -leading
    return [int(number) for number in leading.argsort()]

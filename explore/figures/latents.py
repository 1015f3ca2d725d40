"""The figures of `explore latents`; each function returns one, to be called and saved within `style()`."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from explore.figures.style import BACKGROUND, COLOURS, DIVERGING, INK, SEQUENTIAL, figure
from explore.latent.aggregate import Aggregate, Array
from explore.latent.discrepancy import FLOORS, Discrepancy
from train.evaluate import ACTIVE_VARIANCE

BLUE, ORANGE, GREEN, RED = COLOURS[:4]
GREY = "#9a9a9a"


@dataclass(frozen=True)
class Grid:
    """A histogram of points on the plane."""

    counts: Array
    """[X, Y]"""
    x: Array
    """[X + 1] edges"""
    y: Array
    """[Y + 1] edges"""

    @classmethod
    def of(cls, points: Array) -> "Grid":
        """A square about all `points` [N, 2], of 20 to 80 cells a side: about five points a cell on average."""
        side = int(np.clip(math.sqrt(len(points) / 5), 20, 80))
        low, high = points.min(0), points.max(0)
        middle, reach = (low + high) / 2, 0.53 * float((high - low).max())
        square = np.stack([middle - reach, middle + reach], 1)
        return cls(*np.histogram2d(points[:, 0], points[:, 1], bins=side, range=square))

    @property
    def centres(self) -> tuple[Array, Array]:
        """Middles of the cells: [X] and [Y]."""
        return (self.x[1:] + self.x[:-1]) / 2, (self.y[1:] + self.y[:-1]) / 2


def draw_plane(
    points: Array, grid: Grid, title: str, attribute: str = "", labels: NDArray[np.int8] | None = None
) -> Figure:
    """t-SNE coordinates [N, 2], by 0/1 `labels` [N] if given, beside their histogram, flat and as a surface."""
    made = figure(17, 5.8)
    # The automatic layout does not know how much room the labels of a surface take.
    made.set_layout_engine("none")
    made.suptitle(title, fontsize=13, fontweight="bold")
    left, middle = made.add_axes((0.037, 0.1, 0.27, 0.78)), made.add_axes((0.352, 0.1, 0.27, 0.78))
    _scatter(left, points, attribute, labels)
    image = middle.pcolormesh(grid.x, grid.y, grid.counts.T, cmap=SEQUENTIAL)
    middle.set_title("histogram")
    middle.grid(False)
    made.colorbar(image, cax=made.add_axes((0.63, 0.2, 0.009, 0.58)), label="images a cell")
    for axes in (left, middle):
        axes.set(xlabel="t-SNE 1", ylabel="t-SNE 2", aspect="equal", xlim=grid.x[[0, -1]], ylim=grid.y[[0, -1]])
    _surface(made.add_axes((0.67, 0.0, 0.31, 0.88), projection="3d"), grid)
    return made


def _scatter(axes: Any, points: Array, attribute: str, labels: NDArray[np.int8] | None) -> None:
    size = float(np.clip(30_000 / len(points), 2, 20))
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, color=BLUE, alpha=0.5, linewidths=0)
        axes.set_title("posterior samples")
        return
    colours = np.array([BLUE, ORANGE])[labels]
    # In the order of the images, which is a mixed one: neither colour lies over the other.
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colours, alpha=0.6, linewidths=0)
    having = int(labels.sum())
    axes.legend(
        handles=[
            Line2D([], [], marker="o", linestyle="", color=colour, label=f"{text} ({count:,})")
            for colour, text, count in ((ORANGE, "with", having), (BLUE, "without", len(labels) - having))
        ],
        loc="upper right",
        frameon=True,
        framealpha=0.85,
    )
    axes.set_title(f"posterior samples, by {attribute}")


def _surface(axes: Any, grid: Grid) -> None:
    x, y = np.meshgrid(*grid.centres, indexing="ij")
    axes.plot_surface(x, y, grid.counts, cmap=SEQUENTIAL, rstride=1, cstride=1, linewidth=0, antialiased=False)
    axes.set(xlabel="t-SNE 1", ylabel="t-SNE 2", zlabel="images a cell", title="histogram as a surface")
    axes.set(xlim=grid.x[[0, -1]], ylim=grid.y[[0, -1]], zlim=(0, grid.counts.max()))
    axes.set_facecolor(BACKGROUND)
    axes.view_init(elev=42, azim=-60)
    axes.set_box_aspect((1, 1, 0.6), zoom=0.86)


def draw_histograms(draws: NDArray[np.float32], found: Aggregate, count: int, edges: Array, title: str) -> Figure:
    """Histograms of the `count` dimensions of the largest KL, of `draws` [N, Z], against N(0, 1)."""
    shown = found.order[:count]
    columns = min(6, len(shown))
    rows = -(-len(shown) // columns)
    made = figure(2.6 * columns + 0.4, 1.9 * rows + 0.9)
    made.suptitle(title, fontsize=13, fontweight="bold")
    panels = made.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    density = np.exp(-0.5 * edges**2) / math.sqrt(2 * math.pi)
    for axes, number in zip(panels, shown, strict=False):
        axes.stairs(histogram(draws[:, number], edges), edges, fill=True, color=BLUE, alpha=0.55)
        axes.plot(edges, density, color=INK, linewidth=1)
        axes.set_title(
            f"z{number}\nmean {found.mean[number]:+.2f}   std {found.std[number]:.2f}   KL {found.kl_nats[number]:.2f}",
            fontsize=8,
            fontweight="normal",
        )
    for axes in panels[len(shown) :]:
        axes.remove()
    for axes in panels[max(0, len(shown) - columns) : len(shown)]:
        axes.tick_params(labelbottom=True)
    made.supxlabel("latent value")
    made.supylabel("density")
    handles: list[Any] = [
        Line2D([], [], label="posterior samples", color=BLUE, linewidth=6, alpha=0.55),
        Line2D([], [], label="N(0, 1)", color=INK, linewidth=1),
    ]
    made.legend(handles=handles, loc="outside lower right", ncols=2)
    return made


def histogram(values: NDArray[np.float32], edges: Array) -> Array:
    """Density of `values` [N] between `edges` [E]: [E - 1]; what lies outside counts towards N alone."""
    counts, _ = np.histogram(values, edges)
    return np.asarray(counts / (len(values) * np.diff(edges)))


def histogram_edges(found: Aggregate) -> Array:
    """61 edges, the same for all dimensions, symmetric about zero, wide enough for nearly all draws of each."""
    reach = max(4.0, float((np.abs(found.mean) + 3.5 * found.std).max()))
    return np.linspace(-reach, reach, 61)


def draw_kl(found: Aggregate, title: str) -> Figure:
    """KL by dimension, its running sum, and which dimensions are in use."""
    made = figure(15, 4.6)
    made.suptitle(title, fontsize=13, fontweight="bold")
    left, middle, right = made.subplots(1, 3)
    order, places = found.order, np.arange(1, len(found.order) + 1)
    colours = np.where(found.active[order], BLUE, RED)
    left.bar(places, found.kl_nats[order], width=1.0, color=colours)
    left.set(title="KL to N(0, 1) of each dimension", ylabel="nats an image")
    share = np.cumsum(found.kl_nats[order])
    middle.plot(places, share, color=BLUE)
    middle.set(title="running sum of KL", ylabel="nats an image", ylim=(0, None))
    right.scatter(places, found.variance_of_means[order], s=12, color=colours)
    right.axhline(ACTIVE_VARIANCE, color=INK, linestyle="--", linewidth=1)
    right.annotate(
        f"in use above {ACTIVE_VARIANCE}", (1, ACTIVE_VARIANCE), xycoords=("axes fraction", "data"), xytext=(-4, 4),
        textcoords="offset points", ha="right",
    )  # fmt: skip
    right.set(title="variance of posterior means", ylabel="variance", yscale="log")
    active = int(found.active.sum())
    legend = [("in use", BLUE, active), ("not in use", RED, len(order) - active)]
    left.legend(
        handles=[Line2D([], [], color=c, linewidth=6, label=f"{text} ({number})") for text, c, number in legend],
        loc="upper right",
    )
    for axes in (left, middle, right):
        axes.set_xlabel("dimension, by KL")
        axes.set_xlim(0, len(order) + 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return made


def draw_aggregate(found: Aggregate, discrepancy: Discrepancy, title: str) -> Figure:
    """Mean, spread, correlation and spectrum of the aggregate posterior, and how far it is from the prior."""
    made = figure(13, 9)
    made.suptitle(title, fontsize=13, fontweight="bold")
    (moments, heat), (spectrum, bars) = made.subplots(2, 2)
    order, places = found.order, np.arange(1, len(found.order) + 1)
    moments.plot(places, found.std[order], ".", color=ORANGE, label="standard deviation (prior: 1)")
    moments.plot(places, found.mean[order], ".", color=BLUE, label="mean (prior: 0)")
    for level in (0, 1):
        moments.axhline(level, color=INK, linewidth=0.8, linestyle="--")
    moments.set(title="mean and standard deviation", xlabel="dimension, by KL", ylabel="latent value")
    moments.legend(loc="best", frameon=True, framealpha=0.85)
    _heat_map(made, heat, found)
    spectrum.plot(places, found.eigenvalues, color=BLUE, label="aggregate posterior")
    spectrum.axhline(1, color=INK, linestyle="--", linewidth=1, label="N(0, I)")
    spectrum.set(title="eigenvalues of the covariance", xlabel="eigenvalue, by size", ylabel="variance", yscale="log")
    spectrum.legend(loc="upper right")
    _discrepancy_bars(bars, discrepancy)
    for axes in (moments, spectrum):
        axes.set_xlim(0, len(order) + 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return made


def _heat_map(made: Figure, axes: Any, found: Aggregate) -> None:
    order = found.order
    values = found.correlation[np.ix_(order, order)]
    apart = np.abs(values[~np.eye(len(values), dtype=bool)])
    # A few strong ones would make the many others pale.
    limit = min(1.0, max(0.05, math.ceil(20 * float(np.quantile(apart, 0.995))) / 20)) if len(apart) else 1.0
    end = len(order) + 0.5
    image = axes.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, extent=(0.5, end, end, 0.5))
    axes.grid(False)
    axes.set(title="correlation of the dimensions", xlabel="dimension, by KL", ylabel="dimension, by KL")
    made.colorbar(image, ax=axes, label="correlation", extend="both" if limit < 1 else "neither")


def _discrepancy_bars(axes: Any, found: Discrepancy) -> None:
    rows = [
        ("posterior samples and N(0, I)", found.standard, 0.0, BLUE),
        ("posterior samples and the Gaussian of their mean and covariance", found.fitted, 0.0, GREEN),
        (f"N(0, I) and N(0, I): chance, {FLOORS} times", found.floor, found.floor_std, GREY),
    ]
    for place, (name, value, spread, colour) in enumerate(rows):
        axes.barh(place, value, color=colour, height=0.42, xerr=spread or None, error_kw={"ecolor": INK, "capsize": 3})
        text = f"{name}: {value:.2g}" + (f" ± {spread:.1g}" if spread else "")
        axes.annotate(
            text, (0.02, place - 0.34), xycoords=("axes fraction", "data"), bbox={"fc": "white", "ec": "none", "pad": 1}
        )
    # Straight about zero, where chance is, and logarithmic beyond.
    axes.set_xscale("symlog", linthresh=10 ** math.ceil(math.log10(max(abs(found.floor), found.floor_std, 1e-9))))
    axes.set(ylim=(2.5, -0.6), yticks=[], xlabel="MMD², 0 for draws of one distribution")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_title(f"squared maximum mean discrepancy, {found.images:,} draws each")

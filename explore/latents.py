"""`explore latents`: where a set's images lie in the latent space, and how that compares with the prior N(0, I).

latents-SPLIT-tsne.png         posterior samples on a plane, and their histogram    .csv, -histogram.csv
latents-SPLIT-histograms.png   the strongest dimensions against N(0, 1)             .csv
latents-SPLIT-kl.png           KL by dimension, and which dimensions are in use     -dimensions.csv
latents-SPLIT-aggregate.png    mean, covariance, eigenvalues, MMD to the prior      -covariance.csv
latents-SPLIT.json             the figures of all of them
"""

import gc
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from explore.commands import Latents
from explore.figures.latents import (
    Grid,
    draw_aggregate,
    draw_histograms,
    draw_kl,
    draw_plane,
    histogram,
    histogram_edges,
)
from explore.figures.style import style
from explore.latent.aggregate import Aggregate, Array, Draws, aggregate
from explore.latent.discrepancy import Discrepancy, compare
from explore.latent.tsne import check_perplexity, embed
from explore.model import Trained, load_trained
from explore.names import attribute_number
from explore.output import Output
from pipeline.machine import release_memory
from train.evaluate import Gaussian

SPLITS = ("train", "val", "test")


def run(command: Latents, console: Console) -> list[Path]:
    """Write everything. Raises `UserError` for attributes that the set has not, and for too few images."""
    trained = load_trained(command)
    numbers = {name: attribute_number(name, trained.require_attributes()) for name in command.colour_by}
    splits = _splits(trained, command.split)
    available = sum(trained.count(split) for split in splits)
    images = min(command.count, available)
    check_perplexity(command.perplexity, images)
    if available < command.count:
        named = "all splits together have" if command.split == "all" else f"the {command.split} split has"
        _tell(f"{named} {available:,} images: all of them are taken, not {command.count:,}")
    found, draws = aggregate(trained, splits, images, command.seed, bool(numbers), console)
    output = Output(trained.folder, command)
    # What the model and its encoding took goes back, for t-SNE takes as much; and it comes before all figures.
    del trained
    _free()
    size = draws.latents.shape[1]
    if not console.is_terminal:
        _tell(f"t-SNE of {images:,} posterior samples of {size} dimensions, perplexity {command.perplexity:g}")
    points, divergence = embed(draws.latents, command.perplexity, command.seed, console)
    _free()
    fitted = Gaussian(torch.from_numpy(found.mean), torch.from_numpy(found.covariance))
    with console.status("comparing with the prior"):
        discrepancy = compare(torch.from_numpy(draws.latents), fitted, command.seed)
    _free()
    name = f"latents-{command.split}"
    origin = f"{images:,} images ({command.split})"
    _save_plane(output, name, command, points, draws, numbers)
    _save_histograms(output, name, origin, found, draws, command.dimensions)
    _save_aggregate(output, name, origin, found, discrepancy)
    figures = _figures(found, discrepancy)
    tsne = {"perplexity": command.perplexity, "kl_nats": divergence}
    output.numbers(name, {"images": images, "available": available, "splits": list(splits), **figures, "tsne": tsne})
    return output.written


def _free() -> None:
    gc.collect()
    release_memory()


def _splits(trained: Trained, wanted: str) -> tuple[str, ...]:
    if wanted != "all":
        trained.count(wanted)
        return (wanted,)
    there = trained.require_shards().splits
    return tuple(split for split in SPLITS if split in there and len(there[split]))


def _tell(note: str) -> None:
    """A line beside the list of files, which is what goes to the standard output."""
    print(note, file=sys.stderr, flush=True)


def _figures(found: Aggregate, discrepancy: Discrepancy) -> dict[str, Any]:
    return {
        "rate_nats": float(found.kl_nats.sum()),
        "active_units": int(found.active.sum()),
        "dimensions": len(found.mean),
        "gaussian_kl_nats": found.gaussian_kl_nats,
        "eigenvalues": found.eigenvalues.tolist(),
        "squared_mmd": asdict(discrepancy),
    }


def _save_aggregate(output: Output, name: str, origin: str, found: Aggregate, discrepancy: Discrepancy) -> None:
    active = int(found.active.sum())
    rate = found.kl_nats.sum()
    with style():
        title = f"KL to the prior: {rate:.1f} nats an image, {active} of {len(found.mean)} dimensions in use, {origin}"
        output.figure(f"{name}-kl", draw_kl(found, title))
        output.figure(f"{name}-aggregate", draw_aggregate(found, discrepancy, f"Aggregate posterior of {origin}"))
    columns = ("dimension", "kl_nats", "mean", "std", "variance_of_means", "in_use")
    values = (found.kl_nats, found.mean, found.std, found.variance_of_means, found.active.astype(int))
    table = [(number, *(row[number].item() for row in values)) for number in found.order.tolist()]
    output.table(f"{name}-dimensions", columns, table)
    header = [f"z{number}" for number in range(len(found.mean))]
    output.table(f"{name}-covariance", header, found.covariance.tolist())


def _save_histograms(output: Output, name: str, origin: str, found: Aggregate, draws: Draws, count: int) -> None:
    edges = histogram_edges(found)
    shown = found.order[:count].tolist()
    with style():
        title = f"Posterior samples of {origin}, the {len(shown)} dimensions of the largest KL (nats)"
        output.figure(f"{name}-histograms", draw_histograms(draws.latents, found, count, edges, title))
    densities = [histogram(draws.latents[:, number], edges).tolist() for number in shown]
    columns = ("from", "to", *(f"density_z{number}" for number in shown))
    output.table(f"{name}-histograms", columns, zip(edges[:-1].tolist(), edges[1:].tolist(), *densities, strict=True))


def _save_plane(
    output: Output, name: str, command: Latents, points: Array, draws: Draws, numbers: dict[str, int]
) -> None:
    title = f"t-SNE of {len(points):,} posterior samples ({command.split}), perplexity {command.perplexity:g}"
    grid = Grid.of(points)
    with style():
        if not numbers:
            output.figure(f"{name}-tsne", draw_plane(points, grid, title))
        for attribute, number in numbers.items():
            assert draws.labels is not None, "they were asked for"
            picture = draw_plane(points, grid, title, attribute, draws.labels[:, number])
            output.figure(f"{name}-tsne-{attribute}", picture)
    output.table(f"{name}-tsne", ("split", "key", "x", "y", *numbers), _points(points, draws, numbers))
    cells = [
        (x, y, int(grid.counts[column, row]))
        for column, x in enumerate(grid.centres[0].tolist())
        for row, y in enumerate(grid.centres[1].tolist())
    ]
    output.table(f"{name}-tsne-histogram", ("x", "y", "images"), cells)


def _points(points: Array, draws: Draws, numbers: dict[str, int]) -> Iterator[tuple[Any, ...]]:
    columns = list(numbers.values())
    for row, (x, y) in enumerate(points.tolist()):
        chosen = [] if draws.labels is None else draws.labels[row, columns].tolist()
        yield (draws.splits[row], draws.keys[row], x, y, *chosen)

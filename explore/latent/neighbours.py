"""The nearest training images of new faces: a model that memorised would draw them again.

    new faces ─────────────────────────┐
    held-out photos ──┬────────────────┼──> pixels at 32 px ──┬──> distances to every training image, streamed
                      └─> reconstructed┘    posterior means ──┘    ──> the K nearest of each

New faces are as smooth as reconstructions, and smooth pictures are near to everything: so the fair measure beside
them are held-out photos that went through the same decoder. Where new faces are no nearer to the training images than
those, nothing was memorised.
"""

from dataclasses import dataclass, replace

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from explore.encode import decoded, encoded, tracked
from explore.latent.parts import Part, training_and_held_out
from explore.model import Trained
from train.grids import to_uint8

QUERIES = 512
"""Pictures of each kind that are compared with all training images, at most."""
SHOWN = 12
"""New faces in the picture."""
_SIDE = 32


@dataclass(frozen=True)
class Queries:
    """What neighbours are looked for: a row for each picture."""

    pixels: Tensor
    """float32 [Q, D]: the picture at 32 px; the distance of two is the root of the mean squared difference."""
    latents: Tensor
    """float32 [Q, Z]: the mean of its posterior."""

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def joined(cls, parts: list["Queries"]) -> "Queries":
        """All rows."""
        return cls(torch.cat([part.pixels for part in parts]), torch.cat([part.latents for part in parts]))


@dataclass(frozen=True)
class Neighbour:
    """A training image."""

    number: int
    """In the split's order."""
    key: str
    image: Tensor | None
    """uint8 [3, H, W], where it is to be shown."""


class Nearest:
    """The K nearest training images of each query, over a stream of them."""

    def __init__(self, queries: int, count: int) -> None:
        self.distances = torch.full((queries, count), torch.inf)
        """float32 [Q, K], nearest first"""
        self.numbers = torch.full((queries, count), -1)
        """int64 [Q, K]; -1 where there are fewer"""

    def add(self, distances: Tensor, first: int) -> None:
        """Distances [Q, B] to images number `first` and on."""
        numbers = torch.arange(first, first + distances.shape[1]).expand(len(distances), -1)
        both = torch.cat([self.distances, distances], dim=1)
        # Stable: of two that are as near, the first of the order.
        self.distances, places = both.sort(dim=1, stable=True)
        count = self.numbers.shape[1]
        self.distances = self.distances[:, :count].clone()
        self.numbers = torch.cat([self.numbers, numbers], dim=1).gather(1, places[:, :count])


@dataclass(frozen=True)
class Found:
    """What was found, by measure: `pixels` and `latents`."""

    nearest: dict[str, Nearest]
    known: dict[int, Neighbour]
    """The training images that are near to one of the first queries, by number."""
    train: Part


@torch.inference_mode()
def features(trained: Trained, images: Tensor) -> Queries:
    """Of float images [B, 3, H, W] in [0, 1]."""
    mean, _ = trained.model.encode(images.to(trained.device))
    return Queries(_pixels(images), mean.cpu())


@torch.inference_mode()
def held_out_queries(trained: Trained, count: int, seed: int, console: Console | None) -> tuple[Queries, Queries]:
    """Of `count` held-out photos, and of what the model makes of a draw of their posteriors."""
    part = training_and_held_out(trained)[1].first(count)
    photos, answers = [], []
    for batch in tracked(encoded(trained, part.split, part.end), part.end, f"encoding {part.split}", console):
        skipped = max(0, part.begin - batch.first)
        if skipped < len(batch):
            photos.append(Queries(_pixels(batch.images[skipped:]), batch.mean[skipped:].cpu()))
            latents = batch.sample(seed)[skipped:]
            for faces in decoded(trained.model, latents, trained.device):
                answers.append(features(trained, faces.float() / 255))
    return Queries.joined(photos), Queries.joined(answers)


@torch.inference_mode()
def find(
    trained: Trained, queries: Queries, count: int, *, named: int, shown: int, console: Console | None = None
) -> Found:
    """The `count` nearest training images of every query, in one pass over the training split.

    Keys are kept of the neighbours of the first `named` queries, images of those of the first `shown`.
    """
    train, _ = training_and_held_out(trained)
    nearest = {measure: Nearest(len(queries), count) for measure in ("pixels", "latents")}
    known: dict[int, Neighbour] = {}
    batches = encoded(trained, train.split, len(train), keys=True)
    for batch in tracked(batches, len(train), "comparing with train", console):
        assert batch.keys is not None, "they were asked for"
        nearest["pixels"].add(_rms(queries.pixels, _pixels(batch.images)), batch.first)
        nearest["latents"].add(torch.cdist(queries.latents, batch.mean.cpu()), batch.first)
        wanted = {number for found in nearest.values() for number in found.numbers[:named].flatten().tolist()}
        seen = {number for found in nearest.values() for number in found.numbers[:shown].flatten().tolist()}
        known = {
            number: neighbour if number in seen else replace(neighbour, image=None)
            for number, neighbour in known.items()
            if number in wanted
        }
        for number in sorted(wanted):
            place = number - batch.first
            if place >= 0:
                image = to_uint8(batch.images[place]).cpu() if number in seen else None
                known[number] = Neighbour(number, batch.keys[place], image)
    return Found(nearest, known, train)


def measured(found: Found, kinds: dict[str, slice]) -> dict[str, dict[str, float | int]]:
    """By measure, the median distance of each kind of query to its nearest training image, and their ratios.

    `kinds` names the rows of the queries: `new`, `photos`, `reconstructions`.
    """
    results = {}
    for measure, nearest in found.nearest.items():
        near = {kind: nearest.distances[rows, 0] for kind, rows in kinds.items()}
        medians = {kind: float(values.median()) for kind, values in near.items()}
        limit = float(near["reconstructions"].quantile(0.01))
        results[measure] = {
            **{f"median_{kind}": value for kind, value in medians.items()},
            "ratio_to_reconstructions": medians["new"] / max(medians["reconstructions"], 1e-12),
            "ratio_to_photos": medians["new"] / max(medians["photos"], 1e-12),
            "nearest_new": float(near["new"].min()),
            "nearer_than_99_percent": float((near["new"] < limit).float().mean()),
        }
    return results


def _pixels(images: Tensor) -> Tensor:
    """The mean of each cell of a grid of 32 x 32: what is finer than that is noise to this comparison."""
    side = min(_SIDE, images.shape[-1])
    return functional.adaptive_avg_pool2d(images.cpu().contiguous(), side).flatten(1)


def _rms(queries: Tensor, others: Tensor) -> Tensor:
    """[Q, B]"""
    return torch.cdist(queries, others).div_(queries.shape[1] ** 0.5)

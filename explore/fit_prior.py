"""`explore fit-prior`: distributions to draw new faces from, fitted, compared on held-out images, and stored.

train split ──> posteriors ──> gaussian, mixture ─┐
N(0, I) ──────────────────────────────────────────┼──> likelihood of held-out posteriors, distance of new faces
held-out split ──> posteriors, pictures ──────────┘    from held-out pictures ──> the best ──> priors.safetensors
"""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from explore.commands import FitPrior
from explore.encode import encoded, tracked
from explore.figures.priors import draw
from explore.figures.style import style
from explore.latent.fitting import Aggregate, fit_mixture, least_images
from explore.latent.parts import Part, training_and_held_out
from explore.latent.priors import GAUSSIAN, MIXTURE, STANDARD, Priors, store_priors
from explore.measures.distances import Projections, distance, project
from explore.model import Trained, load_trained
from explore.output import Output
from explore.pictures import Faces, RealPictures, made_once
from pipeline.errors import UserError
from pipeline.machine import release_memory
from train.mixture import Mixture
from train.priors import FittedPriors

MOST_PICTURES = 1024
"""Of each kind for the distance; the floor shows how far so many can tell."""
DRAWS = 3
"""Sets of new faces from each prior: how much the distance depends on the draws."""


@dataclass(frozen=True)
class Measured:
    """One prior against held-out images."""

    nats: float
    """Mean log-density of a draw of each held-out posterior, larger is better."""
    nats_error: float
    """Standard error of that mean."""
    swd: float
    """Sliced Wasserstein distance of new faces from held-out pictures, smaller is better; mean over the draws."""
    swd_deviation: float
    """Standard deviation over the draws."""


def run(command: FitPrior, console: Console) -> list[Path]:
    """Fit, measure, store; `fit-prior.png` compares, its json and csv have the numbers.

    Raises `UserError` without a shard set, or with another one than the model was trained on.
    """
    trained = load_trained(command, prior_images=1)  # The Gaussian is fitted below.
    _check_set(trained)
    output = Output(trained.folder, command)
    fit, held_out = (part.first(command.count) for part in training_and_held_out(trained))
    aggregate, draws = posteriors(trained, fit, command.seed, console)
    fitted = {GAUSSIAN: Mixture.single(aggregate.gaussian())}
    note = too_few(len(fit), command.components, trained.model.latent)
    if note:
        console.print(f"no mixture: {note}", style="yellow", soft_wrap=True, markup=False)
    else:
        with console.status("fitting the mixture"):
            fitted[MIXTURE] = fit_mixture(draws, command.components, command.seed)
    draws = draws[:MOST_PICTURES].copy()
    release_memory()  # The steps of the fit leave several copies of all draws behind.
    priors = Priors({STANDARD: Mixture.standard(trained.model.latent), **fitted}, GAUSSIAN, {})
    _, held_draws = posteriors(trained, held_out, command.seed, console)
    count = min(MOST_PICTURES, len(fit), len(held_out))
    swd, real, encoded_real = distances(
        trained, priors, fit, held_out, torch.from_numpy(draws[:count]), command, console
    )
    measured = {name: _measured(priors.mixture(name), held_draws, swd[name]) for name in priors.names}
    default, decided_by = best(measured)
    facts = {
        "images": len(fit),
        "of": trained.count("train"),
        "held_out": len(held_out),
        "held_out_from": held_out.split,
        "pictures": count,
        "draws": DRAWS,
        "components": command.components if MIXTURE in fitted else None,
        "no_mixture": note,
        "measured": {name: asdict(values) for name, values in measured.items()},
        "swd_real": real,
        "swd_encoded": encoded_real,
        "decided_by": decided_by,
        "position": trained.facts.get("position"),
        "shardset": trained.require_shards().fingerprint,
    }
    stored = store_priors(trained, FittedPriors(fitted, default, facts))
    with style():
        output.figure("fit-prior", draw(measured, real, encoded_real, facts, default))
    output.table(
        "fit-prior",
        ("prior", "held_out_nats", "standard_error", "swd", "swd_deviation"),
        [
            *((name, *asdict(values).values()) for name, values in measured.items()),
            ("training images, encoded and decoded", "", "", encoded_real, ""),
            ("training images", "", "", real, ""),
        ],
    )
    output.numbers("fit-prior", {"default": default, **facts, "priors": stored.name})
    _tell(console, measured, default, facts)
    return [*output.written, stored]


def posteriors(trained: Trained, part: Part, seed: int, console: Console) -> tuple[Aggregate, NDArray[np.float32]]:
    """Sums over the posteriors of a part, and a draw [N, Z] of each."""
    aggregate = Aggregate(trained.model.latent)
    draws = np.empty((len(part), trained.model.latent), np.float32)
    batches = encoded(trained, part.split, part.end)
    for batch in tracked(batches, part.end, f"encoding {part.split}", console):
        skipped = max(0, part.begin - batch.first)
        if skipped < len(batch):
            aggregate.add(batch.mean[skipped:], batch.logvar[skipped:])
            first = batch.first + skipped - part.begin
            draws[first : batch.first + len(batch) - part.begin] = batch.sample(seed)[skipped:].cpu().numpy()
    return aggregate, draws


def too_few(images: int, components: int, dimensions: int) -> str | None:
    """Why there can be no mixture, and the remedy; None where there are images enough."""
    least = least_images(components, dimensions)
    if images >= least:
        return None
    most = images // (least // components) if least > 2 * dimensions else 0
    remedy = f"Give --components {most}" if most > 1 else "Take more images: a larger --count, or a larger set"
    return (
        f"a mixture of {components} Gaussians in {dimensions} dimensions must be fitted to {least:,} images or more; "
        f"got {images:,}. {remedy}."
    )


def distances(
    trained: Trained,
    priors: Priors,
    fit: Part,
    held_out: Part,
    draws: Tensor,
    command: FitPrior,
    console: Console,
) -> tuple[dict[str, list[float]], float, float]:
    """Sliced Wasserstein distances from held-out pictures, times 1,000.

    Of new faces, by prior and set of draws; of as many training images, the floor; and of those encoded to `draws`
    [N, Z] and decoded: what a prior would reach that is the aggregate posterior itself.
    """
    count = len(draws)

    def projections(pictures: RealPictures | Faces, text: str) -> Projections:
        with made_once(pictures, count, text, console) as images:
            return project(images, seed=command.seed)

    def real(part: Part) -> Projections:
        return projections(RealPictures(trained, part.split, count, part.begin), f"images of {part.split}")

    target = real(held_out)

    def of_faces(latents: Tensor, text: str) -> float:
        return distance(projections(Faces(trained, latents), text), target).mean

    found = {
        name: [
            of_faces(
                priors.sample(name, count, seed=command.seed, first=number * count),
                f"new faces, {name} prior, {number + 1} of {DRAWS}",
            )
            for number in range(DRAWS)
        ]
        for name in priors.names
    }
    return found, distance(real(fit), target).mean, of_faces(draws, "training images, encoded and decoded")


def best(measured: Mapping[str, Measured]) -> tuple[str, str]:
    """The prior to draw from by default, and what decided: the pictures, or where they are alike the likelihood."""
    nearest = min(measured, key=lambda name: measured[name].swd)
    least = measured[nearest]
    alike = [
        name
        for name, found in measured.items()
        if found.swd - least.swd <= 2 * max(found.swd_deviation, least.swd_deviation)
    ]
    if len(alike) == 1:
        return nearest, "sliced Wasserstein distance"
    return max(alike, key=lambda name: measured[name].nats), (
        "held-out likelihood: the distances differ by less than twice their deviation over the draws"
    )


def _check_set(trained: Trained) -> None:
    shards = trained.require_shards()
    if not trained.same_data:
        raise UserError(
            f"the prior must be fitted to what the model was trained on; got {shards.location}, which is other data. "
            "Give the right sets with --shards."
        )


def _measured(mixture: Mixture, latents: NDArray[np.float32], swd: list[float]) -> Measured:
    parts = torch.split(torch.from_numpy(latents), 1024)
    nats = torch.cat([mixture.log_density(part) for part in parts])
    error = float(nats.std(unbiased=len(nats) > 1)) / len(nats) ** 0.5
    return Measured(float(nats.mean()), error, statistics.mean(swd), statistics.stdev(swd))


def _tell(console: Console, measured: Mapping[str, Measured], default: str, facts: Mapping[str, object]) -> None:
    used = "all" if facts["images"] == facts["of"] else f"of {facts['of']:,}"
    console.print(
        f"fitted to {facts['images']:,} training images ({used}), measured on {facts['held_out']:,} of "
        f"{facts['held_out_from']}",
        soft_wrap=True,
    )
    for name, values in measured.items():
        console.print(
            f"{name:9}  distance of new faces {values.swd:6.1f}  held-out likelihood {values.nats:8.1f} nats"
            + ("  <- default of sample" if name == default else ""),
            soft_wrap=True,
        )
    console.print(
        f"{'':9}  training images, encoded and decoded {facts['swd_encoded']:.1f}, as they are "
        f"{facts['swd_real']:.1f}; decided by {facts['decided_by']}",
        soft_wrap=True,
    )

"""`explore score`: how true reconstructions are, and how like real faces the new ones of each prior.

split ──> encode, decode ──────────────────> PSNR, SSIM, MS-SSIM, rate, distortion, bits per dimension

split ──────────────────────────────────────────────┐ the reference
train ────────────────> real faces: the floor ──────┤
split ──> the model ──> reconstructions ────────────┼─> sliced Wasserstein, precision, recall, density, coverage,
priors ─> the decoder > new faces, seed after seed ─┘   sharpness; with --features FID and KID
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from explore.commands import LEAST_SCORED, Score
from explore.encode import tracked
from explore.latent.priors import load_priors
from explore.measures.distances import Projections, distance, project
from explore.measures.features import INCEPTION, Extractor, Features, Pyramid
from explore.measures.fidelity import fidelity
from explore.measures.manifold import compare
from explore.measures.table import NO_NETWORK, origin_of, print_report, rows_of, summary
from explore.model import Trained, load_trained
from explore.output import Output
from explore.pictures import Faces, RealPictures, Reconstructions, made_once
from pipeline.errors import UserError
from train.similarity import detail

if TYPE_CHECKING:
    from explore.measures.frechet import FeatureDistances

MOST = 10_000
"""Images of a split that are scored, unless a count is given."""
FITTED_IMAGES = 4096
"""Training images that features without a network are fitted to."""
KEPT_BYTES = 16 << 20
"""Features of a set that are kept, for neighbours and the kernel distance: of fewer images where they are many."""


@dataclass(frozen=True)
class Scored:
    """A set of pictures against the reference."""

    what: str
    images: int
    figures: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By name, a value for each draw."""

    def add(self, found: Mapping[str, float]) -> None:
        """Add the figures of a draw."""
        for name, value in found.items():
            self.figures[name].append(value)

    def summary(self) -> dict[str, Any]:
        """What is stored."""
        figures = {name: summary(values) for name, values in self.figures.items()}
        return {"what": self.what, "images": self.images, "figures": figures}


def run(command: Score, console: Console) -> list[Path]:
    """Print the figures, and write `score.json` and `score.csv`.

    Raises `UserError` for a split or a training split of too few images, and for a network that is none.
    """
    trained = load_trained(command)
    count = _count(trained, command)
    features = _features(trained, command, console)
    seeds = range(command.seed, command.seed + command.seeds)
    truth = fidelity(trained, command.split, count, seeds, console)
    reference = Reference.of(RealPictures(trained, command.split, count), features, command.seed, console)
    sets = {"real": _floor(trained, command, count, reference)}
    sets["reconstructions"] = Scored(f"the {command.split} images' own, from posterior means", count)
    sets["reconstructions"].add(
        reference.compare(Reconstructions(trained, command.split, count), count, "reconstructions")
    )
    priors = load_priors(trained)
    for name in priors.names:
        sets[name] = Scored(f"new faces, from {priors.origin(name)}", count)
        for seed in seeds:
            faces = Faces(trained, priors.sample(name, count, seed=seed))
            sets[name].add(reference.compare(faces, count, f"new faces, {name} prior, seed {seed}"))
    found = {
        **origin_of(trained, command, count),
        "features": {**features.describe(), "kept_images": min(count, _kept(features))},
        "reconstruction": {name: summary(values) for name, values in truth.items()},
        "sets": {name: scored.summary() for name, scored in sets.items()},
        "missing": [
            *([] if isinstance(features, Extractor) else [NO_NETWORK]),
            *([priors.note] if priors.note else []),
        ],
    }
    print_report(found, console)
    output = Output(trained.folder, command)
    output.numbers("score", found)
    output.table("score", *rows_of(found))
    return output.written


def _count(trained: Trained, command: Score) -> int:
    """Images of the reference: at most half of the training split, of which the floor takes the other half."""
    total = trained.count(command.split)
    total = total // 2 if command.split == "train" else total
    count = min(command.count or MOST, total)
    if count < LEAST_SCORED:
        raise UserError(
            f"a score must have {LEAST_SCORED} images or more; got {count} in {command.split}. "
            "Score another split, or make a larger set."
        )
    return count


def _features(trained: Trained, command: Score, console: Console) -> Features:
    if command.features is not None:
        size = trained.model.architecture.image_size
        return Extractor.load(command.features, command.features_name, command.features_size, size, trained.device)
    count = min(FITTED_IMAGES, trained.count("train"))
    return Pyramid.fit(tracked(RealPictures(trained, "train", count), count, "fitting features", console))


def _floor(trained: Trained, command: Score, count: int, reference: "Reference") -> Scored:
    """Training images against the reference, other ones for each seed as long as there are some."""
    first = count if command.split == "train" else 0
    room = trained.count("train") - first
    size = min(count, room)
    if size < LEAST_SCORED:
        raise UserError(
            f"the training split must have {LEAST_SCORED} images to compare with or more; got {room}. "
            "Make a larger set."
        )
    scored = Scored("training images: real against real, the floor", size)
    for draw in range(min(command.seeds, room // size)):
        pictures = RealPictures(trained, "train", size, first + draw * size)
        scored.add(reference.compare(pictures, size, f"real images, draw {draw}"))
    return scored


def _kept(features: Features) -> int:
    return KEPT_BYTES // (4 * features.dimensions)


@dataclass(frozen=True)
class Reference:
    """Real pictures, measured once, and what other sets are measured with."""

    features: Features
    seed: int
    console: Console
    projections: Projections
    kept: Tensor
    """float32 [N, F]"""
    detail: float
    distances: "FeatureDistances | None"
    """Where there is a network."""

    @classmethod
    def of(cls, pictures: RealPictures, features: Features, seed: int, console: Console) -> "Reference":
        """Measure the reference itself."""
        distances = None
        if isinstance(features, Extractor):
            from explore.measures.frechet import FeatureDistances

            distances = FeatureDistances(features.dimensions)
        with made_once(pictures, pictures.count, f"reference: {pictures.split} images", console) as images:
            kept, sharp = _read(images, pictures.count, features, distances, real=True)
            return cls(features, seed, console, project(images, seed=seed), kept, sharp, distances)

    def compare(self, pictures: Iterable[Tensor], count: int, text: str) -> dict[str, float]:
        """The figures of `count` pictures, by name."""
        with made_once(pictures, count, text, self.console) as images:
            kept, sharp = _read(images, count, self.features, self.distances, real=False)
            wasserstein = distance(self.projections, project(images, seed=self.seed))
        found = {"swd": wasserstein.mean}
        found |= {f"swd_{side}px": value for side, value in wasserstein.levels.items()}
        found["sharpness"] = sharp / self.detail if self.detail else 1.0
        found |= asdict(compare(self.kept, kept))
        if self.distances is not None:
            found |= _named(asdict(self.distances.compute(self.kept, kept, seed=self.seed)), self.features.name)
        return found


def _named(distances: Mapping[str, float], name: str) -> dict[str, float]:
    """FID and KID are Inception's; distances on other features are called by their own names."""
    if name == INCEPTION:
        return {"fid": distances["frechet"], "kid": distances["kernel"]}
    return {f"{kind} distance on {name}": value for kind, value in distances.items()}


@torch.inference_mode()
def _read(
    pictures: Iterable[Tensor], count: int, features: Features, distances: "FeatureDistances | None", *, real: bool
) -> tuple[Tensor, float]:
    """The features that are kept [N, F], and the mean detail of `count` pictures; all features go to `distances`."""
    # One tensor: small ones kept between large temporary ones would keep the heap from shrinking.
    kept = torch.empty(min(count, _kept(features)), features.dimensions)
    total, first = 0.0, 0
    for images in pictures:
        found = features(images)
        if distances is not None:
            distances.update(found, real=real)
        place = kept[first : first + len(found)]
        place.copy_(found[: len(place)])
        first += len(found)
        total += float(detail(images.float() / 255).cpu().double().sum())
    assert first == count, "the caller has counted"
    return kept, total / count

"""A direction in latent space for every attribute of the set: what to add to a latent to add the attribute.

    train split ──> encode ──> Moments ──> directions ─┐
    val split ────> encode ──> projections ──> ROC AUC ─┴──> explore/directions.safetensors

Latents here are posterior means. Two versions, of which one unit is always a whole attribute, from a face without it
to a face with it:

plain     mean of the faces with the attribute minus mean of those without, so that `Wearing_Lipstick` is also young
          and female, as the faces are that have it
adjusted  what goes with the linear discriminant's answer for one attribute, its answers for the others held fixed:
          coefficients of the ridge regression of the latents on all of those answers at once. (On the labels
          themselves it works less well: a label that latents tell only in part cannot be held fixed in them.) A unit
          moves the attribute's own answer from its mean without to its mean with it, as a unit of plain does.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from explore.encode import Encoded, encoded, tracked
from explore.latent.moments import Moments
from explore.model import Trained
from pipeline.errors import UserError
from pipeline.files import write_atomic
from train.checkpoint import weights_sha256

DIRECTIONS_FILE = "directions.safetensors"
IMAGES = 20_000
"""Images of the training split that directions are made from, and of another that they are tried on, at most."""
METHOD = 2
"""Number of the arithmetic below: what another one computed is computed again."""
_RIDGE = 1.0
"""Added to the correlations of the discriminants' answers: less takes so much of the other attributes out that little
is left of its own, more leaves as much of them in as plain directions do."""
_LATENT_RIDGE = 0.01
"""Added to the covariance of the latents, as a share of their mean variance: some dimensions hardly vary."""
_NOTHING = 1e-12


@dataclass(frozen=True)
class Directions:
    """A direction for every attribute that some training images have and others have not."""

    names: tuple[str, ...]
    """[A]"""
    vectors: Tensor
    """float32 [A, Z], adjusted: one unit adds the attribute, the others held as they are."""
    plain: Tensor
    """float32 [A, Z], differences of means: one unit is the distance between faces without and with it."""
    auc: tuple[float, ...]
    """[A] Area under the ROC curve on held-out faces, of the linear discriminant: how well latents tell the attribute.
    nan where all held-out faces are the same."""
    auc_adjusted: tuple[float, ...]
    """[A] The same of the projection on `vectors`."""
    auc_plain: tuple[float, ...]
    """[A] The same of the projection on `plain`."""
    auc_errors: tuple[float, ...]
    """[A] Standard error of `auc` (Hanley and McNeil 1982)."""
    held_out_with: tuple[int, ...]
    """[A] Held-out images that have the attribute."""
    shares: Mapping[str, float]
    """Share of the training images that have the attribute, by name, those of no direction too."""
    images: int
    """Training images that the directions were made from."""
    held_out: int
    """Images that they were tried on."""
    held_out_from: str
    """Where those come from: `val`, `test`, or `train` (its last tenth, then not used for the directions)."""

    def moved(self, latents: Tensor, amounts: Mapping[str, float], *, plain: bool = False) -> Tensor:
        """`latents` [B, Z], changed by so many units of each attribute; `UserError` for a name that is none."""
        vectors = self.plain if plain else self.vectors
        step = torch.zeros_like(vectors[0])
        for name, amount in amounts.items():
            step += amount * vectors[self.number(name)]
        return latents + step.to(latents.device)

    def number(self, name: str) -> int:
        """Place of an attribute in `names`; `UserError` with the nearest names where it has none."""
        if name in self.names:
            return self.names.index(name)
        if name in self.shares:
            having = round(self.shares[name] * self.images)
            raise UserError(
                f"attribute {name} must be 1 for some training images and 0 for others; got {having} of "
                f"{self.images:,} with it. Choose another attribute, or a larger set."
            )
        raise unknown_attribute(name, self.names)


def unknown_attribute(name: str, names: Sequence[str]) -> UserError:
    """The error for a name that is none of `names`, with the nearest of them."""
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower().replace(" ", "_").replace("-", "_"), by_lower, n=3, cutoff=0.5)
    nearest = ", ".join(by_lower[found] for found in near) or ", ".join(names)
    return UserError(f"the attribute must be one of the set's; got '{name}'. Did you mean: {nearest}?")


def load_directions(trained: Trained, console: Console | None = None, images: int | None = None) -> Directions:
    """The directions of a model, from its results folder, or computed now and stored there.

    Stored ones count only for the same weights and shard set, and, where `images` says how many to make them from, only
    if they were made from as many. A model without a set takes what is stored.

    Raises `UserError` for a set without attributes, or where every attribute is the same for all images.
    """
    path = trained.folder / DIRECTIONS_FILE
    identity = _identity(trained)
    stored = _stored(path, identity)
    if stored is not None and (images is None or trained.shards is None or stored.images == _used(trained, images)):
        return stored
    trained.require_attributes()
    directions = compute_directions(trained, console, images or IMAGES)
    _store(path, directions, identity)
    return directions


def compute_directions(trained: Trained, console: Console | None, images: int) -> Directions:
    """Stream `images` of the training split, then as many held-out ones."""
    names = trained.require_attributes()
    used, held_out = _used(trained, images), held_out_split(trained)
    moments = Moments(trained.model.latent, len(names))
    for batch in tracked(_labelled(trained, "train", used), used, "encoding train", console):
        assert batch.labels is not None, "the set has attributes"
        moments.add(batch.mean, batch.labels)
    shares = dict(zip(names, moments.shares.tolist(), strict=True))
    kept = [number for number, name in enumerate(names) if 0 < shares[name] < 1]
    if not kept:
        raise UserError(
            f"attributes must differ between images; got all {len(names)} the same in {used:,} training images of "
            f"{trained.require_shards().location}. Choose a larger set, or more --images."
        )
    plain, adjusted, discriminant = solve(moments, kept)
    versions = torch.cat([plain, adjusted, discriminant]).float()
    aucs, truth = _aucs(trained, held_out, used, images, versions, kept, console)
    having = truth.sum(0).tolist()
    return Directions(
        names=tuple(names[number] for number in kept),
        vectors=adjusted.float(),
        plain=plain.float(),
        auc_plain=tuple(aucs[: len(kept)]),
        auc_adjusted=tuple(aucs[len(kept) : 2 * len(kept)]),
        auc=tuple(aucs[2 * len(kept) :]),
        auc_errors=tuple(
            auc_error(auc, with_it, len(truth) - with_it)
            for auc, with_it in zip(aucs[2 * len(kept) :], having, strict=True)
        ),
        held_out_with=tuple(having),
        shares=shares,
        images=used,
        held_out=len(truth),
        held_out_from=held_out,
    )


def solve(moments: Moments, kept: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Plain directions, adjusted ones, and linear discriminants of the attributes `kept`, each float64 [A, Z]."""
    latents, attributes, mixed = moments.covariances()
    # Of a 0/1 attribute: E[z | 1] - E[z | 0] = cov(y, z) / var(y).
    plain = mixed[kept] / attributes.diagonal()[kept, None]
    # Fisher 1936; the covariance of all faces in place of that within classes changes its length alone.
    ridge = _LATENT_RIDGE * latents.diagonal().mean() + _NOTHING
    discriminant = torch.linalg.solve(latents + ridge * torch.eye(len(latents), dtype=torch.float64), plain.T).T
    together = discriminant @ latents
    deviations = (together * discriminant).sum(1, keepdim=True).sqrt().clamp(min=_NOTHING)
    correlations = together @ discriminant.T / deviations / deviations.T
    ridged = correlations + _RIDGE * torch.eye(len(kept), dtype=torch.float64)
    adjusted = torch.linalg.solve(ridged, together / deviations)
    wanted, found = ((discriminant * rows).sum(1, keepdim=True) for rows in (plain, adjusted))
    return plain, adjusted * wanted / found.clamp(min=_NOTHING), discriminant


def auc_error(auc: float, with_it: int, without: int) -> float:
    """Standard error of an area under the ROC curve (Hanley and McNeil 1982, equation 1); nan where that is nan."""
    if math.isnan(auc):
        return math.nan
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (with_it - 1) * (first - auc**2) + (without - 1) * (second - auc**2)
    return math.sqrt(max(0.0, variance) / (with_it * without))


def held_out_split(trained: Trained) -> str:
    """The split to try things on: `val`, else `test`, else `train`."""
    splits = trained.require_shards().splits
    return next((name for name in ("val", "test") if name in splits and len(splits[name])), "train")


def _labelled(trained: Trained, split: str, count: int) -> Iterator[Encoded]:
    return encoded(trained, split, count, labels=True)


def _used(trained: Trained, images: int) -> int:
    """Training images to make directions from."""
    total = trained.count("train")
    return min(images, total if held_out_split(trained) != "train" else max(1, total * 9 // 10))


def _aucs(
    trained: Trained, split: str, used: int, images: int, versions: Tensor, kept: list[int], console: Console | None
) -> tuple[list[float], NDArray[np.int8]]:
    """ROC AUC of the projections on each row of `versions` [3 A, Z], and the labels [N, A] that told it."""
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise UserError(
            "ROC curves must be computed by scikit-learn; got no such package. "
            "Install it: pip install 'leanstream[explore]'"
        ) from error
    begin = used if split == "train" else 0
    end = min(begin + images, trained.count(split))
    scores, labels = [], []
    for batch in tracked(_labelled(trained, split, end), end, f"encoding {split}", console):
        assert batch.labels is not None, "the set has attributes"
        first = max(0, begin - batch.first)
        scores.append((batch.mean.cpu() @ versions.T)[first:])
        labels.append(batch.labels[first:, kept])
    projected, truth = torch.cat(scores).numpy(), torch.cat(labels).numpy()
    found = []
    for number in range(len(versions)):
        mine = truth[:, number % len(kept)]
        both = len(mine) > 0 and mine.min() < mine.max()
        found.append(float(roc_auc_score(mine, projected[:, number])) if both else math.nan)
    return found, truth


def _identity(trained: Trained) -> dict[str, Any]:
    """What directions are a function of, the number of images apart."""
    shards = trained.shards
    attributes = hashlib.sha256("\n".join(shards.attributes).encode()).hexdigest() if shards else None
    return {
        "method": METHOD,
        "weights_sha256": weights_sha256(trained.model.state_dict()),
        "shardset": None if shards is None else shards.fingerprint,
        "attributes_sha256": attributes,
    }


def _store(path: Path, directions: Directions, identity: dict[str, Any]) -> None:
    """One file, so that tensors and what is said of them cannot part."""
    values = {name: value for name, value in vars(directions).items() if not isinstance(value, Tensor)}
    tensors = {"vectors": directions.vectors.contiguous(), "plain": directions.plain.contiguous()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(tensors, {"identity": json.dumps(identity), "values": json.dumps(values)}))


def _stored(path: Path, identity: dict[str, Any]) -> Directions | None:
    """What is stored, if it is whole and of the same identity."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            found, values = json.loads(metadata["identity"]), json.loads(metadata["values"])
            if any(found.get(name) != value for name, value in identity.items() if value is not None):
                return None
            lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
            return Directions(**{**values, **lists}, vectors=file.get_tensor("vectors"), plain=file.get_tensor("plain"))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None

"""What the page shows, as functions of faces and amounts: no page, no server, no state that changes.

seed --random_face--> Face --edited(amounts)--> latents --picture--> pixels --png--> bytes
photo file --photo_face-->   `--between(another, share)--`
"""

import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from explore.encode import decoded, encoded
from explore.latent.directions import Directions, load_directions
from explore.latent.priors import Priors, load_priors
from explore.model import Trained
from explore.morph import WAYS, Walk, film_of
from explore.photos import load_photos
from pipeline.errors import UserError
from train.grids import to_uint8
from train.similarity import psnr

DIMENSIONS = 12
"""Latent dimensions that get a slider."""
RANKING_IMAGES = 512
"""Images that decide which dimensions are the strongest."""
SHOWN_SIZE = 384
"""Pixels that a picture is at least enlarged to, by a whole factor."""
FILM_FRAMES = 25
"""Pictures of a film from one face to the other."""


@dataclass(frozen=True)
class Dimension:
    """A latent dimension with a slider."""

    number: int
    std: float
    """Standard deviation of the aggregate posterior: what a slider's 1 stands for."""
    strength: str
    """By how much it was found to matter, as text with a unit."""


@dataclass(frozen=True)
class Face:
    """Where the sliders start from; it holds no tensor, so that the page can copy it."""

    latent: NDArray[np.float32]
    """[Z]"""
    name: str
    """For the name of a file."""
    title: str
    """What it is, for a reader."""
    note: str = ""
    """What holds of it as long as no slider was moved."""
    seed: int | None = None
    """Of the draw, where it is one."""
    photo: NDArray[np.uint8] | None = None
    """[H, W, 3]: the photo as the model sees it, where it is one."""


@dataclass(frozen=True)
class Studio:
    """A model with what the page needs of it; nothing in it changes."""

    trained: Trained
    priors: Priors
    directions: Directions | None
    """None where the attributes of the photos are not known."""
    attributes: tuple[str, ...]
    """Names of the directions, those that tell faces apart best first."""
    dimensions: tuple[Dimension, ...]
    """The strongest first."""

    def random_face(self, seed: int, temperature: float = 1.0) -> Face:
        """A draw from the model's default prior; the same for the same arguments."""
        latents = self.priors.sample(self.priors.default, 1, seed=seed, temperature=temperature)
        return Face(_array(latents[0]), f"face-{seed}", f"Random face {seed}", seed=seed)

    @torch.inference_mode()
    def photo_face(self, path: Path) -> Face:
        """The posterior mean of a photo; raises `UserError`, without the file's folder, for what is none."""
        try:
            image = load_photos(self.trained, [path])
        except UserError as error:
            raise UserError(str(error).replace(str(path), path.name)) from error
        mean, _ = self.trained.model.encode(image.to(self.trained.device))
        decibels = psnr(image.to(self.trained.device), self.trained.model.decode(mean))
        pixels = to_uint8(image)[0].permute(1, 2, 0).cpu().numpy()
        # The name of the file says nothing to others, and may say too much.
        name = f"photo-{hashlib.sha256(pixels.tobytes()).hexdigest()[:8]}"
        return Face(_array(mean[0]), name, "Reconstruction", f"{float(decibels[0]):.1f} dB PSNR", photo=pixels)

    @torch.inference_mode()
    def edited(
        self, face: Face, attributes: Mapping[str, float], dimensions: Mapping[int, float]
    ) -> NDArray[np.float32]:
        """Latents [Z] of `face`, moved along directions by name and along single dimensions by number."""
        latents = torch.from_numpy(face.latent)[None].clone()
        wanted = {name: amount for name, amount in attributes.items() if amount}
        if self.directions is not None and wanted:
            latents = self.directions.moved(latents, wanted)
        for dimension in self.dimensions:
            latents[:, dimension.number] += dimensions.get(dimension.number, 0.0) * dimension.std
        return _array(latents[0])

    @torch.inference_mode()
    def picture(self, latent: NDArray[np.float32]) -> Image.Image:
        """The face at `latent` [Z], in the model's own size."""
        (images,) = decoded(self.trained.model, torch.from_numpy(latent)[None], self.trained.device)
        return Image.fromarray(images[0].permute(1, 2, 0).contiguous().numpy())

    @torch.inference_mode()
    def between(self, left: Face, right: Face, share: float, way: str) -> NDArray[np.float32]:
        """Latents [Z] at `share`, from 0 to 1, of the way to the right face; `way`: linear or spherical."""
        return _array(_walked(left, right, torch.tensor([float(share)]), way)[0])

    @torch.inference_mode()
    def film(self, left: Face, right: Face, way: str) -> bytes:
        """A GIF of the way there and back, without end."""
        latents = _walked(left, right, torch.linspace(0, 1, FILM_FRAMES), way)
        return film_of([Walk(latents, torch.cat(list(decoded(self.trained.model, latents, self.trained.device))))])


def open_studio(trained: Trained, console: Console) -> Studio:
    """Get a model ready for the page: its priors, its directions where there are some, its strongest dimensions."""
    try:
        directions = load_directions(trained, console)
    except UserError as error:
        console.print(f"No sliders for attributes: {error}", markup=False)
        directions = None
    names: tuple[str, ...] = ()
    if directions is not None:
        # What held-out faces could not tell is nan, and comes last.
        found = {
            name: -1.0 if math.isnan(auc) else auc for name, auc in zip(directions.names, directions.auc, strict=True)
        }
        names = tuple(sorted(found, key=lambda name: -found[name]))
    return Studio(trained, load_priors(trained), directions, names, strongest_dimensions(trained))


@torch.inference_mode()
def strongest_dimensions(trained: Trained, count: int = DIMENSIONS) -> tuple[Dimension, ...]:
    """The dimensions of the largest KL divergence from the prior, over some training images.

    Without a shard set there are no images: then those that change the mean face's pixels most.
    """
    std = trained.fitted.covariance.diagonal().sqrt()
    strength, unit = (_dimension_kl(trained), "nats") if trained.shards else (_pixel_change(trained), "levels")
    best = strength.argsort(descending=True, stable=True)[:count].tolist()
    return tuple(Dimension(number, float(std[number]), f"{strength[number]:.1f} {unit}") for number in best)


def _walked(left: Face, right: Face, shares: Tensor, way: str) -> Tensor:
    """Latents [T, Z] at `shares` [T] of the way."""
    return WAYS[way](torch.from_numpy(left.latent), torch.from_numpy(right.latent), shares)


def png(image: Image.Image) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    # A picture of a slider's move lives for a moment: packing it tighter would cost more than sending it.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def enlarged(image: Image.Image, *, smooth: bool) -> Image.Image:
    """The picture by the smallest whole factor that makes it at least `SHOWN_SIZE` pixels high."""
    factor = -(-SHOWN_SIZE // image.height)
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return image.resize((image.width * factor, image.height * factor), how)


def _dimension_kl(trained: Trained) -> Tensor:
    """Mean KL divergence of each dimension's posterior from N(0, 1) [Z], nats."""
    total, count = torch.zeros(trained.model.latent, dtype=torch.float64), 0
    for batch in encoded(trained, "train", RANKING_IMAGES):
        mean, logvar = batch.mean.cpu().double(), batch.logvar.cpu().double()
        total += (0.5 * (mean.square() + logvar.exp() - 1 - logvar)).sum(0)
        count += len(batch)
    return total / count


def _pixel_change(trained: Trained) -> Tensor:
    """Mean change of a pixel [Z], in 255 levels, from a standard deviation below the mean face to one above it."""
    centre, std = trained.fitted.mean.float(), trained.fitted.covariance.diagonal().sqrt().float()
    below, above = (decoded(trained.model, centre + torch.diag(sign * std), trained.device) for sign in (-1, 1))
    changes = [(high.double() - low.double()).abs().flatten(1).mean(1) for low, high in zip(below, above, strict=True)]
    return torch.cat(changes)


def _array(latent: Tensor) -> NDArray[np.float32]:
    return latent.float().cpu().numpy().copy()

"""What the page shows, as functions of faces and amounts: no page, no server, no state that changes.

seed --random_face--> Face --edited(amounts)--> latents --picture--> pixels --png--> bytes
photo file --photo_face-->   `--between(another, share)--`
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from explore.directions import Directions, load_directions
from explore.encode import encoded
from explore.model import Trained
from explore.morph import interpolate
from explore.photos import load_photos
from explore.priors import Priors, load_priors
from pipeline.errors import UserError
from train.grids import to_uint8
from train.similarity import psnr

DIMENSIONS = 12
"""Latent dimensions that get a slider."""
RANKING_IMAGES = 512
"""Images that decide which dimensions are the strongest."""
SHOWN_SIZE = 384
"""Pixels that a picture is at least enlarged to, by a whole factor."""
STEPS = 100
"""Places between two faces."""
_GIF_STEP, _GIF_MS = 4, 60


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
    caption: str
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
        return Face(_array(mean[0]), name, f"Reconstruction, {float(decibels[0]):.1f} dB PSNR", photo=pixels)

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
        return self._pictures(torch.from_numpy(latent)[None])[0]

    def between(self, one: Face, other: Face, share: float, how: str) -> NDArray[np.float32]:
        """Latents [Z] at `share`, from 0 to 1, of the way to the other face; `how`: linear or spherical."""
        return _array(self._way(one, other, how)[round(share * STEPS)])

    @torch.inference_mode()
    def morph(self, one: Face, other: Face, how: str, *, smooth: bool) -> bytes:
        """A GIF of the way there and back, without end."""
        there = self._pictures(self._way(one, other, how)[::_GIF_STEP])
        frames = [enlarged(frame, smooth=smooth) for frame in [*there, *there[-2:0:-1]]]
        buffer = io.BytesIO()
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=_GIF_MS, loop=0, optimize=False)
        return buffer.getvalue()

    def _way(self, one: Face, other: Face, how: str) -> Tensor:
        ends = (torch.from_numpy(face.latent) for face in (one, other))
        return interpolate(*ends, STEPS + 1, how)

    def _pictures(self, latents: Tensor) -> list[Image.Image]:
        images = to_uint8(self.trained.model.decode(latents.to(self.trained.device))).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image) for image in images]


def open_studio(trained: Trained, console: Console) -> Studio:
    """Get a model ready for the page: its priors, its directions where there are some, its strongest dimensions."""
    try:
        directions = load_directions(trained, console)
    except UserError as error:
        console.print(f"No sliders for attributes: {error}", markup=False)
        directions = None
    names: tuple[str, ...] = ()
    if directions is not None:
        found = dict(zip(directions.names, directions.auc, strict=True))
        names = tuple(sorted(found, key=lambda name: -float(found[name])))
    return Studio(trained, load_priors(trained), directions, names, strongest_dimensions(trained))


@torch.inference_mode()
def strongest_dimensions(trained: Trained, count: int = DIMENSIONS) -> tuple[Dimension, ...]:
    """The dimensions of the largest KL divergence from the prior, over some training images.

    Without a shard set there are no images: then those that change the mean face's pixels most.
    """
    std = trained.fitted.covariance.diagonal().sqrt()
    strength, unit = (_kl_of_dimensions(trained), "nats") if trained.shards else (_pixel_change(trained), "levels")
    best = strength.argsort(descending=True, stable=True)[:count].tolist()
    return tuple(Dimension(number, float(std[number]), f"{strength[number]:.1f} {unit}") for number in best)


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


def _kl_of_dimensions(trained: Trained) -> Tensor:
    """Mean KL divergence of each dimension's posterior from N(0, 1) [Z], nats."""
    total, count = torch.zeros(trained.model.latent, dtype=torch.float64), 0
    for batch in encoded(trained, "train", RANKING_IMAGES):
        mean, logvar = batch.mean.double(), batch.logvar.double()
        total += (0.5 * (mean.square() + logvar.exp() - 1 - logvar)).sum(0).cpu()
        count += len(batch)
    return total / count


def _pixel_change(trained: Trained) -> Tensor:
    """Mean change of a pixel [Z], of 255 levels, from one standard deviation below the mean face to one above."""
    size = trained.model.latent
    centre = trained.fitted.mean.float()
    moves = torch.diag(trained.fitted.covariance.diagonal().sqrt().float())
    changes = []
    for part in torch.split(moves, 32):
        below, above = (trained.model.decode((centre + sign * part).to(trained.device)) for sign in (-1, 1))
        changes.append(255 * (above - below).abs().flatten(1).mean(1).double().cpu())
    found = torch.cat(changes)
    assert len(found) == size
    return found


def _array(latent: Tensor | Sequence[float]) -> NDArray[np.float32]:
    return np.array(torch.as_tensor(latent).detach().cpu(), np.float32)

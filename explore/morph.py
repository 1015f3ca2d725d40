"""`explore morph`: from face to face through the latent space, straight and along great circles."""

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from explore.commands import Morph
from explore.encode import decoded
from explore.faces import Faces, drawn_faces, load_faces
from explore.figures.sheets import film, strip
from explore.model import Trained, load_trained
from explore.output import Output
from pipeline.errors import UserError
from train.grids import stack
from train.similarity import psnr

FINER = 4
"""Pictures of a film for each step of the strip."""
MOST_FACES = 12
_FRAME_MS, _REST_MS = 60, 700


class Walk(NamedTuple):
    """One way from a face to the next."""

    latents: Tensor
    """float32 [T, Z]"""
    frames: Tensor
    """uint8 [T, 3, H, W] on the CPU."""


def linear(start: Tensor, end: Tensor, shares: Tensor) -> Tensor:
    """Points [T, Z] of the straight line from `start` [Z] to `end` [Z], at `shares` [T] of the way."""
    return torch.lerp(start[None], end[None], shares[:, None])


def slerp(start: Tensor, end: Tensor, shares: Tensor) -> Tensor:
    """Points [T, Z] of the great circle from `start` [Z] to `end` [Z] around the origin, at `shares` [T] of the way.

    White 2016 (arXiv 1609.04468), after Shoemake 1985; between ends of other lengths the length changes with the
    angle. Where the ends give no plane, being parallel or opposite, the straight line.
    """
    angle = angle_between(start, end)
    if not 1e-4 < angle < torch.pi - 1e-4:
        return linear(start, end, shares)
    before, after = (torch.sin(part * angle)[:, None] for part in (1 - shares, shares))
    return (before * start + after * end) / torch.sin(angle)


def angle_between(start: Tensor, end: Tensor) -> Tensor:
    """Angle at the origin, radians; 0 where one of the two is the origin."""
    lengths = start.norm() * end.norm()
    if lengths == 0:
        return torch.zeros(())
    # By both legs: the arc cosine alone loses half of the digits near 0 and pi.
    one, other = start * end.norm(), end * start.norm()
    return 2 * torch.atan2((one - other).norm(), (one + other).norm())


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"linear": linear, "spherical": slerp}


def run(command: Morph, console: Console) -> list[Path]:
    """Paint `morph.png` and the films `morph-linear.gif` and `morph-spherical.gif`, and write what they measure.

    Raises `UserError` for fewer than two faces, and for names that are none.
    """
    trained = load_trained(command, prior_images=1)  # Nothing is drawn from the prior here.
    faces = _faces(trained, command)
    output = Output(trained.folder, command)
    with torch.inference_mode():
        means = trained.model.encode(faces.images.to(trained.device).float() / 255)[0].float().cpu()
        shares = torch.linspace(0, 1, (command.steps - 1) * FINER + 1)
        walks = {
            way: [_walk(trained, path(start, end, shares)) for start, end in pairwise(means)]
            for way, path in WAYS.items()
        }
    output.picture("morph", _strips(faces, walks))
    for way, parts in walks.items():
        output.file(f"morph-{way}.gif", film_of(parts))
    output.numbers("morph", {"faces": _described(faces), "pairs": _measured(faces, means, walks)})
    output.table("morph", ("from", "to", "way", "share", "psnr_to_the_frame_before_db"), _rows(faces, walks, shares))
    return output.written


def _faces(trained: Trained, command: Morph) -> Faces:
    if not command.faces:
        return drawn_faces(trained, command.split, 2, command.seed)
    faces = load_faces(trained, command.faces, command.split)
    if not 2 <= len(faces) <= MOST_FACES:
        remedy = "Name a face to go to" if len(faces) < 2 else "Name fewer"
        raise UserError(f"a morph must have from 2 to {MOST_FACES} faces; got {len(faces)}. {remedy}.")
    return faces


def _walk(trained: Trained, latents: Tensor) -> Walk:
    return Walk(latents, torch.cat(list(decoded(trained.model, latents, trained.device))))


def _strips(faces: Faces, walks: dict[str, list[Walk]]) -> Image.Image:
    blocks = []
    for number, (start, end) in enumerate(pairwise(faces.names)):
        rows = [(way, parts[number].frames[::FINER]) for way, parts in walks.items()]
        blocks.append((f"{start} to {end}", strip(faces.images[number], faces.images[number + 1], rows)))
    return stack(blocks)


def film_of(walks: list[Walk]) -> bytes:
    """A GIF of walks that follow each other, all equally long: there and back without end, with a rest at each face."""
    there = film(torch.cat([walks[0].frames[:1], *(walk.frames[1:] for walk in walks)]))
    durations = [_FRAME_MS] * len(there)
    for number in range(0, len(there), len(walks[0].frames) - 1):
        durations[number] = _REST_MS
    frames, durations = there + there[-2:0:-1], durations + durations[-2:0:-1]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)
    return buffer.getvalue()


def _described(faces: Faces) -> list[dict[str, str]]:
    return [{"name": name, **({"key": key} if key else {})} for name, key in zip(faces.names, faces.keys, strict=True)]


def _measured(faces: Faces, means: Tensor, walks: dict[str, list[Walk]]) -> list[dict[str, Any]]:
    found = []
    for number, (start, end) in enumerate(pairwise(means)):
        found.append(
            {
                "from": faces.names[number],
                "to": faces.names[number + 1],
                "latent_distance": float((end - start).norm()),
                "angle_degrees": float(torch.rad2deg(angle_between(start, end))),
                "lengths_of_the_ends": [float(start.norm()), float(end.norm())],
                "ways": {way: _figures(parts[number]) for way, parts in walks.items()},
            }
        )
    return found


def _figures(walk: Walk) -> dict[str, float]:
    """How long a way is and how evenly it goes, from frame to frame of its film."""
    frames = walk.frames.float() / 255
    steps = (frames[1:] - frames[:-1]).square().flatten(1).mean(1).sqrt()
    decibels = _psnr_of_steps(walk)
    return {
        "latent_length": float((walk.latents[1:] - walk.latents[:-1]).norm(dim=1).sum()),
        "shortest_latent": float(walk.latents.norm(dim=1).min()),
        "picture_length_rms": float(steps.sum()),
        "largest_step_over_mean": float(steps.max() / steps.mean().clamp(min=1e-9)),
        "mean_psnr_of_steps_db": float(decibels.mean()),
        "least_psnr_of_steps_db": float(decibels.min()),
    }


def _psnr_of_steps(walk: Walk) -> Tensor:
    frames = walk.frames.float() / 255
    return psnr(frames[1:], frames[:-1])


def _rows(faces: Faces, walks: dict[str, list[Walk]], shares: Tensor) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for way, parts in walks.items():
        for walk, (start, end) in zip(parts, pairwise(faces.names), strict=True):
            decibels = ["", *(f"{value:.3f}" for value in _psnr_of_steps(walk).tolist())]
            rows += [
                (start, end, way, f"{share:.4f}", value) for share, value in zip(shares.tolist(), decibels, strict=True)
            ]
    return rows

"""`explore reconstruct`: originals over their reconstructions, of the shard set or of a person's own photos."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from explore.commands import Reconstruct
from explore.encode import encoded, tracked
from explore.figures.sheets import pairs_sheet
from explore.model import Trained, load_trained
from explore.output import Output
from explore.photos import Photos, read_photos
from train.evaluate import batch_for
from train.grids import stack, to_uint8
from train.similarity import psnr, ssim

SHOWN_PIXELS = 512 * 64**2
"""Of originals in the picture, 512 pairs at 64 px and 128 at 128 px; the numbers are those of all."""


@dataclass(frozen=True)
class Pairs:
    """A batch of images, what the model made of them, and their names."""

    originals: Tensor
    """uint8 [B, 3, H, W] on the CPU, as is the next."""
    answers: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.originals)


def run(command: Reconstruct, console: Console) -> list[Path]:
    """Paint `reconstruct-SPLIT.png` or `reconstruct-photos.png`; the csv has the figures of each image, the json all.

    Raises `UserError` for a split that the set has not, and for what `read_photos` refuses.
    """
    trained = load_trained(command, prior_images=1)  # Nothing is drawn from the prior here.
    output = Output(trained.folder, command)
    if command.photos:
        photos = read_photos(trained, command.photos, command.count)
        for line in photos.left_out:
            console.print(f"left out: {line}", style="yellow", soft_wrap=True, markup=False)
        origin, total, batches = "photos", len(photos), _of_photos(trained, photos)
    else:
        total = min(command.count, trained.count(command.split))
        origin, batches = command.split, _of_split(trained, command.split, total)
    shown: list[Pairs] = []
    most = max(1, SHOWN_PIXELS // trained.model.architecture.image_size**2)
    names: list[str] = []
    decibels: list[float] = []
    similarities: list[float] = []
    for pairs in tracked(batches, total, f"reconstructing {origin}", console):
        left = most - sum(map(len, shown))
        if left > 0:
            shown.append(Pairs(pairs.originals[:left].clone(), pairs.answers[:left], pairs.names[:left]))
        originals, answers = pairs.originals.float() / 255, pairs.answers.float() / 255
        decibels += psnr(originals, answers).tolist()
        similarities += ssim(originals, answers).tolist() if originals.shape[-1] >= 11 else [float("nan")] * len(pairs)
        names += pairs.names
    _paint(output, origin, command.columns, shown, decibels)
    _write(output, origin, names, decibels, similarities)
    return output.written


@torch.inference_mode()
def _of_photos(trained: Trained, photos: Photos) -> Iterator[Pairs]:
    size = batch_for(trained.model.architecture.image_size)
    for number in range(0, len(photos), size):
        images = photos.images[number : number + size]
        mean, _ = trained.model.encode(images.to(trained.device).float() / 255)
        yield Pairs(images, _answers(trained, mean), photos.names[number : number + size])


@torch.inference_mode()
def _of_split(trained: Trained, split: str, total: int) -> Iterator[Pairs]:
    for batch in encoded(trained, split, total, keys=True):
        assert batch.keys is not None, "they were asked for"
        yield Pairs(to_uint8(batch.images).cpu(), _answers(trained, batch.mean), batch.keys)


def _answers(trained: Trained, mean: Tensor) -> Tensor:
    return to_uint8(trained.model.decode(mean)).cpu()


def _paint(output: Output, origin: str, columns: int, shown: list[Pairs], decibels: list[float]) -> None:
    originals = torch.cat([pairs.originals for pairs in shown])
    answers = torch.cat([pairs.answers for pairs in shown])
    notes = [f"{value:.1f}" for value in decibels[: len(originals)]]
    what = "own photos" if origin == "photos" else f"{origin} split"
    of_all = f"; the first {len(originals):,} of {len(decibels):,}" if len(originals) < len(decibels) else ""
    caption = f"{what}: originals over reconstructions, PSNR in dB (mean {np.mean(decibels):.2f}{of_all})"
    output.picture(f"reconstruct-{origin}", stack([(caption, pairs_sheet(originals, answers, notes, columns))]))


def _write(output: Output, origin: str, names: list[str], decibels: list[float], similarities: list[float]) -> None:
    name = f"reconstruct-{origin}"
    output.numbers(
        name,
        {
            "images": len(names),
            "mean_psnr_db": float(np.mean(decibels)),
            "mean_ssim": float(np.mean(similarities)),
            "worst": names[int(np.argmin(decibels))],
            "best": names[int(np.argmax(decibels))],
            "psnr_db": decibels,
        },
    )
    label = "file" if origin == "photos" else "key"
    rows = zip(
        itertools.count(), names, (f"{value:.3f}" for value in decibels), (f"{value:.4f}" for value in similarities)
    )
    output.table(name, ("number", label, "psnr_db", "ssim"), rows)

"""Images through the encoder and latents through the decoder, a batch at a time."""

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from explore.model import Trained
from pipeline import StreamingLoader
from pipeline.counter import normal
from pipeline.machine import release_memory
from train.evaluate import batch_for
from train.grids import to_uint8
from train.models import FaceVAE

Item = TypeVar("Item", bound=Sized)


@dataclass(frozen=True)
class Encoded:
    """A batch of images and their posteriors, on the model's device."""

    images: Tensor
    """float32 [B, 3, H, W] in [0, 1]"""
    mean: Tensor
    """float32 [B, Z]"""
    logvar: Tensor
    """float32 [B, Z]"""
    labels: Tensor | None
    """int8 [B, A] of 0/1 attributes on the CPU, where the set has some and they were asked for."""
    first: int
    """Number of the first image in the split's order."""
    keys: tuple[str, ...] | None = None
    """[B], where they were asked for."""

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, seed: int) -> Tensor:
        """A draw of each posterior, float32 [B, Z]; the same for the same image and seed, in any batch."""
        numbers = np.arange(self.first, self.first + len(self))
        noise = torch.from_numpy(normal(numbers, self.mean.shape[1], seed=seed, stream="explore"))
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.device)


@torch.inference_mode()
def encoded(
    trained: Trained,
    split: str,
    limit: int | None = None,
    *,
    labels: bool = False,
    keys: bool = False,
) -> Iterator[Encoded]:
    """The first `limit` images (default: all, each once) of a split's order, with their posteriors.

    Raises `UserError` where the model has no shard set, or the set no such split.
    """
    shards = trained.require_shards()
    total = trained.count(split) if limit is None else min(limit, trained.count(split))
    batch_size = min(batch_for(shards.image_size), max(1, total))
    # Shard after shard: the least to fetch and to keep of a set that is far away.
    with StreamingLoader(
        shards, split=split, batch_size=batch_size, window=1, lanes=1, labels=labels and bool(shards.attributes)
    ) as loader:
        first = 0
        while first < total:
            batch = next(loader)
            count = min(len(batch), total - first)
            images = batch.to(trained.device).images[:count].float().div_(255)
            mean, logvar = trained.model.encode(images)
            chosen = None if batch.labels is None else batch.labels[:count]
            yield Encoded(images, mean, logvar, chosen, first, batch.keys[:count] if keys else None)
            first += count


@torch.inference_mode()
def decoded(model: FaceVAE, latents: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Images uint8 [b, 3, H, W] of `latents` [B, Z], a batch at a time, on the CPU."""
    for part in torch.split(latents, batch_for(model.architecture.image_size)):
        yield to_uint8(model.decode(part.to(device))).cpu()


@dataclass(frozen=True)
class Latents:
    """Posteriors of many images in memory: 8 bytes a dimension and image."""

    mean: NDArray[np.float32]
    """[N, Z]"""
    std: NDArray[np.float32]
    """[N, Z]"""
    draws: NDArray[np.float32]
    """[N, Z]: a sample of each posterior."""
    labels: NDArray[np.int8] | None
    """[N, A] of 0/1 attributes, where the set has some."""


def latents_of(trained: Trained, split: str, limit: int, seed: int, console: Console | None = None) -> Latents:
    """Posteriors and a draw of each of the first `limit` images of a split."""
    total = min(limit, trained.count(split))
    size = trained.model.latent
    mean, std, draws = (np.empty((total, size), np.float32) for _ in range(3))
    attributes = trained.require_shards().attributes
    labels = np.empty((total, len(attributes)), np.int8) if attributes else None
    batches = encoded(trained, split, total, labels=labels is not None)
    for batch in tracked(batches, total, f"encoding {split}", console):
        part = slice(batch.first, batch.first + len(batch))
        mean[part] = batch.mean.cpu().numpy()
        std[part] = torch.exp(0.5 * batch.logvar).cpu().numpy()
        draws[part] = batch.sample(seed).cpu().numpy()
        if labels is not None:
            assert batch.labels is not None, "they were asked for, and the set has some"
            labels[part] = batch.labels.numpy()
    return Latents(mean, std, draws, labels)


def tracked(batches: Iterable[Item], total: int, text: str, console: Console | None) -> Iterator[Item]:
    """The same batches, with a bar that counts their images where `console` is a terminal.

    What a whole pass over images leaves behind goes back to the system before the next begins.
    """
    try:
        yield from batches if console is None or not console.is_terminal else _with_bar(batches, total, text, console)
    finally:
        release_memory()


def _with_bar(batches: Iterable[Item], total: int, text: str, console: Console) -> Iterator[Item]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=total)
        for batch in batches:
            yield batch
            progress.advance(task, len(batch))

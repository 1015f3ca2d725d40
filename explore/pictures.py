"""Sets of pictures that can be read again and again: of a split, what the model makes of it, and new faces.

Each is uint8 [B, 3, H, W] on the CPU, batch by batch, the same every time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console
from torch import Tensor

from explore.encode import decoded, encoded, tracked
from explore.model import Trained
from pipeline import StreamingLoader
from train.evaluate import batch_for

HELD_BYTES = 12 << 20
"""A set of at most this size is kept in memory, and so decoded once."""


@dataclass(frozen=True)
class RealPictures:
    """Images `first` to `first + count - 1` of a split's order."""

    trained: Trained
    split: str
    count: int
    first: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        shards = self.trained.require_shards()
        size = min(batch_for(shards.image_size), self.count)
        with StreamingLoader(shards, split=self.split, batch_size=size, start=self.first, window=1, lanes=1) as loader:
            for left in range(self.count, 0, -size):
                yield next(loader).images[:left].contiguous().clone()


@dataclass(frozen=True)
class Reconstructions:
    """What the model makes of the first `count` images of a split, from their posterior means."""

    trained: Trained
    split: str
    count: int

    def __iter__(self) -> Iterator[Tensor]:
        for batch in encoded(self.trained, self.split, self.count):
            yield from decoded(self.trained.model, batch.mean, self.trained.device)


@dataclass(frozen=True)
class Faces:
    """What the model makes of `latents` [N, Z]."""

    trained: Trained
    latents: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return decoded(self.trained.model, self.latents, self.trained.device)


@dataclass(frozen=True)
class Watched:
    """Pictures, with a bar on a terminal whenever they are read."""

    pictures: Iterable[Tensor]
    count: int
    text: str
    console: Console

    def __iter__(self) -> Iterator[Tensor]:
        return tracked(self.pictures, self.count, self.text, self.console)


def watched(pictures: Iterable[Tensor], count: int, image_bytes: int, text: str, console: Console) -> Watched:
    """The same pictures with a bar, from memory after the first time where they are few."""
    first = Watched(pictures, count, text, console)
    return Watched(list(first), count, text, console) if count * image_bytes <= HELD_BYTES else first

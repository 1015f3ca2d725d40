"""Sets of pictures that can be read again and again: of a split, what the model makes of it, and new faces.

Each is uint8 [B, 3, H, W] on the CPU, batch by batch, the same every time.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import torch
from rich.console import Console
from torch import Tensor

from explore.encode import decoded, encoded, tracked
from explore.model import Trained
from pipeline import StreamingLoader
from train.evaluate import batch_for

HELD_BYTES = 12 << 20
"""A set of at most this size is kept in memory."""


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


@contextlib.contextmanager
def made_once(pictures: Iterable[Tensor], count: int, text: str, console: Console) -> Iterator[Iterable[Tensor]]:
    """Pictures that are made once: whoever reads them again gets them from a temporary file, or memory if they are few.

    On a terminal a bar counts the `count` pictures at each reading.
    """
    with tempfile.SpooledTemporaryFile(HELD_BYTES) as file:
        yield _MadeOnce(pictures, count, text, console, file)


class _MadeOnce:
    def __init__(self, pictures: Iterable[Tensor], count: int, text: str, console: Console, file: IO[bytes]) -> None:
        self._pictures, self._count, self._text, self._console, self._file = pictures, count, text, console, file
        self._shapes: tuple[torch.Size, ...] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return tracked(self._make() if self._shapes is None else self._read(), self._count, self._text, self._console)

    def _make(self) -> Iterator[Tensor]:
        shapes = []
        self._file.seek(0)
        for images in self._pictures:
            self._file.write(images.contiguous().numpy().tobytes())
            shapes.append(images.shape)
            yield images
        self._shapes = tuple(shapes)

    def _read(self) -> Iterator[Tensor]:
        assert self._shapes is not None, "they were read to their end once"
        self._file.seek(0)
        for shape in self._shapes:
            yield torch.frombuffer(bytearray(self._file.read(shape.numel())), dtype=torch.uint8).view(shape)

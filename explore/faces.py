"""Faces that a person names: photo files, folders of them, and images of the shard set by number or key."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from explore.model import Trained
from explore.photos import read_photos
from pipeline import StreamingLoader
from pipeline.counter import permutation
from pipeline.errors import UserError
from pipeline.format import SPLITS
from shard_tool.sources.protocol import IMAGE_EXTENSIONS, extension_of


@dataclass(frozen=True)
class Faces:
    """Images in memory, and what they are called."""

    images: Tensor
    """uint8 [N, 3, H, W] on the CPU."""
    names: tuple[str, ...]
    """A file's name, or as in `val:12`."""
    keys: tuple[str | None, ...]
    """The key of an image of the set."""

    def __len__(self) -> int:
        return len(self.names)


def load_faces(trained: Trained, named: Sequence[str], split: str) -> Faces:
    """The faces called `named`, in this order; a number or key without a split's name is of `split`.

    Numbers count from 0 in the order in which `explore reconstruct` shows a split. Raises `UserError` for what is
    neither a photo nor an image of the set.
    """
    parts = [_named(trained, name, split) for name in named]
    return Faces(
        torch.cat([part.images for part in parts]),
        tuple(name for part in parts for name in part.names),
        tuple(key for part in parts for key in part.keys),
    )


def drawn_faces(trained: Trained, split: str, count: int, seed: int) -> Faces:
    """`count` faces of a split, drawn by `seed`; `UserError` where it has fewer."""
    total = trained.count(split)
    if total < count:
        raise UserError(f"the {split} split must have at least {count} images; got {total}. Name another with --split.")
    return load_faces(trained, [str(number) for number in permutation(total, "faces", seed)[:count]], split)


def _named(trained: Trained, name: str, split: str) -> Faces:
    head, colon, rest = name.partition(":")
    path = Path(name)
    if colon and head in SPLITS and not path.exists():
        split, name = head, rest
    elif path.exists() or extension_of(name) in IMAGE_EXTENSIONS:
        photos = read_photos(trained, [path])
        return Faces(photos.images, photos.names, (None,) * len(photos))
    if name.isdecimal():
        return _by_number(trained, split, int(name))
    if trained.shards is None:
        raise UserError(f"a face must be a photo; got '{name}', where there is none. Check the path, or add --shards.")
    return _by_key(trained, split, name)


def _by_number(trained: Trained, split: str, number: int) -> Faces:
    total = trained.count(split)
    if number >= total:
        raise UserError(f"a number of the {split} split must be below {total:,}; got {number}. Choose a smaller one.")
    with _loader(trained, split, 1, number) as loader:
        batch = next(loader)
        return Faces(batch.images.contiguous().clone(), (f"{split}:{number}",), batch.keys)


def _by_key(trained: Trained, split: str, key: str) -> Faces:
    """The face whose key is `key`, or ends with it behind a slash."""
    total = trained.count(split)
    with _loader(trained, split, min(256, total), 0) as loader:
        for batch in loader.epoch():
            for place, found in enumerate(batch.keys):
                if found == key or found.endswith(f"/{key}"):
                    image = batch.images[place : place + 1].contiguous().clone()
                    return Faces(image, (f"{split}:{int(batch.positions[place]) % total}",), (found,))
    raise UserError(
        f"a face must be a photo, or a number or key of an image of the set; got '{key}', which is none in {split}. "
        f"Numbers go from 0 to {total - 1:,}; explore reconstruct lists the keys."
    )


def _loader(trained: Trained, split: str, batch_size: int, start: int) -> StreamingLoader:
    return StreamingLoader(
        trained.require_shards(), split=split, batch_size=batch_size, start=start, window=1, lanes=1, prefetch=1
    )

"""A person's own photos as the model saw those of its training: through the recipe that its shard set was made by.

    files, folders --> bytes --shard_tool.image.photo, the recipe--> uint8 [3, H, W] --> float32 in [0, 1]

The recipe is what the model was saved with, else what its shard set records, else the shard tool's default. A photo
that is smaller than the model's images is enlarged: a set leaves such photos out, but here a person asks for this one.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explore.model import Trained
from pipeline.errors import UserError, describe_os_error
from shard_tool.image.photo import MAX_FILE_BYTES, PhotoError, Recipe, quiet_pillow, upright_square
from shard_tool.sources.folder import FolderSource

MOST_PHOTOS = 1024
"""Photos that are taken at a time: they stay in memory, and a picture of more shows nothing."""


@dataclass(frozen=True)
class Photos:
    """Photos in memory, and what they are called."""

    images: Tensor
    """uint8 [N, 3, H, W] on the CPU."""
    names: tuple[str, ...]
    """The file's name, or its path in the folder that was given."""
    left_out: tuple[str, ...] = ()
    """One line for each thing in a folder that was passed over."""

    def __len__(self) -> int:
        return len(self.names)


def load_photos(trained: Trained, paths: Sequence[Path]) -> Tensor:
    """The photos of files, and of all files in folders, as `trained` takes them: float32 [B, 3, H, W] in [0, 1].

    Raises `UserError` for what is missing, no photo, or more than `MOST_PHOTOS`.
    """
    return read_photos(trained, paths).images.to(trained.device).float() / 255


def read_photos(trained: Trained, paths: Sequence[Path], of_a_folder: int = MOST_PHOTOS) -> Photos:
    """The same photos as uint8, with their names, and of each folder the first `of_a_folder`.

    A file that is no photo is passed over in a folder, and a `UserError` where it was named.
    """
    recipe = recipe_of(trained)
    images: list[Tensor] = []
    names: list[str] = []
    left_out: list[str] = []
    for path in paths:
        files, more = _files(path, of_a_folder)
        left_out += [f"{path}: all but the first {len(files):,} of {len(files) + more:,} photos"] if more else []
        if len(names) + len(files) > MOST_PHOTOS:
            raise UserError(f"at most {MOST_PHOTOS:,} photos must be given; got more. Name fewer.")
        for file, name in files:
            try:
                images.append(_square(_read(file), recipe, str(file)))
                names.append(name)
            except UserError as error:
                if file == path:
                    raise
                left_out.append(str(error))
    if not images:
        raise UserError(f"at least one photo must be readable; got {len(left_out):,} that are not: {left_out[0]}")
    return Photos(torch.stack(images), tuple(names), tuple(left_out))


def photo_from_bytes(data: bytes, recipe: Recipe, name: str = "the photo") -> Tensor:
    """The photo file `data` as float32 [3, H, W] in [0, 1]; `UserError` calls it `name` where it is no photo."""
    return _square(data, recipe, name).float() / 255


def recipe_of(trained: Trained) -> Recipe:
    """How a photo becomes an image of the model's."""
    size = trained.model.architecture.image_size
    settings: dict[str, Any] = trained.facts.get("photos") or {}
    if not settings and trained.shards is not None and trained.shards.parts:
        settings = trained.shards.parts[0].get("settings") or {}
    return Recipe(
        size,
        settings.get("crop", "center"),
        encode="png",  # Pixels are all that is wanted.
        background=str(settings.get("background", "white")),
        upscale=True,
        exact=bool(settings.get("exact", False)),
    )


def _files(path: Path, most: int) -> tuple[list[tuple[Path, str]], int]:
    """Path and name of a file, or of the first `most` photos in a folder; how many more the folder has."""
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"a photo must be a file; got {path}, where there is none. Check the path.")
        return [(path, path.name)], 0
    listing = FolderSource.open(path).listing
    taken = [os.fsdecode(listing[item]) for item in range(min(most, len(listing)))]
    return [(path / name, name) for name in taken], len(listing) - len(taken)


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{path} must be a photo of at most {MAX_FILE_BYTES >> 20} MiB; got more. Save it smaller.")
    return data


def _square(data: bytes, recipe: Recipe, name: str) -> Tensor:
    """uint8 [3, H, W]"""
    try:
        with quiet_pillow():
            image = _framed(data, recipe)
    except PhotoError as error:
        detail = f" ({' '.join(error.detail.split())})" if error.detail else ""
        raise UserError(f"{name} must be a photo; got {error.reason}{detail}. Give a JPEG or PNG file.") from error
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous()


def _framed(data: bytes, recipe: Recipe) -> Any:
    try:
        return upright_square(data, recipe)
    except PhotoError as error:
        if error.reason != "smaller than the crop":
            raise
        # The crop fits the photos of the set; of a smaller one there is nothing better than all of it.
        return upright_square(data, replace(recipe, crop="center"))

"""Sliced Wasserstein distance between two sets of pictures, over patches of their Laplacian pyramids.

Karras et al. 2018 (Progressive growing of GANs, arXiv 1710.10196, section 5): what a set looks like at each scale,
from fine texture to large shapes, compared without any network.

    images --> Laplacian pyramid --> 128 patches of 7x7 an image and level --> normalised per channel (pass 1)
           --> 512 random directions (pass 2) --> a histogram for each direction --> area between two of them

The one-dimensional Wasserstein distance is the area between two distribution functions, and those come from
histograms: so memory does not grow with the number of images, and two sets need not be of one size.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.counter import make_key, normal, philox
from pipeline.errors import UserError

Images = Tensor | Iterable[Tensor]
"""Pictures [N, 3, H, W], uint8 or float in [0, 1], at once or in batches.

They are read twice, so batches come from a list or from an object whose `__iter__` begins again.
"""
PATCH = 7
PATCHES = 128
"""Patches an image and level."""
DIRECTIONS = 512
"""Four times 128 in the paper's own code."""
SMALLEST = 16
"""Side of the pyramid's last level."""
_RANGE, _BINS = 16.0, 1024
"""Projections of normalised patches lie within +-16; a bin is 1/32 of a standard deviation of a channel."""
_CHUNK = 4
"""Images projected at once: more are no faster, and their temporary arrays add up."""
_SCALE = 1e3


@dataclass(frozen=True)
class SlicedWasserstein:
    """Distance times 1,000, as the paper prints it: 0 is equal, smaller is more alike."""

    mean: float
    """Over the levels."""
    levels: dict[int, float]
    """By the level's side in pixels; the smallest is the blurred picture itself, the others are what a blur removes."""


@dataclass(frozen=True)
class Projections:
    """What is kept of a set of pictures, whatever their number."""

    images: int
    sides: tuple[int, ...]
    seed: int
    counts: Tensor
    """int32 [levels, directions, bins]"""


def sliced_wasserstein(images: Images, others: Images, *, seed: int = 0) -> SlicedWasserstein:
    """The distance between two sets of pictures of one size; `seed` draws places and directions.

    Raises `UserError` for pictures of fewer than 16 px or of two sizes, and for an empty set.
    """
    return distance(project(images, seed=seed), project(others, seed=seed))


def distance(one: Projections, other: Projections) -> SlicedWasserstein:
    """The distance between two sets of pictures that were projected with one seed."""
    assert one.seed == other.seed, "the two were projected onto the same directions"
    if one.sides != other.sides:
        raise UserError(
            f"two sets of pictures must be of one size; got {one.sides[0]} and {other.sides[0]} px. Resize one of them."
        )
    levels = {}
    for side, counts, other_counts in zip(one.sides, one.counts, other.counts, strict=True):
        total = 0.0
        # A few directions at a time: the distribution functions in float64 are larger than the counts.
        for part, other_part in zip(torch.split(counts, 64), torch.split(other_counts, 64), strict=True):
            below, other_below = (values.double().cumsum(1) / values[0].sum() for values in (part, other_part))
            total += float((below - other_below).abs_().sum()) * (2 * _RANGE / _BINS)
        levels[side] = _SCALE * total / DIRECTIONS
    return SlicedWasserstein(sum(levels.values()) / len(levels), levels)


@torch.inference_mode()
def project(images: Images, *, seed: int = 0) -> Projections:
    """Histograms of a set's patches along random directions, in two passes over the pictures.

    The first finds the mean and standard deviation of each level's channels, over the patches. Picture `number` has
    its patches at the same places in every set. Raises `UserError` as `sliced_wasserstein` does.
    """
    assert not isinstance(images, Iterator), "images are read twice"
    sides: tuple[int, ...] = ()
    moments = torch.zeros(0)
    total = 0
    for first, chunk in _chunks(images):
        levels = laplacian_pyramid(chunk)
        if not sides:
            sides = tuple(level.shape[2] for level in levels)
            moments = torch.zeros(len(sides), 3, 2, dtype=torch.float64)
        for moment, level in zip(moments, levels, strict=True):
            values = _patches(level, first, seed).transpose(0, 1).flatten(1).double()
            moment += torch.stack([values.sum(1), values.square().sum(1)], dim=1)
        total += len(chunk)
    if not total:
        raise UserError("a set of pictures must have some; got none. Give at least one.")
    mean, square = (moments / (total * PATCHES * PATCH**2)).unbind(2)
    std = (square - mean.square()).clamp(min=0).sqrt()
    std[std < 1e-6] = 1.0
    vectors = [_directions(side, seed) for side in sides]
    counts = torch.zeros(len(sides), DIRECTIONS * _BINS, dtype=torch.int32)
    offsets = torch.arange(DIRECTIONS) * _BINS
    ones = torch.ones(_CHUNK * PATCHES * DIRECTIONS, dtype=torch.int32)
    for first, chunk in _chunks(images):
        for index, level in enumerate(laplacian_pyramid(chunk)):
            shift, scale = (values[index].float()[None, :, None] for values in (mean, std))
            patches = (_patches(level, first, seed) - shift) / scale
            found = (patches.flatten(1) @ vectors[index]).add_(_RANGE).mul_(_BINS / (2 * _RANGE)).clamp_(0, _BINS - 1)
            bins = found.long().add_(offsets).flatten()
            counts[index].scatter_add_(0, bins, ones[: len(bins)])
    return Projections(total, sides, seed, counts.view(len(sides), DIRECTIONS, _BINS))


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Float images [B, 3, H, W] by scale: what each halving blurs away, and last what is left, no side below 16."""
    levels = []
    while min(images.shape[2:]) // 2 >= SMALLEST:
        down, across = (_blur(side) for side in images.shape[2:])
        smaller = down[::2] @ images @ across[::2].T
        # Doubled, three of four pixels are zero: the blur makes up for it.
        levels.append(images - 4 * (down[:, ::2] @ smaller @ across[:, ::2].T))
        images = smaller
    return [*levels, images]


@cache
def _blur(side: int) -> Tensor:
    """What blurs an axis by 1 4 6 4 1, mirrored at the edges: [side, side], the places of the blurred one first."""
    places = torch.arange(side)
    matrix = torch.zeros(side, side)
    for offset, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
        from_here = (side - 1) - ((side - 1) - (places + offset).abs()).abs()
        matrix[places, from_here] += weight / 16
    return matrix


def _patches(level: Tensor, first: int, seed: int) -> Tensor:
    """[B * PATCHES, 3, 49] of a level [B, 3, H, W]; the places are a function of (seed, side, picture, patch)."""
    count, _, height, width = level.shape
    numbers, patch = np.arange(first, first + count)[:, None], np.arange(PATCHES)[None, :]
    words = philox(numbers, patch, key=make_key("patches", height, seed))
    down, across = torch.from_numpy(words[:2].astype(np.int64))
    corner = (down % (height - PATCH + 1)) * width + across % (width - PATCH + 1)
    inside = (torch.arange(PATCH)[:, None] * width + torch.arange(PATCH)).flatten()
    places = (corner[:, :, None] + inside).flatten(1)
    found = level.flatten(2).gather(2, places[:, None, :].expand(-1, level.shape[1], -1))
    return found.view(count, -1, PATCHES, PATCH**2).transpose(1, 2).flatten(0, 1)


def _directions(side: int, seed: int) -> Tensor:
    """Unit vectors, float32 [147, DIRECTIONS]."""
    vectors = normal(np.arange(DIRECTIONS), 3 * PATCH**2, seed=seed, stream=f"directions {side}")
    return functional.normalize(torch.from_numpy(vectors), dim=1).T.contiguous()


def _chunks(images: Images) -> Iterator[tuple[int, Tensor]]:
    """A few pictures at a time, float in [0, 1] on the CPU, with the number of the first."""
    first = 0
    for batch in [images] if isinstance(images, Tensor) else images:
        if batch.ndim != 4 or batch.shape[1] != 3 or min(batch.shape[2:]) < SMALLEST:
            raise UserError(
                f"pictures must be [N, 3, H, W] of {SMALLEST} px or more; got {list(batch.shape)}. Use larger ones."
            )
        for chunk in torch.split(batch, _CHUNK) if len(batch) else ():
            scale = 1.0 if chunk.is_floating_point() else 1 / 255
            yield first, chunk.cpu().float() * scale
            first += len(chunk)

"""Maximum mean discrepancy: how far two sets of latents are from being draws of one distribution.

Gretton et al. 2012 (JMLR 13), equation 3, the unbiased estimate of its square, in blocks, so that memory is that of a
block and not that of all pairs. It is 0 on average for draws of one distribution, and then as often negative.

The kernel is that of Wasserstein auto-encoders (Tolstikhin et al. 2018, arXiv 1711.01558): inverse multiquadratic,
which unlike a Gaussian one does not vanish far away, as a sum over scales:

    k(x, y) = sum over s of  C / (C + |x - y|^2),   C = 2 Z s,   s in SCALES

where 2 Z is the expected squared distance of two draws of N(0, I) in Z dimensions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.counter import normal
from train.evaluate import Gaussian

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
KERNEL = f"sum over s in {SCALES} of C / (C + |x - y|^2), C = 2 Z s"
MOST, FLOORS = 10_000, 4
"""Rows that are compared at most, for time grows with their square; pairs of draws of N(0, I) that tell chance."""
_BLOCK = 256


@dataclass(frozen=True)
class Discrepancy:
    """Squared MMD, unbiased estimates."""

    standard: float
    """Of posterior samples and N(0, I)."""
    fitted: float
    """Of posterior samples and the Gaussian of the aggregate posterior's mean and covariance."""
    floor: float
    """Of N(0, I) and N(0, I), as many draws of each: the mean of `FLOORS` such pairs, which is chance."""
    floor_std: float
    """Standard deviation of those."""
    images: int
    """Draws on either side."""
    kernel: str = KERNEL


def compare(draws: Tensor, fitted: Gaussian, seed: int) -> Discrepancy:
    """`draws` [N, Z] of posteriors beside as many of N(0, I) and of `fitted`; of at most `MOST` of them."""
    draws = draws[:MOST]
    shape = (len(draws), draws.shape[1], seed)
    floors = torch.tensor(
        [squared_mmd(_normals(*shape, f"floor {n}"), _normals(*shape, f"other {n}")) for n in range(FLOORS)]
    )
    return Discrepancy(
        standard=squared_mmd(draws, _normals(*shape, "standard")),
        fitted=squared_mmd(draws, fitted.sample(_normals(*shape, "fitted"))),
        floor=float(floors.mean()),
        floor_std=float(floors.std()),
        images=len(draws),
    )


def _normals(count: int, dimensions: int, seed: int, stream: str) -> Tensor:
    """[count, dimensions]"""
    return torch.from_numpy(normal(np.arange(count), dimensions, seed=seed, stream=f"discrepancy {stream}"))


def squared_mmd(first: Tensor, second: Tensor) -> float:
    """Unbiased estimate for the rows of `first` [N, Z] and `second` [M, Z], float32, at least two of each."""
    assert min(len(first), len(second)) > 1, "one row has no pairs"
    within = sum(
        (_kernel_sum(rows, rows) - len(SCALES) * len(rows)) / (len(rows) * (len(rows) - 1)) for rows in (first, second)
    )
    return within - 2 * _kernel_sum(first, second) / (len(first) * len(second))


def _kernel_sum(first: Tensor, second: Tensor) -> float:
    """The kernel, added up over all pairs of rows."""
    same = first is second
    total = 0.0
    for top, rows in enumerate(torch.split(first, _BLOCK)):
        for left, others in enumerate(torch.split(second, _BLOCK)):
            if not same or left == top:
                total += _block_sum(rows, others, same)
            elif left > top:
                total += 2 * _block_sum(rows, others, False)
    return total


def _block_sum(rows: Tensor, others: Tensor, diagonal: bool) -> float:
    squares = (rows.square().sum(1)[:, None] + others.square().sum(1)[None, :]).addmm_(rows, others.T, alpha=-2)
    squares.clamp_(min=0)
    if diagonal:
        # Rounding leaves some distance between a row and itself.
        squares.fill_diagonal_(0)
    kernel, part = torch.zeros_like(squares), torch.empty_like(squares)
    for scale in SCALES:
        spread = 2 * rows.shape[1] * scale
        torch.add(squares, spread, out=part).reciprocal_()
        kernel.add_(part, alpha=spread)
    return float(kernel.sum(1).double().sum())

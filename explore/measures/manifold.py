"""Precision, recall, density and coverage: how much of one set of features lies among the other's.

A set's manifold is the union of balls around its points, each as wide as the distance to the k-th nearest neighbour
within the set.

precision   share of new pictures within the real manifold: are they like real ones?
recall      share of real pictures within the manifold of the new ones: is everything there?
density     in how many real balls a new picture lies, over k: 1 is expected of equal sets, and it may be more
coverage    share of real balls with a new picture in them: 1 - 2^-k is expected of equal sets
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import UserError

MANIFOLD_K = 3
"""For precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991)."""
DENSITY_K = 5
"""For density and coverage (Naeem et al. 2020, arXiv 2002.09797)."""
_ROWS = 64
"""Rows of the matrix of distances in memory."""


@dataclass(frozen=True)
class Manifold:
    """Shares in [0, 1], but density, which may be more."""

    precision: float
    recall: float
    density: float
    coverage: float


@torch.inference_mode()
def compare(real: Tensor, new: Tensor, *, manifold_k: int = MANIFOLD_K, density_k: int = DENSITY_K) -> Manifold:
    """Compare features [N, F] of real pictures with [M, F] of new ones; equal distances count as within.

    Raises `UserError` for sets that have not k + 1 points.
    """
    least = max(manifold_k, density_k) + 1
    if min(len(real), len(new)) < least:
        raise UserError(f"neighbours need {least} images; got {min(len(real), len(new))}. Take more with --count.")
    real_radii = radii(real, (manifold_k, density_k))
    new_radii = radii(new, (manifold_k,))[:, 0]
    like_real = torch.zeros(len(new), dtype=torch.bool)
    balls, recalled, covered = 0, 0, 0
    for start in range(0, len(real), _ROWS):
        part = slice(start, start + _ROWS)
        distances = torch.cdist(real[part], new, compute_mode="donot_use_mm_for_euclid_dist")
        like_real |= (distances <= real_radii[part, :1]).any(0)
        recalled += int((distances <= new_radii).any(1).sum())
        within = distances <= real_radii[part, 1:]
        balls += int(within.sum())
        covered += int(within.any(1).sum())
    return Manifold(
        precision=float(like_real.double().mean()),
        recall=recalled / len(real),
        density=balls / (density_k * len(new)),
        coverage=covered / len(real),
    )


def radii(points: Tensor, neighbours: tuple[int, ...]) -> Tensor:
    """Distances [N, len(neighbours)] from each of `points` [N, F] to its k-th nearest of the others."""
    # Written into one tensor: small ones kept between the large ones would keep the heap from shrinking.
    found = torch.empty(len(points), len(neighbours))
    for start in range(0, len(points), _ROWS):
        rows = points[start : start + _ROWS]
        distances = torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist")
        distances[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = torch.inf
        nearest = distances.topk(max(neighbours), largest=False).values
        found[start : start + _ROWS] = nearest[:, [k - 1 for k in neighbours]]
    return found

"""Frechet and kernel distance of two sets of features through torchmetrics; on Inception's they are FID and KID."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError

try:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
except ImportError as error:
    raise UserError(
        "Frechet and kernel distances must be computed by torchmetrics; got no such package. "
        "Install it: pip install 'leanstream[explore]'"
    ) from error

KERNEL_SUBSET = 1000
"""Images a subset, fewer where there are fewer; the mean over subsets is the figure."""
KERNEL_SUBSETS = 20


@dataclass(frozen=True)
class Distances:
    """Between the features of two sets."""

    frechet: float
    kernel: float


class _Given(nn.Module):
    """torchmetrics calls a network on images; here features are computed already, and once for all figures."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, features: Tensor) -> Tensor:
        return features


class FeatureDistances:
    """The real set's features, given once, against those of other sets, one after the other.

    Means and covariances are streamed; the kernel distance takes features that are kept.
    """

    def __init__(self, dimensions: int) -> None:
        self._frechet: Any = FrechetInceptionDistance(feature=_Given(dimensions), reset_real_features=False)
        self._dimensions = dimensions

    def update(self, features: Tensor, *, real: bool) -> None:
        """Add features [B, F] of the real set, or of the one that is compared with it."""
        self._frechet.update(features.double(), real=real)

    def compute(self, real: Tensor, new: Tensor, *, seed: int) -> Distances:
        """The distances, the kernel's from features [N, F] and [M, F] that were kept; the other set is forgotten."""
        frechet = max(0.0, float(self._frechet.compute()))  # Rounding makes it -1e-9 for equal sets.
        self._frechet.reset()
        return Distances(frechet, kernel_distance(real, new, seed=seed))


def kernel_distance(real: Tensor, new: Tensor, *, seed: int) -> float:
    """Squared maximum mean discrepancy of features [N, F] and [M, F] under the cubic kernel, unbiased.

    Binkowski et al. 2018 (arXiv 1801.01401): the mean over subsets drawn by `seed`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # That it keeps all features: their number is bounded here.
        metric: Any = KernelInceptionDistance(
            feature=_Given(real.shape[1]),
            subsets=KERNEL_SUBSETS,
            subset_size=min(KERNEL_SUBSET, len(real), len(new)),
        )
    metric.update(real.double(), real=True)
    metric.update(new.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # It draws its subsets from torch's global generator.
        torch.manual_seed(seed)
        mean, _ = metric.compute()
    return float(mean)

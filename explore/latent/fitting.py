"""Distributions fitted to the aggregate posterior q(z) = E_x q(z|x) of the training images.

    encoder ──> Aggregate: sums for mean and covariance ──> gaussian
            └─> a draw of each posterior ──> k-means ──> EM ──> shrinkage ──> mixture

A component of a mixture sees a tenth of the images and has Z (Z + 1) / 2 covariances to tell from them: too many. So
each covariance is drawn towards the components' mean covariance, as if 2 Z further images had had that one.
"""

import contextlib
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from train.evaluate import Gaussian
from train.mixture import Mixture

IMAGES_A_COMPONENT = 10
"""Below so many a component, a mixture tells nothing."""
_FLOOR = 1e-3
"""Added to variances during the fit, as a share of their mean."""
_MOST_STEPS = 100


@dataclass
class Aggregate:
    """Sums over posteriors; float64, so that subtracting the mean's square costs no digits that matter."""

    dimensions: int
    count: int = 0
    first: Tensor = field(init=False)
    second: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.first = torch.zeros(self.dimensions, dtype=torch.float64)
        self.second = torch.zeros(self.dimensions, self.dimensions, dtype=torch.float64)

    def add(self, mean: Tensor, logvar: Tensor) -> None:
        """Posteriors [B, Z] each."""
        mean, logvar = mean.cpu().double(), logvar.cpu().double()
        self.first += mean.sum(0)
        # Law of total variance: that of the means, and the mean of the posteriors' own.
        self.second += mean.T @ mean + torch.diag(logvar.exp().sum(0))
        self.count += len(mean)

    def gaussian(self) -> Gaussian:
        """Mean and covariance of what was added."""
        average = self.first / self.count
        return Gaussian(average, self.second / self.count - torch.outer(average, average))


def least_images(components: int, dimensions: int) -> int:
    """How many images a mixture needs: some for each component, and enough to tell a covariance at all."""
    return max(IMAGES_A_COMPONENT * components, 2 * dimensions)


def fit_mixture(draws: NDArray[np.float32], components: int, seed: int) -> Mixture:
    """A mixture of `components` Gaussians with full covariances, fitted to `draws` [N, Z] by expectation maximisation.

    It begins at the clusters that k-means finds; the same draws and seed give the same mixture.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise UserError(
            "mixtures must be fitted by scikit-learn; got no such package. "
            "Install it: pip install 'leanstream[explore]'"
        ) from error
    count, dimensions = draws.shape
    assert count >= least_images(components, dimensions), "the caller has counted"
    model = GaussianMixture(
        components,
        reg_covar=_FLOOR * float(draws.var(0).mean()),
        max_iter=_MOST_STEPS,
        random_state=seed,
    )
    with contextlib.ExitStack() as stack:
        # Threads of k-means add up their sums in the order in which they end.
        stack.enter_context(threadpool_limits(1, user_api="openmp"))
        stack.enter_context(warnings.catch_warnings())
        # A mixture some steps short of the optimum is as good to draw from.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(draws)
    weights, means, covariances = (
        torch.from_numpy(np.asarray(values, np.float64))
        for values in (model.weights_, model.means_, model.covariances_)
    )
    return Mixture.of(weights / weights.sum(), means, shrunk(weights, covariances, count))


def shrunk(weights: Tensor, covariances: Tensor, count: int) -> Tensor:
    """Covariances [K, Z, Z] of components with `weights` [K] of `count` images, drawn towards their weighted mean."""
    pooled = torch.einsum("k,kij->ij", weights, covariances)
    strength = 2 * covariances.shape[1]
    share = (strength / (strength + weights * count))[:, None, None]
    return (1 - share) * covariances + share * pooled

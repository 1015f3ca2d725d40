"""t-SNE: latents on a plane, so that neighbours stay neighbours (van der Maaten and Hinton 2008).

    draws [N, Z] ──> 3 * perplexity nearest neighbours ──> affinities, a sparse N x N matrix ──> 750 steps of descent

openTSNE does it, with the repulsion summed over a tree (van der Maaten 2014): time grows with N log N, memory with N.
Interpolating it on a grid instead would take 100 MiB more for 20,000 latents, and one core.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.errors import UserError
from pipeline.machine import release_memory, usable_cores

try:
    import openTSNE
    from openTSNE.affinity import PerplexityBasedNN, PrecomputedAffinities
except ImportError as error:
    raise UserError(
        "t-SNE must be done by openTSNE; got no such package. Install it: pip install 'leanstream[explore]'"
    ) from error

EARLY_STEPS, STEPS = 250, 500
"""Steps with exaggerated attraction, and those that follow."""
_REPORT_STEPS = 10
_FEW_IMAGES = 5_000
"""Up to so many one core does it: threads would wait for one another longer than they compute."""


def check_perplexity(perplexity: float, images: int) -> None:
    """Raise `UserError` where there are fewer images than neighbours of one that the perplexity asks for."""
    most = (images - 1) // 3
    if perplexity > most:
        remedy = f"Choose at most {most}, or more images" if most >= 1 else "Take more images"
        raise UserError(
            f"--perplexity must be at most a third of the other images; got {perplexity:g} for {images:,} images. "
            f"{remedy}."
        )


def embed(draws: NDArray[np.float32], perplexity: float, seed: int, console: Console) -> tuple[Any, float]:
    """Coordinates, float64 [N, 2], of `draws` [N, Z], and the divergence (nats) that the descent ended with.

    The same for the same draws, perplexity and seed on one machine, for any number of cores. Raises `UserError` for a
    perplexity that is too large for so few images.
    """
    check_perplexity(perplexity, len(draws))
    cores = usable_cores() if len(draws) > _FEW_IMAGES else 1
    with _Bar(console) as bar:
        affinities = PrecomputedAffinities(_affinities(draws, perplexity, cores), normalize=False)
        release_memory()
        found = openTSNE.TSNE(
            perplexity=perplexity,
            early_exaggeration_iter=EARLY_STEPS,
            n_iter=STEPS,
            initialization="pca",
            negative_gradient_method="bh",
            n_jobs=cores,
            random_state=seed,
            callbacks=bar.advance,
            callbacks_every_iters=_REPORT_STEPS,
        ).fit(draws, affinities=affinities)
    return np.array(found, np.float64), float(found.kl_divergence)


def _affinities(draws: NDArray[np.float32], perplexity: float, cores: int) -> Any:
    """A sparse symmetric matrix [N, N] that adds up to 1."""
    # Exact neighbours take seconds here, and need no random trees. What the lists of neighbours took, as much as the
    # matrix, is free again before the matrix is added to its transpose: openTSNE would do both at once.
    neighbours = math.floor(3 * perplexity)
    directed = PerplexityBasedNN(
        draws, perplexity, method="exact", k_neighbors=neighbours, symmetrize=False, n_jobs=cores
    ).P
    release_memory()
    both = directed + directed.T
    both.data *= 0.5
    return both


class _Bar:
    """A bar over the steps where `console` is a terminal."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("t-SNE", total=EARLY_STEPS + STEPS)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, _iteration: int, _error: float, _embedding: object) -> bool:
        """openTSNE's callback; True would end the descent."""
        self._progress.advance(self._task, _REPORT_STEPS)
        return False

"""What changes in the course of a run, as functions of the position alone."""

import math

from train.config import LossConfig, OptimConfig

_EMA_STEPS = 64
"""Times that the average moves within its half-life, at most."""


def learning_rate(config: OptimConfig, position: int, total_images: int) -> float:
    """The rate of the update that starts at `position`: a linear rise, then constant or half a cosine to zero."""
    rate = config.learning_rate
    if config.warmup_images:
        # The first update has to move, too.
        rate *= min(1.0, (position + 1) / config.warmup_images)
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, position / total_images)))
    return rate


def kl_weight(config: LossConfig, position: int) -> float:
    """The factor of the KL divergence in the update that starts at `position`: a linear rise to 1."""
    return min(1.0, position / config.kl_warmup_images) if config.kl_warmup_images else 1.0


def ema_decay(halflife_images: int, position: int, images: int) -> float | None:
    """What the average keeps of itself at `position`, `images` after it was last moved; None: it is not yet time.

    The half-life grows with the run up to its value (Karras et al. 2022, arXiv 2206.00364, table 7), so that the
    first random weights are soon forgotten. Moved 64 times in it, the average is as smooth as after every update, and
    spares most small updates a pass over all weights.
    """
    halflife = min(float(halflife_images), 0.05 * position)
    return math.pow(0.5, images / halflife) if images >= halflife / _EMA_STEPS else None

"""Has a run diverged? A rule that healthy runs do not meet.

The squared error of reconstructions is the one figure whose level means the same under every objective: a loss may
be negative and moves with its own weights, and a KL divergence grows from nothing by right. What it is compared with
must not depend on the weights, which may come from another run, or explode in the first update: the error of a plain
grey picture, about where an untrained model begins. A run has diverged when it reconstructs clearly worse than that,
for many updates on end. Spikes, warm-ups and changes of rate pass; a model that explodes answers with black and white,
at several times the error of grey.
"""

import math
from dataclasses import dataclass

FACTOR = 1.5
PATIENCE_UPDATES = 50
_DECAY = 0.9
_LEAST_REFERENCE = 1 / 16
"""That of common photos: images that are nearly grey themselves would ask too much of an untrained model."""


@dataclass
class Health:
    """What the rule has to remember; saved with the run, so that interruptions do not change its answer."""

    updates: int = 0
    reference: float = 0.0
    """Running mean of a grey picture's squared errors."""
    level: float = 0.0
    """Running mean of the squared errors."""
    bad_updates: int = 0
    """Updates on end at which the level was too high."""

    def observe(self, mse: float, grey_mse: float) -> None:
        """Count one update's mean squared error a pixel and channel, and that of a grey picture on the same images."""
        self.updates += 1
        # From the first update on a mean: its weight falls to that of a running one.
        share = max(1 / self.updates, 1 - _DECAY)
        self.level += share * (mse - self.level)
        self.reference += share * (grey_mse - self.reference)
        limit = FACTOR * max(self.reference, _LEAST_REFERENCE)
        self.bad_updates = self.bad_updates + 1 if self.level > limit else 0

    @property
    def suspect(self) -> bool:
        """Whether a checkpoint of this moment might be that of a diverged run."""
        return self.bad_updates > 0

    @property
    def diverged(self) -> bool:
        """Whether the run should stop."""
        return self.bad_updates >= PATIENCE_UPDATES or not math.isfinite(self.level)

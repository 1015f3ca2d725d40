"""Has a run diverged? A rule that healthy runs do not meet.

The squared error of reconstructions is the one figure whose level means the same under every objective: a loss may
be negative and moves with its own weights, and a KL divergence grows from nothing by right. So a run has diverged when
it reconstructs clearly worse than its untrained model did, for many updates on end. Spikes, warm-ups and changes of
rate pass; a model that explodes answers with black and white, at several times the error it began with.
"""

import math
from dataclasses import dataclass

REFERENCE_UPDATES = 10
FACTOR = 1.5
PATIENCE_UPDATES = 50
_DECAY = 0.9


@dataclass
class Health:
    """What the rule has to remember; saved with the run, so that interruptions do not change its answer."""

    updates: int = 0
    reference: float = 0.0
    """Mean of the first updates' squared errors."""
    level: float = 0.0
    """Running mean of the squared errors."""
    bad_updates: int = 0
    """Updates on end at which the level was too high."""

    def observe(self, mse: float) -> None:
        """Count one update's mean squared error a pixel and channel."""
        self.updates += 1
        if self.updates <= REFERENCE_UPDATES:
            self.reference += (mse - self.reference) / self.updates
            self.level = self.reference
            return
        self.level = _DECAY * self.level + (1 - _DECAY) * mse
        self.bad_updates = self.bad_updates + 1 if self.level > FACTOR * self.reference else 0

    @property
    def suspect(self) -> bool:
        """Whether a checkpoint of this moment might be that of a diverged run."""
        return self.bad_updates > 0

    @property
    def diverged(self) -> bool:
        """Whether the run should stop."""
        return self.bad_updates >= PATIENCE_UPDATES or not math.isfinite(self.level)

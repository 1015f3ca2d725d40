"""One process's part in a run: what the loop works with, and what it has measured so far."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from pipeline import Dataset
from pipeline.batch import Skipped
from pipeline.machine import PeakMemory
from train.budget import Plan
from train.config import Config
from train.mirror import Mirror
from train.objectives import Likelihood
from train.process import StopRequest
from train.runfolder import RunFolder
from train.state import TrainState
from train.trackers import track
from train.update import Update


@dataclass
class Meters:
    """Sums since the last line of metrics, and over this process's life."""

    updates: int = 0
    loss: float = 0.0
    mse: float = 0.0
    kl: float = 0.0
    replays: int = 0
    since: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    last_s: float = 0.0
    """The last update took so long."""
    total_images: int = 0
    total_s: float = 0.0
    total_waited_s: float = 0.0

    def add(self, update: Update, images: int, waited_s: float, seconds: float) -> None:
        """Count one update that took `seconds`, of which `waited_s` were spent waiting for data."""
        self.updates += 1
        self.loss += update.loss
        self.mse += update.mse
        self.kl += update.kl
        self.replays += update.replays
        self.waited_s += waited_s
        self.last_s = seconds
        self.total_images += images
        self.total_s += seconds
        self.total_waited_s += waited_s

    def flush(self, session: "Session", update: Update) -> dict[str, Any]:
        """One line of metrics, means since the line before."""
        state, total_images, batch_size = session.state, session.total_images, session.config.train.batch_size
        now = time.monotonic()
        seconds = max(now - self.since, 1e-9)
        mse = self.mse / self.updates
        record = {
            "position": state.position,
            "updates": state.updates,
            "progress": state.position / total_images,
            "loss": self.loss / self.updates,
            "mse": mse,
            "psnr_db": -10 * math.log10(max(mse, 1e-10)),
            "kl_nats": self.kl / self.updates,
            "sigma": session.likelihood.std,
            "grad_norm": update.grad_norm,
            "learning_rate": update.learning_rate,
            "loss_scale": state.loss_scale.value,
            "replays": self.replays,
            "images_per_s": self.updates * batch_size / seconds,
            "data_wait_share": self.waited_s / seconds,
        }
        self.updates = self.replays = 0
        self.loss = self.mse = self.kl = self.waited_s = 0.0
        self.since = now
        return record


@dataclass
class Session:
    """One process's run of the loop: what it works with and what it has measured."""

    config: Config
    """Resolved: nothing that the loop needs is None."""
    shards: Dataset
    accelerator: Accelerator
    folder: RunFolder
    state: TrainState
    total_images: int
    epoch_samples: int
    facts: dict[str, Any]
    """Constants of the run, saved with every generation."""
    plan: Plan
    """What the run was expected to need."""
    console: Console
    stop: StopRequest
    memory: PeakMemory
    mirror: Mirror | None = None
    """The first process's copy of the run on a drive."""
    meters: Meters = field(default_factory=Meters)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """By split, the figures last measured."""
    began_with: dict[str, Any] = field(default_factory=dict)
    """Where a new run's first weights came from, if not from its seed."""
    pauses: list[float] = field(default_factory=list)
    """Of each save, the seconds that the loop stood still."""
    validation_s: float = 0.0
    """What the last validation took."""
    sums: dict[int, int] = field(default_factory=dict)
    """By epoch, the audit's sums of all processes together, as last saved."""
    skipped: list[Skipped] = field(default_factory=list)
    """Samples that this process left out since the last save."""
    warned_of_skipped: bool = False
    started: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.monotonic)
    """When the process began, before it opened and read what it needs; what `run.max_minutes` counts from."""

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        self.console.print(text, soft_wrap=True, markup=False)

    def leave_out(self, skipped: Sequence[Skipped]) -> None:
        """Keep what an applied update lacked until it is saved."""
        self.skipped += skipped
        self.warn_of_skipped(skipped)

    def warn_of_skipped(self, skipped: Sequence[Skipped]) -> None:
        """Tell of the first sample that this process hears was left out."""
        if skipped and not self.warned_of_skipped:
            self.warned_of_skipped = True
            self.say(f"warning: {skipped[0].reason} It is left out, as others will be: see ledger.jsonl")

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def grid_split(self) -> str:
        """Where the pictures' originals come from: held-out images where the set has some."""
        return next((name for name in ("val", "test") if len(self.shards.splits.get(name, ()))), "train")

    @property
    def likelihood(self) -> Likelihood:
        """The decoder's, at the scale that it has learned so far."""
        return Likelihood.of(self.config.loss, self.state.error)

    @property
    def epoch(self) -> int:
        """Whole epochs so far."""
        return self.state.position // self.epoch_samples

    @property
    def elapsed_s(self) -> float:
        """Wall time of the run so far, interrupted parts included."""
        return self.state.elapsed_s + time.monotonic() - self.started

    def record(self, record: dict[str, Any]) -> None:
        """Add a line of metrics; trackers get it too, for as long as they answer."""
        self.folder.append_metrics(record)
        if not self.accelerator.trackers:
            return
        try:
            track(self.accelerator, record)
        except Exception as error:
            self.accelerator.trackers = []
            self.folder.note("trackers failed", reason=f"{type(error).__name__}: {error}")
            self.say(f"warning: no more metrics for trackers, they failed ({error}); metrics.jsonl has them all")

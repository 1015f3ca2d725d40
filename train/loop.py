"""The training loop: batch, update, log, save."""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from rich.console import Console

from pipeline import ShardSet, StreamingLoader
from pipeline.errors import LeanstreamError
from pipeline.files import atomic_writer
from pipeline.machine import PeakMemory
from train.budget import Plan
from train.checkpoint import BackgroundWriter, generations, weights_sha256
from train.config import Config
from train.display import Display, Status, duration
from train.evaluate import Gaussian, Score, aggregate_posterior, score
from train.finished import describe_training, draw_curves_of, extra_files, photo_settings
from train.grids import training_grid
from train.mirror import Mirror
from train.objectives import Likelihood
from train.pretrained import save_pretrained
from train.process import StopRequest
from train.runfolder import RunFolder
from train.state import TrainState
from train.trackers import track
from train.update import Update, apply_update

STOP, SAVE, TIME_UP, RESTED = 1, 2, 4, 8
"""What a process may ask all processes for; `RESTED`: an epoch's end may save."""
EPOCH_SAVE_INTERVAL_S = 20.0
"""Epochs of tiny sets end every few seconds: their ends save no more often than this."""
FINAL_PRIOR_FACTOR = 10


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
    shards: ShardSet
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
    sums: dict[int, int] = field(default_factory=dict)
    """By epoch, the audit's sums of all processes together, as last saved."""
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        self.console.print(text, soft_wrap=True, markup=False)

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
    def elapsed_s(self) -> float:
        """Wall time of the run so far, interrupted parts included."""
        return self.state.elapsed_s + time.monotonic() - self.started


def train(session: Session) -> int:
    """Train from the state's position to the end, or to a request to stop; returns the requests that ended it."""
    config, state, accelerator = session.config, session.state, session.accelerator
    status = Status(
        session.folder.path.name, session.total_images, session.epoch_samples, state.position, state.updates
    )
    writer = _writer(session)
    display = Display(status, session.console, enabled=session.is_main)
    saved_at = time.monotonic()
    requests = 0
    loader = StreamingLoader(
        session.shards,
        batch_size=config.train.batch_size,
        seed=config.run.seed,
        start=state.position,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        threads=config.data.threads,
        window=config.data.window,
        lanes=config.data.lanes,
        flip=config.data.flip,
        ram_bytes=session.plan.loader_bytes,
    )
    with loader, display, writer:
        while state.position < session.total_images and not requests & (STOP | TIME_UP):
            began = time.monotonic()
            batch = next(loader)
            waited_s = time.monotonic() - began
            update = apply_update(
                state,
                batch.to(accelerator.device),
                config,
                accelerator,
                total_images=session.total_images,
                epoch_samples=session.epoch_samples,
                requests=_requests(session, saved_at, writer),
            )
            requests = update.requests
            _check_health(state, update)
            session.meters.add(update, config.train.batch_size, waited_s, time.monotonic() - began)
            del batch

            finished = state.position >= session.total_images
            epoch = state.position // session.epoch_samples
            new_epoch = (state.position - config.train.batch_size) // session.epoch_samples < epoch
            if state.updates % config.train.log_every_updates == 0 or finished:
                _log(session, status, update)
            if writer.last_position != status.saved_position:
                status.saved_at, status.saved_position = time.monotonic(), writer.last_position
            if session.mirror is not None:
                _follow(session.mirror, session, writer, display)
            display.refresh()

            asked = finished or requests & (STOP | TIME_UP)
            routine = requests & SAVE or (new_epoch and requests & RESTED)
            if asked or (routine and not state.health.suspect):
                _save(session, writer)
                saved_at = time.monotonic()
            if new_epoch and not finished and session.is_main:
                looked_from = time.monotonic()
                status.validation = _look(session, display, epoch)
                # The updates before it still count, and so does the time that they took.
                session.meters.since += time.monotonic() - looked_from
        writer.wait()
        if session.is_main and requests & STOP and state.position < session.total_images:
            by = session.stop.signal or "a signal to another process"
            display.say(f"stopped by {by}: saved at image {state.position:,}; the same command goes on")
        elif session.is_main and requests & TIME_UP:
            display.say(f"run.max_minutes is over: saved at image {state.position:,}; the same command goes on")
    return requests


def finish(session: Session) -> None:
    """Score the averaged weights, fit the prior, paint the last grid, and write the finished model."""
    model, device, folder = session.state.ema, session.accelerator.device, session.folder
    limit = FINAL_PRIOR_FACTOR * session.config.train.prior_images
    prior = aggregate_posterior(model, session.shards, "train", limit, device)
    _paint(session, prior)
    session.scores = _scores(session)
    draw_curves_of(folder)
    facts = {
        "position": session.state.position,
        "sigma": session.likelihood.std,
        "objective": session.config.loss.objective,
        "scores": session.scores,
        "shardset": session.facts["shardset"],
        "photos": photo_settings(session.shards),
    }
    training = describe_training(session)
    save_pretrained(folder.final, model, prior, facts, extra_files(session, model, facts, training))
    folder.note("finished", position=session.state.position, scores=session.scores)


def summarise(session: Session, peaks: dict[str, Any], *, finished: bool) -> dict[str, Any]:
    """What came out, and what it cost, as `summary.json` has it; `peaks` are those of all processes."""
    state, meters = session.state, session.meters
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in state.ema.state_dict().items()}
    seconds = max(meters.total_s, 1e-9)
    return {
        "finished": finished,
        "position": state.position,
        "updates": state.updates,
        "scores": session.scores,
        "weights_sha256": weights_sha256(tensors),
        "images_per_s": meters.total_images / seconds,
        "data_wait_share": meters.total_waited_s / seconds,
        "planned_bytes": session.plan.bytes(state.micro_batch),
        **peaks,
        "wall_s": time.monotonic() - session.started,
        "total_wall_s": session.elapsed_s,
    }


def gpu_bytes() -> int:
    """The most GPU memory that the allocator has held, bytes; 0 without a GPU."""
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def _requests(session: Session, saved_at: float, writer: BackgroundWriter) -> int:
    """What this process asks for: any process passes on a signal, the first one watches the clocks."""
    requests = STOP if session.stop else 0
    if session.is_main:
        now = time.monotonic()
        minutes = session.config.run.max_minutes
        if minutes is not None and now - session.started >= 60 * minutes:
            requests |= TIME_UP
        if now - saved_at >= 60 * session.config.checkpoint.save_every_minutes and not writer.busy:
            requests |= SAVE
        if now - saved_at >= EPOCH_SAVE_INTERVAL_S:
            requests |= RESTED
    return requests


def _log(session: Session, status: Status, update: Update) -> None:
    record = session.meters.flush(session, update)
    if not session.is_main:
        return
    _record(session, record)
    status.position, status.updates = record["position"], record["updates"]
    status.loss, status.psnr_db, status.kl = record["loss"], record["psnr_db"], record["kl_nats"]
    status.learning_rate, status.images_per_s = record["learning_rate"], record["images_per_s"]
    status.wait_share, status.memory_bytes = record["data_wait_share"], session.memory.last
    status.gpu_bytes = gpu_bytes()


def _writer(session: Session) -> BackgroundWriter:
    config, mirror = session.config.checkpoint, session.mirror

    def held() -> Collection[int]:
        # While the loss looks wrong, whatever was saved before may be the last that is good.
        if session.state.health.suspect:
            return [int(path.name) for path in generations(session.folder.checkpoints)]
        return () if mirror is None else mirror.copying

    return BackgroundWriter(
        session.folder.checkpoints, config.keep, milestone_images=config.milestone_images, held=held
    )


def _check_health(state: TrainState, update: Update) -> None:
    state.health.observe(update.mse)
    if state.health.diverged:
        raise LeanstreamError(
            f"the model must not get worse than it was untrained; got a mean squared error of {state.health.level:.4f} "
            f"over the last updates, {state.health.reference:.4f} at first, at update {state.updates} "
            f"(position {state.position}). The last checkpoint stands: "
            "run again with a lower --optim.learning-rate or with --optim.clip-norm."
        )


def _follow(mirror: Mirror, session: Session, writer: BackgroundWriter, display: Display) -> None:
    """Tell what came of the last copy to the mirror, and begin the next one when it is time."""
    outcome = mirror.poll()
    if outcome is not None:
        note_mirror(session, outcome, display.say)
    # Never while a save goes on: what it prunes must not be what is being copied.
    if mirror.is_due() and not writer.busy and writer.last_position not in (None, mirror.position):
        assert writer.last_position is not None, "checked just now"
        mirror.start(writer.last_position)


def note_mirror(session: Session, outcome: dict[str, Any], say: Callable[[str], None]) -> None:
    """Write what came of a copy to the mirror into the ledger; a failure is told as well."""
    session.folder.note("mirror failed" if "warning" in outcome else "mirrored", **outcome)
    if "warning" in outcome:
        again = "" if session.mirror is None or session.mirror.taken_over else "; tried again at the next interval"
        say(f"warning: the mirror is behind{again}: {outcome['warning']}")


def _record(session: Session, record: dict[str, Any]) -> None:
    """Add a line of metrics; trackers get it too, for as long as they answer."""
    session.folder.append_metrics(record)
    if not session.accelerator.trackers:
        return
    try:
        track(session.accelerator, record)
    except Exception as error:
        session.accelerator.trackers = []
        session.folder.note("trackers failed", reason=f"{type(error).__name__}: {error}")
        session.say(f"warning: no more metrics for trackers, they failed ({error}); metrics.jsonl has them all")


def _save(session: Session, writer: BackgroundWriter) -> None:
    """Take a snapshot and write it behind the loop; the first process writes for all."""
    session.sums = _summed_audit(session)
    if not session.is_main:
        return
    began = time.monotonic()
    generation = session.state.to_generation(session.facts, session.sums, session.elapsed_s)
    pause_s = time.monotonic() - began
    writer.start(generation)
    session.folder.note("saved", position=session.state.position, pause_ms=round(1000 * pause_s, 1))


def _summed_audit(session: Session) -> dict[int, int]:
    """The audit sums of all processes together."""
    audit = session.state.audit
    if session.accelerator.num_processes == 1:
        return audit
    epochs = (session.state.position - 1) // session.epoch_samples + 1
    sums = torch.tensor([audit.get(epoch, 0) for epoch in range(epochs)], dtype=torch.uint64).view(torch.int64)
    sums = sums.to(session.accelerator.device)
    # Integers wrap around: the sum is the one modulo 2^64.
    torch.distributed.all_reduce(sums)
    return {epoch: total % 2**64 for epoch, total in enumerate(sums.tolist())}


def _look(session: Session, display: Display, epoch: int) -> str:
    """At an epoch's end: a grid, and the figures on held-out images."""
    model, device = session.state.ema, session.accelerator.device
    limit = session.config.train.prior_images
    _paint(session, aggregate_posterior(model, session.shards, "train", limit, device))
    scores = session.scores = _scores(session)
    _record(session, {"position": session.state.position, "epoch": epoch, "scores": scores})
    draw_curves_of(session.folder)
    text = ", ".join(f"{name} {values['psnr_db']:.2f} dB at {values['rate_nats']:.1f} nats" for name, values in
                     scores.items())  # fmt: skip
    if text:
        display.say(f"epoch {epoch} after {duration(session.elapsed_s)}: {text}")
    return text


def _scores(session: Session) -> dict[str, dict[str, float]]:
    """By split: the figures on the validation split, if there is one."""
    if not len(session.shards.splits.get("val", ())):
        return {}
    found: Score = score(session.state.ema, session.shards, "val", session.accelerator.device, session.likelihood)
    return {"val": asdict(found)}


def _paint(session: Session, prior: Gaussian) -> None:
    session.folder.grids.mkdir(exist_ok=True)
    seed = session.config.run.seed
    grid = training_grid(session.state.ema, session.shards, session.grid_split, prior, session.accelerator.device, seed)
    with atomic_writer(session.folder.grids / f"{session.state.position:012d}.png") as file:
        grid.save(file, "PNG")

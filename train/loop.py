"""The training loop, from top to bottom: batch, update, log, save."""

import time

from pipeline import StreamingLoader
from pipeline.errors import LeanstreamError
from train.display import Display, Status, duration
from train.process import gpu_bytes
from train.saving import Saver
from train.session import Session
from train.state import TrainState
from train.update import Update, apply_update
from train.validation import validate

STOP, SAVE, TIME_UP, RESTED = 1, 2, 4, 8
"""What a process may ask all processes for; `RESTED`: an epoch's end may save."""
EPOCH_SAVE_INTERVAL_S = 20.0
"""Epochs of tiny sets end every few seconds: their ends save no more often than this."""


def train(session: Session) -> int:
    """Train from the state's position to the end, or to a request to stop; returns the requests that ended it."""
    config, state, accelerator = session.config, session.state, session.accelerator
    status = Status(
        session.folder.path.name, session.total_images, session.epoch_samples, state.position, state.updates
    )
    display = Display(status, session.console, enabled=session.is_main)
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
    requests = 0
    with loader, display, Saver(session) as saver:
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
                requests=_requests(session, saver),
            )
            del batch
            requests = update.requests
            _check_health(state, update)

            session.meters.add(update, config.train.batch_size, waited_s, time.monotonic() - began)
            finished = state.position >= session.total_images
            if state.updates % config.train.log_every_updates == 0 or finished:
                _log(session, status, update)
            _follow(session, saver, display)
            display.refresh()

            epoch = state.position // session.epoch_samples
            new_epoch = (state.position - config.train.batch_size) // session.epoch_samples < epoch
            asked = finished or requests & (STOP | TIME_UP)
            routine = requests & SAVE or (new_epoch and requests & RESTED)
            if asked or (routine and not state.health.suspect):
                saver.save()

            if new_epoch and not finished and session.is_main:
                _validate(session, display, epoch)
        saver.wait()
        _say_why(session, requests, display)
    return requests


def _requests(session: Session, saver: Saver) -> int:
    """What this process asks for: any process passes on a signal, the first one watches the clocks."""
    requests = STOP if session.stop else 0
    if session.is_main:
        minutes = session.config.run.max_minutes
        if minutes is not None and time.monotonic() - session.started >= 60 * minutes:
            requests |= TIME_UP
        if saver.idle_s >= 60 * session.config.checkpoint.save_every_minutes and not saver.busy:
            requests |= SAVE
        if saver.idle_s >= EPOCH_SAVE_INTERVAL_S:
            requests |= RESTED
    return requests


def _check_health(state: TrainState, update: Update) -> None:
    state.health.observe(update.mse)
    if state.health.diverged:
        raise LeanstreamError(
            f"the model must not get worse than it was untrained; got a mean squared error of {state.health.level:.4f} "
            f"over the last updates, {state.health.reference:.4f} at first, at update {state.updates} "
            f"(position {state.position}). The last checkpoint stands: "
            "run again with a lower --optim.learning-rate or with --optim.clip-norm."
        )


def _log(session: Session, status: Status, update: Update) -> None:
    record = session.meters.flush(session, update)
    if not session.is_main:
        return
    session.record(record)
    status.position, status.updates = record["position"], record["updates"]
    status.loss, status.psnr_db, status.kl = record["loss"], record["psnr_db"], record["kl_nats"]
    status.learning_rate, status.images_per_s = record["learning_rate"], record["images_per_s"]
    status.wait_share, status.memory_bytes = record["data_wait_share"], session.memory.last
    status.gpu_bytes = gpu_bytes()


def _follow(session: Session, saver: Saver, display: Display) -> None:
    """Show what was saved meanwhile, tell what came of the last copy to the mirror, begin the next one in time."""
    status, mirror = display.status, session.mirror
    if saver.last_position != status.saved_position:
        status.saved_at, status.saved_position = time.monotonic(), saver.last_position
    if mirror is None:
        return
    outcome = mirror.poll()
    if outcome is not None:
        mirror.note(outcome, display.say)
    # Never while a save goes on: what it prunes must not be what is being copied.
    if mirror.is_due() and not saver.busy and saver.last_position not in (None, mirror.position):
        assert saver.last_position is not None, "checked just now"
        mirror.start(saver.last_position)


def _validate(session: Session, display: Display, epoch: int) -> None:
    began = time.monotonic()
    figures = display.status.validation = validate(session, epoch)
    if figures:
        display.say(f"epoch {epoch} after {duration(session.elapsed_s)}: {figures}")
    # The updates before it still count, and so does the time that they took.
    session.meters.since += time.monotonic() - began


def _say_why(session: Session, requests: int, display: Display) -> None:
    """Why the loop ended before the run did."""
    position = session.state.position
    if not session.is_main or position >= session.total_images:
        return
    if requests & STOP:
        by = session.stop.signal or "a signal to another process"
        display.say(f"stopped by {by}: saved at image {position:,}; the same command goes on")
    elif requests & TIME_UP:
        display.say(f"run.max_minutes is over: saved at image {position:,}; the same command goes on")

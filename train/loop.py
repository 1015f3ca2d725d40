"""The training loop, from top to bottom: batch, update, log, save."""

import time
from collections.abc import Callable

from pipeline import Batch, StreamingLoader
from pipeline.errors import LeanstreamError, StoppedError
from train.device import Recorder, keep_to_limit, peak_bytes, pins_memory
from train.display import Display, Status, duration
from train.saving import Saver
from train.session import Session
from train.state import TrainState
from train.update import Update, apply_update
from train.validation import validate

STOP, SAVE, TIME_UP, RESTED, NO_DATA = 1, 2, 4, 8, 16
"""What a process may ask all processes for. `RESTED`: an epoch's end may save; `NO_DATA`: its data have an error."""
EPOCH_SAVE_INTERVAL_S = 20.0
"""Epochs of tiny sets end every few seconds: their ends save no more often than this."""
_LEAST_WAIT_S = 2.0
"""A batch is waited for so long, even if `run.max_minutes` is over: minutes that are too few bring the run on."""
_NICE = 19
"""Of decoding beside training on the same cores."""


def train(session: Session) -> int:
    """Train from the state's position to the end, or to a request to stop; returns the requests that ended it.

    A request is heard also while a batch is waited for. Raises an error of the data once all that stands is saved.
    """
    config, state, accelerator = session.config, session.state, session.accelerator
    status = Status(
        session.folder.path.name, session.total_images, session.epoch_samples, state.position, state.updates
    )
    display = Display(status, session.console, enabled=session.is_main)
    recorder = Recorder.of(accelerator.device, config.train.cuda_graph)
    requests, error, began = 0, None, time.monotonic()

    def stop() -> bool:
        writes = 2 if saver.busy else 1
        waited_s = time.monotonic() - began
        return bool(session.stop) or (waited_s > _LEAST_WAIT_S and _is_time_up(session, saver, writes=writes))

    with _open_loader(session, stop) as loader, display, Saver(session) as saver:
        if session.is_main and _owes_validation(session):
            _validate(session, display)
        while state.position < session.total_images and not requests & (STOP | TIME_UP):
            began = time.monotonic()
            batch, error = _next_batch(loader)
            waited_s = time.monotonic() - began

            update = apply_update(
                state,
                batch,
                config,
                accelerator,
                total_images=session.total_images,
                epoch_samples=session.epoch_samples,
                requests=_requests(session, saver, error),
                settle=saver.settle,
                recorder=recorder,
            )
            requests = update.requests
            if batch is None or not update.applied:
                _save_what_stands(session, saver, requests)
                break
            session.leave_out(batch.skipped)
            del batch
            _check_health(state, update)

            session.meters.add(update, config.train.batch_size, waited_s, time.monotonic() - began)
            finished = state.position >= session.total_images
            if state.updates % config.train.log_every_updates == 0 or finished:
                _log(session, status, update)
            _follow(session, saver, display)
            display.refresh()

            new_epoch = _ends_epoch(session, state.position)
            asked = finished or requests & (STOP | TIME_UP)
            routine = requests & SAVE or (new_epoch and requests & RESTED)
            if asked or (routine and not state.health.suspect):
                saver.save()

            # Who is asked to stop may have seconds: what is left out here is made up for by the process that goes on.
            if new_epoch and not asked and session.is_main:
                _validate(session, display)
        saver.wait()
        _say_why(session, requests, display)
    if requests & NO_DATA and not requests & (STOP | TIME_UP):
        accelerator.wait_for_everyone()  # Or the launcher would end the first process, which saves, with this one.
        raise error or LeanstreamError("all processes must have data; got an error of another one. See the run's logs.")
    return requests


def _open_loader(session: Session, stop: Callable[[], bool]) -> StreamingLoader:
    """This process's part of the training data, from the state's position on."""
    config, accelerator = session.config, session.accelerator
    return StreamingLoader(
        session.shards,
        batch_size=config.train.batch_size,
        seed=config.run.seed,
        start=session.state.position,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        threads=config.data.threads,
        nice=_NICE if accelerator.device.type == "cpu" else 0,
        window=config.data.window,
        lanes=config.data.lanes,
        flip=config.data.flip,
        noise=session.state.model.latent,
        stop=stop,
        ram_bytes=session.plan.loader_bytes,
        pin_memory=pins_memory(accelerator.device),
    )


def _next_batch(loader: StreamingLoader) -> tuple[Batch | None, LeanstreamError | None]:
    """A batch, or why there is none."""
    try:
        return next(loader), None
    except LeanstreamError as error:
        return None, error


def _save_what_stands(session: Session, saver: Saver, requests: int) -> None:
    """Save although the data of the next update do not come; every process must call this with the same requests."""
    if session.state.position and (requests & (STOP | TIME_UP) or not session.state.health.suspect):
        saver.save()


def _requests(session: Session, saver: Saver, error: LeanstreamError | None) -> int:
    """What this process asks for: any process passes on a signal and what its data lack, the first one watches the
    clocks. `error` is what came in the place of a batch."""
    requests = STOP if session.stop else 0
    if isinstance(error, StoppedError):
        return requests or TIME_UP
    if error is not None:
        requests |= NO_DATA
    if session.is_main:
        if _is_time_up(session, saver, writes=2 if saver.busy else 1):
            requests |= TIME_UP
        # Near the end a routine save would only have to be waited for by the last one.
        if not _is_time_up(session, saver, writes=2):
            if saver.idle_s >= 60 * session.config.checkpoint.save_every_minutes and not saver.busy:
                requests |= SAVE
            if saver.idle_s >= EPOCH_SAVE_INTERVAL_S:
                requests |= RESTED
    return requests


def _is_time_up(session: Session, saver: Saver, *, writes: int) -> bool:
    """Whether the process could not end within `run.max_minutes` if it made more than the coming update.

    `writes` is how many there still are, one after the other.
    """
    minutes = session.config.run.max_minutes
    if minutes is None:
        return False
    # This update and the next one, as the request comes into effect after this one.
    reserve_s = 2 * session.meters.last_s + saver.reserve_s(writes)
    if _ends_epoch(session, session.state.position + session.config.train.batch_size):
        reserve_s += session.validation_s or _guess_validation_s(session)
    return time.monotonic() - session.began + reserve_s >= 60 * minutes


def _guess_validation_s(session: Session) -> float:
    """As if validation cost an image what training does: it costs less."""
    shards, prior_images = session.shards, session.config.train.prior_images
    images = min(prior_images, session.epoch_samples) + sum(
        split.total for name, split in shards.splits.items() if name == "val"
    )
    return images * session.plan.seconds_per_image


def _ends_epoch(session: Session, position: int) -> bool:
    """Whether the update that led to `position` was the first at or after an epoch's end."""
    return (position - session.config.train.batch_size) // session.epoch_samples < position // session.epoch_samples


def _owes_validation(session: Session) -> bool:
    """Whether an epoch ended just before the interruption that this process goes on from."""
    position = session.state.position
    if not 0 < position < session.total_images or not _ends_epoch(session, position):
        return False
    return all(record.get("epoch") != session.epoch for record in session.folder.read_metrics())


def _check_health(state: TrainState, update: Update) -> None:
    state.health.observe(update.mse, update.grey_mse)
    if state.health.diverged:
        raise LeanstreamError(
            f"the model must not get worse than a plain grey picture; got a mean squared error of "
            f"{state.health.level:.4f} over the last updates, {state.health.reference:.4f} of grey, at update "
            f"{state.updates} (position {state.position}). The last checkpoint stands: "
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
    device, plan = session.accelerator.device, session.plan
    status.gpu_bytes = peak_bytes(device, plan.base_bytes)
    keep_to_limit(device, plan.limit_bytes, plan.base_bytes)


def _follow(session: Session, saver: Saver, display: Display) -> None:
    """Show what was saved meanwhile, tell what came of the last copy to the mirror, begin the next one in time."""
    status, mirror = display.status, session.mirror
    saver.follow()
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


def _validate(session: Session, display: Display) -> None:
    began = time.monotonic()
    figures = display.status.validation = validate(session)
    if figures:
        display.say(f"epoch {session.epoch} after {duration(session.elapsed_s)}: {figures}")
    session.validation_s = time.monotonic() - began
    # The updates before it still count, and so does the time that they took.
    session.meters.since += session.validation_s


def _say_why(session: Session, requests: int, display: Display) -> None:
    """Why the loop ended before the run did."""
    position = session.state.position
    if not session.is_main or position >= session.total_images:
        return
    saved = f"saved at image {position:,}" if position else "nothing to save before the first update"
    if requests & STOP:
        by = session.stop.signal or "a signal to another process"
        display.say(f"stopped by {by}: {saved}; the same command goes on")
    elif requests & TIME_UP:
        display.say(f"run.max_minutes is over: {saved}; the same command goes on")
    elif requests & NO_DATA:
        if session.state.health.suspect:
            saved = "not saved, as the last losses look wrong: the last checkpoint stands"
        display.say(f"ended by an error of the data: {saved}; once they are right, the same command goes on")

"""Train a face VAE, or go on with a run that was interrupted: the command is the same.

accelerate launch --quiet train/run.py configs/demo.toml --data.shards shards/faces-64
accelerate launch train/run.py                            # configs/default.toml, the only set under shards/
torchrun --nproc-per-node 2 train/run.py configs/demo.toml
"""

import contextlib
import copy
import functools
import json
import math
import secrets
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Loading the libraries takes seconds: Ctrl-C in them ends the process, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# A launcher puts this file's folder on the path, not the project's.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from rich.console import Console

from pipeline import Dataset
from pipeline.errors import (
    EXIT_DONE,
    EXIT_RUN_AGAIN,
    ConfigError,
    LeanstreamError,
    UserError,
    report_error,
)
from pipeline.loader import decode_threads
from pipeline.machine import PeakMemory, keep_memory, tree_pss
from pipeline.order import Order
from train.announce import record_start, show_result
from train.architectures import Architecture
from train.budget import make_plan, within_disk
from train.checkpoint import Generation, read_newest
from train.config import Config, changes, from_dict, parse_command_line, reuse, with_values
from train.device import DTYPES, Recorder, forget_peak, peak_bytes
from train.finished import finish, summarise
from train.initial import begin_with
from train.logs import rank_log
from train.loop import TIME_UP, train
from train.mirror import Mirror
from train.models import FaceVAE
from train.pretrained import CONFIG_FILE
from train.process import (
    StopRequest,
    any_process,
    follow_launcher,
    make_accelerator,
    peaks_of_all,
    process_began,
    processes_here,
    set_threads,
)
from train.runfolder import RunFolder
from train.session import Session
from train.state import TrainState
from train.trackers import check_trackers, start_trackers


class _Console(Console):
    """A console whose reader may go away, as in `| head`: the training goes on unseen."""

    def on_broken_pipe(self) -> None:
        """Write nowhere from now on."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


def main(argv: list[str] | None = None, *, began: float | None = None) -> int:
    """Run the command line; returns the exit code and never shows a traceback for something that a person did.

    `began` is when the process did, on `time.monotonic`'s clock; default: now.
    """
    argv = sys.argv[1:] if argv is None else argv
    began = time.monotonic() if began is None else began
    try:
        follow_launcher()
        name, config = parse_command_line(argv)
        return start(name, config, began)
    except (LeanstreamError, OSError) as error:
        if "--debug" in argv:
            raise
        return report_error(error, "training")
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last save", file=sys.stderr, flush=True)
        return 130


def start(name: str, config: Config, began: float) -> int:
    """Open everything that a run needs, train, and leave the results in the run folder."""
    stop = StopRequest()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.listening())
        memory = stack.enter_context(PeakMemory())
        check_trackers(config.train.trackers)
        accelerator = make_accelerator(config)
        stack.callback(accelerator.end_training)
        console = _Console(quiet=not accelerator.is_main_process, highlight=False)
        say = functools.partial(console.print, soft_wrap=True, markup=False)
        mirror: Mirror | None = None
        shards = config.data.open(find_shards(config, console))
        config = with_values(config, lasting(shards))
        folder = RunFolder(Path(config.run.dir or f"runs/{config.run.name or f'{name}-{shards.name}'}"))
        if accelerator.is_main_process:
            folder.check_place()
            if config.run.fresh and folder.path.exists():
                with folder.locked():
                    say(f"the run that was there is now {folder.set_aside()}")
            stack.enter_context(folder.locked())
            mirror = open_mirror(config, folder, say)
        accelerator.wait_for_everyone()  # The others' logs must not make the folder that the first one looks for.
        stack.enter_context(rank_log(folder.logs, accelerator.process_index, accelerator.num_processes))
        saved, generation = load_generation(folder, accelerator, say)
        session, rescheduled = prepare(config, shards, folder, saved, generation, accelerator, console, stop, memory)
        session.began = began
        # The first process knows: another machine may see no files of the run.
        if any_process(accelerator, accelerator.is_main_process and is_finished(session)):
            session.say(f"{folder.path} is finished at image {session.state.position:,}: see {folder.final}")
            session.say("train longer with --train.epochs or --train.total-images, or anew with --run.fresh")
            return EXIT_DONE
        if any_process(accelerator, bool(stop)):
            by = stop.signal or "a signal to another process"
            session.say(f"stopped by {by} before the first update; the same command goes on")
            return EXIT_DONE
        saved_by = None if saved is None else str(saved["torch"])
        del generation  # Its tensors are copied; training needs the memory.
        if accelerator.is_main_process:
            claim_run(session, saved, mirror)
            record_start(session, saved_by, rescheduled)
        start_trackers(accelerator, session.config, folder, session.state.position)
        requests = train(session)
        done = session.state.position >= session.total_images
        if done and accelerator.is_main_process:
            finish(session)
        peaks = peaks_of_all(accelerator, memory.peak, peak_bytes(accelerator.device))
        if accelerator.is_main_process:
            folder.write_summary(summarise(session, peaks, finished=done))
        accelerator.wait_for_everyone()
        # The others may go: a drive can take longer than they would wait.
        if session.mirror is not None:
            session.mirror.note(session.mirror.finish(session.state.position), session.say)
        if accelerator.is_main_process:
            show_result(session, done)
        return EXIT_RUN_AGAIN if requests & TIME_UP and not done else EXIT_DONE


def find_shards(config: Config, console: Console) -> tuple[str, ...]:
    """The config's shard sets, or the only one under shards/."""
    if config.data.shards is not None:
        return config.data.shards
    found = sorted(path.parent for path in Path("shards").glob("*/shardset.json"))
    if len(found) != 1:
        what = f"{len(found)}: {', '.join(map(str, found))}" if found else "none"
        raise ConfigError(
            f"data.shards must be given unless there is one shard set under shards/; got {what}. "
            "Add --data.shards FOLDER, or make a set with: shard_tool make-shards PHOTOS --size 64."
        )
    console.print(f"shards: {found[0]}, the only set under shards/", soft_wrap=True, markup=False)
    return (str(found[0]),)


def lasting(shards: Dataset) -> dict[str, Any]:
    """The config's values that find the same sets and the same cache from any working directory."""
    cache = shards.cache if isinstance(shards.cache, bool) else str(shards.cache.absolute())
    return {"data.shards": shards.locations, "data.cache": cache}


def open_mirror(config: Config, folder: RunFolder, say: Callable[[str], None]) -> Mirror | None:
    """The run's copy on a drive, if there is to be one; a run folder that is gone or behind is brought back from it."""
    if config.checkpoint.mirror is None:
        return None
    mirror = Mirror(config.checkpoint.mirror, folder, config.checkpoint.mirror_every_minutes)
    if config.run.fresh:
        if (aside := mirror.set_aside()) is not None:
            say(f"the copy that was on the mirror is now {aside}")
        return mirror
    position, remarks = mirror.bring_back()
    for remark in remarks:
        say(f"on the way: {remark}")
    if position is not None:
        say(f"brought back from the mirror {mirror.path}: image {position:,}")
        folder.note("brought back", position=position, mirror=str(mirror.path))
    return mirror


def claim_run(session: Session, saved: dict[str, Any] | None, mirror: Mirror | None) -> None:
    """Give a new run an identity, or take over that of the checkpoint, and the mirror with it."""
    run = None if saved is None else saved.get("run")
    if mirror is not None:
        run, warning = mirror.claim(run)
        if warning is not None:
            session.say(f"warning: {warning}")
    session.mirror = mirror
    session.facts["run"] = run or secrets.token_hex(8)


def load_generation(
    folder: RunFolder, accelerator: Accelerator, say: Callable[[str], None]
) -> tuple[dict[str, Any] | None, Generation | None]:
    """The scalars of the newest whole checkpoint on every process, and its tensors on the first one."""
    generation = None
    if accelerator.is_main_process:
        generation, passed_over = read_newest(folder.checkpoints)
        for reason in passed_over:
            say(f"checkpoint passed over: {reason}")
            folder.note("passed over", reason=reason)
    saved = [None if generation is None else generation.state]
    if accelerator.num_processes > 1:
        broadcast_object_list(saved)
    return saved[0], generation


def prepare(
    config: Config,
    shards: Dataset,
    folder: RunFolder,
    saved: dict[str, Any] | None,
    generation: Generation | None,
    accelerator: Accelerator,
    console: Console,
    stop: StopRequest,
    memory: PeakMemory,
) -> tuple[Session, list[str]]:
    """Resolve the config, and build or restore the state; returns also what changed since the run was interrupted."""
    earlier = None if saved is None else from_dict(saved["config"], "the checkpoint")
    if earlier is not None:
        config = reuse(config, earlier)
    config, total_images = resolve(config, shards, accelerator.num_processes)
    rescheduled = [] if earlier is None or saved is None else check_same_run(config, earlier, shards, saved, folder)

    config = with_values(config, {"train.threads": set_threads(config, accelerator.num_processes)})
    if accelerator.device.type == "cpu":
        keep_memory()  # A seventh of an update's time went into zeroing pages.
    set_seed(config.run.seed)
    model, local = config.model, config.train.batch_size // accelerator.num_processes
    architecture = Architecture.of(model.kind, shards.image_size, model.latent, model.widths, model.depth)
    base_bytes = tree_pss()
    network = FaceVAE(architecture)
    untouched = None if accelerator.device.type == "cpu" else copy.deepcopy(network)
    state = _fresh_state(network, config, accelerator, local)
    plan = make_plan(state, config, accelerator, local, base_bytes)
    if untouched is not None:
        del network, state  # A GPU's plan has trained it on nothing.
        forget_peak(accelerator.device)
        state = _fresh_state(untouched, config, accelerator, local)
    if saved is not None:
        if generation is not None:
            state.restore(generation)
        else:
            state.restore_scalars(saved, first_process=False)
    began_with = {}
    if saved is None and config.train.init_from is not None and accelerator.is_main_process:
        began_with = begin_with(state, config.train.init_from)
    if saved is not None or config.train.init_from is not None:
        state.share(accelerator)
    shards = within_disk(shards, config, plan.need)
    state.micro_batch = plan.fit.micro_batch
    state.model.recompute = plan.fit.recompute
    if saved is not None and config.train.micro_batch == "auto":
        state.micro_batch = min(state.micro_batch, saved["micro_batch"])
    facts = {
        "config": {key: value for key, value in asdict(config).items() if isinstance(value, dict)},
        "shardset": shards.fingerprint,
        "torch": torch.__version__,
        "processes": accelerator.num_processes,
    }
    session = Session(
        config,
        shards,
        accelerator,
        folder,
        state,
        total_images,
        shards.split("train").total,
        facts,
        plan,
        console,
        stop,
        memory,
        sums=state.audit,
        began_with=began_with,
    )
    return session, rescheduled


def _fresh_state(model: FaceVAE, config: Config, accelerator: Accelerator, micro_batch: int) -> TrainState:
    """The state of a new run; the model's activations have the run's precision, those of its average float32."""
    state = TrainState.create(model, config.optim, accelerator.device, micro_batch)
    state.model.compute_dtype = DTYPES[accelerator.mixed_precision]
    if accelerator.num_processes > 1 or Recorder.of(accelerator.device, config.train.cuda_graph):
        state.lay_out_gradients()
    return state


def resolve(config: Config, shards: Dataset, processes: int) -> tuple[Config, int]:
    """The config with every value filled in that follows from set and machine, and the run's length in images."""
    batch, model = config.train.batch_size, config.model
    if batch % processes:
        raise ConfigError(f"train.batch_size must be a multiple of {processes} processes; got {batch}. Change it.")
    split = shards.split("train")
    order = Order(split.samples, window=config.data.window, lanes=config.data.lanes)
    length = config.train.total_images or math.ceil(config.train.epochs * split.total)
    architecture = Architecture.of(model.kind, shards.image_size, model.latent, model.widths, model.depth)
    values = {
        "data.window": order.window,
        "data.lanes": order.lanes,
        "data.threads": config.data.threads or decode_threads(processes_here(processes)),
        "model.latent": architecture.latent,
        "model.widths": architecture.widths,
        "model.depth": architecture.depth,
    }
    return with_values(config, values), -(-length // batch) * batch


def check_same_run(
    config: Config, earlier: Config, shards: Dataset, saved: dict[str, Any], folder: RunFolder
) -> list[str]:
    """Refuse to resume another run; returns the changes of schedule, which are allowed."""
    identity, schedule = changes(config, earlier)
    remedy = "Undo that, or start another run with --run.name, --run.dir or --run.fresh."
    if saved["shardset"] != shards.fingerprint:
        identity.insert(0, f"other data in {shards.location} than {', '.join(earlier.data.shards or ())} had")
        remedy += f" To train these weights on other sets: --train.init-from {folder.path} --run.name NEW."
    if identity:
        raise UserError(f"a resumed run must keep its data, model and objective; got {'; '.join(identity)}. {remedy}")
    return schedule


def is_finished(session: Session) -> bool:
    """Whether the run had come to its end before."""
    path = session.folder.final / CONFIG_FILE
    return (
        session.state.position >= session.total_images
        and path.exists()
        and json.loads(path.read_bytes())["position"] == session.state.position
    )


if __name__ == "__main__":
    with warnings.catch_warnings():
        sys.exit(main(began=process_began()))

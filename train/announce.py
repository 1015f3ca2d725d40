"""What a run says of itself before its first update and after its last, and its first lines on disk."""

import torch

from pipeline.machine import show_bytes
from train.device import peak_bytes
from train.display import duration
from train.models import parameter_count
from train.session import Session


def record_start(session: Session, saved_by: str | None, rescheduled: list[str]) -> None:
    """Write the config and a ledger line; say what runs, from where, on what.

    `saved_by` is the torch version of the checkpoint that is resumed, None for a new run.
    """
    folder, config, state, say = session.folder, session.config, session.state, session.say
    folder.write_config(config.to_toml())
    folder.cut_metrics(state.position)
    if saved_by is None:
        note = {"torch": torch.__version__, "processes": session.accelerator.num_processes, "run": session.facts["run"]}
        folder.note("start", **note, **session.began_with)
        if session.began_with:
            say(f"beginning with the weights of {config.train.init_from}")
    else:
        folder.note("resume", position=state.position, changes=rescheduled, torch=torch.__version__)
        epochs = state.position / session.epoch_samples
        say(f"resumed {folder.path} at image {state.position:,} (epoch {epochs:.2f}, update {state.updates:,})")
        if saved_by != torch.__version__:
            say(f"warning: made by torch {saved_by}, now {torch.__version__}: not bit for bit equal")
    for line in rescheduled:
        say(f"changed: {line}; exact from here on")
    precision = {"no": "float32"}.get(session.accelerator.mixed_precision, session.accelerator.mixed_precision)
    batch, local = config.train.batch_size, config.train.batch_size // session.accelerator.num_processes
    say(
        f"{config.model.kind} VAE, {parameter_count(state.model) / 1e6:.2f}M parameters, "
        f"{session.shards.image_size} px, latent {config.model.latent}, {config.loss.objective}, {precision} on "
        f"{session.accelerator.device} x {session.accelerator.num_processes}"
    )
    say(
        f"{session.epoch_samples:,} training images from {session.shards.location}; batch {batch} = "
        f"{session.accelerator.num_processes} processes x {-(-local // state.micro_batch)} micro-batches of "
        f"{state.micro_batch}; results in {folder.path}"
    )
    for line in session.plan.lines(state.micro_batch):
        say(line)
    left = session.total_images - state.position
    say(
        f"to go: {left:,} images, {left // batch:,} updates, about "
        f"{duration(left * session.plan.seconds_per_image / session.accelerator.num_processes)}"
    )
    if (cache := session.shards.open_cache()) is not None:
        say(f"shards are read through {cache.folder}, up to {show_bytes(cache.limit_bytes)} of copies")


def show_result(session: Session, done: bool) -> None:
    """The last lines that a person sees."""
    folder, state = session.folder, session.state
    if not done:
        return
    for split, found in session.scores.items():
        session.say(
            f"{split}: PSNR {found['psnr_db']:.2f} dB, SSIM {found['ssim']:.3f}, rate {found['rate_nats']:.1f} nats, "
            f"{found['bits_per_dimension']:.3f} bits a dimension, {found['active_units']} latent dimensions in use"
        )
    if state.skipped:
        session.say(f"left out as damaged: {len(state.skipped):,} samples, named in {folder.path / 'ledger.jsonl'}")
    gpu_peak = peak_bytes(session.accelerator.device)
    session.say(
        f"memory: peak {show_bytes(session.memory.peak)} of RAM"
        + (f", {show_bytes(gpu_peak)} of the GPU" if gpu_peak else "")
        + f"; expected were {show_bytes(session.plan.bytes(state.micro_batch))}{' of the GPU' * session.plan.on_gpu}"
    )
    session.say(
        f"done: {state.position:,} images in {duration(session.elapsed_s)}; "
        f"model in {folder.final}, pictures in {folder.grids}"
    )

"""The end of a run: the finished model, and what goes beside it: figures, model card, pictures."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from pipeline import Dataset
from train.card import model_card
from train.checkpoint import weights_sha256
from train.device import device_name
from train.display import duration
from train.evaluate import aggregate_posterior
from train.models import FaceVAE, parameter_count
from train.pretrained import CARD_FILE, CURVES_FILE, GRID_FILE, TRAINING_FILE, save_pretrained
from train.session import Session
from train.state import audit_as_json
from train.validation import draw_curves_of, paint, score_held_out

FINAL_PRIOR_FACTOR = 10
OF_THIS_MACHINE = (
    "data.shards",
    "data.cache",
    "data.cache_bytes",
    "data.threads",
    "run.dir",
    "train.threads",
    "train.trackers",
)
"""Values of the config that say nothing about the model, and may say something about its owner."""

_OF_A_PHOTO = ("crop", "background", "exact")
"""Settings of a shard set by which a person's own photo becomes an image for the model; its size is the model's."""


def finish(session: Session) -> None:
    """Score the averaged weights, fit the prior, paint the last grid, and write the finished model."""
    model, device, folder = session.state.ema, session.accelerator.device, session.folder
    limit = FINAL_PRIOR_FACTOR * session.config.train.prior_images
    prior = aggregate_posterior(model, session.shards, "train", limit, device)
    paint(session, prior)
    session.scores = score_held_out(session)
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


def photo_settings(shards: Dataset) -> dict[str, Any]:
    """How the set's photos were made into images, as its maker recorded it; empty for a foreign set."""
    settings = shards.parts[0].get("settings", {}) if shards.parts else {}
    return {name: settings[name] for name in _OF_A_PHOTO if name in settings}


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
        "saves": len(session.pauses),
        "longest_save_pause_s": max(session.pauses, default=0.0),
        "skipped": len(state.skipped),
        "micro_batch": state.micro_batch,
        "recompute": state.model.recompute,
        "planned_bytes": session.plan.bytes(state.micro_batch),
        **peaks,
        "wall_s": time.monotonic() - session.started,
        "total_wall_s": session.elapsed_s,
    }


def describe_training(session: Session) -> dict[str, Any]:
    """How a model came about, as `training.json` has it."""
    state, shards, accelerator = session.state, session.shards, session.accelerator
    config = {
        section: {key: value for key, value in values.items() if f"{section}.{key}" not in OF_THIS_MACHINE}
        for section, values in session.facts["config"].items()
        if section != "checkpoint"
    }
    if config["train"].get("init_from"):
        config["train"]["init_from"] = Path(config["train"]["init_from"]).name
    precision = {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    return {
        "position": state.position,
        "updates": state.updates,
        "epochs": state.position / session.epoch_samples,
        "parameters": parameter_count(state.ema),
        "shardset": shards.fingerprint,
        "data": {
            "name": shards.name,
            "image_size": shards.image_size,
            "encoding": shards.encoding,
            "samples": {name: split.total for name, split in shards.splits.items() if len(split)},
            "attributes": len(shards.attributes),
            "fingerprint": shards.fingerprint[:16],
        },
        "audit": audit_as_json(session.sums),
        "skipped": state.skipped,
        "time": duration(session.elapsed_s),
        "precision": precision,
        "device": device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "torch": torch.__version__,
        "config": config,
    }


def extra_files(session: Session, model: FaceVAE, facts: dict[str, Any], training: dict[str, Any]) -> dict[str, bytes]:
    """Contents of training.json, the pictures and the model card, by name."""
    folder = session.folder
    grid = folder.grids / f"{session.state.position:012d}.png"
    pictures = {GRID_FILE: grid, CURVES_FILE: folder.curves_file}
    files = {name: path.read_bytes() for name, path in pictures.items() if path.exists()}
    described = {**facts, "architecture": model.describe()}
    card = model_card(folder.path.resolve().name, described, training, set(files))
    text = json.dumps(training, indent=1, ensure_ascii=False)
    return {TRAINING_FILE: text.encode(), CARD_FILE: card.encode(), **files}

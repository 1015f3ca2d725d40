"""What goes beside a finished model: how it was trained, its model card, its pictures."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline import ShardSet
from pipeline.files import atomic_writer
from train.card import model_card
from train.curves import draw_curves
from train.display import duration
from train.models import FaceVAE, parameter_count
from train.pretrained import CARD_FILE, CURVES_FILE, GRID_FILE, TRAINING_FILE
from train.runfolder import RunFolder
from train.state import audit_as_json

if TYPE_CHECKING:
    from train.loop import Session

_OF_THIS_MACHINE = (
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


def draw_curves_of(folder: RunFolder) -> None:
    """Draw `curves.png` of a run anew, as far as it is."""
    picture = draw_curves(folder.read_metrics(), folder.path.resolve().name)
    if picture is not None:
        with atomic_writer(folder.curves_file) as file:
            picture.save(file, "PNG")


def photo_settings(shards: ShardSet) -> dict[str, Any]:
    """How the set's photos were made into images, as its maker recorded it; empty for a foreign set."""
    settings = shards.parts[0].get("settings", {}) if shards.parts else {}
    return {name: settings[name] for name in _OF_A_PHOTO if name in settings}


def describe_training(session: "Session") -> dict[str, Any]:
    """How a model came about, as `training.json` has it."""
    state, shards, accelerator = session.state, session.shards, session.accelerator
    config = {
        section: {key: value for key, value in values.items() if f"{section}.{key}" not in _OF_THIS_MACHINE}
        for section, values in session.facts["config"].items()
        if section != "checkpoint"
    }
    if config["train"].get("init_from"):
        config["train"]["init_from"] = Path(config["train"]["init_from"]).name
    precision = {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    gpu = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type.upper()
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
        "time": duration(session.elapsed_s),
        "precision": precision,
        "device": gpu,
        "processes": accelerator.num_processes,
        "torch": torch.__version__,
        "config": config,
    }


def extra_files(
    session: "Session", model: FaceVAE, facts: dict[str, Any], training: dict[str, Any]
) -> dict[str, bytes]:
    """Contents of training.json, the pictures and the model card, by name."""
    folder = session.folder
    grid = folder.grids / f"{session.state.position:012d}.png"
    pictures = {GRID_FILE: grid, CURVES_FILE: folder.curves_file}
    files = {name: path.read_bytes() for name, path in pictures.items() if path.exists()}
    described = {**facts, "architecture": model.describe()}
    card = model_card(folder.path.resolve().name, described, training, set(files))
    text = json.dumps(training, indent=1, ensure_ascii=False)
    return {TRAINING_FILE: text.encode(), CARD_FILE: card.encode(), **files}

"""A trained model with the data it was trained on, from a run folder or a finished model's folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import ShardSet
from pipeline.errors import CheckpointError, UserError
from train.checkpoint import generations, read_newest
from train.config import load_config
from train.evaluate import Gaussian, aggregate_posterior
from train.models import FaceVAE
from train.pretrained import CONFIG_FILE, build_model, load_pretrained
from train.runfolder import RunFolder


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode on `device`, and what belongs to it."""

    model: FaceVAE
    fitted: Gaussian
    """Mean and covariance of the aggregate posterior."""
    shards: ShardSet | None
    facts: dict[str, Any]
    folder: Path
    """Where pictures go."""
    device: torch.device


def load_trained(run: Path | None, model: Path | None, shards: str | None, prior_images: int = 4096) -> Trained:
    """Load from exactly one of a run folder and a model folder.

    An unfinished run gives the averaged weights of its newest whole checkpoint, and its Gaussian is fitted now, on
    `prior_images` training images. Raises `UserError` where something is missing.
    """
    if (run is None) == (model is None):
        raise UserError("the model must be named once; got both or none of --run and --model. Give one of them.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if model is not None:
        loaded, fitted, facts = load_pretrained(model, device)
        opened = None if shards is None else ShardSet.open(shards)
        size = loaded.architecture.image_size
        if opened is not None and opened.image_size != size:
            raise UserError(
                f"{shards} must be of the model's size {size}; got {opened.image_size}. Give a set of that size."
            )
        return Trained(loaded, fitted, opened, facts, model / "explore", device)
    assert run is not None, "one of the two is given"
    folder = RunFolder(run)
    if not folder.config_file.exists():
        raise UserError(f"{run} must be a run folder; got no config.toml in it. Name a folder such as runs/demo.")
    data = load_config(folder.config_file).data
    if shards is None and data.shards is None:
        raise UserError(f"{folder.config_file} must name data.shards; got none. Give the set with --shards.")
    opened = data.open(shards)
    if (folder.final / CONFIG_FILE).exists():
        loaded, fitted, facts = load_pretrained(folder.final, device)
        _check_same_data(folder, opened, facts)
    else:
        loaded, facts = _from_checkpoint(folder, opened, device)
        fitted = aggregate_posterior(loaded, opened, "train", prior_images, device)
    return Trained(loaded, fitted, opened, facts, run / "explore", device)


def _from_checkpoint(folder: RunFolder, shards: ShardSet, device: torch.device) -> tuple[FaceVAE, dict[str, Any]]:
    if not generations(folder.checkpoints):
        raise UserError(f"{folder.path} must hold a model; got no checkpoint yet. Wait for the first save.")
    generation, _ = read_newest(folder.checkpoints)
    assert generation is not None, "there are generations, and read_newest raises where none is whole"
    _check_same_data(folder, shards, generation.state)
    config = generation.state["config"]["model"]
    model = build_model(
        {
            "kind": config["kind"],
            "image_size": shards.image_size,
            "latent": config["latent"],
            "widths": config["widths"],
        }
    )
    try:
        model.load_state_dict(generation.parts["ema"])
    except RuntimeError as error:
        raise CheckpointError(f"{folder.path} must fit its own config; got '{json.dumps(str(error))}'.") from error
    return model.to(device).eval(), {"shardset": generation.state["shardset"], "position": generation.position}


def _check_same_data(folder: RunFolder, shards: ShardSet, facts: dict[str, Any]) -> None:
    if facts["shardset"] != shards.fingerprint:
        raise UserError(
            f"{shards.location} must be the set that {folder.path} was trained on; got other data. "
            "Give the right one with --shards."
        )

"""A trained model with the data it was trained on, from a run folder or a finished model's folder."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from explore.commands import Common
from pipeline import Dataset
from pipeline.errors import CheckpointError, UserError
from train.architectures import Architecture
from train.checkpoint import generations, read_newest
from train.config import LossConfig, load_config
from train.device import best_device
from train.evaluate import Gaussian, aggregate_posterior
from train.models import FaceVAE
from train.objectives import Likelihood, RunningError
from train.pretrained import CONFIG_FILE, load_pretrained
from train.runfolder import RunFolder


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode on `device`, and what belongs to it."""

    model: FaceVAE
    fitted: Gaussian
    """Mean and covariance of the aggregate posterior."""
    shards: Dataset | None
    """Each sample once, also where training reads a set more often: figures and tables are of different images."""
    facts: dict[str, Any]
    folder: Path
    """Where results go."""
    home: Path
    """The run's folder or the model's."""
    device: torch.device
    same_data: bool = True
    """Whether the model was trained on `shards`, as far as is known."""

    @property
    def likelihood(self) -> Likelihood:
        """The decoder's density, at the scale that training ended with."""
        if self.facts["objective"] == "l1":
            return Likelihood("laplace", self.facts["sigma"] / math.sqrt(2))
        return Likelihood("gaussian", self.facts["sigma"] ** 2)

    def require_shards(self) -> Dataset:
        """The shard sets; `UserError` where none is known."""
        if self.shards is None:
            raise UserError("the images must come from a shard set; got none. Add --shards FOLDER.")
        return self.shards

    def count(self, split: str) -> int:
        """Images in a split; `UserError` where there are none."""
        shards = self.require_shards()
        found = shards.splits.get(split)
        if found is None or not len(found):
            known = ", ".join(name for name, split in shards.splits.items() if len(split))
            raise UserError(f"the split must be one of {known}; got '{split}', which {shards.location} has not.")
        return found.total

    def require_attributes(self) -> tuple[str, ...]:
        """Names of the attributes that all sets have; `UserError` where there are none."""
        shards = self.require_shards()
        if not shards.attributes and any(one.attributes for one in shards.sets):
            raise UserError(
                f"the attributes must be the same in all sets; got others in each of {shards.location}. "
                "Look at one of them: --model with the finished model, and --shards with that set alone."
            )
        if not shards.attributes:
            raise UserError(
                f"the shard set must have attributes; got none in {shards.location}. "
                "Make it with a table of them beside the photos, or with make-shards --labels TABLE."
            )
        return shards.attributes


def load_trained(command: Common, prior_images: int = 4096) -> Trained:
    """Load from exactly one of a run folder and a model.

    An unfinished run gives the averaged weights of its newest whole checkpoint, and its Gaussian is fitted now, on
    `prior_images` training images. Raises `UserError` where something is missing.
    """
    if (command.run is None) == (command.model is None):
        raise UserError("the model must be named once; got both or none of --run and --model. Give one of them.")
    device = best_device()
    if command.model is not None:
        return _load_model(command, Path(command.model), device)
    assert command.run is not None, "one of the two is given"
    folder = RunFolder(command.run)
    if not folder.config_file.exists():
        raise UserError(
            f"{command.run} must be a run folder; got no config.toml in it. Name a folder such as runs/demo."
        )
    data = load_config(folder.config_file).data
    if not command.shards and not data.shards:
        raise UserError(f"{folder.config_file} must name data.shards; got none. Give the set with --shards.")
    opened = data.open(command.shards)
    if (folder.final / CONFIG_FILE).exists():
        loaded, fitted, facts = load_pretrained(folder.final, device)
        _check_same_data(folder, opened, facts)
    else:
        loaded, facts = _from_checkpoint(folder, opened, device)
        fitted = aggregate_posterior(loaded, opened, "train", prior_images, device)
    results = command.out or command.run / "explore"
    return Trained(loaded, fitted, opened.once(), facts, results, command.run, device)


def _load_model(command: Common, folder: Path, device: torch.device) -> Trained:
    loaded, fitted, facts = load_pretrained(folder, device)
    results = command.out or folder / "explore"
    if not command.shards:
        return Trained(loaded, fitted, None, facts, results, folder, device)
    opened = Dataset.open(command.shards)
    size = loaded.architecture.image_size
    if opened.image_size != size:
        raise UserError(
            f"{opened.location} must be of the model's size {size}; got {opened.image_size}. Give a set of that size."
        )
    same = facts.get("shardset") in (None, opened.fingerprint)
    return Trained(loaded, fitted, opened.once(), facts, results, folder, device, same)


def _from_checkpoint(folder: RunFolder, shards: Dataset, device: torch.device) -> tuple[FaceVAE, dict[str, Any]]:
    if not generations(folder.checkpoints):
        raise UserError(f"{folder.path} must hold a model; got no checkpoint yet. Wait for the first save.")
    generation, _ = read_newest(folder.checkpoints)
    assert generation is not None, "there are generations, and read_newest raises where none is whole"
    _check_same_data(folder, shards, generation.state)
    config = generation.state["config"]["model"]
    shape = [config[name] for name in ("latent", "widths", "depth")]
    model = FaceVAE(Architecture.of(config["kind"], shards.image_size, *shape))
    try:
        model.load_state_dict(generation.parts["ema"])
    except RuntimeError as error:
        raise CheckpointError(f"{folder.path} must fit its own config; got '{json.dumps(str(error))}'.") from error
    objective = generation.state["config"]["loss"]["objective"]
    likelihood = Likelihood.of(LossConfig(objective=objective), RunningError(**generation.state["error"]))
    return model.to(device).eval(), {
        "shardset": generation.state["shardset"],
        "position": generation.position,
        "objective": objective,
        "sigma": likelihood.std,
    }


def _check_same_data(folder: RunFolder, shards: Dataset, facts: dict[str, Any]) -> None:
    if facts["shardset"] != shards.fingerprint:
        raise UserError(
            f"{shards.location} must be what {folder.path} was trained on; got other data. "
            "Give the right sets with --shards."
        )

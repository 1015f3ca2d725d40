"""A finished model as a folder, which is what a person keeps, copies and publishes.

    final/
      config.json          format, architecture, figures, and the sha256 of the tensors' files; written last
      model.safetensors    the averaged weights
      prior.safetensors    mean and covariance of the aggregate posterior
      priors.safetensors   where `explore fit-prior` ran: what it fitted, of these weights
      training.json        how it came about: the resolved config, and the sums that an audit compares
      README.md            the model card, with grid.png and curves.png

A folder is made under another name and takes the place of the one before by a rename. Who reads while that happens
may open files of both: the hashes tell, and the reading begins again.

`FaceVAE` reads and writes itself through this module, which knows nothing of its layers.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from pipeline.errors import CheckpointError, UserError
from pipeline.files import sync_folder, write_json
from train.architectures import Architecture
from train.checkpoint import PARTIAL, save_tensors, snapshot
from train.gaussian import Gaussian
from train.hub import find_model
from train.snapshot import Tensors

if TYPE_CHECKING:
    from train.models import FaceVAE

FORMAT = 2
"""Raised where the same files would give another function, as when what an architecture's name stands for changes."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PRIOR_FILE = "prior.safetensors"
TRAINING_FILE = "training.json"
CARD_FILE = "README.md"
GRID_FILE = "grid.png"
CURVES_FILE = "curves.png"
PRIORS_FILE = "priors.safetensors"
EXTRA_FILES = (TRAINING_FILE, CARD_FILE, GRID_FILE, CURVES_FILE, PRIORS_FILE)
"""What belongs to the model without being needed to use it."""
_ATTEMPTS = 3


@dataclass(frozen=True)
class Pretrained:
    """What a finished model's folder holds."""

    architecture: Architecture
    tensors: Tensors
    """The averaged weights."""
    prior: Gaussian
    """The aggregate posterior's mean and covariance."""
    facts: dict[str, Any]
    """The rest of config.json: position, figures, the fingerprint of the data."""
    extras: dict[str, bytes]
    """Contents of `EXTRA_FILES`, by name."""


def save_pretrained(
    folder: Path, model: "FaceVAE", prior: Gaussian, facts: dict[str, Any], extras: Mapping[str, bytes] | None = None
) -> None:
    """Write the model, the aggregate posterior's Gaussian, and `facts` about both, in place of what was there.

    `extras` are the contents of further files, by name.
    """
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    older = folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_files(partial, model, prior, facts, extras or {})
        shutil.rmtree(older, ignore_errors=True)
        if folder.exists():
            folder.rename(older)
        partial.rename(folder)
        sync_folder(folder.parent)
    except OSError:
        if older.exists() and not folder.exists():
            older.rename(folder)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(older, ignore_errors=True)


def write_files(
    folder: Path, model: "FaceVAE", prior: Gaussian, facts: dict[str, Any], extras: Mapping[str, bytes]
) -> None:
    """Write a model's files into a folder that is there; config.json comes last."""
    for name, data in extras.items():
        (folder / name).write_bytes(data)
    tensors = {
        WEIGHTS_FILE: snapshot(model.state_dict()),
        PRIOR_FILE: {"mean": prior.mean, "covariance": prior.covariance.contiguous()},
    }
    for name, part in tensors.items():
        save_tensors(part, folder / name)
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in tensors}
    write_json(folder / CONFIG_FILE, {**facts, "format": FORMAT, "architecture": model.describe(), "files": files})


def load_pretrained(name_or_path: str | Path, device: torch.device) -> tuple["FaceVAE", Gaussian, dict[str, Any]]:
    """The model in evaluation mode on `device`, its Gaussian, and the facts saved with it.

    `name_or_path` is a finished model's folder, a finished run's folder, or a Hugging Face repository. Raises
    `UserError` where there is no model, `CheckpointError` where it is damaged, `TransportError` where the hub is out of
    reach.
    """
    # Not above: the class itself reads through this module.
    from train.models import FaceVAE

    found = read_pretrained(name_or_path)
    return FaceVAE.of(found).to(device), found.prior, found.facts


def read_pretrained(name_or_path: str | Path, **options: Any) -> Pretrained:
    """What is saved of a model, every byte as it was written; arguments and errors are those of `find_model`.

    Raises also `CheckpointError` where the model is damaged.
    """
    folder = find_model(name_or_path, (CONFIG_FILE, WEIGHTS_FILE, PRIOR_FILE, *EXTRA_FILES), **options)
    for attempt in range(_ATTEMPTS):
        try:
            return _read(folder)
        except (CheckpointError, UserError):
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def architecture_of(described: dict[str, Any]) -> Architecture:
    """What `FaceVAE.describe` described."""
    return Architecture(**{**described, "widths": tuple(described["widths"])})


def _read(folder: Path) -> Pretrained:
    path = folder / CONFIG_FILE
    if not path.exists():
        raise UserError(
            f"{folder} must hold a finished model; got no {CONFIG_FILE}. Train one, or name another folder."
        )
    try:
        facts = dict(json.loads(path.read_bytes()))
        described, files, version = facts.pop("architecture"), facts.pop("files"), facts.pop("format", 1)
        if version != FORMAT:
            raise CheckpointError(
                f"{folder} must be a model of format {FORMAT}; got {version}. "
                "Load it with the version of leanstream that saved it, or train it again."
            )
        architecture = architecture_of(described)
        parts = {name: (folder / name).read_bytes() for name in (WEIGHTS_FILE, PRIOR_FILE)}
        for name, data in parts.items():
            if hashlib.sha256(data).hexdigest() != files[name]:
                raise CheckpointError(f"{folder / name} must be as {CONFIG_FILE} says; got other bytes. Copy it again.")
        weights, prior = load(parts[WEIGHTS_FILE]), load(parts[PRIOR_FILE])
        gaussian = Gaussian(prior["mean"], prior["covariance"])
        extras = {name: (folder / name).read_bytes() for name in EXTRA_FILES if (folder / name).exists()}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} must be a whole model; got '{error}'. Copy it again.") from error
    return Pretrained(architecture, weights, gaussian, facts, extras)

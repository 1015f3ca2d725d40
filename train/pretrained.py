"""A finished model as a folder: config.json, model.safetensors, prior.safetensors, training.json."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.errors import CheckpointError, UserError
from pipeline.files import write_json
from train.architectures import Architecture
from train.checkpoint import save_tensors, snapshot
from train.evaluate import Gaussian
from train.models import FaceVAE

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PRIOR_FILE = "prior.safetensors"
TRAINING_FILE = "training.json"


def save_pretrained(
    folder: Path, model: FaceVAE, prior: Gaussian, facts: dict[str, Any], training: dict[str, Any] | None = None
) -> None:
    """Write the model, the aggregate posterior's Gaussian, and `facts` about both; config.json comes last.

    `training` is how it came about: the resolved config and the sums of an audit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in (
        (WEIGHTS_FILE, snapshot(model.state_dict())),
        (PRIOR_FILE, {"mean": prior.mean, "covariance": prior.covariance.contiguous()}),
    ):
        partial = folder / f".{name}.partial"
        save_tensors(tensors, partial)
        partial.replace(folder / name)
    write_json(folder / TRAINING_FILE, training or {})
    write_json(folder / CONFIG_FILE, {"architecture": model.describe(), **facts})


def load_pretrained(folder: Path, device: torch.device) -> tuple[FaceVAE, Gaussian, dict[str, Any]]:
    """The model in evaluation mode, its Gaussian, and the facts saved with it.

    Raises `UserError` where the folder holds no finished model, `CheckpointError` where it is damaged.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        raise UserError(
            f"{folder} must hold a finished model; got no {CONFIG_FILE}. Train one, or name another folder."
        )
    try:
        facts = json.loads(path.read_bytes())
        model = build_model(facts["architecture"])
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        prior = load_file(folder / PRIOR_FILE)
        gaussian = Gaussian(prior["mean"], prior["covariance"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} must be a whole model; got '{error}'. Copy it again.") from error
    return model.to(device).eval(), gaussian, facts


def build_model(architecture: dict[str, Any]) -> FaceVAE:
    """A model with fresh weights from what `FaceVAE.describe` gave."""
    return FaceVAE(Architecture(**{**architecture, "widths": tuple(architecture["widths"])}))

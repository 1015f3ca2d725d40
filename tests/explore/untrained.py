"""A tiny model with fresh weights, for tests of what commands do with one: no training."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from explore.model import Trained
from pipeline import Dataset
from pipeline.format import ShardSet
from shard_tool.cli import main as shard_tool
from tests.train.tiny import CPU, tiny_config, tiny_model
from train.evaluate import Gaussian
from train.models import FaceVAE
from train.pretrained import save_pretrained

SIZE = 32
FACTS: dict[str, Any] = {"position": 48, "sigma": 0.1, "objective": "optimal_sigma", "scores": {}, "shardset": "abc"}


def untrained(size: int = SIZE) -> FaceVAE:
    """Always the same weights, in evaluation mode; neither encodes all images alike."""
    return tiny_model(tiny_config(), size).eval()


def trained(folder: Path, shards: ShardSet | None = None, size: int = SIZE, **facts: Any) -> Trained:
    """What `load_trained` gives."""
    model = untrained(size)
    opened = None if shards is None else Dataset.open(shards)
    return Trained(model, Gaussian.standard(model.latent), opened, {**FACTS, **facts}, folder, folder, CPU)


def save_model(folder: Path, size: int = SIZE, **facts: Any) -> Path:
    """A finished model's folder."""
    model = untrained(size)
    save_pretrained(folder, model, Gaussian.standard(model.latent), {**FACTS, **facts})
    return folder


def make_shards(photos: Path, folder: Path, *options: str) -> ShardSet:
    """A shard set of a folder of photos, by the shard tool."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert shard_tool(["make-shards", str(photos), "--out", str(folder), "--quiet", *options]) == 0
    return ShardSet.open(folder)


def pixels(images: torch.Tensor) -> Any:
    """[B, 3, H, W] in [0, 1] as a numpy array [B, H, W, 3] of 0 to 255."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

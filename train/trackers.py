"""Metrics for the trackers that people already use (TensorBoard, Weights & Biases, ...), through Accelerate."""

from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers, get_available_trackers

from pipeline.errors import ConfigError
from train.config import Config
from train.runfolder import RunFolder

PROJECT = "leanstream"


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises `ConfigError` for a tracker that Accelerate does not know, or that is not installed."""
    known, installed = sorted(LOGGER_TYPE_TO_CLASS), {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            raise ConfigError(f"train.trackers must be among {', '.join(known)}; got '{name}'. Choose one of them.")
        if name not in installed:
            package = name.replace("_", "-")
            raise ConfigError(f"train.trackers must be installed; got '{name}', which is not. pip install {package}.")


def start_trackers(accelerator: Accelerator, config: Config, folder: RunFolder, position: int) -> None:
    """Open the config's trackers; TensorBoard forgets what it has of this run beyond `position`."""
    names = config.train.trackers
    if not names:
        return
    accelerator.project_configuration.set_directories(str(folder.path))
    accelerator.log_with = filter_trackers(list(names), str(folder.path))
    settings = {
        "tensorboard": {"purge_step": position + 1},
        "wandb": {"name": folder.path.resolve().name, "dir": str(folder.path)},
    }
    values = {key: value if isinstance(value, int | float | str) else str(value) for key, value in config.flat.items()}
    accelerator.init_trackers(
        PROJECT, config=None if position else values, init_kwargs={name: settings.get(name, {}) for name in names}
    )


def track(accelerator: Accelerator, record: dict[str, Any]) -> None:
    """Give a line of metrics to the trackers, its step being the position."""
    flat: dict[str, float] = {}
    for key, value in record.items():
        if key == "scores":
            flat |= {f"{split}/{name}": figure for split, found in value.items() for name, figure in found.items()}
        elif key != "position":
            flat[f"train/{key}" if key != "epoch" else key] = value
    accelerator.log({key: value for key, value in flat.items() if value is not None}, step=record["position"])

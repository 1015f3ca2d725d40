"""Everything that a run or a finished model says about itself, as far as it is there."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from explore.commands import Common
from explore.html.wording import without_places
from pipeline import Dataset
from pipeline.errors import LeanstreamError, UserError
from train.config import DataConfig
from train.finished import OF_THIS_MACHINE
from train.hub import find_model
from train.pretrained import CONFIG_FILE, GRID_FILE, TRAINING_FILE
from train.runfolder import RunFolder


@dataclass
class Evidence:
    """What is known; whatever is unknown is empty, and `missing` says why where a person can do something about it."""

    name: str
    home: Path
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Sections of the resolved configuration, without what says something of the machine."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    """config.json of the finished model."""
    training: dict[str, Any] = field(default_factory=dict)
    """training.json of the finished model."""
    grids: list[tuple[int | None, Path]] = field(default_factory=list)
    """Position and picture, in order."""
    shards: Dataset | None = None
    """The sets as training reads them, some perhaps more often than others."""
    missing: list[str] = field(default_factory=list)

    @property
    def position(self) -> int | None:
        """Images trained on so far."""
        for found in (self.summary, self.model, *self.metrics[-1:], *reversed(self.ledger)):
            if isinstance(found.get("position"), int):
                return int(found["position"])
        return None

    @property
    def epoch_samples(self) -> int | None:
        """Images of an epoch."""
        if self.shards is not None and "train" in self.shards.splits:
            return self.shards.splits["train"].total or None
        found = (self.training.get("data") or {}).get("samples", {}).get("train")
        return found if isinstance(found, int) else None

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Figures by split."""
        return self.summary.get("scores") or self.model.get("scores") or {}


def gather(command: Common) -> Evidence:
    """Read all there is; raises `UserError` where the folder is neither a run's nor a model's."""
    if (command.run is None) == (command.model is None):
        raise UserError("the model must be named once; got both or none of --run and --model. Give one of them.")
    evidence = _of_run(command.run) if command.run is not None else _of_model(str(command.model))
    _open_shards(evidence, command)
    return evidence


def _of_run(path: Path) -> Evidence:
    folder = RunFolder(path)
    if not folder.config_file.exists():
        raise UserError(f"{path} must be a run folder; got no config.toml in it. Name a folder such as runs/demo.")
    found = Evidence(path.resolve().name, path)
    found.config = _toml(folder.config_file, found.missing)
    found.metrics = [record for record in folder.read_metrics() if isinstance(record.get("position"), int)]
    found.ledger = folder.read_ledger()
    found.summary = _json(folder.summary_file, found.missing) or {}
    found.model = _json(folder.final / CONFIG_FILE, found.missing) or {}
    found.training = _json(folder.final / TRAINING_FILE, found.missing) or {}
    found.grids = [(int(grid.stem), grid) for grid in sorted(folder.grids.glob("*.png")) if grid.stem.isdecimal()]
    if not found.metrics:
        found.missing.append("No curves: the run has not written metrics yet.")
    if not found.grids:
        found.missing.append("No grids: the first is painted at the end of the first epoch.")
    if not found.model:
        began = any(folder.checkpoints.glob("[0-9]*"))
        found.missing.append(
            "No finished model: the run goes on with the same command."
            if began
            else "No checkpoint yet: the explore commands need one; wait for the first save."
        )
    return found


def _of_model(name: str) -> Evidence:
    path, home = find_model(name, (CONFIG_FILE, TRAINING_FILE, GRID_FILE)), Path(name).expanduser()
    if not (path / CONFIG_FILE).exists():
        raise UserError(f"{path} must hold a finished model; got no {CONFIG_FILE}. Name another folder, or a --run.")
    here = home.resolve()
    found = Evidence((here.parent if here.name == "final" else here).name, home)
    found.model = _json(path / CONFIG_FILE, found.missing) or {}
    found.training = _json(path / TRAINING_FILE, found.missing) or {}
    found.config = _own(found.training.get("config") or {})
    found.grids = [(None, grid) for grid in (path / GRID_FILE,) if grid.exists()]
    found.missing.append("No curves and no ledger: they are in the run's folder, and this is a model's.")
    return found


def _open_shards(found: Evidence, command: Common) -> None:
    """The sets that were named, else the run's; other data than the run's is not shown for it."""
    try:
        data: dict[str, Any] = {}
        if command.run is not None:
            data = tomllib.loads((command.run / "config.toml").read_text()).get("data", {})
        known = {name: data[name] for name in ("shards", "cache", "cache_bytes") if name in data}
        section = DataConfig(**known)
        if not command.shards and not section.shards:
            found.missing.append("No pictures of the data: add --shards FOLDER.")
            return
        opened = section.open(command.shards)
    except (LeanstreamError, OSError, ValueError, TypeError) as error:
        found.missing.append(f"No pictures of the data: {without_places(str(error))}")
        return
    fingerprint = found.model.get("shardset")
    if fingerprint and fingerprint != opened.fingerprint:
        found.missing.append("No pictures of the data: this is not the shard set that the model was trained on.")
        return
    found.shards = opened


def _toml(path: Path, missing: list[str]) -> dict[str, dict[str, Any]]:
    try:
        return _own(tomllib.loads(path.read_text()))
    except (OSError, ValueError) as error:
        missing.append(f"No settings: {path.name} must be TOML; got '{error}'.")
        return {}


def _own(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    sections = {}
    for section, values in config.items():
        if isinstance(values, Mapping):
            left_out = (*OF_THIS_MACHINE, "run.fresh")  # The latter says nothing any more.
            kept = {key: value for key, value in values.items() if f"{section}.{key}" not in left_out}
            sections[section] = {key: value for key, value in kept.items() if value is not None}
    return {section: values for section, values in sections.items() if values}


def _json(path: Path, missing: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        missing.append(f"{path.name} must be JSON; got '{error}'.")
        return None
    return found if isinstance(found, dict) else None

"""The smallest training there is, for tests: a tiny model, a tiny config, and no Accelerate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.format import ShardSet
from pipeline.loader import StreamingLoader
from train.architectures import Architecture
from train.checkpoint import Generation, weights_sha256
from train.config import Config, from_dict
from train.device import Recorder
from train.models import FaceVAE
from train.snapshot import Snapshot
from train.state import TrainState
from train.update import Update, apply_update

BATCH = 16
TOTAL_IMAGES = 3_200
CPU = torch.device("cpu")


@dataclass
class FakeAccelerator:
    """One process, and a precision; what is computed in it is the model's affair."""

    mixed_precision: str = "no"
    num_processes: int = 1
    process_index: int = 0
    is_main_process: bool = True
    device: torch.device = CPU


def tiny_config(**sections: dict[str, Any]) -> Config:
    """A config of a tiny model; `sections` are TOML tables."""
    tables: dict[str, dict[str, Any]] = {
        "model": {"widths": [8, 8, 8, 8], "latent": 4},
        "train": {"batch_size": BATCH},
        "optim": {"warmup_images": 64},
    }
    for name, values in sections.items():
        tables[name] = {**tables.get(name, {}), **values}
    return from_dict(tables, "a test")


def tiny_model(config: Config, size: int = 32, kind: type[FaceVAE] = FaceVAE) -> FaceVAE:
    """Always the same weights."""
    torch.manual_seed(config.run.seed)
    model = config.model
    return kind(Architecture.of(model.kind, size, model.latent, model.widths, model.depth))


def tiny_state(
    config: Config, micro_batch: int | None = None, *, size: int = 32, kind: type[FaceVAE] = FaceVAE
) -> TrainState:
    """A fresh state."""
    model = tiny_model(config, size, kind)
    return TrainState.create(model, config.optim, CPU, micro_batch or config.train.batch_size)


def updates(
    state: TrainState,
    config: Config,
    shards: ShardSet,
    count: int,
    accelerator: FakeAccelerator | None = None,
    recorder: Recorder | None = None,
) -> Iterator[Update]:
    """Apply `count` updates from the state's position on."""
    accelerator = accelerator or FakeAccelerator()
    loader = StreamingLoader(
        shards,
        batch_size=config.train.batch_size,
        seed=config.run.seed,
        start=state.position,
        flip=config.data.flip,
        noise=state.model.latent,
        threads=1,
    )
    with loader:
        for _ in range(count):
            yield apply_update(
                state,
                next(loader),
                config,
                accelerator,  # type: ignore[arg-type]
                total_images=TOTAL_IMAGES,
                epoch_samples=shards.split("train").total,
                recorder=recorder,
            )


def generation_of(
    state: TrainState, facts: dict[str, Any] | None = None, audit: dict[int, int] | None = None, elapsed_s: float = 0.0
) -> Generation:
    """A checkpoint of a state; `audit` instead of the state's own sums."""
    snapshot = Snapshot(state.tensors(), CPU)
    snapshot.begin(state.tensors(), state.unsteady())
    scalars = state.scalars(facts or {}, state.audit if audit is None else audit, elapsed_s)
    return Generation(snapshot.take(), scalars)


def state_sha256(state: TrainState) -> str:
    """A hash of every tensor of a state, the optimizer's included."""
    return weights_sha256(
        {f"{part}/{name}": value for part, tensors in state.tensors().items() for name, value in tensors.items()}
    )

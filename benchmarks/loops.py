"""The loops that training is measured by: the trainer in a process of its own, its update in this one, a bare one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import StreamingLoader
from pipeline.errors import EXIT_DONE, EXIT_RUN_AGAIN, UserError
from shard_tool.cli import main as shard_tool
from train.architectures import Architecture
from train.config import Config, LossConfig, OptimConfig
from train.device import DTYPES, Recorder, layout, pins_memory
from train.models import FaceVAE
from train.objectives import Likelihood, RunningError, factors_of, objective
from train.runfolder import RunFolder
from train.state import TrainState
from train.update import Update, apply_update

ROOT = Path(__file__).resolve().parent.parent


def drawn_faces(work: Path, size: int, count: int) -> Path:
    """A set of so many drawn faces, made once."""
    shards, pictures = work / f"faces-{size}", work / f"pictures-{size}"
    if not (shards / "shardset.json").exists():
        shard_tool(["draw-faces", str(pictures), "--count", str(count), "--size", str(size), "--quiet"])
        shard_tool(["make-shards", str(pictures), "--size", str(size), "--out", str(shards), "--quiet"])
    return shards


def trainer_command(folder: RunFolder, arguments: dict[str, Any]) -> list[str]:
    """The command line of train/run.py; `arguments` by dotted names: True is a switch, a tuple is several words."""
    command = [sys.executable, str(ROOT / "train" / "run.py"), "--run.dir", str(folder.path)]
    for name, value in arguments.items():
        words = value if isinstance(value, tuple) else () if value is True else (value,)
        command += [f"--{name.replace('_', '-')}", *map(str, words)]
    return command


def run_trainer(
    folder: RunFolder, arguments: dict[str, Any], *, may_be_cut: bool = False, timeout_s: float | None = None
) -> None:
    """Run train/run.py to its end, in a process of its own; `may_be_cut` by run.max_minutes.

    Raises `UserError` where it fails, or has not ended after `timeout_s`.
    """
    command, environment = trainer_command(folder, arguments), {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise UserError(f"a run must end in time; got none after {timeout_s:.0f} s: {' '.join(command)}") from None
    if done.returncode not in (EXIT_DONE, *([EXIT_RUN_AGAIN] if may_be_cut else [])):
        told = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise UserError(f"the trainer must succeed; got '{told}'. Run it alone: {' '.join(command)}")


@dataclass(frozen=True)
class Alone:
    """What an update asks of an Accelerator, for one process."""

    device: torch.device
    mixed_precision: str
    num_processes: int = 1


def our_updates(
    shards: Path, size: int, config: Config, precision: str, device: torch.device
) -> Generator[tuple[TrainState, Update, float], None, None]:
    """Loader and update, as `train.loop` has them: state, what the update found, seconds of waiting for data."""
    batch_size, model = config.train.batch_size, config.model
    network = FaceVAE(Architecture.of(model.kind, size, model.latent, model.widths, model.depth))
    state = TrainState.create(network, config.optim, device, batch_size)
    network.compute_dtype = DTYPES[precision]
    recorder = Recorder.of(device, config.train.cuda_graph)
    if recorder is not None:
        state.lay_out_gradients()
    with StreamingLoader(
        shards,
        batch_size=batch_size,
        threads=config.data.threads,
        noise=network.latent,
        pin_memory=pins_memory(device),
    ) as loader:
        facts: dict[str, Any] = {"total_images": 10**9, "epoch_samples": loader.samples, "recorder": recorder}
        while True:
            began = time.perf_counter()
            batch = next(loader)
            waited_s = time.perf_counter() - began
            yield state, apply_update(state, batch, config, Alone(device, precision), **facts), waited_s
            del batch


def bare_step(
    architecture: Architecture,
    batch: int,
    precision: str,
    device: torch.device,
    memory_format: torch.memory_format | None = None,
) -> Callable[[], Tensor]:
    """One update of the bare loop, to be called again and again; gives its loss. On a GPU it is one CUDA graph."""
    memory_format = memory_format or layout(device)
    model = FaceVAE(architecture).to(device=device, memory_format=memory_format)
    model.compute_dtype = DTYPES[precision]
    optim, loss_config = OptimConfig(), LossConfig()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=optim.betas, eps=optim.eps, fused=True, capturable=device.type == "cuda"
    )
    images = torch.rand(batch, 3, architecture.image_size, architecture.image_size, device=device)
    images = images.to(memory_format=memory_format)
    noise = torch.empty(batch, model.latent, device=device)
    factors = factors_of(loss_config, Likelihood.of(loss_config, RunningError()), images[0].numel())

    def step() -> Tensor:
        loss = objective(loss_config, model(images, noise.normal_()), images, factors).loss.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    cudnn = torch.backends.cudnn
    cudnn.deterministic, cudnn.benchmark = False, True
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay(_: object = step) -> Tensor:  # The graph itself keeps neither weights nor moments.
        graph.replay()
        return loss

    return replay

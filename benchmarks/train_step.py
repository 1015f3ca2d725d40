"""What the trainer costs on top of a bare PyTorch loop over tensors that lie in memory already.

    python benchmarks/train_step.py                          (drawn faces, `conv`, 64 px, batch 64)
    python benchmarks/train_step.py --kind residual --size 128 --precision no

    ours    train/run.py as it is: loader, decoding, crc32, noise by position, votes, average of the weights, metrics,
            display, and a save at the end of each round
    bare    the same model, objective, precision and optimizer on one batch of ready float tensors, noise by torch's
            generator, no average of the weights, no loss scaling; on a GPU all of it in one CUDA graph
    tuned   the bare loop once more, keeping freed pages on a CPU as the trainer does (pipeline.machine.keep_memory)

All have the same cores. They take turns, each in a process that does nothing else, so that a machine that slows down
slows both; the ratio is that of the medians. Each round of ours goes on with the same run, the way a resumed one does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.errors import EXIT_DONE, EXIT_RUN_AGAIN, LeanstreamError, UserError, report_error  # noqa: E402
from pipeline.machine import keep_memory, usable_cores  # noqa: E402
from shard_tool.cli import main as shard_tool  # noqa: E402
from train.architectures import Architecture  # noqa: E402
from train.config import LossConfig, OptimConfig  # noqa: E402
from train.device import DTYPES, best_device, device_name, layout, precision_of  # noqa: E402
from train.models import FaceVAE  # noqa: E402
from train.objectives import Likelihood, RunningError, factors_of, objective  # noqa: E402
from train.runfolder import RunFolder  # noqa: E402

FACES = 2_048
"""Drawn faces: enough that the loader meets the ends of epochs."""
WARM_UP = 2
"""Lines of metrics, and as many times --log-every updates of the bare loop, that are not counted."""


@dataclass(frozen=True)
class Round:
    """One turn of each."""

    ours: float
    """Images a second, the median over lines of metrics."""
    bare: float
    """Images a second, the median over as many updates."""
    tuned: float
    """The same of a bare loop that keeps freed pages."""
    data_wait_share: float


def main() -> int:
    """Measure and print; returns 1 below `--ratio` or above `--wait`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="shard set to train on (default: drawn faces)")
    parser.add_argument("--kind", default="conv", choices=("conv", "residual", "keras"))
    parser.add_argument("--size", type=int, default=64, help="pixels of the drawn faces")
    parser.add_argument("--batch", type=int, default=64, help="images an update")
    parser.add_argument("--precision", default="auto", choices=("auto", "no", "bf16", "fp16"))
    parser.add_argument("--threads", type=int, default=usable_cores(), help="torch's, of both")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--lines", type=int, default=12, help="lines of metrics a turn that count")
    parser.add_argument("--log-every", type=int, default=10, help="updates a line")
    parser.add_argument("--ratio", type=float, default=0.95, help="ours over bare that is asked for")
    parser.add_argument("--wait", type=float, default=0.02, help="share of waiting for data that is allowed")
    parser.add_argument("--work", type=Path, default=Path("runs/step-benchmark"), help="folder for set and run")
    parser.add_argument("--json", type=Path, help="write every figure into this file")
    parser.add_argument("--bare", action="store_true", help="only one turn of the bare loop (used by the benchmark)")
    parser.add_argument("--tuned", action="store_true", help="that keeps freed pages (used by the benchmark)")
    options = parser.parse_args()
    try:
        if options.bare:
            print(bare_loop(options))
            return 0
        return run(options)
    except (LeanstreamError, OSError) as error:
        return report_error(error, "running the benchmark")


def run(options: argparse.Namespace) -> int:
    """All rounds, and the verdict."""
    shards = options.shards or drawn_faces(options.work, options.size)
    folder = RunFolder(options.work / f"{options.kind}-{options.size}-{options.precision}")
    rounds = []
    for number in range(options.rounds):
        ours, wait = trainer(options, shards, folder, number)
        found = Round(ours, bare_in_a_process(options), bare_in_a_process(options, "--tuned"), wait)
        print(
            f"round {number + 1}: ours {found.ours:,.1f}, bare {found.bare:,.1f}, tuned {found.tuned:,.1f} images/s, "
            f"data wait {found.data_wait_share:.2%}",
            flush=True,
        )
        rounds.append(found)
    ours, bare, tuned = (
        statistics.median(values) for values in zip(*((one.ours, one.bare, one.tuned) for one in rounds), strict=True)
    )
    wait = statistics.median(one.data_wait_share for one in rounds)
    device = best_device()
    where = device_name(device) if device.type == "cuda" else f"{options.threads} threads"
    precision = precision_of(options.precision, device)
    print(
        f"{options.kind}, {options.size} px, batch {options.batch}, {precision}, {where}: "
        f"ours {ours:,.1f}, bare {bare:,.1f} images/s, ratio {ours / bare:.3f}; "
        f"tuned {tuned:,.1f}, ratio {ours / tuned:.3f}; data wait {wait:.2%}"
    )
    if options.json:
        found = {"rounds": [asdict(one) for one in rounds], "ratio": ours / bare, "ratio_to_tuned": ours / tuned}
        options.json.write_text(json.dumps(found, indent=1))
    return 0 if ours >= options.ratio * bare and wait < options.wait else 1


def drawn_faces(work: Path, size: int) -> Path:
    """A set of drawn faces, without a val split: what is timed is training."""
    shards, pictures = work / f"faces-{size}", work / f"pictures-{size}"
    if not (shards / "shardset.json").exists():
        shard_tool(["draw-faces", str(pictures), "--count", str(FACES), "--size", str(size), "--quiet"])
        shard_tool(["make-shards", str(pictures), "--size", str(size), "--out", str(shards), "--quiet"])
    return shards


def trainer(options: argparse.Namespace, shards: Path, folder: RunFolder, number: int) -> tuple[float, float]:
    """One turn of train/run.py: images a second, and the share of time in which it waited for data."""
    images = (WARM_UP + options.lines) * options.log_every * options.batch
    arguments: dict[str, Any] = {
        "data.shards": shards,
        "model.kind": options.kind,
        "train.mixed_precision": options.precision,
        "train.batch_size": options.batch,
        "train.micro_batch": options.batch,
        "train.threads": options.threads,
        "train.log_every_updates": options.log_every,
        "train.prior_images": 64,
        "train.total_images": (number + 1) * images,
        "optim.schedule": "constant",
    }
    run_trainer(folder, {**arguments, "run.fresh": True} if number == 0 else arguments)
    lines = [line for line in folder.read_metrics() if "images_per_s" in line and line["position"] > number * images]
    counted = lines[WARM_UP:]
    return (
        statistics.median(line["images_per_s"] for line in counted),
        statistics.fmean(line["data_wait_share"] for line in counted),
    )


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


def bare_in_a_process(options: argparse.Namespace, *more: str) -> float:
    """One turn of the bare loop, where nothing of the trainer's has run before."""
    command = [sys.executable, __file__, "--bare", *more]
    for name in ("kind", "size", "batch", "precision", "threads", "lines", "log_every"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the bare loop must succeed; got '{done.stderr.strip()}'. Try a smaller --batch.")
    return float(done.stdout)


def bare_loop(options: argparse.Namespace) -> float:
    """Images a second of forward pass, loss, backward pass and optimizer; the median over `lines` times `log_every`."""
    torch.set_num_threads(options.threads)
    if options.tuned:
        keep_memory()
    device = best_device()
    architecture = Architecture.of(options.kind, options.size, None, None, None)
    step = bare_step(architecture, options.batch, precision_of(options.precision, device), device)
    speeds = []
    for _ in range(WARM_UP + options.lines):
        began = time.perf_counter()
        for _ in range(options.log_every):
            loss = step()
        float(loss)
        speeds.append(options.log_every * options.batch / (time.perf_counter() - began))
    return statistics.median(speeds[WARM_UP:])


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


if __name__ == "__main__":
    sys.exit(main())

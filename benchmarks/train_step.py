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
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.loops import bare_step, drawn_faces, run_trainer  # noqa: E402
from pipeline.errors import LeanstreamError, UserError, report_error  # noqa: E402
from pipeline.machine import keep_memory, usable_cores  # noqa: E402
from train.architectures import Architecture  # noqa: E402
from train.device import best_device, device_name, precision_of  # noqa: E402
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
    shards = options.shards or drawn_faces(options.work, options.size, FACES)
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


if __name__ == "__main__":
    sys.exit(main())

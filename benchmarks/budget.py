"""Whether a run keeps to its memory budget, and how near its peak comes to what was planned.

    python benchmarks/budget.py                       (the CPU: budgets of RAM; about ten minutes on two cores)
    python benchmarks/budget.py --precisions fp16 bf16 --budgets 2GiB 4GiB 8GiB 15GiB    (a GPU: budgets of its memory)

Each line is a run of the trainer in a process of its own, on drawn faces or on `--shards`: the micro-batch that the
budget led to, the peak that the plan expected, the peak that was measured, and images a second of the last updates. On
a GPU also the model FLOPs utilisation: three times the multiplications and additions of a forward pass, counted by
torch, over the peak that the vendor states for the precision.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.loops import drawn_faces, run_trainer  # noqa: E402
from pipeline.errors import LeanstreamError, report_error  # noqa: E402
from pipeline.machine import parse_bytes, show_bytes  # noqa: E402
from train.architectures import Architecture  # noqa: E402
from train.models import FaceVAE  # noqa: E402
from train.runfolder import RunFolder  # noqa: E402

PEAK_TFLOPS = {"T4": 65, "V100": 125, "A10": 125, "L4": 121, "A100": 312, "H100": 989, "H200": 989}
"""Dense 16-bit matrix products by tensor cores, 10^12 operations a second, as NVIDIA's data sheets state them."""
DRAWN = 512


@dataclass(frozen=True)
class Result:
    """One run."""

    precision: str
    budget: str
    micro_batch: int
    recomputed: bool
    planned_bytes: int
    peak_bytes: int
    images_per_s: float

    @property
    def kept(self) -> bool:
        """Whether the peak stayed within the budget."""
        return self.peak_bytes <= parse_bytes(self.budget)


def main() -> int:
    """Run all combinations and print the table; returns 1 where a budget was exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="shard set to train on (default: drawn faces)")
    parser.add_argument("--kind", default="residual", help="model")
    parser.add_argument("--size", type=int, default=128, help="pixels of the drawn faces")
    parser.add_argument("--batch", type=int, default=256, help="images an update")
    parser.add_argument("--updates", type=int, help="length of a run (default: 40 on a GPU, 2 on the CPU)")
    parser.add_argument("--budgets", nargs="+", default=["2GiB", "8GiB"])
    parser.add_argument("--precisions", nargs="+", default=["auto"])
    parser.add_argument("--work", type=Path, default=Path("runs/budget-benchmark"), help="folder for sets and runs")
    parser.add_argument("--json", type=Path, help="write every figure into this file")
    options = parser.parse_args()
    try:
        return run(options)
    except (LeanstreamError, OSError) as error:
        return report_error(error, "running the benchmark")


def run(options: argparse.Namespace) -> int:
    """The whole benchmark."""
    shards = options.shards or drawn_faces(options.work, options.size, DRAWN)
    arguments = {"data.shards": shards, "model.kind": options.kind, "train.batch_size": options.batch}
    updates = options.updates or (40 if torch.cuda.is_available() else 2)
    found = [
        train_within(options.work, precision, budget, updates, arguments)
        for precision in options.precisions
        for budget in options.budgets
    ]
    # Only now: asking for a GPU's name takes some of its memory.
    mfus = [utilisation(options.kind, image_size(shards), one) for one in found]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    kind = f"{options.kind}, batch {options.batch}, on {device}, torch {torch.__version__}"
    table = Table(
        "precision", "budget", "micro-batch", "planned", "peak", "peak/planned", "images/s", "MFU", title=kind
    )
    for one, mfu in zip(found, mfus, strict=True):
        table.add_row(
            one.precision,
            one.budget,
            f"{one.micro_batch}{', recomputed' if one.recomputed else ''}",
            show_bytes(one.planned_bytes),
            f"{show_bytes(one.peak_bytes)}{'' if one.kept else ', too much'}",
            f"{one.peak_bytes / one.planned_bytes:.2f}",
            f"{one.images_per_s:,.1f}",
            "" if mfu is None else f"{mfu:.1%}",
        )
    Console().print(table)
    if options.json:
        figures = [{**asdict(one), "mfu": mfu} for one, mfu in zip(found, mfus, strict=True)]
        options.json.write_text(json.dumps(figures, indent=1))
    return 0 if all(one.kept for one in found) else 1


def train_within(
    work: Path,
    precision: str,
    budget: str,
    updates: int,
    arguments: dict[str, Any],
    timeout_s: float | None = None,
) -> Result:
    """Train for a few updates in a process of its own, within the budget; more arguments by dotted names."""
    on_gpu = torch.cuda.is_available()
    folder = RunFolder(work / f"{arguments['model.kind']}-{precision}-{budget}")
    within = {
        **arguments,
        "budget.gpu" if on_gpu else "budget.ram": budget,
        "train.total_images": updates * arguments["train.batch_size"],
        "train.mixed_precision": precision,
        "train.log_every_updates": 1,
        "train.prior_images": 64,
        "run.fresh": True,
    }
    run_trainer(folder, within, timeout_s=timeout_s)
    summary, metrics = json.loads(folder.summary_file.read_bytes()), folder.read_metrics()
    # The first half warms up: caches, clocks, the choice of kernels.
    speed = statistics.median(line["images_per_s"] for line in metrics[len(metrics) // 2 :] if "images_per_s" in line)
    return Result(
        precision,
        budget,
        summary["micro_batch"],
        summary["recompute"],
        summary["planned_bytes"],
        summary["peak_gpu_bytes" if on_gpu else "peak_pss_bytes"],
        speed,
    )


def image_size(shards: Path) -> int:
    """Pixels of a set's images."""
    return int(json.loads((shards / "shardset.json").read_bytes())["image_size"])


def utilisation(kind: str, size: int, result: Result) -> float | None:
    """Operations a second of the model over the GPU's peak; None where that is not known, or not of 16 bits."""
    if not torch.cuda.is_available() or result.precision == "no":
        return None
    name = torch.cuda.get_device_name()
    peak = next((peak for gpu, peak in PEAK_TFLOPS.items() if gpu in name.replace("-", " ").split()), None)
    if peak is None:
        return None
    model = FaceVAE(Architecture.of(kind, size, None, None, None)).to("meta")
    images, noise = torch.empty(1, 3, size, size, device="meta"), torch.empty(1, model.latent, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images, noise)
    return 3 * counter.get_total_flops() * result.images_per_s / (peak * 1e12)


if __name__ == "__main__":
    sys.exit(main())

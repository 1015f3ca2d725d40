"""How long the training loop stands still for a save, and what the copy costs in memory.

    python benchmarks/save_pause.py              (about three minutes on two quiet cores)
    nice -n -5 python benchmarks/save_pause.py   (where other programs run)

Two runs of the trainer, each in a process of its own, on drawn faces or on `--shards`: one saves whenever the save
before it is on disk, the other one at its end alone. Printed are the pauses that the first one's ledger has, beside the
time of a bare copy of as many bytes, and the peak memory of both. A small batch is the hard case: the copy is taken
while the next gradients are computed, and has less time for it.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.loops import drawn_faces, run_trainer  # noqa: E402
from pipeline.errors import LeanstreamError, report_error  # noqa: E402
from pipeline.machine import show_bytes  # noqa: E402
from train.checkpoint import generations  # noqa: E402
from train.runfolder import RunFolder  # noqa: E402

COPIES = 10
DRAWN = 256
NEVER_MINUTES = 1e6
ALWAYS_MINUTES = 1e-9


def main() -> int:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="shard set to train on (default: drawn faces)")
    parser.add_argument("--kind", default="residual", help="model")
    parser.add_argument("--size", type=int, default=128, help="pixels of the drawn faces")
    parser.add_argument("--batch", type=int, default=16, help="images an update")
    parser.add_argument("--updates", type=int, default=40, help="length of a run")
    parser.add_argument("--work", type=Path, default=Path("runs/save-benchmark"), help="folder for sets and runs")
    parser.add_argument("--json", type=Path, help="write every figure into this file")
    options = parser.parse_args()
    try:
        return run(options)
    except (LeanstreamError, OSError) as error:
        return report_error(error, "running the benchmark")


def run(options: argparse.Namespace) -> int:
    """The whole benchmark."""
    shards = options.shards or drawn_faces(options.work, options.size, DRAWN)
    saving = train(options, shards, "saving", ALWAYS_MINUTES)
    still = train(options, shards, "still", NEVER_MINUTES)
    size = sum(path.stat().st_size for path in generations(saving.checkpoints)[0].glob("*.safetensors"))
    saves = [record for record in saving.read_ledger() if record["event"] == "saved"]
    pauses = [record["pause_s"] for record in saves]
    figures: dict[str, Any] = {
        "saves": len(pauses),
        "bytes": size,
        "pause_median_s": statistics.median(pauses),
        "pause_max_s": max(pauses),
        "write_median_s": statistics.median(record["write_s"] for record in saves),
        "copy_median_s": copying_s(size),
        "peak_pss_saving_bytes": peak_of(saving),
        "peak_pss_still_bytes": peak_of(still),
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    table = Table("figure", "value", title=f"{options.kind}, {options.size} px, batch {options.batch}, on {device}")
    for name, value in figures.items():
        table.add_row(name.removesuffix("_s").removesuffix("_bytes").replace("_", " "), show(name, value))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0


def show(name: str, value: float) -> str:
    """A figure with its unit."""
    if name.endswith("_s"):
        return f"{1000 * value:,.1f} ms"
    return show_bytes(value) if "bytes" in name else f"{value:,}"


def train(options: argparse.Namespace, shards: Path, name: str, save_every_minutes: float) -> RunFolder:
    """Train for a few updates in a process of its own."""
    folder = RunFolder(options.work / f"{options.kind}-{options.size}-{name}")
    arguments: dict[str, Any] = {
        "data.shards": shards,
        "model.kind": options.kind,
        "train.batch_size": options.batch,
        "train.total_images": options.updates * options.batch,
        "train.prior_images": 16,
        "checkpoint.save_every_minutes": save_every_minutes,
        "run.fresh": True,
    }
    run_trainer(folder, arguments)
    return folder


def copying_s(size: int) -> float:
    """The median time of a copy of `size` bytes, by one thread, into memory that was written before."""
    torch.set_num_threads(1)
    source, target = (torch.ones(size, dtype=torch.uint8) for _ in range(2))
    times = []
    for _ in range(COPIES):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def peak_of(folder: RunFolder) -> int:
    """Bytes of PSS, the run's peak."""
    return int(json.loads(folder.summary_file.read_bytes())["peak_pss_bytes"])


if __name__ == "__main__":
    sys.exit(main())

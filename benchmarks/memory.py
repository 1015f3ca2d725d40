"""Peak memory of training on 10,000 and on 100,000 images, at the same number of updates.

    make memory      (about eight minutes on two cores; or: python benchmarks/memory.py --photos FOLDER)

Every image is a file of its own: the photos are repeated under other names. Memory is the PSS of the whole process
tree, sampled every 50 ms; each figure is the median of three runs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.machine import PeakMemory  # noqa: E402


def main() -> None:
    """Make the sets, train on each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos to repeat (default: drawn faces)")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000], help="images in each set")
    parser.add_argument("--updates", type=int, default=150, help="updates of each run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each set")
    parser.add_argument("--work", type=Path, help="folder for the sets (default: a temporary one)")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        photos = options.photos or draw(work / "drawn")
        sets = [make_set(work, photos, count) for count in options.counts]
        peaks: dict[Path, list[float]] = {shards: [] for shards in sets}
        for repeat in range(options.repeats):
            for shards in sets:
                peaks[shards].append(train(shards, work / f"run-{shards.name}-{repeat}", options.updates))
    medians = [statistics.median(values) for values in peaks.values()]
    table = Table("images", "peak PSS of each run, MiB", "median, MiB", title="Training, whole process tree")
    for count, values, median in zip(options.counts, peaks.values(), medians, strict=True):
        table.add_row(f"{count:,}", ", ".join(f"{value:.1f}" for value in values), f"{median:.1f}")
    Console().print(table)
    print(f"difference between the last and the first: {medians[-1] - medians[0]:+.1f} MiB")


def draw(folder: Path) -> Path:
    """A few hundred drawn faces to repeat."""
    subprocess.run([BIN / "shard_tool", "draw-faces", folder, "--count=500", "--size=160"], check=True)
    return folder


def make_set(work: Path, photos: Path, count: int) -> Path:
    """A shard set of `count` distinct files, copies of the photos under names of their own."""
    shards = work / f"shards-{count}"
    raw = work / f"raw-{count}"
    originals = sorted(path for path in photos.rglob("*.jpg") if path.stat().st_size)
    for number in range(count):
        folder = raw / f"{number // 1000:04d}"
        if number % 1000 == 0:
            folder.mkdir(parents=True, exist_ok=True)
        copy = folder / f"{number:07d}.jpg"
        if not copy.exists():
            copy.write_bytes(originals[number % len(originals)].read_bytes())
    subprocess.run(
        [BIN / "shard_tool", "make-shards", raw, "--size=64", f"--out={shards}", "--val-fraction=0.002", "--quiet"],
        check=True,
    )
    return shards


def train(shards: Path, run_dir: Path, updates: int) -> float:
    """Peak PSS in MiB of a whole training, launcher included."""
    command = [BIN / "accelerate", "launch", "--quiet", ROOT / "train/run.py", ROOT / "configs/default.toml"]
    command += [f"--data.shards={shards}", f"--run.dir={run_dir}", f"--train.total-images={64 * updates}"]
    command += ["--train.prior-images=500"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with PeakMemory(0.05, process.pid) as memory:
        code = process.wait()
    if code:
        sys.exit(code)
    print(f"{shards.name}: {memory.peak / 2**20:.1f} MiB", flush=True)
    return memory.peak / 2**20


if __name__ == "__main__":
    main()

"""Peak memory of make-shards on a zip of 10,000 and of 202,599 photos, in the layout of Kaggle's CelebA.

    python benchmarks/sources.py      (about five minutes on two cores; --photos FOLDER repeats photos of your own)

Attributes and partition lie in the zip, as they do in Kaggle's. Memory is the PSS of the whole process tree, sampled
every 20 ms.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.machine import PeakMemory  # noqa: E402
from shard_tool.sources.columns import CELEBA_ATTRIBUTES  # noqa: E402


def main() -> None:
    """Make the zips, build a set of each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos to repeat (default: grey squares of 178x218)")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 202_599], help="members of each zip")
    parser.add_argument("--repeats", type=int, default=3, help="builds of each zip")
    parser.add_argument("--size", type=int, default=64, help="pixels of the samples")
    parser.add_argument("--work", type=Path, help="folder for the zips (default: a temporary one)")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        zips = [make_zip(work, options.photos, count) for count in options.counts]
        peaks = [[build(path, Path(temporary), options.size) for _ in range(options.repeats)] for path in zips]
    medians = [statistics.median(values) for values in peaks]
    table = Table("members", "peak PSS of each build, MiB", "median, MiB", title="make-shards of one zip, 2 threads")
    for count, values, median in zip(options.counts, peaks, medians, strict=True):
        table.add_row(f"{count:,}", ", ".join(f"{value:.1f}" for value in values), f"{median:.1f}")
    Console().print(table)
    print(f"difference between the last and the first: {medians[-1] - medians[0]:+.1f} MiB")


def make_zip(work: Path, photos: Path | None, count: int) -> Path:
    """A zip of `count` photos with tables about them."""
    path = work / f"celeba-{count}.zip"
    if path.exists():
        return path
    originals = [one.read_bytes() for one in sorted(photos.rglob("*.jpg"))[:500]] if photos else [grey_square()]
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    columns = sorted(CELEBA_ATTRIBUTES)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in enumerate(names):
            archive.writestr(f"img_align_celeba/img_align_celeba/{name}", originals[number % len(originals)])
        rows = (
            ",".join([name, *(["1", "-1"][number >> bit & 1] for bit in range(40))])
            for number, name in enumerate(names)
        )
        archive.writestr("list_attr_celeba.csv", "\n".join([",".join(["image_id", *columns]), *rows]))
        rows = (f"{name},{max(0, number % 10 - 7)}" for number, name in enumerate(names))
        archive.writestr("list_eval_partition.csv", "\n".join(["image_id,partition", *rows]))
    return path


def grey_square() -> bytes:
    """A JPEG of CelebA's size that is quick to decode."""
    buffer = io.BytesIO()
    Image.new("RGB", (178, 218), (120, 110, 100)).save(buffer, "JPEG")
    return buffer.getvalue()


def build(path: Path, work: Path, size: int) -> float:
    """Peak PSS in MiB of one build."""
    with tempfile.TemporaryDirectory(dir=work) as out:
        command = [
            BIN / "shard_tool",
            "make-shards",
            path,
            f"--size={size}",
            f"--out={out}/set",
            "--threads=2",
            "--quiet",
        ]
        process = subprocess.Popen(command)
        with PeakMemory(0.02, process.pid) as memory:
            code = process.wait()
    if code:
        sys.exit(code)
    print(f"{path.name}: {memory.peak / 2**20:.1f} MiB", flush=True)
    return memory.peak / 2**20


if __name__ == "__main__":
    main()

"""Peak memory of streaming over what `import torch` alone costs, from a thousand to a million samples.

    python benchmarks/loader_memory.py --photos FOLDER      (about ten minutes on two cores, 7 GB of disk)

Every sample is a file of its own: the photos' JPEGs are repeated with a comment that differs. Memory is the PSS of the
process, mapped pages included, sampled every 20 ms; what is over the import is the median of the repeats' differences.
The PSS of torch's libraries falls while other processes use them too; where some start or end meanwhile, the resident
set size beside it, the kernel's own peak, is the figure to look at.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.loaders import images  # noqa: E402
from pipeline.errors import EXIT_FAULT, LeanstreamError, report_error  # noqa: E402
from pipeline.machine import PeakMemory, usable_cores  # noqa: E402
from shard_tool.image.photo import Recipe, make_sample  # noqa: E402

INTERVAL_S = 0.02
LIMIT_MIB = 60.0
JOB = tuple[int, int]
"""Samples and passes; (0, 0) only imports torch."""
MOST_PHOTOS = 10_000
"""Whose JPEGs are held while a set is made."""


@dataclass(frozen=True)
class Peak:
    """The most memory that a process had, in MiB."""

    pss: float
    rss: float


def main() -> int:
    """Make the sets, stream each, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEG photos (default: drawn faces)")
    parser.add_argument("--work", type=Path, default=Path("runs/loader-benchmark"), help="folder for the sets")
    parser.add_argument("--size", type=int, default=64, help="pixels of the images")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[1_000, 100_000, 1_000_000], help="samples of the sets"
    )
    parser.add_argument("--long-count", type=int, default=100_000, help="the set that is streamed --long-passes times")
    parser.add_argument("--long-passes", type=int, default=10, help="0: none")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch")
    parser.add_argument("--threads", type=int, default=2, help="decode threads")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--prepare", action="store_true", help="only make the sets")
    parser.add_argument("--delete", action="store_true", help="delete the sets afterwards")
    parser.add_argument("--json", type=Path, help="write every figure into this file")
    options = parser.parse_args()
    try:
        return run(options)
    except (LeanstreamError, OSError) as error:
        return report_error(error, "running the benchmark")


def run(options: argparse.Namespace) -> int:
    """The whole benchmark."""
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    jobs = [(count, 1) for count in options.counts]
    if options.long_passes:
        jobs.append((options.long_count, options.long_passes))
    sets = make_sets(options.photos, work, options.size, sorted({count for count, _ in jobs}))
    if options.prepare:
        return 0
    peaks: dict[JOB, list[Peak]] = {job: [] for job in ((0, 0), *jobs)}
    for repeat in range(options.repeats):
        for (count, passes), found in peaks.items():
            arguments = [str(sets[count]), str(passes), str(options.batch), str(options.threads)] if count else []
            found.append(measure(arguments, count * passes))
            what = f"{count:,} samples, {passes} passes" if count else "import torch"
            print(f"repeat {repeat + 1}: {what}: {found[-1].pss:.1f} MiB", flush=True)
    show(options.size, peaks)
    if options.json:
        figures = [
            {"samples": count, "passes": passes, "peaks_mib": [asdict(peak) for peak in found]}
            for (count, passes), found in peaks.items()
        ]
        options.json.write_text(json.dumps({"size": options.size, "figures": figures}, indent=1) + "\n")
    if options.delete:
        for folder in sets.values():
            shutil.rmtree(folder)
    return 0


def show(size: int, peaks: dict[JOB, list[Peak]]) -> None:
    """Print the table."""
    alone = peaks[0, 0]
    title = f"Streaming JPEGs of {size} px, MiB (import torch alone: {statistics.median(p.pss for p in alone):.1f} PSS)"
    table = Table(title=title)
    columns = ("samples", "passes", "peak PSS, each repeat", "PSS over import", f"at most {LIMIT_MIB:.0f}")
    for column in (*columns, "RSS over import"):
        table.add_column(column, justify="right")
    for (count, passes), found in peaks.items():
        if not count:
            continue
        pss = statistics.median(here.pss - base.pss for here, base in zip(found, alone, strict=True))
        rss = statistics.median(here.rss - base.rss for here, base in zip(found, alone, strict=True))
        each = ", ".join(f"{peak.pss:.1f}" for peak in found)
        word = "[green]pass[/green]" if pss <= LIMIT_MIB else "[red]miss[/red]"
        table.add_row(f"{count:,}", str(passes), each, f"{pss:.1f}", word, f"{rss:.1f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def measure(arguments: Sequence[str], expected: int) -> Peak:
    """The peak of a process that imports torch and then streams as `arguments` say, or only imports it."""
    command = [sys.executable, "-m", "benchmarks.loaders.stream", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    with PeakMemory(INTERVAL_S, process.pid) as memory:
        output, _ = process.communicate()
    if process.returncode:
        sys.exit(EXIT_FAULT)  # It has said why.
    seen, rss_kib = map(int, output.split())
    assert seen >= expected, "an endless stream ends where it is told to"
    return Peak(memory.peak / 2**20, rss_kib / 1024)


def make_sets(photos: Path | None, work: Path, size: int, counts: Sequence[int]) -> dict[int, Path]:
    """A shard set of so many distinct JPEG files for each count, kept in `work`."""
    sets = {count: work / f"memory-{size}px-{count}" for count in counts}
    missing = {count: folder for count, folder in sets.items() if not folder.exists()}
    if not missing:
        return sets
    paths = images.list_photos(photos or images.draw_photos(work / "drawn"))[:MOST_PHOTOS]
    recipe = Recipe(size, "center", "jpeg", images.QUALITY)
    with ThreadPoolExecutor(usable_cores()) as executor:
        originals = list(executor.map(lambda path: make_sample(path.read_bytes(), recipe), paths))
    for count, folder in missing.items():
        print(f"making {count:,} samples in {folder}", flush=True)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with images.SetWriter(partial, size, "jpeg") as writer:
            for number in range(count):
                writer.add(with_comment(originals[number % len(originals)], number), f"{number:08d}.jpg")
        partial.rename(folder)
    return sets


def with_comment(jpeg: bytes, number: int) -> bytes:
    """The same picture in another file: a comment segment after the start marker."""
    text = b"%08d" % number
    return b"".join((jpeg[:2], b"\xff\xfe", (len(text) + 2).to_bytes(2, "big"), text, jpeg[2:]))


if __name__ == "__main__":
    sys.exit(main())

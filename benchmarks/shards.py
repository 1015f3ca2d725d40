"""How fast photos become shards, and in how much memory, beside what one writes first.

    python benchmarks/shards.py --photos FOLDER      (about six minutes on two quiet cores; --quick: one, and rough)

FOLDER may hold `celeba/` (178x218 photos) and `gan512/`, `ccby_large/` (portraits, which are brought to 600x600); what
it lacks is drawn. On two cores, in processes of their own, one after the other and in turns:

    naive        Pillow opens, crops, resizes and encodes; webdataset.ShardWriter writes; one process
    bare         decode, resize and encode with the libraries of make-shards and as many threads, and keep nothing
    make-shards  the command: listing, plan, samples, json, hashes, tars, indexes, sync

All crop the centre, resize with Lanczos, and make JPEGs of quality 95, 4:4:4. Seconds are those of the work, without
the imports; rates are medians. Memory is the PSS of the whole process tree, sampled every 20 ms. Fidelity is the PSNR
between samples made by the scaled decode and by `--exact`; photos that are too small for a scaled decode are left out.
"""

import argparse
import io
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CORES = 2
SHARD_SAMPLES = 4096
QUALITY = 95
MEMORY_PHOTOS = 10_000
MEMORY_TARGET_MIB = 150
FIDELITY_TARGET_DB = 50
BARE_TARGET = 0.9


@dataclass(frozen=True)
class Case:
    """Photos of one kind, brought to one size."""

    photos: str
    size: int
    target: float
    """How many times the rate of the naive program must be reached."""


CASES = (Case("600x600", 64, 7.5), Case("600x600", 128, 4.5), Case("178x218", 64, 2.0))


def main() -> None:
    """Prepare the photos, run everything in turns, print three tables; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos (default: drawn faces)")
    parser.add_argument("--count", type=int, default=6000, help="photos of each kind")
    parser.add_argument("--naive-count", type=int, default=600, help="of these, photos for the naive program")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each")
    parser.add_argument("--work", type=Path, help="folder for photos and shards (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="few photos and runs: whether it works, and roughly how")
    parser.add_argument("--run", nargs=4, metavar="WORD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        kind, folder, size, out = options.run
        print(json.dumps(RUNS[kind](Path(folder), int(size), Path(out))))
        return
    if options.quick:
        options.count, options.naive_count, options.repeats = 600, 100, 1
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        folders = prepare(options.photos, work, options.count, options.naive_count)
        missed = speed(folders, work, options.repeats)
        missed |= memory(folders["600x600"], work, 1000 if options.quick else MEMORY_PHOTOS)
        missed |= fidelity(options.photos or work / "drawn", 20 if options.quick else 400)
    sys.exit(int(missed and not options.quick))


def speed(folders: dict[str, Path], work: Path, repeats: int) -> bool:
    """Measure all cases, print the table; whether a target was missed."""
    rates: dict[tuple[Case, str], list[float]] = {(case, kind): [] for case in CASES for kind in RUNS}
    for repeat in range(repeats):
        for case in CASES:
            kinds = list(RUNS)
            for kind in kinds[repeat % 3 :] + kinds[: repeat % 3]:
                folder = folders[case.photos + (" naive" if kind == "naive" else "")]
                rates[case, kind].append(measure(kind, folder, case.size, work / "out"))
                print(f"{case.photos} to {case.size}, {kind}: {rates[case, kind][-1]:,.0f} photos/s", flush=True)
    rows, missed = [], False
    for case in CASES:
        naive, bare, ours = (statistics.median(rates[case, kind]) for kind in RUNS)
        good, near = ours / naive >= case.target, ours / bare >= BARE_TARGET
        missed |= not (good and near)
        verdicts = (
            verdict(f"{ours / naive:.1f}x", f"{case.target}x", good),
            verdict(f"{ours / bare:.0%}", "90%", near),
        )
        rows.append((f"{case.photos} to {case.size}", *(f"{rate:,.0f}" for rate in (naive, bare, ours)), *verdicts))
    columns = ("photos", "naive, photos/s", "bare", "make-shards", "against naive", "against bare")
    show(f"Making shards, {CORES} cores, medians of {repeats}", columns, rows)
    return missed


def memory(folder: Path, work: Path, count: int) -> bool:
    """Measure the peak of a build of `count` photos, print it; whether it is too high."""
    from pipeline.machine import PeakMemory

    raw = repeat_photos(folder, work / f"raw-{count}", count)
    rows, missed = [], False
    for size in (64, 128):
        shutil.rmtree(work / "out", ignore_errors=True)
        command = [sys.executable, "-m", "shard_tool", *make_shards_options(raw, size, work / "out")]
        process = subprocess.Popen(command, cwd=ROOT)
        with PeakMemory(0.02, process.pid) as peak:
            code = process.wait()
        if code:
            sys.exit(code)
        mebibytes = peak.peak / 2**20
        missed |= mebibytes > MEMORY_TARGET_MIB
        good = verdict(f"{mebibytes:.1f} MiB", f"{MEMORY_TARGET_MIB} MiB", mebibytes <= MEMORY_TARGET_MIB)
        rows.append((f"{count:,} of 600x600 to {size}", good))
    show(f"Peak PSS of make-shards, {CORES} threads", ("photos", "whole process tree"), rows)
    return missed


def fidelity(photos: Path, most: int) -> bool:
    """Compare samples of up to `most` photos of each folder, print the table; whether a mean is too low."""
    rows, missed = [], False
    folders = [path for path in sorted(photos.iterdir()) if path.is_dir()] or [photos]
    for folder in folders:
        paths = sorted(path for path in folder.rglob("*.jp*g") if path.stat().st_size)
        for size in (64, 128):
            values = [value for path in paths[:: -(-len(paths) // most) or 1] if (value := psnr(path, size))]
            if values:
                mean = statistics.mean(values)
                missed |= mean < FIDELITY_TARGET_DB
                good = verdict(f"{mean:.1f} dB", f"{FIDELITY_TARGET_DB} dB", mean >= FIDELITY_TARGET_DB)
                rows.append((folder.name, str(size), str(len(values)), good, f"{min(values):.1f} dB"))
    show("The scaled decode beside the full one", ("folder", "size", "photos", "mean PSNR", "lowest"), rows)
    return missed


def psnr(path: Path, size: int) -> float | None:
    """In dB; None where the scaled decode is the full one, or the photo is rejected."""
    import numpy as np

    from shard_tool.image.photo import PhotoError, Recipe, quiet_pillow, upright_square

    data = path.read_bytes()
    try:
        with quiet_pillow():
            scaled, full = (
                np.asarray(upright_square(data, Recipe(size, "center", "png", QUALITY, exact=exact))).astype(float)
                for exact in (False, True)
            )
    except PhotoError:
        return None
    error = float(np.mean((scaled - full) ** 2))
    return 10 * math.log10(255**2 / error) if error else None


def verdict(value: str, target: str, good: bool) -> str:
    """`8.1x (target 7.5x: pass)`."""
    return f"{value} (target {target}: {'pass' if good else 'MISS'})"


def show(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def measure(kind: str, folder: Path, size: int, out: Path) -> float:
    """Photos per second of one run in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--run", kind, folder, str(size), out]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    count, seconds = json.loads(done.stdout)
    return float(count / seconds)


def prepare(photos: Path | None, work: Path, count: int, naive_count: int) -> dict[str, Path]:
    """Folders of photos of both sizes, and smaller ones for the naive program."""
    folders = {}
    for name, size in (("600x600", (600, 600)), ("178x218", (178, 218))):
        sources = ("celeba",) if name == "178x218" else ("gan512", "ccby_large")
        originals = [path for source in sources for path in sorted((photos or work).glob(f"{source}/**/*.jpg"))]
        originals = [path for path in originals if path.stat().st_size] or drawn(work, min(count, 400))
        for label, number in ((name, count), (f"{name} naive", naive_count)):
            folders[label] = work / label.replace(" ", "-")
            fill(folders[label], originals, size, number)
    return folders


def drawn(work: Path, count: int) -> list[Path]:
    """Drawn faces of 600x600."""
    folder = work / "drawn"
    command = [sys.executable, "-m", "shard_tool", "draw-faces", folder, f"--count={count}", "--size=600", "--quiet"]
    subprocess.run(command, cwd=ROOT, check=True)
    return sorted(folder.glob("*.jpg"))


def fill(folder: Path, originals: list[Path], size: tuple[int, int], count: int) -> None:
    """`count` different photos of `size`: all originals, then all mirrored, then both again brighter."""
    from PIL import Image, ImageOps

    folder.mkdir(parents=True, exist_ok=True)
    step = max(1, len(originals) // count)
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if path.exists():
            continue
        turn, which = divmod(number * step, len(originals))
        with Image.open(originals[which]) as original:
            if original.size == size and turn == 0:
                shutil.copyfile(originals[which], path)
                continue
            image = ImageOps.fit(original.convert("RGB"), size, Image.Resampling.LANCZOS)
        if turn % 2:
            image = ImageOps.mirror(image)
        image = image.point([min(255, level + 3 * (turn // 2)) for level in range(256)] * 3)
        image.save(path, quality=92)


def repeat_photos(folder: Path, raw: Path, count: int) -> Path:
    """`count` names for the photos of `folder`, in folders of 1,000."""
    originals = sorted(folder.glob("*.jpg"))
    for number in range(count):
        path = raw / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.link(originals[number % len(originals)], path)
    return raw


def make_shards_options(folder: Path, size: int, out: Path) -> list[str]:
    """The command line of make-shards."""
    fixed = ["--quiet", f"--threads={CORES}", f"--quality={QUALITY}", f"--shard-samples={SHARD_SAMPLES}"]
    return ["make-shards", str(folder), f"--size={size}", f"--out={out}", *fixed]


def run_naive(folder: Path, size: int, out: Path) -> tuple[int, float]:
    """What one writes first. Returns photos and seconds."""
    import webdataset
    from PIL import Image

    out.mkdir(parents=True)
    Image.init()
    began = time.perf_counter()
    paths = sorted(folder.rglob("*.jpg"))
    with webdataset.ShardWriter(str(out / "train-%06d.tar"), maxcount=SHARD_SAMPLES, verbose=0) as writer:
        for path in paths:
            image = Image.open(path).convert("RGB")
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
            image = image.resize((size, size), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
            writer.write({"__key__": path.stem, "jpg": buffer.getvalue(), "json": {"source": path.name}})
    return len(paths), time.perf_counter() - began


def run_bare(folder: Path, size: int, out: Path) -> tuple[int, float]:
    """Decode, resize and encode, and nothing else. Returns photos and seconds."""
    import simplejpeg

    from shard_tool.image import jpeg
    from shard_tool.image.photo import MARGINS
    from shard_tool.image.recipe import Recipe, frame_of

    recipe = Recipe(size, "center", "jpeg", QUALITY)

    def work(paths: list[Path]) -> None:
        for path in paths:
            data = path.read_bytes()
            header = jpeg.read_header(data)
            assert header is not None
            frame = frame_of(header.width, header.height, recipe)
            scale = next((scale for scale, margin in MARGINS.items() if frame.shrink >= margin * scale), 1)
            pixels = jpeg.decode_and_resize(data, header, scale, frame)
            simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", "444")

    began = time.perf_counter()
    paths = sorted(folder.rglob("*.jpg"))
    tasks = [paths[first : first + 8] for first in range(0, len(paths), 8)]
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(work, tasks))
    return len(paths), time.perf_counter() - began


def run_make_shards(folder: Path, size: int, out: Path) -> tuple[int, float]:
    """The command. Returns photos and seconds."""
    from shard_tool.cli import main as shard_tool

    # Whatever is loaded when it is first used is loaded by then.
    assert shard_tool([*make_shards_options(folder, size, out), "--limit=8"]) == 0
    shutil.rmtree(out)
    began = time.perf_counter()
    code = shard_tool(make_shards_options(folder, size, out))
    seconds = time.perf_counter() - began
    assert code == 0
    return len(list(folder.rglob("*.jpg"))), seconds


RUNS: dict[str, Callable[[Path, int, Path], tuple[int, float]]] = {
    "naive": run_naive,
    "bare": run_bare,
    "make-shards": run_make_shards,
}


if __name__ == "__main__":
    main()

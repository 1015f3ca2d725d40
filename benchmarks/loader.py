"""This project's loader against five others and against the decoder alone, on the same bytes, in one run.

    python benchmarks/loader.py --photos FOLDER      (about ten minutes on two cores; the first run installs for longer)

Every loader gets an environment, a process and the same two cores. The rounds are interleaved (A B C A B C), figures
are medians, and each loader's files are read once before it starts, so that all find them in the page cache. Before
anything is measured, each loader's images are compared with the originals. `--work` keeps environments, images and the
other loaders' formats for the next run.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.loaders import environments, images, report  # noqa: E402
from benchmarks.loaders.environments import LoaderMissing  # noqa: E402
from benchmarks.loaders.measure import Task, write_task  # noqa: E402
from benchmarks.loaders.variants import ENCODINGS, LOADERS, Variant, chosen  # noqa: E402
from pipeline.errors import LeanstreamError, UserError, report_error  # noqa: E402
from pipeline.machine import PeakMemory  # noqa: E402

PSS_INTERVAL_S = 0.2
CONVERT_TIMEOUT_S = 1200
RUN_TIMEOUT_S = 240


@dataclass(frozen=True)
class Bench:
    """The folders and interpreters of one run."""

    work: Path
    sets: Path
    """The images, and beside them the other loaders' formats."""
    task: Task
    """What all tasks have in common."""
    torch: str
    installed: bool

    def source(self, variant: Variant) -> Path:
        """The shard set of a variant."""
        return self.sets / variant.encoding

    def data(self, variant: Variant) -> Path:
        """The loader's own format of it."""
        return self.sets / f"{variant.loader.name}-{variant.encoding}"

    def python(self, variant: Variant) -> Path:
        """The interpreter of a variant."""
        if self.installed:
            return Path(sys.executable)
        return environments.interpreter(variant.loader, self.work, self.torch)


def main() -> int:
    """Prepare, measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEG photos (default: drawn faces)")
    parser.add_argument("--work", type=Path, default=Path("runs/loader-benchmark"), help="folder that is kept")
    parser.add_argument("--size", type=int, default=64, help="pixels of the images")
    parser.add_argument("--images", type=int, help="how many (default: 50,000; 2,000 with --quick)")
    parser.add_argument("--no-json", action="store_true", help="tars of images alone, the leanest that tars can be")
    parser.add_argument("--only", default="", help=f"some of {','.join(loader.name for loader in LOADERS)}")
    parser.add_argument("--encodings", default=",".join(ENCODINGS), help="jpeg, raw, or both")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch")
    parser.add_argument("--workers", type=int, default=2, help="threads or worker processes of each loader")
    parser.add_argument("--cores", type=int, default=2, help="cores that each loader may use")
    parser.add_argument("--rounds", type=int, help="how often each is measured (default: 3; 1 with --quick)")
    parser.add_argument("--seconds", type=float, help="of each measurement (default: 4; 0.5 with --quick)")
    parser.add_argument("--torch", default=environments.default_torch(), help="what pip installs as torch")
    parser.add_argument("--installed", action="store_true", help="use what this Python has, install nothing")
    parser.add_argument("--prepare", action="store_true", help="only install, make the data and check it")
    parser.add_argument("--quick", action="store_true", help="a smoke run, no figures to quote")
    parser.add_argument("--json", type=Path, help="write every figure into this file")
    options = parser.parse_args()
    try:
        return run(options)
    except (LeanstreamError, OSError) as error:
        return report_error(error, "running the benchmark")


def run(options: argparse.Namespace) -> int:
    """The whole benchmark."""
    variants = chosen(_names(options.only, [loader.name for loader in LOADERS]), _names(options.encodings, ENCODINGS))
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    count = options.images or (2_000 if options.quick else 50_000)
    photos = (options.photos or images.draw_photos(work / "drawn")).resolve()
    sets = work / f"{photos.name}-{options.size}px-{count}{'-no-json' if options.no_json else ''}"
    print(f"{count:,} images of {options.size} px in {sets}", flush=True)
    if not sets.exists():
        images.make_sets(images.list_photos(photos), sets, count, options.size, without_json=options.no_json)
    seconds = options.seconds or (0.5 if options.quick else 4.0)
    task = Task("", "", "", "", count, options.size, options.batch, options.workers, options.cores, seconds)
    bench = Bench(work, sets, task, options.torch, options.installed)
    missing: dict[str, str] = {}
    for variant in variants:
        try:
            prepare(bench, variant)
        except LoaderMissing as reason:
            missing[variant.name] = str(reason)
            print(f"{variant.name} cannot be measured: {reason}", flush=True)
    if options.prepare:
        return 0
    rounds = measure_all(bench, variants, options.rounds or (1 if options.quick else 3), missing)
    title = f"{count:,} images of {options.size} px, batch {options.batch}, {options.workers} threads or workers"
    console = Console(width=None if sys.stdout.isatty() else 140)
    report.show(console, title, variants, rounds, missing)
    if options.json:
        options.json.write_text(json.dumps(_record(options, count, rounds, missing), indent=1) + "\n")
    return 0


def measure_all(
    bench: Bench, variants: Sequence[Variant], rounds: int, missing: dict[str, str]
) -> list[dict[str, dict[str, float]]]:
    """Every variant once a round; one that fails joins `missing`, and its figures of earlier rounds are dropped."""
    found: list[dict[str, dict[str, float]]] = []
    for number in range(rounds):
        found.append({})
        for variant in variants:
            if variant.name in missing:
                continue
            try:
                figures = measure(bench, variant)
            except LoaderMissing as reason:
                missing[variant.name] = str(reason)
                print(f"{variant.name} failed: {reason}", flush=True)
                continue
            found[-1][variant.name] = figures
            print(f"round {number + 1}: {variant.name}: {figures['images_per_s']:,.0f} img/s", flush=True)
    return [{name: figures for name, figures in each.items() if name not in missing} for each in found]


def prepare(bench: Bench, variant: Variant) -> None:
    """Install the loader, convert its data and check what it delivers, each once; raises `LoaderMissing`."""
    bench.python(variant)
    module = ROOT / "benchmarks" / "loaders" / f"{variant.loader.module}.py"
    data = bench.data(variant)
    if "\ndef convert(" in module.read_text() and not data.exists():
        print(f"converting for {variant.loader.name}: {data}", flush=True)
        partial = data.with_name(f".{data.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        perform(replace(bench.task, action="convert", data=str(partial)), bench, variant, CONVERT_TIMEOUT_S)
        partial.rename(data)
    stamp = bench.sets / f"{variant.name}.checked"
    if variant.loader.name == "limit" or (variant.loader.name != "ours" and stamp.exists()):
        return
    result, _ = perform(replace(bench.task, action="check"), bench, variant, CONVERT_TIMEOUT_S)
    _compare(result, bench, variant)
    stamp.touch()


def _compare(result: Mapping[str, Any], bench: Bench, variant: Variant) -> None:
    """Raise `LoaderMissing` where the images that a loader delivered are others than the stored ones."""
    size = bench.task.size
    if result["shapes"] != [f"torch.uint8 3x{size}x{size}"]:
        raise LoaderMissing(f"its batches must be uint8 [B, 3, {size}, {size}]; got {result['shapes']}")
    delivered = np.array(result["crc32"], np.uint32)
    foreign, how = len(delivered), "all as stored"
    for reference in sorted(bench.sets.glob(f"{variant.encoding}*-crc32.npy")):
        others = int((~np.isin(delivered, np.load(reference))).sum())
        if others < foreign:
            foreign = others
            how = "all with the fast, approximate DCT" if "fast" in reference.name else "all as stored"
    if foreign:
        raise LoaderMissing(f"its images must be the stored ones; got {foreign:,} of {len(delivered):,} that are not")
    distinct = len(np.unique(delivered))
    print(f"{variant.name}: {len(delivered):,} images checked, {distinct:,} distinct, {how}", flush=True)


def measure(bench: Bench, variant: Variant) -> dict[str, float]:
    """One run of one variant, its files in the page cache; raises `LoaderMissing`."""
    for folder in (bench.source(variant), bench.data(variant)):
        for path in folder.rglob("*"):
            if path.is_file():
                with open(path, "rb", buffering=0) as file:
                    while file.read(1 << 22):
                        pass
    result, peak = perform(replace(bench.task, action="run"), bench, variant, RUN_TIMEOUT_S)
    if variant.loader.name == "limit":
        return result  # Its memory is that of the samples, which it holds.
    return {**result, "peak_pss_mib": peak / 2**20}


def perform(task: Task, bench: Bench, variant: Variant, timeout_s: float) -> tuple[dict[str, Any], int]:
    """Run a task in the variant's interpreter; its result and the peak PSS of its process tree in bytes.

    Raises `LoaderMissing` with the last line that it printed where it fails.
    """
    task = replace(
        task, variant=variant.name, source=str(bench.source(variant)), data=task.data or str(bench.data(variant))
    )
    logs = bench.work / "logs"
    home = bench.work / "home"
    for folder in (logs, home):
        folder.mkdir(parents=True, exist_ok=True)
    task_file, result_file, log = (logs / f"{task.action}-{variant.name}.{kind}" for kind in ("task", "json", "txt"))
    write_task(task_file, task)
    result_file.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    if not bench.installed:
        environment["HOME"] = str(home)  # Some loaders keep caches there.
    command = [
        str(part) for part in (bench.python(variant), "-m", "benchmarks.loaders.measure", task_file, result_file)
    ]
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            with PeakMemory(PSS_INTERVAL_S, process.pid) as memory:
                code: int | str = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = f"nothing after {timeout_s:.0f} s"
        finally:
            _end(process)
    if code or not result_file.exists():
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise LoaderMissing(f"exit code {code}: {lines[-1].strip() if lines else 'it printed nothing'} (see {log})")
    return json.loads(result_file.read_text()), memory.peak


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and the workers that it left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _names(given: str, known: Sequence[str]) -> list[str]:
    names = [name for name in given.split(",") if name]
    for name in names:
        if name not in known:
            raise UserError(f"names must be of {', '.join(known)}; got '{name}'. Separate them by commas.")
    return names


def _record(
    options: argparse.Namespace, count: int, rounds: Sequence[report.Round], missing: dict[str, str]
) -> dict[str, object]:
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()},
        "settings": {"images": count, "size": options.size, "batch": options.batch, "workers": options.workers},
        "rounds": rounds,
        "missing": missing,
        "requirements": [
            {
                "text": verdict.requirement.text,
                "bound": verdict.requirement.bound,
                "median": verdict.value,
                "met": verdict.met,
            }
            for verdict in report.verdicts(rounds)
        ],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    sys.exit(main())

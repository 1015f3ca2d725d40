"""Peak memory and time of every `explore` command on 20,000 images, at 64 and at 128 px.

    python benchmarks/explore.py                          (makes faces, sets and runs; 2 GB of disk)
    python benchmarks/explore.py --runs runs/a runs/b     (runs that are there, of any size; they are copied)
    python benchmarks/explore.py --shards faces64         (sets that are there; a model is trained briefly on each)

Each command is a process of its own, and memory is the PSS of its whole process tree, sampled every 50 ms. Beside it
stands a process that only imports torch and whatever the modules of ours that the command loaded import from libraries.
The PSS of shared libraries falls while other processes use them too: measure on a quiet machine.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from explore.commands import COMMANDS  # noqa: E402
from pipeline.errors import EXIT_FAULT  # noqa: E402
from pipeline.machine import PeakMemory  # noqa: E402
from train.config import load_config  # noqa: E402

INTERVAL_S = 0.05
LIMIT_MIB = 150.0
IMAGES = 20_000
WITHOUT = {"app"}
"""It serves until it is stopped."""
ARGUMENTS: Mapping[str, Sequence[str]] = {
    "reconstruct": ("--split=train", "--count={images}"),
    "sample": ("--count={images}", "--files={folder}/faces"),
    "latents": ("--split=all", "--count={images}"),
    "attributes": ("--images={images}",),
    "score": ("--split=train", "--seeds=1"),
}
"""What makes a command look at many images; others look at as many by themselves, or at few. A second seed of a score
would take as much time again, and no more memory."""
OURS = ("pipeline", "shard_tool", "train", "explore")

EXPLORE = """
import sys
from pathlib import Path
from explore.cli import main
code = main(sys.argv[2:])
Path(sys.argv[1]).write_text("\\n".join(sys.modules))
sys.exit(code)
"""
IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    module, _, attribute = name.partition(":")
    getattr(importlib.import_module(module), attribute, None)
"""


@dataclass(frozen=True)
class Figures:
    """One process."""

    peak_mib: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """A command beside the process that only imports."""

    command: str
    size: int
    baseline_mib: float
    peak_mib: float
    seconds: float

    @property
    def over_mib(self) -> float:
        """What the command takes beyond its libraries."""
        return self.peak_mib - self.baseline_mib


def main() -> int:
    """Make what is missing, run every command, print the table; 1 where one exceeds the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in COMMANDS if name not in WITHOUT]
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="run folders (default: trained briefly)")
    parser.add_argument("--shards", type=Path, nargs="+", default=[], help="shard sets to train on (default: drawn)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="pixels of the drawn faces")
    parser.add_argument("--images", type=int, default=IMAGES, help="faces to draw and images to look at")
    parser.add_argument("--trained-images", type=int, default=6_400, help="length of the brief training")
    parser.add_argument("--commands", nargs="+", choices=known, default=known, help="which to measure")
    parser.add_argument("--work", type=Path, help="folder for sets and runs, kept (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        runs = options.runs or [
            trained(work, shards, options.trained_images)
            for shards in options.shards or drawn_sets(work, options.sizes, options.images)
        ]
        rows = [row for run in runs for row in measure_run(run, work, options.commands, options.images)]
    print(table(rows))
    return EXIT_FAULT if any(row.over_mib > LIMIT_MIB for row in rows) else 0


def table(rows: Collection[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| command | images, px | libraries alone, MiB | peak, MiB | over them, MiB | limit, MiB | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        over = f"{row.over_mib:.0f}" if row.over_mib <= LIMIT_MIB else f"**{row.over_mib:.0f}**"
        figures = f"{row.baseline_mib:.0f} | {row.peak_mib:.0f} | {over} | {LIMIT_MIB:.0f} | {row.seconds:.1f}"
        lines.append(f"| {row.command} | {row.size} | {figures} |")
    return "\n".join(lines)


def measure_run(run: Path, work: Path, commands: Collection[str], images: int) -> Iterator[Row]:
    """A row for each command, on a copy of the run folder; those that come first may leave files to those after."""
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        copy = Path(shutil.copytree(run, Path(temporary) / "run", ignore=shutil.ignore_patterns("explore", "lock")))
        size = load_config(copy / "config.toml").data.open().image_size
        for command in COMMANDS:
            if command not in commands:
                continue
            arguments = [argument.format(images=images, folder=temporary) for argument in ARGUMENTS.get(command, ())]
            modules = Path(temporary) / "modules"
            found = measure([EXPLORE, str(modules), command, "--run", str(copy), *arguments])
            alone = baseline(libraries(set(modules.read_text().split())))
            row = Row(command, size, alone, found.peak_mib, found.seconds)
            print(f"{command}, {size} px: {row.over_mib:.0f} MiB over libraries, {row.seconds:.0f} s", flush=True)
            yield row


def measure(program: Sequence[str]) -> Figures:
    """Run a Python program with its arguments in a process of its own; what it prints goes to our standard error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    # -P: nothing but the libraries and ROOT is searched, whatever lies in the current folder.
    process = subprocess.Popen([sys.executable, "-P", "-c", *program], env=environment, stdout=sys.stderr)
    with PeakMemory(INTERVAL_S, process.pid) as memory:
        code = process.wait()
    if code:
        sys.exit(EXIT_FAULT)  # It has said why.
    return Figures(memory.peak / 2**20, time.monotonic() - began)


@cache
def baseline(names: tuple[str, ...]) -> float:
    """Peak, in MiB, of a process that only imports these modules."""
    return measure([IMPORT, *names]).peak_mib


def libraries(loaded: Collection[str]) -> tuple[str, ...]:
    """torch, and what loaded modules of ours import from other loaded ones: `module`, or `module:name`."""
    named = {"torch"}.union(*(imported(name) for name in loaded if name.partition(".")[0] in OURS))
    others = (*OURS, *sys.stdlib_module_names)
    modules = {name: name.partition(":")[0] for name in named}
    return tuple(sorted(name for name, at in modules.items() if at in loaded and at.partition(".")[0] not in others))


def imported(module: str) -> set[str]:
    """What a module of ours may import, inside functions too."""
    path = ROOT / (module.replace(".", "/") + ".py")
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))) if path.exists() else ():
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # What is imported from a package may be a module of it, or a name that it loads when it is asked for.
            for alias in node.names:
                names |= {f"{node.module}.{alias.name}", f"{node.module}:{alias.name}"}
    return names


def drawn_sets(work: Path, sizes: Sequence[int], images: int) -> list[Path]:
    """A shard set of drawn faces for each size, kept in `work`."""
    faces = work / f"faces-{images}"
    sets = [work / f"shards-{size}-{images}" for size in sizes]
    if not all((shards / "shardset.json").exists() for shards in sets):
        tool("shard_tool.cli", "draw-faces", faces, f"--count={images}", f"--size={max(sizes)}", "--quiet")
    for size, shards in zip(sizes, sets, strict=True):
        if not (shards / "shardset.json").exists():
            tool("shard_tool.cli", "make-shards", faces, f"--out={shards}", f"--size={size}", "--quiet")
    shutil.rmtree(faces, ignore_errors=True)
    return sets


def trained(work: Path, shards: Path, images: int) -> Path:
    """A finished run on a set, kept in `work`."""
    run = work / f"run-{shards.name}"
    if not (run / "final" / "config.json").exists():
        script = [sys.executable, ROOT / "train/run.py", f"--data.shards={shards.resolve()}", f"--run.dir={run}"]
        subprocess.run([*script, f"--train.total-images={images}"], stdout=sys.stderr, check=True)
    return run


def tool(module: str, *arguments: object) -> None:
    """One of our command lines."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    subprocess.run(command, env=environment, stdout=sys.stderr, check=True)


if __name__ == "__main__":
    sys.exit(main())

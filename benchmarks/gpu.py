"""What training on a GPU costs and survives, in one command that needs no network and ends within seven minutes.

    python benchmarks/gpu.py                                  (drawn faces; make gpu does the same)
    python benchmarks/gpu.py --shards shards/celeba-64 --out runs/gpu-benchmark
    python benchmarks/gpu.py --section speed --section layout

--out gets gpu.md and gpu.json, written anew after each row: what is stopped half-way loses only the rest. A section
that fails is reported, the others go on, and the exit status is 1. In the order of their importance:

    machine, start      what it runs on; a plain run starts there
    resume, overflow,   kill -9, numbers too large for fp16, memory too small for a micro-batch: each is provoked, and
    memory              what came of it is compared with what should have
    budget              peaks of memory beside the budgets that runs were given
    speed, layout       ours: loader, update, average of the weights and the read that an update ends with; without
                        metrics, display and saves. bare: forward pass, objective, backward pass and a fused AdamW step
                        in one CUDA graph, on one batch of float images that lie on the GPU already, noise by torch's
                        generator; no average of the weights, no loss scaling
    launches, wait      what the host asks of the GPU for an update, and how long it waits for data
    pause               how long the loop stands still for a save
    celeba              three minutes of training, or what is left of --seconds

What computes in this program has a process of its own on a GPU: one that a section upset is fresh for the next, and the
memory of a run is not mixed up with that of others. On a CPU all of it runs as well, without graphs.
"""

import argparse
import contextlib
import gc
import io
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.budget import train_within  # noqa: E402
from benchmarks.loops import bare_step, our_updates, run_trainer, trainer_command  # noqa: E402
from pipeline import ShardSet  # noqa: E402
from pipeline.errors import LeanstreamError, UserError  # noqa: E402
from pipeline.files import write_atomic  # noqa: E402
from pipeline.machine import show_bytes, usable_cores  # noqa: E402
from shard_tool.cli import main as shard_tool  # noqa: E402
from train.architectures import Architecture  # noqa: E402
from train.audit import main as audit  # noqa: E402
from train.config import Config, with_values  # noqa: E402
from train.device import best_device, release  # noqa: E402
from train.runfolder import RunFolder  # noqa: E402

Row = dict[str, Any]
Updates = Generator[tuple[Any, Any, float], None, None]
"""Our loop: its `TrainState`, the last `Update`, the seconds that it waited for data. The bare one: None, None, 0."""

ON_GPU = torch.cuda.is_available()
PRECISIONS = ("bf16", "fp16") if ON_GPU else ("no",)
GRACE_S = 15.0
"""A section that began in time may go on so long after --seconds."""
LEAST_S = 40.0
"""Training for less time than this shows nothing."""
WARM_UP = 4
"""Steps that are not counted."""
TRACED = 8
"""Updates that the profiler sees."""
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")
SYNCHRONISING = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
"""One of the device is the profiler's own, at its end."""


@dataclass(frozen=True)
class Bench:
    """What the sections work with."""

    work: Path
    """Folder for sets and runs."""
    ends: float
    """On `time.monotonic`'s clock; no section begins after it."""
    given: Path | None
    """Shard set of the smaller size."""
    tiny: bool

    @property
    def left_s(self) -> float:
        """Until no section begins any more."""
        return self.ends - time.monotonic()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of images, pixels."""
        return (32,) if self.tiny else (64, 128)

    @property
    def model(self) -> Row:
        """Values of the config that make a model tiny; two threads would only wait for each other."""
        return {"model.widths": (8, 8, 8, 8), "model.latent": 4, "train.threads": 1} if self.tiny else {}

    def choose(self, value: Any, tiny: Any) -> Any:
        """The value, or the one for a tiny benchmark."""
        return tiny if self.tiny else value

    def shards(self, size: int) -> Path:
        """The set of this size, drawn when it is first asked for unless it was given."""
        if self.given is not None and size == self.sizes[0]:
            return self.given
        count = self.choose(2_048, 48)
        pictures, folder = self.work / f"drawn-{count}", self.work / f"drawn-{count}-{size}"
        if not (pictures / "list_attr_celeba.csv").exists():
            shard_tool(["draw-faces", str(pictures), f"--count={count}", f"--size={self.sizes[-1]}", "--quiet"])
        if not (folder / "shardset.json").exists():
            shard_tool(["make-shards", str(pictures), f"--size={size}", f"--out={folder}", "--quiet"])
        return folder

    def arguments(self, kind: str, size: int, batch: int, more: Row) -> Row:
        """Of a run of the trainer, by dotted names."""
        values = {"data.shards": self.shards(size), "model.kind": kind, "train.batch_size": batch, **self.model}
        return {**values, "train.prior_images": 64, "train.log_every_updates": 1, **more}

    def folder(self, name: str) -> RunFolder:
        """Of a new run: what an earlier benchmark left there is gone."""
        shutil.rmtree(self.work / name, ignore_errors=True)
        return RunFolder(self.work / name)

    def train(self, folder: RunFolder, arguments: Row, *, may_be_cut: bool = False) -> RunFolder:
        """A run to its end."""
        run_trainer(folder, arguments, may_be_cut=may_be_cut, timeout_s=self.left_s + GRACE_S)
        return folder


def machine(bench: Bench) -> Iterator[Row]:
    """What it runs on."""
    card, driver = "none", "none"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        card, _, driver = told.partition("\n")[0].partition(", ")
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda or "none", "python": platform.python_version()}
    yield {"card": card, "driver": driver, **versions, "cores": usable_cores()}


def start(bench: Bench) -> Iterator[Row]:
    """A plain run of the trainer: that it starts and ends, and where it computed."""
    arguments = {"data.shards": bench.shards(bench.sizes[0]), **bench.model}
    began = time.monotonic()
    folder = bench.train(bench.folder("start"), {**arguments, "train.total_images": bench.choose(640, 128)})
    took_s, training = time.monotonic() - began, read(folder.final / "training.json")
    yield {**{key: training[key] for key in ("device", "precision", "updates")}, "seconds": took_s}
    check(not ON_GPU or training["device"] != "CPU", "a run must use the GPU that is there; got one on the CPU")


def resume(bench: Bench) -> Iterator[Row]:
    """A run killed with SIGKILL that goes on, and one that was not: largest relative differences of their losses.

    Both must be 0; those before the kill would show how far two runs of the same command differ anyway.
    """
    kind, batch, count = bench.choose(("residual", 64, 300), ("conv", 8, 40))
    more = {"train.total_images": count * batch, "checkpoint.save_every_minutes": 0.001}
    arguments = bench.arguments(kind, bench.sizes[0], batch, more)
    expected = losses(bench.train(bench.folder("uninterrupted"), arguments))
    folder = bench.folder("killed")
    killed_at = kill_in_its_middle(folder, arguments, bench.left_s + GRACE_S)
    found = losses(bench.train(folder, arguments))
    check(found.keys() == expected.keys(), f"both must make the same updates; got {len(found)}, {len(expected)}")
    (went_on_at,) = (record["position"] for record in folder.read_ledger() if record["event"] == "resume")
    differences = {at: abs(loss - expected[at]) / max(abs(expected[at]), 1.0) for at, loss in found.items()}
    before = [difference for at, difference in differences.items() if at <= went_on_at]
    after = list(differences.values())[len(before) :]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        exact = audit([str(folder.path)]) == 0
    yield {
        "killed_at_image": killed_at, "went_on_at_image": went_on_at, "difference_before": max(before),
        "of_first_update_after": after[0], "difference_after": max(after), "every_image_once": exact,
    }  # fmt: skip
    check(exact, f"every image must be trained once; got {told.getvalue()!r}")
    check(not any(differences.values()), f"losses must be equal, bit for bit; got differences to {max(after)}")


def overflow(bench: Bench) -> Iterator[Row]:
    """An update in fp16 whose loss scale is far too large: it is replayed until its numbers are finite."""
    batch = bench.choose(64, 8)
    with contextlib.closing(ours(bench, "conv", bench.sizes[0], batch, "fp16")) as stream:
        state, _, _ = next(stream)
        state.loss_scale.value *= 2**12
        before = state.loss_scale.value
        state, update, _ = next(stream)
        total = sum(float(weight.detach().sum()) for weight in state.model.parameters())
        finite = math.isfinite(update.loss + update.grad_norm + total)
        right = (state.position, state.updates) == (2 * batch, 2)
        scales = {"loss_scale_before": before, "loss_scale_after": state.loss_scale.value}
        yield {**scales, "replays": update.replays, "finite": finite, "position_right": right}
        check(update.replays > 0 and finite and right, "an overflow must be replayed until it is none")


def memory(bench: Bench) -> Iterator[Row]:
    """A micro-batch that does not fit the budget: updates are replayed in smaller ones."""
    if not ON_GPU:
        yield {"skipped": "a budget of RAM is no limit that a micro-batch could run into"}
        return
    more = {"budget.gpu": "2GiB", "train.micro_batch": 256, "train.total_images": 3 * 256}
    folder = bench.train(bench.folder("memory"), bench.arguments("residual", bench.sizes[-1], 256, more))
    summary, replays = read(folder.summary_file), sum(record.get("replays", 0) for record in folder.read_metrics())
    sizes = {"micro_batch_asked": 256, "micro_batch": summary["micro_batch"]}
    yield {"budget": "2GiB", **sizes, "replays": replays, "peak_bytes": summary["peak_gpu_bytes"]}
    check(replays > 0, "a micro-batch must be too large for the budget; got one that fits")


def budget(bench: Bench) -> Iterator[Row]:
    """Budgets of memory, the micro-batches that they lead to, and the peaks; `residual`."""
    arguments = bench.arguments("residual", bench.sizes[-1], bench.choose(256, 16), {})
    for size in bench.choose(("2GiB", "4GiB", "8GiB"), ("2GiB",)):
        shutil.rmtree(bench.work / f"residual-auto-{size}", ignore_errors=True)
        one = train_within(bench.work, "auto", size, bench.choose(8, 2), arguments, bench.left_s + GRACE_S)
        yield {
            "of": "GPU memory" if ON_GPU else "RAM", "budget": size, "micro_batch": one.micro_batch,
            "planned_bytes": one.planned_bytes, "peak_bytes": one.peak_bytes,
            "peak_over_planned": one.peak_bytes / one.planned_bytes, "within_budget": one.kept,
        }  # fmt: skip
        check(one.kept, f"a run must keep to its budget; got {show_bytes(one.peak_bytes)} of {size}")


def speed(bench: Bench) -> Iterator[Row]:
    """Images a second of our loop and of a bare one."""
    cases = [
        {"model": kind, "size": size, "batch": batch, "precision": precision}
        for size in bench.sizes
        for kind in ("conv", "residual")
        for batch in bench.choose((64, 256), (16,))
        for precision in PRECISIONS
    ]
    for case in cases:
        our_rate, wait_share = rate(bench, ours(bench, *case.values()), case["batch"])
        bare_rate, _ = rate(bench, bare(bench, *case.values()), bench.choose(10, 1) * case["batch"])
        speeds = {"ours_images_per_s": our_rate, "bare_images_per_s": bare_rate, "ratio": our_rate / bare_rate}
        yield {**case, **speeds, "data_wait_share": wait_share}


def layout(bench: Bench) -> Iterator[Row]:
    """Images a second of the bare loop in both memory layouts; `conv`."""
    batch = bench.choose(256, 16)
    for name in ("channels_last", "contiguous_format"):
        chosen = getattr(torch, name)
        with mock.patch("train.models.layout", return_value=chosen):  # Models ask for the device's layout themselves.
            stream = bare(bench, "conv", bench.sizes[0], batch, PRECISIONS[0], chosen)
            yield {"layout": name, "bare_images_per_s": rate(bench, stream, bench.choose(10, 1) * batch)[0]}


def launches(bench: Bench) -> Iterator[Row]:
    """Operators of torch and calls of the CUDA runtime an update; the share of time in which kernels run; `conv`."""
    batch, trace = bench.choose(256, 16), bench.work / "trace.json"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]
    for graph in ("auto", "no") if ON_GPU else ("no",):
        stream = ours(bench, "conv", bench.sizes[0], batch, PRECISIONS[0], {"train.cuda_graph": graph})
        for _ in range(WARM_UP):
            next(stream)
        with profile(activities=activities) as profiler:
            for _ in range(TRACED):
                next(stream)
        profiler.export_chrome_trace(str(trace))
        images_per_s, _ = rate(bench, stream, batch)
        events = [event for event in read(trace)["traceEvents"] if "cat" in event]
        calls = [event["name"] for event in events if event["cat"] in ("cuda_runtime", "cuda_driver")]
        operators = sum(event["cat"] == "cpu_op" and event["name"].startswith("aten::") for event in events)
        kernels_s = sum(event["dur"] for event in events if event["cat"] == "kernel") / 1e6 / TRACED
        row = {"cuda_graph": graph, "operators": operators / TRACED}
        if ON_GPU:
            row["kernel_launches"] = sum(call.startswith(LAUNCHES) for call in calls) / TRACED
            for name in ("cudaGraphLaunch", "cudaMemcpyAsync", *SYNCHRONISING):
                row[name] = sum(call.startswith(name) for call in calls) / TRACED
            row["gpu_busy_share"] = kernels_s * images_per_s / batch
        yield row


def wait(bench: Bench) -> Iterator[Row]:
    """The share of time in which the loop waits for data; `conv`."""
    batch = bench.choose(256, 16)
    for threads in (1, 2, 4, 8) if ON_GPU else (2,):
        stream = ours(bench, "conv", bench.sizes[0], batch, PRECISIONS[0], {"data.threads": threads})
        images_per_s, share = rate(bench, stream, batch)
        yield {"decode_threads": threads, "images_per_s": images_per_s, "data_wait_share": share}


def pause(bench: Bench) -> Iterator[Row]:
    """How long the loop stands still for a save; `residual`, a save whenever the one before is on disk."""
    batch, count = bench.choose((16, 600), (4, 20))
    more = {"train.total_images": batch * count, "checkpoint.save_every_minutes": 1e-9}
    folder = bench.train(bench.folder("pause"), bench.arguments("residual", bench.sizes[-1], batch, more))
    saves = [record for record in folder.read_ledger() if record["event"] == "saved"]
    pauses_ms = [1000 * record["pause_s"] for record in saves]
    yield {
        "parameters": read(folder.final / "training.json")["parameters"], "saves": len(saves),
        "pause_median_ms": statistics.median(pauses_ms), "pause_max_ms": max(pauses_ms),
        "write_median_s": statistics.median(record["write_s"] for record in saves),
    }  # fmt: skip


def celeba(bench: Bench) -> Iterator[Row]:
    """Three minutes of training, start and validations included, and the PSNR of held-out photos; `conv`.

    The rate is constant and the averaged weights are the result, so that the time alone decides the length.
    """
    seconds = min(180.0, bench.left_s)
    if seconds < LEAST_S and not bench.tiny:
        yield {"skipped": f"{seconds:.0f} s are too few"}
        return
    more = {
        "data.flip": True, "optim.schedule": "constant", "train.ema_halflife_images": 50_000,
        "train.log_every_updates": 50, "run.max_minutes": seconds / 60, "train.total_images": bench.choose(10**9, 64),
    }  # fmt: skip
    arguments = bench.arguments("conv", bench.sizes[0], bench.choose(256, 16), more)
    began = time.monotonic()
    folder = bench.train(bench.folder("celeba"), arguments, may_be_cut=True)
    took_s, summary = time.monotonic() - began, read(folder.summary_file)
    validations = [record for record in folder.read_metrics() if record.get("scores")]
    check(bool(validations), "a run must validate at an epoch's end; got none. Has the set a val split?")
    best, best_at = max((record["scores"]["val"]["psnr_db"], record["position"]) for record in validations)
    images, train = summary["position"], ShardSet.open(arguments["data.shards"]).split("train")
    yield {
        "training_photos": train.total, "seconds": took_s, "images": images, "epochs": images / train.total,
        "images_per_s": summary["images_per_s"], "data_wait_share": summary["data_wait_share"],
        "training_share": images / summary["images_per_s"] / took_s, "validations": len(validations),
        "psnr_db": summary["scores"]["val"]["psnr_db"], "best_psnr_db": best, "best_at_image": best_at,
    }  # fmt: skip


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    section.__name__: section
    for section in (machine, start, resume, overflow, memory, budget, speed, layout, launches, wait, pause, celeba)
}
APART = ("overflow", "speed", "layout", "launches", "wait")
"""Sections that compute in this program."""


def ours(bench: Bench, kind: str, size: int, batch: int, precision: str, values: Row | None = None) -> Updates:
    """Our loop, with other `values` of the config."""
    chosen = {"model.kind": kind, "train.batch_size": batch, **bench.model, **(values or {})}
    return our_updates(bench.shards(size), size, with_values(Config(), chosen), precision, best_device())


def bare(
    bench: Bench, kind: str, size: int, batch: int, precision: str, memory_format: torch.memory_format | None = None
) -> Updates:
    """A hand-written loop, looked at after every few updates."""
    architecture = Architecture.of(kind, size, bench.model.get("model.latent"), bench.model.get("model.widths"), None)
    step = bare_step(architecture, batch, precision, best_device(), memory_format)
    while True:
        for _ in range(bench.choose(10, 1)):
            loss = step()
        float(loss)
        yield None, None, 0.0


def rate(bench: Bench, stream: Updates, images: int) -> tuple[float, float]:
    """Images a second of a loop that makes so many a step, and the share of time that they were waited for; ends it."""
    with contextlib.closing(stream):
        for _ in range(WARM_UP):
            next(stream)
        steps, waited_s, took_s, began = 0, 0.0, 0.0, time.perf_counter()
        while took_s < bench.choose(1.0, 0.05):
            waited_s += next(stream)[2]
            steps, took_s = steps + 1, time.perf_counter() - began
    gc.collect()
    release(best_device())
    return steps * images / took_s, waited_s / took_s


def kill_in_its_middle(folder: RunFolder, arguments: Row, timeout_s: float) -> int:
    """Start a run and send it SIGKILL once it has saved and made a third of its way; gives the position."""
    ends, environment = time.monotonic() + timeout_s, {**os.environ, "PYTHONPATH": str(ROOT)}
    command, nowhere = trainer_command(folder, arguments), subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=nowhere, stderr=nowhere) as process:
        try:
            while process.poll() is None and time.monotonic() < ends:
                time.sleep(0.02)
                saved = any(record["event"] == "saved" for record in folder.read_ledger())
                progress = [record for record in folder.read_metrics() if "progress" in record]
                if saved and progress and progress[-1]["progress"] > 1 / 3:
                    return int(progress[-1]["position"])
        finally:
            process.kill()
    raise UserError("a run must save, and live until it is killed; got one that did not")


def losses(folder: RunFolder) -> dict[int, float]:
    """Of a run, by position."""
    return {record["position"]: record["loss"] for record in folder.read_metrics() if "loss" in record}


def read(path: Path) -> Any:
    """The JSON in a file."""
    return json.loads(path.read_bytes())


def check(holds: bool, rule: str) -> None:
    """Raise `UserError` where something is not as it must be."""
    if not holds:
        raise UserError(rule)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 1 where a section failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="shard set of 64 px with a val split (default: drawn faces)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-benchmark"), help="folder for gpu.md and gpu.json")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-benchmark/work"), help="folder for sets and runs")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="only this one, and others given so")
    parser.add_argument("--seconds", type=float, default=400.0, help="no section begins after them")
    parser.add_argument("--tiny", action="store_true", help="the smallest sets, models and runs, to try it out")
    parser.add_argument("--inside", action="store_true", help="rows to stdout alone (used by the benchmark)")
    options = parser.parse_args(argv)
    bench = Bench(options.work, time.monotonic() + options.seconds, options.shards, options.tiny)
    names = options.section or list(SECTIONS)
    if options.tiny:
        torch.set_num_threads(1)
    if options.inside:
        return show_rows(SECTIONS[names[0]], bench)
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    return run(bench, names, options.out)


def run(bench: Bench, names: list[str], out: Path) -> int:
    """All sections, one after the other."""
    report: dict[str, Row] = {}
    began = time.monotonic()
    for name in names:
        about = (SECTIONS[name].__doc__ or "").partition("\n")[0]
        found = report[name] = {"about": about, "rows": [], "error": None}
        try:
            for row in rows_of(name, bench):
                found["rows"].append(row)
                told = ", ".join(f"{key} {show(key, value)}" for key, value in row.items())
                print(f"{time.monotonic() - began:6.1f} s  {name}: {told}", flush=True)
                write(report, out)
        except Exception as error:  # Whatever it was, the other sections go on.
            found["error"] = first_line(error)
            print(f"{time.monotonic() - began:6.1f} s  {name} failed: {found['error']}", flush=True)
        write(report, out)
    return int(any(found["error"] for found in report.values()))


def rows_of(name: str, bench: Bench) -> Iterator[Row]:
    """What a section yields, if its turn comes in time."""
    if bench.left_s <= 0:
        yield {"skipped": "its turn came after --seconds"}
    else:
        yield from in_a_process(name, bench) if ON_GPU and name in APART else SECTIONS[name](bench)


def in_a_process(name: str, bench: Bench) -> Iterator[Row]:
    """The rows of a section that runs in another process, as they come; it is killed when its time is over."""
    command = [sys.executable, __file__, "--inside", "--section", name, "--work", str(bench.work)]
    command += ["--seconds", str(bench.left_s), *(["--tiny"] if bench.tiny else [])]
    command += ["--shards", str(bench.given)] if bench.given else []
    log = bench.work / f"{name}.log"
    with open(log, "w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        over = threading.Timer(bench.left_s + GRACE_S, process.kill)
        over.start()
        try:
            for line in process.stdout or ():
                row = json.loads(line)
                check("error" not in row, row.get("error", ""))
                yield row
            process.wait()
        finally:
            over.cancel()
            process.kill()
    check(process.returncode == 0, f"a section must end by itself; got exit status {process.returncode}, see {log}")


def show_rows(section: Callable[[Bench], Iterator[Row]], bench: Bench) -> int:
    """Print the rows of a section as JSON, and the error that ended it."""
    try:
        for row in section(bench):
            print(json.dumps(row), flush=True)
    except Exception as error:
        print(json.dumps({"error": first_line(error)}), flush=True)
        raise
    return 0


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    told = (str(error).splitlines() or [""])[0]
    return told if isinstance(error, LeanstreamError) else f"{type(error).__name__}: {told}"


def write(report: dict[str, Row], out: Path) -> None:
    """Write everything so far, for programs and for people."""
    write_atomic(out / "gpu.json", json.dumps(report, indent=1).encode())
    write_atomic(out / "gpu.md", "\n".join(line for name in report for line in lines_of(name, report[name])).encode())


def lines_of(name: str, found: Row) -> Iterator[str]:
    """A section in Markdown."""
    yield from (f"### {name}", "", found["about"], "")
    keys = list(dict.fromkeys(key for row in found["rows"] for key in row))
    heads = [key.removesuffix("_bytes").replace("_per_s", "/s").replace("_", " ") for key in keys]
    rows = [[show(key, row.get(key, "")) for key in keys] for row in found["rows"]]
    for cells in (heads, ["---"] * len(keys), *rows) if rows else ():
        yield f"| {' | '.join(cells)} |"
    yield from (["", f"Failed: {found['error']}", ""] if found["error"] else [""])


def show(key: str, value: Any) -> str:
    """A value for people; its name says what it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if key.endswith("_bytes"):
        return show_bytes(value)
    if key.endswith("_share"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())

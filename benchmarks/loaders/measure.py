"""One variant in a process of its own: convert its data, check what it delivers, or measure it.

    python -m benchmarks.loaders.measure TASK.json RESULT.json

Runs in the loader's environment. What the libraries print goes where it likes; the result is a file.
"""

import importlib
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.loaders import variants

CHECK_SECONDS = 20.0


@dataclass(frozen=True)
class Task:
    """What one process has to do, and with what."""

    action: str
    """`convert`, `check` or `run`."""
    variant: str
    source: str
    """The shard set."""
    data: str
    """The loader's own format, where it has one."""
    images: int
    size: int
    batch_size: int
    workers: int
    cores: int
    seconds: float


def main() -> None:
    """Do what the task says."""
    task = Task(**json.loads(Path(sys.argv[1]).read_text()))
    limit_cores(task.cores)
    variant = variants.find(task.variant)
    module = importlib.import_module(f"benchmarks.loaders.{variant.loader.module}")
    result: dict[str, Any] = {}
    if task.action == "convert":
        module.convert(Path(task.source), Path(task.data), variant.encoding)
    elif task.action == "check":
        result = check(open_stream(module, task), task)
    elif hasattr(module, "images_per_s"):
        workers = variant.threads or task.workers
        result["images_per_s"] = module.images_per_s(Path(task.source), variant, task.batch_size, workers, task.seconds)
    else:
        result = measure(module, task)
    Path(sys.argv[2]).write_text(json.dumps(result))
    # Some libraries wait for their workers for long; they are no part of what is measured.
    sys.stdout.flush()
    os._exit(0)


def limit_cores(cores: int) -> None:
    """Run on the first `cores` of those that this process may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def open_stream(module: ModuleType, task: Task) -> Iterator[Any]:
    """The loader's endless iterator of images."""
    variant = variants.find(task.variant)
    stream: Iterator[Any] = module.batches(
        Path(task.source), Path(task.data), variant, task.batch_size, variant.threads or task.workers
    )
    return stream


def measure(module: ModuleType, task: Task) -> dict[str, float]:
    """First batch in seconds; images a second in the first pass, and after it.

    The first pass counts from the first batch on, and ends after `seconds` where it is slow. What follows is measured
    for `seconds`.
    """
    began = time.perf_counter()
    stream = open_stream(module, task)
    first_images = len(next(stream))
    first_batch_s = time.perf_counter() - began
    first_pass = speed(stream, task.seconds, task.images - first_images)
    return {
        "first_batch_s": first_batch_s,
        "first_pass_images_per_s": first_pass,
        "images_per_s": speed(stream, task.seconds),
    }


def speed(stream: Iterator[Any], seconds: float, most_images: float = float("inf")) -> float:
    """Images a second until the time is over or enough images have come, whichever is first."""
    images, began = 0, time.perf_counter()
    for batch in stream:
        images += len(batch)
        elapsed = time.perf_counter() - began
        if elapsed >= seconds or images >= most_images:
            return images / elapsed
    raise AssertionError("the stream is endless")


def check(stream: Iterator[Any], task: Task) -> dict[str, Any]:
    """Shape and type of the batches, and the crc32 of every image of about one pass."""
    began = time.perf_counter()
    shapes: set[str] = set()
    found: list[int] = []
    for batch in stream:
        shapes.add(f"{batch.dtype} {'x'.join(str(length) for length in batch.shape[1:])}")
        found.extend(zlib.crc32(image) for image in batch.permute(0, 2, 3, 1).contiguous().numpy())
        if len(found) >= task.images or time.perf_counter() - began > CHECK_SECONDS:
            break
    return {"shapes": sorted(shapes), "crc32": found[: task.images]}


def write_task(path: Path, task: Task) -> None:
    """For `main` of another process."""
    path.write_text(json.dumps(asdict(task)))


if __name__ == "__main__":
    main()

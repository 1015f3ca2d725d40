"""A process that does nothing but import torch and stream, for `benchmarks/loader_memory.py` to look at.

    python -m benchmarks.loaders.stream SHARDS PASSES BATCH THREADS
    python -m benchmarks.loaders.stream                                only imports torch

Prints how many images it saw, and its peak resident set size in KiB as the kernel counted it.
"""

import resource
import sys
import time
from pathlib import Path

import torch  # noqa: F401 (its cost is what the other figures are compared with)

SETTLE_SECONDS = 1.0
"""For the sampling of memory to see a process that only imports."""


def main() -> None:
    """Stream, or wait."""
    if len(sys.argv) == 1:
        time.sleep(SETTLE_SECONDS)
        seen = 0
    else:
        seen = stream(sys.argv[1], *map(int, sys.argv[2:]))
    print(seen, peak_rss_kib())


def stream(folder: str, passes: int, batch_size: int, threads: int) -> int:
    """Go through the set so many times; the number of images seen."""
    from pipeline import StreamingLoader

    with StreamingLoader(folder, batch_size=batch_size, threads=threads) as loader:
        seen, wanted = 0, passes * loader.samples
        for batch in loader:
            seen += len(batch)
            if seen >= wanted:
                break
    return seen


def peak_rss_kib() -> int:
    """The most that was ever resident; not `getrusage` on Linux, which includes what the parent had before."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # Bytes on macOS.
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()

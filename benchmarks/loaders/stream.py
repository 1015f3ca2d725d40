"""A process that does nothing but import torch and stream, for `benchmarks/loader_memory.py` to look at.

python -m benchmarks.loaders.stream SHARDS PASSES BATCH THREADS      prints how many images it saw
python -m benchmarks.loaders.stream                                  only imports torch
"""

import sys
import time

import torch  # noqa: F401 (its cost is what the other figures are compared with)

SETTLE_SECONDS = 1.0
"""For the sampling of memory to see a process that only imports."""


def main() -> None:
    """Stream, or wait."""
    if len(sys.argv) == 1:
        time.sleep(SETTLE_SECONDS)
        return
    from pipeline import StreamingLoader

    folder, (passes, batch_size, threads) = sys.argv[1], map(int, sys.argv[2:])
    with StreamingLoader(folder, batch_size=batch_size, threads=threads) as loader:
        seen, wanted = 0, passes * loader.samples
        for batch in loader:
            seen += len(batch)
            if seen >= wanted:
                break
    print(seen)


if __name__ == "__main__":
    main()

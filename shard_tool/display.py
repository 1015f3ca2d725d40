"""Progress on stderr: a live bar in a terminal, a plain line every few seconds elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[int, int], None]
"""Told how many are done, and how many of them are rejected or otherwise counted."""

_BAR_SECONDS, _LINE_SECONDS = 0.1, 5.0


@contextlib.contextmanager
def show_progress(
    what: str, total: int, *, quiet: bool = False, counted: str = "rejected", unit: str = "images"
) -> Iterator[Report]:
    """Yield a function that takes (done, rejected) of all runs together; its first call says where this run begins.

    `counted` is the word behind the second number; without a word, the number is not shown. `unit` is what is done:
    images, or MB, of which `total` and `done` are the bytes.
    """
    if quiet:
        yield lambda done, rejected: None
        return
    console = Console(stderr=True)
    in_terminal = console.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    bar = Progress(*columns, TimeRemainingColumn(compact=True), console=console)
    task = bar.add_task(what, total=total, said="")
    scale, of_unit = (1e6, " MB") if unit == "MB" else (1, "")
    first: tuple[int, float] | None = None
    shown = time.monotonic()

    def report(done: int, rejected: int) -> None:
        nonlocal first, shown
        now = time.monotonic()
        first = first or (done, now)
        is_end = in_terminal and done >= total
        if now - shown < (_BAR_SECONDS if in_terminal else _LINE_SECONDS) and not is_end:
            return
        shown = now
        speed = (done - first[0]) / max(now - first[1], 1e-6)
        parts = [f"{done / scale:,.0f} of {total / scale:,.0f}{of_unit}", f"{speed / scale:,.0f} {unit}/s"]
        if speed and not in_terminal:
            parts.append(f"{(total - done) / speed:,.0f} s left")
        if counted:
            parts.append(f"{rejected:,} {counted}")
        if in_terminal:
            bar.update(task, completed=done, said=", ".join(parts))
        else:
            print(f"{what}: {', '.join(parts)}", file=sys.stderr, flush=True)

    with bar if in_terminal else contextlib.nullcontext():
        yield report


@contextlib.contextmanager
def show_added(
    what: str, total: int, *, quiet: bool = False, counted: str = "", unit: str = "images"
) -> Iterator[Report]:
    """`show_progress` of a function, for any thread, that takes only what is new since its last call."""
    sums, lock = [0, 0], threading.Lock()
    with show_progress(what, total, quiet=quiet, counted=counted, unit=unit) as report:

        def add(done: int, found: int) -> None:
            with lock:
                sums[:] = sums[0] + done, sums[1] + found
                report(*sums)

        add(0, 0)
        yield add


def megabytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def counted(number: int, what: str, plural: str = "") -> str:
    """`1 shard`, `2,000 shards`; `plural` where an s does not make it."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"

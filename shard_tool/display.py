"""Progress on stderr: a live bar in a terminal, a plain line every few seconds elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

PLAIN_LINE_SECONDS = 5.0
_BAR_SECONDS = 0.1


@contextlib.contextmanager
def show_progress(
    what: str, total: int, *, quiet: bool = False, counted: str = "rejected"
) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that takes (done, rejected) of all runs together; its first call says where this run begins.

    `counted` is the word behind the second number; without a word, the number is not shown.
    """
    console = Console(stderr=True)
    if quiet:
        yield lambda done, rejected: None
    elif console.is_terminal:
        yield from _bar(console, what, total, counted)
    else:
        yield _Lines(what, total, counted)


@contextlib.contextmanager
def show_bytes(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yield a function, for any thread, that takes how many of the `total` bytes have been read since its last call."""
    console = Console(stderr=True)
    if quiet:
        yield lambda count: None
    elif console.is_terminal:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
        with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
            task = progress.add_task(what, total=total)
            yield lambda count: progress.advance(task, count)
    else:
        yield _ByteLines(what, total)


class _ByteLines:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._started = time.monotonic()
        self._next = self._started + PLAIN_LINE_SECONDS
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + PLAIN_LINE_SECONDS
        speed = self._done / (now - self._started)
        print(
            f"{self._what}: {self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB, {speed / 1e6:,.0f} MB/s, "
            f"{(self._total - self._done) / speed:,.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def _bar(console: Console, what: str, total: int, counted: str) -> Iterator[Callable[[int, int], None]]:
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:,.0f} images/s"),
        TimeRemainingColumn(compact=True),
    ]
    if counted:
        columns.append(TextColumn("{task.fields[rejected]:,} " + counted))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, speed=0.0, rejected=0)
        rate = _Rate()
        shown = 0.0

        def report(done: int, rejected: int) -> None:
            nonlocal shown
            speed = rate.update(done)
            if time.monotonic() - shown >= _BAR_SECONDS or done >= total:
                shown = time.monotonic()
                progress.update(task, completed=done, speed=speed, rejected=rejected)

        yield report


class _Lines:
    def __init__(self, what: str, total: int, counted: str) -> None:
        self._what, self._total, self._counted = what, total, counted
        self._rate = _Rate()
        self._next = time.monotonic() + PLAIN_LINE_SECONDS

    def __call__(self, done: int, rejected: int) -> None:
        speed = self._rate.update(done)
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PLAIN_LINE_SECONDS
        parts = [f"{self._what}: {done:,} of {self._total:,}", f"{speed:,.0f} images/s"]
        if speed:
            parts.append(f"{(self._total - done) / speed:,.0f} s left")
        if self._counted:
            parts.append(f"{rejected:,} {self._counted}")
        print(", ".join(parts), file=sys.stderr, flush=True)


class _Rate:
    """Images a second since the first report, which says what earlier runs have finished."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def update(self, done: int) -> float:
        if self._first is None:
            self._first = done, time.monotonic()
        return (done - self._first[0]) / max(time.monotonic() - self._first[1], 1e-6)


def megabytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def counted(number: int, what: str, plural: str = "") -> str:
    """`1 shard`, `2,000 shards`; `plural` where an s does not make it."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"

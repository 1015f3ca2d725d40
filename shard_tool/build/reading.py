"""Reading and decoding: the outcome of every planned photo, in the plan's order.

    read in any order:   photos in shard order -> read, decode, resize, encode (threads) -> in order again

    read by chunk:       a group's photos in the source's order -> the same -> small samples in a temporary file
                         -> in shard order

A bounded number of photos is in flight, and their order is fixed by the plan, so that the bytes are the same with any
number of threads. Where a source must be read in its own order, each group is read once, and disk is needed for its
samples.
"""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LeanstreamError, SourceError, UserError
from shard_tool.build.record import content_of
from shard_tool.display import Report
from shard_tool.image.photo import MAX_FILE_BYTES, PhotoError, Recipe, make_sample, quiet_pillow
from shard_tool.sources.protocol import Access, InputError, Source

T = TypeVar("T")

TASK_PHOTOS = 16
"""Photos a thread takes at a time: handing over single ones costs a third of the speed."""
TASKS_AHEAD = 3
"""Tasks in flight for each thread: a slow photo keeps no other thread waiting. Finished ones are small."""
BYTES_AHEAD = 16 << 20
"""Bytes of photos in flight that were read before a thread took them: a few large ones must not fill the memory."""


MOST_FAILURES = 20
"""Failed reads after which a build gives up: the disk is gone, not a file."""


class Made(NamedTuple):
    """A sample, and what stands for the photo's own bytes."""

    sample: bytes
    content: int
    """`content_of` the photo."""


class Rejection(NamedTuple):
    """An input that can never become a sample."""

    reason: str
    detail: str = ""


class Failure(NamedTuple):
    """An input that could not be read this time; without a text where another one's failure ended the reading."""

    error: str


Outcome = Made | Rejection | Failure
Done = Callable[[int, int], None]
"""Told of photos that are done, and of how many of these are rejected."""


def outcomes(
    source: Source,
    groups: Iterable[NDArray[np.int64]],
    recipe: Recipe,
    threads: int,
    *,
    done: Done = lambda done, rejected: None,
    spool: Path | None = None,
) -> Generator[Outcome, None, None]:
    """The outcome of every item of `groups`, in their order.

    Memory is that of the photos in flight. Close it (`contextlib.closing`) where it may be left early.

    Args:
        source: read once, in the order that is cheap for it.
        groups: items of a group each, in the order of its shards (`Group.items`); groups in ascending order.
        recipe: how a photo becomes a sample.
        threads: that read and decode.
        done: told of every photo as soon as its outcome is known, which may be long before it is yielded.
        spool: folder for the samples of a group whose source is not read in the order of the plan.

    Raises:
        OSError: where `spool` cannot be written.
    """
    pool = ThreadPoolExecutor(threads, "photo")
    try:
        with quiet_pillow():
            if source.access is Access.ANY_ORDER:
                items = (item for group in groups for item in group.tolist())
                found = _in_order(pool, lambda item: sample_of(source, item, recipe), items, threads)
                yield from (_tell(done, outcome) for outcome in found)
                return
            for group in groups:
                yield from _group_by_chunk(pool, source, group, recipe, threads, done, spool)
    finally:
        pool.shutdown(cancel_futures=True)


def sample_of(source: Source, item: int, recipe: Recipe) -> Outcome:
    """Read one input and make its sample; from any thread.

    Plain values only: an exception would keep the frames, and with them the decoded photo, alive.
    """
    size = int(source.listing.sizes[item])
    if size > MAX_FILE_BYTES:
        return _too_large(size)
    try:
        data = source.read(item)
    except InputError as error:
        return Rejection(error.reason, error.detail)
    except (OSError, LeanstreamError) as error:
        return Failure(text_of(error))
    return _sample(data, recipe)


def samples_of(source: Source, items: Iterable[int], recipe: Recipe) -> Iterator[Outcome]:
    """The outcomes of a few `items`, in the order that is cheap for the source, one at a time."""
    for data in _read_through(source, sorted(items)):
        yield _sample(data, recipe) if isinstance(data, bytes) else data


def _sample(data: bytes, recipe: Recipe) -> Outcome:
    if len(data) > MAX_FILE_BYTES:
        return _too_large(len(data))
    try:
        return Made(make_sample(data, recipe), content_of(data))
    except PhotoError as error:
        return Rejection(error.reason, error.detail)
    except UserError as error:  # The machine is too small for it.
        return Failure(str(error))


def _group_by_chunk(
    pool: ThreadPoolExecutor,
    source: Source,
    planned: NDArray[np.int64],
    recipe: Recipe,
    threads: int,
    done: Done,
    spool: Path | None,
) -> Iterator[Outcome]:
    """The outcomes of one group, whose source is read from its first item to its last."""
    place_of = np.argsort(planned)  # [reading order] Place in the shards.
    found = _in_order(
        pool,
        lambda data: _sample(data, recipe) if isinstance(data, bytes) else data,
        _read_through(source, planned[place_of].tolist()),
        threads,
    )
    starts, sizes = np.zeros(len(planned), np.int64), np.full(len(planned), -1, np.int64)
    contents = np.zeros(len(planned), np.uint64)
    others: dict[int, Rejection | Failure] = {}
    with tempfile.TemporaryFile(dir=spool) as file:
        for place, outcome in zip(place_of.tolist(), found, strict=True):
            if isinstance(outcome, Made):
                starts[place], sizes[place], contents[place] = file.tell(), len(outcome.sample), outcome.content
                file.write(outcome.sample)
            else:
                others[place] = outcome
            _tell(done, outcome)
        file.flush()
        for place in range(len(planned)):
            other: Outcome | None = others.get(place)
            if other is None:
                sample = os.pread(file.fileno(), int(sizes[place]), int(starts[place]))
                other = Made(sample, int(contents[place]))
            yield other


def _read_through(source: Source, items: list[int]) -> Iterator[bytes | Rejection | Failure]:
    """What the source holds for each of `items`, which ascend; after a failure nothing more is tried."""
    big = {item for item in items if source.listing.sizes[item] > MAX_FILE_BYTES}
    data = source.read_through(item for item in items if item not in big)
    failed = False
    for item in items:
        if item in big:
            yield _too_large(int(source.listing.sizes[item]))
            continue
        if failed:
            yield Failure("")
            continue
        try:
            found = next(data)
            yield Rejection(found.reason, found.detail) if isinstance(found, InputError) else found
        except (OSError, LeanstreamError) as error:
            yield Failure(text_of(error))
            failed = True


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[T], Outcome], items: Iterable[T], threads: int
) -> Iterator[Outcome]:
    """The outcomes of `items` in their order, with at most `TASK_PHOTOS * TASKS_AHEAD * threads` of them in flight."""

    def work_all(task: list[T]) -> list[Outcome]:
        return [work(item) for item in task]

    waiting: deque[tuple[int, Future[list[Outcome]]]] = deque()
    bytes_waiting = 0
    for task_bytes, task in _tasks(items):
        bytes_waiting += task_bytes
        waiting.append((task_bytes, pool.submit(work_all, task)))
        del task  # The photos in it go as soon as they are samples.
        while len(waiting) >= TASKS_AHEAD * threads or (bytes_waiting > BYTES_AHEAD and waiting):
            task_bytes, future = waiting.popleft()
            bytes_waiting -= task_bytes
            yield from future.result()
    while waiting:
        yield from waiting.popleft()[1].result()


def _tasks(items: Iterable[T]) -> Iterator[tuple[int, list[T]]]:
    """`items` in tasks for a thread, with the bytes that each holds already: few photos where they are large."""
    task: list[T] = []
    held = 0
    for item in items:
        task.append(item)
        held += len(item) if isinstance(item, bytes) else 0
        if len(task) == TASK_PHOTOS or held > BYTES_AHEAD // 4:
            yield held, task
            task, held = [], 0
    if task:
        yield held, task


def _tell(done: Done, outcome: Outcome) -> Outcome:
    done(1, isinstance(outcome, Rejection))
    return outcome


def _too_large(size: int) -> Rejection:
    return Rejection("file too large", f"{size:,} bytes, at most {MAX_FILE_BYTES:,} are read")


def text_of(error: Exception) -> str:
    """Why a read failed, in a few words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


class Progress:
    """Adds up what is done, for a `Report`."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._done = self._rejected = 0

    def add(self, done: int, rejected: int) -> None:
        """So many more inputs are done, and so many of them rejected."""
        self._done += done
        self._rejected += rejected
        self._report(self._done, self._rejected)


def raise_failures(failures: list[str]) -> None:
    """End a build in which photos could not be read."""
    if failures:
        shown = ", ".join(failures[:MOST_FAILURES])
        raise SourceError(
            f"every photo must be readable; got {len(failures)} that could not be read this time: {shown}. "
            "Everything else that is finished is kept: see to them, then run the same command again, or give "
            "--skip-unreadable to leave them out."
        )

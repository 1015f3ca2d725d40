"""Reading and decoding: the outcome of every planned photo, in the plan's order.

    photos in shard order -> read, decode, resize, encode (threads) -> in order again

A bounded number of photos is in flight, and their order is fixed by the plan, so that the bytes are the same with any
number of threads.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from shard_tool.photo import MAX_FILE_BYTES, PhotoError, Recipe, make_sample, quiet_pillow
from shard_tool.plan import Group
from shard_tool.source import Source

TASK_PHOTOS = 8
"""Photos a thread takes at a time: handing over single ones costs a third of the speed."""
TASKS_AHEAD = 3
"""Tasks in flight for each thread: a slow photo keeps no other thread waiting. Finished ones are small."""


class Rejection(NamedTuple):
    """An input that can never become a sample."""

    reason: str
    detail: str = ""


class Failure(NamedTuple):
    """An input that could not be read this time."""

    error: str


Outcome = bytes | Rejection | Failure


def outcomes(source: Source, groups: Iterable[Group], recipe: Recipe, threads: int) -> Generator[Outcome, None, None]:
    """The outcome of every planned item of `groups`: shard after shard, in the order of their items.

    Memory is that of the photos in flight. Close it (`contextlib.closing`) where it may be left early.
    """
    items = (item for group in groups for shard in group.shards for item in shard.items.tolist())
    pool = ThreadPoolExecutor(threads, "photo")
    try:
        with quiet_pillow():
            yield from _in_order(pool, lambda item: sample_of(source, item, recipe), items, threads)
    finally:
        pool.shutdown(cancel_futures=True)


def sample_of(source: Source, item: int, recipe: Recipe) -> Outcome:
    """Read one input and make its sample; from any thread.

    Plain values only: an exception would keep the frames, and with them the decoded photo, alive.
    """
    size = int(source.listing.sizes[item])
    if size > MAX_FILE_BYTES:
        return Rejection("file too large", f"{size:,} bytes, at most {MAX_FILE_BYTES:,} are read")
    try:
        data = source.read(item)
    except OSError as error:
        return Failure(error.strerror or str(error))
    try:
        return make_sample(data, recipe)
    except PhotoError as error:
        return Rejection(error.reason, error.detail)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], Outcome], items: Iterable[int], threads: int
) -> Iterator[Outcome]:
    """The outcomes of `items` in their order, with at most `TASK_PHOTOS * TASKS_AHEAD * threads` of them in flight."""

    def work_all(task: list[int]) -> list[Outcome]:
        return [work(item) for item in task]

    items = iter(items)
    waiting: deque[Future[list[Outcome]]] = deque()
    while task := list(islice(items, TASK_PHOTOS)):
        waiting.append(pool.submit(work_all, task))
        if len(waiting) >= TASKS_AHEAD * threads:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()

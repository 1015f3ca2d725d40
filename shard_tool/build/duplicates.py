"""Photos that are left out because they are there already: with the same bytes, or in another set.

    candidates of one group (equal sizes only) ──read, hash (threads)──> .build/digests-000007.bin
    all digests ──> {duplicate: the first one in the listing, which stays}, and what other sets hold

What was hashed is not hashed again after a kill.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LeanstreamError
from shard_tool.build.place import STATE_FOLDER, Place
from shard_tool.build.plan import Plan
from shard_tool.build.reading import MOST_FAILURES, Progress, raise_failures, text_of
from shard_tool.build.record import Photos, content_of
from shard_tool.display import Report
from shard_tool.sources.listing import printable
from shard_tool.sources.protocol import Access, InputError, Source

_BATCH_PHOTOS = 256
"""Photos a thread that are handed out together."""


def find_candidates(source: Source, plan: Plan, others: Sequence[Photos]) -> tuple[NDArray[np.int64], ...]:
    """The photos of each group of `plan` that must be hashed.

    Only photos of equal size can be equal; of the rows of a table sizes are not known, and so all are candidates. Empty
    files and those that are left out anyway are none.
    """
    sizes = source.listing.sizes
    takes_part = np.zeros(len(sizes), np.bool_)
    for items in plan.groups:
        takes_part[items[plan.split_of[items] >= 0]] = True
    takes_part &= sizes > 0
    if source.access is Access.BY_CHUNK:
        return tuple(items[takes_part[items]] for items in plan.groups)
    _, number_of, counts = np.unique(sizes[takes_part], return_inverse=True, return_counts=True)
    candidate = np.zeros(len(sizes), np.bool_)
    candidate[takes_part] = counts[number_of] > 1
    for photos in others:
        candidate |= takes_part & np.isin(sizes, photos.rows["bytes"])
    return tuple(items[candidate[items]] for items in plan.groups)


def find_duplicates(
    place: Place,
    source: Source,
    groups: tuple[NDArray[np.int64], ...],
    others: Sequence[Photos],
    *,
    threads: int,
    report: Report,
) -> tuple[dict[int, int], NDArray[np.int64]]:
    """For each duplicate among `groups` the photo that stays, the first one; and the photos that `others` hold.

    Raises `SourceError` where photos could not be read this time.
    """
    progress = Progress(report)
    progress.add(0, 0)
    failures: list[str] = []
    contents: list[NDArray[np.uint64]] = []
    with ThreadPoolExecutor(threads, "hash") as pool:
        for number, items in enumerate(groups):
            key = items.tobytes() + source.listing.sizes[items].tobytes()
            found = _load(place, number, key)
            if found is None:
                found = _hash_all(pool, source, items, threads, failures, progress)
                if len(failures) >= MOST_FAILURES:
                    break
                if not failures:
                    place.store(_file(number), _sealed(key, found.astype("<u8").tobytes()))
            else:
                progress.add(len(items), 0)
            contents.append(found)
    raise_failures(failures)
    return _sorted_out(source, np.concatenate(groups), np.concatenate(contents), others)


def _sorted_out(
    source: Source, items: NDArray[np.int64], contents: NDArray[np.uint64], others: Sequence[Photos]
) -> tuple[dict[int, int], NDArray[np.int64]]:
    order = np.argsort(items, kind="stable")
    order = order[contents[order] != 0]  # What can never be read is like no other.
    items, contents = items[order], contents[order]
    sizes = np.zeros(len(items), np.uint64) if source.access is Access.BY_CHUNK else source.listing.sizes[items]
    elsewhere = np.zeros(len(items), np.bool_)
    for photos in others:
        held = photos.rows["content"]
        elsewhere |= np.isin(contents, held[held != 0])
    pairs = np.rec.fromarrays([contents[~elsewhere], sizes[~elsewhere]])
    left = items[~elsewhere]
    _, first, number_of = np.unique(pairs, return_index=True, return_inverse=True)
    stays = left[first[number_of]]
    duplicate = stays != left
    return dict(zip(left[duplicate].tolist(), stays[duplicate].tolist(), strict=True)), items[elsewhere]


def _hash_all(
    pool: ThreadPoolExecutor,
    source: Source,
    items: NDArray[np.int64],
    threads: int,
    failures: list[str],
    progress: Progress,
) -> NDArray[np.uint64]:
    """`content_of` each of `items`, 0 for what can never be read; a failed read adds a line to `failures`."""
    in_any_order = source.access is Access.ANY_ORDER
    found = _in_batches(pool, source, items, threads) if in_any_order else _read_through(source, items)
    made = np.zeros(len(items), np.uint64)
    for slot, content in enumerate(found):
        if isinstance(content, str):
            failures.append(content)
            if len(failures) >= MOST_FAILURES or not in_any_order:
                break
        else:
            made[slot] = content
        progress.add(1, 0)
    return made


def _in_batches(
    pool: ThreadPoolExecutor, source: Source, items: NDArray[np.int64], threads: int
) -> Iterator[int | str]:
    size = _BATCH_PHOTOS * threads
    for first in range(0, len(items), size):
        yield from pool.map(lambda item: _read_one(source, item), items[first : first + size].tolist())


def _read_one(source: Source, item: int) -> int | str:
    """What stands for one photo, or what kept it from being read."""
    try:
        return content_of(source.read(item))
    except InputError:
        return 0
    except (OSError, LeanstreamError) as error:
        return _failure(source, item, error)


def _read_through(source: Source, items: NDArray[np.int64]) -> Iterator[int | str]:
    """The same of `items`, which ascend; the first failure is the last one."""
    data = source.read_through(items.tolist())
    for item in items.tolist():
        try:
            found = next(data)
            yield 0 if isinstance(found, InputError) else content_of(found)
        except (OSError, LeanstreamError) as error:
            yield _failure(source, item, error)
            return


def _failure(source: Source, item: int, error: Exception) -> str:
    return f"{printable(source.listing[item])} ({text_of(error)})"


def _file(number: int) -> str:
    return f"{STATE_FOLDER}/digests-{number:06d}.bin"


def _sealed(key: bytes, data: bytes) -> bytes:
    """`data` with a digest of it and of the photos that it is about: others are not believed."""
    return data + hashlib.sha256(key + data).digest()


def _load(place: Place, number: int, key: bytes) -> NDArray[np.uint64] | None:
    sealed = place.load(_file(number)) or b""
    data = sealed[: -hashlib.sha256().digest_size]
    return np.frombuffer(data, "<u8") if sealed == _sealed(key, data) else None

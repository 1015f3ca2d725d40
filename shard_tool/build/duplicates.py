"""Photos with the same bytes: the first one in the listing stays.

    candidates of one group (equal sizes only) ──read, hash (threads)──> .build/digests-000007.npy
    all digests ──> {duplicate: the one that stays}

What was hashed is not hashed again after a kill.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LeanstreamError
from shard_tool.build.group import MOST_FAILURES
from shard_tool.build.place import STATE_FOLDER, Place
from shard_tool.build.plan import Plan
from shard_tool.build.run import Progress, source_error
from shard_tool.sources.listing import printable
from shard_tool.sources.protocol import Access, InputError, Source

DIGEST_BYTES = 16
_DIGEST = np.dtype(f"V{DIGEST_BYTES}")
_BATCH_PHOTOS = 256
"""Photos a thread that are handed out together."""


def find_candidates(
    source: Source, plan: Plan, known: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], ...]:
    """The photos of each group of `plan` that must be hashed, and at the end those of `known`, an earlier part.

    Only photos of equal size can be equal; of the rows of a table sizes are not known, and so all are candidates. Empty
    files and those that are left out anyway are none.
    """
    takes_part = np.zeros(len(source.listing), np.bool_)
    for items in plan.groups:
        takes_part[items[plan.split_of[items] >= 0]] = True
    if known is not None:
        takes_part |= known
    sizes = source.listing.sizes
    takes_part &= sizes > 0
    if source.access is Access.BY_CHUNK:
        sizes = np.ones_like(sizes)
    _, number_of, counts = np.unique(sizes[takes_part], return_inverse=True, return_counts=True)
    candidate = np.zeros(len(sizes), np.bool_)
    candidate[takes_part] = counts[number_of] > 1
    groups = [items[candidate[items]] for items in plan.groups]
    if known is not None:
        groups.append(np.flatnonzero(candidate & known))
    return tuple(groups)


def find_duplicates(
    place: Place,
    source: Source,
    groups: tuple[NDArray[np.int64], ...],
    known: NDArray[np.bool_] | None,
    *,
    threads: int,
    report: Callable[[int, int], None],
) -> dict[int, int]:
    """For each duplicate among `groups`, the photo that stays: one of `known` if there is, else the first one.

    Raises `SourceError` where photos could not be read this time.
    """
    progress = Progress(report)
    progress.add(0, 0)
    failures: list[str] = []
    digests: list[NDArray[np.void]] = []
    with ThreadPoolExecutor(threads, "hash") as pool:
        for number, items in enumerate(groups):
            found = _load(place, number, len(items))
            if found is None:
                found = _hash_all(pool, source, items, threads, failures, progress)
                if len(failures) >= MOST_FAILURES:
                    break
                if not failures:
                    _store(place, number, found)
            else:
                progress.add(len(items), 0)
            digests.append(found)
    if failures:
        raise source_error(failures)
    if known is None:
        known = np.zeros(len(source.listing), np.bool_)
    return _first_of_each(np.concatenate(groups), np.concatenate(digests), known)


def _first_of_each(items: NDArray[np.int64], digests: NDArray[np.void], known: NDArray[np.bool_]) -> dict[int, int]:
    order = np.lexsort((items, ~known[items]))
    items, digests = items[order], digests[order]
    _, first, number_of = np.unique(digests, return_index=True, return_inverse=True)
    stays = items[first[number_of]]
    duplicate = (stays != items) & ~known[items]
    return dict(zip(items[duplicate].tolist(), stays[duplicate].tolist(), strict=True))


def _hash_all(
    pool: ThreadPoolExecutor,
    source: Source,
    items: NDArray[np.int64],
    threads: int,
    failures: list[str],
    progress: Progress,
) -> NDArray[np.void]:
    """The digest of each of `items`; a failed read adds a line to `failures`."""

    if source.access is Access.ANY_ORDER:
        found = _in_batches(pool, source, items, threads)
    else:
        found = _read_through(source, items)
    made: list[bytes] = []
    for digest in found:
        if isinstance(digest, str):
            failures.append(digest)
            if len(failures) >= MOST_FAILURES or source.access is not Access.ANY_ORDER:
                break
        made.append(digest if isinstance(digest, bytes) else bytes(DIGEST_BYTES))
        progress.add(1, 0)
    return np.array(made, _DIGEST)


def _in_batches(
    pool: ThreadPoolExecutor, source: Source, items: NDArray[np.int64], threads: int
) -> Iterator[bytes | str]:
    size = _BATCH_PHOTOS * threads
    for first in range(0, len(items), size):
        yield from pool.map(lambda item: _read_one(source, item), items[first : first + size].tolist())


def _read_one(source: Source, item: int) -> bytes | str:
    """The digest of one photo, or what kept it from being read."""
    try:
        return _digest(source.read(item), item)
    except InputError:
        return _digest(None, item)
    except (OSError, LeanstreamError) as error:
        return _failure(source, item, error)


def _read_through(source: Source, items: NDArray[np.int64]) -> Iterator[bytes | str]:
    """The digests of `items`, which ascend; the first failure is the last one."""
    data = source.read_through(items.tolist())
    for item in items.tolist():
        try:
            found = next(data)
            yield _digest(None if isinstance(found, InputError) else found, item)
        except (OSError, LeanstreamError) as error:
            yield _failure(source, item, error)
            return


def _digest(data: bytes | None, item: int) -> bytes:
    """The digest of a photo; one that can never be read is like no other."""
    return hashlib.blake2b(b"unreadable %d" % item if data is None else data, digest_size=DIGEST_BYTES).digest()


def _failure(source: Source, item: int, error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    return f"{printable(source.listing[item])} ({why})"


def _file(number: int) -> str:
    return f"{STATE_FOLDER}/digests-{number:06d}.npy"


def _load(place: Place, number: int, count: int) -> NDArray[np.void] | None:
    data = place.load(_file(number))
    if data is None:
        return None
    with contextlib.suppress(ValueError):
        found: NDArray[np.void] = np.load(io.BytesIO(data), allow_pickle=False)
        if found.dtype == _DIGEST and len(found) == count:
            return found
    return None


def _store(place: Place, number: int, digests: NDArray[np.void]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, digests, version=(1, 0), allow_pickle=False)
    place.store(_file(number), buffer.getvalue())

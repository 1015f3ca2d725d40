"""One shard into the disk cache: fetched, compared with its sha256, indexed.

An attempt that breaks off is continued where it ended, and what comes out wrong is fetched anew; every error says
`fetch:`, the address, the attempts and the last cause.
"""

import hashlib
import os
import threading
from collections.abc import Collection
from pathlib import Path

from pipeline.errors import ShardError, TransportError, UserError
from pipeline.format import Index, Shard
from pipeline.remote.cache import Claim, DiskCache
from pipeline.remote.transport import CHUNK_BYTES, Patience, join, read_bytes, read_chunks, retrying, waiting
from pipeline.shards.shard import check_index
from pipeline.tar import scan_tar

_FETCHES = 3
"""Times that wrong bytes are fetched before they count as what the server has."""
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.02, 0.5
"""Time between looks at a shard that another thread or process is fetching: more and more."""


def address(location: Path | str, name: str) -> str:
    """A file of a shard set, as a URL or as a path."""
    return join(location, name) if isinstance(location, str) else os.path.join(location, name)


def fetch(
    location: Path | str,
    shard: Shard,
    cache: DiskCache,
    *,
    spare: Collection[str] = (),
    patience: Patience,
    stopped: threading.Event | None = None,
) -> int:
    """A descriptor that pins the cache's copy of a shard, which is fetched where there is none.

    Args:
        location: folder or URL of the shard set.
        shard: which of its shards.
        cache: where to.
        spare: sha256s of shards that must not be evicted for this one.
        patience: how long a server is waited for.
        stopped: ends it with `StoppedError`.

    Raises:
        NoRoomError: where the cache is full of what is in use.
        ShardError: where the shard is missing or other than shardset.json says.
        TransportError: where it could not be fetched in time.
        UserError: where the server or the disk refuses.
    """
    pause = _FIRST_LOOK_S
    while (pinned := cache.pin(shard)) is None:
        claim = cache.claim(shard, spare)
        if claim is None:
            waiting(stopped)(pause)
            pause = min(2 * pause, _LONGEST_LOOK_S)
            continue
        with claim:
            return claim.finish(_fill(location, shard, claim, patience, stopped))
    return pinned


def _fill(
    location: Path | str, shard: Shard, claim: Claim, patience: Patience, stopped: threading.Event | None
) -> bytes:
    """Fetch tar and index; returns the index."""
    index = _fetch_index(address(location, f"{shard.name}.index"), shard, patience, stopped)
    url = address(location, f"{shard.name}.tar")
    for _ in range(_FETCHES):
        sha256 = _fetch_tar(url, shard, claim, patience, stopped)
        if sha256 == shard.sha256:
            break
    else:
        raise ShardError(
            f"fetch: {url} must have the sha256 {shard.sha256[:12]} of shardset.json; got {sha256[:12]} in each of "
            f"{_FETCHES} fetches. Copy the shard there again, or rebuild the set."
        )
    if index is None:
        index = scan_tar(claim.path)
        check_index(index, shard, url, "Rebuild the set")
    return index.to_bytes()


def _fetch_index(url: str, shard: Shard, patience: Patience, stopped: threading.Event | None) -> Index | None:
    """The index of the shard; None where there is none."""
    for attempt in range(1, _FETCHES + 1):
        try:
            data = read_bytes(url, what=f"fetch: {url}", patience=patience, stopped=stopped)
        except (FileNotFoundError, UserError):  # A store that may not be listed refuses what is not there.
            return None
        try:
            index = Index.from_bytes(data, f"fetch: {url}")
            check_index(index, shard, f"fetch: {url}", "Delete it, and it is rebuilt from the tar")
            break
        except ShardError:
            if attempt == _FETCHES:
                raise
    return index


def _fetch_tar(url: str, shard: Shard, claim: Claim, patience: Patience, stopped: threading.Event | None) -> str:
    """Fetch the whole tar, in as many attempts as it takes; returns the sha256 of what came."""
    digest, have = hashlib.sha256(), 0

    def attempt() -> None:
        nonlocal have
        for chunk in read_chunks(url, have, shard.bytes, patience=patience, stopped=stopped):
            claim.write(chunk, have)
            digest.update(chunk)
            have += len(chunk)
        if have < shard.bytes:
            raise EOFError(f"the end at byte {have} of {shard.bytes}")

    try:
        retrying(
            attempt,
            f"fetch: {url}",
            patience=patience,
            progress=lambda: have // CHUNK_BYTES,
            wait=waiting(stopped),
        )
    except FileNotFoundError:
        raise ShardError(
            f"fetch: {url} must exist; got no such file. Copy it there again, or rebuild the set."
        ) from None
    except TransportError as error:
        if not isinstance(error.__cause__, EOFError):
            raise
        raise ShardError(
            f"fetch: {url} must have {shard.bytes} bytes; got {error.__cause__} in {patience.attempts} attempts. "
            "Copy the shard there again, or rebuild the set."
        ) from error
    return digest.hexdigest()

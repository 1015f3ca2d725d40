"""One shard into the disk cache: fetched, compared with its sha256, indexed.

An attempt that breaks off is continued where it ended, and what comes out wrong is fetched anew; every error says
`fetch:`, the address and the last cause.
"""

import hashlib
import threading
from collections.abc import Collection

from pipeline.errors import ShardError, TransportError, UserError
from pipeline.files import Place, inside
from pipeline.format import Index, Shard, ShardSet, index_bytes
from pipeline.remote.cache import Claim, DiskCache
from pipeline.remote.transport import CHUNK_BYTES, Patience, pause, read_bytes, read_chunks, retrying
from pipeline.tar import scan_tar

_FETCHES = 3
"""Times that wrong bytes are fetched before they count as what the server has."""
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.02, 0.5
"""Time between looks at a shard that another thread or process is fetching: more and more."""


def fetch(
    shards: ShardSet,
    shard: Shard,
    cache: DiskCache,
    *,
    spare: Collection[str] = (),
    patience: Patience,
    stopped: threading.Event | None = None,
) -> int:
    """A descriptor that pins the cache's copy of a shard of a set, which is fetched where there is none.

    `spare` are the sha256s of shards that must not be evicted for this one; `stopped` ends it with `StoppedError`.

    Raises:
        NoRoomError: where the cache is full of what is in use.
        ShardError: where the shard is missing or other than shardset.json says.
        TransportError: where it could not be fetched in time.
        UserError: where the server or the disk refuses.
    """
    wait_s = _FIRST_LOOK_S
    while (pinned := cache.pin(shard)) is None:
        claim = cache.claim(shard, spare, stopped)
        if claim is None:
            pause(wait_s, stopped)
            wait_s = min(2 * wait_s, _LONGEST_LOOK_S)
            continue
        tar = inside(shards.location, f"{shard.name}.tar")
        with claim:
            index = _fetch_index(inside(shards.location, f"{shard.name}.index"), shard, patience, stopped)
            _fetch_tar(tar, shard, claim, patience, stopped)
            if index is None:
                index = scan_tar(claim.path, shards.image_member).check(shard, f"fetch: {tar}", "Rebuild the set")
            return claim.finish(index.to_bytes())
    return pinned


def _fetch_index(place: Place, shard: Shard, patience: Patience, stopped: threading.Event | None) -> Index | None:
    """The index of the shard; None where there is none."""
    what, most = f"fetch: {place}", index_bytes(shard.samples) + 1  # One byte more, to tell a file that is too long.
    for left in reversed(range(_FETCHES)):
        try:
            data = read_bytes(place, what=what, most=most, patience=patience, stopped=stopped)
            return Index.from_bytes(data, what).check(shard, what, "Delete it, and it is rebuilt from the tar")
        except (FileNotFoundError, UserError):  # A store that may not be listed refuses what is not there.
            return None
        except ShardError:
            if not left:
                raise
    raise AssertionError("the loop returns or raises")


def _fetch_tar(place: Place, shard: Shard, claim: Claim, patience: Patience, stopped: threading.Event | None) -> None:
    """Fill the claim with the whole tar, in as many attempts as it takes."""
    what, remedy = f"fetch: {place}", "Copy the shard there again, or rebuild the set."
    digest, have = hashlib.sha256(), 0

    def attempt() -> None:
        nonlocal have
        for chunk in read_chunks(place, have, shard.bytes, patience=patience, stopped=stopped):
            claim.write(chunk, have)
            digest.update(chunk)
            have += len(chunk)
        if have < shard.bytes:
            raise EOFError(f"the end at byte {have} of {shard.bytes}")

    def chunks() -> int:
        return have // CHUNK_BYTES

    for _ in range(_FETCHES):
        digest, have = hashlib.sha256(), 0
        try:
            retrying(attempt, what, patience=patience, progress=chunks, stopped=stopped)
        except FileNotFoundError:
            raise ShardError(f"{what} must exist; got no such file. {remedy}") from None
        except TransportError as error:
            if not isinstance(error.__cause__, EOFError):
                raise
            raise ShardError(
                f"{what} must have {shard.bytes} bytes; got {error.__cause__} in {patience.attempts} attempts. {remedy}"
            ) from error
        if digest.hexdigest() == shard.sha256:
            return
    raise ShardError(
        f"{what} must have the sha256 {shard.sha256[:12]} of shardset.json; got {digest.hexdigest()[:12]} in each of "
        f"{_FETCHES} fetches. {remedy}"
    )

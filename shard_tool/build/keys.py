"""The key of each sample: its path without the extension, in characters that every WebDataset reader accepts."""

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

from pipeline.format import MAX_KEY_BYTES
from shard_tool.sources.listing import Listing

_UNSAFE = re.compile(rb"[^A-Za-z0-9_/-]")
# A dot would end the key, and only ASCII means the same to every tar reader.


class Keys:
    """The keys of a whole listing, made on demand; only the few that need a hash are remembered."""

    def __init__(self, listing: Listing, taken: NDArray[np.uint64] | None = None) -> None:
        """`taken` are the hashes of keys that samples outside the listing have."""
        self._listing = listing
        self._taken = np.empty(0, np.uint64) if taken is None else taken
        self._hashed: set[int] = set()
        while clashes := self._clashes():
            self._hashed |= clashes

    def __getitem__(self, item: int) -> str:
        path = self._listing[item]
        folder, slash, name = path.rpartition(b"/")
        name, _, row = name.partition(b"#")  # Of a table: its rows are told apart by their numbers.
        stem = name.rpartition(b".")[0] or name
        key = _UNSAFE.sub(b"_", folder + slash + stem + (b"_" + row if row else b""))
        if item in self._hashed or len(key) > MAX_KEY_BYTES:
            key = key[: MAX_KEY_BYTES - 9] + b"-" + hashlib.sha256(path).hexdigest()[:8].encode()
        return key.decode()

    def hashes(self) -> NDArray[np.uint64]:
        """[inputs] `name_hash` of every key."""
        count = len(self._listing)
        return np.fromiter((name_hash(self[item].encode()) for item in range(count)), np.uint64, count)

    def _clashes(self) -> set[int]:
        """Items that share their key with another and have no hash yet."""
        hashes = self.hashes()
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        outside = np.flatnonzero(np.isin(hashes, self._taken)) if len(self._taken) else same[:0]
        return {*order[same].tolist(), *order[same + 1].tolist(), *outside.tolist()} - self._hashed


def name_hash(name: bytes) -> int:
    """64 bits that stand for `name` where 200,000 strings would cost too much memory."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def in_share(key: str, share: float) -> bool:
    """Whether `key` falls into the given share of all keys; a function of the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2**64

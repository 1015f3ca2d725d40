"""The key of each sample: its path without the extension, in characters that every reader of a tar takes alike.

张三/0 1.jpg    张三/0_1       letters, marks and digits of every script, as composed characters (NFC)
__x__/._a.jpg   _x__/_a        webdataset skips a first folder `__x__`, datasets names that begin with `.` or `__`
a.jpg, A.png    a-509b0d46     they would be one file where a disk tells no cases apart
"""

import hashlib
import re
import unicodedata

import numpy as np

from pipeline.format import MAX_KEY_BYTES
from shard_tool.sources.listing import Listing, name_hash, printable

_UNSAFE = re.compile(r"[^\w/-]")
"""A dot would end the key; blanks and signs mean something to shells and readers. Marks of letters are looked up."""
_SKIPPED = re.compile(r"(?:(?<=/)|^)__+")
_SLASHES = re.compile(r"^/+|(?<=/)/+")
_ROW = re.compile(r"#(\d+)$")
"""Behind the name of a table or of its image: rows are told apart by their numbers."""
_HASH_DIGITS = 8


class Keys:
    """The keys of a whole listing, made on demand; only the few that need a hash are remembered."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._digits: dict[int, int] = {}
        """Of the hash of each item that shares its key with others."""
        while clashes := self._clashes():
            for item in clashes - self._digits.keys() or clashes:
                self._digits[item] = self._digits.get(item, 0) + _HASH_DIGITS
                assert self._digits[item] <= 64, "the paths of a listing differ"

    def __getitem__(self, item: int) -> str:
        path = self._listing[item]
        folder, slash, name = printable(path).rpartition("/")
        row = _ROW.search(name)
        name = name[: row.start()] if row else name
        key = folder + slash + (name.rpartition(".")[0] or name) + (f"_{row[1]}" if row else "")
        if not key.isascii():
            key = unicodedata.normalize("NFC", key)
        key = _SKIPPED.sub("_", _SLASHES.sub("", _UNSAFE.sub(_mark_or_underscore, key)))
        digits = self._digits.get(item, 0)
        if digits or len(key.encode()) > MAX_KEY_BYTES:
            digits = max(digits, _HASH_DIGITS)
            key = key.encode()[: MAX_KEY_BYTES - 1 - digits].decode(errors="ignore")
            key += "-" + hashlib.sha256(path).hexdigest()[:digits]
        return key

    def _clashes(self) -> set[int]:
        """Items whose keys are one to a disk that tells no cases apart."""
        keys = (self[item] for item in range(len(self._listing)))
        folded = (unicodedata.normalize("NFC", key.casefold()).encode() for key in keys)
        hashes = np.fromiter(map(name_hash, folded), np.uint64)
        _, groups, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
        return set(np.flatnonzero(sizes[groups] > 1).tolist())


def _mark_or_underscore(found: re.Match[str]) -> str:
    return found[0] if unicodedata.category(found[0]).startswith("M") else "_"


def in_share(key: str, share: float) -> bool:
    """Whether `key` falls into the given share of all keys; a function of the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2**64

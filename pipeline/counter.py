"""Random numbers without a generator: every draw is a pure function of a key and a counter.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), written with the four operators
that numpy arrays and torch tensors share, so that a CPU and any GPU give the same words.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = Any
"""A numpy array or a torch tensor, dtype int64, of values in [0, 2^32); no type covers the two."""

_WORD = 0xFFFFFFFF
_CHUNK = 1 << 13
"""Counters hashed at once: the temporary arrays stay small, whatever the length."""


def make_key(*parts: int | str) -> tuple[int, int]:
    """Two 32-bit key words from whatever names the stream, e.g. a seed, a purpose and an epoch."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Four words for each counter of four words; all arrays broadcast against each other."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product wraps around in int64, and its two 32-bit halves are right all the same.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD, ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def philox_in_place(even: NDArray[np.uint64], odd: NDArray[np.uint64], key: tuple[int, int]) -> None:
    """`philox` in half as many calls, for threads that pay for each of them.

    `even` [2, ...] holds words 0 and 2 of the counters, `odd` [2, ...] words 1 and 3; the results take their place.
    """
    products = np.empty_like(even)
    k0, k1 = key
    for _ in range(10):
        np.multiply(even[0], 0xD2511F53, out=products[1])
        np.multiply(even[1], 0xCD9E8D57, out=products[0])
        np.right_shift(products, 32, out=even)
        even ^= odd
        even[0] ^= k0
        even[1] ^= k1
        np.bitwise_and(products, _WORD, out=odd)
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD


def draw_words(positions: NDArray[np.int64], *key: int | str) -> NDArray[np.int64]:
    """One word in [0, 2^32) for each position; int64, of the shape of `positions`."""
    zero = np.zeros_like(positions)
    words: NDArray[np.int64] = philox((positions & _WORD, positions >> 32, zero, zero), make_key(*key))[0]
    return words


def permutation(count: int, *key: int | str) -> NDArray[np.int64]:
    """The permutation of range(count) that `key` names; the same on every machine and with every numpy version.

    A stable sort by 64-bit hashes, two of which come from each counter.
    """
    hashes = np.empty((count + 1) // 2 * 2, np.uint64)
    words = make_key(*key)
    for start in range(0, len(hashes) // 2, _CHUNK):
        low = np.arange(start, min(start + _CHUNK, len(hashes) // 2), dtype=np.int64)
        zero = np.zeros_like(low)
        first = philox((low & _WORD, low >> 32, zero, zero), words)
        hashes[2 * start : 2 * (start + len(low)) : 2] = first[0] << 32 | first[1]
        hashes[2 * start + 1 : 2 * (start + len(low)) : 2] = first[2] << 32 | first[3]
    return np.argsort(hashes[:count], kind="stable")

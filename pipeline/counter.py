"""Random numbers without a generator: every draw is a pure function of a key and a counter.

Words by Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), permutations and normals
made of them: the same bits on every machine. Of floats, only the operations are used that IEEE 754 rounds exactly,
which are + - * / and the square root; the last bits of a C library's or a GPU's logarithm, sine and cosine are its
own, so they are series of those operations here.
"""

import hashlib
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_WORD = 0xFFFFFFFF
_CHUNK = 1 << 13
"""Counters hashed at once: the temporary arrays stay small, whatever the length."""
_BITS = 24
"""Of each word that are used: as many as a float32 holds exactly."""
_AT_ONCE = 1 << 12
"""Counters, of four normals each: enough for long loops, and what they need fits a processor's cache."""
_MANTISSA_BITS = 52
_ROOT_HALF = int(np.sqrt(np.float64(0.5)).view(np.int64))
"""The bits of sqrt(1/2)."""
_MINUS_TWO_LN_2 = -1.3862943611198906
# Taylor series, the highest power first; what is left out is below 1e-10.
_LOGARITHM = np.array([-4 / n for n in (13, 11, 9, 7, 5, 3, 1)])
"""-2 ln((1 + x) / (1 - x)) / x, in powers of x^2."""
_COSINE_AND_SINE = np.array(
    [[-((-1) ** n) / math.factorial(2 * n + odd) for odd in (0, 1)] for n in range(10, -1, -1)]
).reshape(-1, 2, 1, 1, 1)
"""-cos(x) and -sin(x) / x, in powers of x^2."""


def make_key(*parts: int | str) -> tuple[int, int]:
    """Two 32-bit key words from whatever names the stream, e.g. a seed, a purpose and an epoch."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def philox(*counter: ArrayLike, key: tuple[int, int]) -> NDArray[np.uint64]:
    """Four words [4, ...] in [0, 2^32) for each counter of up to four words, which broadcast against each other."""
    even, odd = _counters(np.broadcast_shapes(*map(np.shape, counter)), *counter)
    _rounds(even, odd, key)
    return np.stack([even[0], odd[0], even[1], odd[1]])


def draw_words(positions: NDArray[np.int64], *key: int | str) -> NDArray[np.int64]:
    """One word in [0, 2^32) for each position; int64, of the shape of `positions`."""
    words: NDArray[np.int64] = philox(positions & _WORD, positions >> 32, key=make_key(*key))[0].astype(np.int64)
    return words


def permutation(count: int, *key: int | str) -> NDArray[np.int64]:
    """The permutation of range(count) that `key` names; the same on every machine and with every numpy version.

    A stable sort by 64-bit hashes, two of which come from each counter.
    """
    hashes = np.empty((count + 1) // 2 * 2, np.uint64)
    words = make_key(*key)
    for start in range(0, len(hashes) // 2, _CHUNK):
        low = np.arange(start, min(start + _CHUNK, len(hashes) // 2), dtype=np.int64)
        first = philox(low & _WORD, low >> 32, key=words)
        hashes[2 * start : 2 * (start + len(low)) : 2] = first[0] << 32 | first[1]
        hashes[2 * start + 1 : 2 * (start + len(low)) : 2] = first[2] << 32 | first[3]
    return np.argsort(hashes[:count], kind="stable")


def normal(positions: ArrayLike, count: int, *, seed: int, stream: str) -> NDArray[np.float32]:
    """Standard normals [B, count], a pure function of (seed, stream, position, element), to the last bit.

    `positions` is int64 [B]. A Philox counter makes four of them, by the method of Box and Muller (1958); the radius
    comes of 24 bits, which is why |x| never exceeds 5.77.
    """
    places = np.asarray(positions, np.int64).view(np.uint64)
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    key = make_key("noise", stream, seed)
    normals = np.empty((len(places), count), np.float32)
    rows = max(1, _AT_ONCE // max(1, len(blocks)))
    for top in range(0, len(places), rows):
        for left in range(0, len(blocks), _AT_ONCE):
            drawn = _draw(places[top : top + rows], blocks[left : left + _AT_ONCE], key)
            normals[top : top + rows, 4 * left : 4 * left + drawn.shape[1]] = drawn[:, : count - 4 * left]
    return normals


def _draw(places: NDArray[np.uint64], blocks: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.float32]:
    """[b, 4 k]: four normals for each of `places` [b] and `blocks` [k]."""
    shape = (len(places), len(blocks))
    even, odd = _counters(shape, (places & _WORD)[:, None], (places >> 32)[:, None], blocks)
    _rounds(even, odd, key)
    points = _unit_circle(odd)
    points *= _radius(even)
    normals = np.empty((*shape, 4), np.float32)
    for element in range(4):
        normals[:, :, element] = points[element % 2, element // 2]
    return normals.reshape(len(places), -1)


def _radius(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """sqrt(-2 ln(x)) of x from the `words`, of any shape; x is one of 1 / 2^24, 2 / 2^24, ... 1."""
    x = (words >> 32 - _BITS).astype(np.float64)
    x += 1
    x *= 2.0**-_BITS
    # In place of x: what is left of it, from sqrt(1/2) to sqrt(2), when a power of two is taken out.
    x_bits = x.view(np.int64)
    exponent = x_bits - _ROOT_HALF
    exponent >>= _MANTISSA_BITS
    x_bits -= exponent << _MANTISSA_BITS
    ratio = x - 1
    x += 1
    ratio /= x
    total = _polynomial(np.multiply(ratio, ratio, out=x), _LOGARITHM)
    total *= ratio
    total += np.multiply(exponent, _MINUS_TWO_LN_2, out=ratio)
    return np.sqrt(total, out=total)


def _unit_circle(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Cosine and sine [2, 2, b, k] of angles from `words` [2, b, k]; an angle is one of 2^24 parts of a turn."""
    # Half a turn less: from -pi to pi, where cosine and sine are the negative of what is wanted.
    angle = (words >> 32 - _BITS).astype(np.float64)
    angle -= 2.0 ** (_BITS - 1)
    angle *= 2 * math.pi * 2.0**-_BITS
    points = _polynomial(angle * angle, _COSINE_AND_SINE)
    points[1] *= angle
    return points


def _polynomial(x: NDArray[np.float64], coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Horner's scheme, the coefficient of the highest power first; the others' shapes broadcast against x."""
    total: NDArray[np.float64] = x * coefficients[0]
    for coefficient in coefficients[1:-1]:
        total += coefficient
        total *= x
    total += coefficients[-1]
    return total


def _counters(shape: tuple[int, ...], *words: ArrayLike) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Counters [2, *shape], the words 0 and 2 apart from 1 and 3; words that are not given are 0."""
    even, odd = np.zeros((2, *shape), np.uint64), np.zeros((2, *shape), np.uint64)
    for number, word in enumerate(words):
        (odd if number % 2 else even)[number // 2] = word
    return even, odd


def _rounds(even: NDArray[np.uint64], odd: NDArray[np.uint64], key: tuple[int, int]) -> None:
    """Ten rounds in place, in few calls: threads pay for each of them."""
    products = np.empty_like(even)
    k0, k1 = key
    for _ in range(10):
        np.multiply(even[0], 0xD2511F53, out=products[1, ...])
        np.multiply(even[1], 0xCD9E8D57, out=products[0, ...])
        np.right_shift(products, 32, out=even)
        even ^= odd
        even[0] ^= k0
        even[1] ^= k1
        np.bitwise_and(products, _WORD, out=odd)
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD

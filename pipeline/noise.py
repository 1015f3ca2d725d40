"""Gaussian noise that belongs to a sample's position, not to a generator, a device or a micro-batch.

The same bits on every machine: only integers, and the operations on float64 that IEEE 754 rounds exactly, which are
+ - * / and the square root. The last bits of a C library's or a GPU's logarithm, sine and cosine are its own; so they
are series of those operations here.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.counter import make_key, philox_in_place

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
    even, odd = np.zeros((2, *shape), np.uint64), np.zeros((2, *shape), np.uint64)
    even[0], odd[0], even[1] = (places & 0xFFFFFFFF)[:, None], (places >> 32)[:, None], blocks
    philox_in_place(even, odd, key)
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

"""Who is drawn: the attributes of a face and every other number behind it, each a pure function of (seed, index, name).

A draw is a hash of its name, so a new trait disturbs no other one, and no library's generator can change the faces.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import TypeVar

from pipeline.errors import UserError

T = TypeVar("T")

HAIR_COLOURS: dict[str, float] = {"Black_Hair": 0.27, "Blond_Hair": 0.25, "Brown_Hair": 0.27, "Gray_Hair": 0.21}
"""One categorical draw: exactly one of these columns is 1."""

CHANCES: dict[str, float] = {
    **dict.fromkeys(("Mustache", "Wearing_Hat"), 0.3),
    **dict.fromkeys(("Bangs", "Eyeglasses", "Narrow_Eyes", "Pale_Skin", "Wearing_Earrings", "Wearing_Necklace"), 0.35),
    **dict.fromkeys(("Big_Nose", "Bushy_Eyebrows", "Mouth_Slightly_Open", "Rosy_Cheeks", "Wavy_Hair"), 0.4),
    "Wearing_Lipstick": 0.4,
    "Smiling": 0.5,
    "No_Beard": 0.65,
}
"""Independent draws, each with the probability of a 1."""

ATTRIBUTES: tuple[str, ...] = tuple(sorted([*HAIR_COLOURS, *CHANCES]))
"""The columns, named and ordered as in CelebA."""


@dataclass(frozen=True)
class Person:
    """One face to draw: its attributes, and a source of named numbers for everything that no column tells."""

    index: int
    seed: int
    attributes: Mapping[str, int]

    def has(self, attribute: str) -> bool:
        """Whether the attribute is 1."""
        return self.attributes[attribute] == 1

    def between(self, name: str, low: float, high: float) -> float:
        """Draw a number of [low, high)."""
        return low + (high - low) * _uniform(self.seed, self.index, name)

    def chance(self, name: str, probability: float) -> bool:
        """Draw True with this probability."""
        return _uniform(self.seed, self.index, name) < probability

    def pick(self, name: str, options: Sequence[T]) -> T:
        """Draw one of the options."""
        return options[int(_uniform(self.seed, self.index, name) * len(options))]


def draw_person(index: int, *, seed: int = 0, overrides: Mapping[str, int] | None = None) -> Person:
    """Draw who face `index` is, without painting it; attributes are independent, the four hair colours are one draw.

    Args:
        index: any integer; neighbours have nothing in common.
        seed: other seeds give other people.
        overrides: attributes to set to 0 or 1 in place of the draw; all else about the person stays as it was. A hair
            colour can only be set to 1, and then replaces the one that was drawn.

    Raises:
        UserError: an override names no attribute, or its value is not allowed.
    """
    attributes = dict.fromkeys(ATTRIBUTES, 0)
    reached = list(accumulate(HAIR_COLOURS.values()))
    attributes[list(HAIR_COLOURS)[bisect(reached[:-1], _uniform(seed, index, "hair colour"))]] = 1
    for name, probability in CHANCES.items():
        attributes[name] = int(_uniform(seed, index, name) < probability)
    for name, value in (overrides or {}).items():
        if name not in attributes:
            raise UserError(f"an override must name an attribute; got {name!r}. Choose from {', '.join(ATTRIBUTES)}.")
        if value not in ((1,) if name in HAIR_COLOURS else (0, 1)):
            raise UserError(
                f"the override of {name} must be {'1' if name in HAIR_COLOURS else '0 or 1'}; got {value!r}. "
                "To take a hair colour away, set another one to 1."
            )
        if name in HAIR_COLOURS:
            attributes.update(dict.fromkeys(HAIR_COLOURS, 0))
        attributes[name] = value
    return Person(index, seed, attributes)


def _uniform(seed: int, index: int, name: str) -> float:
    digest = blake2b(f"{seed}/{index}/{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53

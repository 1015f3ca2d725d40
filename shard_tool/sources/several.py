"""Several sources as one: their listings one after the other.

Paths get the name of their source in front only if two sources have the same path. A part without photos counts files,
and finds the tables that lie beside the others.
"""

import dataclasses
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.sources.listing import JoinedListing, name_hash, printable
from shard_tool.sources.protocol import Access, InputError, Known, SideFile, Source

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class SeveralSources:
    """Sources in the order in which they were named."""

    parts: tuple[Source, ...]
    listing: JoinedListing
    known: Known

    @classmethod
    def join(cls, parts: Sequence[Source], split_of: NDArray[np.int8] | None = None) -> Self:
        """Join `parts`; raises `UserError` if only some of them have labels or splits, or other labels.

        `split_of` is [inputs] the split of each, if no part says its own.
        """
        full = [part for part in parts if len(part.listing)]
        prefixes = [b""] * len(parts)
        if len(full) > 1:
            hashes = np.fromiter((name_hash(path) for part in full for path in part.listing), np.uint64)
            if len(np.unique(hashes)) < len(hashes):
                prefixes = [os.fsencode(f"{name}/") for name in _distinct([part.name for part in parts])]
        known = _join_known(full)
        if split_of is not None:
            known = dataclasses.replace(known, split_of=split_of)
        return cls(tuple(parts), JoinedListing([part.listing for part in parts], prefixes), known)

    @property
    def name(self) -> str:
        """What the names of the parts begin with, else the first one."""
        names = [part.name for part in self.parts if len(part.listing)]
        if len(set(names)) == 1:
            return names[0]
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names), strict=False))
        return re.sub(r"[\W_]*\d*$", "", "".join(letter for letter, _ in alike)) or names[0]

    @property
    def ignored(self) -> Counter[str]:
        """In all parts."""
        return sum((Counter(part.ignored) for part in self.parts), Counter())

    @property
    def access(self) -> Access:
        """That of the part that needs most care."""
        return max(part.access for part in self.parts)

    @property
    def origin(self) -> dict[str, str]:
        """Of the parts that have one."""
        return {key: value for part in self.parts for key, value in part.origin.items()}

    def chunks(self) -> NDArray[np.int64]:
        """Those of the parts."""
        firsts = itertools.accumulate((len(part.listing) for part in self.parts), initial=0)
        found = [part.chunks()[1:] + first for part, first in zip(self.parts, firsts, strict=False)]
        return np.concatenate([np.zeros(1, np.int64), *found])

    def read(self, item: int) -> bytes:
        """From the part that has it."""
        part, inner = self.listing.locate(item)
        return self.parts[part].read(inner)

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        """Part after part."""
        places = map(self.listing.locate, items)
        for part, mine in itertools.groupby(places, key=lambda place: place[0]):
            yield from self.parts[part].read_through(inner for _, inner in mine)

    def carried(self, item: int) -> dict[str, object]:
        """From the part that has it."""
        part, inner = self.listing.locate(item)
        return self.parts[part].carried(inner)

    def side_files(self, file_name: str) -> list[SideFile]:
        """Those inside the parts, then those above them; beside photos that have labels nobody looks for others."""
        labelled = bool(self.known.attributes or self.known.classes)
        found = [
            dataclasses.replace(file, path=printable(prefix) + file.path if file.path else "")
            for part, prefix in zip(self.parts, self.listing.prefixes, strict=True)
            if len(part.listing) or not labelled
            for file in part.side_files(file_name)
        ]
        unique = {file.where: file for file in found}.values()
        return sorted(unique, key=lambda file: not file.inside)


def _distinct(names: Sequence[str]) -> list[str]:
    """`names`, with a number behind those that are taken."""
    found = dict[str, None]()
    for name in names:
        tries = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        found[next(new for new in tries if new not in found)] = None
    return list(found)


def _join_known(parts: Sequence[Source]) -> Known:
    """What all parts say alike: labels that only some have would be labels of some samples only."""
    knowns = [part.known for part in parts]
    first = knowns[0]
    for part, known in zip(parts, knowns, strict=True):
        if known.attributes != first.attributes or bool(known.classes) != bool(first.classes):
            raise UserError(
                f"all sources must have the same labels; got {_show(first)} in '{parts[0].name}' and {_show(known)} in "
                f"'{part.name}'. Make shards of one at a time, or choose by --include and --exclude."
            )
        if (known.split_of is None) != (first.split_of is None):
            raise UserError(
                f"all sources must say their splits, or none; got one of '{parts[0].name}' and '{part.name}' that does "
                "not. Make shards of one at a time."
            )
    values = _concatenate(known.values for known in knowns)
    return Known(
        first.where, first.attributes, values, *_join_classes(knowns), _concatenate(known.split_of for known in knowns)
    )


def _concatenate(arrays: Iterable[NDArray[T] | None]) -> NDArray[T] | None:
    full = [array for array in arrays if array is not None]
    return np.concatenate(full) if full else None


def _join_classes(knowns: Sequence[Known]) -> tuple[tuple[str, ...], NDArray[np.int32] | None]:
    """One numbering for all: that of the longest list where it begins with all others, else by sorted names."""
    names = max((known.classes for known in knowns), key=len)
    if any(known.classes != names[: len(known.classes)] for known in knowns):
        names = tuple(sorted({name for known in knowns for name in known.classes}))
    number_of = {name: number for number, name in enumerate(names)}
    found = (
        np.array([*(number_of[name] for name in known.classes), -1], np.int32)[known.class_of]
        for known in knowns
        if known.class_of is not None
    )
    return names, _concatenate(found)


def _show(known: Known) -> str:
    if known.attributes:
        return f"{len(known.attributes)} attributes ({known.attributes[0]}, ...)"
    return f"{len(known.classes)} classes" if known.classes else "none"

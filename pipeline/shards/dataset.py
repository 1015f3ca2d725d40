"""The shard sets that are read as one, how often, and through which cache.

    ["shards/a", "shards/rare*3"]  ──>  Dataset  ──>  Shards of a split, numbered through  ──>  order, open shards

One set is the case of one: its numbers and its fingerprint are its own.
"""

import bisect
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from pipeline.errors import ConfigError, UserError
from pipeline.files import Place, place_of
from pipeline.format import SPLITS, Shard, ShardSet, Split
from pipeline.remote.cache import DiskCache, default_folder
from pipeline.remote.transport import DEFAULT_PATIENCE, Patience

Source = str | os.PathLike[str] | ShardSet
"""A folder, a URL, either with `*N` behind it, or an open set."""
_REPEATED = re.compile(r"(.+)\*(\d{1,9})")
_MOST_REPEATS = 10_000


class Shards:
    """The shards of one split, over all sets of a dataset: those of the first set, then those of the next.

    A set that is repeated counts as so many sets, one behind the other.
    """

    def __init__(self, parts: Sequence[tuple[ShardSet, Split]], is_cached: Callable[[ShardSet], bool]) -> None:
        """`is_cached` says of a set whether it is read through a disk cache."""
        self._parts = parts
        self._starts = [0, *itertools.accumulate(len(split) for _, split in parts)]
        self.samples = np.concatenate([split.samples for _, split in parts])
        """[shards] Samples in each."""
        self.bytes = np.concatenate([split.bytes for _, split in parts])
        """[shards] Size of each tar."""
        self.cached = np.concatenate([np.full(len(split), is_cached(one)) for one, split in parts])
        """[shards] Whether each is read through a disk cache."""

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> tuple[ShardSet, Shard]:
        part = bisect.bisect_right(self._starts, number) - 1
        shards, split = self._parts[part]
        return shards, split[number - self._starts[part]]

    @property
    def total(self) -> int:
        """Samples in all of them together."""
        return int(self.samples.sum())

    def named(self, number: int) -> str:
        """A shard as messages name it."""
        shards, shard = self[number]
        return shard.name if len({id(shards) for shards, _ in self._parts}) == 1 else f"{shards.location}: {shard.name}"


@dataclass(frozen=True)
class Dataset:
    """Shard sets that are read as one.

    Images have one size in all of them. Names of attributes or classes count where they are the same in all.
    """

    sets: tuple[ShardSet, ...]
    repeats: tuple[int, ...]
    """How often each set is read in an epoch of the training split; other splits hold every sample once."""
    cache: Path | bool = False
    """Folder of the disk cache that shards are read through; True: the default one, as always for a URL."""
    cache_bytes: int | None = None
    """Limit of that cache; None: half of what is free there."""
    patience: Patience = DEFAULT_PATIENCE
    """How long a remote file is waited for."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a damaged sample does: `skip` leaves it out of its batch. A shard that does not open is an error."""

    def __post_init__(self) -> None:
        if not self.sets:
            raise ConfigError("shards must name a shard set; got an empty list. Name one or more folders or URLs.")
        first, known = self.sets[0], dict[str, Place]()
        for shards, repeat in zip(self.sets, self.repeats, strict=True):
            if not 1 <= repeat <= _MOST_REPEATS:
                raise ConfigError(
                    f"a set must be read 1 to {_MOST_REPEATS:,} times an epoch; got {repeat} for {shards.location}. "
                    "Leave the set out, or choose another number."
                )
            if (shards.image_size, shards.channels) != (first.image_size, first.channels):
                raise ConfigError(
                    f"sets that are read together must have images of one size; got {first.image_size} px in "
                    f"{first.location} and {shards.image_size} px in {shards.location}. Make one of them again: --size."
                )
            if shards.fingerprint in known:
                raise ConfigError(
                    f"each set must be named once; got the same samples in {known[shards.fingerprint]} and "
                    f"{shards.location}. To read it more often, write '{shards.location}*2'."
                )
            known[shards.fingerprint] = shards.location
        if self.on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error must be 'raise' or 'skip'; got {self.on_error!r}. Choose one.")
        if self.cache_bytes is not None and self.cache_bytes < 1:
            raise ConfigError(f"cache_bytes must be at least 1; got {self.cache_bytes}. Leave it out for the default.")

    @classmethod
    def open(
        cls,
        shards: "Source | Sequence[Source] | Dataset",
        *,
        cache: str | os.PathLike[str] | bool | None = None,
        cache_bytes: int | None = None,
        patience: Patience | None = None,
        on_error: Literal["raise", "skip"] | None = None,
    ) -> "Dataset":
        """Open one set or several.

        Args:
            shards: a folder, a URL (`s3://bucket/faces-64`), an open set, or a list of them. With `*N` behind it
                (`"shards/rare*3"`) a set is read N times in each epoch of its training split.
            cache: folder of a disk cache to read the shards through, or True for the default one. Sets behind a URL
                are always read through one; for a folder it pays on a slow mounted drive.
            cache_bytes: limit of that cache; default: half of what is free there.
            patience: how long a remote file is waited for.
            on_error: what a damaged sample does: `raise`, or `skip` to leave it out of its batch.

        Raises:
            UserError: where there is no set, or sets do not go together.
            ShardError: where a description is damaged.
            TransportError: where a description could not be fetched in time.
        """
        given: dict[str, Any] = {"cache": cache, "cache_bytes": cache_bytes, "patience": patience, "on_error": on_error}
        given = {name: value for name, value in given.items() if value is not None}
        if not isinstance(given.get("cache", False), bool):
            given["cache"] = _folder(given["cache"])
        if isinstance(shards, Dataset):
            return replace(shards, **given)
        alone = isinstance(shards, str | os.PathLike | ShardSet) or not isinstance(shards, Sequence)
        several: Sequence[Any] = [shards] if alone else shards  # type: ignore[assignment]
        pairs = [_open(one, patience or DEFAULT_PATIENCE) for one in several]
        return cls(tuple(one for one, _ in pairs), tuple(repeat for _, repeat in pairs), **given)

    @cached_property
    def splits(self) -> dict[str, Shards]:
        """The splits that have samples, in the order of training, validation, test."""
        names = dict.fromkeys([*SPLITS, *(name for shards in self.sets for name in shards.splits)])
        return {name: Shards(parts, self._is_cached) for name in names if (parts := self._parts(name))}

    def split(self, name: str) -> Shards:
        """The shards of one split; `UserError` where no set has any."""
        if not isinstance(name, str) or name not in self.splits:
            have = ", ".join(self.splits) or "none"
            raise UserError(f"split must be one of the set's ({have}); got '{name}' for {self.location}. Name another.")
        return self.splits[name]

    def once(self) -> Self:
        """The same sets, each sample exactly once in an epoch: not repeated, and an error if it is damaged."""
        return replace(self, repeats=(1,) * len(self.sets), on_error="raise")

    def open_cache(self) -> DiskCache | None:
        """The cache that shards are read through; None where all sets are on this machine and no cache is asked for."""
        if not any(map(self._is_cached, self.sets)):
            return None
        return DiskCache(self.cache if isinstance(self.cache, Path) else default_folder(), self.cache_bytes)

    def require_labels(self) -> None:
        """Raise `UserError` unless all samples have the same labels."""
        if self.attributes or self.classes:
            return
        if not any(one.attributes or one.classes for one in self.sets):
            raise UserError(f"labels must be in the set; got none in {self.location}. Leave labels=True out.")
        found = "; ".join(
            f"{', '.join(one.attributes or one.classes) or 'none'} in {one.location}" for one in self.sets
        )
        raise UserError(f"labels must be the same in all sets; got {found}. Leave labels=True out, or read fewer sets.")

    @property
    def image_size(self) -> int:
        """Height and width of every image, pixels."""
        return self.sets[0].image_size

    @property
    def channels(self) -> int:
        """Of every image."""
        return self.sets[0].channels

    @property
    def encoding(self) -> str:
        """Of the samples, as messages name it."""
        return ", ".join(dict.fromkeys(one.encoding for one in self.sets))

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the 0/1 attributes; empty unless all sets have the same."""
        return self._agreed([one.attributes for one in self.sets])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty unless all sets have the same."""
        return self._agreed([one.classes for one in self.sets])

    @property
    def name(self) -> str:
        """The sets' names, joined by `+`."""
        return "+".join(one.name for one in self.sets)

    @property
    def location(self) -> str:
        """Where the sets are, as messages name it."""
        here = os.path.join(os.getcwd(), "")
        return ", ".join(place.removeprefix(here) for place in self.locations)

    @property
    def locations(self) -> tuple[str, ...]:
        """What opens the sets again, from any folder of this machine."""
        return self.repeated(str(one.location) for one in self.sets)

    def repeated(self, places: Iterable[str]) -> tuple[str, ...]:
        """Names of the sets with their repeats behind them, as `open` takes them."""
        return tuple(f"{place}*{n}" if n > 1 else place for place, n in zip(places, self.repeats, strict=True))

    @property
    def parts(self) -> tuple[dict[str, Any], ...]:
        """How the sets were made."""
        return tuple(part for one in self.sets for part in one.parts)

    @property
    def fingerprint(self) -> str:
        """One set's own, else a sha256 over those of all and their repeats: equal datasets train equally."""
        if self.repeats == (1,):
            return self.sets[0].fingerprint
        lines = (f"{repeat} {one.fingerprint}\n" for one, repeat in zip(self.sets, self.repeats, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _is_cached(self, one: ShardSet) -> bool:
        return self.cache is not False or isinstance(one.location, str)

    def _parts(self, split: str) -> list[tuple[ShardSet, Split]]:
        return [
            (one, one.splits[split])
            for one, repeat in zip(self.sets, self.repeats, strict=True)
            if len(one.splits.get(split, ()))
            for _ in range(repeat if split == "train" else 1)
        ]

    @staticmethod
    def _agreed(names: list[tuple[str, ...]]) -> tuple[str, ...]:
        return names[0] if len(set(names)) == 1 else ()


def _open(one: Source, patience: Patience) -> tuple[ShardSet, int]:
    """A set, found again whatever the working folder will be, and how often it is to be read."""
    repeat = 1
    if not isinstance(one, ShardSet):
        if not isinstance(one, str | os.PathLike) or not os.fspath(one):
            raise ConfigError(f"shards must be folders, URLs or open sets; got {one!r}. Name a folder: shards/faces.")
        place, repeated = place_of(one), _REPEATED.fullmatch(os.fspath(one))
        if repeated is not None and not (isinstance(place, Path) and place.exists()):
            place, repeat = place_of(repeated[1]), int(repeated[2])
        one = ShardSet.open(place, patience=patience)
    location = one.location
    return replace(one, location=location if isinstance(location, str) else location.absolute()), repeat


def _folder(cache: object) -> Path:
    if isinstance(cache, str | os.PathLike) and isinstance(place := place_of(cache), Path):
        return place
    raise ConfigError(f"cache must be a folder on this machine, True or False; got {cache!r}. Name another.")

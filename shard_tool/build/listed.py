"""Which photos a finished set was made of, so that an append adds the others.

    listing-000000.npy    one row a photo of the first part: hash of its path, hash of its key, its size
    listing-000001.npy    the same for the first append

Hashes, because paths are personal data and long: 24 bytes a photo. Two photos pass for one where path hash (64 bits)
and size are the same.
"""

import hashlib
import io
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShardError, UserError
from pipeline.format import ShardSet
from pipeline.machine import release_memory
from shard_tool.build.keys import name_hash
from shard_tool.build.place import Place
from shard_tool.build.plan import Plan
from shard_tool.sources.listing import Listing, printable

PHOTO = np.dtype([("path", "<u8"), ("key", "<u8"), ("bytes", "<u8")])


def listing_file(part: int) -> str:
    """Where the photos of a part are recorded."""
    return f"listing-{part:06d}.npy"


def save_listing(place: Place, part: int, plan: Plan) -> str:
    """Record the photos of `plan`, those that were left out too; returns the sha256 of the file."""
    items = np.sort(np.concatenate(plan.groups))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(np.empty(len(items), PHOTO)))
    # Filled in where it will be written from: three copies of it were the largest moment of a build.
    release_memory()
    data = bytearray(header.getvalue()) + bytearray(len(items) * PHOTO.itemsize)
    photos = np.frombuffer(data, PHOTO, offset=len(header.getvalue()))
    photos["path"] = _path_hashes(plan.listing)[items]
    photos["key"] = plan.keys.hashes()[items]
    photos["bytes"] = plan.listing.sizes[items]
    place.store(listing_file(part), data)
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Listed:
    """The photos of all parts of a set."""

    photos: NDArray[np.void]
    """[photos] of dtype `PHOTO`, by path hash."""

    @classmethod
    def read(cls, place: Place, present: ShardSet) -> Self:
        """Raises `UserError` where a part does not say of which photos it was made, `ShardError` for damage."""
        parts = [_load(place, part) for part in present.parts]
        photos = np.concatenate(parts) if parts else np.zeros(0, PHOTO)
        return cls(photos[np.argsort(photos["path"], kind="stable")])

    def compare(self, listing: Listing) -> "Growth":
        """What of `listing` is new, and what has changed."""
        hashes = _path_hashes(listing)
        place = np.minimum(np.searchsorted(self.photos["path"], hashes), max(len(self.photos) - 1, 0))
        found = self.photos["path"][place] == hashes if len(self.photos) else np.zeros(len(hashes), np.bool_)
        changed = found.copy()
        changed[found] = self.photos["bytes"][place[found]] != listing.sizes[found]
        missing = len(self.photos) - int(found.sum())
        first = printable(listing[int(np.argmax(changed))]) if changed.any() else ""
        return Growth(~found, int(changed.sum()), first, missing)


@dataclass(frozen=True)
class Growth:
    """How a source differs from the one that a set was made of."""

    new: NDArray[np.bool_]
    """[inputs] Photos whose path no part has."""
    changed: int
    """Photos of a known path with another size."""
    first_changed: str
    missing: int
    """Photos of the set that the source has no more."""

    @property
    def is_only_new(self) -> bool:
        """Whether all photos of the set are still there, as they were."""
        return not self.changed and not self.missing


def _load(place: Place, part: dict[str, Any]) -> NDArray[np.void]:
    recorded = part.get("listing")
    if recorded is None:
        raise UserError(
            f"{place.shown} must say which photos its parts were made of, to be appended to; got a set without. "
            "Build a new one with make-shards."
        )
    data = place.load(recorded["file"])
    if data is None or hashlib.sha256(data).hexdigest() != recorded["sha256"]:
        raise ShardError(
            f"{place.shown}/{recorded['file']} must be as shardset.json describes it; got "
            f"{'no such file' if data is None else 'other bytes'}. Copy it again, or build a new set."
        )
    photos: NDArray[np.void] = np.load(io.BytesIO(data), allow_pickle=False)
    return photos


def _path_hashes(listing: Listing) -> NDArray[np.uint64]:
    return np.fromiter(map(name_hash, listing), np.uint64, len(listing))

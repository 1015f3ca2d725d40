"""Which photos a set was made of: what a later build compares its own with.

    photos.npy    one row a photo: hash of its path, its size, hash of its content (0: it became no sample)

Hashes, because paths are personal data and long: 24 bytes a photo.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from isal.isal_zlib import adler32, crc32
from numpy.typing import NDArray

from pipeline.errors import ShardError, UserError
from pipeline.format import REJECTED_FILE, ShardSet
from pipeline.tar import scan_tar
from shard_tool.build.bucket import place_of
from shard_tool.build.place import Place
from shard_tool.sources.listing import Listing, name_hash, printable

PHOTOS_FILE = "photos.npy"
_PHOTO = np.dtype([("path", "<u8"), ("bytes", "<u8"), ("content", "<u8")])
_NAMED = 3
"""Photos of a difference that are named."""


def content_of(data: bytes) -> int:
    """64 bits that stand for a photo beside its size: never 0."""
    return (crc32(data) << 32 | adler32(data)) or 1


@dataclass(frozen=True)
class Photos:
    """The photos of one listing, or of a finished set."""

    rows: NDArray[np.void]
    """[photos] of dtype path, bytes, content; in the order of the listing."""
    listing: Listing | None = None
    """Their paths, if they are at hand."""

    @classmethod
    def of(cls, listing: Listing) -> Self:
        """Of what there is to read; nothing is known of the contents."""
        rows = np.zeros(len(listing), _PHOTO)
        rows["path"] = np.fromiter(map(name_hash, listing), np.uint64, len(listing))
        rows["bytes"] = listing.sizes
        return cls(rows, listing)

    @classmethod
    def of_set(cls, place: Place, shards: ShardSet) -> Self | None:
        """Of a finished set; None where it does not say, or where the file is damaged."""
        recorded = [part["photos"].get("sha256") for part in shards.parts if isinstance(part.get("photos"), dict)]
        data = place.load(PHOTOS_FILE) if len(recorded) == len(shards.parts) == 1 else None
        return cls.from_bytes(data) if data and hashlib.sha256(data).hexdigest() == recorded[0] else None

    @classmethod
    def from_bytes(cls, data: bytes) -> Self | None:
        """What `to_bytes` wrote; None where it is damaged."""
        try:
            rows: NDArray[np.void] = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError):
            return None
        return cls(rows) if rows.dtype == _PHOTO and rows.ndim == 1 else None

    def to_bytes(self) -> bytes:
        """As an `.npy` file."""
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, self.rows, version=(1, 0), allow_pickle=False)
        return buffer.getvalue()

    def sha256(self) -> str:
        """Of all rows."""
        return hashlib.sha256(self.rows.tobytes()).hexdigest()

    def held_by(self, others: "Photos") -> NDArray[np.bool_]:
        """[photos] Whether `others`, of a finished set, holds a photo of that path and size as a sample."""
        held = others.rows[others.rows["content"] != 0]
        return np.isin(_pairs(self.rows), _pairs(held))

    def compared_with(self, before: "Photos", place: Place) -> list[str]:
        """How these photos differ from those of an earlier build in `place`, some of them by name."""
        assert self.listing is not None, "those that are compared are there"
        known = np.isin(self.rows["path"], before.rows["path"])
        same = np.isin(_pairs(self.rows), _pairs(before.rows))
        gone = set(np.setdiff1d(before.rows["path"], self.rows["path"]).tolist())
        kinds = {"changed": np.flatnonzero(known & ~same), "new": np.flatnonzero(~known)}
        found = []
        for kind, items in kinds.items():
            if len(items):
                names = [printable(self.listing[item]) for item in items[:_NAMED].tolist()]
                found.append(_named(len(items), kind, names))
        if gone:
            names = []
            for path in _paths_of(place):
                if len(names) < _NAMED and name_hash(path.encode()) in gone:
                    names.append(path)
            found.append(_named(len(gone), "missing", names))
        return found


def photos_of_sets(names: tuple[str, ...]) -> list[Photos]:
    """Of finished sets, for `--not-in`; `UserError` for one that does not say which photos it holds."""
    found = []
    for name in names:
        place = place_of(name)
        shards = place.open_set()
        if shards is None:
            raise UserError(f"--not-in must name finished shard sets; got {name}, which is none. Check the path.")
        photos = Photos.of_set(place, shards)
        if photos is None:
            raise UserError(
                f"--not-in must name sets that say which photos they hold; got {name}, whose {PHOTOS_FILE} is missing "
                "or damaged. Run the command again that built it, or build it anew if an earlier leanstream made it."
            )
        found.append(photos)
    return found


def files_beside(shards: ShardSet) -> list[tuple[str, str]]:
    """Name and sha256 of the files that say of which photos a set was made, and which were left out."""
    said = [part[name] for part in shards.parts for name in ("listing", "photos", "rejected") if name in part]
    return [(file.get("file", PHOTOS_FILE), file["sha256"]) for file in said]


def _pairs(rows: NDArray[np.void]) -> NDArray[np.uint64]:
    """A number for each (path, bytes) of some rows."""
    # Multiplied by an odd constant, sizes reach all bits: two pairs are equal by chance as rarely as two hashes.
    mixed: NDArray[np.uint64] = rows["path"] ^ (rows["bytes"] * np.uint64(0x9E3779B97F4A7C15))
    return mixed


def _named(count: int, kind: str, names: list[str]) -> str:
    shown = ", ".join(names) + (", ..." if count > len(names) else "") if names else ""
    return f"{count:,} {kind} photo{'s' * (count > 1)}{f' ({shown})' if shown else ''}"


def _paths_of(place: Place) -> Iterator[str]:
    """The paths that a finished set tells of: of its samples, and of what it rejected."""
    for line in (place.load(REJECTED_FILE) or b"").splitlines():
        try:
            yield str(json.loads(line)["path"])
        except (ValueError, KeyError, TypeError):
            continue
    for tar in sorted(place.workshop.glob("*.tar")):
        labels: list[bytes] = []
        with contextlib.suppress(ShardError):
            scan_tar(tar, see=lambda sample: labels.append(sample.label))  # noqa: B023 (called here and now)
        for label in labels:
            with contextlib.suppress(ValueError, AttributeError):
                yield str(json.loads(label or b"{}").get("source", ""))

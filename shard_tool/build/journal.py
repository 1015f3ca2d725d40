"""What a build has finished so far, in `<out>/.build/`, and whether it may go on there.

    .build/lock                 held by the build that runs
    .build/plan.json            what the build was asked for: options, listing, library versions
    .build/photos.npy           the listing, so that a changed one can be told photo by photo
    .build/digests-000007.bin   the contents of the photos of one group, where duplicates are looked for
    .build/group-000007.json    one finished group: its shards and rejections, under a digest of all that and the plan

The folder goes when `shardset.json` has been written; beside a finished set it means nothing.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.format import SHARDSET_FILE, Shard, ShardSet
from shard_tool.build.place import STATE_FOLDER, Place
from shard_tool.build.record import PHOTOS_FILE, Photos
from shard_tool.options import PLAN_VERSION

_PLAN = f"{STATE_FOLDER}/plan.json"
_PHOTOS = f"{STATE_FOLDER}/{PHOTOS_FILE}"
_LOADS = 64
"""Records that are read at once."""


@dataclass(frozen=True)
class GroupRecord:
    """One finished group."""

    number: int
    shards: dict[str, list[Shard]]
    """By split."""
    rejected: list[tuple[str, str, str]]
    """Path, reason and detail of each input that was left out."""
    positives: dict[str, list[int]]
    """By split, how many samples have each attribute, or are of each class."""
    contents: str
    """16 hex digits for each item of the group, in listing order: `content_of` the photo, 0 if it became no sample."""

    def lines(self) -> Iterator[bytes]:
        """Its part of `rejected.jsonl`."""
        for path, reason, detail in self.rejected:
            row = {"path": path, "reason": reason} | ({"detail": detail} if detail else {})
            yield json.dumps(row, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True)
class Journal:
    """The state of one build; made by `open_journal`."""

    place: Place
    request: dict[str, Any]

    def read(self, number: int) -> GroupRecord | None:
        """The record of a finished group whose files are all there, else None."""
        try:
            data = json.loads(self.place.load(_group_file(number)) or b"")
            if data.pop("sha256") != self._digest(data):
                return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        shards = {split: [Shard(**row) for row in rows] for split, rows in data["shards"].items()}
        if not all(self.place.holds(shard) for rows in shards.values() for shard in rows):
            return None
        rejected = [tuple(row) for row in data["rejected"]]
        return GroupRecord(number, shards, rejected, data["positives"], data["contents"])

    def read_all(self, groups: int) -> Iterator[GroupRecord | None]:
        """What `read` says of every group, in order."""
        with ThreadPoolExecutor(_LOADS // 4, "journal") as pool:  # A bucket takes its time for each.
            for first in range(0, groups, _LOADS):
                yield from pool.map(self.read, range(first, min(first + _LOADS, groups)))

    def record(self, group: GroupRecord) -> None:
        """Note, durably, that `group` is finished, as soon as all that was taken is safe."""
        content = asdict(group)
        data = _json({**content, "sha256": self._digest(content)})
        self.place.after(lambda: self.place.store(_group_file(group.number), data))

    def finish(self, shard_set: ShardSet) -> None:
        """Complete the set by its `shardset.json`; the journal goes."""
        for left in self.place.workshop.glob(".*.partial"):
            left.unlink()
        shard_set.save()
        self.place.publish(SHARDSET_FILE)
        self.place.remove_state()

    def _digest(self, content: Mapping[str, Any]) -> str:
        """Of a record of this very build: what was changed, or is of another build, is not believed."""
        return hashlib.sha256(_json([self.request, content])).hexdigest()


@contextlib.contextmanager
def open_journal(place: Place, request: dict[str, Any], photos: Photos) -> Iterator[tuple[Journal, ShardSet | None]]:
    """Begin, or go on with, a build of `request` in `place`, where `check_place` has allowed it; with the finished set.

    Raises `UserError` where the place holds something else, a build of another request, or one that is running.
    """
    with place.locked():
        # Another build may have written or completed the set since the first look.
        present = check_place(place, request, photos)
        if present is None and place.load(_PLAN) is None:
            place.store(_PHOTOS, photos.to_bytes())
            place.store(_PLAN, _json(request))
        yield Journal(place, request), present


def check_place(place: Place, request: Mapping[str, Any], photos: Photos) -> ShardSet | None:
    """The finished set of `request` in `place`, if it is there; raises `UserError` where it may not be built there."""
    present = place.open_set()
    if present is not None:
        earlier = present.parts[0] if present.parts else {}
        if len(present.parts) != 1 or earlier.get("versions", {}).get("plan") != PLAN_VERSION:
            raise UserError(
                f"{place.shown} must be a set that this leanstream began; got a finished one of another. It can be "
                "read and trained on as it is: choose another --out, or delete the folder."
            )
        # A finished set stays what it is; only going on with a build wants the same libraries.
        _compare(place, earlier, request, "was built", ("settings", "source"), photos, Photos.of_set(place, present))
        return present
    begun = _begun(place)
    if begun is not None:
        before = Photos.from_bytes(place.load(_PHOTOS) or b"")
        _compare(place, begun, request, "was begun", ("settings", "source", "versions"), photos, before)
        return None
    strangers = sorted(name for name in place.names() - {STATE_FOLDER} if not _is_partial(name))
    if strangers:
        raise UserError(
            f"--out must be an empty folder, a new one, or one of an earlier build; got {place.shown}, which holds "
            f"{strangers[0]}{' and more' if len(strangers) > 1 else ''}. Choose another."
        )
    return None


def differences(
    earlier: Mapping[str, Any], request: Mapping[str, Any], sections: tuple[str, ...], verb: str = "was"
) -> list[str]:
    """What these sections of two requests do not share, `size 24 (<verb> 16)`.

    A value that is off is like one that an older version did not have.
    """
    new, old = _flat(request, sections), _flat(earlier, sections)
    return [
        f"{name} {_show(new.get(name))} ({verb} {_show(old.get(name))})"
        for name in dict.fromkeys([*new, *old])
        if _or_none(new.get(name)) != _or_none(old.get(name))
    ]


def _is_partial(name: str) -> bool:
    """Whether a kill left it behind before it had its name."""
    return name.startswith(".") and name.endswith(".partial")


def _begun(place: Place) -> dict[str, Any] | None:
    """The request of the build that was begun in `place` last."""
    data = place.load(_PLAN)
    try:
        begun = None if data is None else json.loads(data)
        if begun is None or (isinstance(begun, dict) and all(isinstance(part, dict) for part in begun.values())):
            return begun
    except ValueError:
        pass
    raise UserError(
        f"{place.shown}/{_PLAN} must be JSON of a build; got damaged text. Delete {place.shown} and build again."
    )


def _compare(
    place: Place,
    earlier: Mapping[str, Any],
    request: Mapping[str, Any],
    verb: str,
    sections: tuple[str, ...],
    photos: Photos,
    before: Photos | None,
) -> None:
    different = differences(earlier, request, sections, f"{verb} with")
    if not different:
        return
    others = [] if before is None else photos.compared_with(before, place)
    if others:  # Names say more than two digests.
        different = [*others, *(one for one in different if not one.startswith(("listing_sha256", "photos ")))]
    raise UserError(
        f"{place.shown} must be built with the settings, photos and library versions that it {verb} with; "
        f"got {', '.join(different)}. Give the same, choose another --out, or delete the folder."
    )


def _flat(request: Mapping[str, Any], sections: tuple[str, ...]) -> dict[str, Any]:
    """The values that decide about the set, by name; what the source is called does not."""
    flat = {key: value for section in sections for key, value in request.get(section, {}).items()}
    return {key: value for key, value in flat.items() if key != "source_name"}


def _or_none(value: object) -> object:
    return None if value is False or value == [] else value


def _show(value: object) -> str:
    text = "none" if value is None else f"{value:,}" if type(value) is int else str(value)
    return f"{text[:12]}..." if len(text) > 40 else text


def _group_file(number: int) -> str:
    return f"{STATE_FOLDER}/group-{number:06d}.json"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()

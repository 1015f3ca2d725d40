"""What a build has finished so far, in `<out>/.build/`, and whether it may go on there.

    .build/lock                 held by the build that runs
    .build/plan.json            what the build was asked for: settings, listing, library versions
    .build/digests-000007.npy   the contents of the photos of one group, where duplicates are looked for
    .build/group-000007.json    one finished group: its shards and rejections

The folder goes when `shardset.json` has been written. An append has such a folder beside a finished `shardset.json`.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.files import atomic_writer
from pipeline.format import REJECTED_FILE, SHARDSET_FILE, Shard, ShardSet
from shard_tool.build.place import STATE_FOLDER, Place, open_set

_PLAN = f"{STATE_FOLDER}/plan.json"
_LOADS = 64
"""Records that are read at once."""
PLANNING = ("val_fraction", "shard_samples", "shard_bytes", "seed", "limit", "keep_order", "drop_duplicates")
"""Settings that say which photos go where; each part of a set may have others. All other settings make the samples."""


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


@dataclass(frozen=True)
class Journal:
    """The state of one build; made by `open_journal`."""

    place: Place
    request: dict[str, Any]
    before: ShardSet | None = None
    """The set that is appended to."""

    def read(self, number: int) -> GroupRecord | None:
        """The record of a finished group whose files are all there, else None."""
        try:
            data = json.loads(self.place.load(_group_file(number)) or b"")
        except ValueError:
            return None
        shards = {split: [Shard(**row) for row in rows] for split, rows in data["shards"].items()}
        if not all(self.place.holds(shard) for rows in shards.values() for shard in rows):
            return None
        return GroupRecord(number, shards, [tuple(row) for row in data["rejected"]], data["positives"])

    def read_all(self, groups: int) -> Iterator[GroupRecord | None]:
        """What `read` says of every group, in order."""
        with ThreadPoolExecutor(_LOADS // 4, "journal") as pool:  # A bucket takes its time for each.
            for first in range(0, groups, _LOADS):
                yield from pool.map(self.read, range(first, min(first + _LOADS, groups)))

    def record(self, group: GroupRecord) -> None:
        """Note, durably, that `group` is finished, as soon as all that was handed in is safe."""
        data = _json(asdict(group))
        self.place.after(lambda: self.place.store(_group_file(group.number), data))

    def finish(self, shard_set: ShardSet, groups: int) -> None:
        """Complete the set: the list of rejections, then `shardset.json`; the journal goes."""
        workshop = self.place.workshop
        for left in workshop.glob(".*.partial"):
            left.unlink()
        with atomic_writer(workshop / REJECTED_FILE) as file:
            for line in self._earlier_rejections():
                file.write(line)
            for record in self.read_all(groups):
                assert record is not None, "a set is finished when all of its groups are"
                for path, reason, detail in record.rejected:
                    row = {"path": path, "reason": reason} | ({"detail": detail} if detail else {})
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.place.publish(REJECTED_FILE)
        shard_set.save()
        self.place.publish(SHARDSET_FILE)
        self.remove()

    def remove(self) -> None:
        """Delete the journal of a finished set."""
        self.place.remove_state()

    def _earlier_rejections(self) -> list[bytes]:
        """Those of the set that is appended to, and none that a kill added beyond them."""
        if self.before is None:
            return []
        return (self.place.load(REJECTED_FILE) or b"").splitlines(keepends=True)[: self.before.rejected]


@contextlib.contextmanager
def open_journal(place: Place, request: dict[str, Any]) -> Iterator[Journal | None]:
    """Begin or go on with a build of `request` in `place`; None where it is already complete.

    Raises `UserError` where the place holds something else, a build of another request, or one that is running.
    """
    if check_place(place, request):
        remove_finished_journal(place)
        yield None
        return
    with place.locked():
        # Another build may have written or completed the set since the first look.
        done = check_place(place, request)
        if not done:
            before = open_set(place)
            if _begun(place) is None:
                place.store(_PLAN, _json(request))
            yield Journal(place, request, before)
    if done:
        remove_finished_journal(place)
        yield None


def remove_finished_journal(place: Place) -> None:
    """Delete the journal beside a finished set that a kill has left; that of an append that goes on stays."""
    if STATE_FOLDER not in place.names():
        return
    with place.locked():
        begun = _begun(place)
        if begun is None or not _is_append(begun, open_set(place)):
            place.remove_state()


def check_place(place: Place, request: Mapping[str, Any]) -> bool:
    """Whether `request` is complete in `place`; raises `UserError` where it may not be built there."""
    present = open_set(place)
    begun = _begun(place)
    if present is not None and not _is_append(request, present):
        if not is_part(present, request):
            # A finished set stays what it is; only going on with a build wants the same libraries.
            _compare(place, (present.parts or ({},))[0], request, "was built", ("settings", "source"))
        return True
    if begun is not None and (present is None or _is_append(begun, present)):
        _compare(place, begun, request, "was begun", ("settings", "source", "versions"), append=present is not None)
        return False
    strangers = sorted(place.names() - {STATE_FOLDER})
    if present is None and strangers:
        raise UserError(
            f"--out must be an empty folder, a new one, or one of an earlier build; got {place.shown}, which holds "
            f"{strangers[0]}{' and more' if len(strangers) > 1 else ''}. Choose another."
        )
    if present is not None:
        _refuse_leftovers(place, present, strangers)
    return False


def _refuse_leftovers(place: Place, present: ShardSet, names: list[str]) -> None:
    """Shards that an append would write over, though the set does not know them."""
    known = {f"{shard.name}.tar" for split in present.splits.values() for shard in split}
    left = [name for name in names if re.fullmatch(r"(train|val|test)-\d+.*\.tar", name) and name not in known]
    if left:
        raise UserError(
            f"{place.shown} must hold no shards but those of shardset.json; got {left[0]}"
            f"{f' and {len(left) - 1:,} more' if len(left) > 1 else ''}, perhaps of an append that was given up. "
            "Move or delete them."
        )


def _begun(place: Place) -> dict[str, Any] | None:
    """The request of the build that was begun in `place` last."""
    data = place.load(_PLAN)
    try:
        begun = None if data is None else json.loads(data)
        if begun is None or isinstance(begun, dict):
            return begun
    except ValueError:
        pass
    raise UserError(
        f"{place.shown}/{_PLAN} must be JSON; got damaged text. Delete the folder {place.shown} and build again, or "
        f"where it holds a finished set only {place.shown}/{STATE_FOLDER}."
    )


def _is_append(request: Mapping[str, Any], present: ShardSet | None) -> bool:
    """Whether `request` adds to `present`; if it did so already, the set has another fingerprint."""
    return present is not None and request.get("source", {}).get("appended_to") == present.fingerprint


def is_part(present: ShardSet, request: Mapping[str, Any]) -> bool:
    """Whether a part of `present` was made by `request`, whatever the library versions."""
    return any(not differences(part, request, ("settings", "source")) for part in present.parts)


def sample_settings(request: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make the samples, which are the same in all parts of a set."""
    return {name: value for name, value in request.get("settings", {}).items() if name not in PLANNING}


def _compare(
    place: Place,
    earlier: Mapping[str, Any],
    request: Mapping[str, Any],
    verb: str,
    sections: tuple[str, ...],
    *,
    append: bool = False,
) -> None:
    different = differences(earlier, request, sections, f"{verb} with")
    if different:
        thing = f"the append to {place.shown}" if append else place.shown
        remedy = (
            f"Give the same, or give up what was begun: delete {place.shown}/{STATE_FOLDER} and the shards that "
            "shardset.json does not name"
            if append
            else "Give the same, choose another --out, or delete the folder"
        )
        raise UserError(
            f"{thing} must be built with the settings, photos and library versions that it {verb} with; "
            f"got {', '.join(different)}. {remedy}."
        )


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


def _flat(request: Mapping[str, Any], sections: tuple[str, ...]) -> dict[str, Any]:
    """The values that decide about the set, by name; what the source is called does not."""
    flat = {key: value for section in sections for key, value in request.get(section, {}).items()}
    return {key: value for key, value in flat.items() if key != "source_name"}


def _or_none(value: object) -> object:
    return None if value is False else value


def _show(value: object) -> str:
    text = "none" if value is None else f"{value:,}" if type(value) is int else str(value)
    return f"{text[:12]}..." if len(text) > 40 else text


def _group_file(number: int) -> str:
    return f"{STATE_FOLDER}/group-{number:06d}.json"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()

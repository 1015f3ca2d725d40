"""A finished set and a source that has grown: what `--append` adds, and what is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.format import ShardSet
from shard_tool.build.journal import differences, is_part, sample_settings
from shard_tool.build.labels import Table
from shard_tool.build.listed import Listed
from shard_tool.build.place import Place
from shard_tool.build.plan import Plan, make_plan
from shard_tool.settings import Settings
from shard_tool.sources.protocol import Source

GROWS = {"photos", "listing_sha256", "appended_to"}
"""What another number of photos changes in a request."""
TABLES = {"attributes_sha256", "partition_sha256"}


@dataclass(frozen=True)
class Growth:
    """What a plan must know of the parts before it."""

    new: NDArray[np.bool_]
    """[inputs] Photos that no part has."""
    known: NDArray[np.bool_]
    """[inputs] Photos that some part has."""
    taken: NDArray[np.uint64]
    """Hashes of the keys of all parts."""
    first: Mapping[str, int]
    """By split, the number that its next shard gets."""
    appended_to: str
    """Fingerprint of the set."""


def plan_part(
    source: Source, attributes: Table | None, partition: Table | None, settings: Settings, growth: Growth | None
) -> Plan:
    """The plan of a set, or of a part that is appended to one."""
    return make_plan(
        source,
        attributes,
        partition,
        val_fraction=settings.val_fraction,
        shard_samples=settings.shard_samples if settings.shard_bytes is None else None,
        group_samples=settings.group_samples,
        seed=None if settings.keep_order else settings.seed,
        limit=settings.limit,
        among=None if growth is None else growth.new,
        taken=None if growth is None else growth.taken,
        first=None if growth is None else growth.first,
    )


def plan_growth(place: Place, present: ShardSet, source: Source) -> Growth:
    """What of `source` is new to `present`: a finished set, or the first parts of one.

    Raises `UserError` where a photo of the set has changed, or where the set does not say what it was made of.
    """
    listed = Listed.read(place, present)
    difference = listed.compare(source.listing)
    if difference.changed:
        raise UserError(
            f"photos that are in {place.shown} must be as they were; got {difference.changed:,} of another size, "
            f"{difference.first_changed} the first. Put them back, give them other names, or build a new set."
        )
    first: dict[str, int] = {}
    for part in present.parts:
        for split, (_, end) in part["shards"].items():
            first[split] = max(first.get(split, 0), end)
    return Growth(difference.new, ~difference.new, listed.photos["key"], first, present.fingerprint)


def check_growth(
    place: Place, present: ShardSet, source: Source, plan: Plan, request: Mapping[str, Any], *, append: bool
) -> bool:
    """Whether the finished set has everything that is asked for, though its source has grown part by part.

    Raises `UserError` where an append would mix samples of two kinds, and where only an append can serve.
    """
    if append:
        _refuse_other_samples(place, present, plan, request)
        return False
    first = present.parts[0] if present.parts else {}
    # With a limit, photos are missing on purpose; other differences are spelled out by the journal.
    if is_part(present, request) or request["settings"]["limit"] is not None or "listing" not in first:
        return False
    if differences(first, request, ("settings",)):
        return False
    if any(first["source"].get(key) != value for key, value in source.origin.items()):
        return False  # The same names at another commit, or in another column, are other photos.
    difference = Listed.read(place, present).compare(source.listing)
    new = int(difference.new.sum())
    may_differ = GROWS | TABLES if new else GROWS
    last = {name: value for name, value in present.parts[-1]["source"].items() if name not in may_differ}
    now = {name: value for name, value in request["source"].items() if name not in may_differ}
    if not difference.is_only_new or differences({"source": last}, {"source": now}, ("source",)):
        return False
    if new:
        raise UserError(
            f"{place.shown} must be built with the photos that it was built with; got {new:,} more. "
            "Add them with --append, choose another --out, or delete the folder."
        )
    return True


def _refuse_other_samples(place: Place, present: ShardSet, plan: Plan, request: Mapping[str, Any]) -> None:
    """An append must make samples like those that are there."""
    old, new = sample_settings(present.parts[0]), sample_settings(request)
    has_json = bool(new.get("json", True))
    labels = plan.attributes if has_json else None
    for name in ("attributes", "classes"):
        old[name] = ", ".join(getattr(present, name)) or None
        new[name] = None if labels is None else ", ".join(getattr(labels, "columns" if name == "attributes" else name))
        new[name] = new[name] or None
    different = differences({"samples": old}, {"samples": new}, ("samples",), "is")
    if different:
        raise UserError(
            f"what is appended to {place.shown} must be made like the samples that it has; "
            f"got {', '.join(different)}. Give the same, or build a new set."
        )

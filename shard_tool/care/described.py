"""What `shardset.json` says of labels and of its making, checked: its fingerprint is over the shards alone."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import ShardError
from pipeline.format import SHARDSET_FILE, ShardSet

_LISTING = {"file": str, "sha256": str}


def open_described(location: str) -> ShardSet:
    """`ShardSet.open` of a set whose labels and parts can be relied on too; raises what that raises."""
    return check_described(ShardSet.open(location))


def check_described(shards: ShardSet) -> ShardSet:
    """The set, if its labels and parts can be relied on too; else `ShardError`."""
    wrong = next(_wrong(shards), None)
    if wrong is not None:
        raise ShardError(
            f"{shards.folder / SHARDSET_FILE} must say how the set was made; got {wrong}. "
            "It was edited or damaged: copy the set again."
        )
    return shards


def label_counts(shards: ShardSet) -> dict[str, int] | None:
    """How many samples have each attribute or are of each class; None where the set's maker did not count them."""
    by_split = labels_by_split(shards)
    if by_split is None:
        return None
    return {name: sum(counts[name] for counts in by_split.values()) for name in shards.attributes or shards.classes}


def labels_by_split(shards: ShardSet) -> dict[str, dict[str, int]] | None:
    """The same in each split."""
    names = shards.attributes or shards.classes
    if not names or not shards.parts or not all("positives" in part for part in shards.parts):
        return None
    found = {split: dict.fromkeys(names, 0) for split in shards.splits}
    for part in shards.parts:
        for split, counts in part["positives"].items():
            for name, count in zip(names, counts, strict=True):
                found[split][name] += count
    return found


def labels_of_all(sets: Sequence[ShardSet]) -> dict[str, dict[str, int]] | None:
    """The same over several sets together; None unless all have the same names, and all makers counted them."""
    if len({(one.attributes, one.classes) for one in sets}) > 1:
        return None
    found: dict[str, Counter[str]] = {}
    for counts in map(labels_by_split, sets):
        if counts is None:
            return None
        for split, by_name in counts.items():
            found.setdefault(split, Counter()).update(by_name)
    return {split: dict(by_name) for split, by_name in found.items()}


def _wrong(shards: ShardSet) -> Iterator[str]:
    for what, names in (("attributes", shards.attributes), ("classes", shards.classes)):
        if len(set(names)) < len(names):
            yield f"{what} that are not all different"
    for number, part in enumerate(shards.parts, 1):
        for section in ("settings", "source", "versions", "positives", "listing"):
            if not isinstance(part.get(section, {}), dict):
                yield f"part {number} whose {section} is no object"
                return
        yield from (f"part {number} with {wrong}" for wrong in _wrong_part(shards, part))


def _wrong_part(shards: ShardSet, part: dict[str, Any]) -> Iterator[str]:
    labels = len(shards.attributes or shards.classes)
    for split, counts in part.get("positives", {}).items():
        if split not in shards.splits:
            yield f"labels of {split}, which the set does not have"
        elif not isinstance(counts, list) or not all(type(count) is int for count in counts):
            yield f"labels of {split} that are no list of counts"
        elif labels and len(counts) != labels:
            yield f"counts of {len(counts):,} labels of {split} in place of {labels:,}"
    if "listing" in part and {name: type(value) for name, value in part["listing"].items()} != _LISTING:
        yield "a listing without file and sha256"

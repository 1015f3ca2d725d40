"""What `shardset.json` says of labels and of its making, checked: its fingerprint is over the shards alone."""

from collections.abc import Iterator
from typing import Any

from pipeline.errors import ShardError
from pipeline.format import SHARDSET_FILE, ShardSet

_LISTING = {"file": str, "sha256": str}


def open_described(location: str) -> ShardSet:
    """`ShardSet.open` of a set whose labels and parts can be relied on too; raises what that raises."""
    shards = ShardSet.open(location)
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


def _wrong(shards: ShardSet) -> Iterator[str]:
    for what, names in (("attributes", shards.attributes), ("classes", shards.classes)):
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            yield f"{what} that are no list of different names"
    if type(shards.rejected) is not int or shards.rejected < 0:
        yield f"rejected {shards.rejected!r}"
    for number, part in enumerate(shards.parts, 1):
        if not isinstance(part, dict):
            yield f"part {number} that is no object"
            return
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

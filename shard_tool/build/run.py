"""The build: outcomes in the plan's order, a writer for each group, one journal entry for each that is finished.

outcomes (reading.py) -> GroupWriter (group.py) -> journal -> shardset.json
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import SourceError, UserError
from pipeline.format import SPLITS, Shard, ShardSet, Split
from shard_tool.build.group import MOST_FAILURES, GroupWriter, json_pad
from shard_tool.build.journal import GroupRecord, Journal
from shard_tool.build.listed import listing_file, save_listing
from shard_tool.build.plan import Plan
from shard_tool.build.reading import outcomes
from shard_tool.settings import Settings
from shard_tool.sources.protocol import Source

Report = Callable[[int, int], None]
"""Told the inputs that are done and the rejected ones among them, in this run and in earlier ones."""


class Finished(NamedTuple):
    """What earlier runs have done."""

    groups: frozenset[int]
    photos: int
    rejected: int


def build(
    journal: Journal,
    source: Source,
    plan: Plan,
    settings: Settings,
    finished: Finished,
    *,
    threads: int,
    report: Report,
) -> tuple[ShardSet, Counter[str]]:
    """Build what is not `finished` yet, and complete the set. Returns it and the rejections by reason.

    Raises `SourceError` where photos could not be read, `UserError` where none was accepted, `OSError` or
    `TransportError` where the shards cannot be written; each leaves the finished groups for the next attempt.
    """
    progress = Progress(report)
    progress.add(finished.photos, finished.rejected)
    pad = json_pad(plan, settings)
    place = journal.place
    place.workshop.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    groups = plan.iter_groups(finished.groups)
    made = outcomes(source, groups, settings.recipe, threads, done=progress.add, spool=place.spool)
    with contextlib.closing(made):
        for group in plan.iter_groups(finished.groups):
            writer = GroupWriter(place.workshop, plan, settings, pad, failures, place.hand_in)
            writer.write(group, made)
            if len(failures) >= MOST_FAILURES:
                break
            if not writer.failed:
                journal.record(writer.record(group))
                progress.add(len(group.left_out), len(group.left_out))
    place.settle()
    if failures:
        raise source_error(failures)
    return complete(journal, plan, settings)


def finished_groups(journal: Journal, plan: Plan) -> Finished:
    """The groups that earlier runs have finished."""
    records = [(record.number, len(record.rejected)) for record in journal.read_all(len(plan.groups)) if record]
    photos = sum(len(plan.groups[number]) for number, _ in records)
    return Finished(frozenset(number for number, _ in records), photos, sum(rejected for _, rejected in records))


class Progress:
    """Adds up what is done, for a `Report`."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._done = self._rejected = 0

    def add(self, done: int, rejected: int) -> None:
        """So many more inputs are done, and so many of them rejected."""
        self._done += done
        self._rejected += rejected
        self._report(self._done, self._rejected)


def source_error(failures: list[str]) -> SourceError:
    """The end of a build in which photos could not be read."""
    shown = ", ".join(failures[:MOST_FAILURES])
    return SourceError(
        f"every photo must be readable; got {len(failures)} that could not be read this time: {shown}. "
        "Everything else that is finished is kept: see to them, then run the same command again."
    )


def complete(journal: Journal, plan: Plan, settings: Settings) -> tuple[ShardSet, Counter[str]]:
    """Describe the set whose groups are all finished, behind the set that it is appended to; the journal goes."""
    shards: dict[str, list[Shard]] = {}
    positives: dict[str, Any] = {}
    reasons: Counter[str] = Counter()
    for record in journal.read_all(len(plan.groups)):
        if record is None:
            raise SourceError(
                f"{journal.place.shown} must keep its shards while it is built; got files that went missing or "
                "changed. Run the same command again, and they are built again."
            )
        _add(record, shards, positives, reasons)
    before = journal.before
    if not shards and before is None:
        raise UserError(
            f"at least one photo must be usable; got {reasons.total():,} rejected: {show_reasons(reasons)}. "
            "Choose other photos, or a smaller --size or --crop."
        )
    number = len(before.parts) if before is not None else 0
    if before is not None:
        shards |= {split: [*earlier, *shards.get(split, [])] for split, earlier in before.splits.items()}
    part = {
        **journal.request,
        "positives": {split: counts.tolist() for split, counts in positives.items()},
        "shards": plan.shard_numbers(),
        "listing": {"file": listing_file(number), "sha256": save_listing(journal.place, number, plan)},
    }
    labels = plan.attributes if settings.json else None
    shard_set = ShardSet(
        location=journal.place.workshop,
        name=journal.place.name,
        image_size=settings.recipe.size,
        channels=3,
        encoding=settings.recipe.encoding,
        splits={split: Split.of([vars(shard) for shard in shards[split]]) for split in SPLITS if split in shards},
        attributes=labels.columns if labels is not None else (),
        classes=labels.classes if labels is not None else (),
        parts=(*(before.parts if before is not None else ()), part),
        rejected=reasons.total() + (before.rejected if before is not None else 0),
    )
    journal.finish(shard_set, len(plan.groups))
    return shard_set, reasons


def _add(record: GroupRecord, shards: dict[str, list[Shard]], positives: dict[str, Any], reasons: Counter[str]) -> None:
    reasons.update(reason for _, reason, _ in record.rejected)
    for split, rows in record.shards.items():
        shards.setdefault(split, []).extend(rows)
    for split, counts in record.positives.items():
        positives[split] = positives.get(split, 0) + np.array(counts)


def show_reasons(reasons: Counter[str]) -> str:
    """`3 empty file, 2 not an image`, the most frequent first."""
    return ", ".join(
        f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda row: (-row[1], row[0]))
    )

"""The build: outcomes in the plan's order, a single writer, one journal entry for each finished group.

outcomes (reading.py) -> ShardWriter -> journal -> shardset.json
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import SourceError, UserError
from pipeline.format import SPLITS, SUFFIX, Shard, ShardSet, Split
from pipeline.tar import ShardWriter
from shard_tool.journal import GroupRecord, Journal
from shard_tool.photo import Recipe, library_versions
from shard_tool.plan import Group, Plan, PlannedShard
from shard_tool.reading import Failure, Outcome, Rejection, outcomes
from shard_tool.sources.listing import printable
from shard_tool.sources.protocol import Source

PLAN_VERSION = 1
"""Counts up when the same request would give other bytes; an unfinished build of another version is refused."""
MOST_FAILURES = 20
"""Failed reads after which a build gives up: the disk is gone, not a file."""


@dataclass(frozen=True)
class Settings:
    """All choices that decide about the bytes of a set."""

    recipe: Recipe
    val_fraction: float = 0.05
    """Share of the photos that go to `val` where the source has no partition."""
    shard_samples: int = 4096
    """Most samples in one shard."""
    seed: int = 0
    limit: int | None = None
    """Photos to take; None: all."""
    json: bool = True
    """Whether samples carry a json with their source and labels."""
    labels: str | None = None
    """Where labels come from: `labels.FOLDERS`, the file name of a table, or None for what lies beside the photos."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val-fraction must be from 0 to below 1; got {self.val_fraction}. Use 0.05.")
        if self.shard_samples < 1:
            raise UserError(f"shard-samples must be at least 1; got {self.shard_samples}. Use 4096.")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be at least 1; got {self.limit}. Leave it out to take all photos.")


Report = Callable[[int, int], None]
"""Told the inputs that are done and the rejected ones among them, in this run and in earlier ones."""


def describe_request(source: Source, plan: Plan, settings: Settings) -> dict[str, Any]:
    """What the set is a function of, in the form that `shardset.json` records; no absolute path is in it."""
    tables = {"attributes_sha256": plan.attributes, "partition_sha256": plan.partition}
    return {
        "settings": {
            **settings.recipe.describe(),
            "val_fraction": settings.val_fraction if plan.partition is None else None,
            "shard_samples": settings.shard_samples,
            "seed": settings.seed,
            "limit": settings.limit,
            "json": settings.json,
            "labels": settings.labels,
        },
        "source": {
            "source_name": source.name,
            "photos": len(source.listing),
            "listing_sha256": source.listing.sha256(),
            **source.origin,
            **{name: table.sha256 if table else None for name, table in tables.items()},
        },
        "versions": {"plan": PLAN_VERSION, **library_versions()},
    }


def build(
    journal: Journal, source: Source, plan: Plan, settings: Settings, *, threads: int, report: Report
) -> tuple[ShardSet, Counter[str]]:
    """Build what the journal has not yet, and complete the set. Returns it and the rejections by reason.

    Raises `SourceError` where photos could not be read, `UserError` where none was accepted, `OSError` where the
    shards cannot be written; each leaves the finished groups for the next attempt.
    """
    pad = plan.longest_meta() if settings.json and settings.recipe.encoding == "raw" else 0
    progress = _Progress(report)
    finished = _finished(journal, plan, progress)
    failures: list[str] = []
    made = outcomes(
        source,
        plan.iter_groups(finished),
        settings.recipe,
        threads,
        done=progress.add,
        spool=journal.folder,
    )
    with contextlib.closing(made):
        for group in plan.iter_groups(finished):
            writer = _GroupWriter(journal, plan, settings, pad)
            for shard in group.shards:
                writer.write(shard, made, failures)
            if not writer.failed:
                journal.record(writer.record(group))
                progress.add(len(group.unlisted), len(group.unlisted))
    if failures:
        raise _source_error(failures)
    return _complete(journal, plan, settings)


def _finished(journal: Journal, plan: Plan, progress: "_Progress") -> set[int]:
    """The groups that earlier runs have finished; they are the first thing that is reported."""
    finished = set()
    done = rejected = 0
    for number, items in enumerate(plan.groups):
        record = journal.read(number)
        if record is not None:
            finished.add(number)
            done += len(items)
            rejected += len(record.rejected)
    progress.add(done, rejected)
    return finished


class _Progress:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._done = self._rejected = 0

    def add(self, done: int, rejected: int) -> None:
        self._done += done
        self._rejected += rejected
        self._report(self._done, self._rejected)


class _GroupWriter:
    """Turns the outcomes of one group into shards; after a failed read it only collects further ones."""

    def __init__(self, journal: Journal, plan: Plan, settings: Settings, pad: int) -> None:
        self._journal, self._plan, self._settings, self._pad = journal, plan, settings, pad
        self._suffix = SUFFIX[settings.recipe.encoding]
        self._shards: dict[str, list[Shard]] = {}
        self._rejected: list[tuple[int, Rejection]] = []
        self._positives: dict[str, Any] = {}
        self.failed = False

    def write(self, shard: PlannedShard, outcomes: Iterator[Outcome], failures: list[str]) -> None:
        writer = ShardWriter(self._journal.out, shard.name)
        try:
            kept = self._fill(writer, shard, outcomes, failures)
            written = None if self.failed else writer.close()
        finally:
            writer.abort()
        if written is not None:
            self._shards.setdefault(shard.split, []).append(written)
            self._count_positives(shard.split, kept)

    def _fill(
        self,
        writer: ShardWriter,
        shard: PlannedShard,
        outcomes: Iterator[Outcome],
        failures: list[str],
    ) -> list[int]:
        kept = []
        for item in shard.items.tolist():
            outcome = next(outcomes)
            if isinstance(outcome, Failure):
                self.failed = True
                if outcome.error:
                    failures.append(f"{printable(self._plan.listing[item])} ({outcome.error})")
                if len(failures) >= MOST_FAILURES:
                    raise _source_error(failures)
            elif isinstance(outcome, Rejection):
                self._rejected.append((item, outcome))
            elif not self.failed:
                meta = self._plan.meta(item).ljust(self._pad) if self._settings.json else b""
                writer.add(self._plan.keys[item], outcome, self._suffix, meta)
                kept.append(item)
        return kept

    def record(self, group: Group) -> GroupRecord:
        unlisted = [(item, Rejection(self._plan.why_unlisted(item))) for item in group.unlisted.tolist()]
        rejected = [
            (printable(self._plan.listing[item]), rejection.reason, rejection.detail)
            for item, rejection in sorted(self._rejected + unlisted)
        ]
        positives = {split: counts.tolist() for split, counts in self._positives.items()}
        return GroupRecord(group.number, self._shards, rejected, positives)

    def _count_positives(self, split: str, kept: list[int]) -> None:
        table = self._plan.attributes
        if table is not None and self._settings.json:
            values = table.values[table.row_of[kept]]
            classes = len(table.classes)
            counts = np.bincount(values[:, 0], minlength=classes) if classes else values.sum(0, dtype=np.int64)
            self._positives[split] = self._positives.get(split, 0) + counts


def _source_error(failures: list[str]) -> SourceError:
    shown = ", ".join(failures[:MOST_FAILURES])
    return SourceError(
        f"every photo must be readable; got {len(failures)} that could not be read this time: {shown}. "
        "Everything else that is finished is kept: see to them, then run the same command again."
    )


def _complete(journal: Journal, plan: Plan, settings: Settings) -> tuple[ShardSet, Counter[str]]:
    shards: dict[str, list[Shard]] = {}
    positives: dict[str, Any] = {}
    reasons: Counter[str] = Counter()
    for number in range(len(plan.groups)):
        record = journal.read(number)
        if record is None:
            raise SourceError(
                f"{journal.out} must keep its shards while it is built; got files that went missing or changed. "
                "Run the same command again, and they are built again."
            )
        reasons.update(reason for _, reason, _ in record.rejected)
        for split, rows in record.shards.items():
            shards.setdefault(split, []).extend(rows)
        for split, counts in record.positives.items():
            positives[split] = positives.get(split, 0) + np.array(counts)
    if not shards:
        raise UserError(
            f"at least one photo must be usable; got {reasons.total():,} rejected: {show_reasons(reasons)}. "
            "Choose other photos, or a smaller --size or --crop."
        )
    part = {**journal.request, "positives": {split: counts.tolist() for split, counts in positives.items()}}
    labels = plan.attributes if settings.json else None
    shard_set = ShardSet(
        location=journal.out,
        name=journal.out.resolve().name,
        image_size=settings.recipe.size,
        channels=3,
        encoding=settings.recipe.encoding,
        splits={split: Split.of([vars(shard) for shard in shards[split]]) for split in SPLITS if split in shards},
        attributes=labels.columns if labels is not None else (),
        classes=labels.classes if labels is not None else (),
        parts=(part,),
        rejected=reasons.total(),
    )
    journal.finish(shard_set, len(plan.groups))
    return shard_set, reasons


def show_reasons(reasons: Counter[str]) -> str:
    """`3 empty file, 2 not an image`, the most frequent first."""
    return ", ".join(
        f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda row: (-row[1], row[0]))
    )

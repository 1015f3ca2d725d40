"""Outcomes in the plan's order become shards; a group that is finished becomes an entry of the journal.

outcome: a sample ──> ShardWriter, and the next one where --shard-size is reached ──> taken by the place
         rejected ──> the record, for rejected.jsonl
         failed   ──> no record: the group stays unfinished, and a rerun builds it

`GroupWriter` is the same code here, on a cluster, and for a shard that is restored.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import SourceError, UserError
from pipeline.format import REJECTED_FILE, SPLITS, SUFFIX, Shard, ShardSet, Split
from pipeline.tar import ShardWriter, member_bytes, tar_bytes
from shard_tool.build.journal import GroupRecord, Journal
from shard_tool.build.plan import Group, Plan, PlannedShard
from shard_tool.build.reading import (
    MOST_FAILURES,
    Failure,
    Made,
    Outcome,
    Progress,
    Rejection,
    outcomes,
    raise_failures,
)
from shard_tool.build.record import PHOTOS_FILE, Photos, files_beside
from shard_tool.display import Report
from shard_tool.options import Options
from shard_tool.sources.listing import printable
from shard_tool.sources.protocol import Source


class Build(NamedTuple):
    """What every group of a build is made with; it can be pickled."""

    source: Source
    plan: Plan
    options: Options
    pad: int
    """`json_pad` of the two."""
    skip_unreadable: bool = False
    """Whether a photo that cannot be read is rejected and not tried again."""


class GroupWriter:
    """Writes the shards of one group; after a failed read it only looks for further ones."""

    def __init__(
        self, folder: Path, build: Build, failures: list[str], take: Callable[[Shard], None] = lambda shard: None
    ) -> None:
        """Write into `folder`.

        Args:
            folder: where the shards appear.
            build: what it is made with.
            failures: gets a line for each photo that could not be read; at `MOST_FAILURES` the writer gives up.
            take: is told of each shard that is finished.
        """
        self._folder, self._build, self._failures, self._take = folder, build, failures, take
        self.failed = False
        self._suffix = SUFFIX[build.options.encode]
        self._shards: dict[str, list[Shard]] = {}
        self._rejected: list[tuple[int, Rejection]] = []
        self._skipped = 0
        self._positives: dict[str, Any] = {}
        self._contents: dict[int, int] = {}

    def write(self, group: Group, outcomes: Iterator[Outcome]) -> None:
        """Take the outcomes of all items of `group`."""
        for shard in group.shards:
            self._write(shard, outcomes)
            if len(self._failures) >= MOST_FAILURES:
                return

    @property
    def shards(self) -> list[Shard]:
        """Those that are written."""
        return [shard for rows in self._shards.values() for shard in rows]

    def record(self, group: Group) -> GroupRecord:
        """The finished group; only where nothing failed."""
        assert not self.failed, "a group with failures stays unfinished"
        plan = self._build.plan
        left_out = [(item, Rejection(*plan.why_left_out(item))) for item in group.left_out.tolist()]
        rejected = [
            (printable(plan.listing[item]), rejection.reason, rejection.detail)
            for item, rejection in sorted(self._rejected + left_out)
        ]
        positives = {split: counts.tolist() for split, counts in self._positives.items()}
        contents = [self._contents.get(item, 0) for item in plan.groups[group.number].tolist()]
        return GroupRecord(group.number, self._shards, rejected, positives, np.array(contents, ">u8").tobytes().hex())

    def _write(self, planned: PlannedShard, outcomes: Iterator[Outcome]) -> None:
        build, kept, number = self._build, list[int](), 0
        limit = build.options.shard_bytes
        writer = ShardWriter(self._folder, self._name(planned, number))
        try:
            for item in planned.items.tolist():
                outcome = self._judged(item, next(outcomes))
                if len(self._failures) >= MOST_FAILURES:
                    return
                if self.failed or not isinstance(outcome, Made):
                    continue
                meta = b"" if build.options.no_json else build.plan.meta(item).ljust(build.pad)
                if limit is not None and writer.samples and _would_be(writer, outcome.sample, meta) > limit:
                    self._close(writer, planned.split)
                    number += 1
                    writer = ShardWriter(self._folder, self._name(planned, number))
                writer.add(build.plan.keys[item], outcome.sample, self._suffix, meta)
                self._contents[item] = outcome.content
                kept.append(item)
            if not self.failed:
                self._close(writer, planned.split)
        finally:
            writer.abort()
        self._count_positives(planned.split, kept)

    def _judged(self, item: int, outcome: Outcome) -> Outcome:
        """Note what became no sample."""
        if isinstance(outcome, Failure) and outcome.error and self._build.skip_unreadable:
            self._skipped += 1
            # So many in a row are no bad files: the disk is gone.
            if self._skipped < MOST_FAILURES:
                outcome = Rejection("unreadable", outcome.error)
        else:
            self._skipped = 0
        if isinstance(outcome, Failure):
            self.failed = True
            if outcome.error:
                self._failures.append(f"{printable(self._build.plan.listing[item])} ({outcome.error})")
        elif isinstance(outcome, Rejection):
            self._rejected.append((item, outcome))
        return outcome

    def _name(self, planned: PlannedShard, number: int) -> str:
        return planned.name if self._build.options.shard_bytes is None else f"{planned.name}-{number:03d}"

    def _close(self, writer: ShardWriter, split: str) -> None:
        written = writer.close()
        if written is not None:
            self._shards.setdefault(split, []).append(written)
            self._take(written)

    def _count_positives(self, split: str, kept: list[int]) -> None:
        table = self._build.plan.attributes
        if table is not None and not self._build.options.no_json and kept:
            values = table.values[table.row_of[kept]]
            classes = len(table.classes)
            counts = np.bincount(values[:, 0], minlength=classes) if classes else values.sum(0, dtype=np.int64)
            self._positives[split] = self._positives.get(split, 0) + counts


class Finished(NamedTuple):
    """What earlier runs have done."""

    groups: frozenset[int]
    photos: int
    rejected: int


def finished_groups(journal: Journal, plan: Plan) -> Finished:
    """The groups that earlier runs have finished."""
    records = [(record.number, len(record.rejected)) for record in journal.read_all(len(plan.groups)) if record]
    photos = sum(len(plan.groups[number]) for number, _ in records)
    return Finished(frozenset(number for number, _ in records), photos, sum(rejected for _, rejected in records))


def build_groups(journal: Journal, build: Build, finished: Finished, *, threads: int, report: Report) -> None:
    """Build what is not `finished` yet.

    Raises `SourceError` where photos could not be read, `OSError` or `TransportError` where the shards cannot be
    written; each leaves the finished groups for the next attempt.
    """
    progress = Progress(report)
    progress.add(finished.photos, finished.rejected)
    place, plan, failures = journal.place, build.plan, list[str]()
    place.workshop.mkdir(parents=True, exist_ok=True)
    groups = (group.items for group in plan.iter_groups(finished.groups))
    made = outcomes(build.source, groups, build.options, threads, done=progress.add, spool=place.spool)
    with contextlib.closing(made):
        for group in plan.iter_groups(finished.groups):
            writer = GroupWriter(place.workshop, build, failures, lambda shard: place.take(place.workshop, shard))
            writer.write(group, made)
            if len(failures) >= MOST_FAILURES:
                break
            if not writer.failed:
                journal.record(writer.record(group))
                progress.add(len(group.left_out), len(group.left_out))
    place.settle()
    raise_failures(failures)


def restore(
    journal: Journal, build: Build, shards: ShardSet, lost: set[str], photos: Photos, *, threads: int
) -> list[str]:
    """Make what is `lost` of a finished set again; what comes out as it was recorded takes its place.

    `lost` are names of shards, and of files beside them, for which all photos are read. Returns the names of those that
    did not come out so. Raises what `build_groups` raises.
    """
    place, failures, left, records = journal.place, list[str](), set(lost), list[GroupRecord]()
    recorded = {shard.name: shard for split in shards.splits.values() for shard in split}
    files = {name: sha256 for name, sha256 in files_beside(shards) if name in lost}
    by_bytes = build.options.shard_bytes is not None
    for group in build.plan.iter_groups():
        if not files:
            # If bytes limit the shards, several are cut from a planned one, and their names begin with its name.
            planned = {name.rpartition("-")[0] if by_bytes else name for name in left}
            group = replace(group, shards=tuple(shard for shard in group.shards if shard.name in planned))
            if not group.shards:
                continue
        made = outcomes(build.source, [group.items], build.options, threads, spool=place.spool)
        with place.desk() as desk, contextlib.closing(made):
            writer = GroupWriter(desk, build, failures)
            writer.write(group, made)
            raise_failures(failures)
            for shard in writer.shards:
                if shard.name in left and shard == recorded[shard.name]:
                    place.take(desk, shard)
                    left.remove(shard.name)
            place.settle()
        if files:
            records.append(writer.record(group))
    for name, data in _files_of(records, build.plan, photos).items():
        if name in files and hashlib.sha256(data).hexdigest() == files[name]:
            place.store(name, data)
            left.remove(name)
    return sorted(left)


def _files_of(records: Sequence[GroupRecord], plan: Plan, photos: Photos) -> dict[str, bytes]:
    """Those files, by name."""
    for record in records:
        contents = np.frombuffer(bytes.fromhex(record.contents), ">u8")
        photos.rows["content"][plan.groups[record.number]] = contents
    rejected = b"".join(line for record in records for line in record.lines())
    return {PHOTOS_FILE: photos.to_bytes(), REJECTED_FILE: rejected}


def complete(journal: Journal, build: Build, photos: Photos) -> tuple[ShardSet, Counter[str]]:
    """Describe the set whose groups are all finished; the journal goes. Returns it and the rejections by reason.

    Raises `SourceError` where files went missing meanwhile, and `UserError` where no photo was accepted.
    """
    plan, place, options = build.plan, journal.place, build.options
    shards: dict[str, list[Shard]] = {}
    positives: dict[str, Any] = {}
    reasons: Counter[str] = Counter()
    records: list[GroupRecord] = []
    for record in journal.read_all(len(plan.groups)):
        if record is None:
            raise SourceError(
                f"{place.shown} must keep its shards while it is built; got files that went missing or changed. "
                "Run the same command again, and they are built again."
            )
        _add(record, shards, positives, reasons)
        records.append(record)
    if not shards:
        raise UserError(
            f"at least one photo must be usable; got {reasons.total():,} rejected: {show_reasons(reasons)}. "
            "Choose other photos, or a smaller --size or --crop."
        )
    files = _files_of(records, plan, photos)
    for name, data in files.items():
        place.store(name, data)
    labels = None if options.no_json else plan.attributes
    part = {
        **journal.request,
        "positives": {split: counts.tolist() for split, counts in positives.items()},
        "ignored": ignored(build.source, plan),
        **{Path(name).stem: {"file": name, "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()},
    }
    shard_set = ShardSet(
        location=place.workshop,
        name=place.name,
        image_size=options.size,
        channels=3,
        encoding=options.encode,
        splits={split: Split.of([vars(shard) for shard in shards[split]]) for split in SPLITS if split in shards},
        attributes=labels.columns if labels is not None else (),
        classes=labels.classes if labels is not None else (),
        parts=(part,),
        rejected=reasons.total(),
    )
    journal.finish(shard_set)
    return shard_set, reasons


def ignored(source: Source, plan: Plan) -> dict[str, int]:
    """Files that became neither samples nor rejections, by kind, the most frequent first."""
    beyond = {"beyond --limit": len(source.listing) - plan.photos}
    found = +Counter({**source.ignored, **beyond})
    return dict(sorted(found.items(), key=lambda row: (-row[1], row[0])))  # As it is listed differs with the disk.


def json_pad(plan: Plan, options: Options) -> int:
    """The length to which each json is filled up, so that raw samples have one stride; 0: as long as it is."""
    return plan.longest_meta() if not options.no_json and options.encode == "raw" else 0


def show_reasons(reasons: Counter[str]) -> str:
    """`3 empty file, 2 not an image`, the most frequent first."""
    return ", ".join(
        f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda row: (-row[1], row[0]))
    )


def _add(record: GroupRecord, shards: dict[str, list[Shard]], positives: dict[str, Any], reasons: Counter[str]) -> None:
    reasons.update(reason for _, reason, _ in record.rejected)
    for split, rows in record.shards.items():
        shards.setdefault(split, []).extend(rows)
    for split, counts in record.positives.items():
        positives[split] = positives.get(split, 0) + np.array(counts)


def _would_be(writer: ShardWriter, image: bytes, meta: bytes) -> int:
    """Bytes of the shard if this sample were its last."""
    return tar_bytes(writer.content_bytes + member_bytes(len(image)) + (member_bytes(len(meta)) if meta else 0))

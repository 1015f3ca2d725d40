"""One group: outcomes in the plan's order become its shards and its record. The same code runs here and on a cluster.

outcome: a sample ──> ShardWriter, and the next one where --shard-size is reached ──> hand_in
         rejected ──> the record, for rejected.jsonl
         failed   ──> no record: the group stays unfinished, and a rerun builds it
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.format import SUFFIX, Shard
from pipeline.tar import ShardWriter, member_bytes, tar_bytes
from shard_tool.build.journal import GroupRecord
from shard_tool.build.plan import Group, Plan, PlannedShard
from shard_tool.build.reading import Failure, Outcome, Rejection
from shard_tool.settings import Settings
from shard_tool.sources.listing import printable

MOST_FAILURES = 20
"""Failed reads after which a build gives up: the disk is gone, not a file."""


class GroupWriter:
    """Writes the shards of one group; after a failed read it only looks for further ones."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        settings: Settings,
        pad: int,
        failures: list[str],
        hand_in: Callable[[Shard], None] = lambda shard: None,
    ) -> None:
        """Write into `folder`.

        Args:
            folder: where the shards appear.
            plan: the whole plan.
            settings: of the build.
            pad: `json_pad` of the two.
            failures: gets a line for each photo that could not be read; at `MOST_FAILURES` the writer gives up.
            hand_in: is told of each shard that is finished.
        """
        self._folder, self._plan, self._settings, self._pad = folder, plan, settings, pad
        self._failures, self._hand_in = failures, hand_in
        self.failed = False
        self._suffix = SUFFIX[settings.recipe.encoding]
        self._shards: dict[str, list[Shard]] = {}
        self._rejected: list[tuple[int, Rejection]] = []
        self._positives: dict[str, Any] = {}

    def write(self, group: Group, outcomes: Iterator[Outcome]) -> None:
        """Take the outcomes of all items of `group`."""
        for shard in group.shards:
            self._write(shard, outcomes)
            if len(self._failures) >= MOST_FAILURES:
                return

    def record(self, group: Group) -> GroupRecord:
        """The finished group; only where nothing failed."""
        assert not self.failed, "a group with failures stays unfinished"
        left_out = [(item, Rejection(*self._plan.why_left_out(item))) for item in group.left_out.tolist()]
        rejected = [
            (printable(self._plan.listing[item]), rejection.reason, rejection.detail)
            for item, rejection in sorted(self._rejected + left_out)
        ]
        positives = {split: counts.tolist() for split, counts in self._positives.items()}
        return GroupRecord(group.number, self._shards, rejected, positives)

    def _write(self, planned: PlannedShard, outcomes: Iterator[Outcome]) -> None:
        kept: list[int] = []
        limit = self._settings.shard_bytes
        number = 0
        writer = ShardWriter(self._folder, self._name(planned, number))
        try:
            for item in planned.items.tolist():
                outcome = next(outcomes)
                if isinstance(outcome, Failure):
                    self.failed = True
                    if outcome.error:
                        self._failures.append(f"{printable(self._plan.listing[item])} ({outcome.error})")
                    if len(self._failures) >= MOST_FAILURES:
                        return
                elif isinstance(outcome, Rejection):
                    self._rejected.append((item, outcome))
                elif not self.failed:
                    meta = self._plan.meta(item).ljust(self._pad) if self._settings.json else b""
                    if limit is not None and writer.samples and _would_be(writer, outcome, meta) > limit:
                        self._close(writer, planned.split)
                        number += 1
                        writer = ShardWriter(self._folder, self._name(planned, number))
                    writer.add(self._plan.keys[item], outcome, self._suffix, meta)
                    kept.append(item)
            if not self.failed:
                self._close(writer, planned.split)
        finally:
            writer.abort()
        self._count_positives(planned.split, kept)

    def _name(self, planned: PlannedShard, number: int) -> str:
        return planned.name if self._settings.shard_bytes is None else f"{planned.name}-{number:03d}"

    def _close(self, writer: ShardWriter, split: str) -> None:
        written = writer.close()
        if written is not None:
            self._shards.setdefault(split, []).append(written)
            self._hand_in(written)

    def _count_positives(self, split: str, kept: list[int]) -> None:
        table = self._plan.attributes
        if table is not None and self._settings.json and kept:
            values = table.values[table.row_of[kept]]
            classes = len(table.classes)
            counts = np.bincount(values[:, 0], minlength=classes) if classes else values.sum(0, dtype=np.int64)
            self._positives[split] = self._positives.get(split, 0) + counts


def json_pad(plan: Plan, settings: Settings) -> int:
    """The length to which each json is filled up, so that raw samples have one stride; 0: as long as it is."""
    return plan.longest_meta() if settings.json and settings.recipe.encoding == "raw" else 0


def _would_be(writer: ShardWriter, image: bytes, meta: bytes) -> int:
    """Bytes of the shard if this sample were its last."""
    return tar_bytes(writer.content_bytes + member_bytes(len(image)) + (member_bytes(len(meta)) if meta else 0))

"""`make-shards`, from the photos to the summary.

source ──> what the place holds already ──> plan ──> journal ──> duplicates ──> estimate ──> build ──> summary
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.format import SPLITS, ShardSet
from shard_tool.build.duplicates import find_candidates, find_duplicates
from shard_tool.build.estimate import LONG_BUILD_PHOTOS, estimate, free_bytes, show_time, warn
from shard_tool.build.growth import check_growth, plan_growth, plan_part
from shard_tool.build.journal import Journal, check_place, open_journal, remove_finished_journal
from shard_tool.build.labels import FOLDERS, Table, find_labels
from shard_tool.build.place import Place, open_set, place_of
from shard_tool.build.plan import Plan
from shard_tool.build.run import build, finished_groups, show_reasons
from shard_tool.care.contents import megabytes
from shard_tool.display import show_progress
from shard_tool.settings import Settings, describe_request
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import WHATEVER, Source, Wanted


@dataclass(frozen=True)
class Manner:
    """How a build is run; none of it changes a byte of the set."""

    threads: int
    ray: str | None = None
    """Address of a Ray cluster; `local`: one is started here; None: threads of this process."""
    staging: Path = Path("shards/.staging")
    """Folder for shards on their way to a bucket."""
    append: bool = False
    """Whether photos that are new are added to a finished set."""
    dry_run: bool = False
    force: bool = False
    """Whether to begin though the disk seems too small."""
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UserError(f"threads must be at least 1; got {self.threads}. Leave it out for one for each core.")


def make_shards(
    sources: Sequence[str],
    out: str | None,
    settings: Settings,
    manner: Manner,
    *,
    labels: str | None = None,
    wanted: Wanted = WHATEVER,
) -> None:
    """Build the set of the photos in `sources`, go on with it, or add to it; prints a summary.

    `labels` is what `find_labels` takes.

    Raises what `build` raises, and `UserError` for a source or an output folder that cannot be used.
    """
    started = time.monotonic()
    source = open_sources(sources, wanted)
    place = place_of(out or f"shards/{source.name}-{settings.recipe.size}", manner.staging)
    attributes, partition = find_labels(source, labels)
    if labels is not None and attributes is not None and not settings.json:
        raise UserError("labels must be stored in each sample's json; got --no-json. Leave out one of the two.")
    present = open_set(place)
    growth = plan_growth(place, present, source) if manner.append and present is not None else None
    if growth is not None and not growth.new.any():
        remove_finished_journal(place)
        _tell(manner, f"{place.shown} has all {len(source.listing):,} photos already; nothing to append.")
        return
    plan = plan_part(source, attributes, partition, settings, growth)
    request = describe_request(source, plan, settings, None if growth is None else growth.appended_to)
    if present is not None and check_growth(place, present, source, plan, request, append=growth is not None):
        _tell(manner, f"{place.shown} is already complete.")
        return
    if manner.dry_run:
        check_place(place, request)
        print("\n".join(_forecast(place, source, plan, settings)))
        return
    with open_journal(place, request) as journal:
        if journal is None:
            _tell(manner, f"{place.shown} is already complete.")
            return
        if settings.drop_duplicates:
            plan = _without_duplicates(journal, source, plan, None if growth is None else growth.known, manner)
        built, shard_set, reasons = _build(journal, source, plan, settings, manner)
    _tell(manner, "\n".join(_summary(place, shard_set, reasons, plan, source, built, time.monotonic() - started)))


def _tell(manner: Manner, text: str) -> None:
    if not manner.quiet:
        print(text)


def _without_duplicates(
    journal: Journal, source: Source, plan: Plan, known: NDArray[np.bool_] | None, manner: Manner
) -> Plan:
    groups = find_candidates(source, plan, known)
    with show_progress("looking for duplicates", sum(map(len, groups)), quiet=manner.quiet) as report:
        stays = find_duplicates(journal.place, source, groups, known, threads=manner.threads, report=report)
    return plan.without(stays)


def _build(
    journal: Journal, source: Source, plan: Plan, settings: Settings, manner: Manner
) -> tuple[int, ShardSet, Counter[str]]:
    """Returns the photos that this run has done, the set, and the rejections by reason."""
    finished = finished_groups(journal, plan)
    left = plan.photos - finished.photos
    if left >= LONG_BUILD_PHOTOS:
        expected = estimate(source, plan, settings)
        warn(journal.place, expected, left / plan.photos, manner.threads, force=manner.force, quiet=manner.quiet)
    with show_progress("making shards", plan.photos, quiet=manner.quiet) as report:
        if manner.ray is not None:
            from shard_tool.build.ray_build import build_on_ray  # Heavy, and an extra.

            made = build_on_ray(
                journal, source, plan, settings, finished, address=manner.ray, threads=manner.threads, report=report
            )
        else:
            made = build(journal, source, plan, settings, finished, threads=manner.threads, report=report)
    return left, *made


def _summary(
    place: Place, shard_set: ShardSet, reasons: Counter[str], plan: Plan, source: Source, built: int, seconds: float
) -> list[str]:
    splits = shard_set.splits
    kept = sum(split.total for split in splits.values())
    shards = sum(len(split) for split in splits.values())
    size = sum(int(split.bytes.sum()) for split in splits.values())
    lines = [
        f"{place.shown} is complete: {kept:,} images of {shard_set.image_size} px in {shards:,} shards, "
        f"{megabytes(size)}",
        f"  added     {plan.photos:,} new photos, part {len(shard_set.parts)}" if len(shard_set.parts) > 1 else "",
        f"  splits    {', '.join(f'{name} {split.total:,}' for name, split in splits.items())}{_where_from(plan)}",
        f"  labels    {_labels(plan)}" if shard_set.attributes or shard_set.classes else "",
        f"  rejected  {show_reasons(reasons) or 'none'}{', see rejected.jsonl' if reasons else ''}",
        f"  ignored   {source.ignored:,} files that are no images" if source.ignored else "",
        f"  time      {seconds:,.1f} s, {built / seconds:,.0f} images/s",
        f"Next: accelerate launch --quiet train/run.py --data.shards {place.shown}",
    ]
    return [line for line in lines if line]


def _forecast(place: Place, source: Source, plan: Plan, settings: Settings) -> list[str]:
    shards = Counter(shard.split for group in plan.iter_groups() for shard in group.shards)
    samples = plan.samples()
    # Where bytes limit the shards, their number is not known before they are made.
    numbers = {name: f" (shards: {shards[name]:,})" if plan.shard_samples is not None else "" for name in SPLITS}
    expected = [f"{name} {samples[name]:,}{numbers[name]}" for name in SPLITS if samples[name]]
    left_out = plan.photos - sum(samples.values())
    tried = estimate(source, plan, settings, chunks=4)
    lines = [
        f"{place.shown} would be made of {plan.photos:,} photos from '{source.name}'; nothing was written.",
        f"  splits    {', '.join(expected)}{_where_from(plan)}",
        f"  labels    {_labels(plan) if settings.json else 'none'}",
        f"  left out  {left_out:,} photos that a table does not name" if left_out else "",
        f"  rejected  about {tried.rejected:.0%} ({show_reasons(tried.reasons) or 'none'} of {tried.tried} tried)",
        f"  ignored   {source.ignored:,} files that are no images" if source.ignored else "",
        f"  space     about {megabytes(tried.bytes)}; {megabytes(free_bytes(place.workshop))} are free",
        f"  time      about {show_time(tried.seconds)} on one core",
    ]
    return [line for line in lines if line]


def _labels(plan: Plan) -> str:
    if plan.attributes is None:
        return "none"
    count, what = len(plan.attributes.columns), "attributes"
    if plan.attributes.classes:
        count, what = len(plan.attributes.classes), "classes"
    return f"{count:,} {what} (by {_origin(plan.attributes)})"


def _where_from(plan: Plan) -> str:
    return f" (by {_origin(plan.partition)})" if plan.partition is not None else ""


def _origin(table: Table) -> str:
    return FOLDERS if table.where == FOLDERS else table.file_name

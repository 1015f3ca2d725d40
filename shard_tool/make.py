"""`make-shards`, from the folder of photos to the summary."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.counter import permutation
from pipeline.errors import UserError
from pipeline.format import RECORD, SPLITS, ShardSet
from pipeline.tar import BLOCK
from shard_tool.build import Report, Settings, build, describe_request, show_reasons
from shard_tool.contents import megabytes
from shard_tool.display import show_progress
from shard_tool.journal import check_folder, open_journal
from shard_tool.labels import FOLDERS, Table, find_labels
from shard_tool.photo import quiet_pillow
from shard_tool.plan import Plan, make_plan
from shard_tool.reading import Rejection, samples_of
from shard_tool.sources.columns import WHATEVER, Wanted
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import Access, Source

ESTIMATE_PHOTOS = 64
"""Photos that a dry run turns into samples, to know their size and how many will be rejected."""


def make_shards(
    sources: Sequence[str],
    out: Path | None,
    settings: Settings,
    *,
    labels: str | None = None,
    wanted: Wanted = WHATEVER,
    threads: int,
    dry_run: bool = False,
    quiet: bool = False,
) -> None:
    """Build the set of the photos in `sources`, or go on with it; prints a summary.

    `labels` is what `find_labels` takes.

    Raises what `build` raises, and `UserError` for a source or an output folder that cannot be used.
    """
    if threads < 1:
        raise UserError(f"threads must be at least 1; got {threads}. Leave it out for one for each core.")
    started = time.monotonic()
    source = open_sources(sources, wanted)
    out = out or Path("shards") / f"{source.name}-{settings.recipe.size}"
    attributes, partition = find_labels(source, labels)
    if labels is not None and attributes is not None and not settings.json:
        raise UserError("labels must be stored in each sample's json; got --no-json. Leave out one of the two.")
    plan = make_plan(
        source,
        attributes,
        partition,
        val_fraction=settings.val_fraction,
        shard_samples=settings.shard_samples,
        seed=settings.seed,
        limit=settings.limit,
    )
    request = describe_request(source, plan, settings)
    if dry_run:
        check_folder(out, request)
        print("\n".join(_forecast(source, plan, settings, out)))
        return
    with open_journal(out, request) as journal:
        if journal is None:
            if not quiet:
                print(f"{out} is already complete.")
            return
        with show_progress("making shards", plan.photos, quiet=quiet) as report:
            built = _Built(report)
            shard_set, reasons = build(journal, source, plan, settings, threads=threads, report=built)
    if not quiet:
        print("\n".join(_summary(shard_set, reasons, plan, source, built.this_run, time.monotonic() - started)))


class _Built:
    """Passes progress on, and knows how much of it is this run's."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._first: int | None = None
        self.this_run = 0

    def __call__(self, done: int, rejected: int) -> None:
        if self._first is None:
            self._first = done
        self.this_run = done - self._first
        self._report(done, rejected)


def _summary(
    shard_set: ShardSet, reasons: Counter[str], plan: Plan, source: Source, built: int, seconds: float
) -> list[str]:
    splits = shard_set.splits
    kept = sum(split.total for split in splits.values())
    shards = sum(len(split) for split in splits.values())
    size = sum(int(split.bytes.sum()) for split in splits.values())
    named = shard_set.attributes or shard_set.classes
    lines = [
        f"{shard_set.folder} is complete: {kept:,} images of {shard_set.image_size} px in {shards:,} shards, "
        f"{megabytes(size)}",
        f"  splits    {', '.join(f'{name} {split.total:,}' for name, split in splits.items())}{_where_from(plan)}",
        f"  labels    {_labels(plan)}" if named else "",
        f"  rejected  {show_reasons(reasons) or 'none'}{', see rejected.jsonl' if reasons else ''}",
        f"  ignored   {source.ignored:,} files that are no images" if source.ignored else "",
        f"  time      {seconds:,.1f} s, {built / seconds:,.0f} images/s",
        f"Next: accelerate launch --quiet train/run.py --data.shards {shard_set.folder}",
    ]
    return [line for line in lines if line]


def _forecast(source: Source, plan: Plan, settings: Settings, out: Path) -> list[str]:
    chosen = _some_photos(source, plan)
    sizes: list[int] = []
    reasons: Counter[str] = Counter()
    began = time.monotonic()
    with quiet_pillow():
        chosen = np.sort(chosen)
        for item, outcome in zip(chosen.tolist(), samples_of(source, chosen.tolist(), settings.recipe), strict=True):
            if isinstance(outcome, bytes):
                json_bytes = len(plan.meta(item)) if settings.json and not plan.is_unlisted(item) else 0
                sizes.append(_member_bytes(len(outcome)) + _member_bytes(json_bytes) + RECORD.itemsize)
            else:
                reasons[outcome.reason if isinstance(outcome, Rejection) else outcome.error] += 1
    seconds = (time.monotonic() - began) / len(chosen) * plan.photos
    share = len(sizes) / len(chosen)
    space = float(np.mean(sizes)) * plan.photos * share if sizes else 0.0
    shards = Counter(shard.split for group in plan.iter_groups() for shard in group.shards)
    samples = plan.samples()
    expected = [f"{name} {samples[name]:,} (shards: {shards[name]:,})" for name in SPLITS if samples[name]]
    left_out = sum(plan.is_unlisted(item) for item in np.concatenate(plan.groups).tolist())
    lines = [
        f"{out} would be made of {plan.photos:,} photos from '{source.name}'; nothing was written.",
        f"  splits    {', '.join(expected)}{_where_from(plan)}",
        f"  labels    {_labels(plan) if settings.json else 'none'}",
        f"  left out  {left_out:,} photos that a table does not name" if left_out else "",
        f"  rejected  about {1 - share:.0%} ({show_reasons(reasons) or 'none'} of {len(chosen)} tried)",
        f"  ignored   {source.ignored:,} files that are no images" if source.ignored else "",
        f"  space     about {megabytes(round(space))}",
        f"  time      about {seconds:,.0f} s on one core",
    ]
    return [line for line in lines if line]


def _labels(plan: Plan) -> str:
    if plan.attributes is None:
        return "none"
    count, what = len(plan.attributes.columns), "attributes"
    if plan.attributes.classes:
        count, what = len(plan.attributes.classes), "classes"
    return f"{count:,} {what} (by {_origin(plan.attributes)})"


def _some_photos(source: Source, plan: Plan) -> NDArray[np.int64]:
    """A few photos from everywhere, or from few chunks where every chunk costs time."""
    items = np.concatenate(plan.groups)
    if source.access is not Access.ANY_ORDER:
        chunks = source.chunks()
        some = np.arange(1) if source.access is Access.ONE_PASS else permutation(len(chunks) - 1, "chunks")[:4]
        chunk_of = np.searchsorted(chunks, items, side="right") - 1
        items = items[np.isin(chunk_of, some)] if np.isin(chunk_of, some).any() else items
    return items[permutation(len(items), "estimate")[:ESTIMATE_PHOTOS]]


def _where_from(plan: Plan) -> str:
    return f" (by {_origin(plan.partition)})" if plan.partition is not None else ""


def _origin(table: Table) -> str:
    return FOLDERS if table.where == FOLDERS else table.file_name


def _member_bytes(size: int) -> int:
    """Room of one file in a tar: its header and its content in whole blocks."""
    return BLOCK + -(-size // BLOCK) * BLOCK if size else 0

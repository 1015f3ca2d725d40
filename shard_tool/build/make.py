"""`make-shards`, from the photos to the summary. The same command answers every state of a set.

nothing there      source ──> plan ──> duplicates ──> estimate ──> groups ──> shardset.json
interrupted        the same, without the groups that are finished
finished           says so, once every shard has the bytes that are recorded
damaged            makes the lost shards again, and takes them if they are what they were
"""

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.errors import EXIT_DONE, EXIT_FAULT, UserError
from pipeline.format import SPLITS, ShardSet
from shard_tool.build.bucket import place_of
from shard_tool.build.duplicates import find_candidates, find_duplicates
from shard_tool.build.estimate import LONG_BUILD_PHOTOS, estimate, free_bytes, show_time, warn
from shard_tool.build.journal import Journal, check_place, differences, open_journal
from shard_tool.build.place import STATE_FOLDER, Place
from shard_tool.build.plan import Plan, make_plan
from shard_tool.build.record import Photos, files_beside, photos_of_sets
from shard_tool.build.writing import (
    Build,
    build_groups,
    complete,
    finished_groups,
    ignored,
    json_pad,
    restore,
    show_reasons,
)
from shard_tool.display import counted, megabytes, show_progress
from shard_tool.image.photo import library_versions
from shard_tool.labels.find import FOLDERS, Carried, find_labels
from shard_tool.labels.tables import Table
from shard_tool.options import PLAN_VERSION, MakeShards, Options
from shard_tool.sources.folder import FolderSource
from shard_tool.sources.listing import Listing
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import Known, Source


def make_shards(command: MakeShards) -> int:
    """Build a set, go on with it, or restore it; prints a summary. Returns the exit code.

    Raises what `build_groups` raises, and `UserError` for a source or an output folder that cannot be used.
    """
    started, options = time.monotonic(), command.options
    source = open_sources(command.sources, options)
    place = place_of(command.out or f"shards/{source.name}-{options.size}", command.staging)
    source, newcomers = _as_it_was(source, place)
    labels = find_labels(source, options.labels)
    if options.labels is not None and labels.labels is not None and options.no_json:
        raise UserError("labels must be stored in each sample's json; got --no-json. Leave out one of the two.")
    plan = make_plan(
        source,
        labels.labels,
        labels.partition,
        labels.carried,
        val_fraction=options.val_fraction,
        shard_samples=options.planned_samples,
        group_samples=options.group_samples,
        seed=options.order_seed,
        limit=options.limit,
        val_by_folder=options.val_by == "folder",
    )
    photos, others = Photos.of(source.listing), photos_of_sets(options.not_in)
    elsewhere = np.zeros(len(source.listing), np.bool_)
    for other in others:
        elsewhere |= photos.held_by(other)
    if elsewhere.all():
        _tell(command, f"all {len(elsewhere):,} photos of {source.name} are in {', '.join(options.not_in)} already.")
        return EXIT_DONE
    plan = plan.without({}, np.flatnonzero(elsewhere))
    request = _request(source, plan, options, labels.carried, others)
    present = check_place(place, request, photos)
    if command.dry_run and present is None:
        print("\n".join(_forecast(place, source, plan, options, labels.notes)))
        return EXIT_DONE
    lost = set() if present is None or command.dry_run else _lost(place, present, command)
    if present is not None and not lost:
        if newcomers:
            raise UserError(
                f"{place.shown} must be built with the photos that it was built with; got {newcomers}. Make another "
                f"set of them (--out OTHER --not-in {place.shown}) and train on both."
            )
        if STATE_FOLDER in place.names():  # A kill has left it.
            with place.locked():
                place.remove_state()
        _tell(command, f"{place.shown} is already complete.")
        return EXIT_DONE
    with open_journal(place, request, photos) as (journal, present):
        if options.drop_duplicates:
            plan = _without_duplicates(place, source, plan, others, np.flatnonzero(elsewhere), command)
        build = Build(source, plan, options, json_pad(plan, options), command.skip_unreadable)
        if present is not None:
            return _restore(journal, build, present, lost, photos, command)
        left = _build(journal, build, command)
        shard_set, reasons = complete(journal, build, photos)
    _tell(
        command, "\n".join(_summary(place, shard_set, reasons, build, left, time.monotonic() - started, labels.notes))
    )
    return EXIT_DONE


def _as_it_was(source: Source, place: Place) -> tuple[Source, str]:
    """A folder without the photos that came after its set was finished, and what these are.

    So damage can be undone though the folder has grown.
    """
    present = place.open_set() if isinstance(source, FolderSource) else None
    before = None if present is None else Photos.of_set(place, present)
    if before is None or not isinstance(source, FolderSource) or source.known != Known():
        return source, ""
    now = Photos.of(source.listing)
    was_there = np.isin(now.rows["path"], before.rows["path"])
    changes = [] if was_there.all() else now.compared_with(before, place)
    if len(changes) != 1:
        return source, ""
    entries = ((source.listing[item], int(source.listing.sizes[item])) for item in np.flatnonzero(was_there).tolist())
    return replace(source, listing=Listing(entries)), changes[0]


def _request(
    source: Source, plan: Plan, options: Options, carried: Carried | None, others: list[Photos]
) -> dict[str, dict[str, object]]:
    """What a set is a function of, in the form that `shardset.json` records; no absolute path is in it."""
    tables = {"attributes_sha256": plan.attributes, "partition_sha256": plan.partition, "carried_sha256": carried}
    settings = options.record()
    if plan.partition is not None:
        settings["val_fraction"] = settings["val_by"] = None
    return {
        "settings": settings,
        "source": {
            "source_name": source.name,
            "photos": len(source.listing),
            "listing_sha256": source.listing.sha256(),
            **source.origin,
            **{name: table.sha256 if table else None for name, table in tables.items()},
            "not_in_sha256": [other.sha256() for other in others],
        },
        "versions": {"plan": PLAN_VERSION, **library_versions()},
    }


def _tell(command: MakeShards, text: str) -> None:
    if not command.quiet:
        print(text)


def _without_duplicates(
    place: Place,
    source: Source,
    plan: Plan,
    others: list[Photos],
    elsewhere: "np.typing.NDArray[np.int64]",
    command: MakeShards,
) -> Plan:
    groups = find_candidates(source, plan, others)
    with show_progress("looking for duplicates", sum(map(len, groups)), quiet=command.quiet) as report:
        stays, more = find_duplicates(place, source, groups, others, threads=command.workers, report=report)
    return plan.without(stays, np.concatenate([elsewhere, more]))


def _lost(place: Place, present: ShardSet, command: MakeShards) -> set[str]:
    """Names of the shards of a finished set, and of files beside them, that have other bytes than are recorded."""
    shards = [shard for split in present.splits.values() for shard in split]
    lost, done = set(), 0
    with show_progress("checking", sum(shard.samples for shard in shards), quiet=command.quiet, counted="") as report:
        for shard in shards:
            if not place.holds(shard, every_byte=True) and not place.write_index(shard):
                lost.add(shard.name)
            done += shard.samples
            report(done, len(lost))
    for name, sha256 in files_beside(present):
        if hashlib.sha256(place.load(name) or b"").hexdigest() != sha256:
            lost.add(name)
    return lost


def _restore(
    journal: Journal, build: Build, present: ShardSet, lost: set[str], photos: Photos, command: MakeShards
) -> int:
    left = restore(journal, build, present, lost, photos, threads=command.workers)
    journal.place.remove_state()
    restored, place = len(lost) - len(left), journal.place.shown
    if restored:
        _tell(
            command, f"{place} had damage in {', '.join(sorted(lost))}; {restored:,} of {len(lost):,} are as they were."
        )
    if left:
        changed = ", ".join(differences(present.parts[0], journal.request, ("versions",)))
        why = f"library versions: {changed}" if changed else "photos of the same names and sizes and other content"
        print(
            f"error: what is made again must have the bytes that are recorded; got others for "
            f"{', '.join(left)}, perhaps by {why}. Put back what it was made with, or delete {place} and build anew.",
            file=sys.stderr,
        )
    return EXIT_FAULT if left else EXIT_DONE


def _build(journal: Journal, build: Build, command: MakeShards) -> int:
    """Build all groups; returns the photos that this run has done."""
    finished = finished_groups(journal, build.plan)
    left = build.plan.photos - finished.photos
    if left >= LONG_BUILD_PHOTOS:
        expected = estimate(build.source, build.plan, build.options)
        share, threads = left / build.plan.photos, command.workers
        warn(journal.place, expected, share, threads, force=command.force, quiet=command.quiet)
    with show_progress("making shards", build.plan.photos, quiet=command.quiet) as report:
        if command.ray is not None:
            from shard_tool.build.ray_build import build_on_ray  # Heavy, and an extra.

            build_on_ray(journal, build, finished, address=command.ray, threads=command.workers, report=report)
        else:
            build_groups(journal, build, finished, threads=command.workers, report=report)
    return left


def _summary(
    place: Place,
    shard_set: ShardSet,
    reasons: Counter[str],
    build: Build,
    built: int,
    seconds: float,
    notes: Sequence[str],
) -> list[str]:
    splits, plan = shard_set.splits, build.plan
    kept = sum(split.total for split in splits.values())
    shards = sum(len(split) for split in splits.values())
    size = sum(int(split.bytes.sum()) for split in splits.values())
    lines = [
        f"{place.shown} is complete: {counted(kept, 'image')} of {shard_set.image_size} px in "
        f"{counted(shards, 'shard')}, {megabytes(size)}",
        f"  splits    {', '.join(f'{name} {split.total:,}' for name, split in splits.items())}{_where_from(plan)}",
        f"  labels    {_labels(plan)}" if shard_set.attributes or shard_set.classes else "",
        f"  rejected  {show_reasons(reasons) or 'none'}{', see rejected.jsonl' if reasons else ''}",
        _ignored(build.source, plan),
        *(f"  note      {note}" for note in notes),
        f"  time      {seconds:,.1f} s, {built / seconds:,.0f} images/s",
        f"Next: accelerate launch --quiet train/run.py --data.shards {place.shown}",
    ]
    return [line for line in lines if line]


def _forecast(place: Place, source: Source, plan: Plan, options: Options, notes: Sequence[str]) -> list[str]:
    shards = Counter(shard.split for group in plan.iter_groups() for shard in group.shards)
    samples = plan.samples()
    # Where bytes limit the shards, their number is not known before they are made.
    numbers = {name: f" (shards: {shards[name]:,})" if plan.shard_samples is not None else "" for name in SPLITS}
    expected = [f"{name} {samples[name]:,}{numbers[name]}" for name in SPLITS if samples[name]]
    left_out = plan.photos - sum(samples.values())
    tried = estimate(source, plan, options, chunks=4)
    lines = [
        f"{place.shown} would be made of {plan.photos:,} photos from '{source.name}'; nothing was written.",
        f"  splits    {', '.join(expected)}{_where_from(plan)}",
        f"  labels    {'none' if options.no_json else _labels(plan)}",
        f"  left out  {left_out:,} photos that a table does not name, or that another set holds" if left_out else "",
        f"  rejected  about {tried.rejected:.0%} ({show_reasons(tried.reasons) or 'none'} of {tried.tried} tried)",
        _ignored(source, plan),
        *(f"  note      {note}" for note in notes),
        f"  space     about {megabytes(tried.bytes)}; {megabytes(free_bytes(place.workshop))} are free",
        f"  time      about {show_time(tried.seconds)} on one core",
    ]
    return [line for line in lines if line]


def _ignored(source: Source, plan: Plan) -> str:
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in ignored(source, plan).items())
    return f"  ignored   {kinds}" if kinds else ""


def _labels(plan: Plan) -> str:
    if plan.attributes is None:
        return "none"
    attributes, classes = len(plan.attributes.columns), len(plan.attributes.classes)
    what = counted(classes, "class", "classes") if classes else counted(attributes, "attribute")
    return f"{what} (by {_origin(plan.attributes)})"


def _where_from(plan: Plan) -> str:
    return f" (by {_origin(plan.partition)})" if plan.partition is not None else ""


def _origin(table: Table) -> str:
    return FOLDERS if table.where == FOLDERS else table.file_name

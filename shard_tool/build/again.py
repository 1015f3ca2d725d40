"""A part of a finished set, planned again: of which photos each of its shards was made, and those shards once more.

settings, listing and versions in shardset.json ─┐
photos as they are, less those that came later ──┴─> the same plan ──> the damaged shards of a group ──> the same bytes
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.format import Shard, ShardSet
from shard_tool.build.duplicates import find_candidates, find_duplicates
from shard_tool.build.group import GroupWriter, json_pad
from shard_tool.build.growth import plan_growth, plan_part
from shard_tool.build.journal import differences
from shard_tool.build.labels import FOLDERS, find_labels
from shard_tool.build.listed import Listed
from shard_tool.build.place import Folder
from shard_tool.build.plan import Group, Plan
from shard_tool.build.reading import outcomes
from shard_tool.build.run import Progress, source_error
from shard_tool.image.photo import Recipe
from shard_tool.settings import Settings, describe_request
from shard_tool.sources.folder import FolderSource
from shard_tool.sources.listing import Listing
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import Source, Wanted


@dataclass(frozen=True)
class Again:
    """One part of a set, ready to be built again."""

    source: Source
    plan: Plan
    settings: Settings
    other_versions: tuple[str, ...]
    """Libraries of other versions than then: they may give other bytes."""

    def groups_of(self, names: Set[str]) -> Iterator[Group]:
        """The groups that made these shards, cut down to them."""
        # Where bytes limit the shards, several are cut from a planned one, and their names begin with its name.
        cut = self.settings.shard_bytes is not None
        planned = {name.rpartition("-")[0] if cut else name for name in names}
        for group in self.plan.iter_groups():
            shards = tuple(shard for shard in group.shards if shard.name in planned)
            if shards:
                yield replace(group, shards=shards)

    def build(self, out: Path, group: Group, *, threads: int, report: Callable[[int, int], None]) -> list[Shard]:
        """Write the shards of `group` into the folder `out`; raises `SourceError` and `OSError`."""
        failures: list[str] = []
        writer = GroupWriter(out, self.plan, self.settings, json_pad(self.plan, self.settings), failures)
        done = Progress(report).add
        made = outcomes(self.source, [group], self.settings.recipe, threads, done=done, spool=out)
        with contextlib.closing(made):
            writer.write(group, made)
        if failures:
            raise source_error(failures)
        return [shard for rows in writer.record(group).shards.values() for shard in rows]


def plan_again(
    shards: ShardSet, number: int, photos: Sequence[str], labels: str | None, *, workshop: Path, threads: int
) -> Again:
    """Plan part `number` of a set as it was planned then.

    `photos` is what it was built from, perhaps among others; `labels` is the path of its table of labels, where that
    does not lie beside the photos; `workshop` gets small files. Raises `UserError` where the plan would be another one,
    with the difference.
    """
    part, before = shards.parts[number], replace(shards, parts=shards.parts[:number])
    settings = _settings(part)
    origin = part["source"]
    wanted = Wanted(origin.get("image_column"), config=origin.get("config"), revision=origin.get("commit"))
    source = _source_then(open_sources(photos, wanted), shards, number)
    attributes, partition = find_labels(source, _labels(settings, source, labels))
    appended_to = part["source"].get("appended_to")
    growth = None if appended_to is None else plan_growth(Folder(shards.folder), before, source)
    plan = plan_part(source, attributes, partition, settings, growth)
    request = describe_request(source, plan, settings, appended_to)
    different = differences(part, request, ("settings", "source"))
    then, now = part["versions"]["plan"], request["versions"]["plan"]
    if then != now:
        different.append(f"a leanstream of plan version {now} (was {then})")
    if different:
        raise UserError(
            f"{', '.join(photos)} must be the photos and tables that the set was made of; got {', '.join(different)}. "
            "Name those, or build the set again."
        )
    if settings.drop_duplicates:
        known = None if growth is None else growth.known
        groups = find_candidates(source, plan, known)
        place = Folder(workshop / f"part-{number}")
        stays = find_duplicates(place, source, groups, known, threads=threads, report=lambda done, rejected: None)
        plan = plan.without(stays)
    return Again(source, plan, settings, tuple(differences(part, request, ("versions",))))


def _source_then(source: Source, shards: ShardSet, number: int) -> Source:
    """The source as it was for a part: with the photos of the parts before, or without, and none that came later."""
    wanted = shards.parts[number]["source"]["listing_sha256"]
    if not isinstance(source, FolderSource) or source.listing.sha256() == wanted:
        return source  # An archive does not grow; where it is another one, the difference is told.
    for parts in (shards.parts[: number + 1], shards.parts[number : number + 1]):
        if all("listing" in part for part in parts):
            had = ~Listed.read(Folder(shards.folder), replace(shards, parts=parts)).compare(source.listing).new
            entries = ((source.listing[item], int(source.listing.sizes[item])) for item in np.flatnonzero(had).tolist())
            smaller = replace(source, listing=Listing(entries))
            if smaller.listing.sha256() == wanted:
                return smaller
    return source


def _settings(part: Mapping[str, Any]) -> Settings:
    """What `describe_request` wrote down. None there: it did not count, and any value does."""
    said = {name: value for name, value in part["settings"].items() if value is not None}
    recipe = {field.name: {"encoding": "encode"}.get(field.name, field.name) for field in fields(Recipe)}
    others = {field.name for field in fields(Settings)} - {"recipe"}
    return Settings(
        Recipe(**{"quality": 95, **{field: said[name] for field, name in recipe.items() if name in said}}),
        **{name: value for name, value in said.items() if name in others},
    )


def _labels(settings: Settings, source: Source, given: str | None) -> str | None:
    """What `find_labels` must be told."""
    if settings.labels in (None, FOLDERS):
        return settings.labels
    if given is None:
        beside = [file.where for file in source.side_files(str(settings.labels)) if Path(file.where).is_file()]
        if not beside:
            raise UserError(
                f"labels must be the table that the set was made with, {settings.labels}; got none. "
                "Name it with --labels PATH."
            )
        return beside[0]
    return given

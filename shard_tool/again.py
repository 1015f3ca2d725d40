"""A part of a finished set, planned again: of which photos each of its shards was made, and those shards once more."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.format import Shard
from shard_tool.build import Settings, _GroupWriter, _Progress, _source_error, describe_request
from shard_tool.journal import Journal, _flat, _show
from shard_tool.labels import FOLDERS, find_labels
from shard_tool.photo import Recipe
from shard_tool.plan import Group, Plan, make_plan
from shard_tool.reading import outcomes
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import Source


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
        for group in self.plan.iter_groups():
            shards = tuple(shard for shard in group.shards if shard.name in names)
            if shards:
                yield replace(group, shards=shards)

    def build(self, out: Path, group: Group, *, threads: int, report: Callable[[int, int], None]) -> list[Shard]:
        """Write the shards of `group` into the folder `out`; raises `SourceError` and `OSError`."""
        is_raw = self.settings.recipe.encoding == "raw"
        pad = self.plan.longest_meta() if self.settings.json and is_raw else 0
        writer = _GroupWriter(Journal(out, {}), self.plan, self.settings, pad)
        failures: list[str] = []
        done = _Progress(report).add
        made = outcomes(self.source, [group], self.settings.recipe, threads, done=done, spool=out)
        with contextlib.closing(made):
            for shard in group.shards:
                writer.write(shard, made, failures)
        if failures:
            raise _source_error(failures)
        return [shard for rows in writer.record(group).shards.values() for shard in rows]


def plan_again(part: Mapping[str, Any], photos: Path, labels: str | None) -> Again:
    """Plan a part of a set as it was planned then.

    `photos` is what it was built from; `labels` is the path of its table of labels, where that does not lie beside
    the photos. Raises `UserError` where the plan would be another one, with the difference.
    """
    settings = _settings(part)
    source = open_sources([str(photos)])
    attributes, partition = find_labels(source, _labels(settings, source, labels))
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
    differences = _differences(part, request, ("settings", "source"))
    then, now = part["versions"]["plan"], request["versions"]["plan"]
    if then != now:
        differences.append(f"a leanstream of plan version {now} (was {then})")
    if differences:
        raise UserError(
            f"{photos} must be the photos and tables that the set was made of; got {', '.join(differences)}. "
            "Name those, or build the set again."
        )
    return Again(source, plan, settings, tuple(_differences(part, request, ("versions",))))


def _settings(part: Mapping[str, Any]) -> Settings:
    """What `describe_request` wrote down."""
    said = {**part["settings"]}
    for name, default in (("quality", 95), ("val_fraction", 0.05)):  # None: it did not count.
        said[name] = default if said[name] is None else said[name]
    recipe = Recipe(said["size"], said["crop"], said["encode"], said["quality"])
    others = ("val_fraction", "shard_samples", "seed", "limit", "json")
    return Settings(recipe, labels=said.get("labels"), **{name: said[name] for name in others})


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


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any], sections: tuple[str, ...]) -> list[str]:
    old, new = _flat(earlier, sections), _flat(now, sections)
    return [
        f"{name} {_show(new.get(name))} (was {_show(old.get(name))})"
        for name in dict.fromkeys([*new, *old])
        if new.get(name) != old.get(name)
    ]

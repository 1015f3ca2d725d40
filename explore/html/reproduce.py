"""How to make a run again: the commands, from what the shard sets and the run recorded of themselves."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from explore.html.evidence import Evidence
from explore.html.wording import without_places
from pipeline import Dataset
from pipeline.format import ShardSet
from shard_tool.options import command_of


@dataclass(frozen=True)
class Step:
    """A few words, and what to type."""

    words: str
    command: str


def steps_of(evidence: Evidence, commands: Sequence[str]) -> list[Step]:
    """From the photos to the model, as far as it is known, and to the pictures of the explore `commands`."""
    shards, steps = evidence.shards, list[Step]()
    if shards is not None:
        places = shown_places(shards)
        for one, place in zip(shards.sets, places, strict=True):
            steps += _builds(one, place) or [_not_made_here(place if len(places) > 1 else "The shard set")]
        read = list(shards.repeated(places))
    else:
        name = (evidence.training.get("data") or {}).get("name", "SHARDS")
        read = [f"shards/{part}" for part in without_places(str(name)).split("+")]
    if evidence.config:
        steps.append(Step(f"Save these settings as {evidence.name}.toml:", portable_toml(evidence.config)))
    toml = f"{evidence.name}.toml" if evidence.config else "CONFIG.toml"
    steps.append(
        Step(
            "Train. The same command goes on where it was stopped.",
            f"accelerate launch train/run.py {shlex.quote(toml)} --data.shards {shlex.join(read)} "
            f"--run.dir {shlex.quote(f'runs/{evidence.name}')}",
        )
    )
    if commands:
        run = shlex.quote(f"runs/{evidence.name}")
        words = "Look at it. The options that were used stand below each picture."
        steps.append(Step(words, "\n".join(f"explore {command} --run {run}" for command in (*commands, "report"))))
    return steps


def shown_places(shards: Dataset) -> list[str]:
    """The sets as a command names them: a path from the current folder, or the last part of one that lies elsewhere.

    More of it would say something of the machine's owner.
    """
    names = [_shown_place(one) for one in shards.sets]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)]


def portable_toml(config: Mapping[str, Mapping[str, Any]]) -> str:
    """The settings as TOML, without a place of this machine."""
    return tomli_w.dumps(
        {
            section: {key: without_places(value) if isinstance(value, str) else value for key, value in values.items()}
            for section, values in config.items()
        }
    )


def _shown_place(shards: ShardSet) -> str:
    if isinstance(shards.location, str):
        return shards.location.partition("?")[0].rstrip("/").rpartition("/")[2]
    here = Path.cwd()
    return str(shards.location.relative_to(here)) if shards.location.is_relative_to(here) else shards.location.name


def _builds(shards: ShardSet, place: str) -> list[Step]:
    """The commands that made a set; none where another program did."""
    return [
        _build(part["settings"], part["source"], place, number)
        for number, part in enumerate(shards.parts, 1)
        if isinstance(part.get("settings"), Mapping) and isinstance(part.get("source"), Mapping)
    ]


def _not_made_here(what: str) -> Step:
    return Step(f"{what} was not made by make-shards; its fingerprint says which one it was.", "")


def _build(settings: Mapping[str, Any], source: Mapping[str, Any], place: str, number: int) -> Step:
    out = place if number == 1 else f"{place}-{number}"  # Of an older set, which had grown.
    command = command_of(settings, "PHOTOS", out) + ("" if number == 1 else f" --not-in {shlex.quote(place)}")
    photos = source.get("photos")
    count = f"the {photos:,} photos" if isinstance(photos, int) else "the photos"
    origin = without_places(str(source.get("source_name", "unknown")))
    listing = str(source.get("listing_sha256") or "")[:16]
    digest = f" (sha256 of their list {listing}…)" if listing else ""
    return Step(f"Make the shard set. PHOTOS are {count} of “{origin}”{digest}.", command)

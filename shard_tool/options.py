"""What decides about the bytes of a set: the options of make-shards, what `shardset.json` records, what replays them.

One dataclass is all three. A field is an option; `record` says it without any path of this machine; `command_of` turns
what was recorded into the command again.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import tyro

from pipeline.errors import UserError
from pipeline.machine import parse_bytes, usable_cores
from pipeline.tar import member_bytes
from shard_tool.image.recipe import Recipe
from shard_tool.sources.protocol import Wanted

PLAN_VERSION = 3
"""Counts up when the same request would give other bytes; a build of another version is not gone on with."""
SHARD_SAMPLES = 4096
GROUP_SHARDS = 4
"""Full shards a group; what a kill can cost, and how far photos that lie side by side are spread at least."""
LEAST_SHARD_BYTES = 20_000
_PIXEL_BYTES = {"jpeg": 0.9, "webp": 0.5, "png": 2.2, "raw": 3.0}
"""Bytes a pixel of a small portrait, by encoding; see `Options.group_samples`."""
_JSON_BYTES = 200
_MOST_GROUP_SAMPLES = 1 << 18
"""A kill must not cost hours, however large the shards are to be."""
_EARLIER = {"shard_bytes": "shard_size"}
"""Names that older sets recorded."""


@dataclass(frozen=True)
class Options(Wanted, Recipe):
    """All choices that decide about the bytes of a set."""

    val_fraction: float = 0.05
    """Share of the photos for the val split, unless a table or folders say which."""
    val_by: Literal["photo", "folder"] = "photo"
    """What goes to val as a whole: a photo, or a folder, so that all photos of a person stay together."""
    shard_samples: int | None = None
    """Most samples in one shard; by default 4096."""
    shard_size: str | None = None
    """Most bytes of one shard, such as 100MB or 1GiB, in place of a number of samples."""
    seed: int = 0
    """Seed of the order in which photos are spread over the shards."""
    keep_order: bool = False
    """Keep the order of the listing, for sets where it matters; else photos are mixed."""
    drop_duplicates: bool = False
    """Leave out photos with the same bytes as an earlier one; they are listed in rejected.jsonl."""
    not_in: tuple[str, ...] = ()
    """Shard sets: photos that these hold already, by name and size, are left out; with --drop-duplicates also those of
    the same bytes."""
    limit: int | None = None
    """Take only this many photos, spread over the whole source by the seed."""
    labels: str | None = None
    """A table of labels (csv, tsv, txt or jsonl): attributes, or classes, and splits. Or the word folders: the name of
    the folder that a photo lies in is its class. By default tables of known names are taken where they lie beside the
    photos."""
    no_json: bool = False
    """Leave out the json of each sample, its source and labels: the leanest set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val-fraction must be from 0 to below 1; got {self.val_fraction}. Use 0.05.")
        if self.shard_samples is not None and self.shard_size is not None:
            raise UserError("shards must be limited by --shard-samples or by --shard-size; got both. Leave one out.")
        if self.shard_samples is not None and self.shard_samples < 1:
            raise UserError(f"shard-samples must be at least 1; got {self.shard_samples}. Use 4096.")
        if self.shard_bytes is not None and self.shard_bytes < LEAST_SHARD_BYTES:
            raise UserError(
                f"shard-size must be at least {LEAST_SHARD_BYTES:,} bytes; got {self.shard_bytes:,}. Use 100MB."
            )
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be at least 1; got {self.limit}. Leave it out to take all photos.")
        if self.keep_order and self.seed:
            raise UserError(
                f"a seed must have something to mix; got --seed {self.seed} and --keep-order. Leave one out."
            )

    @property
    def shard_bytes(self) -> int | None:
        """Most bytes of a shard; it has more only where a single sample has."""
        return None if self.shard_size is None else parse_bytes(self.shard_size, "shard-size")

    @property
    def planned_samples(self) -> int | None:
        """Samples of a full shard; None if bytes limit it."""
        return (self.shard_samples or SHARD_SAMPLES) if self.shard_size is None else None

    @property
    def order_seed(self) -> int | None:
        """Of all permutations; None: the order of the listing."""
        return None if self.keep_order else self.seed

    @property
    def group_samples(self) -> int:
        """Most photos in a group: what fills about four shards.

        A plan must follow from the listing and the options alone, so that this is a guess from the size of the samples
        if bytes limit the shards; a group that makes three shards or six serves as well.
        """
        limit = self.shard_bytes
        if limit is None:
            return (self.shard_samples or SHARD_SAMPLES) * GROUP_SHARDS
        image = round(self.size**2 * _PIXEL_BYTES[self.encode])
        sample = member_bytes(image) + (0 if self.no_json else member_bytes(_JSON_BYTES))
        return min(max(1, limit * GROUP_SHARDS // sample), _MOST_GROUP_SAMPLES)

    def record(self) -> dict[str, Any]:
        """All options as JSON: equal for options that make equal sets; of paths, the names alone."""
        said: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(Options)}
        said |= self.describe()
        said["shard_samples"], said["shard_size"] = self.planned_samples, self.shard_bytes
        said["labels"] = None if self.labels is None else Path(self.labels).name
        said["not_in"] = [Path(name).name for name in self.not_in]
        said["seed"] = self.order_seed
        return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}

    @classmethod
    def replay(cls, recorded: Mapping[str, Any]) -> Self:
        """The options that `record` wrote down, also in an older set; what was None did not count."""
        names = {field.name for field in fields(cls)}
        said = {_EARLIER.get(name, name): value for name, value in recorded.items() if value is not None}
        if recorded.get("json") is False:
            said["no_json"] = True
        if "shard_size" in said:
            said["shard_size"] = str(said["shard_size"])
        chosen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in said.items() if name in names
        }
        return cls(**chosen)


@dataclass(frozen=True)
class MakeShards(Options):
    """Turn photos into a shard set.

    The same command goes on after an interruption, says that a set is finished, and makes damaged shards again.
    """

    sources: tyro.conf.Positional[tuple[str, ...]] = ()
    """One or more of: a folder of photos, a zip, a tar (also .tar.gz), WebDataset shards, parquet files, a folder that
    `datasets` has saved, a URL of any of these (s3://, gs://, https://), hf://datasets/USER/NAME. Globs in quotes."""
    out: str | None = None
    """Folder or bucket (s3://bucket/faces-64) for the set; by default shards/<name of the source>-<size>."""
    skip_unreadable: bool = False
    """Leave out photos that cannot be read, with the reason, instead of stopping for another try."""
    threads: int | None = None
    """Threads to decode with; by default one for each core. The bytes do not depend on it."""
    ray: str | None = None
    """Build on a Ray cluster: its address, or nothing for one that is started here."""
    staging: Path = Path("shards/.staging")
    """Folder for shards on their way to a bucket; they leave it as soon as they have arrived."""
    force: bool = False
    """Begin even if the disk seems too small."""
    dry_run: bool = False
    """Say what would be done, with an estimate of space and time, and write nothing."""
    quiet: bool = False
    """Print nothing but errors."""
    debug: bool = False
    """Show the full traceback of an error."""

    def __post_init__(self) -> None:
        """Nothing: `options` finds what is wrong, outside of the parser and its frame around errors."""

    @property
    def options(self) -> Options:
        """Those that decide about the bytes of the set; `UserError` where something is wrong with the command."""
        if not self.sources:
            raise UserError(
                "make-shards must be told where the photos are; got no source. Name a folder, a zip or a URL."
            )
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads must be at least 1; got {self.threads}. Leave it out for one for each core.")
        return Options(**{field.name: getattr(self, field.name) for field in fields(Options)})

    @property
    def workers(self) -> int:
        """Threads to decode with."""
        return self.threads or usable_cores()


def words_of(settings: Mapping[str, Any]) -> Iterator[str]:
    """The words of make-shards for recorded settings, those at their default left out."""
    chosen, usual = Options.replay(settings), Options()
    said, default = chosen.record(), usual.record()
    for field in fields(Options):
        value, option = said[field.name], f"--{field.name.replace('_', '-')}"
        if value == default[field.name] or value in (None, False):
            continue
        yield option
        if value is not True:
            yield from map(str, value if isinstance(value, list) else [value])


def command_of(settings: Mapping[str, Any], sources: str, out: str) -> str:
    """The command that makes a set of recorded `settings` again; `sources` stands for the photos."""
    return " ".join(
        ["shard_tool make-shards", sources, "--out", shlex.quote(out), shlex.join(words_of(settings))]
    ).strip()

"""All choices that decide about the bytes of a set, and how `shardset.json` records them."""

from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.tar import member_bytes
from shard_tool.build.plan import GROUP_SHARDS, Plan
from shard_tool.image.photo import Recipe, library_versions
from shard_tool.sources.protocol import Source

PLAN_VERSION = 2
"""Counts up when the same request would give other bytes; an unfinished build of another version is refused."""
LEAST_SHARD_BYTES = 20_000
TYPICAL_PIXEL_BYTES = {"jpeg": 0.9, "webp": 0.5, "png": 2.2, "raw": 3.0}
"""Bytes a pixel of a small portrait, by encoding; see `Settings.group_samples`."""
TYPICAL_JSON_BYTES = 200
MOST_GROUP_SAMPLES = 1 << 18
"""A kill must not cost hours, however large the shards are to be."""


@dataclass(frozen=True)
class Settings:
    """All choices that decide about the bytes of a set."""

    recipe: Recipe
    val_fraction: float = 0.05
    """Share of the photos that go to `val` where the source has no partition."""
    shard_samples: int = 4096
    """Most samples in one shard, where `shard_bytes` does not say otherwise."""
    shard_bytes: int | None = None
    """Most bytes of one shard; it has more only where a single sample has."""
    seed: int = 0
    keep_order: bool = False
    """Whether samples stay in the order of the listing."""
    drop_duplicates: bool = False
    """Whether a photo with the bytes of an earlier one is left out."""
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
        if self.shard_bytes is not None and self.shard_bytes < LEAST_SHARD_BYTES:
            raise UserError(
                f"shard-size must be at least {LEAST_SHARD_BYTES:,} bytes; got {self.shard_bytes:,}. Use 100MB."
            )
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be at least 1; got {self.limit}. Leave it out to take all photos.")

    @property
    def group_samples(self) -> int:
        """Most photos in a group: what fills about four shards.

        A plan must follow from the listing and the settings alone, so where bytes limit the shards this is a guess
        from the size of the samples; a group that makes three shards or six serves as well.
        """
        if self.shard_bytes is None:
            return self.shard_samples * GROUP_SHARDS
        image = round(self.recipe.size**2 * TYPICAL_PIXEL_BYTES[self.recipe.encoding])
        sample = member_bytes(image) + (member_bytes(TYPICAL_JSON_BYTES) if self.json else 0)
        return min(max(1, self.shard_bytes * GROUP_SHARDS // sample), MOST_GROUP_SAMPLES)


def describe_request(source: Source, plan: Plan, settings: Settings, appended_to: str | None = None) -> dict[str, Any]:
    """What a part is a function of, in the form that `shardset.json` records; no absolute path is in it.

    `appended_to` is the fingerprint of the set that it is added to.
    """
    tables = {"attributes_sha256": plan.attributes, "partition_sha256": plan.partition}
    return {
        "settings": {
            **settings.recipe.describe(),
            "val_fraction": settings.val_fraction if plan.partition is None else None,
            "shard_samples": settings.shard_samples if settings.shard_bytes is None else None,
            "shard_bytes": settings.shard_bytes,
            "seed": None if settings.keep_order else settings.seed,
            "keep_order": settings.keep_order,
            "drop_duplicates": settings.drop_duplicates,
            "limit": settings.limit,
            "json": settings.json,
            "labels": settings.labels,
        },
        "source": {
            "source_name": source.name,
            "photos": len(source.listing),
            "appended_to": appended_to,
            "listing_sha256": source.listing.sha256(),
            **source.origin,
            **{name: table.sha256 if table else None for name, table in tables.items()},
        },
        "versions": {"plan": PLAN_VERSION, **library_versions()},
    }

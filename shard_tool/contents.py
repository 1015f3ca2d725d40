"""What a finished shard set holds, for people and for programs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.format import REJECTED_FILE, SUFFIX, ShardSet


def describe(folder: Path) -> dict[str, Any]:
    """Counts, settings, labels and rejections of the set in `folder`, ready for JSON; no tar is opened."""
    shard_set = ShardSet.open(folder)
    settings = shard_set.parts[0].get("settings", {}) if shard_set.parts else {}
    return {
        "name": shard_set.name,
        "image_size": shard_set.image_size,
        "channels": shard_set.channels,
        "encoding": shard_set.encoding,
        "crop": settings.get("crop"),
        "samples": sum(split.total for split in shard_set.splits.values()),
        "bytes": sum(int(split.bytes.sum()) for split in shard_set.splits.values()),
        "splits": {
            name: {"samples": split.total, "shards": len(split), "bytes": int(split.bytes.sum())}
            for name, split in shard_set.splits.items()
        },
        "attributes": _shares(shard_set),
        "classes": shard_set.classes,
        "rejected": dict(_reasons(folder).most_common()),
        "parts": shard_set.parts,
        "fingerprint": shard_set.fingerprint,
        "open_with": _open_with(folder, shard_set),
    }


def show(content: dict[str, Any], console: Console) -> None:
    """Print what `describe` found."""
    console.print(
        f"[bold]{escape(content['name'])}[/]: {content['samples']:,} images of {content['image_size']} px, "
        f"{content['encoding']}, crop {content['crop']}, {megabytes(content['bytes'])}",
        highlight=False,
    )
    splits = Table("split", box=None)
    for column in ("samples", "shards", "size"):
        splits.add_column(column, justify="right")
    for name, split in content["splits"].items():
        splits.add_row(name, f"{split['samples']:,}", f"{split['shards']:,}", megabytes(split["bytes"]))
    console.print(splits)
    if content["attributes"]:
        shares = (
            f"{escape(name)} {'?' if share is None else f'{share:.0%}'}"
            for name, share in content["attributes"].items()
        )
        console.print(f"attributes: {', '.join(shares)}", highlight=False)
    rejected = ", ".join(f"{count:,} {escape(reason)}" for reason, count in content["rejected"].items())
    console.print(f"rejected: {rejected or 'none'}", highlight=False)
    for part in content["parts"]:
        versions = ", ".join(f"{name} {version}" for name, version in part.get("versions", {}).items())
        console.print(f"built from '{escape(str(part['source'].get('source_name')))}' with {versions}", highlight=False)
    console.print(f"fingerprint: {content['fingerprint']}", highlight=False)
    for library, lines in content["open_with"].items():
        console.print(f"\n[bold]{library}[/]")
        # Plain text: a wrapped line could not be pasted.
        console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def megabytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _shares(shard_set: ShardSet) -> dict[str, float | None]:
    """The share of samples that have each attribute; None where the set's maker did not count them."""
    if not all("positives" in part for part in shard_set.parts):
        return dict.fromkeys(shard_set.attributes)
    total = sum(split.total for split in shard_set.splits.values())
    columns = zip(*(counts for part in shard_set.parts for counts in part["positives"].values()), strict=True)
    return {name: sum(counts) / total for name, counts in zip(shard_set.attributes, columns, strict=True)}


def _reasons(folder: Path) -> Counter[str]:
    try:
        with open(folder / REJECTED_FILE, "rb") as lines:
            return Counter(json.loads(line)["reason"] for line in lines)
    except FileNotFoundError:
        return Counter()


def _open_with(folder: Path, shard_set: ShardSet) -> dict[str, list[str]]:
    """Python lines that open the first split; tests run them as they are."""
    split = next(iter(shard_set.splits))
    has_json = any(part.get("settings", {}).get("json") for part in shard_set.parts)
    members = [SUFFIX[shard_set.encoding], *(["json"] if has_json else [])]
    return {
        "webdataset": [
            "import glob, webdataset",
            f"shards = sorted(glob.glob({str(folder / f'{split}-*.tar')!r}))",
            f'samples = webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple(*{members!r})',
        ],
        "datasets": [
            "import datasets",
            f"samples = datasets.load_dataset({str(folder)!r}, "
            f"split={'validation' if split == 'val' else split!r}, streaming=True)",
        ],
        "leanstream": [
            "from pipeline import StreamingLoader",
            f"with StreamingLoader({str(folder)!r}, split={split!r}, batch_size=64) as batches:",
            "    first = next(iter(batches))",
        ],
    }

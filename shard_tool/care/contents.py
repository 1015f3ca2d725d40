"""What a finished shard set holds, for people and for programs."""

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import Dataset
from pipeline.format import REJECTED_FILE, SUFFIX, ShardSet
from shard_tool.build.unfinished import find_unfinished, show_unfinished
from shard_tool.care.described import check_described, label_counts, labels_by_split

SHOWN_LABELS = 60
"""Attributes or classes that are printed; `--json` has them all."""


def describe(shard_set: ShardSet) -> dict[str, Any]:
    """Counts, settings, labels and rejections of a set in a folder, ready for JSON; no tar is opened."""
    folder = check_described(shard_set).folder
    counts = label_counts(shard_set)
    total = _total(shard_set)
    settings = shard_set.parts[0].get("settings", {}) if shard_set.parts else {}
    return {
        "complete": True,
        "name": shard_set.name,
        "image_size": shard_set.image_size,
        "channels": shard_set.channels,
        "encoding": shard_set.encoding,
        "crop": settings.get("crop"),
        "samples": total,
        "bytes": sum(int(split.bytes.sum()) for split in shard_set.splits.values()),
        "splits": _splits(shard_set),
        "attributes": {name: counts[name] / total if counts else None for name in shard_set.attributes},
        "classes": {name: counts[name] if counts else None for name in shard_set.classes},
        "labels": labels_by_split(shard_set),
        "rejected": dict(_reasons(folder).most_common()),
        "parts": shard_set.parts,
        "append": find_unfinished(folder),
        "fingerprint": shard_set.fingerprint,
        "open_with": _open_with(folder, shard_set),
    }


def show(content: dict[str, Any], console: Console) -> None:
    """Print what `describe` found."""
    crop = f", crop {content['crop']}" if content["crop"] is not None else ""
    console.print(
        f"[bold]{escape(content['name'])}[/]: {content['samples']:,} images of {content['image_size']} px, "
        f"{content['encoding']}{crop}, {megabytes(content['bytes'])}",
        highlight=False,
    )
    _show_splits(content["splits"], console)
    if content["attributes"]:
        _show_labels("attribute", content, console)
    if content["classes"]:
        _show_labels("class", content, console)
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in content["rejected"].items())
    lines = [f"rejected: {rejected or 'none'}"]
    for number, part in enumerate(content["parts"], 1):
        lines += _part_lines(part, f"part {number}: " if len(content["parts"]) > 1 else "")
    lines.append(f"fingerprint: {content['fingerprint']}")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    if content["append"] is not None:
        console.print()
        show_unfinished(content["append"], console)
    _show_lines(content["open_with"], console)


def describe_together(dataset: Dataset) -> dict[str, Any]:
    """What several sets are if they are read as one, ready for JSON; counts are those of an epoch."""
    split = next(iter(dataset.splits))
    places = list(dataset.locations)
    return {
        "name": dataset.name,
        "image_size": dataset.image_size,
        "samples": sum(content.total for content in dataset.splits.values()),
        "splits": _splits(dataset),
        "attributes": list(dataset.attributes),
        "classes": list(dataset.classes),
        "same_labels": len({(one.attributes, one.classes) for one in dataset.sets}) == 1,
        "fingerprint": dataset.fingerprint,
        "open_with": {
            "leanstream": _stream(places, split),
            "training": [f"accelerate launch --quiet train/run.py --data.shards {shlex.join(places)}"],
        },
    }


def show_together(content: dict[str, Any], console: Console) -> None:
    """Print what `describe_together` found."""
    console.print(
        f"[bold]read as one[/]: {content['samples']:,} images of {content['image_size']} px an epoch", highlight=False
    )
    _show_splits(content["splits"], console)
    names = content["attributes"] or content["classes"]
    if names:
        labels = f"{len(names):,} {'attribute' if content['attributes'] else 'class'} names, the same in all sets"
    else:
        labels = "none" if content["same_labels"] else "not the same in all sets: read together, they have none"
    lines = [f"labels: {labels}", f"fingerprint: {content['fingerprint']}"]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    _show_lines(content["open_with"], console)


def megabytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _splits(shards: ShardSet | Dataset) -> dict[str, dict[str, int]]:
    return {
        name: {"samples": split.total, "shards": len(split), "bytes": int(split.bytes.sum())}
        for name, split in shards.splits.items()
    }


def _show_splits(splits: dict[str, dict[str, int]], console: Console) -> None:
    table = _table("split", "samples", "shards", "size")
    for name, split in splits.items():
        table.add_row(name, f"{split['samples']:,}", f"{split['shards']:,}", megabytes(split["bytes"]))
    console.print(table)


def _show_lines(open_with: dict[str, list[str]], console: Console) -> None:
    """What to paste, by what it is for."""
    for name, lines in open_with.items():
        console.print(f"\n[bold]{name}[/]")
        # Plain text: a wrapped line could not be pasted.
        console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _show_labels(what: str, content: dict[str, Any], console: Console) -> None:
    """A row for each label: the share of the samples that have an attribute, or the number of those of a class."""
    by_split = content["labels"]
    names = list(content["attributes"] or content["classes"])
    if by_split is None:
        console.print(f"{len(names):,} {what} names, not counted: {', '.join(names)}", highlight=False, markup=False)
        return
    table = _table(what, "all", *by_split)
    for name in names[:SHOWN_LABELS]:
        counts = [split[name] for split in by_split.values()]
        totals = [split["samples"] for split in content["splits"].values()]
        cells = zip([sum(counts), *counts], [sum(totals), *totals], strict=True)
        is_share = what == "attribute"
        shown = (f"{count / total if total else 0:.1%}" if is_share else f"{count:,}" for count, total in cells)
        table.add_row(escape(name), *shown)
    console.print(table)
    if len(names) > SHOWN_LABELS:
        console.print(f"and {len(names) - SHOWN_LABELS:,} more; --json has them all", highlight=False)


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=None)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _part_lines(part: dict[str, Any], begin: str) -> list[str]:
    if "settings" not in part:
        return [f"{begin}indexed, not built: its tars are as they were found"]
    source = part.get("source", {})
    photos = f" ({source['photos']:,} photos)" if "photos" in source else ""
    versions = ", ".join(f"{name} {version}" for name, version in part.get("versions", {}).items())
    settings = ", ".join(f"{name} {_plain(value)}" for name, value in part["settings"].items() if value is not None)
    return [f"{begin}built from '{source.get('source_name')}'{photos} with {versions}", f"settings: {settings}"]


def _plain(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _total(shard_set: ShardSet) -> int:
    return sum(split.total for split in shard_set.splits.values())


def _reasons(folder: Path) -> Counter[str]:
    try:
        with open(folder / REJECTED_FILE, "rb") as lines:
            return Counter(json.loads(line)["reason"] for line in lines)
    except FileNotFoundError:
        return Counter()


def _open_with(folder: Path, shard_set: ShardSet) -> dict[str, list[str]]:
    """Python lines that open the first split; tests run them as they are."""
    split = next(iter(shard_set.splits))
    leanstream = _stream(str(folder), split)
    indexed = [part["indexed"] for part in shard_set.parts if "indexed" in part]
    if indexed:  # Its tars may have any names.
        names = [
            "from pipeline import ShardSet",
            f"names = ShardSet.open({str(folder)!r}).split({split!r}).names",
            f"shards = [{str(folder)!r} + '/' + name.decode() + '.tar' for name in names]",
        ]
        webdataset = 'samples = webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8")'
        return {
            "webdataset": ["import webdataset", *names, f"{webdataset}.to_tuple(*{indexed[0]['members']!r})"],
            "datasets": [
                "import datasets",
                *names,
                "samples = datasets.load_dataset('webdataset', data_files=shards, split='train', streaming=True)",
            ],
            "leanstream": leanstream,
        }
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
        "leanstream": leanstream,
    }


def _stream(shards: str | list[str], split: str) -> list[str]:
    return [
        "from pipeline import StreamingLoader",
        f"with StreamingLoader({shards!r}, split={split!r}, batch_size=64) as batches:",
        "    first = next(iter(batches))",
    ]

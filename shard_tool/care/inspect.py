"""`inspect`: what a shard set holds, for people and for programs; of an unfinished one, how far it is.

`shardset.json` has a fingerprint over the shards alone: what it says of labels and of its making is checked here.
"""

import contextlib
import json
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import Dataset
from pipeline.errors import EXIT_DONE, EXIT_FAULT, ShardError, UserError
from pipeline.format import REJECTED_FILE, SHARDSET_FILE, SUFFIX, ShardSet
from shard_tool.build.place import STATE_FOLDER
from shard_tool.display import counted, megabytes
from shard_tool.options import command_of

SHOWN_LABELS = 60
"""Attributes or classes that are printed; `--json` has them all."""
_SECTIONS = ("settings", "source", "versions", "positives", "listing", "photos", "rejected", "ignored", "indexed")
"""Of a part: objects, where they are there."""
_ODD = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What JSON of another shape than ours raises."""


# What is relied on


def open_described(location: str) -> ShardSet:
    """`ShardSet.open` of a set whose labels and parts can be relied on too; raises what that raises."""
    return check_described(ShardSet.open(location))


def check_described(shards: ShardSet) -> ShardSet:
    """The set, if its labels and parts can be relied on too; else `ShardError`."""
    wrong = next(_wrong(shards), None)
    if wrong is not None:
        raise ShardError(
            f"{shards.folder / SHARDSET_FILE} must say how the set was made; got {wrong}. "
            "It was edited or damaged: copy the set again."
        )
    return shards


def was_indexed(shards: ShardSet) -> bool:
    """Whether the set was found and not built: nothing but its tars can be had again."""
    return any("indexed" in part for part in shards.parts)


def has_json(part: dict[str, Any]) -> bool:
    """Whether make-shards gave each sample of a part a json."""
    settings = part.get("settings", {"json": False})
    return bool(settings.get("json", not settings.get("no_json")))


def label_counts(shards: ShardSet) -> dict[str, int] | None:
    """How many samples have each attribute or are of each class; None where the set's maker did not count them."""
    by_split = labels_of_all([shards])
    if by_split is None:
        return None
    return {name: sum(counts[name] for counts in by_split.values()) for name in shards.attributes or shards.classes}


def labels_of_all(sets: Sequence[ShardSet]) -> dict[str, dict[str, int]] | None:
    """The same in each split of several sets together; None unless all have the same names and all are counted."""
    names, *others = {(one.attributes, one.classes) for one in sets}
    labels = names[0] or names[1]
    counted_all = all(one.parts and all("positives" in part for part in one.parts) for one in sets)
    if others or not labels or not counted_all:
        return None
    found = {split: dict.fromkeys(labels, 0) for one in sets for split in one.splits}
    for one in sets:
        for part in one.parts:
            for split, counts in part["positives"].items():
                for name, count in zip(labels, counts, strict=True):
                    found[split][name] += count
    return found


def _wrong(shards: ShardSet) -> Iterator[str]:
    for what, names in (("attributes", shards.attributes), ("classes", shards.classes)):
        if len(set(names)) < len(names):
            yield f"{what} that are not all different"
    for number, part in enumerate(shards.parts, 1):
        for section in _SECTIONS:
            if not isinstance(part.get(section, {}), dict):
                yield f"part {number} whose {section} is no object"
        yield from (f"part {number} with {wrong}" for wrong in _wrong_part(shards, part))


def _wrong_part(shards: ShardSet, part: dict[str, Any]) -> Iterator[str]:
    labels = len(shards.attributes or shards.classes)
    for split, counts in part.get("positives", {}).items():
        if split not in shards.splits:
            yield f"labels of {split}, which the set does not have"
        elif not isinstance(counts, list) or not all(map(_is_count, counts)):
            yield f"labels of {split} that are no list of counts"
        elif labels and len(counts) != labels:
            yield f"counts of {len(counts):,} labels of {split} in place of {labels:,}"
    for name, keys in (("listing", ("file", "sha256")), ("rejected", ("file", "sha256")), ("photos", ("sha256",))):
        if name in part and not _are_words([part[name].get(key) for key in keys]):
            yield f"a {name} without {' and '.join(keys)}"
    if not all(map(_is_count, part.get("ignored", {}).values())):
        yield "files ignored that are no counts"
    if not _is_count(part.get("source", {}).get("photos", 0)):
        yield "photos that are no count"
    for name in ("members", "splits"):
        if not _are_words(part.get("indexed", {}).get(name, [])):
            yield f"{name} that are no list of words"
    try:
        _check_printable(part)
    except _ODD:
        yield "text that cannot be printed"


def _are_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 53  # No count of anything is higher.


def _check_printable(content: object) -> None:
    """Raise one of `_ODD` for text that no terminal takes."""
    json.dumps(content, ensure_ascii=False).encode()


# A finished set


def inspect_sets(folders: Sequence[str], *, as_json: bool) -> int:
    """Print what sets hold, of several also what they are as one; returns the exit code.

    Raises `UserError` for what is no shard set, and for sets that do not go together.
    """
    if not folders:
        raise UserError("inspect must be told which shard set to show; got none. Name a folder.")
    console, opened, contents = Console(), list[Dataset](), list[dict[str, Any]]()
    for folder in folders:
        begun = None if (Path(folder) / SHARDSET_FILE).exists() else find_unfinished(Path(folder))
        if begun is None:
            opened.append(Dataset.open(folder))
        contents.append(begun or describe(opened[-1].sets[0]))
        if as_json:
            continue
        if len(contents) > 1:
            console.print()
        (show_unfinished if begun else show)(contents[-1], console)
    complete, together = len(opened) == len(contents), None
    try:
        if complete and len(contents) > 1:
            dataset = Dataset(tuple(one.sets[0] for one in opened), tuple(one.repeats[0] for one in opened))
            together = describe_together(dataset)
    finally:  # Sets that do not go together are shown all the same.
        if as_json:
            several = {"complete": complete, "sets": contents, "together": together}
            print(json.dumps(several if len(contents) > 1 else contents[0], indent=1, ensure_ascii=False))
    if together is not None and not as_json:
        console.print()
        show_together(together, console)
    return EXIT_DONE if complete else EXIT_FAULT


def describe(shard_set: ShardSet) -> dict[str, Any]:
    """Counts, settings, labels and rejections of a set in a folder, ready for JSON; no tar is opened."""
    folder = check_described(shard_set).folder
    counts = label_counts(shard_set)
    total = sum(split.total for split in shard_set.splits.values())
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
        "labels": labels_of_all([shard_set]),
        "rejected": dict(_reasons(folder).most_common()),
        "ignored": dict(sum((Counter(part.get("ignored", {})) for part in shard_set.parts), Counter[str]())),
        "parts": shard_set.parts,
        "fingerprint": shard_set.fingerprint,
        "open_with": _open_with(folder, shard_set),
    }


def show(content: dict[str, Any], console: Console) -> None:
    """Print what `describe` found."""
    crop = f", crop {content['crop']}" if content["crop"] is not None else ""
    images = f"{counted(content['samples'], 'image')} of {content['image_size']} px, {content['encoding']}{crop}"
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in content["rejected"].items())
    lines = [f"rejected: {rejected or 'none'}"]
    if content["ignored"]:
        lines.append(f"ignored: {', '.join(f'{kind} {count:,}' for kind, count in content['ignored'].items())}")
    for number, part in enumerate(content["parts"], 1):
        lines += _part_lines(part, f"part {number}: " if len(content["parts"]) > 1 else "")
    _show(content, f"[bold]{escape(content['name'])}[/]: {images}, {megabytes(content['bytes'])}", lines, console)


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
    images = f"{counted(content['samples'], 'image')} of {content['image_size']} px an epoch"
    names = content["attributes"] or content["classes"]
    if names:
        labels = f"{counted(len(names), _kind(content) + ' name')}, the same in all sets"
    else:
        labels = "none" if content["same_labels"] else "not the same in all sets: read together, they have none"
    _show(content, f"[bold]read as one[/]: {images}", [f"labels: {labels}"], console)


def _splits(shards: ShardSet | Dataset) -> dict[str, dict[str, int]]:
    return {
        name: {"samples": split.total, "shards": len(split), "bytes": int(split.bytes.sum())}
        for name, split in shards.splits.items()
    }


def _show(content: dict[str, Any], heading: str, lines: Sequence[str], console: Console) -> None:
    console.print(heading, highlight=False)
    table = _table("split", "samples", "shards", "size")
    for name, split in content["splits"].items():
        table.add_row(name, f"{split['samples']:,}", f"{split['shards']:,}", megabytes(split["bytes"]))
    console.print(table)
    if "labels" in content and (content["attributes"] or content["classes"]):
        _show_labels(content, console)
    _print(console, *lines, f"fingerprint: {content['fingerprint']}")
    for name, pasted in content["open_with"].items():
        console.print(f"\n[bold]{name}[/]")
        _print(console, *pasted)


def _print(console: Console, *lines: str) -> None:
    # Plain text: a wrapped line could not be pasted.
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _kind(content: dict[str, Any]) -> str:
    return "attribute" if content["attributes"] else "class"


def _show_labels(content: dict[str, Any], console: Console) -> None:
    """A row for each label: the share of the samples that have an attribute, or the number of those of a class."""
    by_split, kind = content["labels"], _kind(content)
    names = list(content["attributes"] or content["classes"])
    if by_split is None:
        _print(console, f"{counted(len(names), kind + ' name')}, not counted: {', '.join(names)}")
        return
    table = _table(kind, "all", *by_split)
    for name in names[:SHOWN_LABELS]:
        counts = [split[name] for split in by_split.values()]
        totals = [split["samples"] for split in content["splits"].values()]
        cells = zip([sum(counts), *counts], [sum(totals), *totals], strict=True)
        is_share = kind == "attribute"
        shown = (f"{count / total if total else 0:.1%}" if is_share else f"{count:,}" for count, total in cells)
        table.add_row(escape(name), *shown)
    console.print(table)
    if len(names) > SHOWN_LABELS:
        _print(console, f"and {len(names) - SHOWN_LABELS:,} more; --json has them all")


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=None)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _part_lines(part: dict[str, Any], begin: str) -> list[str]:
    if "settings" not in part:
        return [f"{begin}indexed, not built: its tars are as they were found"]
    source = part.get("source", {})
    photos = f" ({counted(source['photos'], 'photo')})" if "photos" in source else ""
    versions = ", ".join(f"{name} {version}" for name, version in part.get("versions", {}).items())
    chosen = {name: value for name, value in part["settings"].items() if value not in (None, [])}
    settings = ", ".join(f"{name} {_plain(value)}" for name, value in chosen.items())
    return [f"{begin}built from '{source.get('source_name')}'{photos} with {versions}", f"settings: {settings}"]


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _reasons(folder: Path) -> Counter[str]:
    """Of all lines of `rejected.jsonl`, which is not there where nothing was rejected."""
    found: Counter[str] = Counter()
    with contextlib.suppress(FileNotFoundError), open(folder / REJECTED_FILE, "rb") as lines:
        for line in lines:
            try:
                reason = json.loads(line)["reason"]
                reason.encode()
            except _ODD:
                reason = f"unreadable line of {REJECTED_FILE}"
            found[str(reason)] += 1
    return found


def _open_with(folder: Path, shard_set: ShardSet) -> dict[str, list[str]]:
    """Python lines that open the first split; tests run them as they are."""
    split = next(iter(shard_set.splits))
    indexed = [part["indexed"]["members"] for part in shard_set.parts if "members" in part.get("indexed", {})]
    if indexed:  # Its tars may have any names.
        names = [
            "from pipeline import ShardSet",
            f"names = ShardSet.open({str(folder)!r}).split({split!r}).names",
            f"shards = [{str(folder)!r} + '/' + name.decode() + '.tar' for name in names]",
        ]
        members, files = indexed[0], "'webdataset', data_files=shards, split='train'"
    else:
        names = [f"shards = sorted(glob.glob({str(folder / f'{split}-*.tar')!r}))"]
        members = [SUFFIX[shard_set.encoding], *(["json"] if any(map(has_json, shard_set.parts)) else [])]
        files = f"{str(folder)!r}, split={'validation' if split == 'val' else split!r}"
    samples = 'samples = webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8")'
    return {
        "webdataset": [f"import {'' if indexed else 'glob, '}webdataset", *names, f"{samples}.to_tuple(*{members!r})"],
        "datasets": [
            "import datasets",
            *(names if indexed else []),
            f"samples = datasets.load_dataset({files}, streaming=True)",
        ],
        "leanstream": _stream(str(folder), split),
    }


def _stream(shards: str | list[str], split: str) -> list[str]:
    return [
        "from pipeline import StreamingLoader",
        f"with StreamingLoader({shards!r}, split={split!r}, batch_size=64) as batches:",
        "    first = next(iter(batches))",
    ]


# An unfinished one


def find_unfinished(folder: Path) -> dict[str, Any] | None:
    """What a build in `folder` has done so far, ready for JSON; None if there is none, or its plan is damaged."""
    state = folder / STATE_FOLDER
    try:
        plan, newest = _loaded(state / "plan.json"), (state / "plan.json").stat().st_mtime
        settings, versions = dict(plan["settings"]), dict(plan["versions"])
        photos, source = _count(plan["source"]["photos"]), str(plan["source"]["source_name"])
        photos = min(photos, _count(settings.get("limit") or photos))
    except (OSError, *_ODD):
        return None
    done: Counter[str] = Counter()
    for path in sorted(state.glob("group-*.json")):
        try:
            group, newest = _loaded(path), max(newest, path.stat().st_mtime)
            shards = [shard for rows in group["shards"].values() for shard in rows]
            counts = {name: sum(_count(shard[name]) for shard in shards) for name in ("samples", "bytes")}
            done.update(counts, rejected=len(list(group["rejected"])))
        except (OSError, *_ODD):
            continue  # The build goes on while this looks; and a damaged group is built again.
    return {
        "complete": False,
        "name": folder.resolve().name,
        **{name: done[name] for name in ("samples", "bytes", "rejected")},
        "photos": photos,
        "source_name": source,
        "settings": settings,
        "versions": versions,
        "seconds_since_progress": round(max(0.0, time.time() - newest)),
        "go_on_with": command_again(settings, folder),
    }


def command_again(settings: dict[str, Any], folder: Path) -> str | None:
    """The command that makes a set of recorded settings; None if they are none of ours."""
    try:
        return command_of(settings, "PHOTOS", str(folder))
    except _ODD:
        return None


def show_unfinished(content: dict[str, Any], console: Console) -> None:
    """Print what `find_unfinished` found."""
    done, total, source = content["samples"] + content["rejected"], content["photos"], content["source_name"]
    share = f" of {total:,} ({done / total:.0%})" if total else ""
    going_on = [f"  {content['go_on_with']}", f"where PHOTOS is '{source}' with the path that it has now."]
    _print(
        console,
        f"{content['name']} is not finished: {done:,}{share} photos of '{source}' are done, "
        f"{content['rejected']:,} of them rejected, {megabytes(content['bytes'])}.",
        f"The last group was finished {_ago(content['seconds_since_progress'])} ago. Unless the build still runs, "
        f"go on with{':' if content['go_on_with'] else ' the command that began it.'}",
        *(going_on if content["go_on_with"] else []),
    )


def _loaded(path: Path) -> Any:
    """JSON that can be printed again; raises one of `_ODD`, or `OSError`."""
    content = json.loads(path.read_bytes())
    _check_printable(content)
    return content


def _count(value: object) -> int:
    if not _is_count(value):
        raise ValueError(f"{value!r} in place of a count")
    return value


def _ago(seconds: int) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return counted(seconds // length, unit)
    return counted(seconds, "second")

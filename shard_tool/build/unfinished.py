"""How far a build is that was stopped, or still runs, and the command that goes on with it."""

import contextlib
import json
import shlex
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.format import SHARDSET_FILE
from shard_tool.build.place import STATE_FOLDER

_OPTIONS = {"shard_bytes": "shard-size"}
"""Settings whose option has another name."""


def find_unfinished(folder: Path) -> dict[str, Any] | None:
    """What a build or an append in `folder` has done so far, ready for JSON; None where none is unfinished."""
    try:
        request = json.loads((folder / STATE_FOLDER / "plan.json").read_bytes())
    except (OSError, ValueError):
        return None
    is_append = (folder / SHARDSET_FILE).exists()
    samples = size = rejected = 0
    newest = (folder / STATE_FOLDER / "plan.json").stat().st_mtime
    for path in sorted((folder / STATE_FOLDER).glob("group-*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):  # The build goes on while this looks.
            group = json.loads(path.read_bytes())
            shards = [shard for rows in group["shards"].values() for shard in rows]
            samples += sum(shard["samples"] for shard in shards)
            size += sum(shard["bytes"] for shard in shards)
            rejected += len(group["rejected"])
            newest = max(newest, path.stat().st_mtime)
    photos = request["source"]["photos"]
    return {
        "complete": False,
        "name": folder.resolve().name,
        "samples": samples,
        "bytes": size,
        "rejected": rejected,
        # An append takes only those of the photos that are new.
        "photos": None if is_append else min(photos, request["settings"].get("limit") or photos),
        "source_name": request["source"]["source_name"],
        "settings": request["settings"],
        "versions": request["versions"],
        "seconds_since_progress": round(max(0.0, time.time() - newest)),
        "go_on_with": _command(folder, request["settings"], is_append),
    }


def show_unfinished(content: dict[str, Any], console: Console) -> None:
    """Print what `find_unfinished` found."""
    done, total = content["samples"] + content["rejected"], content["photos"]
    share = f" of {total:,} ({done / total:.0%})" if total else ""
    lines = [
        f"{content['name']} is not finished: {done:,}{share} photos of '{content['source_name']}' are done, "
        f"{content['rejected']:,} of them rejected, {content['bytes'] / 1e6:,.1f} MB.",
        f"The last group was finished {_ago(content['seconds_since_progress'])} ago. Unless the build still runs, "
        "go on with:",
        f"  {content['go_on_with']}",
        f"where PHOTOS is '{content['source_name']}' with the path that it has now.",
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _command(folder: Path, settings: dict[str, Any], is_append: bool) -> str:
    words = ["shard_tool", "make-shards", "PHOTOS", "--out", str(folder)]
    for name, value in settings.items():
        option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
        if name == "json":
            words += [] if value else ["--no-json"]
        elif value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, str(value)]
    return shlex.join([*words, *(["--append"] if is_append else [])])


def _ago(seconds: int) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} seconds"

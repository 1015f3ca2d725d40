"""Repair: what was found damaged is made again, and takes its place only if it is, byte for byte, what was recorded.

    a bad index, a good tar    the tar is scanned, the index written under a temporary name and renamed
    a bad tar                  the plan says of which photos it was made; built in .repair/, compared, renamed

So a set is never the worse for a repair, wherever that is stopped.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.errors import ShardError, UserError
from pipeline.files import sync_folder, try_lock, write_atomic
from pipeline.format import RECORD, Index, Shard, ShardSet
from pipeline.tar import scan_tar
from shard_tool.build.again import Again, plan_again
from shard_tool.care.checks import Problem, ShardReport

REPAIR_FOLDER = ".repair"


@dataclass
class Repaired:
    """What a repair has done so far."""

    restored: list[str] = field(default_factory=list)
    """Names of the files that are again what was recorded."""
    refused: list[Problem] = field(default_factory=list)
    """Why others are not."""


def repair(
    shards: ShardSet,
    damaged: Iterable[ShardReport],
    photos: Sequence[str],
    *,
    labels: str | None,
    threads: int,
    report: Callable[[int, int], None],
) -> Repaired:
    """Restore the `damaged` shards of a set, and say of each why not where it cannot be done.

    `photos` and `labels` are what `plan_again` takes. Raises `UserError` where these are others than then, or another
    repair is running, and `SourceError` where photos cannot be read; what was restored until then stays.
    """
    done = Repaired()
    damaged = list(damaged)
    for one in damaged:
        if one.tar_whole:
            _restore_index(shards.folder, one.shard, done)
    bad = {one.shard.name: one.shard for one in damaged if not one.tar_whole}
    if not bad:
        return done
    numbers = _parts_of(shards, bad)
    if not numbers:
        raise UserError(
            f"{shards.folder} must have been built by make-shards to be repaired; got a set that was only indexed. "
            "Copy its tars again."
        )
    with _workshop(shards.folder) as workshop:
        for number in numbers:
            if not bad:
                break
            again = plan_again(shards, number, photos, labels, workshop=workshop, threads=threads)
            for group in again.groups_of(bad.keys()):
                for shard in again.build(workshop, group, threads=threads, report=report):
                    _take(workshop, shards.folder, shard, bad.pop(shard.name, None), again, done)
    done.refused += [Problem(f"{name}.tar", None, "is not repaired: its photos are all rejected now") for name in bad]
    return done


def _parts_of(shards: ShardSet, bad: Iterable[str]) -> list[int]:
    """The parts that made some of these shards; parts that were not built by make-shards are left out."""
    found = set[int]()
    for name in bad:
        split, number = name.split("-")[:2]
        for part, content in enumerate(shards.parts):
            first, end = content.get("shards", {}).get(split, (0, 1 << 62))
            if "settings" in content and first <= int(number) < end:
                found.add(part)
    return sorted(found)


def _restore_index(folder: Path, shard: Shard, done: Repaired) -> None:
    path = folder / f"{shard.name}.index"
    if path.exists() and not _is_ours(path.read_bytes(), shard):
        why = "is not replaced: it is no index of leanstream's. Move it away, and repair again"
        done.refused.append(Problem(path.name, None, why))
        return
    try:
        index = scan_tar(folder / f"{shard.name}.tar")
    except ShardError as error:
        done.refused.append(Problem(path.name, None, f"is not repaired: {error}"))
        return
    _write_index(path, index, done)


def _is_ours(data: bytes, shard: Shard) -> bool:
    """Whether a damaged index was one: by its first bytes, by its length, or because nothing is left of it."""
    whole = Index(np.zeros(shard.samples, RECORD), shard.bytes, shard.sha256).to_bytes()
    return data[:8] == whole[:8] or len(data) == len(whole) or not data.strip(b"\0")


def _write_index(path: Path, index: Index, done: Repaired) -> None:
    write_atomic(path, index.to_bytes())
    done.restored.append(path.name)


def _take(workshop: Path, folder: Path, made: Shard, wanted: Shard | None, again: Again, done: Repaired) -> None:
    """Move a rebuilt shard to its place, if it is wanted and the one that was there."""
    tar = f"{made.name}.tar"
    if made != wanted:
        changed = ", ".join(again.other_versions)
        why = f"library versions: {changed}" if changed else "photos of the same names and sizes, and other content"
        if wanted is not None:  # Else it is whole, and was made together with one that is not.
            what = f"is not repaired: built again, it has other bytes, perhaps by {why}"
            done.refused.append(Problem(tar, None, what))
        (workshop / tar).unlink()
        (workshop / f"{made.name}.index").unlink()
        return
    # A tar without its index is whole to every reader, and the index without its tar is not.
    for name in (tar, f"{made.name}.index"):
        os.replace(workshop / name, folder / name)
        done.restored.append(name)
    sync_folder(folder)


@contextlib.contextmanager
def _workshop(folder: Path) -> Iterator[Path]:
    """A folder on the disk of the set, for one repair at a time; it goes with all that is in it."""
    workshop = folder / REPAIR_FOLDER
    workshop.mkdir(exist_ok=True)
    with open(workshop / "lock", "wb") as lock:
        if not try_lock(lock):
            raise UserError(
                f"{folder} must be repaired by one command at a time; got a repair that is still running. Wait for it."
            )
        try:
            yield workshop
        finally:
            shutil.rmtree(workshop, ignore_errors=True)

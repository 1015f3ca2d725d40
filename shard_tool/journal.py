"""What a build has finished so far, in `<out>/.build/`, and whether it may go on there.

    .build/lock               held by the build that runs
    .build/plan.json          what the build was asked for: settings, listing, library versions
    .build/group-000007.json  one finished group: its shards and rejections

The folder goes when `shardset.json` has been written.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError, UserError
from pipeline.files import atomic_writer, try_lock, write_json
from pipeline.format import REJECTED_FILE, SHARDSET_FILE, Shard, ShardSet
from pipeline.format import Index as ShardIndex

STATE_FOLDER = ".build"
_PLAN = "plan.json"


@dataclass(frozen=True)
class GroupRecord:
    """One finished group."""

    number: int
    shards: dict[str, list[Shard]]
    """By split."""
    rejected: list[tuple[str, str, str]]
    """Path, reason and detail of each input that was left out."""
    positives: dict[str, list[int]]
    """By split, how many samples have each attribute, or are of each class."""


@dataclass(frozen=True)
class Journal:
    """The state of one build; made by `open_journal`."""

    out: Path
    request: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the state lies."""
        return self.out / STATE_FOLDER

    def read(self, number: int) -> GroupRecord | None:
        """The record of a finished group whose files are all there, else None."""
        try:
            data = json.loads(self._path(number).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        shards = {split: [Shard(**row) for row in rows] for split, rows in data["shards"].items()}
        if not all(self._is_there(shard) for rows in shards.values() for shard in rows):
            return None
        return GroupRecord(number, shards, [tuple(row) for row in data["rejected"]], data["positives"])

    def record(self, group: GroupRecord) -> None:
        """Note, durably, that `group` is finished."""
        write_json(self._path(group.number), asdict(group))

    def finish(self, shard_set: ShardSet, groups: int) -> None:
        """Complete the set: the list of rejections, then `shardset.json`; the journal goes."""
        for left in self.out.glob(".*.partial"):
            left.unlink()
        with atomic_writer(self.out / REJECTED_FILE) as file:
            for number in range(groups):
                record = self.read(number)
                assert record is not None, "a set is finished when all of its groups are"
                for path, reason, detail in record.rejected:
                    line = {"path": path, "reason": reason} | ({"detail": detail} if detail else {})
                    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        shard_set.save()
        self.remove()

    def remove(self) -> None:
        """Delete the journal of a finished set."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"group-{number:06d}.json"

    def _is_there(self, shard: Shard) -> bool:
        tar, index = self.out / f"{shard.name}.tar", self.out / f"{shard.name}.index"
        try:
            if tar.stat().st_size != shard.bytes:
                return False
            return ShardIndex.from_bytes(index.read_bytes(), str(index)).tar_sha256 == shard.sha256
        except (FileNotFoundError, ShardError):
            return False


@contextlib.contextmanager
def open_journal(out: Path, request: dict[str, Any]) -> Iterator[Journal | None]:
    """Begin or go on with a build of `request` in the folder `out`; None where it is already complete.

    Raises `UserError` where the folder holds something else, a build of another request, or one that is running.
    """
    if (out / SHARDSET_FILE).exists():
        check_folder(out, request)
        if not (out / STATE_FOLDER).exists():
            yield None
            return
    check_folder(out, request)
    journal = Journal(out, request)
    journal.folder.mkdir(parents=True, exist_ok=True)
    with _locked(journal.folder / "lock", out):
        # Another build may have written or completed the set since the first look.
        check_folder(out, request)
        if (out / SHARDSET_FILE).exists():
            journal.remove()
            yield None
            return
        if not (journal.folder / _PLAN).exists():
            write_json(journal.folder / _PLAN, request)
        yield journal


def check_folder(out: Path, request: Mapping[str, Any]) -> None:
    """Raise `UserError` unless `request` may be built in `out`, or is complete there."""
    if (out / SHARDSET_FILE).exists():
        parts = ShardSet.open(out).parts
        # A finished set stays what it is; only going on with a build wants the same libraries.
        _compare(out, parts[0] if parts else {}, request, "was built", ("settings", "source"))
        return
    plan = out / STATE_FOLDER / _PLAN
    if plan.exists():
        try:
            begun = json.loads(plan.read_bytes())
        except ValueError:
            raise UserError(
                f"{plan} must be JSON; got damaged text. Delete the folder {out} and build again."
            ) from None
        _compare(out, begun, request, "was begun", ("settings", "source", "versions"))
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"--out must be a folder; got {out}, a file. Choose another.")
    strangers = sorted(set(os.listdir(out)) - {STATE_FOLDER}) if out.exists() else []
    if strangers:
        raise UserError(
            f"--out must be an empty folder, a new one, or one of an earlier build; got {out}, which holds "
            f"{strangers[0]}{' and more' if len(strangers) > 1 else ''}. Choose another."
        )


def _compare(
    out: Path, earlier: Mapping[str, Any], request: Mapping[str, Any], verb: str, sections: tuple[str, ...]
) -> None:
    differences = [
        f"{name} {_show(new.get(name))} ({verb} with {_show(old.get(name))})"
        for new, old in [(_flat(request, sections), _flat(earlier, sections))]
        for name in dict.fromkeys([*new, *old])
        if new.get(name) != old.get(name)
    ]
    if differences:
        raise UserError(
            f"{out} must be built with the settings, photos and library versions that it {verb} with; "
            f"got {', '.join(differences)}. Give the same, choose another --out, or delete the folder."
        )


def _flat(request: Mapping[str, Any], sections: tuple[str, ...]) -> dict[str, Any]:
    """The values that decide about the set, by name; what the source is called does not."""
    flat = {key: value for section in sections for key, value in request.get(section, {}).items()}
    return {key: value for key, value in flat.items() if key != "source_name"}


def _show(value: object) -> str:
    text = "none" if value is None else f"{value:,}" if type(value) is int else str(value)
    return f"{text[:12]}..." if len(text) > 40 else text


@contextlib.contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    with open(path, "wb") as file:
        if not try_lock(file):
            raise UserError(
                f"{out} must be built by one command at a time; got a build that is still running there. "
                "Wait for it, or stop it first."
            )
        yield

"""Where a set is built: a folder of this machine here, a bucket in `bucket.py`, and what the build does to either.

    ShardWriter ──> workshop/train-000007.tar ──hand_in──> the place
    journal     ──────────────────────────────load/store──> the place, below .build/

In a folder the workshop is the place itself, and handing in is nothing.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from pipeline.errors import ShardError, UserError
from pipeline.files import is_url, sync_folder, try_lock, write_atomic
from pipeline.format import SHARDSET_FILE, Index, Shard, ShardSet

STATE_FOLDER = ".build"


class Place(Protocol):
    """A folder that becomes a shard set. Names are relative to it, with `/` between their parts."""

    @property
    def shown(self) -> str:
        """The place as a person writes it."""

    @property
    def name(self) -> str:
        """The last part of its path."""

    @property
    def workshop(self) -> Path:
        """The folder of this machine in which shards are written."""

    @property
    def spool(self) -> Path:
        """A folder of this machine for files without a name."""

    def names(self) -> set[str]:
        """What lies in the place, folders included; `UserError` where it is no folder."""

    def load(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""

    def store(self, name: str, data: bytes | bytearray) -> None:
        """Write a file; it is durable, and either whole or not there."""

    def hand_in(self, shard: Shard) -> None:
        """Take over a finished shard of the workshop. This may wait until there is room for the next one."""

    def after(self, action: Callable[[], None]) -> None:
        """Call `action` once everything that was handed in so far is safe."""

    def settle(self) -> None:
        """Wait until everything that was handed in is safe."""

    def publish(self, name: str) -> None:
        """Take over another finished file of the workshop, durably."""

    def holds(self, shard: Shard) -> bool:
        """Whether the place has this shard, whole as far as a look at it tells."""

    def room_for(self, total: int) -> int:
        """Bytes of this machine's disk that a set of `total` bytes takes while it is built."""

    def remove_state(self) -> None:
        """Delete the folder of the journal."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other builds of this machine away; `UserError` where one is running."""


def place_of(out: str | os.PathLike[str], staging: Path) -> Place:
    """The place that `--out` names; what goes to a bucket is built in a folder below `staging`."""
    if is_url(out) and not os.fspath(out).startswith("file://"):
        from shard_tool.build.bucket import Bucket

        return Bucket.open(os.fspath(out), staging)
    return Folder(Path(os.fspath(out).removeprefix("file://")))


def open_set(place: Place) -> ShardSet | None:
    """The finished set in `place`, None where there is none; `ShardError` where its description is damaged."""
    if isinstance(place, Folder):
        return ShardSet.open(place.path) if (place.path / SHARDSET_FILE).exists() else None
    data = place.load(SHARDSET_FILE)
    if data is None:
        return None
    place.workshop.mkdir(parents=True, exist_ok=True)
    write_atomic(place.workshop / SHARDSET_FILE, data)
    return ShardSet.open(place.workshop)


class Folder:
    """A place on this machine, or on one that is mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def shown(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def name(self) -> str:
        """Its last part."""
        return self.path.resolve().name

    @property
    def workshop(self) -> Path:
        """The folder itself."""
        return self.path

    @property
    def spool(self) -> Path:
        """Beside the journal."""
        return self.path / STATE_FOLDER

    def names(self) -> set[str]:
        """What lies in it."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out must be a folder; got {self.path}, a file. Choose another.")
        return set(os.listdir(self.path)) if self.path.exists() else set()

    def load(self, name: str) -> bytes | None:
        """The content of a file, if it is there."""
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def store(self, name: str, data: bytes | bytearray) -> None:
        """Write a file atomically."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path / name, data)

    def hand_in(self, shard: Shard) -> None:
        """Nothing: the writer has synced and renamed it."""

    def after(self, action: Callable[[], None]) -> None:
        """At once: all that was handed in is safe."""
        action()

    def settle(self) -> None:
        """Nothing."""

    def publish(self, name: str) -> None:
        """Make its new name durable."""
        sync_folder(self.path)

    def holds(self, shard: Shard) -> bool:
        """By the size of its tar, and its index."""
        tar, index = self.path / f"{shard.name}.tar", self.path / f"{shard.name}.index"
        try:
            if tar.stat().st_size != shard.bytes:
                return False
            return Index.from_bytes(index.read_bytes(), str(index)).tar_sha256 == shard.sha256
        except (FileNotFoundError, ShardError):
            return False

    def room_for(self, total: int) -> int:
        """All of it."""
        return total

    def remove_state(self) -> None:
        """Delete `.build/`."""
        shutil.rmtree(self.path / STATE_FOLDER, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """By a lock file in `.build/`."""
        with lock_file(self.path / STATE_FOLDER / "lock", self.shown):
            yield


@contextlib.contextmanager
def lock_file(path: Path, shown: str) -> Iterator[None]:
    """Hold the lock `path` of a build in the place `shown`; `UserError` where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        if not try_lock(file):
            raise UserError(
                f"{shown} must be built by one command at a time; got a build that is still running there. "
                "Wait for it, or stop it first."
            )
        yield

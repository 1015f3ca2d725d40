"""Where a set is built: a folder of this machine here, a bucket in `bucket.py`, and what a build does to either.

    ShardWriter ──> workshop/train-000007.tar ──take──> the place
    journal     ────────────────────────────load/store──> the place, below .build/

In a folder the workshop is the place itself. What may not appear there unseen (a restored shard, one of a task on a
cluster) is written into `desk()`, and taken from there.
"""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from pipeline.errors import ShardError, UserError
from pipeline.files import sync_folder, try_lock, write_atomic
from pipeline.format import SHARDSET_FILE, Index, Shard, ShardSet
from pipeline.tar import scan_tar

STATE_FOLDER = ".build"


class Place(Protocol):
    """A folder that becomes a shard set. Names are relative to it, with `/` between their parts; it can be pickled."""

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

    def open_set(self) -> ShardSet | None:
        """The finished set in the place, None where there is none; `ShardError` where its description is damaged."""

    def names(self) -> set[str]:
        """What lies in the place, folders included; `UserError` where it is no folder."""

    def load(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""

    def store(self, name: str, data: bytes | bytearray) -> None:
        """Write a file; it is durable, and either whole or not there."""

    def for_nodes(self) -> "Place":
        """The place as another machine's process finds it."""

    def desk(self) -> contextlib.AbstractContextManager[Path]:
        """A new folder of this machine for shards that are taken, or not; it goes with what is left in it.

        Raises `UserError` on a node that does not see the place.
        """

    def take(self, folder: Path, shard: Shard) -> None:
        """Take over a finished shard of `folder`. This may wait until there is room for the next one."""

    def after(self, action: Callable[[], None]) -> None:
        """Call `action` once everything that was taken so far is safe."""

    def settle(self) -> None:
        """Wait until everything that was taken is safe."""

    def publish(self, name: str) -> None:
        """Take over another finished file of the workshop, durably."""

    def holds(self, shard: Shard, *, every_byte: bool = False) -> bool:
        """Whether the place has this shard, whole as far as a look at it tells, or by its hash."""

    def write_index(self, shard: Shard) -> bool:
        """Write the index of a shard anew if its tar is whole; whether it was."""

    def room_for(self, total: int) -> int:
        """Bytes of this machine's disk that a set of `total` bytes takes while it is built."""

    def remove_state(self) -> None:
        """Delete the folder of the journal."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other builds of this machine away; `UserError` where one is running."""


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

    def open_set(self) -> ShardSet | None:
        """By its description."""
        return ShardSet.open(self.path) if (self.path / SHARDSET_FILE).exists() else None

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

    def for_nodes(self) -> "Folder":
        """By its whole path."""
        return Folder(self.path.absolute())

    @contextlib.contextmanager
    def desk(self) -> Iterator[Path]:
        """Beside the journal, on the same disk: from there a shard is renamed."""
        if not self.spool.is_dir():
            raise UserError(
                f"--out must be a folder that every node of the cluster sees, or a bucket; got {self.path}, which "
                f"{os.uname().nodename} does not. Mount it there, or give --out s3://bucket/name."
            )
        folder = self.spool / f"desk-{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def take(self, folder: Path, shard: Shard) -> None:
        """Rename it: a tar without its index is whole to every reader, and the index without its tar is not."""
        if folder == self.path:
            return  # The writer has synced and renamed it.
        for suffix in ("tar", "index"):
            os.replace(folder / f"{shard.name}.{suffix}", self.path / f"{shard.name}.{suffix}")
        sync_folder(self.path)

    def after(self, action: Callable[[], None]) -> None:
        """At once: all that was taken is safe."""
        action()

    def settle(self) -> None:
        """Nothing."""

    def publish(self, name: str) -> None:
        """Make its new name durable."""
        sync_folder(self.path)

    def holds(self, shard: Shard, *, every_byte: bool = False) -> bool:
        """By the size of its tar and its index; or by the tar's sha256."""
        tar, index = self.path / f"{shard.name}.tar", self.path / f"{shard.name}.index"
        try:
            if tar.stat().st_size != shard.bytes or (every_byte and sha256_of(tar) != shard.sha256):
                return False
            return Index.from_bytes(index.read_bytes(), str(index)).tar_sha256 == shard.sha256
        except (FileNotFoundError, ShardError):
            return False

    def write_index(self, shard: Shard) -> bool:
        """By a scan of the tar."""
        tar, index = self.path / f"{shard.name}.tar", self.path / f"{shard.name}.index"
        try:
            found = scan_tar(tar)
        except (FileNotFoundError, ShardError):
            return False
        if found.tar_sha256 != shard.sha256:
            return False
        made = found.to_bytes()
        if index.exists() and not _was_ours(index.read_bytes(), made):
            raise UserError(
                f"{index} must be an index of this set; got another file. Move it away and run the command again."
            )
        write_atomic(index, made)
        return True

    def room_for(self, total: int) -> int:
        """All of it."""
        return total

    def remove_state(self) -> None:
        """Delete `.build/`."""
        shutil.rmtree(self.path / STATE_FOLDER, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """By a lock file in `.build/`; what killed tasks have left there goes."""
        with lock_file(self.path / STATE_FOLDER / "lock", self.shown):
            for left in self.spool.glob("desk-*"):
                shutil.rmtree(left, ignore_errors=True)
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


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _was_ours(data: bytes, made: bytes) -> bool:
    """Whether a damaged index was one: by its first bytes, by its length, or because nothing is left of it."""
    return data[:8] == made[:8] or len(data) == len(made) or not data.strip(b"\0")

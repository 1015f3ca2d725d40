"""A set that is built into a bucket, or whatever else a URL of fsspec names.

    staging/<name>-<hash>/train-000007.tar ──put, verify──> s3://bucket/faces-64/train-000007.tar, and gone here
                                           .build/group-000007.json once all of its shards are there

The journal lies in the bucket too, so that a build can go on from another machine. Two machines at once do the same
work twice, and put the same bytes.
"""

import base64
import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from pipeline.errors import UserError
from pipeline.files import inside, is_url, write_atomic
from pipeline.format import SHARDSET_FILE, Shard, ShardSet
from pipeline.remote.transport import filesystem, read_chunks, retrying
from shard_tool.build.place import STATE_FOLDER, Folder, Place, lock_file, sha256_of

STAGED_BYTES = 1 << 30
"""Finished shards that wait for their upload take at most this, or one shard; the one being written comes on top."""
UPLOADS = 4
"""Files that are on their way at once."""
PART_BYTES = 50 << 20
"""s3fs sends files of at least twice of this in such parts; their ETag is a digest of the parts' digests."""


def place_of(out: str | os.PathLike[str], staging: Path = Path("shards/.staging")) -> Place:
    """A folder, or what a URL names; what goes to a bucket is built in a folder below `staging`."""
    if is_url(out) and not os.fspath(out).startswith("file://"):
        return Bucket.open(os.fspath(out), staging)
    return Folder(Path(os.fspath(out).removeprefix("file://")))


class Bucket:
    """A place behind a URL; made by `Bucket.open`."""

    def __init__(self, url: str, workshop: Path, files: Any, root: str) -> None:
        self._url, self._workshop, self._files, self._root = url, workshop, files, root
        self._pool = ThreadPoolExecutor(UPLOADS, "upload")
        self._queue: deque[tuple[Future[None], int] | Callable[[], None]] = deque()
        self._staged = 0
        self._sizes: dict[str, int] | None = None

    @classmethod
    def open(cls, url: str, staging: Path) -> Self:
        """The place behind `url`, with a workshop below `staging`.

        Raises `UserError` where the protocol is unknown or cannot be written.
        """
        url = url.rstrip("/")
        files, root = filesystem(url)
        if files.protocol in ("http", "https") or "https" in files.protocol:
            raise UserError(f"--out must be a place that can be written; got {url}. Give a folder or a bucket.")
        digest = hashlib.sha256(url.encode()).hexdigest()[:8]
        return cls(url, staging / f"{url.rpartition('/')[2]}-{digest}", files, root)

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[str, Path]]:
        return type(self).open, (self._url, self._workshop.parent)

    def close(self) -> None:
        """End the threads that upload."""
        self._pool.shutdown(cancel_futures=True)

    @property
    def shown(self) -> str:
        """The URL."""
        return self._url

    @property
    def name(self) -> str:
        """Its last part."""
        return self._url.rpartition("/")[2]

    @property
    def workshop(self) -> Path:
        """A folder that belongs to this URL alone."""
        return self._workshop

    @property
    def spool(self) -> Path:
        """The workshop."""
        return self._workshop

    def open_set(self) -> ShardSet | None:
        """By its description, of which the workshop gets a copy."""
        data = self.load(SHARDSET_FILE)
        if data is None:
            return None
        self.workshop.mkdir(parents=True, exist_ok=True)
        write_atomic(self.workshop / SHARDSET_FILE, data)
        return ShardSet.open(self.workshop)

    def names(self) -> set[str]:
        """What lies below the URL."""
        return {path.partition("/")[0] for path in self._list()}

    def load(self, name: str) -> bytes | None:
        """The content of a file, if it is there."""
        try:
            return retrying(lambda: bytes(self._files.cat_file(self._path(name))), inside(self._url, name))
        except FileNotFoundError:
            return None

    def store(self, name: str, data: bytes | bytearray) -> None:
        """Write a file and read it back."""

        def attempt() -> None:
            self._files.pipe_file(self._path(name), bytes(data))
            if bytes(self._files.cat_file(self._path(name))) != data:
                raise OSError("other bytes came back than were sent")

        retrying(attempt, inside(self._url, name))
        self._sizes = None

    def for_nodes(self) -> Self:
        """Itself: it opens its URL anew."""
        return self

    @contextlib.contextmanager
    def desk(self) -> Iterator[Path]:
        """A temporary folder; its shards have arrived when it goes."""
        with tempfile.TemporaryDirectory(prefix="leanstream-") as folder:
            yield Path(folder)
            self.settle()

    def take(self, folder: Path, shard: Shard) -> None:
        """Begin to upload it; wait while too many bytes are waiting."""
        paths = [folder / f"{shard.name}.tar", folder / f"{shard.name}.index"]
        while self._queue and self._staged + shard.bytes > STAGED_BYTES:
            self._take_first()
        self._staged += shard.bytes
        self._queue.append((self._pool.submit(self._send_all, paths), shard.bytes))
        self._take_finished()

    def after(self, action: Callable[[], None]) -> None:
        """When the uploads before it have arrived."""
        self._queue.append(action)
        self._take_finished()

    def settle(self) -> None:
        """Wait for all uploads."""
        while self._queue:
            self._take_first()
        self._sizes = None

    def publish(self, name: str) -> None:
        """Upload a file when all shards have arrived."""
        self.settle()
        self._send_all([self._workshop / name])

    def holds(self, shard: Shard, *, every_byte: bool = False) -> bool:
        """By the size of its tar, as its checksum was compared when it arrived; or by reading it."""
        sizes, tar = self._list(), f"{shard.name}.tar"
        if sizes.get(tar) != shard.bytes or f"{shard.name}.index" not in sizes:
            return False
        return not every_byte or self._sha256(tar, shard.bytes) == shard.sha256

    def write_index(self, shard: Shard) -> bool:
        """False: the tar would have to come here for it, and a rebuilt one brings its index along."""
        return False

    def room_for(self, total: int) -> int:
        """What waits for its upload."""
        return min(total, 2 * STAGED_BYTES)

    def remove_state(self) -> None:
        """Delete the journal and the workshop."""
        with contextlib.suppress(FileNotFoundError):
            retrying(lambda: self._files.rm(self._path(STATE_FOLDER), recursive=True), inside(self._url, STATE_FOLDER))
        shutil.rmtree(self._workshop, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """By a lock file in the workshop, which is emptied: what a kill has left there may not be whole."""
        with lock_file(self._workshop / "lock", self._url):
            for left in self._workshop.iterdir():
                if left.name != "lock":
                    left.unlink()
            try:
                yield
            finally:
                self.close()

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _list(self) -> dict[str, int]:
        """The size of every file of the place, read once; those of the journal apart, which need no listing."""
        if self._sizes is None:
            root = self._root.strip("/") + "/"

            def attempt() -> dict[str, int]:
                self._files.invalidate_cache()
                found = self._files.ls(self._root, detail=True)
                return {entry["name"].strip("/").removeprefix(root): entry["size"] or 0 for entry in found}

            try:
                self._sizes = retrying(attempt, self._url)
            except FileNotFoundError:
                self._sizes = {}
        return self._sizes

    def _take_finished(self) -> None:
        while self._queue and (callable(self._queue[0]) or self._queue[0][0].done()):
            self._take_first()

    def _take_first(self) -> None:
        first = self._queue.popleft()
        if callable(first):
            first()
            return
        future, size = first
        future.result()
        self._staged -= size

    def _send_all(self, paths: list[Path]) -> None:
        for path in paths:
            retrying(functools.partial(self._send, path), inside(self._url, path.name))
            path.unlink()

    def _send(self, path: Path) -> None:
        name = path.name
        self._files.put_file(str(path), self._path(name))
        self._files.invalidate_cache()
        found = self._files.info(self._path(name))
        size = path.stat().st_size
        if found["size"] != size:
            raise OSError(f"{found['size']} of {size} bytes arrived")
        if found.get("ETag", "").strip('"') in _etags(path):
            return  # The server has computed the same checksum.
        if "md5Hash" in found and found["md5Hash"] == _md5_base64(path):
            return
        if self._sha256(name, size) != sha256_of(path):
            raise OSError("other bytes came back than were sent")

    def _sha256(self, name: str, size: int) -> str:
        """Of a file of the place, which is read for it."""
        digest = hashlib.sha256()
        for chunk in read_chunks(inside(self._url, name), 0, size):
            digest.update(chunk)
        return digest.hexdigest()


def _etags(path: Path) -> set[str]:
    """What S3 calls a file that was sent in one piece, and one that was sent in parts."""
    whole, parts = hashlib.md5(usedforsecurity=False), list[bytes]()
    with open(path, "rb") as file:
        while part := file.read(PART_BYTES):
            whole.update(part)
            parts.append(hashlib.md5(part, usedforsecurity=False).digest())
    return {whole.hexdigest(), f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"}


def _md5_base64(path: Path) -> str:
    """What Google Cloud Storage says of a file."""
    with open(path, "rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()

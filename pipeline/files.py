"""Where files are, on this machine or behind a URL; and small files that are either wholly there or not at all."""

import contextlib
import errno
import fcntl
import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

Place = Path | str
"""A path on this machine, or a URL: what `place_of` has decided is not asked again."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]+://")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system answers that has no locks."""


def place_of(location: str | os.PathLike[str]) -> Place:
    """A path for what is on this machine, with `~` for the home folder; else the URL, such as `s3://bucket/faces-64`."""
    text = os.fspath(location)
    if not is_url(text):
        return Path(os.path.expanduser(text))
    protocol, _, path = text.partition("://")
    return Path(urllib.parse.unquote(path)) if protocol == "file" else text.rstrip("/")


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether a file is named by a protocol (`s3://bucket/key`) instead of by a place on this machine."""
    return _URL.match(os.fspath(location)) is not None


def inside(folder: Place, name: str) -> Place:
    """The place of `name` in a folder."""
    if isinstance(folder, Path):
        return folder / name
    path, mark, query = folder.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def expand_home(words: Iterable[str]) -> list[str]:
    """A command's words with `~/` as the home folder also behind `--option=`, where no shell does that."""
    return [
        re.sub(r"\A(--[\w.-]+=)?~(?=/|\Z)", lambda found: (found[1] or "") + os.path.expanduser("~"), word)
        for word in words
    ]


def try_lock(file: IO[Any]) -> bool:
    """Take the exclusive lock of an open file; False where another process holds it. It dies with its process.

    On a file system without locks, as some network mounts are, nobody can be kept out: there it is always True.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable (a no-op where folders cannot be synced, as on some network mounts)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of `path`; it takes the name `path`, synced, only if the block ends without error."""
    # Two processes may write the same file at once, each all of it.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes | bytearray) -> None:
    """Replace `path` by `data` in one step that survives a crash."""
    with atomic_writer(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically, with a byte-stable layout."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

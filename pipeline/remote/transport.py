"""Files behind a URL: which file system they are on, and calls that are tried again until they succeed.

    s3://bucket/faces-64  ──> filesystem() ──> fsspec, with a limit on how long a server may be silent
                                  │
                              retrying() ──> wait, double the wait, try again ... ──> TransportError

Every protocol of fsspec works that has its package installed; credentials are looked up by that package.
"""

import concurrent.futures
import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import LeanstreamError, TransportError, UserError

if TYPE_CHECKING:
    import fsspec

T = TypeVar("T")

CHUNK_BYTES = 4 << 20
"""Bytes read at once: enough to forget the cost of a request, few enough to keep some in memory."""
_NO_END = 1 << 62
_LOOK_S = 0.1
"""Time between looks at whether to stop."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_EXTRA = {"gcs": "gcs", "gs": "gcs"} | dict.fromkeys(("hf", "http", "https", "s3", "s3a"), "remote")
"""The extra that installs a protocol's package."""
_LIBRARIES = [
    "aiobotocore",
    "aiohttp",
    "azure",
    "botocore",
    "fsspec",
    "gcsfs",
    "google",
    "http",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "huggingface_hub",
    "paramiko",
    "requests",
    "s3fs",
    "ssl",
    "urllib3",
]
"""Packages whose exceptions come from the network and not from a mistake in the program."""
_TRANSIENT_STATUS = (408, 409, 425, 429)
"""Answers below 500 after which the same request may succeed."""
_PERMANENT = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Patience:
    """How long a remote file is waited for."""

    attempts: int = 8
    """Attempts without progress."""
    deadline_s: float = 300.0
    """Time without progress after which no further attempt is made."""
    silence_s: float = 30.0
    """Time without a byte after which an attempt has failed."""
    first_wait_s: float = 0.5
    """Wait after the first failure; each further one waits twice as long."""
    longest_wait_s: float = 30.0


DEFAULT_PATIENCE = Patience()


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names a file by a protocol (`s3://bucket/key`) instead of a place on this machine."""
    return _URL.match(os.fspath(path)) is not None


def join(location: str, name: str) -> str:
    """The URL of `name` in the folder `location`."""
    folder, mark, query = location.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"


def filesystem(url: str, patience: Patience = DEFAULT_PATIENCE) -> "tuple[fsspec.AbstractFileSystem, str]":
    """The file system of `url` and the path of `url` on it.

    Raises `UserError` where the protocol is unknown, or its package is not installed.
    """
    import fsspec

    protocol = url.partition("://")[0].rpartition("::")[2]
    try:
        options = _options(protocol, patience)
        found, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        extra = _EXTRA.get(protocol)
        remedy = f"Install it with: pip install 'leanstream[{extra}]'" if extra else "Install that package with pip"
        raise UserError(f"{protocol}:// must have its package installed; got '{error}'. {remedy}.") from error
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise UserError(f"{url} must be a URL that can be opened; got '{error}'. Mend it.") from error
        raise UserError(
            f"{url} must begin with a protocol that fsspec knows; got '{protocol}'. Write s3://, gs://, https:// or hf://."
        ) from error
    if protocol in ("s3", "s3a"):
        found.retries = 1  # `retrying` is in charge; two of them multiply their waits.
    return found, str(path)


def retrying(
    call: Callable[[], T],
    what: str,
    *,
    patience: Patience = DEFAULT_PATIENCE,
    progress: Callable[[], object] | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> T:
    """What `call` returns, after as many attempts as it needs.

    A failure that may pass (a server that is busy, a connection that breaks or falls silent) is followed by a wait that
    doubles, with jitter, and another attempt.

    Args:
        call: makes one attempt.
        what: the URL, or what else the messages should name.
        patience: attempts and time that are allowed.
        progress: a figure that grows while attempts get further; each growth renews the attempts and the deadline.
        wait: waits some seconds; what it raises ends the attempts.

    Raises:
        TransportError: when attempts or time are used up; it names `what`, the attempts and the last cause.
        UserError: for a refusal that another attempt cannot change, such as missing credentials.
        FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError: as `call` raised them.
    """
    reached = progress() if progress else None
    began, failures, total = time.monotonic(), 0, 0
    while True:
        try:
            return call()
        except _PERMANENT:
            raise
        except Exception as error:
            if not _from_network(error):
                raise
            cause, refused = error, _is_refusal(error)
        if refused:
            raise UserError(
                f"{what} must be readable and writable as asked; got {describe(cause)}. "
                "Check the address and the credentials of this protocol."
            ) from cause
        total += 1
        now = progress() if progress else None
        if now != reached:
            reached, began, failures = now, time.monotonic(), 0
        failures += 1
        pause = min(patience.longest_wait_s, patience.first_wait_s * 2 ** (failures - 1)) * random.uniform(0.5, 1)
        if failures >= patience.attempts or time.monotonic() - began + pause > patience.deadline_s:
            raise TransportError(
                f"{what} must be available within {patience.attempts} attempts and {patience.deadline_s:g} s; "
                f"got {describe(cause)} at attempt {total}. Check the network and the server, then run it again."
            ) from cause
        del cause  # Its traceback would keep the attempt's buffers alive during the wait.
        wait(pause)


def read_bytes(
    location: str, *, what: str = "", patience: Patience = DEFAULT_PATIENCE, stopped: threading.Event | None = None
) -> bytes:
    """The whole content of a small file, behind a URL or a path; retried, and raises as `retrying` does."""

    def attempt() -> bytes:
        if not is_url(location):
            return Path(location).read_bytes()
        found, path = filesystem(location, patience)
        if not found.async_impl:
            return bytes(found.cat_file(path))
        return bytes(_run(found, found._cat_file(path), patience, stopped))

    return retrying(attempt, what or location, patience=patience, wait=waiting(stopped))


def read_chunks(
    location: str,
    start: int,
    stop: int = _NO_END,
    *,
    patience: Patience = DEFAULT_PATIENCE,
    stopped: threading.Event | None = None,
) -> Iterator[bytes]:
    """One attempt to read the bytes [start, stop) of a file, behind a URL or a path, by chunks of `CHUNK_BYTES`.

    It ends early where the file does. Not retried: whoever reads goes on from what is there. `stopped` ends it with
    `StoppedError`, at once where the file system is asynchronous (http, s3, gs), else at the next chunk.
    """
    if not is_url(location):
        with open(location, "rb") as file:
            yield from _file_chunks(file, start, stop, stopped)
        return
    found, path = filesystem(location, patience)
    if location.startswith(("http://", "https://")):
        yield from _http_chunks(found, path, start, stop, patience, stopped)
    elif found.async_impl:
        for begin in range(start, stop, CHUNK_BYTES):
            end = min(stop, begin + CHUNK_BYTES)
            try:
                chunk = bytes(_run(found, found._cat_file(path, start=begin, end=end), patience, stopped))
            except Exception as error:
                if getattr(error, "errno", None) == errno.EINVAL or _status(error) == 416:  # It lies behind the end.
                    return
                raise
            yield chunk
            if begin + len(chunk) < end:
                return
    else:
        with found.open(path, "rb", block_size=CHUNK_BYTES, cache_type="none") as file:
            yield from _file_chunks(file, start, stop, stopped)


class StoppedError(Exception):
    """Somebody asked for an end while a file was being read."""


def waiting(stopped: threading.Event | None) -> Callable[[float], None]:
    """A function that waits some seconds, and raises `StoppedError` as soon as the event is set."""

    def wait(seconds: float) -> None:
        if stopped is None:
            time.sleep(seconds)
        elif stopped.wait(seconds):
            raise StoppedError

    return wait


def _file_chunks(file: Any, start: int, stop: int, stopped: threading.Event | None) -> Iterator[bytes]:
    if start:
        file.seek(start)
    while start < stop and (chunk := bytes(file.read(min(CHUNK_BYTES, stop - start)))):
        yield chunk
        start += len(chunk)
        waiting(stopped)(0)


def _http_chunks(
    found: Any, path: str, start: int, stop: int, patience: Patience, stopped: threading.Event | None
) -> Iterator[bytes]:
    """One request: the body is read as it comes, from its middle where the server can do that."""
    options = dict(found.kwargs)
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"

    async def ask() -> Any:
        session = await found.set_session()
        return await session.get(found.encode_url(path), headers=headers, **options)

    async def fill(size: int) -> bytes:
        parts: list[bytes] = []
        while size and (part := await response.content.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    response = _run(found, ask(), patience, stopped)
    try:
        if response.status == 404:
            raise FileNotFoundError(path)
        if response.status == 416:  # The range lies behind the end.
            return
        response.raise_for_status()
        skip = 0 if response.status == 206 else start
        while skip and (chunk := _run(found, fill(min(CHUNK_BYTES, skip)), patience, stopped)):
            skip -= len(chunk)
        while start < stop and (chunk := _run(found, fill(min(CHUNK_BYTES, stop - start)), patience, stopped)):
            yield chunk
            start += len(chunk)
    finally:
        found.loop.call_soon_threadsafe(response.close)


def _run(found: Any, coroutine: Coroutine[Any, Any, T], patience: Patience, stopped: threading.Event | None) -> T:
    """The result of a coroutine of an asynchronous file system; what gives no chunk until the deadline has failed."""
    import asyncio

    future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, patience.deadline_s), found.loop)
    while not concurrent.futures.wait([future], timeout=None if stopped is None else _LOOK_S).done:
        if stopped is not None and stopped.is_set():
            future.cancel()
            raise StoppedError
    return future.result()


def describe(error: BaseException) -> str:
    """An exception as one line; those of asyncio often have no text at all."""
    text = " ".join(str(error).split())
    return f"'{text}' ({type(error).__name__})" if text else type(error).__name__


def _options(protocol: str, patience: Patience) -> dict[str, Any]:
    """What keeps a silent server from being waited for without end; settings of fsspec's own config files are kept."""
    from fsspec.config import conf

    def merged(key: str, **defaults: Any) -> dict[str, Any]:
        return {key: {**defaults, **conf.get(protocol, {}).get(key, {})}}

    silence = patience.silence_s
    if protocol in ("http", "https"):
        return merged("client_kwargs", timeout=_client_timeout(silence))
    if protocol in ("s3", "s3a"):
        once = {"max_attempts": 1, "mode": "standard"}
        return merged("config_kwargs", connect_timeout=silence, read_timeout=silence, retries=once)
    if protocol in ("gs", "gcs"):
        return {"requests_timeout": _client_timeout(silence), **conf.get(protocol, {})}
    return {}


def _client_timeout(silence_s: float) -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=silence_s, sock_read=silence_s)


def _from_network(error: Exception) -> bool:
    if isinstance(error, LeanstreamError):
        return False
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError | EOFError) or not packages.isdisjoint(_LIBRARIES)


def _is_refusal(error: Exception) -> bool:
    """Whether the same request would be refused again: no permission, no credentials, a malformed request."""
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in _TRANSIENT_STATUS


def _status(error: Exception) -> int | None:
    """The HTTP status behind an exception of aiohttp, httpx, requests, gcsfs or botocore."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = (
            getattr(response, "status_code", None) or getattr(error, "status", None) or getattr(error, "code", None)
        )
    try:
        return int(status)
    except (TypeError, ValueError):
        return None

"""Files behind a URL: which file system they are on, and calls that are tried again until they succeed.

    s3://bucket/faces-64  ──> filesystem() ──> fsspec, with a limit on how long a server may be silent
                                  │
                              retrying() ──> wait, double the wait, try again ... ──> TransportError

Every protocol of fsspec works that has its package installed; credentials are looked up by that package.
"""

import concurrent.futures
import errno
import functools
import http.client
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.errors import LeanstreamError, StoppedError, TransportError, UserError
from pipeline.files import Place, is_url

T = TypeVar("T")

CHUNK_BYTES = 4 << 20
"""Bytes read at once: enough to forget the cost of a request, few enough to keep some in memory."""
_NO_END = 1 << 62
_LOOK_S = 0.1
"""Time between looks at whether to stop."""
_EXTRA = {"gcs": "gcs", "gs": "gcs"} | dict.fromkeys(("hf", "http", "https", "s3", "s3a"), "remote")
"""The extra that installs a protocol's package."""
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


def pause(seconds: float, stopped: threading.Event | None = None) -> None:
    """Wait some seconds; `StoppedError` as soon as the event is set."""
    if stopped is None:
        time.sleep(seconds)
    elif stopped.wait(seconds):
        raise StoppedError("asked to stop, while waiting for a file")


def filesystem(url: str, patience: Patience = DEFAULT_PATIENCE) -> tuple[Any, str]:
    """The file system of fsspec that `url` is on, and its path there.

    Raises `UserError` where the protocol is unknown, or its package is not installed.
    """
    import fsspec

    protocol = url.partition("://")[0].rpartition("::")[2]
    try:
        found, path = fsspec.url_to_fs(url, **_options(protocol, patience))
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
    what: Place,
    *,
    patience: Patience = DEFAULT_PATIENCE,
    progress: Callable[[], object] = lambda: None,
    stopped: threading.Event | None = None,
) -> T:
    """What `call` returns, after as many attempts as it needs.

    A failure that may pass (a server that is busy, a connection that breaks or falls silent) is followed by a wait that
    doubles, with jitter, and another attempt.

    Args:
        call: makes one attempt.
        what: the URL, or what else the messages should name.
        progress: a figure that grows while attempts get further; each growth renews the attempts and the deadline.
        stopped: ends the waits with `StoppedError`.

    Raises:
        TransportError: when attempts or time are used up; it names `what` and the last cause.
        UserError: for a refusal that another attempt cannot change, such as missing credentials.
        FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError: as `call` raised them.
    """
    reached, began, failures = progress(), time.monotonic(), 0
    while True:
        try:
            return call()
        except Exception as error:
            if not _from_network(error):
                raise
            cause = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")  # Those of asyncio have no text.
            if _is_refusal(error):
                raise UserError(
                    f"{what} must be readable and writable as asked; got {cause}. "
                    "Check the address and the credentials of this protocol."
                ) from error
            if (now := progress()) != reached:
                reached, began, failures = now, time.monotonic(), 0
            wait_s = min(patience.longest_wait_s, patience.first_wait_s * 2**failures) * random.uniform(0.5, 1)
            failures += 1
            if failures >= patience.attempts or time.monotonic() - began + wait_s > patience.deadline_s:
                raise TransportError(
                    f"{what} must be available within {patience.attempts} attempts and {patience.deadline_s:g} s; "
                    f"got {cause} at attempt {failures}. Check the network and the server, then run it again."
                ) from error
        pause(wait_s, stopped)  # Here the error is gone, whose traceback keeps the attempt's buffers alive.


def read_bytes(
    place: Place,
    *,
    what: str = "",
    most: int = _NO_END,
    patience: Patience = DEFAULT_PATIENCE,
    stopped: threading.Event | None = None,
) -> bytes:
    """The content of a small file, its first `most` bytes if there are more; retried, and raises as `retrying` does."""

    def attempt() -> bytes:
        return b"".join(read_chunks(place, 0, most, patience=patience, stopped=stopped))

    return retrying(attempt, what or place, patience=patience, stopped=stopped)


def read_chunks(
    place: Place,
    start: int,
    stop: int = _NO_END,
    *,
    patience: Patience = DEFAULT_PATIENCE,
    stopped: threading.Event | None = None,
) -> Iterator[bytes]:
    """One attempt to read the bytes [start, stop) of a file, by chunks of `CHUNK_BYTES`.

    It ends early where the file does. Not retried: whoever reads goes on from what is there. `stopped` ends it with
    `StoppedError`, at once where the file system is asynchronous (http, s3, gs), else at the next chunk.
    """
    if not is_url(place):
        with open(place, "rb") as file:
            yield from _file_chunks(file, start, stop, stopped)
        return
    url = os.fspath(place)
    found, path = filesystem(url, patience)
    if found.async_impl:
        chunks = _http_chunks if url.startswith(("http://", "https://")) else _range_chunks
        yield from chunks(found, path, start, stop, functools.partial(_run, found, patience, stopped))
    else:
        with found.open(path, "rb", block_size=CHUNK_BYTES, cache_type="none") as file:
            yield from _file_chunks(file, start, stop, stopped)


def _file_chunks(file: Any, start: int, stop: int, stopped: threading.Event | None) -> Iterator[bytes]:
    if start:
        file.seek(start)
    while start < stop and (chunk := bytes(file.read(min(CHUNK_BYTES, stop - start)))):
        yield chunk
        start += len(chunk)
        pause(0, stopped)


def _range_chunks(found: Any, path: str, start: int, stop: int, run: Callable[..., Any]) -> Iterator[bytes]:
    """A request for each chunk."""
    for begin in range(start, stop, CHUNK_BYTES):
        asked = min(CHUNK_BYTES, stop - begin)
        try:
            chunk = bytes(run(found._cat_file(path, start=begin, end=begin + asked)))
        except Exception as error:
            if getattr(error, "errno", None) == errno.EINVAL or _status(error) == 416:  # It lies behind the end.
                return
            raise
        if len(chunk) > asked:
            raise OSError(errno.EIO, f"{len(chunk)} bytes instead of {asked}")
        yield chunk
        if len(chunk) < asked:
            return


def _http_chunks(found: Any, path: str, start: int, stop: int, run: Callable[..., Any]) -> Iterator[bytes]:
    """One request: the body is read as it comes, from its middle where the server can do that."""
    options = dict(found.kwargs)
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"

    async def fill(size: int) -> bytes:
        parts: list[bytes] = []
        while size and (part := await response.content.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    session = run(found.set_session())
    response = run(session.get(found.encode_url(path), headers=headers, **options))
    try:
        if response.status == 404:
            raise FileNotFoundError(path)
        if response.status == 416:  # The range lies behind the end.
            return
        response.raise_for_status()
        at = start if response.status == 206 else 0
        while at < stop and (chunk := run(fill(min(CHUNK_BYTES, (start if at < start else stop) - at)))):
            if at >= start:
                yield chunk
            at += len(chunk)
    finally:
        found.loop.call_soon_threadsafe(response.close)


def _run(found: Any, patience: Patience, stopped: threading.Event | None, work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine of an asynchronous file system; what gives no chunk until the deadline has failed."""
    import asyncio

    future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, patience.deadline_s), found.loop)
    try:
        while not concurrent.futures.wait([future], None if stopped is None else _LOOK_S).done:
            pause(0, stopped)
    finally:
        future.cancel()
    return future.result()


def _options(protocol: str, patience: Patience) -> dict[str, Any]:
    """What keeps a silent server from being waited for without end; settings of fsspec's own config files are kept."""
    if protocol not in ("gcs", "gs", "http", "https", "s3", "s3a"):
        return {}
    import aiohttp
    from fsspec.config import conf

    own, silence = conf.get(protocol, {}), patience.silence_s
    if protocol in ("s3", "s3a"):
        once = {"max_attempts": 1, "mode": "standard"}
        limits = {"connect_timeout": silence, "read_timeout": silence, "retries": once}
        return {"config_kwargs": {**limits, **own.get("config_kwargs", {})}}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence)
    if protocol in ("http", "https"):
        return {"client_kwargs": {"timeout": timeout, **own.get("client_kwargs", {})}}
    return {"requests_timeout": own.get("requests_timeout", timeout)}


def _from_network(error: Exception) -> bool:
    """Whether it comes from the network: what the program does wrong is one of Python's own exceptions, or of ours."""
    if isinstance(error, (*_PERMANENT, LeanstreamError)):
        return False
    is_foreign = type(error).__module__.partition(".")[0] not in sys.stdlib_module_names
    return is_foreign or isinstance(error, OSError | EOFError | http.client.HTTPException)


def _is_refusal(error: Exception) -> bool:
    """Whether the same request would be refused again: no permission, no credentials, a malformed request."""
    status = _status(error)
    is_final = 400 <= status < 500 and status not in _TRANSIENT_STATUS
    return is_final or isinstance(error, PermissionError) or "Credentials" in type(error).__name__


def _status(error: Exception) -> int:
    """The HTTP status behind an exception of aiohttp, httpx, requests, gcsfs or botocore; 0 where there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    for owner, name in ((response, "status_code"), (error, "status"), (error, "code")):
        if str(status := getattr(owner, name, "")).isdecimal():
            return int(status)
    return 0

"""Files behind a URL: which file system they are on, and calls that are tried again until they succeed.

    s3://bucket/faces-64  ──> filesystem() ──> fsspec, with a limit on how long a server may be silent
                                  │
                              retrying() ──> wait, double the wait, try again ... ──> TransportError

Every protocol of fsspec works that has its package installed; credentials are looked up by that package.
"""

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import LeanstreamError, TransportError, UserError

if TYPE_CHECKING:
    import fsspec

T = TypeVar("T")

CHUNK_BYTES = 4 << 20
"""Bytes read at once: enough to forget the cost of a request, few enough to keep some in memory."""
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
                f"{what} must be had within {patience.attempts} attempts and {patience.deadline_s:g} s; "
                f"got {describe(cause)} at attempt {total}. Check the network and the server, then run it again."
            ) from cause
        del cause  # Its traceback would keep the attempt's buffers alive during the wait.
        wait(pause)


def read_bytes(url: str, patience: Patience = DEFAULT_PATIENCE) -> bytes:
    """The whole content of a small remote file, retried; raises as `retrying` does."""
    found, path = filesystem(url, patience)
    return retrying(lambda: bytes(found.cat_file(path)), url, patience=patience)


def read_chunks(url: str, start: int, patience: Patience = DEFAULT_PATIENCE) -> Iterator[bytes]:
    """One attempt to read a remote file from byte `start` to its end, in chunks of at most `CHUNK_BYTES`.

    Not retried: whoever reads goes on from what is there.
    """
    found, path = filesystem(url, patience)
    if url.partition("://")[0] in ("http", "https"):
        yield from _http_chunks(found, path, start)
        return
    with found.open(path, "rb", block_size=CHUNK_BYTES, cache_type="none") as file:
        if start:
            file.seek(start)
        while chunk := file.read(CHUNK_BYTES):
            yield bytes(chunk)


def _http_chunks(found: Any, path: str, start: int) -> Iterator[bytes]:
    """One request and no more: the body is read as it comes, from its middle where the server can do that."""
    headers = {**found.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    # `size` only spares the question for the size; a block size of 0 asks for a stream.
    with found.open(path, "rb", block_size=0, size=1, headers=headers) as file:
        skip = 0 if file.r.status == 206 else start
        while chunk := file.read(CHUNK_BYTES):
            if len(chunk) > skip:
                yield chunk[skip:]
            skip = max(0, skip - len(chunk))


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
        return merged("session_kwargs", timeout=_client_timeout(silence))
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

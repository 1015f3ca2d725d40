"""Addresses, attempts and what a person reads when there is no further attempt."""

import http.server
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import botocore.exceptions
import fsspec
import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from pipeline.errors import EXIT_FAULT, ShardError, StoppedError, TransportError, UserError, report_error
from pipeline.files import inside, is_url
from pipeline.remote.transport import (
    Patience,
    filesystem,
    read_bytes,
    read_chunks,
    retrying,
)

SHORT = Patience(attempts=4, deadline_s=60, silence_s=0.2, first_wait_s=0.001, longest_wait_s=0.01)
CONTENT = bytes(random.Random(0).randbytes(100_000))


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("s3://bucket/faces", True),
        ("gs://bucket/faces", True),
        ("https://host/faces?token=1", True),
        ("hf://datasets/me/faces", True),
        ("memory://faces", True),
        ("file:///faces", True),
        ("zip://faces.csv::https://host/a.zip", True),
        ("simplecache::s3://bucket/faces", True),
        ("/faces", False),
        ("faces/64", False),
        ("./a:b", False),
        ("C:/faces", False),
        ("", False),
    ],
)
def test_an_address_is_told_from_a_path(path, answer):
    assert is_url(path) is answer


def test_a_name_is_joined_before_the_query():
    assert inside("https://host/faces/", "a.tar") == "https://host/faces/a.tar"
    assert inside("https://host/faces?token=1", "a.tar") == "https://host/faces/a.tar?token=1"


def test_an_unknown_protocol_names_those_that_work():
    with pytest.raises(UserError, match=r"must begin with a protocol.*got 'fax'.*s3://"):
        filesystem("fax://bucket/faces")


def test_a_missing_package_names_the_extra(monkeypatch):
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"pip install 'leanstream\[remote\]'"):
        filesystem("s3://bucket/faces")
    with pytest.raises(UserError, match=r"Install s3fs to access S3"):
        filesystem("oss://bucket/faces")


def test_file_systems_get_a_limit_on_silence():
    http_system, _ = filesystem("http://127.0.0.1:9/x", SHORT)
    assert http_system.client_kwargs["timeout"].sock_read == SHORT.silence_s
    s3, path = filesystem("s3://bucket/x", SHORT)
    assert (s3.config_kwargs["read_timeout"], s3.retries, path) == (SHORT.silence_s, 1, "bucket/x")


def test_settings_of_a_persons_own_config_are_kept(monkeypatch):
    mine = {"config_kwargs": {"read_timeout": 7}, "anon": True}
    monkeypatch.setitem(fsspec.config.conf, "s3", mine)
    s3, _ = filesystem("s3://bucket/x", SHORT)
    assert (s3.config_kwargs["read_timeout"], s3.config_kwargs["connect_timeout"], s3.anon) == (7, 0.2, True)


class Flaky:
    """Fails with the exceptions given, one after the other, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def status(code: int) -> aiohttp.ClientResponseError:
    request = aiohttp.RequestInfo(yarl.URL("http://x"), "GET", CIMultiDictProxy(CIMultiDict()))
    return aiohttp.ClientResponseError(request, (), status=code, message="busy")


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        ConnectionResetError("reset"),
        TimeoutError(),
        aiohttp.ClientPayloadError("not enough data"),
        status(503),
        status(429),
        botocore.exceptions.EndpointConnectionError(endpoint_url="x"),
        EOFError("short"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_is_tried_again(error):
    call = Flaky(error, error, error)
    assert retrying(call, "s3://x", patience=SHORT) == "answer"
    assert call.calls == 4


@pytest.mark.parametrize(
    "error",
    [PermissionError("Forbidden"), status(401), status(403), botocore.exceptions.NoCredentialsError()],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_is_the_persons_at_once(error):
    call = Flaky(error)
    with pytest.raises(UserError, match=r"^s3://x must be readable.*credentials"):
        retrying(call, "s3://x", patience=SHORT)
    assert call.calls == 1


@pytest.mark.parametrize("error", [FileNotFoundError("x"), ShardError("x"), TypeError("x"), AssertionError("x")])
def test_what_is_no_fault_of_the_network_passes_through(error):
    call = Flaky(error)
    with pytest.raises(type(error)):
        retrying(call, "s3://x", patience=SHORT)
    assert call.calls == 1


def test_the_last_error_names_address_attempts_and_cause(capsys):
    call = Flaky(*[OSError(5, f"failure {number}") for number in range(1, 10)])
    with pytest.raises(TransportError, match=r"s3://x must be available.*failure 4.*attempt 4\.") as caught:
        retrying(call, "s3://x", patience=SHORT)
    assert call.calls == SHORT.attempts
    assert isinstance(caught.value.__cause__, OSError)
    assert report_error(caught.value, "reading") == EXIT_FAULT
    assert capsys.readouterr().err.count("\n") == 1


def test_a_deadline_ends_the_attempts_before_they_are_used_up():
    call = Flaky(*[TimeoutError()] * 100)
    with pytest.raises(TransportError, match="TimeoutError at attempt 1"):
        retrying(call, "s3://x", patience=Patience(attempts=100, deadline_s=0))
    assert call.calls == 1


def test_progress_renews_the_attempts():
    done = 0

    def advance() -> str:
        nonlocal done
        done += 1
        if done == 20:
            return "answer"
        raise ConnectionResetError

    assert retrying(advance, "s3://x", patience=SHORT, progress=lambda: done) == "answer"
    done = 0
    with pytest.raises(TransportError, match="attempt 4"):
        retrying(advance, "s3://x", patience=SHORT, progress=lambda: min(done, 12))
    assert done == 12 + SHORT.attempts - 1


@given(st.integers(1, 12), st.floats(0.001, 2), st.floats(0.001, 20))
def test_waits_double_with_jitter_up_to_the_longest(failures, first, longest):
    waits: list[float] = []

    class Noting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits.append(timeout)
            return False

    patience = Patience(attempts=13, deadline_s=1e9, first_wait_s=first, longest_wait_s=longest)
    retrying(Flaky(*[TimeoutError()] * failures), "x", patience=patience, stopped=Noting())
    assert len(waits) == failures
    for number, waited in enumerate(waits):
        whole = min(longest, first * 2**number)
        assert whole / 2 <= waited <= whole


def test_a_stop_ends_the_wait_for_another_attempt():
    call, stopped = Flaky(*[TimeoutError()] * 3), threading.Event()
    stopped.set()
    with pytest.raises(StoppedError):
        retrying(call, "x", patience=Patience(first_wait_s=100), stopped=stopped)
    assert call.calls == 1


# One attempt at a real file


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Serves CONTENT at any path; a factory that is told whether the server knows ranges, and returns its address."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve(*, ranges: bool) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = self.headers.get("Range") if ranges else None
                start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
                if start >= len(CONTENT):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(CONTENT) - start))
                self.end_headers()
                self.wfile.write(CONTENT[start:])

            def log_message(self, *_: Any) -> None:
                pass

        found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(found)
        return f"http://127.0.0.1:{found.server_port}/file"

    yield serve
    for one in servers:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize("start", [0, 1, 50_000, len(CONTENT) - 1])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_is_read_from_any_byte_whether_or_not_the_server_can(server, ranges, start, monkeypatch):
    monkeypatch.setattr("pipeline.remote.transport.CHUNK_BYTES", 8192)
    url = server(ranges=ranges)
    chunks = list(read_chunks(url, start, len(CONTENT), patience=SHORT))
    assert b"".join(chunks) == CONTENT[start:] == b"".join(read_chunks(url, start, patience=SHORT))
    assert max(map(len, chunks)) <= 8192
    assert read_bytes(url, patience=SHORT) == CONTENT


def test_any_file_system_is_read_from_any_byte(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    fsspec.filesystem("memory").pipe_file("/transport-test/file", CONTENT)
    for location in (f"{tmp_path}/file", f"file://{tmp_path}/file", "memory://transport-test/file"):
        assert b"".join(read_chunks(location, 77_777, len(CONTENT))) == CONTENT[77_777:]
        assert b"".join(read_chunks(location, 7, 777)) == CONTENT[7:777]
        assert b"".join(read_chunks(location, 7)) == CONTENT[7:]
        assert b"".join(read_chunks(location, 99_999, 2 * len(CONTENT))) == CONTENT[99_999:]
        assert b"".join(read_chunks(location, 2 * len(CONTENT), 3 * len(CONTENT))) == b""
        assert read_bytes(location) == CONTENT
    with pytest.raises(FileNotFoundError):
        read_bytes("memory://transport-test/none")


def test_no_more_is_read_than_is_wanted(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    fsspec.filesystem("memory").pipe_file("/transport-test/file", CONTENT)
    for place in (tmp_path / "file", f"{tmp_path}/file", "memory://transport-test/file"):
        assert read_bytes(place, most=10) == CONTENT[:10]
    with socket.create_server(("127.0.0.1", 0)) as endless:

        def serve() -> None:
            connection, _ = endless.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {1 << 50}\r\n\r\n".encode() + CONTENT[:20])
                connection.recv(1)  # Until the other side has enough.

        thread = threading.Thread(target=serve)
        thread.start()
        assert read_bytes(f"http://127.0.0.1:{endless.getsockname()[1]}/file", most=10) == CONTENT[:10]
        thread.join(30)
        assert not thread.is_alive()


def test_reading_behind_the_end_gives_nothing(server):
    for ranges in (True, False):
        assert list(read_chunks(server(ranges=ranges), len(CONTENT), 2 * len(CONTENT), patience=SHORT)) == []


def test_a_stop_ends_a_read_from_a_silent_server():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        stopped = threading.Event()
        stopped.set()
        with pytest.raises(StoppedError):
            list(read_chunks(url, 0, 100, stopped=stopped))
        with pytest.raises(StoppedError):
            read_bytes(url, stopped=stopped)
        with pytest.raises(TransportError, match="at attempt 4"):
            read_bytes(url, patience=SHORT)

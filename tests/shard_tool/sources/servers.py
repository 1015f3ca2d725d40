"""Servers on loopback: HTTP with ranges, and an S3 of its own process."""

import contextlib
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class FileServer:
    """Serves the files of a folder with ranges; a context manager. The first requests of `faults` are answered so."""

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.requests: list[str] = []
        self.faults: list[int] = []
        self.fails_after: int | None = None
        """Requests after which every answer is 503."""
        self.sent = 0
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(body=True)

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def _answer(self, *, body: bool) -> None:
                server.requests.append(f"{self.command} {self.path}")
                path = folder / self.path.lstrip("/").partition("?")[0]
                data = path.read_bytes() if path.is_file() else b""
                size = len(data)
                status = 200 if path.is_file() else 404
                asked = self.headers.get("Range") if ranges else None
                if server.fails_after is not None and len(server.requests) > server.fails_after:
                    status, data, asked = 503, b"", None
                if body and status == 200 and server.faults:
                    status, data, asked = server.faults.pop(0), b"", None
                if asked and status == 200:
                    first, _, last = asked.removeprefix("bytes=").partition("-")
                    status, data = 206, data[int(first) : int(last) + 1 if last else None]
                self.send_response(status)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{size}")
                if ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    with contextlib.suppress(ConnectionError):
                        self.wfile.write(data)
                    server.sent += len(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FileServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 server, a process of its own that ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = "import sys; from moto.server import main; main(sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", script, "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                assert process.poll() is None, "the S3 server ended"
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()

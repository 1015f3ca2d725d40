"""An HTTP server on loopback that serves a folder, and fails as it is told."""

import http.server
import socket
import struct
import threading
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FAULTS = ("busy", "reset", "reset midway", "truncated", "short", "stalled", "stalled midway", "wrong bytes")
"""busy: 503; truncated: fewer bytes than announced; short: fewer bytes, and announced so; stalled: silence."""


class FaultyServer:
    """Serves the files of a folder, with ranges; a context manager.

    It answers as a bucket would too, where the folder holds one folder for each bucket. `plan["name"]` is a list of
    faults for the next requests for that file, `always["name"]` the fault of all requests; the name "*" stands for
    every file.
    """

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
        self.plan: defaultdict[str, list[str]] = defaultdict(list)
        self.always: dict[str, str] = {}
        self.requests: list[str] = []
        self.stalled = threading.Event()
        """Set while a request is stalled."""
        self.release = threading.Event()
        """Ends all stalls; what was stalled midway goes on."""
        self._lock = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                try:
                    server._answer(self)
                except ConnectionError:
                    self.close_connection = True

            def do_HEAD(self) -> None:
                path = server.folder / self.path.lstrip("/")
                self.send_response(200 if path.is_file() else 404)
                self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
                self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
                self.send_header("ETag", '"x"')
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, name: str) -> str:
        with self._lock:
            self.requests.append(name)
            for key in (name, "*"):
                if self.plan[key]:
                    return self.plan[key].pop(0)
            return self.always.get(name) or self.always.get("*") or ""

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        name = request.path.lstrip("/")
        path, fault = self.folder / name, self._fault(name)
        if fault == "busy":
            return self._send(request, 503, b"busy")
        if fault == "reset":
            return self._reset(request)
        if fault == "stalled":
            self._stall()
            return self._reset(request)
        if not path.is_file():
            return self._send(request, 404, b"")
        data = path.read_bytes()
        if fault == "wrong bytes":
            data = data[:-700] + bytes(byte ^ 1 for byte in data[-700:])
        if fault == "short":
            data = data[: len(data) // 2]
        status, asked = 200, request.headers.get("Range") if self.ranges else None
        if asked:
            start, _, last = asked.removeprefix("bytes=").partition("-")
            part = slice(int(start), int(last) + 1 if last else None)
            status, data = (206, data[part]) if int(start) < len(data) else (416, b"")
        if not fault or fault in ("short", "wrong bytes"):
            return self._send(request, status, data)
        self._send(request, status, data[: len(data) // 2], len(data))
        request.wfile.flush()
        if fault == "stalled midway":
            self._stall()
            request.wfile.write(data[len(data) // 2 :])
        elif fault == "reset midway":
            self._reset(request)
        else:
            request.close_connection = True

    def _send(
        self, request: http.server.BaseHTTPRequestHandler, status: int, data: bytes, length: int | None = None
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(data) if length is None else length))
        request.end_headers()
        request.wfile.write(data)

    def _reset(self, request: http.server.BaseHTTPRequestHandler) -> None:
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.close_connection = True

    def _stall(self) -> None:
        self.stalled.set()
        self.release.wait(30)

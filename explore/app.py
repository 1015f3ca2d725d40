"""`explore app`: a page on this machine alone, to play with a model's faces.

It listens on 127.0.0.1, offers no tunnel, sends nothing to other hosts, and its folder of uploads ends with it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
import threading
import webbrowser
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from explore.commands import App
from explore.model import load_trained
from pipeline.errors import UserError

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 7860, 100
"""Without --port: the first that is free of this many."""
_CLOSING_S = 2


def run(command: App, console: Console) -> list[Path]:
    """Serve the page until Ctrl-C or SIGTERM; it writes no files."""
    with listen(command.port) as listener, tempfile.TemporaryDirectory(prefix="leanstream-app-") as uploads:
        # SIGTERM as an interrupt, so that the folder goes then, too; the server raises again what ended it.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # Read by gradio when it is imported or the page is made.
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": uploads,
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        from explore.page.layout import build_page
        from explore.page.studio import open_studio

        studio = open_studio(load_trained(command), console)
        # Of one face at a time a second thread saves little, and where the machine is busy, waiting for it costs much.
        torch.set_num_threads(1)
        page = build_page(studio, studio.trained.home.resolve().name, command.seed)
        # Whether a signal that the server took comes back as an interrupt is up to the event loop.
        with contextlib.suppress(KeyboardInterrupt):
            _serve(page, listener, command, console)
    console.print("The page is closed.")
    return []


def listen(port: int | None) -> socket.socket:
    """A socket that listens on `port` of this machine, or on the first free one.

    Raises `UserError` where the port is taken, or may not be used.
    """
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, candidate))
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror or str(error)
    if port is not None:
        raise UserError(f"--port must be free; got {port} ({reason}). Choose another one, or leave the option out.")
    raise UserError(
        f"one of the ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} must be free; got none ({reason}). "
        "Name another with --port."
    )


def _serve(page: Any, listener: socket.socket, command: App, console: Console) -> None:
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(application(page), log_level="critical", timeout_graceful_shutdown=_CLOSING_S)
    )
    port = listener.getsockname()[1]
    url = f"http://{HOST}:{port}/"

    async def serve() -> None:
        # Said in here, so that a Ctrl-C from now on ends the server and not what comes before it.
        if command.port is None and port != FIRST_PORT:
            console.print(f"Port {FIRST_PORT} is taken, so this is on {port}.")
        console.print(f"{url} (Ctrl-C ends it)", markup=False, soft_wrap=True)
        if command.open:
            # The socket listens already: a browser that is quicker than the server waits a moment.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        await server.serve(sockets=[listener])

    asyncio.run(serve())


def application(page: Any) -> Any:
    """The page as an ASGI application, with everything off that Gradio offers beyond it."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from explore.page.layout import LARGEST_FILE, STYLE, theme

    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # A page elsewhere whose name was pointed at this machine gets nothing.
    outer.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return gr.mount_gradio_app(
        outer,
        page,
        path="/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=LARGEST_FILE,
        theme=theme(),
        css_paths=[STYLE],
    )

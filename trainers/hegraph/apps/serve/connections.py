"""HTTP connections with a deadline for the header of a request, and the end of a server within a deadline.

Uvicorn closes idle connections between two requests, but waits for ever for the header of a request that has begun.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ...utils.signals import stop_if_interrupted
from .deadline import end_within
from .errors import too_late
from .settings import MAX_CONNECTIONS, Settings
from .waiting import Client, Waiting

if TYPE_CHECKING:
    from types import FrameType

    from uvicorn.protocols.http.h11_impl import H11Protocol as HTTPProtocol
else:
    HTTPProtocol = AutoHTTPProtocol

MAX_FILES = 65_536  # file descriptors that the process asks for; the usual limit of 1024 is one per connection
CLEAN_UP_SECONDS = 2  # between the end of the requests and the deadline of the process


def connection_class(settings: Settings) -> type[asyncio.Protocol]:
    """Create the class of connections, which share their limits."""
    waiting = Waiting(MAX_CONNECTIONS)

    class Connection(HTTPProtocol):
        """Connection that is closed if the header of a request is not complete in time."""

        client_of_header: Client | None = None  # while the header of a request is not complete
        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_header()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            if before is None or before.response_complete:
                self._expect_header()
            super().data_received(data)
            if self.cycle is not before:
                self._header_arrived()

        def connection_lost(self, exc: Exception | None) -> None:
            self._header_arrived()
            super().connection_lost(exc)

        def _expect_header(self) -> None:
            if self.client_of_header is None:
                self.client_of_header = Client(self.client[0] if self.client else "", self._close)
                self.deadline = self.loop.call_later(settings.request_seconds, self._close)
                waiting.add(self.client_of_header)

        def _header_arrived(self) -> None:
            if self.client_of_header is not None and self.deadline is not None:
                self.deadline.cancel()
                waiting.discard(self.client_of_header)
            self.client_of_header = None

        def _close(self) -> None:
            self._header_arrived()
            if not self.transport.is_closing():
                self.transport.write(late_answer(settings.request_seconds))
                self.transport.close()

    return Connection


def late_answer(seconds: float) -> bytes:
    """HTTP answer to a request whose header is not complete after some seconds."""
    error = too_late(seconds)
    body = json.dumps({"error": error.detail}).encode()
    lines = [
        f"HTTP/1.1 {error.status_code} Request Timeout",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


class HttpServer(uvicorn.Server):
    """Server of an application that ends within a deadline after SIGTERM or Ctrl+C.

    Requests that are complete are answered first. Work that does not end, such as a training, is given up: the model
    folder has the state before it.

    Args:
        app: The application.
        settings: Settings of the server.
        on_ready: Function that is called when the server accepts requests.
    """

    def __init__(self, app: FastAPI, settings: Settings, on_ready: Callable[[], object]) -> None:
        self.app = app
        self.settings = settings
        self.on_ready = on_ready
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(settings),
                ws="none",
                timeout_graceful_shutdown=max(int(settings.stop_seconds - CLEAN_UP_SECONDS), 1),
                log_level="error",
                access_log=False,
                server_header=False,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            end_within(self.settings.stop_seconds)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.places.end()
        await super().shutdown(sockets)


def serve_app(app: FastAPI, settings: Settings, listener: socket.socket, on_ready: Callable[[], object]) -> None:
    """Serve an application on a bound socket until the process is interrupted or terminated."""
    allow_files()
    with suppress(KeyboardInterrupt):  # Uvicorn raises the signal again when it has ended
        stop_if_interrupted()  # an import, or a callback, may have dropped the exception of the signal
        HttpServer(app, settings, on_ready).run([listener])


def allow_files() -> None:
    """Raise the number of files that the process may open, as far as the system allows it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

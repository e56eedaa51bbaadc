"""Middleware that limits requests: the time in which they arrive, their bytes and their number.

A request is first received completely and then passed on, so clients that send slowly take no place of a request in
progress. `/health` and `/metrics` have no limits, because monitoring must see a busy server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from fastapi import HTTPException, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import answer_error, ending, too_busy, too_large, too_late, too_many_unfinished
from .settings import HEALTH, MAX_BODIES, MAX_BODY, MAX_UNFINISHED, METRICS, Settings
from .waiting import Client, Waiting


class Places:
    """Requests that are arriving or in progress.

    Attributes:
        unfinished: Clients whose request is not complete.
        in_progress: Number of complete requests that are not answered.
        received: Bytes of the bodies of all requests.
        ending: Whether the server accepts no request.
    """

    def __init__(self) -> None:
        self.unfinished = Waiting(MAX_UNFINISHED)
        self.in_progress = 0
        self.received = 0
        self.ending = False

    def end(self) -> None:
        """Drop the requests that are not complete, and refuse further ones."""
        self.ending = True
        self.unfinished.drop_all()


class Limits:
    """Middleware that limits requests.

    Args:
        app: The application.
        settings: Settings of the server.
        places: Requests that are arriving or in progress.
    """

    def __init__(self, app: ASGIApp, settings: Settings, places: Places) -> None:
        self.app = app
        self.settings = settings
        self.places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            if scope["path"] in (HEALTH, METRICS):
                return await self.app(scope, receive, send)
            self._check_load(Headers(scope=scope))
            body = await self._receive_body(scope, receive)
        except HTTPException as error:
            return await answer_error(Request(scope), error)(scope, receive, send)
        if body is None:  # the client is gone
            return
        size = sum(map(len, body))
        try:
            await self._answer(scope, receive, send, body)
        finally:
            self.places.received -= size

    def _check_load(self, headers: Headers) -> None:
        """Raise HTTPException for a request to an ending or a busy server, and for one that names a large body."""
        if self.places.ending:
            raise ending()
        if self.places.in_progress >= self.settings.max_requests:
            raise too_busy(self.places.in_progress)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > MAX_BODY:
            raise too_large()

    async def _receive_body(self, scope: Scope, receive: Receive) -> deque[bytes] | None:
        """Receive the body of a request; None if the client disconnects.

        Raises:
            HTTPException: If it is too large or too late, other requests need its place, or the server ends.
        """
        dropped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        address, *_ = scope.get("client") or ("", 0)
        client = Client(address, lambda: resolve(dropped))
        body = deque[bytes]()
        complete = False
        self.places.unfinished.add(client)
        reading = asyncio.ensure_future(self._read(receive, client, body))
        try:
            events: tuple[asyncio.Future[Any], ...] = (reading, dropped)
            seconds = self.settings.request_seconds
            await asyncio.wait(events, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                complete = reading.result()
                return body if complete else None
            if self.places.ending:
                raise ending()
            raise too_many_unfinished() if dropped.done() else too_late(seconds)
        finally:
            reading.cancel()
            self.places.unfinished.discard(client)
            if not complete:
                self.places.received -= client.received

    async def _read(self, receive: Receive, client: Client, body: deque[bytes]) -> bool:
        """Read a body; returns whether it is complete. HTTPException if it is too large."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            chunk = message.get("body", b"")
            body.append(chunk)
            client.received += len(chunk)
            self.places.received += len(chunk)
            if client.received > MAX_BODY:
                raise too_large()
            if not message.get("more_body", False):
                return True
            if self.places.received > MAX_BODIES:
                self.places.unfinished.drop_largest()

    async def _answer(self, scope: Scope, receive: Receive, send: Send, body: deque[bytes]) -> None:
        """Pass a complete request on."""
        if self.places.in_progress >= self.settings.max_requests:
            error = too_busy(self.places.in_progress)
            return await answer_error(Request(scope), error)(scope, receive, send)

        async def replay() -> Message:
            if not body:
                return await receive()
            chunk = body.popleft()
            return {"type": "http.request", "body": chunk, "more_body": bool(body)}

        self.places.in_progress += 1
        try:
            await self.app(scope, replay, send)
        finally:
            self.places.in_progress -= 1


def resolve(future: asyncio.Future[None]) -> None:
    """Resolve a future, unless it is resolved or cancelled."""
    if not future.done():
        future.set_result(None)

"""Access to the servers that this package starts: one ASGI middleware for `serve`, `teach` and `demo`.

The browser of a user runs the pages of all sites, and each of them can send requests to a server of this machine. The
middleware refuses such requests before a byte of their body is read:

- A page whose host name resolves to this machine ("DNS rebinding") counts as a page of the server for the browser. Its
  requests have this name in the header `Host`.
- Browsers name the sender of a request in `Sec-Fetch-Site`, or at least the page of a request that may change something
  in `Origin`. No page can change these headers.
- A page that shows the server in a frame could take the clicks of the user.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from ..utils.text import one_line

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_FRAMES = "frame-ancestors 'self'"


class Guard:
    """Middleware that refuses requests of other sites and requests without the token, with `{"error": "..."}`.

    Args:
        app: The application.
        host: Address on which the server listens.
        token: Secret that a request must have, as in `sent_token`; "" for none. Requests with it may have any sender.
        is_open: Whether a path needs no token.
        framed: Whether other sites may show the pages in a frame.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        token: str = "",
        is_open: Callable[[str], bool] = lambda path: False,
        framed: bool = False,
    ) -> None:
        self.app = app
        self.host = host
        self.token = token
        self.is_open = is_open
        self.framed = framed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        status, problem = self.check(scope)
        if not problem:
            return await self.app(scope, receive, send if self.framed else without_frames(send))
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        challenge = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        await JSONResponse({"error": one_line(problem)}, status, challenge)(scope, receive, send)

    def check(self, scope: Scope) -> tuple[int, str]:
        """Check a request; returns the status and the reason of a refusal, which is "" if the request is allowed."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = re.sub(r":\d+$", "", host).strip("[]").lower()
        if is_loopback(self.host) and name not in (*LOOPBACK, self.host):
            return 403, f"expected a request to {' or '.join(LOOPBACK)}, got one to {host!r}"
        sent = sent_token(headers.get("authorization", ""))
        if self.token and hmac.compare_digest(sent, self.token.encode()):
            return 200, ""
        if self.is_foreign(scope, headers):
            page = headers.get("origin", "another site")
            return 403, f"expected a request of this server's own page, got one of a page of {page}"
        if self.token and not self.is_open(scope["path"]):
            return 401, "expected the header Authorization: Bearer TOKEN"
        return 200, ""

    def is_foreign(self, scope: Scope, headers: Headers) -> bool:
        """Whether a page of another site sent a request. A link to a page is none, and nor is a frame if allowed."""
        site = headers.get("sec-fetch-site")
        if site is None:  # from a program, from an old browser, or to a server without TLS on another machine
            origin = headers.get("origin")  # "null" in a sandbox of a page
            return origin is not None and origin.partition("://")[2] != headers.get("host")
        if site in ("same-origin", "none"):
            return False
        reads = scope.get("method") in ("GET", "HEAD")
        opens = headers.get("sec-fetch-mode") == "navigate"
        in_window = headers.get("sec-fetch-dest") == "document"
        return not (reads and opens and (in_window or self.framed))


def is_loopback(host: str) -> bool:
    """Whether a server at an address is reached from this machine only."""
    try:
        return host in LOOPBACK or ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def sent_token(header: str) -> bytes:
    """Token in a header `Authorization: Bearer TOKEN`, or the password of `Basic`, which Label Studio sends."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.encode()
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def without_frames(send: Send) -> Send:
    """Add the header to responses by which browsers show them in no frame of another site."""

    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(raw=message.setdefault("headers", [])).append("content-security-policy", NO_FRAMES)
        await send(message)

    return send_with_header

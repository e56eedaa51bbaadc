"""Access to the server: names of this machine, the token, and pages of other sites.

The middleware `Limits` checks it before a byte of the body is read. The routes declare the token, so that the OpenAPI
schema and the page `/docs` know it.
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import Any

from fastapi import Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import Scope

from .settings import HEALTH, LOOPBACK, PAGE_FILES, PAGES, Settings

BEARER = HTTPBearer(auto_error=False, scheme_name="token", description="The token of the server.")
BASIC = HTTPBasic(auto_error=False, scheme_name="password", description="Any user, and the token as the password.")


def declared_token(settings: Settings) -> list[Any]:
    """Dependencies that declare how a request sends the token; none without a token."""
    return [Depends(BEARER), Depends(BASIC)] if settings.token else []


def check_access(scope: Scope, settings: Settings) -> HTTPException | None:
    """Check a request: the name of the server, the token, and that no other site sends it.

    Returns:
        The error of a request that is refused, else None.
    """
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    if settings.host in LOOPBACK and name not in LOOPBACK:
        # A web page could reach the server under another name of this machine
        return HTTPException(400, f"expected a request to {' or '.join(LOOPBACK)}, got one to {host!r}")
    sent = sent_token(headers.get("authorization", ""))
    if settings.token and not is_open(scope["path"]) and not hmac.compare_digest(sent, settings.token.encode()):
        challenge = {"WWW-Authenticate": "Bearer"}
        return HTTPException(401, "expected the header Authorization: Bearer TOKEN", challenge)
    origin = headers.get("origin")
    other_site = origin is not None and origin.partition("://")[2] != host  # "null" in a sandbox of a page
    if settings.learn and not settings.token and other_site:  # a form needs no CORS
        return HTTPException(403, f"pages of {origin} may not change the model; use a token")
    return None


def is_open(path: str) -> bool:
    """Whether a path needs no token: the state of the server, and the page of the interface with its files."""
    return path == HEALTH or path in PAGES or path.startswith(f"{PAGE_FILES}/")


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

"""Token of the server, as the routes declare it, so that the OpenAPI schema and the page `/docs` know it.

The middleware `Guard` checks it before a byte of the body is read.
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends
from fastapi.security import HTTPBasic, HTTPBearer

from .settings import HEALTH, PAGE_FILES, PAGES, Settings

BEARER = HTTPBearer(auto_error=False, scheme_name="token", description="The token of the server.")
BASIC = HTTPBasic(auto_error=False, scheme_name="password", description="Any user, and the token as the password.")


def declared_token(settings: Settings) -> list[Any]:
    """Dependencies that declare how a request sends the token; none without a token."""
    return [Depends(BEARER), Depends(BASIC)] if settings.token else []


def is_open(path: str) -> bool:
    """Whether a path needs no token: the state of the server, and the page of the interface with its files."""
    return path == HEALTH or path in PAGES or path.startswith(f"{PAGE_FILES}/")

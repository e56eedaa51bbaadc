"""Errors of the server: every one is answered with `{"error": "..."}`."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from ...models.folder import CHANGED
from ...utils.errors import UserError
from ...utils.text import one_line
from .schemas import ErrorAnswer
from .settings import MAX_BODY

UNKNOWN = "unknown"  # codes of `UserError`
TOO_LARGE = "serve.too_large"
STATUS = {UNKNOWN: 404, CHANGED: 409, TOO_LARGE: 413}  # of errors with these codes; of others 422
DESCRIPTIONS = {
    400: "The request is damaged.",
    401: "The token is missing or wrong.",
    403: "A page of another site sent the request without the token, or the request names another host.",
    404: "The id or the class is unknown.",
    408: "The request did not arrive in time.",
    409: "Another program has changed the model folder.",
    413: "The request has too many bytes, or its images have too many pixels.",
    422: "The request has a wrong or unknown parameter, or the model cannot answer it.",
    429: "Too many requests are in progress.",
    503: "The server is ending.",
}
CLOSE = {"Connection": "close"}


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declaration of errors for the OpenAPI schema."""
    return {status: {"model": ErrorAnswer, "description": DESCRIPTIONS[status]} for status in statuses}


def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an exception with `{"error": "..."}`."""
    if isinstance(error, StarletteHTTPException):
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers |= allowed_methods(request)
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers)
    if isinstance(error, RequestValidationError):
        return JSONResponse({"error": one_line(first_problem(error))}, 422)
    code = error.code if isinstance(error, UserError) else ""
    return JSONResponse({"error": one_line(str(error))}, STATUS.get(code, 422))


def allowed_methods(request: Request) -> dict[str, str]:
    """Header with all methods of a path; Starlette names those of one function only."""
    operations = request.app.openapi()["paths"].get(request.url.path, {}) if "app" in request.scope else {}
    return {"Allow": ", ".join(sorted(map(str.upper, operations)))} if operations else {}


def first_problem(error: RequestValidationError) -> str:
    """Place and text of the first problem of a request."""
    problem = error.errors()[0]
    if problem["loc"] == ("body",):  # also JSON without its header, which curl does not send by itself
        return "body: expected a JSON object, and the header Content-Type: application/json"
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def too_large() -> HTTPException:
    """Create the error for a request with more than `MAX_BODY` bytes."""
    return HTTPException(413, f"expected at most {MAX_BODY >> 20} MB in a request; send several requests")


def too_late(seconds: float) -> HTTPException:
    """Create the error for a request that is not complete after some seconds."""
    return HTTPException(408, f"expected a complete request within {seconds:g} s; send smaller requests", CLOSE)


def too_many_unfinished() -> HTTPException:
    """Create the error for a request that is dropped, because others are waiting."""
    return HTTPException(408, "too many requests are not complete; send fewer at once", CLOSE)


def too_busy(requests: int) -> HTTPException:
    """Create the error for a request to a server that answers many."""
    return HTTPException(429, f"{requests} requests are in flight; try again later", {"Retry-After": "1"})


def ending() -> HTTPException:
    """Create the error for a request to a server that is ending."""
    return HTTPException(503, "the server is ending; send the request again", CLOSE)

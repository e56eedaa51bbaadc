"""Requests that every server refuses, by the headers that browsers and programs send."""

import asyncio
import base64

import pytest

pytest.importorskip("starlette", reason="the extra `serve` or `demo` is not installed")

from trainers.hegraph.apps.access import Guard

TOKEN = "a-long-secret-of-the-tests"
FETCH = {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
FRAME = LINK | {"sec-fetch-dest": "iframe"}
OTHER = {"origin": "http://other.example"}


async def answer(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"read"})


def sent(headers: dict, method: str = "GET", kind: str = "http", path: str = "/", **options: object) -> list[dict]:
    """Messages of the answer to a request at a server of this machine."""
    pairs = [(name.encode(), value.encode()) for name, value in ({"host": "localhost:7860"} | headers).items()]
    scope = {"type": kind, "method": method, "path": path, "headers": pairs}
    messages = list[dict]()

    async def receive() -> dict:
        raise AssertionError("the body of a refused request is not read")

    async def send(message: dict) -> None:
        messages.append(message)

    asyncio.run(Guard(answer, **{"host": "127.0.0.1"} | options)(scope, receive, send))
    return messages


@pytest.mark.parametrize(("headers", "method", "status"), [
    ({}, "POST", 200),
    ({"origin": "http://localhost:7860"}, "POST", 200),
    ({"origin": "https://localhost:7860"}, "POST", 200),  # behind a proxy with TLS
    ({"origin": "http://localhost:9000"}, "POST", 403),
    ({"origin": "null"}, "POST", 403),
    (OTHER, "GET", 403),
    ({"sec-fetch-site": "same-origin", "origin": "https://photos.example"}, "POST", 200),  # a proxy changed the host
    ({"sec-fetch-site": "none"}, "GET", 200),
    ({"sec-fetch-site": "same-site"} | FETCH, "GET", 403),
    ({"sec-fetch-site": "cross-site", "origin": "http://localhost:7860"} | FETCH, "POST", 403),
    (LINK, "GET", 200),
    (LINK, "POST", 403),
    (FRAME, "GET", 403),
])  # fmt: skip
def test_pages_of_other_sites_are_refused(headers, method, status):
    start, body = sent(headers, method)
    assert start["status"] == status
    assert body["body"] == b"read" or body["body"].startswith(b'{"error":"expected a request of this server')


@pytest.mark.parametrize(("server", "host", "status"), [
    ("127.0.0.1", "evil.example", 403), ("127.0.0.2", "evil.example", 403), ("127.0.0.2", "127.0.0.2", 200),
    ("::1", "[::1]:80", 200), ("localhost", "LOCALHOST", 200), ("0.0.0.0", "evil.example", 200),
])  # fmt: skip
def test_server_of_this_machine_refuses_other_names(server, host, status):
    start, _ = sent({"host": host}, host=server)
    assert start["status"] == status


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 401), (OTHER, 403),
    ({"authorization": f"Bearer {TOKEN}"} | OTHER, 200),
    ({"authorization": f"Basic {base64.b64encode(f'any:{TOKEN}'.encode()).decode()}"}, 200),
    ({"authorization": "Basic ?"}, 401), ({"authorization": TOKEN}, 401),
])  # fmt: skip
def test_token_stands_for_the_page_of_the_server(headers, status):
    start, _ = sent(headers, token=TOKEN)
    assert start["status"] == status


def test_open_path_needs_no_token_but_its_own_page():
    is_open = "/docs".__eq__
    assert [sent(each, path="/docs", token=TOKEN, is_open=is_open)[0]["status"] for each in ({}, OTHER)] == [200, 403]


def test_only_a_space_is_shown_in_frames():
    [start, _] = sent({})
    assert (b"content-security-policy", b"frame-ancestors 'self'") in start["headers"]
    [start, _] = sent(FRAME, framed=True)
    assert (start["status"], start["headers"]) == (200, [])
    assert sent({"sec-fetch-site": "cross-site"} | FETCH, framed=True)[0]["status"] == 403


def test_foreign_websocket_is_closed():
    assert sent(OTHER, kind="websocket") == [{"type": "websocket.close", "code": 1008}]

"""A chat endpoint that does what it is told, and counts what it was asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

KEY = "sk-do-not-tell-0123456789abcdef"
KEY_VARIABLE = "FAKE_ENDPOINT_KEY"
URL = "http://endpoint:8000/v1"


def good_sentence(name: str, number: int) -> str:
    """A sentence that passes every check, and begins as no other does."""
    return f"Row {number} of crooked stones runs along the {name} on a bright day."


class FakeEndpoint:
    """Answers each request with the next of its `replies`, and with good sentences when they are used up.

    A reply takes the endpoint and the request, and returns a response of the library `http`.

    Attributes:
        prompts: Every message that came, in order.
        batches: The classes that each asked for.
        requests, headers: The body and the headers, in lower case, of every request.
    """

    number = 0  # of the last good sentence

    def __init__(self, http: Any) -> None:
        self.http = http
        self.replies: list[Callable] = []
        self.prompts: list[str] = []
        self.batches: list[list[str]] = []
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []

    def answer(self, request: Any) -> Any:
        self.requests.append(json.loads(request.content))
        self.headers.append(dict(request.headers))
        self.prompts.append(self.requests[-1]["messages"][-1]["content"])
        wanted = self.prompts[-1].partition("classes to describe:")[2]
        self.batches.append(re.findall(r"^- (.+?)(?: \(a sentence.*\))?(?::.*)?$", wanted, re.M))
        return (self.replies.pop(0) if self.replies else but())(self, request)

    def sentences(self, name: str, count: int) -> list[str]:
        self.number += count
        return [good_sentence(name, self.number - i) for i in range(count)]


def raw(body: str, status: int = 200, kind: str = "application/json") -> Callable:
    """A reply that may be anything."""
    return lambda endpoint, request: endpoint.http.Response(status, text=body, headers={"content-type": kind})


def says(text: str | None, end: str = "stop") -> Callable:
    """A reply of the model with this text, and why it ends there."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": end}
    return raw(json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}))


def fails(status: int, message: str = "no luck") -> Callable:
    """A reply with an error status."""
    return raw(json.dumps({"error": {"message": message}}), status)


def breaks(name: str) -> Callable:
    """No reply, but the error of this name, as of a connection that breaks."""

    def reply(endpoint: FakeEndpoint, request: Any) -> None:
        raise getattr(endpoint.http, name)("Connection refused", request=request)

    return reply


def but(**sentences: Sequence[str] | None) -> Callable:
    """As many good sentences for each class as are asked for, but for some classes others, or none at all."""

    def reply(endpoint: FakeEndpoint, request: Any) -> Any:
        names, prompt = endpoint.batches[-1], endpoint.prompts[-1]
        each = re.search(r"at the end of this message, (\d+) for each", prompt)[1]
        wanted = dict.fromkeys(names, each) | dict(re.findall(r"^- (.+?)(?: \(.*\))?: (\d+) more", prompt, re.M))
        good = {name: endpoint.sentences(name, int(wanted[name])) for name in names}
        table = {name: sentences.get(name.replace(" ", "_"), good[name]) for name in names}
        return says(json.dumps({name: found for name, found in table.items() if found is not None}))(endpoint, request)

    return reply

"""A chat endpoint on this machine that does what it is told, and counts what it was asked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler

KEY = "sk-do-not-tell-0123456789abcdef"
KEY_VARIABLE = "FAKE_ENDPOINT_KEY"

SUBJECTS = "Crooked Pale Wet Narrow Dense Faded Round Torn Bright Hollow Steep Soft".split()
THINGS = "ridges stripes branches shadows edges stains cracks leaves tracks ropes tiles".split()
PLACES = "at dawn/in mist/on gravel/under glass/by water/near walls/after rain/in snow/at dusk".split("/")


def good_sentence(name: str, number: int) -> str:
    """A sentence that passes every check, for a number from 0 to 10,000."""
    first, second = SUBJECTS[number % 12], THINGS[number % 11]
    place, cells = PLACES[number % 9], number // (12 * 11 * 9) + 2
    return f"{first} {second} {place} run through the {name} in about {cells} uneven rows."


class FakeEndpoint:
    """Answers each request with the next of its `replies`, and with good sentences when they are used up.

    A reply takes (handler, asked classes, prompt); it sends a response, or does not.

    Attributes:
        prompts: Every message that came, in order.
        batches: The classes that each asked for.
        requests, headers: The body and the headers, in lower case, of every request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.replies: list[Callable] = []
        self.prompts: list[str] = []
        self.batches: list[list[str]] = []
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()  # ends every stall
        self.number = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(json.loads(handler.rfile.read(int(handler.headers["content-length"]))))
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        self.prompts.append(prompt := self.requests[-1]["messages"][-1]["content"])
        wanted = prompt.partition("classes to describe:")[2]
        self.batches.append(re.findall(r"^- (.+?)(?: \(a sentence.*\))?(?::.*)?$", wanted, re.M))
        reply = self.replies.pop(0) if self.replies else but()
        reply(handler, self.batches[-1], prompt)

    def sentences(self, name: str, count: int) -> list[str]:
        self.number += count
        return [good_sentence(name, self.number - i) for i in range(count)]


def send(handler: BaseHTTPRequestHandler, status: int, body: str, **headers: str) -> None:
    content = body.encode()
    handler.send_response(status)
    for name, value in ({"content-type": "application/json"} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def says(text: str | None, end: str = "stop") -> Callable:
    """A reply of the model with this text, and why it ends there."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": end}
    return raw(json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}))


def fails(status: int, message: str = "no luck", **headers: str) -> Callable:
    """A reply with an error status."""
    body = json.dumps({"error": {"message": message}})
    return lambda handler, names, prompt: send(handler, status, body, **headers)


def raw(body: str, **headers: str) -> Callable:
    """A reply with status 200 that may be anything."""
    return lambda handler, names, prompt: send(handler, 200, body, **headers)


def but(**sentences: list[str] | None) -> Callable:
    """As many good sentences for each class as are asked for, but for some classes others, or none at all."""

    def reply(handler: BaseHTTPRequestHandler, names: Sequence[str], prompt: str) -> None:
        each = re.search(r"at the end of this message, (\d+) for each", prompt)[1]
        wanted = dict.fromkeys(names, each) | dict(re.findall(r"^- (.+?)(?: \(.*\))?: (\d+) more", prompt, re.M))
        good = {name: handler.server.endpoint.sentences(name, int(wanted[name])) for name in names}
        table = {name: sentences.get(name.replace(" ", "_"), good[name]) for name in names}
        says(json.dumps({name: found for name, found in table.items() if found is not None}))(handler, names, prompt)

    return reply


def stalls(handler: BaseHTTPRequestHandler, names: Sequence[str], prompt: str) -> None:
    """Takes the request and says nothing."""
    handler.server.endpoint.released.wait(60)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.endpoint.answer(self)
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass

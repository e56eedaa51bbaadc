"""Folders, tables and archives of images, and a faulty HTTP server."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from trainers.hegraph import UserError, load_dataset
from trainers.hegraph.datasets import download
from trainers.hegraph.datasets.base import Dataset

# --- the server

SHORT_TIMEOUTS = (60, 0.4)  # seconds to wait for a connection, and for the next byte
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append((path, self.headers.get("Range")))
        answers = self.server.answers.get(path, [status(404)])
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def begin(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str, *answers: Answer) -> str:
        """Address with these answers in order; the last answer repeats."""
        self.answers[path] = list(answers)
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


def serve(body: bytes, *, stop_at: int | None = None, stall: bool = False, **headers: object) -> Answer:
    """Answer with `body`, or with the requested range if If-Range matches.

    Args:
        body: The file.
        stop_at: Position in the file at which the connection ends.
        stall: Stop sending there, without closing the connection.
        headers: Additional or changed headers; None omits one. The default ETag is "1".
    """

    def answer(handler: Handler) -> None:
        known = {"ETag": '"1"', "Content_Type": "application/octet-stream", **headers}
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        valid = handler.headers.get("If-Range") in (None, known["ETag"], known.get("Last_Modified"))
        start = int(asked[1]) if asked and valid else 0
        sent = {"Content_Length": len(body) - start, **known}
        if start:
            sent["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.begin(206 if start else 200, **{name: value for name, value in sent.items() if value is not None})
        handler.wfile.write(body[start : len(body) if stop_at is None else max(start, stop_at)])
        if stall:
            fall_silent(handler)

    return answer


def fall_silent(handler: Handler) -> None:
    """Send nothing until the client closes the connection."""
    with suppress(OSError):
        handler.connection.recv(1)


def before_silence(answer: Answer) -> Answer:
    """Give an answer, after which clients do not wait long for the next one."""

    def give(handler: Handler) -> None:
        download.TIMEOUTS = SHORT_TIMEOUTS  # until the end of the test
        answer(handler)

    return give


def status(code: int) -> Answer:
    return lambda handler: handler.begin(code, Content_Length=0)


# --- folders and archives


def make(root: Path, *files: str) -> Path:
    """Write empty files into a folder."""
    for file in files:
        write(root / file, "")
    return root


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tar_with(*members: tuple, mode: str = "w") -> bytes:
    """Tar file with members of a name and optional content, type and link target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as packed:
        for member in members:
            name, content, kind, link = (*member, *(b"", tarfile.REGTYPE, "")[len(member) - 1 :])
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(content), link
            packed.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def picture(red: int, green: int = 60, blue: int = 60) -> bytes:
    """A PNG of one colour."""
    content = io.BytesIO()
    Image.new("RGB", (12, 12), (red, green, blue)).save(content, "PNG")
    return content.getvalue()


# --- own images


def load(root: object) -> Dataset:
    return load_dataset("ImageFolder", str(root))


def refused(root: object, words: str) -> str:
    """Return the error for images that cannot be loaded, which matches `words`."""
    with pytest.raises(UserError, match=words) as caught:
        load(root)
    return str(caught.value)


def counts(dataset: Dataset) -> list[int]:
    """Numbers of train, val and test images."""
    return [len(items) for items in dataset.splits.values()]


def rows_of(dataset: Dataset) -> dict[str, list[tuple]]:
    return {split: [tuple(item) for item in items] for split, items in dataset.splits.items()}

"""A HTTP server that stalls, breaks off, lies and changes its mind, and the archives that it serves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from trainers.hegraph.datasets.download import LOCK
from trainers.hegraph.datasets.registry import Source

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(350_000)
HALF = len(BODY) // 2
PAGE = b"  \n<!DOCTYPE html><html><title>Quota exceeded</title></html>"
FILES = {"set/images/a/1.jpg": b"1", "set/images/b/2.jpg": BODY, "set/labels.txt": b"l", "set/other.txt": b"o"}
UNPACK = {"images": "images", "labels.txt": "names.txt"}
UNPACKED = {"images", "images/a", "images/a/1.jpg", "images/b", "images/b/2.jpg", "names.txt"}

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append((path, self.headers.get("Range")))
        answers = self.server.answers.get(path, [status(404)])
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client went away, as some tests want
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *arguments):
        pass

    def begin(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.released = threading.Event()  # ends every silence when the test is over

    def url(self, path: str, *answers: Answer) -> str:
        """An address that gives these answers one after the other, the last for ever."""
        self.answers[path] = list(answers)
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


def serve(body: bytes, *, stop_at: int | None = None, stall: bool = False, **headers: object) -> Answer:
    """Answers with `body`, or with the part of it that a Range asks for if If-Range fits.

    Args:
        body: The file.
        stop_at: The position in the file at which the connection ends.
        stall: It does not end there, it falls silent.
        headers: Further ones, or others; None sends none. ETag is "1" without it.
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
            handler.wfile.flush()
            fall_silent(handler)

    return answer


def fall_silent(handler: Handler) -> None:
    """Sends nothing more until the test is over, or for longer than any client should wait."""
    handler.server.released.wait(20)


def status(code: int) -> Answer:
    return lambda handler: handler.begin(code, Content_Length=0)


def one_file(*urls: str, file: str = "f.bin", **known: object) -> Source:
    return Source(file, urls, **known)


def archive(*urls: str, file: str = "x.archive", unpack: dict[str, str] = UNPACK, **known: object) -> Source:
    return Source(file, urls, unpack=unpack, **known)


def sum_of(body: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"


def names_in(folder: Path) -> set[str]:
    """What is below a folder, without the file of the lock."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != LOCK}


def pack(kind: str, files: dict[str, bytes]) -> bytes:
    """A zip, tar or tar.gz with these files."""
    if kind != "zip":
        return tar_with(*files.items(), mode="w:gz" if kind == "tar.gz" else "w")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return buffer.getvalue()


def tar_with(*members: tuple, mode: str = "w") -> bytes:
    """A tar with members of a name and, as far as they are given, content, type and target of a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as packed:
        for member in members:
            name, content, kind, link = (*member, *(b"", tarfile.REGTYPE, "")[len(member) - 1 :])
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(content), link
            packed.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()

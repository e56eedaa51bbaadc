"""Requests to the HTTP server, and the command in a process. Skips test files that import it without its packages."""

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

for package in ("fastapi_offline", "httpx", "prometheus_fastapi_instrumentator"):
    pytest.importorskip(package, reason="the extras `serve` and `dev` are not installed")

from fastapi.testclient import TestClient  # noqa: E402
from httpx import Client, TransportError, get  # noqa: E402

from tools.free_ports import free_port  # noqa: E402
from trainers.hegraph.apps.serve.app import create_app  # noqa: E402
from trainers.hegraph.apps.serve.settings import Settings  # noqa: E402

CHECKOUT = Path(__file__).parents[3]


def encoded(*images: bytes, **fields: list) -> dict:
    """JSON request with images, which have one value of each field."""
    rows = [{"name": str(number), "data": base64.b64encode(data).decode()} for number, data in enumerate(images)]
    return {"images": [row | {key: fields[key][k] for key in fields} for k, row in enumerate(rows)]}


def form(*paths: Path) -> list[tuple]:
    """Form with files."""
    return [("files", (path.name, path.read_bytes())) for path in paths]


def client_of(model: Path, url: str = "http://127.0.0.1", **settings: object) -> TestClient:
    """Client of a server of a model folder in this process."""
    return TestClient(create_app(Settings(model=model, **settings)), url)


@contextmanager
def serving(*words: object, wait: bool = True, python: Path = Path(sys.executable)) -> Iterator[SimpleNamespace]:
    """Context with `serve` in a process, and a client; the process is interrupted at the end, if it still runs."""
    port = free_port()
    command = [python, "-m", "trainers.hegraph", "serve", *map(str, words), "--port", str(port)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(1200 if wait else 0):  # at most 4 minutes
                try:
                    get(f"{address}/health")
                    break
                except TransportError:
                    assert process.poll() is None, process.stderr.read()
                    time.sleep(0.2)
            with Client(base_url=address, timeout=240) as client:
                yield SimpleNamespace(client=client, process=process)
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGINT)
        process.wait(240)

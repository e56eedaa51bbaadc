"""The HTTP server for tests of the downloader."""

import threading
from collections.abc import Iterator

import pytest
from dataset_files import Server

from trainers.hegraph.datasets import download


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in (("TIMEOUTS", (60, 60)), ("RETRIES", 2), ("PAUSE", 0.01)):
        monkeypatch.setattr(download, name, value)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield server
        server.shutdown()

"""The fake endpoint, running."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest
from fake_endpoint import KEY, KEY_VARIABLE, FakeEndpoint, Handler


@pytest.fixture
def endpoint(monkeypatch, caplog) -> Iterator[FakeEndpoint]:
    """The endpoint, its key in the environment, and no waiting beyond what it asks for. Everything is logged, so that a
    test that looks for the key sees all that any library says.
    """
    pytest.importorskip("openai", reason="the extra `describe` is not installed: pip install openai")
    from openai import _base_client

    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(_base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(_base_client, "MAX_RETRY_DELAY", 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.endpoint = FakeEndpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server.endpoint
    server.endpoint.released.set()
    server.shutdown()
    server.server_close()

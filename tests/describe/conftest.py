"""The fake endpoint, running."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
from fake_endpoint import KEY, KEY_VARIABLE, FakeEndpoint, Handler, QuietServer


@pytest.fixture
def endpoint(monkeypatch) -> Iterator[FakeEndpoint]:
    """The endpoint, with the key for it in the environment and no waiting beyond what it asks for."""
    pytest.importorskip("openai", reason="the extra `describe` is not installed: pip install openai")
    from openai import _base_client

    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(_base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(_base_client, "MAX_RETRY_DELAY", 0.01)
    server = QuietServer(("127.0.0.1", 0), Handler)
    server.endpoint = FakeEndpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server.endpoint
    server.endpoint.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def everything_is_logged(caplog) -> None:
    """So that a test that looks for the key sees all that any library says."""
    caplog.set_level(logging.DEBUG)

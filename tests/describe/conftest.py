"""The fake endpoint, in place of the network."""

from __future__ import annotations

import logging
from functools import partial

import pytest
from fake_endpoint import KEY, KEY_VARIABLE, FakeEndpoint


@pytest.fixture
def endpoint(monkeypatch, caplog) -> FakeEndpoint:
    """The endpoint, its key in the environment, and hardly any waiting. Everything is logged, so that a test that looks
    for the key sees all that any library says.
    """
    openai = pytest.importorskip("openai", reason="the extra `describe` is not installed: pip install openai")
    http = getattr(openai._base_client, "httpx2", None) or openai._base_client.httpx  # by its version
    endpoint = FakeEndpoint(http)
    client = http.Client(transport=http.MockTransport(endpoint.answer))
    monkeypatch.setattr(openai, "OpenAI", partial(openai.OpenAI, http_client=client))
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    caplog.set_level(logging.DEBUG)
    return endpoint

"""Runtime of the page, from npm."""

from pathlib import Path

import pytest
from hosting import npm_runtime


@pytest.fixture(scope="session")
def runtime() -> Path:
    """Archive of onnxruntime-web."""
    return npm_runtime()

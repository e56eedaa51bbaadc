"""Images of digits in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.hegraph.datasets.digits import open_digit


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of five digits, one of them in a folder of its own."""
    for row, name in enumerate(("a.png", "b c.png", "d/e.png", "f.png", "g.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        open_digit(f"digits/{row:04d}").save(path)
    return tmp_path / "images"

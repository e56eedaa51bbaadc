"""A run on the digits with mini, and images of digits in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainers.hegraph.datasets.digits import open_digit


@pytest.fixture
def write_digit() -> Callable[[Path, int], Path]:
    """Function of a path and a row: writes that scan."""

    def write(path: Path, row: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            open_digit(f"digits/{row:04d}").save(file, format="PNG")
        return path

    return write


@pytest.fixture
def images(tmp_path: Path, write_digit: Callable[[Path, int], Path]) -> Path:
    """A folder of five digits, one of them in a folder of its own."""
    for name, row in {"a.png": 0, "b c.png": 1, "d/e.png": 2, "f.png": 3, "g.png": 4}.items():
        write_digit(tmp_path / "images" / name, row)
    return tmp_path / "images"

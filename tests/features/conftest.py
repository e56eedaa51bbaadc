"""A function that changes tensor files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from trainers.hegraph.utils.reading import read_metadata


@pytest.fixture(scope="session")
def rewrite() -> Callable[[Path, Callable], Path]:
    """Function of a `.safetensors` file and a function that changes its tensors and metadata in place."""

    def changed(path: Path, change: Callable[[dict, dict], object]) -> Path:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = dict(read_metadata(file))
        change(tensors, metadata)
        save_file(tensors, path, metadata)
        return path

    return changed

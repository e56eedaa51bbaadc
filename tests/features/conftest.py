"""A function that changes tensor files, and the calls of backbones."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from trainers.hegraph import Backbone
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


class Calls(list):
    """Numbers of images or prompts in the calls of the backbone, with an interrupt after `most` calls."""

    most = math.inf


@pytest.fixture
def encoded(monkeypatch) -> Calls:
    calls = Calls()

    def counting(real: Callable) -> Callable:
        def call(self: Backbone, batch: Sequence, **more):
            calls.append(len(batch))
            if len(calls) > calls.most:
                raise KeyboardInterrupt
            return real(self, batch, **more)

        return call

    for name in ("encode_images", "encode_text"):
        monkeypatch.setattr(Backbone, name, counting(getattr(Backbone, name)))
    return calls

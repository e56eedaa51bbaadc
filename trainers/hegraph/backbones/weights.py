"""Reads weights files: `.safetensors`, PyTorch state dicts and TorchScript archives. No code in a file is ever run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .torchscript import is_torchscript, read_torchscript

PARALLEL = "module."  # what DataParallel puts before the name of every weight


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, by their names.

    Training checkpoints are understood that hold their weights under "state_dict", or whose names begin with "module.".

    Raises:
        Exception: Whatever the bytes of a damaged file lead torch and safetensors to. `ValueError` if the file holds
            something else than weights.
    """
    if is_torchscript(path):
        return read_torchscript(path)
    content: Any = (
        load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    )
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise ValueError("it holds no state dict")
    if str(next(iter(state))).startswith(PARALLEL):
        state = {name.removeprefix(PARALLEL): value for name, value in state.items()}
    return state

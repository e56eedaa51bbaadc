"""Reads weights files: `.safetensors`, PyTorch state dicts and OpenAI's archives. No code in a file is ever run.

OpenAI's archives are TorchScript files. `torch.jit.load` would run the code in them; here their tensors alone are read.
"""

from __future__ import annotations

import pickle
import re
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..utils.reading import check_regular

PARALLEL = "module."  # what DataParallel puts before the name of every weight
POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")
# Integers beside the weights, by which OpenAI's archives are told from others
OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}
STORAGES = {"HalfStorage", "FloatStorage", "DoubleStorage", "IntStorage", "LongStorage", "BoolStorage"}


def load_weights(model: Any, path: Path) -> bool:
    """Loads a weights file into a model, as open_clip does but never with position embeddings of another size.

    Returns whether the weights are those of one of OpenAI's archives. Raises as `read_weights`, and ValueError or
    RuntimeError if they are of another model.
    """
    state, own = read_weights(path), model.state_dict()
    openai = state.keys() >= OPENAI_MARKS
    if openai:
        state = {key: value for key, value in state.items() if key not in OPENAI_MARKS}
    for key in POSITIONS:  # open_clip would stretch them, and the features would be others
        expected = own.get(key, own.get(f"text.{key}"))
        if key in state and expected is not None and state[key].shape != expected.shape:
            raise ValueError(f"it is of another model: {key} is {list(state[key].shape)}, not {list(expected.shape)}")
    fits = {k: getattr(v, "shape", None) for k, v in state.items()} == {k: v.shape for k, v in own.items()}
    if fits or not all(isinstance(value, Tensor) for value in state.values()):
        model.load_state_dict(state)  # of anything but tensors, its error names the weights that are missing
        return openai
    # The names are those of an older open_clip or of another library, which open_clip converts as it reads a file. That
    # is a `.safetensors` file, never the user's: of any other, it would run the code under some versions of torch
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({name: value.clone().contiguous() for name, value in state.items()}, file)  # no shared memory
        open_clip.load_checkpoint(model, str(file))
    return openai


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, by their names; also those of a training checkpoint, under "state_dict" or with names that
    begin with "module.". UserError if it is no regular file, and whatever the bytes of a damaged one lead torch to.
    """
    check_regular(path)
    if (archived := _read_torchscript(path)) is not None:
        return archived
    content: Any = (
        load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    )
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise ValueError("it holds no state dict")
    if str(next(iter(state))).startswith(PARALLEL):
        state = {name.removeprefix(PARALLEL): value for name, value in state.items()}
    return state


def _read_torchscript(path: Path) -> dict[str, Tensor] | None:
    """The weights in a TorchScript archive, by their names, and OpenAI's marks if it has them; None if it is none."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(name.endswith("/constants.pkl") for name in names):
            return None
        [data] = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        return _ArchiveReader(archive, data).load().tensors()


class _Module:
    """Stands for every class in an archive: it holds the attributes, and none of the code."""

    # The pickle of a module without attributes sets none, and unpickling calls no __init__
    attributes: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All tensors of this module and the modules inside it, by their names with `prefix` before them."""
        found: dict[str, Tensor] = {}
        for name, value in self.attributes.items():
            if isinstance(value, _Module):
                found.update(value.tensors(f"{prefix}{name}."))
            elif isinstance(value, Tensor) and name != "attn_mask":  # the mask is no weight, and in no state dict
                found[prefix + name] = value
            elif not prefix and name in OPENAI_MARKS:
                found[name] = torch.as_tensor(value)
        return found


class _ArchiveReader(pickle.Unpickler):
    """Unpickles modules, tensors and lists, and refuses everything else."""

    def __init__(self, archive: zipfile.ZipFile, data: str) -> None:
        super().__init__(archive.open(data))
        self.archive, self.storages = archive, data[: -len(".pkl")]

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: storage.as_strided(shape, stride, offset)
        if module == "torch.jit._pickle":
            return lambda value, *_: value  # called with a list and the type of its elements
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return getattr(torch, name.removesuffix("Storage").lower())  # torch.half, ...
        raise pickle.UnpicklingError(f"it holds {module}.{name}")

    def persistent_load(self, storage: tuple) -> Tensor:
        _, dtype, key, _, _ = storage
        return torch.frombuffer(bytearray(self.archive.read(f"{self.storages}/{key}")), dtype=dtype)

"""Read weights files. Only tensors are read from them, so that they cannot choose code that runs.

A file is a `.safetensors` file, a PyTorch state dict or an archive of OpenAI. These archives are TorchScript files,
whose code `torch.jit.load` would run.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import UserError, first_line
from ...utils.reading import read_tensors, read_torch, reading

WHAT = "weights of a model"
# Integers beside the weights that mark OpenAI's archives
OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}
STORAGES = {"HalfStorage", "FloatStorage", "DoubleStorage", "IntStorage", "LongStorage", "BoolStorage"}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights in a file, by name.

    Reads training checkpoints too (key "state_dict", names with "module."), and archives of OpenAI with their marks.

    Raises:
        UserError: If the file is damaged or has no weights.
    """
    with reading(path, WHAT):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if any(name.endswith("/constants.pkl") for name in names):  # TorchScript
                    [data] = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
                    return _ArchiveReader(archive, data).load().tensors()
    content = read_tensors(path, WHAT)[0] if path.suffix == ".safetensors" else read_torch(path, WHAT)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise UserError(f"expected a state dict in {path}, got {type(content).__name__}")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def describe_failure(error: Exception) -> str:
    """Reason why weights cannot be loaded, on one line; of several missing weights, the first."""
    reason = first_line(error)
    if "Error(s) in loading state_dict" not in reason:
        return reason
    return "it is of another model: " + re.sub('", .*', '"', str(error).splitlines()[1].strip())


class _Module(dict):
    """Replacement of every class in an archive, with its attributes and without its code."""

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.update(attributes)

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All tensors of this module and its submodules, by name with a prefix."""
        tensors: dict[str, Tensor] = {}
        for name, value in self.items():
            if isinstance(value, _Module):
                tensors.update(value.tensors(f"{prefix}{name}."))
            elif isinstance(value, Tensor) and name != "attn_mask":  # not a weight
                tensors[prefix + name] = value
            elif not prefix and name in OPENAI_MARKS:
                tensors[name] = torch.as_tensor(value)
        return tensors


class _ArchiveReader(pickle.Unpickler):
    """Unpickle modules, tensors and lists, and reject everything else."""

    def __init__(self, archive: zipfile.ZipFile, data: str) -> None:
        super().__init__(archive.open(data))
        self.archive = archive
        self.storages = data[: -len(".pkl")]

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
        raise pickle.UnpicklingError(f"it contains {module}.{name}")

    def persistent_load(self, storage: tuple) -> Tensor:
        _, dtype, key, _, _ = storage
        return torch.frombuffer(bytearray(self.archive.read(f"{self.storages}/{key}")), dtype=dtype)

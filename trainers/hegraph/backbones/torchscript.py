"""OpenAI's CLIP archives. They are TorchScript files: their tensors are read, and their code is not run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Integers beside the weights, by which OpenAI's archives are told from others
OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}
STORAGES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The weights in a TorchScript archive, by their names, and OpenAI's marks if it has them.

    `torch.jit.load` would run the code of the archive, and is deprecated.

    Raises:
        pickle.UnpicklingError: If the archive holds other objects than modules, tensors and lists.
        Exception: Whatever the bytes of a damaged file lead to.
    """
    with zipfile.ZipFile(path) as archive:
        [data] = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
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
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}")

    def persistent_load(self, storage: tuple) -> Tensor:
        _, dtype, key, _, _ = storage
        return torch.frombuffer(bytearray(self.archive.read(f"{self.storages}/{key}")), dtype=dtype)

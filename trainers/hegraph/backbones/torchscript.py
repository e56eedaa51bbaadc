"""OpenAI's CLIP archives: TorchScript files, of which the tensors are read and the code is not run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}  # no weights, and only OpenAI's archives have them
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
    return zipfile.is_zipfile(path) and any(n.endswith("/constants.pkl") for n in zipfile.ZipFile(path).namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a TorchScript archive. `torch.jit.load` would run its code, and is deprecated."""
    with zipfile.ZipFile(path) as archive:
        [data] = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        return _ArchiveReader(archive, data).load().tensors()


class _Module:
    """Stands for every class of an archive: attributes only, nothing is run."""

    attributes: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        found = {}
        for name, value in self.attributes.items():
            if isinstance(value, _Module):
                found.update(value.tensors(f"{prefix}{name}."))
            elif isinstance(value, Tensor) and name != "attn_mask":  # no weight: a state dict leaves it out
                found[prefix + name] = value
            elif not prefix and name in OPENAI_MARKS:
                found[name] = torch.as_tensor(value)
        return found


class _ArchiveReader(pickle.Unpickler):
    """Knows modules, tensors and lists, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, data: str) -> None:
        super().__init__(archive.open(data))
        self.archive, self.storages = archive, data[: -len(".pkl")]

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: storage.as_strided(shape, stride, offset)
        if module == "torch.jit._pickle":
            return lambda value, *_: value  # a list, and its type
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}")

    def persistent_load(self, storage: tuple) -> Tensor:
        _, dtype, key, _, _ = storage
        return torch.frombuffer(bytearray(self.archive.read(f"{self.storages}/{key}")), dtype=dtype)

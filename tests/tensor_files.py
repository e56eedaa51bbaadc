"""Files of tensors of any type, whatever version of safetensors is installed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save, save_file
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """As `save_file` of safetensors, and as its newer versions write complex numbers, which older ones cannot.

    A complex number has the bytes of an integer of 64 bits, so it is written as one, and then the header is corrected.
    """
    complex_names = [name for name, tensor in tensors.items() if tensor.is_complex()]
    save_file(tensors | {name: tensors[name].view(torch.int64) for name in complex_names}, path, metadata)
    content = path.read_bytes()
    for name in complex_names:
        begin = f'"{name}":{{"dtype":"'
        assert content.count(f'{begin}I64"'.encode()) == 1
        content = content.replace(f'{begin}I64"'.encode(), f'{begin}C64"'.encode())
    path.write_bytes(content)


def _reads_complex() -> bool:
    try:
        save({"a": torch.zeros(1, dtype=torch.complex64)})
    except KeyError:  # the type is not in its table
        return False
    return True


READS_COMPLEX = _reads_complex()  # whether safetensors knows complex numbers

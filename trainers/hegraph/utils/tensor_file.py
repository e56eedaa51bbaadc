"""Tensors of `.safetensors` files that are larger than memory: some rows are read, and a file is written by blocks."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import UserError
from .files import atomic_path
from .tensor_bytes import StoredTensor, TensorBytes, layout_of

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHECKSUM = "checksum"  # a key of the metadata


class TensorFile(TensorBytes):
    """A `.safetensors` file whose header has been read. Its tensors are read when they are asked for.

    What is read has the memory alignment that torch gives its own tensors. The last bit of a matrix product can depend
    on the alignment, and tensors that were read must give the results of those that were written.
    """

    def read(self, name: str) -> Tensor:
        """A whole tensor; raises UserError if it cannot be read."""
        stored = self.tensors[name]
        raw = self._allocated(stored.size)
        with self._open() as file:
            self._fill(file, stored.start, raw.numpy().data)
        return self._shaped(raw, name, stored.shape)

    def read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Some rows of a tensor.

        Args:
            name: A tensor of shape `[..., n, d]`.
            rows: Their r positions along the last dimension but one, in any order.

        Returns:
            Shape `[..., r, d]`.

        Raises:
            UserError: If they cannot be read.
        """
        stored = self.tensors[name]
        *leading, count, width = stored.shape
        if len(rows) == count and list(rows) == list(range(count)):
            return self.read(name)
        raw = self._allocated(math.prod(leading) * len(rows) * stored.row_bytes)
        self.fill_rows(name, rows, raw.numpy().data)
        return self._shaped(raw, name, (*leading, len(rows), width))

    def checksum(self) -> str:
        """SHA-256 over names, types, shapes and values of all tensors, as `write_streamed` keeps it.

        Raises:
            UserError: If they cannot be read.
        """
        digest = hashlib.sha256()
        for name, stored in self.tensors.items():
            digest.update(_described(name, stored))
            for block in self.blocks(name):
                digest.update(block)
        return digest.hexdigest()

    def _shaped(self, raw: Tensor, name: str, shape: Sequence[int]) -> Tensor:
        dtype = DTYPES.get(self.tensors[name].dtype)
        if dtype is None:
            raise UserError(
                f"cannot read {self.what} {self.path}: {name} has the type {self.tensors[name].dtype}, which is none "
                f"of {', '.join(DTYPES)}"
            )
        return raw.view(dtype).view(tuple(shape))  # `*shape` would be nothing for a single number

    def _allocated(self, size: int) -> Tensor:
        try:
            return torch.empty(size, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            raise UserError(
                f"cannot read {self.what} {self.path}: there is no memory for {size / 1e9:.1f} GB of it"
            ) from error


class StreamedTensor(NamedTuple):
    """A tensor that is written block by block.

    Attributes:
        dtype: Its name in the file, such as "F32".
        shape: Its shape.
        blocks: Its bytes in order.
    """

    dtype: str
    shape: tuple[int, ...]
    blocks: Iterable[bytes | memoryview]


def write_streamed(
    path: Path, tensors: Mapping[str, StreamedTensor], metadata: Mapping[str, str], checked: bool = False
) -> None:
    """Writes a `.safetensors` file, atomically, with one block in memory at a time.

    The file has the bytes that `files.write_tensors` gives it, but that the metadata are in the order given.

    Args:
        path: The file.
        tensors: By their names.
        metadata: Texts that are kept in the header.
        checked: Whether the header also holds, as `CHECKSUM`, what `TensorFile.checksum` says of the file. It is known
            when the last block is written, and has its place in the header before.

    Raises:
        UserError: If it cannot be written.
        ValueError: If the blocks of a tensor are more or fewer bytes than its shape has.
    """
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    digest = hashlib.sha256()
    header, layout = file_header(shapes, {**metadata, CHECKSUM: digest.hexdigest()} if checked else metadata)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for name, stored in layout.items():
            digest.update(_described(name, stored))
            written = 0
            for block in tensors[name].blocks:
                digest.update(block)
                written += file.write(block)
            if written != stored.size:
                raise ValueError(f"{name} has {written} bytes, but its shape {list(stored.shape)} has {stored.size}")
        if checked:
            file.seek(0)
            file.write(file_header(shapes, {**metadata, CHECKSUM: digest.hexdigest()})[0])


def in_memory(tensor: Tensor) -> StreamedTensor:
    """A tensor that is written as one block."""
    block = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return StreamedTensor(NAMES[tensor.dtype], tuple(tensor.shape), [block])


def file_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, StoredTensor]]:
    """The first bytes of a `.safetensors` file, and where its tensors lie.

    Args:
        tensors: Name -> the name of its type, and its shape.
        metadata: Texts that are kept in the header.

    Returns:
        The bytes; the tensors in the order of the file, which is that of safetensors: wide types first, then by name.
    """
    widths = {name: DTYPES[dtype].itemsize for name, (dtype, _) in tensors.items()}
    described: dict[str, dict] = {}
    end = 0
    for name in sorted(tensors, key=lambda name: (-widths[name], name)):
        dtype, shape = tensors[name]
        begin, end = end, end + widths[name] * math.prod(shape)
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(
        ({"__metadata__": dict(metadata)} if metadata else {}) | described, separators=(",", ":"), ensure_ascii=False
    ).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, layout_of(described, len(header))


def _described(name: str, stored: StoredTensor) -> bytes:
    return f"{name!r}:{DTYPES.get(stored.dtype, stored.dtype)}{list(stored.shape)}".encode()

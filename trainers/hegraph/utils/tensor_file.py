"""`.safetensors` files that are larger than memory: some rows are read, and a file is written block by block.

The rows are read as bytes at their place in the file. They are not mapped into memory: a mapping would count the rows
around them as memory of the process, and would end the process where a file is cut short while it is in use.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import UserError, first_line
from .files import atomic_path

BLOCK = 1 << 22  # bytes that are copied or hashed at once
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


class StoredTensor(NamedTuple):
    """Where a tensor lies in its file.

    Attributes:
        dtype: Its name in the file, such as "F32".
        shape: Its shape.
        start: The place of its first byte in the file.
        size: Its number of bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, which is what the last dimension holds."""
        return self.size // max(math.prod(self.shape[:-1]), 1)


class TensorFile:
    """A `.safetensors` file whose header has been read. Its tensors are read when they are asked for.

    Args:
        path: The file.
        what: What the file should be, such as "the feature bank"; error messages use it.

    Attributes:
        tensors: Name -> where the tensor lies.
        metadata: The texts that the header holds beside the tensors.

    Raises:
        UserError: If the file is missing or damaged.
    """

    def __init__(self, path: Path, what: str) -> None:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot read {what} {path}: it is no regular file")  # opening a pipe would wait for ever
        self.path, self.what = path, what
        try:
            with safe_open(path, framework="pt") as checked:  # checks the header against the size of the file
                self.metadata: dict[str, str] = checked.metadata() or {}
            with io.FileIO(path) as file:
                self._version = _version(file)
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"cannot read {what} {path}: {first_line(error)}") from error
        header.pop("__metadata__", None)
        self.tensors = _layout(header, 8 + length)

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
        in_file_order = sorted((row, place) for place, row in enumerate(rows))
        blocks, length = math.prod(leading), stored.row_bytes
        raw = self._allocated(blocks * len(rows) * length)
        into = raw.numpy().data
        with self._open() as file:
            for block in range(blocks):
                for row, place in in_file_order:
                    begin = (block * len(rows) + place) * length
                    self._fill(file, stored.start + (block * count + row) * length, into[begin : begin + length])
        return self._shaped(raw, name, (*leading, len(rows), width))

    def blocks(self, name: str) -> Iterator[memoryview]:
        """The bytes of a tensor, in blocks that are overwritten by the next; raises UserError as `read`."""
        for block in self.row_blocks(name):
            yield block.view(torch.uint8).numpy().data.cast("B")

    def row_blocks(self, name: str) -> Iterator[Tensor]:
        """All rows of a tensor `[..., d]`, in blocks `[rows, d]` that are overwritten by the next.

        Raises:
            UserError: If they cannot be read.
        """
        stored = self.tensors[name]
        width = (stored.shape or (1,))[-1]
        rows = stored.size // max(stored.row_bytes, 1)
        at_once = max(BLOCK // max(stored.row_bytes, 1), 1)
        raw = self._allocated(min(at_once, rows) * stored.row_bytes)
        with self._open() as file:
            for row in range(0, rows, at_once):
                count = min(at_once, rows - row)
                block = raw[: count * stored.row_bytes]
                self._fill(file, stored.start + row * stored.row_bytes, block.numpy().data)
                yield self._shaped(block, name, (count, width))

    def _shaped(self, raw: Tensor, name: str, shape: Sequence[int]) -> Tensor:
        dtype = DTYPES.get(self.tensors[name].dtype)
        if dtype is None:
            raise UserError(
                f"cannot read {self.what} {self.path}: {name} has the type {self.tensors[name].dtype}, which is none "
                f"of {', '.join(DTYPES)}"
            )
        return raw.view(dtype).view(*shape)

    def _allocated(self, size: int) -> Tensor:
        try:
            return torch.empty(size, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            raise UserError(
                f"cannot read {self.what} {self.path}: there is no memory for {size / 1e9:.1f} GB of it"
            ) from error

    def _open(self) -> io.FileIO:
        try:
            file = io.FileIO(self.path)
        except OSError as error:
            raise UserError(f"cannot read {self.what} {self.path}: {first_line(error)}") from error
        if _version(file) != self._version:
            file.close()
            raise UserError(f"{self.path} was changed while it was in use; start again")
        return file

    def _fill(self, file: io.FileIO, start: int, into: memoryview) -> None:
        done = 0
        try:
            file.seek(start)
            while done < len(into):  # the system may read less at once than it is asked for
                count = file.readinto(into[done:])
                if not count:
                    raise UserError(f"cannot read {self.what} {self.path}: it ends too early")
                done += count
        except OSError as error:
            raise UserError(f"cannot read {self.what} {self.path}: {first_line(error)}") from error


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


def write_streamed(path: Path, tensors: Mapping[str, StreamedTensor], metadata: Mapping[str, str]) -> None:
    """Writes a `.safetensors` file, atomically, with one block in memory at a time.

    The file has the bytes that `files.write_tensors` gives it, but that the metadata are in the order given.

    Raises:
        UserError: If it cannot be written.
        ValueError: If the blocks of a tensor are more or fewer bytes than its shape has.
    """
    header, layout = file_header({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, metadata)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for name, stored in layout.items():
            written = sum(file.write(block) for block in tensors[name].blocks)
            if written != stored.size:
                raise ValueError(f"{name} has {written} bytes, but its shape {list(stored.shape)} has {stored.size}")


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
    return header, _layout(described, len(header))


def _layout(described: Mapping[str, dict], data: int) -> dict[str, StoredTensor]:
    """Where tensors lie, from what a header says of them; `data` is the place of the first byte after it."""
    return {
        name: StoredTensor(entry["dtype"], tuple(entry["shape"]), data + begin, end - begin)
        for name, entry in described.items()
        for begin, end in [entry["data_offsets"]]
    }


def _version(file: io.FileIO) -> tuple[int, int]:
    """Size and time of the last change (ns) of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns

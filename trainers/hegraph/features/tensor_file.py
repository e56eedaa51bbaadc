"""`.safetensors` files that may be larger than memory: some rows are read, and a file is written block by block.

Rows are read at their place in the file. They are not mapped into memory: a mapping would count the rows around them as
memory of the process, and would end the process where a file is cut short while it is in use. What is read has the
memory alignment that torch gives its own tensors, on which the last bit of a matrix product can depend.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..utils.errors import UserError, first_line
from ..utils.files import atomic_path
from ..utils.reading import check_regular

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
BLOCK = 1 << 22  # bytes that are copied or hashed at once
CHECKSUM = "checksum"  # a key of the metadata


class StoredTensor(NamedTuple):
    """Where a tensor lies in its file: the name of its type, such as "F32", its shape, its first byte and its size."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class TensorFile:
    """A `.safetensors` file whose header has been read. Its tensors are read when they are asked for.

    Args:
        path: The file.
        what: What the file should be, such as "the feature bank"; error messages use it.

    Attributes:
        tensors: Name -> where the tensor lies, in the order of the file.
        metadata: The texts that the header holds beside the tensors.

    Raises:
        UserError: If the file is missing, damaged, no regular file, or changed since it was opened. All methods raise
            it as well.
    """

    def __init__(self, path: Path, what: str) -> None:
        check_regular(path)
        self.path, self.what = path, what
        self._version: tuple[int, int] | None = None
        try:
            with safe_open(path, framework="np") as checked:  # checks the header against the size of the file
                self.metadata: dict[str, str] = checked.metadata() or {}
            with self._opened() as file:
                self._version = _version(file)
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (SafetensorError, ValueError, RecursionError) as error:
            raise error if isinstance(error, UserError) else self._unreadable(error) from error
        header.pop("__metadata__", None)
        self.tensors = _layout(header, 8 + length)

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        stored = self.tensors[name]
        return self._read(name, stored.shape, [0], stored.size)

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Some rows of a tensor of shape `[..., n, d]`, in any order; shape `[..., r, d]`."""
        stored = self.tensors[name]
        *leading, count, width = stored.shape
        if len(rows) == count and list(rows) == list(range(count)):
            return self.read(name)
        length = stored.size // max(math.prod(stored.shape[:-1]), 1)
        starts = [(block * count + row) * length for block in range(math.prod(leading)) for row in rows]
        return self._read(name, (*leading, len(rows), width), starts, length)

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The bytes of a tensor in blocks, each of which overwrites the one before."""
        stored = self.tensors[name]
        raw = torch.empty(min(BLOCK, stored.size), dtype=torch.uint8)
        with self._opened() as file:
            for start in range(0, stored.size, BLOCK):
                block = raw[: stored.size - start]
                self._fill(file, stored.start + start, block)
                yield block

    def checksum(self) -> str:
        """SHA-256 over names, types, shapes and values of all tensors, as `write_streamed` keeps it."""
        digest = hashlib.sha256()
        for name, stored in self.tensors.items():
            digest.update(_described(name, stored))
            for block in self.blocks(name):
                digest.update(raw_bytes(block))
        return digest.hexdigest()

    def _read(self, name: str, shape: Sequence[int], starts: Sequence[int], length: int) -> Tensor:
        """Pieces of a tensor, each of `length` bytes: read in the order of the file, returned in that of `starts`."""
        stored = self.tensors[name]
        if stored.dtype not in DTYPES:
            raise self._unreadable(f"{name} has the type {stored.dtype}, which is none of {', '.join(DTYPES)}")
        size = len(starts) * length
        try:
            raw = torch.empty(size, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            raise self._unreadable(f"there is no memory for {size / 1e9:.1f} GB of it") from error
        with self._opened() as file:
            for place in sorted(range(len(starts)), key=starts.__getitem__):
                piece = raw[place * length : (place + 1) * length]
                self._fill(file, stored.start + starts[place], piece)
        return raw.view(DTYPES[stored.dtype]).view(tuple(shape))

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        try:
            with self.path.open("rb") as file:
                if self._version not in (None, _version(file)):
                    raise UserError(f"{self.path} was changed while it was in use; start again")
                yield file
        except OSError as error:
            raise self._unreadable(error) from error

    def _fill(self, file: IO[bytes], start: int, into: Tensor) -> None:
        file.seek(start)
        if file.readinto(into.numpy().data) != len(into):  # type: ignore[attr-defined]
            raise self._unreadable("it ends too early")

    def _unreadable(self, reason: Exception | str) -> UserError:
        said = reason if isinstance(reason, str) else first_line(reason)
        return UserError(f"cannot read {self.what} {self.path}: {said}")


class Streamed(NamedTuple):
    """A tensor that is written block by block.

    Attributes:
        dtype: The name of its type in the file, such as "F32".
        shape: Its shape.
        blocks: Tensors whose bytes, one after the other, are its own.
    """

    dtype: str
    shape: tuple[int, ...]
    blocks: Iterable[Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Streamed:
        """A tensor that is in memory, as one block."""
        return cls(NAMES[tensor.dtype], tuple(tensor.shape), [tensor])


def write_streamed(
    path: Path, tensors: Mapping[str, Streamed], metadata: Mapping[str, str], checked: bool = False
) -> None:
    """Writes a `.safetensors` file, atomically, with one block in memory at a time.

    The file has the bytes that `safetensors.torch.save_file` gives it, but that the metadata are in the order given.

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
    forms = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    digest = hashlib.sha256()
    header, layout = file_header(forms, {**metadata, CHECKSUM: digest.hexdigest()} if checked else metadata)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for name, stored in layout.items():
            digest.update(_described(name, stored))
            written = 0
            for block in map(raw_bytes, tensors[name].blocks):
                digest.update(block)
                written += file.write(block)
            if written != stored.size:
                raise ValueError(f"{name} has {written} bytes, but its shape {list(stored.shape)} has {stored.size}")
        if checked:
            file.seek(0)
            file.write(file_header(forms, {**metadata, CHECKSUM: digest.hexdigest()})[0])


def file_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, StoredTensor]]:
    """The first bytes of a `.safetensors` file, and where its tensors lie.

    Args:
        tensors: Name -> the name of its type, and its shape. They come in the order of safetensors: wide types first,
            then by name.
        metadata: Texts that are kept in the header.
    """
    described: dict[str, Any] = {}
    end = 0
    for name in sorted(tensors, key=lambda name: (-DTYPES[tensors[name][0]].itemsize, name)):
        dtype, shape = tensors[name]
        begin, end = end, end + DTYPES[dtype].itemsize * math.prod(shape)
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    whole = ({"__metadata__": dict(metadata)} if metadata else {}) | described
    text = json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, _layout(described, len(header))


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, which are no copy of those of one that is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _layout(described: Mapping[str, dict], data: int) -> dict[str, StoredTensor]:
    """Where tensors lie, in the order of the file, by its header, whose last byte is before the place `data`."""
    found: dict[str, StoredTensor] = {}
    for name, entry in described.items():
        begin, end = entry["data_offsets"]
        found[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), data + begin, end - begin)
    return dict(sorted(found.items(), key=lambda item: (item[1].start, item[0])))


def _described(name: str, stored: StoredTensor) -> bytes:
    return f"{name!r}:{DTYPES.get(stored.dtype, stored.dtype)}{list(stored.shape)}".encode()


def _version(file: IO[bytes]) -> tuple[int, int]:
    """Size and time of the last change (ns) of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns

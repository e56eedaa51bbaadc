"""`.safetensors` files that may be larger than memory: read by rows, written block by block. And encoded features,
which are kept in such files.

Tensors are read at their place in the file and not mapped into memory: a mapping counts the rows around them as memory
of the process, and ends the process where a file is cut short while it is in use.

Features are kept in a file for each part of a bank (train, val, test, text). It is named after its key, a hash over all
that shaped it: backbone, weights, preprocessing, images, augmentation, sentences and code version. So test features are
shared by all shot counts and seeds, and a stale file is never read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import atomic_path
from ..utils.reading import reading

logger = logging.getLogger(__name__)

DTYPES = {  # what a bank may hold
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
BLOCK = 1 << 22  # bytes that are copied or hashed at once
CHECKSUM = "checksum"  # a key of the metadata
CODE_VERSION = 1  # part of every key: raise it when the same input would give other features
FEATURES = "features"  # the name of the tensor in a part of images
WHAT = "encoded features"


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
        what: What it should be, as of `reading`.

    Attributes:
        tensors: Name -> where the tensor lies.
        metadata: The texts that the header holds beside the tensors.
        num_bytes: The size of the file.

    Raises:
        UserError: If the file is missing, damaged, or changed since it was opened. All methods raise it as well.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        with reading(path, what):
            with safe_open(path, framework="np") as checked:  # compares the header with the size of the file
                self.metadata: dict[str, str] = checked.metadata() or {}
            with path.open("rb") as file:
                self._version = _version(file)
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        self.num_bytes = self._version[0]
        header.pop("__metadata__", None)
        self.tensors = _layout(header, 8 + length)

    def read(self, name: str, rows: Sequence[int] | None = None) -> Tensor:
        """A tensor; or some rows of one of shape `[..., n, d]`, in any order, as `[..., r, d]`."""
        dtype, shape, start, length = self.tensors[name]
        places = [start]
        if rows is not None and not (len(rows) == shape[-2] and list(rows) == list(range(shape[-2]))):
            *leading, count, width = shape
            shape, length = (*leading, len(rows), width), width * DTYPES[dtype].itemsize
            places = [start + (block * count + row) * length for block in range(math.prod(leading)) for row in rows]
        # Memory of torch's own: the last bit of a matrix product can depend on its alignment
        raw = torch.empty(len(places) * length, dtype=torch.uint8)
        into = raw.numpy().data
        with self._opened() as file:
            for number in sorted(range(len(places)), key=places.__getitem__):
                file.seek(places[number])
                if file.readinto(into[number * length : (number + 1) * length]) != length:  # type: ignore[attr-defined]
                    raise ValueError("it ends too early")
        return raw.view(DTYPES[dtype]).view(shape)

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor in blocks."""
        _, _, start, size = self.tensors[name]
        with self._opened() as file:
            file.seek(start)
            for done in range(0, size, BLOCK):
                block = file.read(min(BLOCK, size - done))
                if len(block) != min(BLOCK, size - done):
                    raise ValueError("it ends too early")
                yield block

    def checksum(self) -> str:
        """SHA-256 over names, types, shapes and values of all tensors, as `write_streamed` keeps it."""
        digest = hashlib.sha256()
        for name, stored in self.tensors.items():
            digest.update(_described(name, stored))
            for block in self.blocks(name):
                digest.update(block)
        return digest.hexdigest()

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with reading(self.path, self.what), self.path.open("rb") as file:
            if self._version != _version(file):
                raise UserError(f"{self.path} was changed while it was in use; start again")
            yield file


class Streamed(NamedTuple):
    """A tensor that is written block by block: the name of its type, such as "F32", its shape, and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    blocks: Iterable[bytes | memoryview]

    @classmethod
    def of(cls, tensor: Tensor) -> Streamed:
        """A tensor that is in memory, as one block."""
        [name] = [name for name, dtype in DTYPES.items() if dtype == tensor.dtype]
        return cls(name, tuple(tensor.shape), [raw_bytes(tensor)])


def write_streamed(
    path: Path, tensors: Mapping[str, Streamed], metadata: dict[str, str], checked: bool = False
) -> None:
    """Writes a `.safetensors` file, atomically, with one block in memory at a time.

    Args:
        path: The file.
        tensors: By their names.
        metadata: Texts that are kept in the header.
        checked: Whether the header also holds, as `CHECKSUM`, what `TensorFile.checksum` says of the file. It is known
            when the last block is written, and has its place in the header before.

    Raises:
        UserError: If it cannot be written.
        ValueError: If blocks are more or fewer bytes than the shapes have.
    """
    forms = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    digest = hashlib.sha256()

    def head() -> tuple[bytes, dict[str, StoredTensor]]:
        return file_header(forms, metadata | {CHECKSUM: digest.hexdigest()} if checked else metadata)

    with atomic_path(path) as temporary, temporary.open("wb") as file:
        header, layout = head()
        file.write(header)
        for name, stored in layout.items():
            digest.update(_described(name, stored))
            for block in tensors[name].blocks:
                digest.update(block)
                file.write(block)
            if file.tell() != stored.start + stored.size:
                raise ValueError(f"{name} of shape {list(stored.shape)} has not {stored.size} bytes")
        file.seek(0)
        file.write(head()[0])


def file_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, StoredTensor]]:
    """The first bytes of a `.safetensors` file, and where its tensors lie, in the order of safetensors.

    Of each tensor the name of its type and its shape are given.
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
    """Where the tensors of a header lie, if their bytes begin at the place `data`."""
    found: dict[str, StoredTensor] = {}
    for name, entry in described.items():
        begin, end = entry["data_offsets"]
        found[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), data + begin, end - begin)
    return found


def _described(name: str, stored: StoredTensor) -> bytes:
    return f"{name!r}:{DTYPES.get(stored.dtype, stored.dtype)}{list(stored.shape)}".encode()


def _version(file: IO[bytes]) -> tuple[int, int]:
    """Size and time of the last change (ns) of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


# Encoded features that are kept


def kept_part(folder: Path, name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The file of a part, which is made if it is not there. A damaged file is replaced, and that is said.

    All processes of `torchrun` call this together. Two runs that do not know of each other may make the same part: each
    renames a whole file into place.

    Args:
        folder: Where parts are kept.
        name: Of the part, "train", "val", "test" or "text".
        key: A hash of all that shapes the features.
        make: Writes the file, in the first process, with the help of the others. It may keep unfinished work in
            `chunk_folder` of that file.

    Raises:
        UserError: If the folder cannot be written.
    """
    path = folder / f"{name}-{key[:16]}.safetensors"
    if not processes.of_first(lambda: is_whole(path, key)):
        make(path)
        if processes.rank() == 0:
            shutil.rmtree(chunk_folder(path), ignore_errors=True)
        processes.wait()
    return path


def chunk_folder(path: Path) -> Path:
    """Where the chunks of a part are kept until its file at `path` is written."""
    return path.with_suffix(".chunks")


def write_part(path: Path, tensors: dict[str, Tensor], key: str) -> None:
    """Writes features with the key of what they were made from and a checksum of them, atomically."""
    streamed = {name: Streamed.of(tensor) for name, tensor in tensors.items()}
    write_streamed(path, streamed, {"fingerprint": key}, checked=True)


def read_part(path: Path) -> dict[str, Tensor]:
    """The tensors of a part that `is_whole`; raises UserError if they cannot be read."""
    file = TensorFile(path, WHAT)
    return {name: file.read(name) for name in file.tensors}


def is_whole(path: Path, key: str) -> bool:
    """Whether a file holds undamaged features that were made from what `key` stands for. If it does not, that is said.

    The features are read in blocks and compared with their checksum.
    """
    if not path.exists():
        return False
    try:
        file = TensorFile(path, WHAT)
        if (file.metadata.get("fingerprint"), file.metadata.get(CHECKSUM)) == (key, file.checksum()):
            return True
    except UserError:
        pass
    logger.warning("%s cannot be used, since it is damaged or of another version: encoding anew", path)
    return False

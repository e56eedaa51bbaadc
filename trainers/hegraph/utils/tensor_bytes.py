"""`.safetensors` files that are larger than memory, as bytes: the header is read, and some rows. Torch is not needed.

The rows are read at their place in the file. They are not mapped into memory: a mapping would count the rows around
them as memory of the process, and would end the process where a file is cut short while it is in use.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from .errors import UserError, first_line
from .reading import check_regular

BLOCK = 1 << 22  # bytes that are copied or hashed at once


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


class TensorBytes:
    """A `.safetensors` file whose header has been read. The bytes of its tensors are read when they are asked for.

    Args:
        path: The file.
        what: What the file should be, such as "the feature bank"; error messages use it.

    Attributes:
        tensors: Name -> where the tensor lies, in the order of the file.
        metadata: The texts that the header holds beside the tensors.

    Raises:
        UserError: If the file is missing, damaged or no regular file.
    """

    def __init__(self, path: Path, what: str) -> None:
        check_regular(path, f"cannot read {what}")
        self.path, self.what = path, what
        try:
            with safe_open(path, framework="np") as checked:  # checks the header against the size of the file
                self.metadata: dict[str, str] = checked.metadata() or {}
            with io.FileIO(path) as file:
                self._version = _version(file)
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"cannot read {what} {path}: {first_line(error)}") from error
        header.pop("__metadata__", None)
        self.tensors = layout_of(header, 8 + length)

    def blocks(self, name: str) -> Iterator[memoryview]:
        """The bytes of a tensor, in blocks that are overwritten by the next; raises UserError if it cannot be read."""
        stored = self.tensors[name]
        raw = memoryview(bytearray(min(BLOCK, stored.size)))
        with self._open() as file:
            for start in range(0, stored.size, BLOCK):
                block = raw[: min(BLOCK, stored.size - start)]
                self._fill(file, stored.start + start, block)
                yield block

    def row_bytes(self, name: str, rows: Sequence[int]) -> bytearray:
        """The bytes of some rows; arguments and errors as of `fill_rows`."""
        stored = self.tensors[name]
        raw = bytearray(math.prod(stored.shape[:-2]) * len(rows) * stored.row_bytes)
        self.fill_rows(name, rows, memoryview(raw))
        return raw

    def fill_rows(self, name: str, rows: Sequence[int], into: memoryview) -> None:
        """Reads some rows of a tensor.

        Args:
            name: A tensor of shape `[..., n, d]`.
            rows: Their r positions along the last dimension but one, in any order.
            into: Takes the bytes of `[..., r, d]`.

        Raises:
            UserError: If they cannot be read.
        """
        stored = self.tensors[name]
        *leading, count, _ = stored.shape
        in_file_order = sorted((row, place) for place, row in enumerate(rows))
        length = stored.row_bytes
        with self._open() as file:
            for block in range(math.prod(leading)):
                for row, place in in_file_order:
                    begin = (block * len(rows) + place) * length
                    self._fill(file, stored.start + (block * count + row) * length, into[begin : begin + length])

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


def layout_of(described: Mapping[str, dict], data: int) -> dict[str, StoredTensor]:
    """Where tensors lie, in the order of the file, from what its header says of them.

    Args:
        described: The header.
        data: The place of the first byte after it.
    """
    found = {
        name: StoredTensor(entry["dtype"], tuple(entry["shape"]), data + begin, end - begin)
        for name, entry in described.items()
        for begin, end in [entry["data_offsets"]]
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].start, item[0])))


def _version(file: io.FileIO) -> tuple[int, int]:
    """Size and time of the last change (ns) of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns

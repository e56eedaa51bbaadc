"""Chunks: the encoded rows of a part that is not complete yet, in files of a few seconds of work each.

A run that is stopped at any time loses these seconds. The next run reads the chunks and encodes the other rows.

Shapes: R rows, d feature width.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..utils.errors import UserError
from ..utils.reading import read_tensors
from ..utils.signals import Interrupted, is_interrupt
from .cache import CHUNKS, FEATURES, FORM, is_valid, write_features

WRITE_SECONDS = 5
CHUNK_NAME = re.compile(r"([0-9]{1,15})-([0-9]{1,15})\.safetensors")


class Chunks:
    """Features of encoded rows, in memory, or in a folder beside the file of the complete part.

    Args:
        part: File of the complete part; None keeps all features in memory.
        key: Hash of everything that determines the features.
        batch_size: Number of rows of a batch, on which the order of the rows depends.

    Attributes:
        written: Number of rows that this process has written.
    """

    def __init__(self, part: Path | None, key: str, batch_size: int) -> None:
        self.folder = None if part is None else part.with_suffix(CHUNKS) / f"batches-of-{batch_size}"
        self.key = key
        self.written = 0
        self._unwritten: list[tuple[range, Tensor]] = []
        self._last_time = time.monotonic()

    def finished(self) -> list[range]:
        """Return the rows of all undamaged files; a warning names each damaged one."""
        return [rows for rows, path in self._files() if is_valid(path, self.key)]

    def add(self, rows: range, features: Tensor) -> None:
        """Add the features `[len(rows), d]` of rows, and write them if the last time is `WRITE_SECONDS` ago.

        Raises:
            UserError: If a file cannot be written.
        """
        if self._unwritten and self._unwritten[-1][0].stop != rows.start:
            self.write()  # a file has consecutive rows
        self._unwritten.append((rows, features))
        if time.monotonic() - self._last_time >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the features in memory to a file, if there is a folder; UserError if that fails."""
        if self.folder is None or not self._unwritten:
            return
        first = self._unwritten[0][0]
        last = self._unwritten[-1][0]
        features = torch.cat([each for _, each in self._unwritten])
        write_features(self.folder / f"{first.start}-{last.stop}.safetensors", {FEATURES: features}, self.key)
        self.written += len(features)
        self._unwritten.clear()
        self._last_time = time.monotonic()

    def concatenate(self, num_rows: int) -> Tensor:
        """Return the features of all rows, shape `[R, d]` with R = `num_rows`.

        Raises:
            UserError: If rows are missing, or a file cannot be read.
        """
        parts = self._unwritten
        if self.folder is not None:
            parts = [(rows, read_tensors(path, FORM)[0][FEATURES]) for rows, path in self._files()]
        missing = torch.ones(num_rows, dtype=torch.bool)
        features = torch.empty(num_rows, parts[0][1].shape[1] if parts else 0)
        for rows, part in parts:
            features[rows.start : rows.stop] = part
            missing[rows.start : rows.stop] = False
        if missing.any():
            raise UserError(f"{self.folder} lacks {missing.sum()} of {num_rows} encoded rows; start again")
        return features

    def _files(self) -> list[tuple[range, Path]]:
        """List the rows and the path of each file."""
        files = []
        for path in sorted(self.folder.glob("*")) if self.folder is not None else ():
            if match := CHUNK_NAME.fullmatch(path.name):
                files.append((range(int(match[1]), int(match[2])), path))
        return files


@contextmanager
def keeping(write: Callable[[], int], total: int, images: str) -> Iterator[None]:
    """Context of work that encodes images. If an exception ends it, what is encoded is written.

    Args:
        write: Function that writes it, and returns the number of images that are encoded.
        total: Number of all images.
        images: What the images are, such as "train images".

    Raises:
        Interrupted: At Ctrl-C, with the number of images that are encoded.
    """
    try:
        yield
    except BaseException as stop:
        encoded = write()
        if not is_interrupt(stop):
            raise
        kept = f"{encoded} of {total} {images} are encoded and will not be encoded again" if encoded else ""
        raise Interrupted(kept) from stop


def missing_steps(steps: Sequence[range], finished: Sequence[range], num_rows: int) -> list[range]:
    """Return the steps with a row that is in none of the `finished` ranges."""
    missing = torch.ones(num_rows, dtype=torch.bool)
    for rows in finished:
        missing[rows.start : rows.stop] = False
    return [step for step in steps if missing[step.start : step.stop].any()]

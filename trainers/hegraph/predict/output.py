"""Where rows go: a file that appears whole or not at all, or standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.errors import UserError, output_error
from ..utils.files import atomic_path

Write = Callable[[str], object]


@contextmanager
def open_output(out: Path | None) -> Iterator[Write]:
    """Gives a function that writes text as UTF-8.

    Args:
        out: The file, which replaces an older one at the end of the block; None writes to standard output at once.

    Raises:
        UserError: If it cannot be written (full, read-only, no file).
        ReaderGone: If standard output was closed by its reader.
    """
    if out is None:
        yield _write_stdout
        return
    if out.exists() and not out.is_file():
        raise UserError(f"--out {out} is no regular file, and is not overwritten; choose another")
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file.write


def _write_stdout(text: str) -> None:
    if sys.stdout is None:
        raise UserError("standard output is closed; give --out FILE")
    try:
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.buffer.flush()
    except OSError as error:
        raise output_error(error) from error

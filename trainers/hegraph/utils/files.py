"""Reading and writing files, and hashes of their contents.

A file is written whole or not at all: first under a temporary name in the folder of the target, then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from .errors import UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor

HASHED_ROWS = 1000  # rows of a long list that are written as JSON at once, to be hashed


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path that becomes `path` when the block ends without an exception.

    Raises:
        UserError: If the folder cannot be written (full, read-only, not a folder).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file readable by its owner alone; results are meant to be shared
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder that becomes `folder` when the block ends without an exception.

    A folder that is there already is replaced: for an instant there is none, but never half of one.

    Raises:
        UserError: If the folder cannot be written (full, read-only, below a file).
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    except OSError as error:
        raise _cannot_write(folder, error) from error
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        yield new
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    except UserError as error:  # it names the temporary folder, of which the user knows nothing
        raise UserError(str(error).replace(str(new), str(folder))) from error
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: If the file is missing, unreadable, not JSON, nested too deeply, or holds half of a surrogate pair,
            which no file and no terminal can take.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\u" in text:  # only an escape can make a half of a pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError as error:
        raise UserError(f"cannot read {path} as JSON: it is nested too deeply") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise UserError(f"cannot read {path} as JSON: it holds half of a surrogate pair, {half!a:.20}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a `.safetensors` file, atomically."""
    from safetensors.torch import save_file  # imports torch, which the files of data sets do not need

    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors and the metadata of a `.safetensors` file. No code in the file is executed.

    Args:
        path: The file.
        what: What the file should be, such as "the adapter"; the error message uses it.

    Raises:
        UserError: If the file is missing or damaged.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read {what} {path}: it is no regular file")  # opening a pipe would wait for ever
    try:
        with safe_open(path, framework="pt") as file:
            # The copies have the memory alignment that torch gives its own tensors. The last bit of a matrix product
            # can depend on the alignment, and tensors that were read must give the results of those that were written.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (`file` is no dict)
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {what} {path}: {first_line(error)}") from error
    except (RuntimeError, MemoryError, AttributeError, KeyError) as error:  # too large, or a type that torch lacks
        raise UserError(f"cannot read {what} {path}: torch cannot hold its tensors ({error!r:.80})") from error


def hash_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value` (sorted keys, no spaces), as 64 hex digits."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def hash_rows(rows: Iterable[Any], beside: dict[str, Any] | None = None, name: str = "") -> str:
    """`hash_json` of a list that is too long to be kept in memory.

    Args:
        rows: Plain values.
        beside: Other entries of a dict that holds the list; None hashes the list alone.
        name: The key of the list in that dict.

    Returns:
        `hash_json(list(rows))`, or `hash_json(beside | {name: list(rows)})`.
    """
    digest = hashlib.sha256()
    before = after = ""
    if beside is not None:
        fields = {key: f"{_canonical(key)}:{_canonical(value)}" for key, value in beside.items()}
        before = "".join(f"{fields[key]}," for key in sorted(fields) if key < name)
        before = f"{{{before}{_canonical(name)}:"
        after = "".join(f",{fields[key]}" for key in sorted(fields) if key > name) + "}"
    digest.update(f"{before}[".encode())
    remaining, comma = iter(rows), ""
    while block := list(islice(remaining, HASHED_ROWS)):
        digest.update(f"{comma}{_canonical(block)[1:-1]}".encode())
        comma = ","
    digest.update(f"]{after}".encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of the bytes of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _cannot_write(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"cannot write {path}: {reason}; choose a folder that can be written")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

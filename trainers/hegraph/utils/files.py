"""Writing files, and hashes of their contents. How files are read is in `reading.py`.

Each file or folder is written whole or not at all: first under a temporary name beside the target, then renamed. A
process that is killed may leave its temporary file or folder, whose name begins with a dot and ends with `.tmp`. The
next process that writes the same folder removes the folders that were left.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from safetensors import SafetensorError

from .errors import UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor

OLD = "old"  # the replaced folder, within the temporary folder of `writing_folder`
RENAME_EXCHANGE = 2  # flag of Linux's renameat2

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def absolute(path: str | Path) -> Path:
    """The absolute path of one that may begin with `~`; UserError for the home folder of a user unknown here."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"{path} begins with the home folder of a user that is not known here; write it out") from error


class OutputFile:
    """The type of an argument that names a file to write. `Parser` checks it against all other arguments.

    Args:
        replaces: Endings of earlier outputs, which are replaced even in a folder that the command reads.
        added: Endings that the command adds to the name; by default it adds none.
    """

    def __init__(self, *replaces: str, added: Sequence[str] = ("",)) -> None:
        self.replaces, self.added = replaces, added

    def __call__(self, text: str) -> Path:
        return Path(text)

    def check(self, path: Path, reads: Any) -> None:
        """Raises UserError as `check_output`; `reads` are the values of the other arguments."""
        for ending in self.added:
            check_output(Path(f"{path}{ending}"), reads, self.replaces)


class OutputFolder(OutputFile):
    """The type of an argument that names a folder to write, whole."""

    def check(self, path: Path, reads: Any) -> None:
        """Raises UserError if the folder would lie in a model or project, or holds one of the paths in `reads`."""
        _check_place(path)
        whole = path.resolve()
        if whole.exists() and any(whole in (read, *read.parents) for read in map(Path.resolve, _named(reads))):
            raise UserError(f"{path} is or holds what this command reads, and is not replaced; choose another folder")


def check_output(path: Path, reads: Any = (), replaces: tuple[str, ...] = ()) -> None:
    """Check that a file may be written, before the work begins. An older file may be there.

    Args:
        path: The file to write.
        reads: Strings and paths, nested in dicts and lists. Existing files among them are protected, and all files of
            existing folders, under any name that leads to them.
        replaces: Endings of files in these folders that are not protected.

    Raises:
        UserError: If the path is a folder, a pipe or a device, is protected, or lies in a model folder or in the
            `.hegraph` folder of a teach project.
    """
    check_not_read(path, reads, replaces)
    _check_place(path)
    if (path.parent / "result.json").is_file():  # the output folder of a run
        check_not_read(path, path.parent, replaces)


def check_not_read(path: Path, reads: Any, replaces: tuple[str, ...] = ()) -> None:
    """Raises UserError if a file to write is protected, or is no file; arguments as of `check_output`."""
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"{path} is no file but a folder, a pipe or a device; choose another name")
    for read in _named(reads):
        files = _files_below(read, path.stat().st_ino, replaces) if os.path.isdir(read) else [read]
        if any(map(partial(_is_same, path), files)):
            raise UserError(f"{path} is read by this command, and is not overwritten; choose another name")


def _is_same(path: Path, other: Path | str) -> bool:
    """Whether two names lead to one file; one that vanishes meanwhile is none."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):  # ValueError: a NUL character
        return False


def _check_place(path: Path) -> None:
    """Raises UserError if a path lies in a folder whose files belong together."""
    for parent in {*path.absolute().parents, *path.resolve().parents}:
        if parent.name == ".hegraph" or all((parent / name).is_file() for name in ("config.json", "model.safetensors")):
            raise UserError(f"{path} lies in {parent}, the folder of a model or project; choose another folder")


def _named(value: Any) -> Iterator[Path]:
    """The existing files and folders that nested dicts and lists name."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (str, Path)):
        if os.path.exists(path := os.path.expanduser(value)):
            yield Path(path)
    elif isinstance(value, Iterable):
        for entry in value:
            yield from _named(entry)


def _files_below(folder: Path, inode: int, replaces: tuple[str, ...]) -> Iterator[str | Path]:
    """The files below a folder, links followed, that may have an inode number and have none of some endings."""
    waiting, seen = [str(folder)], set()
    while waiting:
        path = waiting.pop()
        if (real := os.path.realpath(path)) in seen:
            continue
        seen.add(real)
        with suppress(OSError), os.scandir(path) as entries:  # a folder that cannot be listed is not read either
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                    waiting.append(entry.path)
                elif (entry.is_symlink() or entry.inode() == inode) and not entry.name.lower().endswith(replaces):
                    yield entry.path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path that becomes `path` when the block ends without an exception.

    Raises:
        UserError: If the file cannot be written (a full disk, a folder that is read-only or is none, a long name).
    """
    temporary = _beside(path)
    try:
        with _explained(path, temporary):
            temporary.touch()
            mode = temporary.stat().st_mode  # as the umask says; safetensors makes a file for its owner alone
            yield temporary
            temporary.chmod(mode)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder that becomes `folder` when the block ends without an exception.

    A folder that exists is replaced. If the process is killed, `whole_folder(folder)` is the old folder or the new one.

    Raises:
        UserError: If the folder cannot be written, as of `atomic_path`.
    """
    temporary = _beside(folder)
    new, old = temporary / "new", temporary / OLD
    try:
        with _explained(folder, new):
            for left in _temporaries(folder):
                _remove(left, folder)
            new.mkdir(parents=True)
            yield new
            exists = folder.exists()
            if not (exists and _exchange(new, folder)):
                if exists:
                    os.replace(folder, old)
                os.replace(new, folder)
    finally:
        _remove(temporary, folder)


def whole_folder(folder: Path) -> Path:
    """The folder; or the old one, if a process was killed after it had moved that away and before the new one came."""
    if folder.exists():
        return folder
    return next((old for left in _temporaries(folder) if (old := left / OLD).is_dir()), folder)


def _remove(temporary: Path, folder: Path) -> None:
    """Removes a temporary folder of `writing_folder`. If `folder` is missing, the old one goes back into its place."""
    if (temporary / OLD).exists() and not folder.exists():
        os.replace(temporary / OLD, folder)
    shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False if the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    with suppress(AttributeError):  # an old C library
        here, paths = -100, (os.fsencode(one), os.fsencode(other))  # AT_FDCWD: relative to the working directory
        return ctypes.CDLL(None).renameat2(here, paths[0], here, paths[1], RENAME_EXCHANGE) == 0
    return False


def _name_hash(path: Path) -> str:
    """The part of a temporary name that tells of which path it is. The path's own name may be too long for that."""
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]


def _temporaries(folder: Path) -> list[Path]:
    """The temporary folders of a folder, of this process and of others."""
    return [path for path in folder.parent.glob(f".????????{_name_hash(folder)}*.tmp") if path.is_dir()]


def _beside(path: Path) -> Path:
    """A new temporary name in the folder of a path; the folder is made if it is missing."""
    with _explained(path, path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{_session():08x}{_name_hash(path)}{uuid4().hex[:8]}.tmp"


def _session() -> int:
    """A number that this process shares with the processes of its session alone."""
    return os.getpid() if sys.platform == "win32" else os.getsid(0)


def remove_temporaries(folder: Path, session: int) -> None:
    """Remove the temporary files and folders that the killed processes of a session have left below a folder."""
    for path in [*folder.rglob(f".{session:08x}*.tmp")]:
        if (path / OLD).exists():  # the folder that it belongs to is missing: `whole_folder`
            continue
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink()


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Turns what the system refuses into a `UserError` about `path`, and names `path` instead of `temporary`."""
    try:
        yield
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        raise cannot_write(path, error) from error
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(path))) from error


def cannot_write(path: Path, error: Exception) -> UserError:
    """What is raised where a file or folder cannot be written."""
    return UserError(f"cannot write {path}: {first_line(error)}")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically. UserError if the file cannot be written, or the value holds a name
    that is not UTF-8; ValueError for NaN, which our own readers would refuse.
    """
    content = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_bytes(f"{content}\n".encode())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a `.safetensors` file, atomically.

    The same content gives the same bytes, unlike with the package safetensors, which shuffles the metadata: a bank is
    known by its bytes.
    """
    ordered = sorted(tensors.items(), key=lambda entry: (-entry[1].element_size(), entry[0]))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        dtype = str(tensor.dtype).removeprefix("torch.").upper()
        for long, short in (("FLOAT", "F"), ("UINT", "U"), ("INT", "I")):
            dtype = dtype.replace(long, short)
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(_raw(tensor))


def hash_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value` (sorted keys, no spaces), as 64 hex digits."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def hash_rows(rows: Iterable[Any], beside: dict[str, Any] | None = None, name: str = "") -> str:
    """`hash_json(list(rows))`, or with `beside`, `hash_json(beside | {name: list(rows)})`, where the rows are too many
    for memory.
    """
    before, after = "[", "]"
    if beside is not None:
        before, after = _canonical({**beside, name: ["\0"]}).split('"\\u0000"')
    digest = hashlib.sha256(before.encode())
    for number, row in enumerate(rows):
        digest.update(f"{',' if number else ''}{_canonical(row)}".encode())
    digest.update(after.encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of the bytes of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_version(path: Path) -> tuple[Path, int, int]:
    """What changes whenever a file does, as far as its status tells: path, size and time of change in nanoseconds."""
    status = path.stat()
    return path.resolve(), status.st_size, status.st_mtime_ns


def hash_content(value: Any) -> str:
    """SHA-256 over plain values and tensors, nested in dicts, lists and tuples, as 64 hex digits.

    A list and a tuple with equal entries have the same hash.
    """
    digest = hashlib.sha256()
    for part in _parts(value, outermost=True):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any, outermost: bool = False) -> Iterator[Any]:
    """The bytes that tell nested values apart. Each container but the outermost one begins with its length."""
    import torch  # which the files of data sets do not need

    if isinstance(value, dict):
        yield b"" if outermost else f"{{{len(value)}:".encode()
        for key, entry in value.items():
            yield f"{key!r}:".encode()
            yield from _parts(entry)
    elif isinstance(value, (list, tuple)):
        yield b"" if outermost else f"[{len(value)}:".encode()
        for entry in value:
            yield from _parts(entry)
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype}{list(value.shape)}".encode()
        yield _raw(value)
    else:
        yield f"{value!r};".encode()


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, which are no copy of those of one that is contiguous and on the CPU."""
    import torch  # which the files of data sets do not need

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

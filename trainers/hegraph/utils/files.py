"""Write files and folders atomically, protect inputs from being overwritten, and hash contents.

Files and folders are written under a temporary name in the folder of the target, and then renamed. A killed process
can leave its temporary file or folder, with a name that begins with a dot and ends with `.tmp`. The next process that
writes a file beside it, or the same folder, removes it. Beside a temporary file or folder, a file with the ending
`.owner` is locked while its process lives, so that no other process removes it.
"""

import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from safetensors import SafetensorError

from .errors import UserError, first_line
from .file_lock import NO_LOCKS, FileLock

if TYPE_CHECKING:
    from torch import Tensor

OLD = "old"  # the replaced folder, within the temporary folder of `writing_folder`
METADATA = "metadata"  # key of all metadata in a `.safetensors` file
OWNER = ".owner"  # ending of the locked file beside the temporary folder of `writing_folder`
RENAME_EXCHANGE = 2  # flag of Linux's renameat2
AT_FDCWD = -100  # relative to the working directory, an argument of renameat2

_searched: set[Path] = set()  # folders in which this process has looked for temporary files of killed processes


def absolute(path: str | Path) -> Path:
    """Return the absolute path, with `~` expanded; UserError for the home folder of an unknown user."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"{path} begins with the home folder of an unknown user; write the whole path") from error


class OutputFile:
    """Argument type of a file to write. `Parser` checks that it can be written and that no other argument reads it.

    Args:
        replaces: Endings of earlier outputs, which may be replaced in a folder that the command reads.
        added: Endings that the command appends to the name.
    """

    def __init__(self, *replaces: str, added: Sequence[str] = ("",)) -> None:
        self.replaces, self.added = replaces, added

    def __call__(self, text: str) -> Path:
        return Path(text)

    def check(self, path: Path, reads: Any) -> None:
        """Raise UserError as `check_output`; `reads` are the values of the other arguments."""
        for ending in self.added:
            check_output(Path(f"{path}{ending}"), reads, self.replaces)
        check_writable(path)


class OutputFolder(OutputFile):
    """Argument type of a folder to write or to replace."""

    def check(self, path: Path, reads: Any) -> None:
        """Raise UserError if the folder is inside a model or project, or contains one of the paths in `reads`."""
        check_outside_models(path)
        whole = real_path(path)
        if whole.exists() and any(whole in (read, *read.parents) for read in map(Path.resolve, _existing_paths(reads))):
            raise UserError(f"{path} contains input of this command, and is not replaced; choose another folder")
        check_writable(path)


def check_output(path: Path, reads: Any = (), replaces: tuple[str, ...] = ()) -> None:
    """Check that a file may be written, or replaced, before the work begins.

    Args:
        path: File to write, perhaps through links.
        reads: Strings and paths, nested in dicts and lists. Existing files among them are protected, and all files
            below existing folders.
        replaces: Endings of files in these folders that are not protected.

    Raises:
        UserError: If the path is a folder, a pipe or a device, is protected, or lies in a model folder or in the
            `.hegraph` folder of a teach project.
    """
    check_not_read(path, reads, replaces)
    check_outside_models(path)
    if (path.parent / "result.json").is_file():  # the output folder of a run
        check_not_read(path, path.parent, replaces)


def check_not_read(path: Path, reads: Any, replaces: tuple[str, ...] = ()) -> None:
    """Raise UserError if a file to write is protected, or is no file; arguments as in `check_output`."""
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"{path} is no file but a folder, a pipe or a device; choose another name")
    folders = () if path.name.lower().endswith(replaces) else path.resolve().parents
    for read in _existing_paths(reads):
        if any(_is_same(read, place) for place in (path, *folders)):
            raise UserError(f"{path} is read by this command, and is not overwritten; choose another name")


def check_writable(path: Path) -> None:
    """Raise UserError if no file can be created in the folder of a path, or in the one where this would be created."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise cannot_write(path, error) from error


def _is_same(path: Path, other: Path | str) -> bool:
    """Whether two paths lead to the same file; False for a missing file."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):  # ValueError: a NUL character
        return False


def check_outside_models(path: Path) -> None:
    """Raise UserError if a file or folder to write is inside a model folder or a `.hegraph` folder."""
    for parent in {*path.absolute().parents, *real_path(path).parents}:
        if parent.name == ".hegraph" or all((parent / name).is_file() for name in ("config.json", "model.safetensors")):
            raise UserError(f"{path} is inside {parent}, the folder of a model or project; choose another folder")


def real_path(path: Path) -> Path:
    """Resolve a path as `Path.resolve`, which raises RuntimeError for links in a circle before Python 3.13."""
    return Path(os.path.realpath(path))


def _existing_paths(value: Any) -> Iterator[Path]:
    """Iterate over the existing files and folders among strings and paths in nested dicts and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (str, Path)):
        path = os.path.expanduser(value)
        if os.path.exists(path):
            yield Path(path)
    elif isinstance(value, Iterable):
        for entry in value:
            yield from _existing_paths(entry)


@contextmanager
def atomic_path(path: Path, root: Path | None = None) -> Iterator[Path]:
    """Context of a temporary path, which is renamed to `path` at the end without an exception.

    Args:
        path: File to write.
        root: Folder that contains the file and must exist: missing folders below it are created. None creates all.

    Raises:
        UserError: If the file cannot be written, for example on a full disk, in a read-only folder, or without `root`.
    """
    temporary = _temporary_path(path, root)
    _remove_leftover_files(path.parent)
    try:
        with _converted_errors(path, temporary), _owned(temporary):
            temporary.touch()
            mode = temporary.stat().st_mode  # of the umask; safetensors creates files that only the owner can read
            yield temporary
            temporary.chmod(mode)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Context of a temporary folder, which replaces `folder` at the end without an exception.

    If `folder` is a symbolic link, the folder that it points to is replaced, and the link stays.

    If the process is killed, `whole_folder(folder)` is the old folder or the new one. Several processes may write the
    same folder: each replaces the version of the one before.

    Raises:
        UserError: If the folder cannot be written, for example on a full disk or in a read-only folder.
    """
    folder = real_path(folder)
    _remove_leftovers(folder)
    temporary = _temporary_path(folder)
    new = temporary / "new"
    with _converted_errors(folder, new), _owned(temporary):
        try:
            new.mkdir(parents=True)
            yield new
            exists = folder.exists()
            if not (exists and _exchange(new, folder)):
                if exists:
                    os.replace(folder, temporary / OLD)
                os.replace(new, folder)
        finally:
            _remove(temporary, folder)


@contextmanager
def _owned(temporary: Path) -> Iterator[None]:
    """Hold the lock of a temporary file or folder, which shows other processes that this one lives."""
    owner = _owner(temporary)
    try:
        owner.acquire(wait=1.0)  # another process may take the file for a leftover before it is locked
    except OSError as error:
        if error.errno not in NO_LOCKS:  # on a file system without locks, leftovers are not removed
            raise
        owner.path.unlink(missing_ok=True)
    try:
        yield
    finally:
        owner.release()


def _owner(temporary: Path) -> FileLock:
    """Lock of the process that owns a temporary file or folder."""
    return FileLock(temporary.with_name(f"{temporary.name}{OWNER}"))


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of a folder that killed processes have left."""
    leftovers = {path.with_name(path.name.removesuffix(OWNER)) for path in _named_after(folder, f"*.tmp{OWNER}")}
    for temporary in leftovers.union(_temporaries(folder)):
        owner = _owner(temporary)
        try:
            if owner.acquire():
                _remove(temporary, folder)
        except OSError:  # no locks, a read-only folder, or another process was faster
            continue
        finally:
            owner.release()


def _remove_leftover_files(folder: Path) -> None:
    """Remove the temporary files in a folder that killed processes have left, at the first call for the folder."""
    if folder in _searched:
        return
    _searched.add(folder)
    for owner_file in folder.glob(f".{'?' * 24}.tmp{OWNER}"):
        temporary = owner_file.with_name(owner_file.name.removesuffix(OWNER))
        owner = _owner(temporary)
        try:
            if not temporary.is_dir() and owner.acquire():
                temporary.unlink(missing_ok=True)
        except OSError:  # no locks, or a read-only folder
            continue
        finally:
            owner.release()


def whole_folder(folder: Path) -> Path:
    """Return the folder, or its old version if a process was killed while it replaced the folder."""
    if folder.exists():
        return folder
    old_versions = [temporary / OLD for temporary in _temporaries(folder) if (temporary / OLD).is_dir()]
    return old_versions[0] if old_versions else folder


def _remove(temporary: Path, folder: Path) -> None:
    """Remove a temporary folder of `writing_folder`; if `folder` is missing, restore the old one."""
    if (temporary / OLD).exists() and not folder.exists():
        os.replace(temporary / OLD, folder)
    shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders atomically; False if the system or the file system does not support it."""
    if sys.platform != "linux":
        return False
    with suppress(AttributeError):  # an old C library
        rename = ctypes.CDLL(None).renameat2
        return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0
    return False


def name_hash(path: Path) -> str:
    """Part of the name of a file beside `path` that identifies `path`, whose own name may be too long."""
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]


def _named_after(folder: Path, ending: str) -> Iterator[Path]:
    """Iterate over the files and folders, from all processes, that `_temporary_path` has named after a folder."""
    return folder.parent.glob(f".????????{name_hash(folder)}{ending}")


def _temporaries(folder: Path) -> list[Path]:
    """List the temporary folders of a folder, from all processes."""
    return [path for path in _named_after(folder, "*.tmp") if path.is_dir()]


def _temporary_path(path: Path, root: Path | None = None) -> Path:
    """Create a temporary name in the folder of a path, and this folder; `root` as in `atomic_path`."""
    with _converted_errors(path, path):
        if root is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            _make_folders(path.parent, root)
    return path.parent / f".{_session():08x}{name_hash(path)}{uuid4().hex[:8]}.tmp"


def _make_folders(folder: Path, root: Path) -> None:
    """Create a folder and its parents below `root`; FileNotFoundError if `root` is missing."""
    current = root
    for name in folder.relative_to(root).parts:
        current = current / name
        current.mkdir(exist_ok=True)


def _session() -> int:
    """POSIX session of this process, such as the one of its terminal; on Windows, the process itself."""
    return os.getpid() if sys.platform == "win32" else os.getsid(0)


def remove_temporaries(folder: Path, session: int) -> None:
    """Remove temporary files and folders below a folder that killed processes of a POSIX session have left."""
    for path in [*folder.rglob(f".{session:08x}*.tmp"), *folder.rglob(f".{session:08x}*.tmp{OWNER}")]:
        if (path / OLD).exists():  # the only version of a folder: `whole_folder`
            continue
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink()


@contextmanager
def _converted_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Convert errors of the system to a `UserError` about `path`, and replace `temporary` by `path` in messages."""
    try:
        yield
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        raise cannot_write(path, error) from error
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(path)), error.code) from error


def cannot_write(path: Path, error: Exception) -> UserError:
    """Create the error for a file or folder that cannot be written."""
    return UserError(f"cannot write {path}: {first_line(error)}", "file.write")


def write_json(path: Path, value: Any, root: Path | None = None) -> None:
    """Write a value as indented JSON, atomically; `root` as in `atomic_path`.

    Raises:
        UserError: If the file cannot be written, or a string is not valid UTF-8.
        ValueError: For NaN, which `read_json` rejects.
    """
    content = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path, root) as temporary:
        temporary.write_bytes(f"{content}\n".encode())


def write_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str], root: Path | None = None
) -> None:
    """Write a `.safetensors` file, atomically; `root` as in `atomic_path`.

    Equal content gives equal bytes, which identify a feature bank: the metadata are JSON under the one key `METADATA`,
    because the package safetensors shuffles keys. `read_metadata` of `reading.py` is the inverse.

    Raises:
        UserError: If the file cannot be written.
    """
    from safetensors.torch import save_file  # imports torch, which is slow

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path, root) as temporary:
        save_file(stored, temporary, {METADATA: json.dumps(metadata, ensure_ascii=False)})


def hash_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value` (sorted keys, no spaces), as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of the bytes of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_version(path: Path) -> tuple[Path, int, int]:
    """Version of a file by its status: path, size, and time of modification in nanoseconds."""
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
    """Iterate over bytes that identify a nested value. Inner containers begin with their length."""
    import torch  # slow import

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


def _raw(tensor: "Tensor") -> memoryview:
    """Return the bytes of a tensor, without a copy if it is contiguous and on the CPU."""
    import torch  # slow import

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

"""The files of a run as bytes: read where it was done, and written where they belong."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ..experiments.failure import ERROR, remove_failure
from ..experiments.lock import HOLDER, LOCK
from ..results.records import RECORD
from ..training.checkpoints import CHECKPOINT
from ..utils.files import atomic_path, writing_folder

Files = dict[str, bytes]  # path below the folder of the run, with slashes -> content


def read_files(folder: Path) -> Files:
    """What a run has left in its folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (LOCK, HOLDER))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_files(folder: Path, files: Files) -> None:
    """Writes what a run has left: every file and every folder whole or not at all, and the record last of all.

    As a run on this machine would, it takes away what an earlier attempt has left to say of its failure, and the
    checkpoint of a run that is finished.

    Raises:
        UserError: If the folder cannot be written.
    """
    rest = dict(files)
    record = rest.pop(RECORD, None)
    if ERROR not in files:
        remove_failure(folder)
    for top in dict.fromkeys(name.partition("/")[0] for name in rest if "/" in name):
        with writing_folder(folder / top) as new:
            for name in [name for name in rest if name.startswith(f"{top}/")]:
                path = new / PurePosixPath(name).relative_to(top)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(rest.pop(name))
    for name, content in rest.items():
        _write(folder / name, content)
    if record is not None:
        _write(folder / RECORD, record)
    if CHECKPOINT not in files:
        (folder / CHECKPOINT).unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)

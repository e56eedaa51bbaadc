"""Fetches the files of a data set from several mirrors, and unpacks archives into CoOp's layout.

What came is unpacked beside its target, and renamed into place once it is whole. What is in place is never touched.
Nothing in an archive is trusted: Python's modules keep its members inside the folder in which it is unpacked, and an
archive with symbolic links is refused.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from ..utils.errors import UserError, first_line
from .registry import Source
from .web import Broken, check_file, fetch_file, page_of, remove_parts, writing

logger = logging.getLogger(__name__)

LOCK = ".download.lock"


class Unreachable(UserError):
    """No mirror gives a file."""


def download(name: str, sources: Sequence[Source], folder: Path) -> None:
    """Fetches what is missing of a data set. The next call goes on after an interruption.

    Raises UserError if a file cannot be fetched (the others are fetched all the same) or written.
    """
    failures = []
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)  # two at once would mix their bytes in one file: the second waits
    with contextlib.suppress(OSError, NotImplementedError):  # a disk that is read-only, or that has no locks
        lock.acquire()
    try:
        for source in sources:
            try:
                fetch(source, folder)
            except Unreachable as error:
                failures.append((source, error))
    finally:
        lock.release()
        (folder / LOCK).unlink(missing_ok=True)
    # The archive of a later source may have brought what failed before
    if errors := [str(error) for source, error in failures if missing_of(source.targets, folder)]:
        raise Unreachable(f"{name} is not complete: {'; '.join(errors)}")


def fetch(source: Source, folder: Path) -> None:
    """Fetches one file unless its targets are in place. An archive is unpacked, then removed.

    Raises:
        Unreachable: If no mirror gives it. The message says why, for each, and how to get it by hand.
        UserError: If an archive that the user has put there is of no use, or the disk is full or cannot be written.
    """
    alternatives = [source, *source.otherwise]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        at_hand = next((a for a in alternatives if a.unpack and (folder / a.file).is_file()), None)
        if not missing_of(source.targets, folder):
            logger.info("%s: in place", folder / source.targets[0])
        elif at_hand:  # put there by hand, or left by an interruption while it was unpacked
            path = folder / at_hand.file
            try:
                check_file(path, at_hand.size, at_hand.checksum)
                _unpack(path, at_hand, source.targets, folder)
            except Broken as error:
                raise UserError(f"{path} is of no use: {error}; delete it and run the same command again") from error
        else:
            _fetch_from_any(alternatives, folder)
        for alternative in alternatives:  # parts, and what a killed process was unpacking
            shutil.rmtree(_unpacking(folder / alternative.file), ignore_errors=True)
            remove_parts(folder / alternative.file)


def _fetch_from_any(alternatives: Sequence[Source], folder: Path) -> None:
    """Fetches and unpacks the first of the alternatives that a mirror gives."""
    wanted = alternatives[0]
    reasons = []
    for source, url in [(alternative, url) for alternative in alternatives for url in alternative.urls]:
        path = folder / source.file
        logger.info("%s: from %s", path, page_of(url))
        try:
            fetch_file(url, path, source.size, source.checksum)
            if source.unpack:
                _unpack(path, source, wanted.targets, folder)
            return
        except Broken as error:
            reasons.append(f"{page_of(url)}: {error}")
            logger.warning("%s", reasons[-1])
            path.unlink(missing_ok=True)
    raise Unreachable(
        f"cannot fetch {wanted.file} ({'; '.join(reasons)}); get it by hand: open {page_of(wanted.urls[0])}, save it "
        f"as {folder / wanted.file} and run the same command again"
    )


def missing_of(targets: Sequence[str], folder: Path) -> list[str]:
    """Those of `targets` that are not in `folder`. An empty folder counts as missing, since it has nothing to lose."""
    missing = []
    for target in targets:
        path = folder / target
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to nothing; mend it, or delete it and run the same command again")
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            missing.append(target)
    return missing


# Archives


def _unpacking(archive: Path) -> Path:
    """The folder in which an archive is unpacked, before its members are moved into place."""
    return archive.with_name(f".{archive.name}.unpacking")


def _unpack(archive: Path, source: Source, required: Sequence[str], folder: Path) -> None:
    """Unpacks an archive, moves the missing targets of a source into place in `folder`, and removes the archive.

    Raises `Broken` if it is damaged or not safe, or does not hold the targets that are `required`.
    """
    logger.info("unpacking %s", archive)
    temporary = _unpacking(archive)
    shutil.rmtree(temporary, ignore_errors=True)
    content = temporary / "outer"
    try:
        _extract(archive, content)
        if source.inner:
            packed = _find(source.inner, content, archive)
            if packed is None:
                raise Broken(f"{archive.name} holds no {source.inner}")
            content = temporary / "inner"
            _extract(packed, content)
        wanted = {end: target for end, target in source.unpack.items() if missing_of([target], folder)}
        found = {end: _find(end, content, archive) for end in wanted}
        if absent := [end for end, target in wanted.items() if found[end] is None and target in required]:
            raise Broken(f"{archive.name} holds no {absent[0]}")
        for end, path in found.items():
            if path is not None:
                (folder / wanted[end]).parent.mkdir(parents=True, exist_ok=True)
                os.rename(path, folder / wanted[end])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    archive.unlink()


def _extract(archive: Path, into: Path) -> None:
    """Unpacks a whole archive into a new folder; raises `Broken` if it cannot be read or is not safe."""
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"{archive}: this Python cannot unpack it safely; take 3.10.12, 3.11.4 or later")
    into.mkdir(parents=True)
    with archive.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        if is_zip:
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(into)  # keeps every member inside, and makes no links
            return
        with tarfile.open(archive, "r:*") as packed:  # finds the compression itself, as the name may be wrong
            packed.extractall(into, filter=_without_links)
            while packed.fileobj is not None and packed.fileobj.read(1 << 20):
                pass  # gzip compares its checksum at the end
    except Exception as error:  # the modules raise many kinds
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise Broken(f"the archive is damaged or not safe: {first_line(error)}") from error


def _without_links(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo:
    """Python's rules for data (PEP 706: no devices, nothing outside), and no symbolic links either."""
    if member.issym():
        raise ValueError(f"{member.name!a} is a symbolic link")
    return tarfile.data_filter(member, into)


def _find(end: str, content: Path, archive: Path) -> Path | None:
    """The file or folder nearest to the root whose path ends with `end`; None if there is none."""
    paths = [path for path in content.rglob(end) if "__MACOSX" not in path.relative_to(content).parts]
    found = sorted(paths, key=lambda path: (len(path.parts), path))
    if len(found) > 1 and len(found[0].parts) == len(found[1].parts):
        two = " and ".join(path.relative_to(content).as_posix() for path in found[:2])
        raise Broken(f"{archive.name} holds two {end}: {two}")
    return found[0] if found else None

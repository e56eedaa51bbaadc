"""Unpacking an archive: whole or not at all, and never outside its targets. Nothing in an archive is trusted.

The standard library judges the members of a tar archive: `tarfile.data_filter` (PEP 706) refuses devices, paths that
lead out of the folder in which the archive is unpacked, and links that do. Early patch releases of Python 3.10 and 3.11
lack it; there, every member that is neither a file nor a folder is refused. In addition, no member of a tar or a zip
may have an absolute path, a path with "..", or a path that passes through a link of the archive.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from ..utils.errors import UserError
from .entry import Member, Source
from .web import Broken, need_room, writing

logger = logging.getLogger(__name__)

Extract = Callable[[Any, Path], object]  # takes the module's own handle of a member, and the folder it goes to


class Damaged(Broken):
    """An archive cannot be read, so it is removed. One that only lacks an expected member is kept for the user."""


class Packed(NamedTuple):
    """A member of an archive: its path, its size in bytes, whether it is a link, and the module's handle of it."""

    parts: tuple[str, ...]
    size: int
    is_link: bool
    handle: Any


def unpack(archive: Path, source: Source, required: Sequence[str], folder: Path) -> None:
    """Unpacks the missing targets of a source beside `folder`'s files, moves each into place, and removes the archive.

    Args:
        archive: The archive, which is in `folder`. What is there already is left alone.
        required: The targets that must be in the archive.

    Raises:
        Broken: If the archive is damaged, or does not hold what is required.
        UserError: If it is not safe, or the disk is full or cannot be written.
    """
    logger.info("unpacking %s", archive)
    wanted = [member for member in source.unpack if missing_of([member.target], folder)]
    temporary = unpacking_of(archive)
    with writing(folder):
        if temporary.exists():  # of a process that was killed
            shutil.rmtree(temporary)
        temporary.mkdir()
    try:
        packed = archive
        if source.inner:
            packed = _extract(archive, [Member(source.inner, "inner")], ["inner"], temporary / "outer")["inner"]
        for target, path in _extract(packed, wanted, required, temporary / "members").items():
            _move(path, folder / target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with writing(archive):
        archive.unlink()


def unpacking_of(archive: Path) -> Path:
    """The folder in which an archive is unpacked, before its members are moved into place."""
    return archive.with_name(f".{archive.name}.unpacking")


def missing_of(targets: Sequence[str], folder: Path) -> list[str]:
    """Those of `targets` that are not in `folder`. An empty folder counts as missing, since it has nothing to lose."""
    missing = []
    for target in targets:
        path = folder / target
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to nothing; mend it, or delete it and run the same command again")
        if not path.exists() or _is_empty_folder(path):
            missing.append(target)
    return missing


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _move(path: Path, target: Path) -> None:
    """Moves what was unpacked to its target, unless something has appeared there in the meantime."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_empty_folder(target):
            target.rmdir()
        if not os.path.lexists(target):
            os.rename(path, target)


def _extract(archive: Path, wanted: Sequence[Member], required: Sequence[str], into: Path) -> dict[str, Path]:
    """Unpacks the wanted members into a new folder; target -> where it is now, without some that are not required."""
    roots: dict[str, Path] = {}
    chosen: dict[tuple[str, ...], Packed] = {}  # of several members with one path, the last
    with writing(into), _reading(), _opened(archive) as (members, extract):
        into.mkdir()
        _refuse_paths_through_links(members, archive)
        for member in wanted:
            parts = _find(member.path, members, archive)
            if parts is not None:
                roots[member.target] = into.joinpath(*parts)
                chosen |= {m.parts: m for m in members if m.parts[: len(parts)] == parts}
            elif member.target in required:
                raise Broken(f"{archive.name} holds no {member.path}")
        need_room(into, sum(member.size for member in chosen.values()))
        with tqdm(chosen.values(), desc=f"unpacking {archive.name}", unit="file", disable=None) as bar:
            for packed in bar:
                _extract_one(extract, packed, archive, into)
        moved = {target: into.with_name(f"{into.name}-{number}") for number, target in enumerate(roots)}
        for target, root in roots.items():
            os.rename(root, moved[target])
    for root in moved.values():
        _refuse_links_out(root, archive)
    return moved


def _extract_one(extract: Extract, packed: Packed, archive: Path, into: Path) -> None:
    try:
        extract(packed.handle, into)
    except getattr(tarfile, "FilterError", ()) as error:
        raise _unsafe(archive, "/".join(packed.parts), f"not safe ({error})") from error


def _refuse_paths_through_links(members: Sequence[Packed], archive: Path) -> None:
    links = {member.parts for member in members if member.is_link}
    for member in members:
        if any(member.parts[:length] in links for length in range(1, len(member.parts))):
            raise _unsafe(archive, "/".join(member.parts), "a path through a link")


def _refuse_links_out(root: Path, archive: Path) -> None:
    """Raises UserError if a link leads out of what was unpacked, which has been moved: what was around stayed."""
    for link in (path for path in (root, *root.rglob("*")) if path.is_symlink()):
        if link == root or not Path(os.path.realpath(link)).is_relative_to(os.path.realpath(root)):
            raise _unsafe(archive, str(link.relative_to(root)), f"a link to {os.readlink(link)}, which stays behind")


def _find(path: str, members: Sequence[Packed], archive: Path) -> tuple[str, ...] | None:
    """The file or folder nearest to the root whose path ends with `path`; None if there is none."""
    wanted = tuple(path.split("/"))
    paths = {member.parts[:length] for member in members for length in range(len(wanted), len(member.parts) + 1)}
    found = sorted((len(parts), parts) for parts in paths if parts[-len(wanted) :] == wanted)
    if len(found) > 1 and found[0][0] == found[1][0]:
        raise Broken(f"{archive.name} holds two {path}: {'/'.join(found[0][1])} and {'/'.join(found[1][1])}")
    return found[0][1] if found else None


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[Packed], Extract]]:
    """Gives the members of an archive in its order, without what only macOS reads, and what extracts one."""
    with archive.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(archive) as zipped:
            yield _kept(_zip_member(info, archive) for info in zipped.infolist()), zipped.extract
    else:
        with tarfile.open(archive, "r:*") as packed:  # finds the compression itself, as the name may be wrong
            members = _kept(_tar_member(info, archive) for info in packed.getmembers())
            _read_to_the_end(packed.fileobj)  # type: ignore[arg-type]  # typeshed knows only part of it
            options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            yield members, lambda info, into: packed.extract(info, into, **options)


def _kept(members: Iterator[Packed]) -> list[Packed]:
    return [member for member in members if member.parts and member.parts[0] != "__MACOSX"]


def _zip_member(info: zipfile.ZipInfo, archive: Path) -> Packed:
    parts = _parts(info.filename, archive)
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _unsafe(archive, info.filename, "a link or a device")
    info.filename = "/".join(parts) + ("/" if info.is_dir() else "")
    return Packed(parts, info.file_size, False, info)


def _tar_member(info: tarfile.TarInfo, archive: Path) -> Packed:
    parts = _parts(info.name, archive)
    if not (hasattr(tarfile, "data_filter") or info.isreg() or info.isdir()):
        what = "a link or a device, which this Python cannot check (3.10.12, 3.11.4 and later can)"
        raise _unsafe(archive, info.name, what)
    info.name = "/".join(parts)
    return Packed(parts, info.size if info.isreg() else 0, info.issym(), info)


def _parts(name: str, archive: Path) -> tuple[str, ...]:
    path = name.replace("\\", "/")
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        raise _unsafe(archive, name, "an absolute path")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in path:
        raise _unsafe(archive, name, "a path that leads out of the archive")
    return parts


def _unsafe(archive: Path, name: str, what: str) -> UserError:
    return UserError(
        f"{archive} is refused, as its member {name!r} is {what}; nothing of it was unpacked, delete it and get the "
        "data elsewhere"
    )


def _read_to_the_end(file: IO[bytes]) -> None:
    """Makes gzip compare its checksum, which comes after all that tarfile reads."""
    try:
        while file.read(1 << 20):
            pass
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):  # harmless bytes after the checksum
            raise


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Raises `Damaged` for what Python's archive modules raise on a damaged file."""
    try:
        yield
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError, KeyError,
        RuntimeError, NotImplementedError, UnicodeError,  # zipfile: encrypted, unknown method, or a bad name
    ) as error:  # fmt: skip
        raise Damaged(f"the archive is damaged: {str(error) or type(error).__name__}") from error

"""Archives: unpacked whole or not at all, and never outside their target. Nothing in one is trusted."""

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from ...utils.errors import UserError
from .sources import Member, Source

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

MAX_LINK = 4096  # bytes of a path


class Broken(Exception):
    """This mirror is of no use. The text is a reason in one line."""


class Damaged(Broken):
    """An archive cannot be read. One that only lacks what was expected is kept, for its content may be of use."""


@dataclass(frozen=True)
class _Entry:
    """A member of an archive, of whatever kind.

    Attributes:
        name: As the archive has it.
        parts: Its path.
        kind: "file", "folder", "link" (symbolic) or "hard link"; anything else is refused.
        size: Of a file, in bytes.
        link: Where a link leads, as the archive has it.
        handle: What the archive opens it by.
        leads_to: The path that a link leads to, once that is known to be safe.
    """

    name: str
    parts: tuple[str, ...]
    kind: str
    size: int
    link: str
    handle: Any
    leads_to: tuple[str, ...] = ()


def unpack(archive: Path, source: Source, required: Sequence[str], folder: Path) -> None:
    """Puts the missing targets in place, each when it is whole, and removes the archive.

    Raises:
        Broken: If the archive is damaged, or does not hold what is `required`.
        UserError: If it is not safe, or the disk is full or cannot be written.
    """
    logger.info("unpacking %s", archive)
    wanted = [member for member in source.unpack if missing_of([member.target], folder)]
    temporary = folder / f".{archive.name}.unpacking"
    with writing(folder):
        if temporary.exists():  # of a process that was killed
            shutil.rmtree(temporary)
        temporary.mkdir()
    try:
        packed = archive
        if source.inner:
            packed = _extract(archive, [Member(source.inner, "inner")], ["inner"], temporary / "outer")["inner"]
        for target, path in _extract(packed, wanted, required, temporary / "members").items():
            _settle(path, folder / target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with writing(archive):
        archive.unlink()


def _settle(path: Path, target: Path) -> None:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_empty_folder(target):
            target.rmdir()
        if not os.path.lexists(target):
            os.rename(path, target)


def _extract(archive: Path, members: Sequence[Member], required: Sequence[str], into: Path) -> dict[str, Path]:
    """Unpacks members into a new folder. Returns target -> where it is now; what is not required may be absent."""
    make_folder(into)
    places = {}
    with _reading(archive), _open_archive(archive) as (entries, open_entry):
        entries = _safe(entries, archive)
        chosen = []
        for number, member in enumerate(members):
            root = _find(member.path, entries, archive)
            if root is None:
                if member.target in required:
                    raise Broken(f"{archive.name} holds no {member.path}")
                continue
            places[member.target] = into / str(number)
            for entry in entries:
                if entry.parts[: len(root)] == root:
                    if entry.kind == "link" and entry.leads_to[: len(root)] != root:
                        raise _unsafe(archive, entry.name, f"a link to {entry.link}, which stays behind")
                    chosen.append((entry, places[member.target].joinpath(*entry.parts[len(root) :])))
        need_room(into, sum(entry.size for entry, _ in chosen))
        with tqdm(chosen, desc=f"unpacking {archive.name}", unit="file", disable=None) as bar:
            for entry, path in bar:
                with writing(path):
                    _write_entry(entry, path, open_entry)
    return places


def _write_entry(entry: _Entry, path: Path, open_entry: Callable[[Any], IO[bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.kind == "folder":
        path.mkdir(exist_ok=True)
    elif entry.kind == "link":
        path.symlink_to(entry.link)
    else:
        with open_entry(entry.handle) as packed, path.open("xb") as file:  # x: never through something that is there
            shutil.copyfileobj(packed, file, 1 << 20)
        if path.stat().st_size != entry.size:
            raise Damaged(f"the archive is damaged: {entry.name} ends too early")


def _find(path: str, entries: Sequence[_Entry], archive: Path) -> tuple[str, ...] | None:
    """The file or folder nearest to the root whose path ends with `path`."""
    wanted = tuple(path.split("/"))
    paths = {entry.parts[:length] for entry in entries for length in range(len(wanted), len(entry.parts) + 1)}
    found = sorted((len(parts), parts) for parts in paths if parts[-len(wanted) :] == wanted)
    if len(found) > 1 and found[0][0] == found[1][0]:
        raise Broken(f"{archive.name} holds two {path}: {'/'.join(found[0][1])} and {'/'.join(found[1][1])}")
    return found[0][1] if found else None


@contextlib.contextmanager
def _open_archive(archive: Path) -> Iterator[tuple[list[_Entry], Callable[[Any], IO[bytes]]]]:
    """All entries in the order of the archive, and a function that opens the content of one by its handle."""
    with archive.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(archive) as packed:
            yield [_zip_entry(info, packed, archive) for info in packed.infolist()], packed.open
    else:
        with tarfile.open(archive, "r:*") as packed:  # whatever compression, whatever its name says
            entries = [_tar_entry(member, archive) for member in packed.getmembers()]
            _read_to_the_end(packed.fileobj)
            yield entries, packed.extractfile


def _read_to_the_end(file: IO[bytes]) -> None:
    """Lets a gzip file compare its sum, which is behind all that a tar file needs."""
    try:
        while file.read(1 << 20):
            pass
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):  # that is rubbish behind the sum, which does no harm
            raise


def _zip_entry(info: zipfile.ZipInfo, packed: zipfile.ZipFile, archive: Path) -> _Entry:
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    kind = "folder" if info.is_dir() else kinds.get(stat.S_IFMT(info.external_attr >> 16), "device")
    link = ""
    if kind == "link":
        if info.file_size > MAX_LINK:
            raise _unsafe(archive, info.filename, "a link without end")
        link = packed.read(info).decode()
    return _Entry(info.filename, _parts(info.filename, archive), kind, info.file_size, link, info)


def _tar_entry(member: tarfile.TarInfo, archive: Path) -> _Entry:
    if member.isfile():
        kind = "file"
    elif member.isdir():
        kind = "folder"
    elif member.issym():
        kind = "link"
    else:
        kind = "hard link" if member.islnk() else "device"
    size = member.size if kind == "file" else 0
    return _Entry(member.name, _parts(member.name, archive), kind, size, member.linkname, member)


def _parts(name: str, archive: Path) -> tuple[str, ...]:
    path = name.replace("\\", "/")
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        raise _unsafe(archive, name, "an absolute path")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in path:
        raise _unsafe(archive, name, "a path that leads out of the archive")
    return parts


def _safe(entries: Sequence[_Entry], archive: Path) -> list[_Entry]:
    """The entries that may be unpacked, hard links as the files that they stand for. One bad entry refuses all.

    Raises:
        UserError: If an entry is a device, or leads out of the archive, itself or through a link.
    """
    by_path = {}
    for entry in entries:
        if entry.parts and entry.parts[0] != "__MACOSX":  # which holds what only the Finder reads
            by_path.pop(entry.parts, None)
            by_path[entry.parts] = entry  # of two with one path the later counts, as everywhere
    links = {entry.parts for entry in entries if entry.kind == "link"}
    for entry in entries:
        if entry.kind == "device":
            raise _unsafe(archive, entry.name, "a device")
        if any(entry.parts[:length] in links for length in range(1, len(entry.parts))):
            raise _unsafe(archive, entry.name, "a path through a link")
        if entry.kind not in ("link", "hard link"):
            continue
        leads_to = _follow(entry, entry.parts[:-1] if entry.kind == "link" else (), links, archive)
        resolved = replace(entry, leads_to=leads_to)
        if entry.kind == "hard link":
            target = by_path.get(leads_to)
            if target is None or target.kind != "file":
                raise _unsafe(archive, entry.name, "a link to nothing in the archive")
            resolved = replace(target, name=entry.name, parts=entry.parts)
        if by_path.get(entry.parts) is entry:
            by_path[entry.parts] = resolved
    return list(by_path.values())


def _follow(entry: _Entry, start: tuple[str, ...], links: set[tuple[str, ...]], archive: Path) -> tuple[str, ...]:
    """Where a link leads. One step at a time: behind another link, `..` would be elsewhere than it seems."""
    target = entry.link.replace("\\", "/")
    if target.startswith("/") or re.match(r"[A-Za-z]:", target):
        raise _unsafe(archive, entry.name, f"a link to {entry.link}")
    at = start
    for step in target.split("/"):
        if step == ".." and not at:
            raise _unsafe(archive, entry.name, f"a link to {entry.link}")
        if step not in ("", "."):
            at = at[:-1] if step == ".." else (*at, step)
        if at in links:
            raise _unsafe(archive, entry.name, "a link to a link")
    return at


def _unsafe(archive: Path, name: str, what: str) -> UserError:
    return UserError(
        f"{archive} is refused, as its member {name!r} is {what}; nothing of it was unpacked, delete it and get the "
        "data elsewhere"
    )


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """What Python's archive modules raise on a damaged file becomes `Damaged`."""
    try:
        yield
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError,
        RuntimeError, NotImplementedError, UnicodeDecodeError,  # zipfile: encrypted, unknown method; a name
    ) as error:  # fmt: skip
        raise Damaged(f"the archive is damaged: {str(error) or type(error).__name__}") from error


# --- the disk


def make_folder(folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except gzip.BadGzipFile:  # an OSError that is not about writing
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}; free or choose a disk that can be written")


def need_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        needed, there = (tqdm.format_sizeof(n, "B", 1024) for n in (size, free))
        raise UserError(f"{folder} has no room: {needed} more are needed and {there} are free; free some and run again")


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps a second download out of the folder: two writers would mix their bytes in one file."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is downloading into {folder}; wait for it, or end it") from error
        except OSError as error:  # some network file systems lock no folders
            logger.debug("%s cannot be locked: %s", folder, error)
        yield
    finally:
        os.close(handle)


def missing_of(targets: Sequence[str], folder: Path) -> list[str]:
    """Those of `targets` that are not there. An empty folder has nothing to lose and counts as not there.

    Raises:
        UserError: If one is a link to nothing, which is neither there nor ours to replace.
    """
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

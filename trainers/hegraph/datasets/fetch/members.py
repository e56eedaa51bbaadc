"""The members of a zip or tar archive, refused as a whole if one of them is not safe to unpack.

The standard library judges the members of a tar archive: `tarfile.data_filter` (PEP 706) refuses devices, paths that
lead out of the folder in which the archive is unpacked, and links that do. zipfile has nothing like it, nor have early
patch releases of Python 3.10 and 3.11, such as Debian's 3.11.2; there, every member that is neither a file nor a folder
is refused. In addition, no member of either may have an absolute
path, a path with "..", or a path that passes through a link of the archive.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...utils.errors import UserError
from .failures import Damaged


@dataclass(frozen=True)
class ArchiveMember:
    """A file, folder or symbolic link of an archive.

    Attributes:
        name: Its name in the archive.
        parts: Its path, without "." and empty parts.
        kind: "file", "folder" or "link".
        size: Of a file, in bytes; 0 for the others.
        link: The path that a link holds; "" for the others.
        handle: What the archive's module opens it by.
    """

    name: str
    parts: tuple[str, ...]
    kind: str
    size: int
    link: str
    handle: Any


Opener = Callable[[Any], IO[bytes]]  # takes the handle of a file, returns its content


@contextlib.contextmanager
def open_archive(archive: Path, into: Path) -> Iterator[tuple[list[ArchiveMember], Opener]]:
    """Gives the members of an archive in its order, and a function that opens one of its files.

    Of several members with one path only the last is given, as unpacking them all would leave that one. A hard link is
    given as the file that it stands for.

    Args:
        archive: The archive.
        into: The folder, still empty, in which it will be unpacked.

    Raises:
        Damaged: If the archive cannot be read, here or in the block.
        UserError: If a member is not safe.
    """
    with _reading():
        with archive.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        if is_zip:
            with zipfile.ZipFile(archive) as zipped:
                yield _without_duplicates(_zip_members(zipped, archive), archive), zipped.open
        else:
            with tarfile.open(archive, "r:*") as packed:  # finds the compression itself, as the name may be wrong
                members = _without_duplicates(_tar_members(packed, archive, into), archive)
                _read_to_the_end(packed.fileobj)  # type: ignore[arg-type]  # typeshed knows only part of it
                yield members, packed.extractfile  # type: ignore[misc]  # None only for what is no file


def unsafe(archive: Path, name: str, what: str) -> UserError:
    return UserError(
        f"{archive} is refused, as its member {name!r} is {what}; nothing of it was unpacked, delete it and get the "
        "data elsewhere"
    )


def _zip_members(zipped: zipfile.ZipFile, archive: Path) -> list[ArchiveMember]:
    members = []
    for info in zipped.infolist():
        kind = "folder" if info.is_dir() else "file"
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise unsafe(archive, info.filename, "a link or a device")
        members.append(ArchiveMember(info.filename, _parts(info.filename, archive), kind, info.file_size, "", info))
    return members


def _tar_members(packed: tarfile.TarFile, archive: Path, into: Path) -> list[ArchiveMember]:
    files: dict[tuple[str, ...], tarfile.TarInfo] = {}
    members = []
    for info in packed.getmembers():
        name, parts, kind = info.name, _parts(info.name, archive), "file"
        _judge(info, archive, into)
        if info.islnk():
            target = files.get(tuple(posixpath.normpath(info.linkname).split("/")))
            if target is None:
                raise unsafe(archive, name, f"a hard link to {info.linkname}, and no file before it is called so")
            info = target
        elif info.issym() or info.isdir():
            kind = "link" if info.issym() else "folder"
        if kind == "file":
            files[parts] = info
        size, link = (info.size if kind == "file" else 0), (info.linkname if kind == "link" else "")
        members.append(ArchiveMember(name, parts, kind, size, link, info))
    return members


def _judge(info: tarfile.TarInfo, archive: Path, into: Path) -> None:
    """Raises UserError if a member of a tar archive is a device, or a link that leads out of the folder `into`."""
    if hasattr(tarfile, "data_filter"):
        try:
            tarfile.data_filter(info, str(into))
        except tarfile.FilterError as error:
            raise unsafe(archive, info.name, f"not safe ({error})") from error
    elif not (info.isreg() or info.isdir()):
        raise unsafe(
            archive, info.name, "a link or a device, which this Python cannot check (3.10.12, 3.11.4 and later can)"
        )


def _without_duplicates(members: Sequence[ArchiveMember], archive: Path) -> list[ArchiveMember]:
    """The last member of each path, without those that only the Finder of macOS reads.

    Raises:
        UserError: If the path of a member passes through a link.
    """
    links = {member.parts for member in members if member.kind == "link"}
    for member in members:
        if any(member.parts[:length] in links for length in range(1, len(member.parts))):
            raise unsafe(archive, member.name, "a path through a link")
    last = {member.parts: member for member in members if member.parts and member.parts[0] != "__MACOSX"}
    return list(last.values())


def _parts(name: str, archive: Path) -> tuple[str, ...]:
    path = name.replace("\\", "/")
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        raise unsafe(archive, name, "an absolute path")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in path:
        raise unsafe(archive, name, "a path that leads out of the archive")
    return parts


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
        tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError,
        RuntimeError, NotImplementedError, UnicodeDecodeError,  # zipfile: encrypted, unknown method, or a bad name
    ) as error:  # fmt: skip
        raise Damaged(f"the archive is damaged: {str(error) or type(error).__name__}") from error

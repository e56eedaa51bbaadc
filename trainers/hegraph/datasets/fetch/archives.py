"""Unpacking an archive: whole or not at all, and never outside its targets. Nothing in an archive is trusted."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from .disk import is_empty_folder, make_folder, missing_of, need_room, writing
from .failures import Broken, Damaged
from .members import ArchiveMember, Opener, open_archive, unsafe
from .sources import Member, Source

logger = logging.getLogger(__name__)


def unpack(archive: Path, source: Source, required: Sequence[str], folder: Path) -> None:
    """Unpacks the missing targets of a source beside `folder`'s files, moves each into place, and removes the archive.

    Args:
        archive: The archive, which is in `folder`.
        source: Where it came from; says which of its members go where.
        required: The targets that must be in the archive.
        folder: The folder of the data set. What is in it already is left alone.

    Raises:
        Broken: If the archive is damaged, or does not hold what is required.
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
            _move(path, folder / target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with writing(archive):
        archive.unlink()


def _move(path: Path, target: Path) -> None:
    """Moves what was unpacked to its target, unless something has appeared there in the meantime."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_empty_folder(target):
            target.rmdir()
        if not os.path.lexists(target):
            os.rename(path, target)


def _extract(archive: Path, wanted: Sequence[Member], required: Sequence[str], into: Path) -> dict[str, Path]:
    """Unpacks the wanted members into a new folder.

    Returns:
        Target -> where it is now. A target that is not required may be absent.
    """
    make_folder(into)
    roots: dict[str, Path] = {}
    chosen: list[tuple[ArchiveMember, Path, Path]] = []  # member, where it goes, where its root goes
    with open_archive(archive, into) as (members, open_file):
        for number, member in enumerate(wanted):
            parts = _find(member.path, members, archive)
            if parts is not None:
                root = roots[member.target] = into / str(number)
                below = [m for m in members if m.parts[: len(parts)] == parts]
                chosen += [(m, root.joinpath(*m.parts[len(parts) :]), root) for m in below]
            elif member.target in required:
                raise Broken(f"{archive.name} holds no {member.path}")
        need_room(into, sum(member.size for member, _, _ in chosen))
        with tqdm(chosen, desc=f"unpacking {archive.name}", unit="file", disable=None) as bar:
            for packed, path, _ in bar:
                with writing(path):
                    _write(packed, path, open_file)
    for packed, path, root in chosen:
        if packed.kind == "link" and not _is_inside(path, root):
            raise unsafe(archive, packed.name, f"a link to {packed.link}, which stays behind")
    return roots


def _find(path: str, members: Sequence[ArchiveMember], archive: Path) -> tuple[str, ...] | None:
    """The file or folder nearest to the root whose path ends with `path`; None if there is none.

    Raises:
        Broken: If several are equally near.
    """
    wanted = tuple(path.split("/"))
    paths = {member.parts[:length] for member in members for length in range(len(wanted), len(member.parts) + 1)}
    found = sorted((len(parts), parts) for parts in paths if parts[-len(wanted) :] == wanted)
    if len(found) > 1 and found[0][0] == found[1][0]:
        raise Broken(f"{archive.name} holds two {path}: {'/'.join(found[0][1])} and {'/'.join(found[1][1])}")
    return found[0][1] if found else None


def _write(member: ArchiveMember, path: Path, open_file: Opener) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.kind == "folder":
        path.mkdir(exist_ok=True)
    elif member.kind == "link":
        path.symlink_to(member.link)
    else:
        with open_file(member.handle) as packed, path.open("xb") as file:  # x: the file must not exist yet
            shutil.copyfileobj(packed, file, 1 << 20)
        if path.stat().st_size != member.size:
            raise Damaged(f"the archive is damaged: {member.name} ends too early")


def _is_inside(link: Path, root: Path) -> bool:
    """Whether a link, followed to its end, leads to the folder `root` or into it. With `root` it will be moved."""
    end, root_itself = Path(os.path.realpath(link)), Path(os.path.realpath(root.parent), root.name)
    return link != root and root_itself in (end, *end.parents)

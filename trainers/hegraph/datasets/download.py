"""Fetches data sets into CoOp's layout, from the mirrors in their entries of the registry.

The mirrors are tried in turn. A broken transfer goes on where it broke off, in the same call or in the next. What came
is checked (length, size, checksum, not a web page), unpacked beside its target, and renamed into place once it is
whole. What is in place is never touched, and nothing in an archive can put a file elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..utils.errors import UserError, unknown
from ..utils.files import absolute
from .archives import Damaged, missing_of, unpack, unpacking_of
from .entry import Source
from .registry import stored_datasets
from .web import WEB_PAGE, Broken, fetch_part, forget, is_web_page, note_of, page_of, part_of, progress_bar, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # the module is absent there

logger = logging.getLogger(__name__)


class Unreachable(UserError):
    """No mirror gives a file."""


def download(name: str, root: str | Path) -> None:
    """Fetches what is missing of a data set, one of `stored_datasets`. The next call goes on after an interruption.

    Raises:
        UserError: If a file cannot be fetched (the others are fetched all the same), an archive is not safe to unpack,
            or the disk is full or cannot be written.
    """
    known = stored_datasets()
    if name not in known:
        raise unknown("data set to download", name, known)
    entry = known[name]
    folder = absolute(root) / entry.folder
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    failures = []
    with _alone_in(folder):
        for source in entry.sources:
            try:
                fetch(source, folder)
            except Unreachable as error:
                failures.append((source, error))
        # the archive of a later source may have brought what failed before
        errors = [str(error) for source, error in failures if missing_of(source.targets, folder)]
    if errors:
        raise Unreachable(f"{name} is not complete: {'; '.join(errors)}")
    if entry.by_hand and missing_of([entry.by_hand.target], folder):
        logger.warning("%s is missing and cannot be fetched", folder / entry.by_hand.target)
        logger.warning("%s", entry.by_hand.instruction)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps a second download out of a folder during the block, as two writers would mix their bytes in one file."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is downloading into {folder}; wait for it, or end it") from error
        except OSError as error:  # some network file systems cannot lock a folder
            logger.debug("%s cannot be locked: %s", folder, error)
        yield
    finally:
        os.close(handle)


def fetch(source: Source, folder: Path) -> None:
    """Fetches one file unless its targets are in place. An archive is unpacked, then removed.

    Raises:
        Unreachable: If no mirror gives it. The message says why, for each, and how to get it by hand.
        UserError: If an archive is not safe to unpack, or the disk is full or cannot be written.
    """
    alternatives = [source, *source.otherwise]
    if not missing_of(source.targets, folder):
        logger.info("%s: in place", folder / source.targets[0])
        _remove_leftovers(alternatives, folder)
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    at_hand = next((a for a in alternatives if a.unpack and (folder / a.file).is_file()), None)
    if at_hand:  # put there by hand, or left by an interruption while it was unpacked
        path = folder / at_hand.file
        try:
            check_file(path, at_hand)
            unpack(path, at_hand, source.targets, folder)
        except (Broken, OSError) as error:
            raise UserError(f"{path} is of no use: {error}; delete it and run the same command again") from error
    else:
        _fetch_from_any(alternatives, folder)
    _remove_leftovers(alternatives, folder)


def _fetch_from_any(alternatives: Sequence[Source], folder: Path) -> None:
    """Fetches and unpacks the first of the alternatives that a mirror gives."""
    wanted = alternatives[0]
    reasons = []
    for source, url in [(alternative, url) for alternative in alternatives for url in alternative.urls]:
        path = folder / source.file
        logger.info("%s: from %s", path, page_of(url))
        try:
            _fetch_from_mirror(url, path, source)
            if source.unpack:
                unpack(path, source, wanted.targets, folder)
                for other in alternatives:  # it may have come from another mirror, and lacked a member
                    (folder / other.file).unlink(missing_ok=True)
            return
        except Broken as error:
            logger.warning("%s: %s", page_of(url), error)
            reasons.append(f"{page_of(url)}: {error}")
            if isinstance(error, Damaged):
                path.unlink()
    raise Unreachable(
        f"cannot fetch {wanted.file} ({'; '.join(reasons)}); get it by hand: open {page_of(wanted.urls[0])}, save it "
        f"as {folder / wanted.file} and run the same command again"
    )


def _fetch_from_mirror(url: str, path: Path, source: Source) -> None:
    """Makes `path`, whole and checked."""
    part = part_of(path)
    fetch_part(url, part, source)
    try:
        check_file(part, source)
    except Broken:
        forget(part)
        raise
    with writing(path):
        os.replace(part, path)
        note_of(part).unlink(missing_ok=True)


def check_file(path: Path, source: Source) -> None:
    """Raises `Broken` unless size and checksum of a file are those that are known, and it is no web page."""
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        raise Broken(f"it has {size:,} bytes where {source.size:,} are expected")
    if not size:
        raise Broken("it is empty")
    with path.open("rb") as file:
        if is_web_page(file.read(64)):
            raise Broken(WEB_PAGE)
    if source.checksum:
        algorithm, _, expected = source.checksum.partition(":")
        digest = hashlib.new(algorithm)
        with path.open("rb") as file, progress_bar(f"checking {source.file}", size) as bar:
            while block := file.read(1 << 20):
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() != expected:
            raise Broken(f"its {algorithm} sum is {digest.hexdigest()} where {expected} is expected")


def _remove_leftovers(alternatives: Sequence[Source], folder: Path) -> None:
    """Removes what is not needed once the targets are in place: parts, and what a killed process was unpacking."""
    parts = tuple(part_of(folder / source.file).name for source in alternatives)
    unpacking = {unpacking_of(folder / source.file).name for source in alternatives}
    with writing(folder):
        for path in folder.iterdir():
            if path.name in unpacking:
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith(parts):
                path.unlink()

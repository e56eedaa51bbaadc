"""Fetches data sets into CoOp's layout, from the mirrors in their entries of the registry.

The mirrors are tried in turn. A broken transfer goes on where it broke off, in the same call or in the next. What came
is checked (length, size, checksum, not a web page), unpacked beside its target, and renamed into place once it is
whole. What is in place is never touched, and nothing in an archive can put a file elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ...utils.errors import UserError, unknown
from ...utils.files import absolute
from ..registry import stored_datasets
from .archives import unpack
from .disk import alone_in, make_folder, missing_of, writing
from .drive import DRIVE, drive_page, fetch_from_drive
from .failures import Broken, Damaged, Unreachable
from .parts import Patience, check_file, forget, note_of, part_of
from .sources import Source
from .web import fetch_from_web

logger = logging.getLogger(__name__)

PATIENCE = Patience()


def download(name: str, root: str | Path, patience: Patience = PATIENCE) -> None:
    """Fetches what is missing of a data set. After an interruption, the next call goes on from there.

    Args:
        name: `DATASET.NAME`, one of `stored_datasets`.
        root: The folder of all data sets.
        patience: How long to wait for a server.

    Raises:
        UserError: If the name is not known, a file cannot be fetched (the others are fetched all the same), an archive
            is not safe to unpack, or the disk is full or cannot be written.
    """
    known = stored_datasets()
    if name not in known:
        raise unknown("data set to download", name, known)
    entry = known[name]
    folder = absolute(root) / entry.folder
    make_folder(folder)
    failures = []
    with alone_in(folder):
        for source in entry.sources:
            try:
                fetch(source, folder, patience)
            except Unreachable as error:
                failures.append((source, error))
    # the archive of a later source may have brought what failed before
    errors = [str(error) for source, error in failures if missing_of(source.targets, folder)]
    if errors:
        raise Unreachable(f"{name} is not complete: {'; '.join(errors)}")
    if entry.by_hand and missing_of([entry.by_hand.target], folder):
        target, instruction = entry.by_hand
        logger.warning("%s is missing and cannot be fetched", folder / target)
        logger.warning("%s", instruction)


def fetch(source: Source, folder: Path, patience: Patience = PATIENCE) -> None:
    """Fetches one file unless its targets are in place. An archive is unpacked, then removed.

    Args:
        source: What to fetch.
        folder: The folder of the data set.
        patience: How long to wait for a server.

    Raises:
        Unreachable: If no mirror gives it. The message says why, for each, and how to get it by hand.
        UserError: If an archive is not safe to unpack, or the disk is full or cannot be written.
    """
    if not missing_of(source.targets, folder):
        logger.info("%s: in place", folder / source.targets[0])
        return
    make_folder(folder)
    alternatives = [source]
    while alternatives[-1].otherwise:
        alternatives.append(alternatives[-1].otherwise)

    at_hand = next((a for a in alternatives if a.unpack and (folder / a.file).is_file()), None)
    if at_hand:  # put there by hand, or left by an interruption while it was unpacked
        _use_archive_at_hand(at_hand, source.targets, folder)
    else:
        _fetch_from_any(alternatives, folder, patience)


def _use_archive_at_hand(source: Source, required: Sequence[str], folder: Path) -> None:
    path = folder / source.file
    try:
        check_file(path, source)
        unpack(path, source, required, folder)
    except (Broken, OSError) as error:
        raise UserError(f"{path} is of no use: {error}; delete it and run the same command again") from error


def _fetch_from_any(alternatives: Sequence[Source], folder: Path, patience: Patience) -> None:
    """Fetches and unpacks the first of the alternatives that a mirror gives."""
    wanted = alternatives[0]
    reasons = []
    for source, url in [(alternative, url) for alternative in alternatives for url in alternative.urls]:
        path = folder / source.file
        logger.info("%s: from %s", path, _page(url))
        try:
            _fetch_from_mirror(url, path, source, patience)
            if source.unpack:
                unpack(path, source, wanted.targets, folder)
        except Broken as error:
            logger.warning("%s: %s", _page(url), error)
            reasons.append(f"{_page(url)}: {error}")
            if isinstance(error, Damaged):
                path.unlink()
        else:
            _remove_leftovers(alternatives, folder)
            return
    raise Unreachable(
        f"cannot fetch {wanted.file} ({'; '.join(reasons)}); get it by hand: open {_page(wanted.urls[0])}, save it as "
        f"{folder / wanted.file} and run the same command again"
    )


def _fetch_from_mirror(url: str, path: Path, source: Source, patience: Patience) -> None:
    """Makes `path`, whole and checked.

    Raises:
        Broken: If the mirror does not give the file.
        UserError: If the disk is full or cannot be written.
    """
    part = part_of(path)
    fetch_from = fetch_from_drive if url.startswith(DRIVE) else fetch_from_web
    fetch_from(url, part, source, patience)
    try:
        check_file(part, source)
    except Broken:
        forget(part)
        raise
    with writing(path):
        os.replace(part, path)
        note_of(part).unlink(missing_ok=True)


def _page(url: str) -> str:
    """The address that a browser opens."""
    return drive_page(url) if url.startswith(DRIVE) else url


def _remove_leftovers(alternatives: Sequence[Source], folder: Path) -> None:
    """Removes what came from one mirror before another gave the file."""
    archives = {source.file for source in alternatives if source.unpack}
    parts = tuple(part_of(folder / source.file).name for source in alternatives)
    with writing(folder):
        for path in folder.iterdir():
            if path.name in archives or path.name.startswith(parts):
                path.unlink()

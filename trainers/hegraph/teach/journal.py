"""A folder in which several renamings are one change: made under a lock, all or none of them, and undone in reverse.

    FOLDER/.hegraph/journal.json    the changes that can be undone, and the renamings of one that is half made
    FOLDER/.hegraph/new             what is being made, before it is renamed to its place
    FOLDER/.hegraph/removed         what was removed: nothing is ever deleted

Links are not followed, so that nothing outside FOLDER is read or written.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Annotated
from uuid import uuid4

from filelock import FileLock, Timeout
from pydantic import Field

from ..predict.files import with_suffix
from ..utils.errors import UserError, first_line, shortened
from ..utils.files import absolute, write_json
from ..utils.reading import StrictModel, read_json, validate

logger = logging.getLogger(__name__)

OWN = ".hegraph"
NEW, REMOVED, JOURNAL = f"{OWN}/new", f"{OWN}/removed", f"{OWN}/journal.json"
MOST_CHANGES = 200  # that can be undone
PATIENCE = 60  # seconds to wait for the lock

Move = Annotated[tuple[str, str], Field(strict=False)]  # paths below the folder: from, to


class Change(StrictModel):
    """A change that has been made, in words, and its renamings."""

    what: str
    moves: list[Move]


class Journal(StrictModel):
    """The changes that can be undone, the last one at the end, and the renamings of one that is being made."""

    changes: list[Change] = Field(default=[])
    begun: list[Move] = Field(default=[])


class JournaledFolder:
    """A folder, which is made when it is first read or changed. All paths are below it, with `/`.

    Every method raises UserError, and has then changed nothing, if the folder cannot be read or written, is not there
    any more, or a file is not where it should be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(absolute(folder)))
        self._lock = FileLock(self.folder / OWN / "lock")
        self._is_new = not os.path.lexists(self.folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the folder, in which no change is half made; may be entered again."""
        try:
            if self._is_new:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._is_new = False
            if not self.folder.is_dir():
                if self.folder.exists():
                    raise UserError(f"{self.folder} is a file, not a folder; choose another")
                raise UserError(f"the folder {self.folder} is not there any more; put it back, or choose another")
            self.at(f"{OWN}/lock").parent.mkdir(exist_ok=True)
            with self._lock.acquire(timeout=PATIENCE):
                self._take_back()
                yield
        except Timeout as error:
            raise UserError(f"another program is changing {self.folder}; try again when it is done") from error
        except OSError as error:
            raise UserError(f"cannot change {self.folder}: {first_line(error)}") from error

    def change(self, what: str, moves: list[Move]) -> None:
        """Makes a change that can be undone; none without renamings."""
        if moves:
            self._perform(moves, [*self.journal().changes, Change(what=what, moves=moves)])

    def undo(self) -> str:
        """Takes the last change back, whichever tab made it; returns what it was. One whose files are not there any
        more, or whose places are taken, is forgotten, so that the one before it can be undone.
        """
        with self.locked():
            if not (changes := self.journal().changes):
                raise UserError("there is nothing to undo")
            *before, last = changes
            try:
                self._perform([(target, source) for source, target in reversed(last.moves)], before)
            except (UserError, FileNotFoundError) as error:
                if error.__cause__ is not None:  # not the files: the disk is full, say
                    raise
                self._write(before, [])
                raise UserError(f"cannot be undone: {last.what}: {first_line(error)}") from error
        return last.what

    def journal(self) -> Journal:
        """The journal, empty if it is not there. One that this program cannot have written is moved to `REMOVED` with a
        warning.
        """
        path = self.at(JOURNAL)
        if not os.path.lexists(path):
            return Journal()
        try:
            if path.is_symlink():
                raise UserError(f"{path} is a link")
            journal = validate(Journal, read_json(path), str(path))
            for move in journal.begun:
                for relative in move:
                    self.at(relative)
        except UserError as error:
            target = self.at(removed(JOURNAL)[1])
            target.parent.mkdir(parents=True)
            os.rename(path, target)
            said = "%s cannot be used and is now %s; changes made before cannot be undone (%s)"
            logger.warning(said, path, target, first_line(error))
            return Journal()
        return journal

    def at(self, relative: str) -> Path:
        """The whole path of something; UserError if it leads out of the folder, as a link may."""
        path, parts = self.folder / relative, PurePosixPath(relative).parts
        odd = not parts or parts[0] == "/" or ".." in parts or "\0" in relative
        if odd or Path(os.path.realpath(path.parent)) != path.parent:
            raise UserError(f"{shortened(relative, 80)!r} leads out of the folder {self.folder}")
        return path

    def new_folder(self) -> str:
        """The path of a new empty folder."""
        path = f"{NEW}/{uuid4().hex}"
        self.at(path).mkdir(parents=True)
        return path

    def free(self, folder: str, name: str, taken: set[str]) -> str:
        """A path in a folder that no file has, nor one of those `taken`, to which it is added."""
        path, number = f"{folder}/{name}", 0
        while path.casefold() in taken or os.path.lexists(self.at(path)):
            number += 1
            path = f"{folder}/{with_suffix(Path(name), number)}"
        taken.add(path.casefold())
        return path

    def _perform(self, moves: list[Move], changes: list[Change]) -> None:
        """Makes all renamings and writes the changes that can be undone from then on, or does nothing of it."""
        self._write(self.journal().changes, moves)
        try:
            for source, target in moves:
                self._rename(source, target)
            self._write(changes, [])
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        """Takes back what has been left half done, here or by a program that was killed."""
        journal = self.journal()
        for source, target in reversed(journal.begun):
            if os.path.lexists(self.at(target)) and not os.path.lexists(self.at(source)):
                with suppress(OSError):
                    self._rename(target, source)
        if journal.begun:
            with suppress(UserError):  # on a full disk it stays, and there is nothing left to take back
                self._write(journal.changes, [])

    def _write(self, changes: list[Change], begun: list[Move]) -> None:
        write_json(self.at(JOURNAL), Journal(changes=changes[-MOST_CHANGES:], begun=begun).model_dump())

    def _rename(self, source: str, target: str) -> None:
        old, new = self.at(source), self.at(target)
        new.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(new) and not os.path.samefile(old, new):  # else another way to write the same name
            raise UserError(f"{target} is there already")
        os.rename(old, new)


def removed(path: str) -> Move:
    """The renaming that removes something."""
    return path, f"{REMOVED}/{uuid4().hex}/{PurePosixPath(path).name}"

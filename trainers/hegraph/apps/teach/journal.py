"""Folder with transactions: each change is a list of renamings, made under a lock, all or none, and can be undone.

    FOLDER/.hegraph/journal.json    changes that can be undone, and the renamings of an unfinished change
    FOLDER/.hegraph/new             new files, before they are renamed to their place
    FOLDER/.hegraph/removed         removed files: nothing is ever deleted

Links are not followed, so nothing outside FOLDER is read or written.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Annotated
from uuid import uuid4

from filelock import FileLock, Timeout
from pydantic import Field

from ...models.predict.files import numbered_path
from ...utils.errors import UserError, first_line
from ...utils.files import absolute, write_json
from ...utils.reading import StrictModel, read_json, validate
from ...utils.text import shortened

logger = logging.getLogger(__name__)

STATE_FOLDER = ".hegraph"  # of undo history and caches, in the folder of the user
NEW = f"{STATE_FOLDER}/new"
REMOVED = f"{STATE_FOLDER}/removed"
JOURNAL = f"{STATE_FOLDER}/journal.json"
MAX_CHANGES = 200  # that can be undone
LOCK_SECONDS = 60  # until waiting for the lock fails

Move = Annotated[tuple[str, str], Field(strict=False)]  # source and target, relative to the folder


class Change(StrictModel):
    """Finished change: its description and its renamings."""

    what: str
    moves: list[Move]


class Journal(StrictModel):
    """Changes that can be undone, oldest first, and the renamings of an unfinished change."""

    changes: list[Change] = Field(default=[])
    begun: list[Move] = Field(default=[])


class JournaledFolder:
    """Folder whose changes are atomic and can be undone. It is created at the first access.

    Paths are relative to the folder, with `/`. Every method raises UserError, without changing anything, if the folder
    cannot be read or written or was removed, or if a file is not at its expected place.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(absolute(folder)))
        self._lock = FileLock(self.folder / STATE_FOLDER / "lock")
        self._is_new = not os.path.lexists(self.folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other programs, and roll back an unfinished change. Reentrant."""
        with self.explained_errors():
            if self._is_new:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._is_new = False
            if not self.folder.is_dir():
                if self.folder.exists():
                    raise UserError(f"expected a folder, got the file {self.folder}; choose another")
                raise UserError(f"the folder {self.folder} was removed; put it back, or choose another")
            self.path_of(f"{STATE_FOLDER}/lock").parent.mkdir(exist_ok=True)
            with self._lock.acquire(timeout=LOCK_SECONDS):
                self._roll_back()
                yield

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Turn errors of the file system into UserError."""
        try:
            yield
        except Timeout as error:
            raise UserError(f"another program is changing {self.folder}; try again when it has finished") from error
        except OSError as error:
            path = error.filename or self.folder
            raise UserError(f"cannot read or write {path}: {first_line(error)}") from error

    def change(self, description: str, moves: list[Move]) -> None:
        """Perform renamings as one change that can be undone. Nothing changes without renamings."""
        if moves:
            self._perform(moves, [*self.journal().changes, Change(what=description, moves=moves)])

    def undo(self) -> str:
        """Undo the last change of any tab or program; returns its description.

        A change that cannot be undone, because its files were removed or their old places are taken, is dropped with a
        UserError, so that the change before it can be undone.
        """
        with self.locked():
            if not (changes := self.journal().changes):
                raise UserError("there is nothing to undo")
            *before, last = changes
            try:
                self._perform([(target, source) for source, target in reversed(last.moves)], before)
            except (UserError, FileNotFoundError) as error:
                if error.__cause__ is not None:  # such as a full disk, after which the change can still be undone
                    raise
                self._write(before, [])
                raise UserError(f"cannot be undone: {last.what}: {first_line(error)}") from error
        return last.what

    def journal(self) -> Journal:
        """Read the journal; a missing one is empty.

        An unusable journal is moved to `REMOVED` with a warning.
        """
        path = self.path_of(JOURNAL)
        if not os.path.lexists(path):
            return Journal()
        try:
            if path.is_symlink():
                raise UserError(f"{path} is a link")
            journal = validate(Journal, read_json(path), str(path))
            for move in journal.begun:
                for relative in move:
                    self.path_of(relative)
        except UserError as error:
            target = self.path_of(removal(JOURNAL)[1])
            target.parent.mkdir(parents=True)
            os.rename(path, target)
            message = "%s is unusable and was moved to %s; earlier changes cannot be undone (%s)"
            logger.warning(message, path, target, first_line(error))
            return Journal()
        return journal

    def path_of(self, relative: str) -> Path:
        """Absolute path of a relative one. Raise UserError if it leads out of the folder, as a link may."""
        path = self.folder / relative
        parts = PurePosixPath(relative).parts
        invalid = not parts or parts[0] == "/" or ".." in parts or "\0" in relative
        if invalid or Path(os.path.realpath(path.parent)) != path.parent:
            raise UserError(f"{shortened(relative, 80)!r} leads out of the folder {self.folder}")
        return path

    def new_folder(self) -> str:
        """Create an empty folder in `NEW`; returns its path."""
        path = f"{NEW}/{uuid4().hex}"
        self.path_of(path).mkdir(parents=True)
        return path

    def free_path(self, folder: str, name: str, taken: set[str]) -> str:
        """Choose a path in a folder that is neither a file nor in `taken`, and add it to `taken`."""
        path = f"{folder}/{name}"
        number = 0
        while path.casefold() in taken or os.path.lexists(self.path_of(path)):
            number += 1
            path = f"{folder}/{numbered_path(Path(name), number)}"
        taken.add(path.casefold())
        return path

    def _perform(self, moves: list[Move], changes: list[Change]) -> None:
        """Make all renamings and store `changes` as those that can be undone, or do neither."""
        self._write(self.journal().changes, moves)
        try:
            for source, target in moves:
                self._rename(source, target)
            self._write(changes, [])
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        """Undo the renamings of an unfinished change, of this program or of one that was killed."""
        journal = self.journal()
        for source, target in reversed(journal.begun):
            if os.path.lexists(self.path_of(target)) and not os.path.lexists(self.path_of(source)):
                with suppress(OSError):
                    self._rename(target, source)
        if journal.begun:
            with suppress(UserError):  # full disk: the next roll-back finds nothing to rename
                self._write(journal.changes, [])

    def _write(self, changes: list[Change], begun: list[Move]) -> None:
        journal = Journal(changes=changes[-MAX_CHANGES:], begun=begun)
        write_json(self.path_of(JOURNAL), journal.model_dump(), self.folder)

    def _rename(self, source: str, target: str) -> None:
        old = self.path_of(source)
        new = self.path_of(target)
        new.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(new) and not os.path.samefile(old, new):  # the same file: a name in another case
            raise UserError(f"{target} exists already")
        os.rename(old, new)


def removal(path: str) -> Move:
    """Renaming that removes a file or folder."""
    return path, f"{REMOVED}/{uuid4().hex}/{PurePosixPath(path).name}"

"""Project that `teach` works on, without model or page: adding, moving and removing classes and images.

`project_folder.py` reads the folder, and `journal.py` undoes changes. A *place* is a class or one of
`NON_CLASS_FOLDERS`.
"""

import hashlib
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ...datasets.folder import NON_CLASS_FOLDERS
from ...utils.errors import UserError
from ...utils.files import atomic_path
from ...utils.reading import reading
from .contents import UNLABELLED, Contents, Picture, images
from .journal import Move, removal
from .project_folder import CONFIRMED, ProjectFolder
from .uploads import TRAIN, image_problem, place_of_member, place_of_path, read_upload, safe_file_name

MAX_ZIP_FILES = 50_000
MAX_ZIP_BYTES = 8 * 2**30
BOUNDED_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # can be unpacked up to a number of bytes


class Staged(NamedTuple):
    """File to add.

    Attributes:
        path: Path of the copy in the project.
        place: Class, or one of `NON_CLASS_FOLDERS`.
        name: File name; "" adds only the class.
        digest: SHA-256 of the content.
        problem: Reason why the file is not added, as the predicate of a sentence; "" for an image.
    """

    path: str
    place: str
    name: str
    digest: str
    problem: str


class Project(ProjectFolder):
    """Folder of images for training. Errors are those of `JournaledFolder`; other programs may change the folder."""

    def write_zip(self, path: Path) -> None:
        """Write all images into a zip file that `add_zip` reads. Classes are below train/."""
        contents = self.read()
        above = "" if contents.base else f"{TRAIN}/"
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            for name in contents.classes:
                file.writestr(f"{above}{contents.folders[name]}/", b"")
            for picture, place in contents.pictures().items():
                inside = picture.path if place in NON_CLASS_FOLDERS else f"{above}{picture.path}"
                file.writestr(zipfile.ZipInfo(inside), self.read_bytes(picture))

    # Changes

    def add_class(self, name: str) -> str:
        """Add a class without images; returns its normalized name."""
        with self.opened() as contents:
            name, target = contents.new_class(name)
            self.change(f"the class {name} added", [(self.new_folder(), target)])
        return name

    def rename_class(self, old: str, new: str) -> str:
        """Rename a class; returns its normalized name."""
        with self.opened() as contents:
            source = contents.class_folder(old)
            new, target = contents.new_class(new, old)
            if source != target:
                self.change(f"{old} renamed to {new}", [(source, target)])
        return new

    def delete_class(self, name: str) -> None:
        """Remove a class and its images."""
        with self.opened() as contents:
            self.change(f"the class {name} deleted", [removal(contents.class_folder(name))])

    def move(self, pictures: Sequence[Picture], place: str) -> None:
        """Move images to a place; "" removes them. The labels of moved images are not confirmed any more."""
        with self.opened() as contents:
            moved = self._moved(contents, [(picture, place) for picture in pictures])
            what = "an image" if len(moved) == 1 else images(len(moved))
            description = f"{what} moved to {place}" if place else f"{what} removed"
            self.change(description, self._moves(contents, moved))

    def accept(self, predictions: Sequence[tuple[Picture, str]]) -> int:
        """Move images to their predicted classes in one change; returns their number."""
        with self.opened() as contents:
            accepted = self._moved(contents, predictions)
            self.change(f"{images(len(accepted))} accepted", self._moves(contents, accepted))
        return len(accepted)

    def _moved(self, contents: Contents, targets: Sequence[tuple[Picture, str]]) -> dict[Picture, str]:
        """Images that are not at their target yet, with their targets. UserError if an image is missing or changed."""
        places = contents.pictures()
        for picture, _ in targets:
            if picture not in places or self._picture(picture.path) != picture:
                raise UserError(f"{picture.path} was removed or changed; look at the page again")
        return {picture: place for picture, place in targets if places[picture] != place}

    def _moves(self, contents: Contents, targets: dict[Picture, str]) -> list[Move]:
        """Renamings that move images to places; "" removes an image."""
        taken: set[str] = set()
        moves = []
        for picture, place in targets.items():
            if place:
                moves.append((picture.path, self.free_path(contents.folder(place), picture.name, taken)))
            else:
                moves.append(removal(picture.path))
        confirmed = contents.confirmed.intersection(picture.digest for picture in targets)
        return moves + [removal(f"{CONFIRMED}/{digest}") for digest in confirmed]

    def confirm(self, picture: Picture) -> None:
        """Confirm the label of an image."""
        with self.opened() as contents:
            if picture in contents.pictures() and picture.digest not in contents.confirmed:
                self.change("a label confirmed", [(self.new_folder(), f"{CONFIRMED}/{picture.digest}")])

    def keep_in_one_class(self, digest: str, name: str) -> None:
        """Remove an image from all classes except one."""
        with self.opened() as contents:
            if name not in contents.classes_of().get(digest, ()):
                raise UserError("the image was removed; look at the page again")
            others = (contents.images[place] for place in contents.classes if place != name)
            copies = [picture for picture in chain.from_iterable(others) if picture.digest == digest]
            self.change(f"an image kept in {name} only", [removal(picture.path) for picture in copies])

    def add(self, place: str, files: Iterable[tuple[str, bytes]]) -> tuple[int, list[str]]:
        """Add images to a place.

        Args:
            place: Class, or one of `NON_CLASS_FOLDERS`.
            files: Names and contents. Invalid images and images that the place contains already are skipped.

        Returns:
            Number of added images, and a sentence for each skipped file.
        """
        self.read().folder(place)
        return self._add(((place, name, data) for name, data in files), f"added to {place}")

    def add_folders(self, files: Iterable[tuple[str, bytes]]) -> tuple[int, list[str]]:
        """Add images of class folders, each to the class of the folder that contains it; returns as `add`.

        Args:
            files: Paths and contents. `place_of_path` decides about the place of an image.
        """
        contents = self.read()
        problems: dict[str, str] = {}  # of new class names; "" for none

        def usable() -> Iterator[tuple[str, str, bytes]]:
            for path, data in files:
                place = place_of_path(path)
                if place and place not in problems:
                    problems[place] = contents.problem_of_class(place)
                if place and not problems[place]:
                    yield place, path, data

        count, refused = self._add(usable(), "added from folders")
        return count, [problem for problem in problems.values() if problem] + refused

    def add_zip(self, path: Path) -> tuple[int, list[str]]:
        """Add the classes and images of a zip file; returns as `add`.

        Raises:
            UserError: If the file is damaged, is not a project, is too large, or contains a path that leads out of the
                folder. Nothing is added then.
        """
        with reading(path, "a project's zip file"), zipfile.ZipFile(path) as file:
            members = file.infolist()
            if len(members) > MAX_ZIP_FILES or sum(member.file_size for member in members) > MAX_ZIP_BYTES:
                raise UserError(f"the zip file has more than {MAX_ZIP_FILES} files or {MAX_ZIP_BYTES >> 30} GB")
            for member in members:
                self.path_of(member.filename)
                if member.compress_type not in BOUNDED_COMPRESSION:
                    raise ValueError(f"expected stored or deflated files, got another compression of {member.filename}")
            places = ((member, place_of_member(member)) for member in members)
            placed = [(member, place) for member, place in places if place]
            if not placed:
                raise ValueError(f"expected a folder {TRAIN}/<class> or {UNLABELLED}, found none")
            files = ((place, "" if m.is_dir() else m.filename, read_upload(file.open(m))) for m, place in placed)
            return self._add(files, "added from a zip file")

    def _add(self, files: Iterable[tuple[str, str, bytes]], what: str) -> tuple[int, list[str]]:
        """Add files, each a place, a name and its content, and missing classes. Without a name, add only the class.

        Files are checked and staged in a new folder without the lock, since hundreds of photos take minutes.
        """
        with self.locked():
            staging = self.new_folder()
        taken: set[str] = set()
        problems: list[str] = []
        moves: list[Move] = []
        count = 0
        try:
            with self.explained_errors():
                staged = [self._stage(f"{staging}/{number}", *each) for number, each in enumerate(files)]
            with self.opened() as contents:
                present = {(place, picture.digest) for picture, place in contents.pictures().items()}
                for each in staged:
                    if each.place not in contents.folders:
                        folder = contents.folders[each.place] = contents.new_class(each.place)[1]
                        moves.append((f"{each.path}-class", folder))
                        self.path_of(moves[-1][0]).mkdir()
                    if not each.name:
                        continue
                    is_copy = (each.place, each.digest) in present
                    if each.problem or is_copy:
                        problems.append(f"{each.name} {each.problem or 'exists already'}")
                        continue
                    moves.append((each.path, self.free_path(contents.folders[each.place], each.name, taken)))
                    present.add((each.place, each.digest))
                    count += 1
                self.change(f"{images(count)} {what}", moves)
        finally:
            shutil.rmtree(self.folder / staging, ignore_errors=True)
        return count, problems

    def _stage(self, path: str, place: str, name: str, data: bytes) -> Staged:
        """Check a file and write it to a path."""
        if not name:
            return Staged(path, place, "", "", "")
        safe_name = safe_file_name(name)
        problem = image_problem(safe_name, data)
        if not problem:
            self.path_of(path).write_bytes(data)
        return Staged(path, place, safe_name, hashlib.sha256(data).hexdigest(), problem)

"""Copies of predicted images in folders by class, of `predict --sort-into`."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ...utils.errors import first_line
from ...utils.files import atomic_path, hash_json
from .files import folder_name, numbered_path

MAX_LISTED = 12  # folders that the summary names
MAX_DOUBTFUL = 3  # images that the summary names
DOUBTFUL = 0.5  # probability of the class of an image below which it is doubtful
HASH_BYTES = 16  # of the content of a copy


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """Return the folder of each class name.

    Folders differ on every file system: names that differ only in upper and lower case, or in their form of Unicode,
    get a hash, except for the first of them.
    """
    folders: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        folder = folder_name(name)
        if _comparable(folder) in taken:
            folder = f"{folder}~{hash_json(name)[:16]}"
        taken.add(_comparable(folder))
        folders[name] = folder
    return folders


def _comparable(name: str) -> str:
    """Form of a file name that is equal for names of one file, on the file systems of macOS and Windows."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class _Family:
    """Files whose names differ only in their number, as in `photo-1.jpg`.

    Attributes:
        hashes: Hashes of their contents.
        number: Number of the next one.
    """

    def __init__(self) -> None:
        self.hashes: set[bytes] = set()
        self.number = 0


class SortedCopies:
    """Copies of images in folders by class.

    If a file with other content has the name of an image, its copy gets a number, as in `photo-1.jpg`. A file with the
    same content is not replaced. The time does not depend on the number of images of one name; the memory holds a hash
    of each of them.

    Args:
        root: Folder of the folders.
        names: Names of all classes.

    Attributes:
        counts: Number of images in each folder of this run, by class name.
        doubtful: Paths of the copies of doubtful images, without the number that a copy may have.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root = root
        self.counts: Counter[str] = Counter()
        self.doubtful: list[str] = []
        self._folders = folder_names(names)
        self._families: dict[Path, _Family] = {}

    def summary(self) -> str:
        """Sentence with the number of images in each folder, the largest first, and with doubtful images."""
        total = sum(self.counts.values())
        listed = ", ".join(f"{count} in {self._folders[name]}" for name, count in self.counts.most_common(MAX_LISTED))
        more = len(self.counts) - MAX_LISTED
        rest = f", and others in {more} more folders" if more > 0 else ""
        return f"copied {total} images into {self.root}: {listed or 'none'}{rest}{self._doubts()}"

    def _doubts(self) -> str:
        """End of the summary about doubtful images; "" without any."""
        if not self.doubtful:
            return ""
        shown = ", ".join(self.doubtful[:MAX_DOUBTFUL])
        more = ", ..." if len(self.doubtful) > MAX_DOUBTFUL else ""
        return (
            f"; doubtful, with a probability below {100 * DOUBTFUL:.0f} %: {len(self.doubtful)}, such as {shown}{more}"
        )

    def folder(self, name: str) -> Path:
        """Folder of a class."""
        return self.root / self._folders[name]

    def add(self, name: str, path: str, is_doubtful: bool = False) -> str:
        """Copy an image into the folder of a class, atomically.

        The image is opened once, because another program may remove it. A doubtful image is counted in the summary.

        Returns:
            Reason why the image cannot be read; "" if the folder has its copy.

        Raises:
            UserError: If the copy cannot be written.
        """
        try:
            with open(path, "rb") as file:
                content = file.read()
                status = os.fstat(file.fileno())
        except OSError as error:
            return f"cannot be copied: {first_line(error)}"
        self.counts[name] += 1
        first = self.folder(name) / os.path.basename(path)
        if is_doubtful:
            self.doubtful.append(str(first))
        if _has_content(first, content):
            return ""
        target = first
        if os.path.lexists(first):
            unused = self._unused_name(first, content)
            if unused is None:
                return ""
            target = unused
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
            os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
        return ""

    def _unused_name(self, first: Path, content: bytes) -> Path | None:
        """Return the next name for new content whose file name is taken; None if a file has the content already."""
        family = self._families.setdefault(first, _Family())
        digest = _hash(content)
        while digest not in family.hashes:
            target = numbered_path(first, family.number)
            family.number += 1
            if not os.path.lexists(target):
                family.hashes.add(digest)
                return target
            with suppress(OSError):
                if target.is_file():
                    family.hashes.add(_hash(target.read_bytes()))
        return None


def _has_content(path: Path, content: bytes) -> bool:
    """Whether a file has some content."""
    try:
        return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:HASH_BYTES]

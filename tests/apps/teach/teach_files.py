"""Small images and folders for the tests of the teach project, and steps of its session."""

from pathlib import Path

from PIL import Image

from trainers.hegraph.apps.demo.drawing import as_png
from trainers.hegraph.apps.teach.session import Session
from trainers.hegraph.apps.teach.view import View

NAMES = ("zero", "one", "two", "six")  # classes of the fixture `session`


def png(colour: str, size: tuple[int, int] = (4, 4)) -> bytes:
    return as_png(Image.new("RGB", size, colour))


def files_of(folder: Path) -> dict[str, bytes]:
    """Files of the user: all except those in .hegraph."""
    paths = (path for path in folder.rglob("*") if path.is_file() and ".hegraph" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


NESTED = {
    "train/cat/a.png": png("red"), "train/cat/b.png": png("lime"), "train/dog/a.png": png("blue"),
    "unlabelled/old/u.png": png("gold"),
}  # fmt: skip
FLAT = {"cat/a.png": png("red"), "cat/b.png": png("lime"), "dog/a.png": png("blue"), "unlabelled/u.png": png("gold")}


def last(session: Session) -> View:
    """Encode, train, evaluate and try changes of labels to the end."""
    for steps in (session.update, session.evaluate):
        for _ in steps():
            pass
    return session.view


def updated(session: Session) -> View:
    """Encode and train to the end, without evaluation."""
    for _ in session.update():
        pass
    return session.view

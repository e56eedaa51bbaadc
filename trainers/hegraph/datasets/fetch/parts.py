"""A file that is still coming: `x.zip.part`, with a note `x.zip.part.json` of what the server said about it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...utils.errors import UserError
from ...utils.files import read_json
from ...utils.schema import Count, OpenPart, check
from .disk import writing
from .failures import Broken
from .sources import Source

WEB_PAGE = "it sent a web page instead of the file (about a quota, a login or an error)"
MAX_CONNECT_TIMEOUT = 10.0  # seconds; a server that works accepts a connection sooner than it answers a request
MAX_PAUSE = 60.0  # seconds


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        timeout: Seconds without a byte after which it counts as stalled.
        retries: Further tries without any progress before the next mirror is tried.
        pause: Seconds before the first of them; each further pause is twice as long.
    """

    timeout: float = 30.0
    retries: int = 4
    pause: float = 1.0

    @property
    def timeouts(self) -> tuple[float, float]:
        """Seconds to wait for a connection, and for the next byte."""
        return min(self.timeout, MAX_CONNECT_TIMEOUT), self.timeout

    def pause_after(self, fruitless: int) -> float:
        """Seconds to wait after so many further tries without progress."""
        return min(self.pause * 2**fruitless, MAX_PAUSE)


class _Note(OpenPart):
    """What the server said of a part, as far as it did."""

    url: str | None = None
    validator: str | None = None
    total: Count | None = None


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def note_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def read_note(part: Path) -> dict[str, Any]:
    """What the server said of a part: "url", "validator" and "total". Empty if that is not known."""
    if not note_of(part).is_file():
        return {}
    try:
        note = read_json(note_of(part))
        check(_Note, note, str(note_of(part)))
    except UserError:  # it is damaged, so the file is fetched from its beginning
        return {}
    return note


def forget(part: Path) -> None:
    with writing(part):
        part.unlink(missing_ok=True)
        note_of(part).unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Size in bytes; 0 if there is no such file."""
    return path.stat().st_size if path.is_file() else 0


def check_file(path: Path, source: Source) -> None:
    """Compares a file with what is known of the expected one: its size, its checksum, and that it is no web page.

    Raises:
        Broken: If it is another.
    """
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


def is_web_page(beginning: bytes) -> bool:
    return beginning.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def progress_bar(name: str, total: int | None, initial: int = 0) -> tqdm:
    return tqdm(desc=name, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024, disable=None)

"""One file by HTTP, or from Google Drive. A transfer goes on where it broke off, in the same call or in the next.

A file that is still coming is `x.zip.part`. Beside it, `x.zip.part.json` holds what the server said about it: the
address, what tells this version of the file from others, and the length.
"""

from __future__ import annotations

import contextlib
import gzip
import inspect
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import urllib3
from tqdm import tqdm

from ..utils.errors import UserError
from ..utils.files import write_json
from ..utils.reading import read_json
from ..utils.schema import Count, OpenPart, check
from .entry import Source

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte after which a server counts as stalled
CONNECT_TIMEOUT = 10.0  # seconds; a server that works accepts a connection sooner than it answers a request
RETRIES = 4  # further tries without any progress before the next mirror is tried
PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds before the first of them, and the most; each further pause is twice as long
CHUNK = 1 << 16  # bytes; a transfer that stalls within a chunk loses that chunk
WEB_PAGE = "it sent a web page instead of the file (about a quota, a login or an error)"
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
GZIP_NAMES = (".gz", ".tgz")
DRIVE = "gdrive:"  # what the address of a file of Google Drive begins with; the file's id follows


class Broken(Exception):
    """A mirror, or what came from it, is of no use. The message is a reason in one line."""


class Interrupted(Exception):
    """One try failed, but another may not."""


class _Note(OpenPart):
    """What a server said of a part, as far as it did."""

    url: str = ""
    validator: str = ""
    total: Count | None = None


def page_of(url: str) -> str:
    """The address that a browser opens."""
    return f"https://drive.google.com/file/d/{url[len(DRIVE) :]}/view" if url.startswith(DRIVE) else url


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def note_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def forget(part: Path) -> None:
    with writing(part):
        part.unlink(missing_ok=True)
        note_of(part).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError, which names `path`, for an `OSError` in the block."""
    try:
        yield
    except (gzip.BadGzipFile, requests.RequestException):  # OSErrors too, but they come from reading
        raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; free or choose a disk that can be written") from error


def need_room(folder: Path, size: int) -> None:
    """Raises UserError if the disk of a folder has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if size > free:
        needed, there = (tqdm.format_sizeof(n, "B", 1024) for n in (size, free))
        raise UserError(f"{folder} has no room: {needed} more are needed and {there} are free; free some and run again")


def is_web_page(beginning: bytes) -> bool:
    return beginning.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def progress_bar(name: str, total: int | None, initial: int = 0) -> tqdm:
    return tqdm(desc=name, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024, disable=None)


def fetch_part(url: str, part: Path, source: Source) -> None:
    """Makes `part` whole, but does not check its content.

    Raises:
        Broken: If the mirror does not give the file.
        UserError: If the disk is full or cannot be written.
    """
    if url.startswith(DRIVE):
        _fetch_from_drive(url, part, source)
        return
    furthest, fruitless = 0, 0
    with requests.Session() as session:
        while True:
            try:
                _try_once(session, url, part, source)
                return
            except Interrupted as error:
                if _size(part) > furthest:
                    furthest, fruitless = _size(part), 0
                if fruitless == RETRIES:
                    raise Broken(f"{error} (gave up after {fruitless} more tries)") from error
                pause = min(PAUSE * 2**fruitless, MAX_PAUSE)
                fruitless += 1
                logger.info("%s: %s; trying again in %g s", url, error, pause)
                time.sleep(pause)


def _try_once(session: requests.Session, url: str, part: Path, source: Source) -> None:
    """Sends one request: for the rest of the file, if `part` is known to be its beginning, and else for all of it."""
    note = _read_note(part)
    offset = _size(part) if note.url == url and note.validator else 0
    if offset and offset == note.total:
        return  # the last call stopped between the last byte and the check
    headers = {"Accept-Encoding": "identity"}  # positions count the bytes of the file, not of a compressed stream
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": note.validator}
    with _network(), session.get(url, headers=headers, stream=True, timeout=_timeouts()) as response:
        offset, total = _read_headers(response, part, offset, note)
        if total is not None and source.size is not None and total != source.size:
            raise Broken(f"it has {total:,} bytes where {source.size:,} are expected")
        expected = source.size if total is None else total
        need_room(part.parent, (expected or 0) - offset)
        _receive(response, url, part, offset, total)
    if expected is not None and _size(part) < expected:
        raise Interrupted(f"the connection broke off after {_size(part):,} of {expected:,} bytes")


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Raises `Interrupted` or `Broken` for what requests and urllib3 raise in the block."""
    try:
        yield
    except (requests.exceptions.SSLError, requests.exceptions.ProxyError) as error:
        raise Broken(describe(error)) from error
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise Interrupted(describe(error)) from error
    except requests.RequestException as error:
        raise Broken(describe(error)) from error


def _read_headers(response: requests.Response, part: Path, offset: int, note: _Note) -> tuple[int, int | None]:
    """The byte of the file at which the response begins, and the length of the file, if the server says it."""
    status = f"HTTP {response.status_code} {response.reason}"
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise Interrupted(status)
    if response.status_code == 416:  # the file is shorter than what we have
        forget(part)
        raise Interrupted(f"{status}: the file has changed, starting over")
    if response.status_code not in (200, 206):
        raise Broken(status)
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise Broken(WEB_PAGE)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    # some servers call the compression of a .tar.gz file an encoding
    if encoding != "identity" and not (encoding in ("gzip", "x-gzip") and part.stem.endswith(GZIP_NAMES)):
        raise Broken(f"it sends the file encoded as {encoding}, which was not asked for")
    if response.status_code == 200:  # the whole file: the server knows no ranges, or the file has changed
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    total = int(found[2]) if found and found[2] != "*" else None
    kind = "ETag" if note.validator.startswith('"') else "Last-Modified"
    same_file = response.headers.get(kind) in (None, note.validator)
    same_length = None in (total, note.total) or total == note.total
    if not offset or not found or int(found[1]) != offset or not (same_file and same_length):
        forget(part)
        raise Interrupted(f"{status}: not the part that was asked for, starting over")
    return offset, total


def _receive(response: requests.Response, url: str, part: Path, offset: int, total: int | None) -> None:
    """Writes the content to `part`: behind what is there, or from the beginning."""
    chunks = response.raw.stream(CHUNK, decode_content=False)
    chunk = next(chunks, b"")
    if not offset and is_web_page(chunk):  # found out before it replaces what came earlier
        raise Broken(WEB_PAGE)
    with writing(part), part.open("ab" if offset else "wb") as file, progress_bar(part.stem, total, offset) as bar:
        if not offset:  # the note is written after the old bytes are gone, so it never describes them
            write_json(note_of(part), {"url": url, "validator": _validator(response), "total": total})
        while chunk:
            file.write(chunk)
            bar.update(len(chunk))
            chunk = next(chunks, b"")


def _validator(response: requests.Response) -> str:
    """What tells this version of the file from others: a strong ETag or the date of the last change; "" if neither."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _read_note(part: Path) -> _Note:
    """What the server said of a part; an empty note if that is not known, or the note is damaged."""
    if note_of(part).is_file():
        with contextlib.suppress(UserError):
            return check(_Note, read_json(note_of(part)), str(note_of(part)))
    return _Note()


def _fetch_from_drive(url: str, part: Path, source: Source) -> None:
    """As `fetch_part`, by gdown."""
    import gdown  # slow to import

    if "timeout" not in inspect.signature(gdown.download).parameters:
        raise Broken(f"gdown {gdown.__version__} would wait for ever on a stalled server: pip install 'gdown>=6.3'")
    identifier = url[len(DRIVE) :]
    fetched = part.with_name(f"{part.name}.{identifier}")  # gdown's own partial files have names that begin like this
    with progress_bar(part.stem, source.size) as bar:

        def show(received: int, total: int | None) -> None:
            if not bar.n:
                need_room(part.parent, (total or source.size or 0) - received)
            bar.total = total
            bar.update(received - bar.n)

        options: dict[str, Any] = {"quiet": True, "resume": True, "retries": RETRIES, "timeout": _timeouts()}
        try:
            with writing(part):
                gdown.download(id=identifier, output=str(fetched), progress=show, **options)
        except UserError:
            raise
        except Exception as error:  # gdown raises many kinds, such as KeyError for a missing header
            raise Broken(f"gdown: {describe(error)}") from error
    with writing(part):
        part.touch()
        mode = part.stat().st_mode  # only their owner may read the files that gdown makes
        os.replace(fetched, part)
        part.chmod(mode)


def describe(error: BaseException) -> str:
    """The cause at the bottom of a network error, in one line."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    timeouts = (requests.Timeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)
    if any(isinstance(cause, timeouts) for cause in causes):
        return f"no answer within {TIMEOUT:g} s"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection broke off"
    return " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__


def _timeouts() -> tuple[float, float]:
    """Seconds to wait for a connection, and for the next byte."""
    return min(TIMEOUT, CONNECT_TIMEOUT), TIMEOUT


def _size(path: Path) -> int:
    """Size in bytes; 0 if there is no such file."""
    return path.stat().st_size if path.is_file() else 0

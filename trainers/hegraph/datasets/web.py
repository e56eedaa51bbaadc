"""Fetches one file by HTTP or from Google Drive, and checks what came: length, checksum, not a web page.

A file that is still coming is `x.zip.HASH.part`, where the hash stands for its address, with the version that the
server has of it in `.version` beside it. The same or the next call goes on where it broke off, if the version is still
that one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from ..utils.errors import first_line
from ..utils.files import cannot_write, hash_json

logger = logging.getLogger(__name__)

TIMEOUTS = (10.0, 30.0)  # seconds to wait for a connection, and for the next byte
RETRIES = 4  # further tries without any progress before the next mirror is tried
PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds before the first of them, and the most; each further pause is twice as long
CHUNK = 1 << 16  # bytes; a transfer that stalls within a chunk loses that chunk
DRIVE = "gdrive:"  # what the address of a file of Google Drive begins with; the file's id follows
WEB_PAGE = "it sent a web page instead of the file (about a quota, a login or an error)"


class Broken(Exception):
    """A mirror, or what came from it, is of no use. The message is a reason in one line."""


class Interrupted(Exception):
    """One try failed, but another may not."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError, which names `path`, for an `OSError` in the block that is none of the network's."""
    try:
        yield
    except requests.RequestException:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


def page_of(url: str) -> str:
    """The address that a browser opens."""
    return f"https://drive.google.com/file/d/{url.removeprefix(DRIVE)}/view" if url.startswith(DRIVE) else url


def fetch_file(url: str, path: Path, size: int | None = None, checksum: str = "") -> None:
    """Makes `path`, whole and checked, of an address or `gdrive:FILE_ID`. The next call goes on with what has come.

    Raises `Broken` if the mirror does not give the file, or not of this size in bytes or checksum, such as "md5:...",
    and UserError if it cannot be written.
    """
    part = path.with_name(f"{path.name}.{hash_json(url)[:16]}.part")
    with writing(path):
        if url.startswith(DRIVE):
            _from_drive(url.removeprefix(DRIVE), part)
        else:
            _from_server(url, part, size)
        try:
            check_file(part, size, checksum)
        except Broken:
            for left in (part, part.with_suffix(".version")):
                left.unlink(missing_ok=True)
            raise
        os.replace(part, path)
        remove_parts(path)


def remove_parts(path: Path) -> None:
    for kind in ("part", "version"):
        for left in path.parent.glob(f"{path.name}.*{kind}"):
            left.unlink()


def check_file(path: Path, size: int | None, checksum: str) -> None:
    """Raises `Broken` unless size and checksum of a file are those that are known, and it is no web page."""
    found = path.stat().st_size
    if found == 0 or size not in (None, found):
        raise Broken(f"it has {found:,} bytes" + (f" where {size:,} are expected" if size else ""))
    algorithm, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        if file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise Broken(WEB_PAGE)
        file.seek(0)
        digest = hashlib.new(algorithm or "md5")
        while expected and (block := file.read(1 << 20)):
            digest.update(block)
    if expected and digest.hexdigest() != expected:
        raise Broken(f"its {algorithm} sum is {digest.hexdigest()} where {expected} is expected")


def _from_server(url: str, part: Path, size: int | None) -> None:
    """Makes the part of a file whole, by as many requests as it takes while there is progress."""
    furthest = fruitless = 0
    with requests.Session() as session:
        while True:
            try:
                return _request(session, url, part, size)
            except Interrupted as error:
                here = part.stat().st_size if part.is_file() else 0
                furthest, fruitless = (here, 0) if here > furthest else (furthest, fruitless)
                if fruitless == RETRIES:
                    raise Broken(f"{error} (gave up after {fruitless} more tries)") from error
                pause = min(PAUSE * 2**fruitless, MAX_PAUSE)
                fruitless += 1
                logger.info("%s: %s; trying again in %g s", url, error, pause)
                time.sleep(pause)


def _request(session: requests.Session, url: str, part: Path, size: int | None) -> None:
    """Asks for a file: for its rest alone, if there is a part of the version that the server still has."""
    note = part.with_suffix(".version")
    version = note.read_text() if note.is_file() else ""
    begin = part.stat().st_size if version and part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}  # positions count the bytes of the file, not of a compressed stream
    if begin:
        headers |= {"Range": f"bytes={begin}-", "If-Range": version}
    with _answer(session, url, headers, part) as response:
        rest = response.headers.get("Content-Range", "")
        if response.status_code == 416 and rest == f"bytes */{begin}":
            return  # all of it is here
        if response.status_code != 200 and not rest.startswith(f"bytes {begin}-"):
            part.unlink(missing_ok=True)
            raise Interrupted("it does not send the rest alone, starting over")
        begin = begin if response.status_code == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = begin + int(length) if length.isdigit() else size
        if size not in (None, total):
            raise Broken(f"it has {total:,} bytes where {size:,} are expected")
        bar = tqdm(
            desc=part.stem, total=total, initial=begin, unit="B", unit_scale=True, unit_divisor=1024, disable=None
        )
        with part.open("ab" if begin else "wb") as file, bar:
            if not begin:
                tag = response.headers.get("ETag", "")  # a weak one, W/"...", does not tell that all bytes are the same
                note.write_text(tag if tag.startswith('"') else response.headers.get("Last-Modified", ""))
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise Interrupted(f"the connection broke off after {part.stat().st_size:,} of {total:,} bytes")


@contextlib.contextmanager
def _answer(session: requests.Session, url: str, headers: dict[str, str], part: Path) -> Iterator[requests.Response]:
    """An answer about the file itself; raises `Broken` or `Interrupted` for any other, and what the block meets."""
    try:
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUTS) as response:
            status = f"HTTP {response.status_code} {response.reason}"
            if response.status_code in (408, 429) or response.status_code >= 500:
                raise Interrupted(status)
            if response.status_code not in (200, 206, 416):
                raise Broken(status)
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            # Some servers call the compression of a .tar.gz file an encoding
            if encoding != "identity" and not ("gzip" in encoding and {".gz", ".tgz"} & set(part.suffixes)):
                raise Broken(f"it sends the file encoded as {encoding}, which was not asked for")
            if response.status_code != 416 and response.headers.get("Content-Type", "").lower().startswith("text/html"):
                raise Broken(WEB_PAGE)
            yield response
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise Interrupted(_cause(error)) from error
    except requests.RequestException as error:
        raise Broken(_cause(error)) from error


def _from_drive(identifier: str, part: Path) -> None:
    """Makes the part of a file of Google Drive whole, by gdown, whose own parts have names that begin like it."""
    import gdown  # slow to import

    quiet = not sys.stderr.isatty()
    try:
        gdown.download(id=identifier, output=str(part), quiet=quiet, resume=True, retries=RETRIES, timeout=TIMEOUTS)
    except Exception as error:  # gdown raises many kinds, such as KeyError for a missing header
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
            raise
        raise Broken(f"gdown: {_cause(error)}") from error
    umask = os.umask(0)
    os.umask(umask)
    part.chmod(0o666 & ~umask)  # only their owner may read the files that gdown makes


def _cause(error: BaseException) -> str:
    """The cause at the bottom of a network error, in one line."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return first_line(error)

"""One file by HTTP, or from Google Drive. A transfer goes on where it broke off, in the same call or in the next.

A file that is still coming is `x.zip.HASH.part`, where the hash stands for its address and the version that the server
has of it: what is here of another version is never continued.
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
WHOLE = {"Accept-Encoding": "identity"}  # positions count the bytes of the file, not of a compressed stream
WEB_PAGE = "it sent a web page instead of the file (about a quota, a login or an error)"


class Broken(Exception):
    """A mirror, or what came from it, is of no use. The message is a reason in one line."""


class Interrupted(Exception):
    """One try failed, but another may not."""


def page_of(url: str) -> str:
    """The address that a browser opens."""
    return f"https://drive.google.com/file/d/{url.removeprefix(DRIVE)}/view" if url.startswith(DRIVE) else url


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError, which names `path`, for an `OSError` in the block that is none of the network's."""
    try:
        yield
    except requests.RequestException:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


def fetch_file(url: str, path: Path, size: int | None = None, checksum: str = "") -> None:
    """Makes `path`, whole and checked, of an address or `gdrive:FILE_ID`. The next call goes on with what has come.

    Raises:
        Broken: If the mirror does not give the file, or not of this size in bytes or checksum, such as "md5:...".
        UserError: If the disk is full or cannot be written.
    """
    with writing(path):
        part = _from_drive(url, path) if url.startswith(DRIVE) else _from_server(url, path, size)
        try:
            check_file(part, size, checksum)
        except Broken:
            part.unlink()
            raise
        os.replace(part, path)
        remove_parts(path)


def remove_parts(path: Path) -> None:
    for part in path.parent.glob(f"{path.name}.*part"):
        part.unlink()


def check_file(path: Path, size: int | None, checksum: str) -> None:
    """Raises `Broken` unless size and checksum of a file are those that are known, and it is no web page."""
    found = path.stat().st_size
    if found == 0 or size not in (None, found):
        raise Broken(f"it has {found:,} bytes" + (f" where {size:,} are expected" if size else ""))
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm or "md5")
    with path.open("rb") as file:
        if _is_web_page(file.read(64)):
            raise Broken(WEB_PAGE)
        file.seek(0)
        while expected and (block := file.read(1 << 20)):
            digest.update(block)
    if expected and digest.hexdigest() != expected:
        raise Broken(f"its {algorithm} sum is {digest.hexdigest()} where {expected} is expected")


def _is_web_page(beginning: bytes) -> bool:
    return beginning.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _from_server(url: str, path: Path, size: int | None) -> Path:
    """The part of a file, made whole by as many requests as it takes while there is progress."""
    furthest = fruitless = 0
    with requests.Session() as session:
        while True:
            try:
                return _request(session, url, path, size)
            except Interrupted as error:
                here = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}.*part"))
                furthest, fruitless = (here, 0) if here > furthest else (furthest, fruitless)
                if fruitless == RETRIES:
                    raise Broken(f"{error} (gave up after {fruitless} more tries)") from error
                pause = min(PAUSE * 2**fruitless, MAX_PAUSE)
                fruitless += 1
                logger.info("%s: %s; trying again in %g s", url, error, pause)
                time.sleep(pause)


def _request(session: requests.Session, url: str, path: Path, size: int | None) -> Path:
    """Asks for a file, and then for its rest alone if there is a part of this very version."""
    with _answer(session, url, WHOLE) as response:
        tag, length = response.headers.get("ETag", ""), response.headers.get("Content-Length", "")
        version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
        total = int(length) if length.isdigit() else size
        if size not in (None, total):
            raise Broken(f"it has {total:,} bytes where {size:,} are expected")
        part = path.with_name(f"{path.name}.{hash_json([url, version, total])[:16]}.part")
        begin = part.stat().st_size if version and part.is_file() else 0
        if not begin:
            _receive(response, part, total)
    if 0 < begin != total:
        with _answer(session, url, {**WHOLE, "Range": f"bytes={begin}-", "If-Range": version}) as response:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
                part.unlink()  # the server knows no ranges, or the file has changed
                raise Interrupted("it does not send the rest alone, starting over")
            _receive(response, part, total, begin)
    if total is not None and part.stat().st_size < total:
        raise Interrupted(f"the connection broke off after {part.stat().st_size:,} of {total:,} bytes")
    return part


@contextlib.contextmanager
def _answer(session: requests.Session, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
    """An answer that holds content; raises `Broken` or `Interrupted` for any other, and what the block meets of it."""
    try:
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUTS) as response:
            status = f"HTTP {response.status_code} {response.reason}"
            if response.status_code in (408, 416, 429) or response.status_code >= 500:
                raise Interrupted(status)
            if response.status_code not in (200, 206):
                raise Broken(status)
            yield response
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise Interrupted(_cause(error)) from error
    except requests.RequestException as error:
        raise Broken(_cause(error)) from error


def _receive(response: requests.Response, part: Path, total: int | None, begin: int = 0) -> None:
    """Writes the content to `part`: behind what is there, or from the beginning."""
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    # some servers call the compression of a .tar.gz file an encoding
    if encoding != "identity" and not ("gzip" in encoding and {".gz", ".tgz"} & set(part.suffixes)):
        raise Broken(f"it sends the file encoded as {encoding}, which was not asked for")
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise Broken(WEB_PAGE)
    bar = tqdm(desc=part.stem, total=total, initial=begin, unit="B", unit_scale=True, unit_divisor=1024, disable=None)
    with part.open("ab" if begin else "wb") as file, bar:
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            file.write(chunk)
            bar.update(len(chunk))


def _from_drive(url: str, path: Path) -> Path:
    """The part of a file of Google Drive, made whole by gdown."""
    import gdown  # slow to import

    identifier = url.removeprefix(DRIVE)
    part = path.with_name(f"{path.name}.{identifier}.part")  # gdown's own parts have names that begin like this
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
    return part


def _cause(error: BaseException) -> str:
    """The cause at the bottom of a network error, in one line."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return first_line(error)

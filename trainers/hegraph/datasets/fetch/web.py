"""One file by HTTP. A transfer goes on where it broke off, if the server says that the file is still the same one."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3

from ...utils.files import write_json
from .disk import need_room, writing
from .failures import Broken, Interrupted
from .parts import WEB_PAGE, Patience, forget, is_web_page, note_of, progress_bar, read_note, size_of
from .sources import Source

logger = logging.getLogger(__name__)

CHUNK = 1 << 16  # bytes; a transfer that stalls within a chunk loses that chunk
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
GZIP_NAMES = (".gz", ".tgz")


@dataclass(frozen=True)
class Answer:
    """What the headers of a response say.

    Attributes:
        offset: The byte of the file at which the response begins.
        total: The length of the file in bytes; None if the server does not say it.
    """

    offset: int
    total: int | None


def fetch_from_web(url: str, part: Path, source: Source, patience: Patience) -> None:
    """Makes `part` whole, but does not check its content.

    Raises:
        Broken: If the server does not give the file.
        UserError: If the disk is full or cannot be written.
    """
    furthest, fruitless = 0, 0
    with requests.Session() as session:
        while True:
            try:
                _try_once(session, url, part, source, patience)
                return
            except Interrupted as error:
                if size_of(part) > furthest:
                    furthest, fruitless = size_of(part), 0
                if fruitless == patience.retries:
                    raise Broken(f"{error} (gave up after {fruitless} more tries)") from error
                pause = patience.pause_after(fruitless)
                fruitless += 1
                logger.info("%s: %s; trying again in %g s", url, error, pause)
                time.sleep(pause)


def _try_once(session: requests.Session, url: str, part: Path, source: Source, patience: Patience) -> None:
    """Sends one request: for the rest of the file, if `part` is known to be its beginning, and else for all of it."""
    note = read_note(part)
    offset = size_of(part) if note.get("url") == url and note.get("validator") else 0
    if offset and offset == note.get("total"):
        return  # the last call stopped between the last byte and the check
    with _send(session, url, offset, note, patience) as response:
        answer = _read_headers(response, part, offset, note)
        if answer.total is not None and source.size is not None and answer.total != source.size:
            raise Broken(f"it has {answer.total:,} bytes where {source.size:,} are expected")
        expected = source.size if answer.total is None else answer.total
        need_room(part.parent, (expected or 0) - answer.offset)
        _receive(response, url, part, answer, patience.timeout)
    if expected is not None and size_of(part) < expected:
        raise Interrupted(f"the connection broke off after {size_of(part):,} of {expected:,} bytes")


def _send(
    session: requests.Session, url: str, offset: int, note: dict[str, Any], patience: Patience
) -> requests.Response:
    headers = {"Accept-Encoding": "identity"}  # positions count the bytes of the file, not of a compressed stream
    if offset:
        headers.update({"Range": f"bytes={offset}-", "If-Range": note["validator"]})
    try:
        return session.get(url, headers=headers, stream=True, timeout=patience.timeouts)
    except (requests.exceptions.SSLError, requests.exceptions.ProxyError) as error:
        raise Broken(describe(error, patience.timeout)) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Interrupted(describe(error, patience.timeout)) from error
    except requests.RequestException as error:
        raise Broken(describe(error, patience.timeout)) from error


def _read_headers(response: requests.Response, part: Path, offset: int, note: dict[str, Any]) -> Answer:
    """What the headers say, after a check that they fit the request."""
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
    is_file_itself = encoding in ("gzip", "x-gzip") and part.stem.endswith(GZIP_NAMES)
    if encoding != "identity" and not is_file_itself:
        raise Broken(f"it sends the file encoded as {encoding}, which was not asked for")
    if response.status_code == 200:  # the whole file: the server knows no ranges, or the file has changed
        length = response.headers.get("Content-Length", "")
        return Answer(0, int(length) if length.isdigit() else None)
    answer = _read_range(response, offset, note)
    if answer is None:
        forget(part)
        raise Interrupted(f"{status}: not the part that was asked for, starting over")
    return answer


def _read_range(response: requests.Response, offset: int, note: dict[str, Any]) -> Answer | None:
    """What the headers of a partial response say; None if it is not the rest of the file that `note` describes."""
    found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not offset or not found or int(found[1]) != offset:
        return None
    total = int(found[2]) if found[2] != "*" else None
    kind = "ETag" if note.get("validator", "").startswith('"') else "Last-Modified"
    same_file = response.headers.get(kind) in (None, note.get("validator"))
    same_length = None in (total, note.get("total")) or total == note["total"]
    return Answer(offset, total) if same_file and same_length else None


def _receive(response: requests.Response, url: str, part: Path, answer: Answer, timeout: float) -> None:
    """Writes the content to `part`: behind what is there, or from the beginning."""
    chunks = _chunks(response, timeout)
    chunk = next(chunks, b"")
    if not answer.offset and is_web_page(chunk):  # found out before it replaces what came earlier
        raise Broken(WEB_PAGE)
    mode = "ab" if answer.offset else "wb"
    with writing(part), part.open(mode) as file, progress_bar(part.stem, answer.total, answer.offset) as bar:
        if not answer.offset:  # the note is written after the old bytes are gone, so it never describes them
            write_json(note_of(part), {"url": url, "validator": _validator(response), "total": answer.total})
        while chunk:
            file.write(chunk)
            bar.update(len(chunk))
            chunk = next(chunks, b"")


def _chunks(response: requests.Response, timeout: float) -> Iterator[bytes]:
    try:
        yield from response.raw.stream(CHUNK, decode_content=False)
    except urllib3.exceptions.ProtocolError as error:
        raise Interrupted("the connection broke off") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Interrupted(describe(error, timeout)) from error


def _validator(response: requests.Response) -> str:
    """What tells this version of the file from others: a strong ETag or the date of the last change; "" if neither."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def describe(error: BaseException, timeout: float) -> str:
    """The cause at the bottom of a network error, in one line."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    timeouts = (requests.Timeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)
    if any(isinstance(cause, timeouts) for cause in causes):
        return f"no answer within {timeout:g} s"
    return " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__

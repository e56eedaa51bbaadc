"""Fetches the data sets of `sources.py` into CoOp's layout.

Each mirror in turn; a broken transfer goes on where it broke off, in this call or the next, but only if the server says
that the file is still the same one. What came is checked (length, size, checksum, not a web page), unpacked beside its
target and renamed into place when it is whole. What is in place is never touched, and nothing that an archive says can
put a file elsewhere.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3
from tqdm import tqdm

from ...utils.errors import UserError, unknown
from ...utils.files import read_json, write_json
from ..catalog import CATALOG
from .archives import Broken, Damaged, alone_in, cannot_write, make_folder, missing_of, need_room, unpack, writing
from .sources import BY_HAND, SOURCES, Source

logger = logging.getLogger(__name__)

DRIVE = "gdrive:"
CHUNK = 1 << 16  # bytes; a transfer that stalls within a chunk loses that chunk
MAX_CONNECT_TIMEOUT = 10.0  # seconds: to accept a connection, unlike to answer, is no work
MAX_PAUSE = 60.0  # seconds
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
WEB_PAGE = "it sent a web page instead of the file (about a quota, a login or an error)"
GZIP_NAMES = (".gz", ".tgz")


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        timeout: Seconds without a byte after which it counts as stalled.
        retries: Further tries without any progress before the next mirror's turn.
        pause: Seconds before the first of them; each further pause is twice as long.
    """

    timeout: float = 30.0
    retries: int = 4
    pause: float = 1.0


PATIENCE = Patience()


class Unreachable(UserError):
    """No mirror gives a file."""


class _Interrupted(Exception):
    """This try failed; another one may not."""


def download(name: str, root: str | Path, patience: Patience = PATIENCE) -> None:
    """Fetches what is missing of a data set. Called again after an interruption, it goes on where it was.

    Args:
        name: `DATASET.NAME`, a key of `SOURCES`.
        root: The folder of all data sets.
        patience: How long to wait for a server.

    Raises:
        UserError: If the name is not known, a file cannot be fetched (the others are, all the same), an archive is not
            safe to unpack, or the disk is full or cannot be written.
    """
    if name not in SOURCES:
        raise unknown("data set to download", name, SOURCES)
    folder = Path(root).expanduser().absolute() / CATALOG[name].folder
    make_folder(folder)
    failures = []
    with alone_in(folder):
        for source in SOURCES[name]:
            try:
                fetch(source, folder, patience)
            except Unreachable as error:
                failures.append((source, error))
    # the archive of a later source may have brought what failed before
    errors = [str(error) for source, error in failures if missing_of(source.targets, folder)]
    if errors:
        raise Unreachable(f"{name} is not complete: {'; '.join(errors)}")
    target, how = BY_HAND.get(name, ("", ""))
    if target and missing_of([target], folder):
        logger.warning("%s is missing and cannot be fetched. %s", folder / target, how)


def fetch(source: Source, folder: Path, patience: Patience = PATIENCE) -> None:
    """Fetches one file unless its targets are in place. An archive is unpacked, then removed.

    Args:
        source: What to fetch.
        folder: The data set's folder.
        patience: How long to wait for a server.

    Raises:
        Unreachable: If no mirror gives it. The message says why, for each, and how to get it by hand.
        UserError: If an archive is not safe to unpack, or the disk is full or cannot be written.
    """
    if not missing_of(source.targets, folder):
        logger.info("%s: in place", folder / source.targets[0])
        return
    make_folder(folder)
    alternatives = [source]
    while alternatives[-1].otherwise:
        alternatives.append(alternatives[-1].otherwise)

    at_hand = next((a for a in alternatives if a.unpack and (folder / a.file).is_file()), None)
    if at_hand:  # put there by hand, or left by an interruption while it was unpacked
        _use_archive_at_hand(at_hand, source.targets, folder)
    else:
        _fetch_from_any(alternatives, folder, patience)


def _use_archive_at_hand(source: Source, required: Sequence[str], folder: Path) -> None:
    path = folder / source.file
    try:
        _check(path, source)
        unpack(path, source, required, folder)
    except (Broken, OSError) as error:
        raise UserError(f"{path} is of no use: {error}; delete it and run the same command again") from error


def _fetch_from_any(alternatives: Sequence[Source], folder: Path, patience: Patience) -> None:
    wanted = alternatives[0]
    reasons = []
    for source, url in [(alternative, url) for alternative in alternatives for url in alternative.urls]:
        path = folder / source.file
        logger.info("%s: from %s", path, _page(url))
        try:
            _transfer(url, path, source, patience)
            if source.unpack:
                unpack(path, source, wanted.targets, folder)
        except Broken as error:
            logger.warning("%s: %s", _page(url), error)
            reasons.append(f"{_page(url)}: {error}")
            if isinstance(error, Damaged):
                path.unlink()
        else:
            _remove_leftovers(alternatives, folder)
            return
    raise Unreachable(
        f"cannot fetch {wanted.file} ({'; '.join(reasons)}); get it by hand: open {_page(wanted.urls[0])}, save it as "
        f"{folder / wanted.file} and run the same command again"
    )


def _page(url: str) -> str:
    """The address that a browser opens."""
    return f"https://drive.google.com/file/d/{url[len(DRIVE) :]}/view" if url.startswith(DRIVE) else url


# --- one file from one mirror. While `x.zip` comes it is `x.zip.part`, with what the server said in `x.zip.part.json`.


def _transfer(url: str, path: Path, source: Source, patience: Patience) -> None:
    """Makes `path`, whole and checked.

    Raises:
        Broken: If the mirror does not give the file.
        UserError: If the disk is full or cannot be written.
    """
    part = _part(path)
    if url.startswith(DRIVE):
        _from_drive(url[len(DRIVE) :], part, source, patience)
    else:
        _from_web(url, part, source, patience)
    try:
        _check(part, source)
    except Broken:
        _forget(part)
        raise
    with writing(path):
        os.replace(part, path)
        _state(part).unlink(missing_ok=True)


def _from_web(url: str, part: Path, source: Source, patience: Patience) -> None:
    furthest, fruitless = 0, 0
    with requests.Session() as session:
        while True:
            try:
                _request(session, url, part, source, patience.timeout)
                return
            except _Interrupted as error:
                if _size(part) > furthest:
                    furthest, fruitless = _size(part), 0
                if fruitless == patience.retries:
                    raise Broken(f"{error} (gave up after {fruitless} more tries)") from error
                pause = min(patience.pause * 2**fruitless, MAX_PAUSE)
                fruitless += 1
                logger.info("%s: %s; trying again in %g s", url, error, pause)
                time.sleep(pause)


def _request(session: requests.Session, url: str, part: Path, source: Source, timeout: float) -> None:
    """One request. It asks for the rest only, if `part` is known to be the beginning of the same file."""
    state = _read_state(part)
    offset = _size(part) if state.get("url") == url and state.get("validator") else 0
    if offset and offset == state.get("total"):
        return  # stopped between the last byte and the check
    headers = {"Accept-Encoding": "identity"}  # positions count the bytes of the file, not of a compressed stream
    if offset:
        headers.update({"Range": f"bytes={offset}-", "If-Range": state["validator"]})
    try:
        response = session.get(url, headers=headers, stream=True, timeout=(min(timeout, MAX_CONNECT_TIMEOUT), timeout))
    except (requests.exceptions.SSLError, requests.exceptions.ProxyError) as error:
        raise Broken(_reason(error, timeout)) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Interrupted(_reason(error, timeout)) from error
    except requests.RequestException as error:
        raise Broken(_reason(error, timeout)) from error
    with response:
        offset, total = _read_headers(response, part, offset, state)
        if None not in (total, source.size) and total != source.size:
            raise Broken(f"it has {total:,} bytes where {source.size:,} are expected")
        expected = source.size if total is None else total
        need_room(part.parent, (expected or 0) - offset)
        chunks = _chunks(response, timeout)
        chunk = next(chunks, b"")
        if not offset and _is_web_page(chunk):  # before it takes the place of what came earlier
            raise Broken(WEB_PAGE)
        with writing(part), part.open("ab" if offset else "wb") as file, _bar(part.stem, total, offset) as bar:
            if not offset:  # it was emptied first, so the old bytes are never said to be of the new file
                write_json(_state(part), {"url": url, "validator": _validator(response), "total": total})
            while chunk:
                file.write(chunk)
                bar.update(len(chunk))
                chunk = next(chunks, b"")
    if expected is not None and _size(part) < expected:
        raise _Interrupted(f"the connection broke off after {_size(part):,} of {expected:,} bytes")


def _read_headers(
    response: requests.Response, part: Path, offset: int, state: dict[str, Any]
) -> tuple[int, int | None]:
    """At which byte of the file the answer begins, and how long the file is, where the server says so."""
    status = f"HTTP {response.status_code} {response.reason}"
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise _Interrupted(status)
    if response.status_code == 416:  # the file is shorter than what we have
        _forget(part)
        raise _Interrupted(f"{status}: the file has changed, starting over")
    if response.status_code not in (200, 206):
        raise Broken(status)
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise Broken(WEB_PAGE)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    is_file_itself = encoding in ("gzip", "x-gzip") and part.stem.endswith(GZIP_NAMES)  # some servers say so of .tar.gz
    if encoding != "identity" and not is_file_itself:
        raise Broken(f"it sends the file encoded as {encoding}, which was not asked for")
    if response.status_code == 200:  # the whole file: the server knows no ranges, or the file has changed
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    total = int(found[2]) if found and found[2] != "*" else None
    kind = "ETag" if state.get("validator", "").startswith('"') else "Last-Modified"
    same_file = response.headers.get(kind) in (None, state.get("validator"))
    same_length = None in (total, state.get("total")) or total == state["total"]
    if not offset or not found or int(found[1]) != offset or not (same_file and same_length):
        _forget(part)
        raise _Interrupted(f"{status}: not the part that was asked for, starting over")
    return offset, total


def _chunks(response: requests.Response, timeout: float) -> Iterator[bytes]:
    try:
        yield from response.raw.stream(CHUNK, decode_content=False)
    except urllib3.exceptions.ProtocolError as error:
        raise _Interrupted("the connection broke off") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _Interrupted(_reason(error, timeout)) from error


def _validator(response: requests.Response) -> str:
    """What tells this version of the file from another: a strong ETag or the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _reason(error: BaseException, timeout: float) -> str:
    """What is at the bottom of a network error, in one line."""
    causes = [error]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    if any(
        isinstance(cause, (requests.Timeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)) for cause in causes
    ):
        return f"no answer within {timeout:g} s"
    return " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__


def _from_drive(identifier: str, part: Path, source: Source, patience: Patience) -> None:
    import gdown  # slow to import

    if "timeout" not in inspect.signature(gdown.download).parameters:
        raise Broken(f"gdown {gdown.__version__} would wait for ever on a stalled server: pip install 'gdown>=6.3'")
    fetched = part.with_name(f"{part.name}.{identifier}")  # gdown goes on with part files whose names begin like this
    with _bar(part.stem, source.size) as bar:

        def show(received: int, total: int | None) -> None:
            if not bar.n:
                need_room(part.parent, (total or source.size or 0) - received)
            bar.total = total
            bar.update(received - bar.n)

        try:
            gdown.download(
                id=identifier, output=str(fetched), quiet=True, resume=True, progress=show, retries=patience.retries,
                timeout=(min(patience.timeout, MAX_CONNECT_TIMEOUT), patience.timeout),
            )  # fmt: skip
        except UserError:
            raise
        except Exception as error:  # gdown raises many kinds, such as KeyError where it expects a header
            if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
                raise cannot_write(part, error) from error
            raise Broken(f"gdown: {_reason(error, patience.timeout)}") from error
    with writing(part):
        part.touch()
        mode = part.stat().st_mode  # gdown's files are their owner's only
        os.replace(fetched, part)
        part.chmod(mode)


def _check(path: Path, source: Source) -> None:
    """Raises `Broken` if the file is not the expected one, as far as that is known."""
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        raise Broken(f"it has {size:,} bytes where {source.size:,} are expected")
    if not size:
        raise Broken("it is empty")
    with path.open("rb") as file:
        if _is_web_page(file.read(64)):
            raise Broken(WEB_PAGE)
    if source.checksum:
        algorithm, _, expected = source.checksum.partition(":")
        digest = hashlib.new(algorithm)
        with path.open("rb") as file, _bar(f"checking {source.file}", size) as bar:
            while block := file.read(1 << 20):
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() != expected:
            raise Broken(f"its {algorithm} sum is {digest.hexdigest()} where {expected} is expected")


def _is_web_page(beginning: bytes) -> bool:
    return beginning.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _state(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path) -> dict[str, Any]:
    if not _state(part).is_file():
        return {}
    try:
        state = read_json(_state(part))
    except UserError:  # damaged: the file is fetched from its beginning
        return {}
    return state if isinstance(state, dict) else {}


def _forget(part: Path) -> None:
    with writing(part):
        part.unlink(missing_ok=True)
        _state(part).unlink(missing_ok=True)


def _remove_leftovers(alternatives: Sequence[Source], folder: Path) -> None:
    """Removes what came from one mirror before another gave the file."""
    archives = {source.file for source in alternatives if source.unpack}
    parts = tuple(_part(folder / source.file).name for source in alternatives)
    with writing(folder):
        for path in folder.iterdir():
            if path.name in archives or path.name.startswith(parts):
                path.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _bar(name: str, total: int | None, initial: int = 0) -> tqdm:
    return tqdm(desc=name, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024, disable=None)

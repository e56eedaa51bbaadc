"""Fetches files by HTTP or from Google Drive, from several mirrors, and unpacks archives into CoOp's layout.

What came is checked (length, checksum, not a web page), unpacked beside its target, and renamed into place once it is
whole. What is in place is never touched. Nothing in an archive is trusted: Python's modules keep its members inside the
folder in which it is unpacked, and an archive with symbolic links is refused.

A file that is still coming is `x.zip.HASH.part`, where the hash stands for its address, with the version that the
server has of it in `.version` beside it. The same or the next call goes on where it broke off, if the version is still
that one.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import logging
import os
import shutil
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import requests
import urllib3
from filelock import FileLock
from pydantic import BeforeValidator, ValidationInfo
from tqdm import tqdm

from ..utils.errors import UserError, first_line
from ..utils.files import cannot_write, hash_json

logger = logging.getLogger(__name__)

LOCK = ".download.lock"
TIMEOUTS = (10.0, 30.0)  # seconds to wait for a connection, and for the next byte
RETRIES = 4  # further tries without any progress before the next mirror is tried
PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds before the first of them, and the most; each further pause is twice as long
CHUNK = 1 << 16  # bytes; a transfer that stalls within a chunk loses that chunk
DRIVE = "gdrive:"  # what the address of a file of Google Drive begins with; the file's id follows
WEB_PAGE = "it sent a web page instead of the file (about a quota, a login or an error)"


def _with_hosts(urls: list[str], info: ValidationInfo) -> list[str]:
    return [url.format(**(info.context or {})) for url in urls]


def _with_targets(members: Any) -> Any:
    return members if isinstance(members, dict) else dict(zip(members, members))


@dataclass(frozen=True)
class Source:
    """One file to fetch from `https://...` or `gdrive:FILE_ID`; the head of `entries.yaml` explains the fields.

    `unpack` gives the end of a member's path in the archive -> its target in the data set's folder.
    """

    file: str
    urls: Annotated[tuple[str, ...], BeforeValidator(_with_hosts)]
    size: int | None = None
    checksum: str = ""
    unpack: Annotated[dict[str, str], BeforeValidator(_with_targets)] = field(default_factory=dict)
    inner: str = ""
    otherwise: tuple[Source, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """What is in place once this source is fetched, relative to the data set's folder."""
        return tuple(self.unpack.values()) or (self.file,)


class Unreachable(UserError):
    """No mirror gives a file."""


class Broken(Exception):
    """A mirror, or what came from it, is of no use. The message is a reason in one line."""


class Interrupted(Exception):
    """One try failed, but another may not."""


def download(name: str, sources: Sequence[Source], folder: Path) -> None:
    """Fetches what is missing of a data set. The next call goes on after an interruption.

    Raises UserError if a file cannot be fetched (the others are fetched all the same) or written.
    """
    failures = []
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)  # two at once would mix their bytes in one file: the second waits
    with contextlib.suppress(OSError, NotImplementedError):  # a disk that is read-only, or that has no locks
        lock.acquire()
    try:
        for source in sources:
            try:
                fetch(source, folder)
            except Unreachable as error:
                failures.append((source, error))
    finally:
        lock.release()
        (folder / LOCK).unlink(missing_ok=True)
    # The archive of a later source may have brought what failed before
    if errors := [str(error) for source, error in failures if missing_of(source.targets, folder)]:
        raise Unreachable(f"{name} is not complete: {'; '.join(errors)}")


def fetch(source: Source, folder: Path) -> None:
    """Fetches one file unless its targets are in place. An archive is unpacked, then removed.

    Raises:
        Unreachable: If no mirror gives it. The message says why, for each, and how to get it by hand.
        UserError: If an archive that the user has put there is of no use, or the disk is full or cannot be written.
    """
    alternatives = [source, *source.otherwise]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        at_hand = next((a for a in alternatives if a.unpack and (folder / a.file).is_file()), None)
        if not missing_of(source.targets, folder):
            logger.info("%s: in place", folder / source.targets[0])
        elif at_hand:  # put there by hand, or left by an interruption while it was unpacked
            path = folder / at_hand.file
            try:
                check_file(path, at_hand.size, at_hand.checksum)
                _unpack(path, at_hand, source.targets, folder)
            except Broken as error:
                raise UserError(f"{path} is of no use: {error}; delete it and run the same command again") from error
        else:
            _fetch_from_any(alternatives, folder)
        for alternative in alternatives:  # parts, and what a killed process was unpacking
            shutil.rmtree(_unpacking(folder / alternative.file), ignore_errors=True)
            _remove_parts(folder / alternative.file)


def _fetch_from_any(alternatives: Sequence[Source], folder: Path) -> None:
    """Fetches and unpacks the first of the alternatives that a mirror gives."""
    wanted = alternatives[0]
    reasons = []
    for source, url in [(alternative, url) for alternative in alternatives for url in alternative.urls]:
        path = folder / source.file
        logger.info("%s: from %s", path, page_of(url))
        try:
            fetch_file(url, path, source.size, source.checksum)
            if source.unpack:
                _unpack(path, source, wanted.targets, folder)
            return
        except Broken as error:
            reasons.append(f"{page_of(url)}: {error}")
            logger.warning("%s", reasons[-1])
            path.unlink(missing_ok=True)
    raise Unreachable(
        f"cannot fetch {wanted.file} ({'; '.join(reasons)}); get it by hand: open {page_of(wanted.urls[0])}, save it "
        f"as {folder / wanted.file} and run the same command again"
    )


def missing_of(targets: Sequence[str], folder: Path) -> list[str]:
    """Those of `targets` that are not in `folder`. An empty folder counts as missing, since it has nothing to lose."""
    missing = []
    for target in targets:
        path = folder / target
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to nothing; mend it, or delete it and run the same command again")
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            missing.append(target)
    return missing


# --- one file


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
        _remove_parts(path)


def _remove_parts(path: Path) -> None:
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


# --- archives


def _unpacking(archive: Path) -> Path:
    """The folder in which an archive is unpacked, before its members are moved into place."""
    return archive.with_name(f".{archive.name}.unpacking")


def _unpack(archive: Path, source: Source, required: Sequence[str], folder: Path) -> None:
    """Unpacks an archive, moves the missing targets of a source into place in `folder`, and removes the archive.

    Raises `Broken` if it is damaged or not safe, or does not hold the targets that are `required`.
    """
    logger.info("unpacking %s", archive)
    temporary = _unpacking(archive)
    shutil.rmtree(temporary, ignore_errors=True)
    content = temporary / "outer"
    try:
        _extract(archive, content)
        if source.inner:
            packed = _find(source.inner, content, archive)
            if packed is None:
                raise Broken(f"{archive.name} holds no {source.inner}")
            content = temporary / "inner"
            _extract(packed, content)
        wanted = {end: target for end, target in source.unpack.items() if missing_of([target], folder)}
        found = {end: _find(end, content, archive) for end in wanted}
        if absent := [end for end, target in wanted.items() if found[end] is None and target in required]:
            raise Broken(f"{archive.name} holds no {absent[0]}")
        for end, path in found.items():
            if path is not None:
                (folder / wanted[end]).parent.mkdir(parents=True, exist_ok=True)
                os.rename(path, folder / wanted[end])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    archive.unlink()


def _extract(archive: Path, into: Path) -> None:
    """Unpacks a whole archive into a new folder; raises `Broken` if it cannot be read or is not safe."""
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"{archive}: this Python cannot unpack it safely; take 3.10.12, 3.11.4 or later")
    into.mkdir(parents=True)
    with archive.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        if is_zip:
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(into)  # keeps every member inside, and makes no links
            return
        with tarfile.open(archive, "r:*") as packed:  # finds the compression itself, as the name may be wrong
            packed.extractall(into, filter=_without_links)
            while packed.fileobj is not None and packed.fileobj.read(1 << 20):
                pass  # gzip compares its checksum at the end
    except Exception as error:  # the modules raise many kinds
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise Broken(f"the archive is damaged or not safe: {first_line(error)}") from error


def _without_links(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo:
    """Python's rules for data (PEP 706: no devices, nothing outside), and no symbolic links either."""
    if member.issym():
        raise ValueError(f"{member.name!a} is a symbolic link")
    return tarfile.data_filter(member, into)


def _find(end: str, content: Path, archive: Path) -> Path | None:
    """The file or folder nearest to the root whose path ends with `end`; None if there is none."""
    paths = [path for path in content.rglob(end) if "__MACOSX" not in path.relative_to(content).parts]
    found = sorted(paths, key=lambda path: (len(path.parts), path))
    if len(found) > 1 and len(found[0].parts) == len(found[1].parts):
        two = " and ".join(path.relative_to(content).as_posix() for path in found[:2])
        raise Broken(f"{archive.name} holds two {end}: {two}")
    return found[0] if found else None

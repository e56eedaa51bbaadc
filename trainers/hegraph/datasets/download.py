"""Fetches the files of a data set from several mirrors, and unpacks archives into CoOp's layout.

A file that is still coming is `x.zip.HASH.part`, where the hash stands for its address, with the version that the
server has of it in `.part.version`. The next call goes on with it, if the server still has that version. An archive is
unpacked beside its targets, which are renamed into place once it is whole. What is in place is never touched. A
download that was killed leaves files, which the next one that succeeds removes.

Nothing in an archive is trusted: Python's modules keep its members inside the folder in which it is unpacked, and an
archive with symbolic links is refused.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import logging
import os
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import requests
import urllib3
from filelock import FileLock
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from ..utils.errors import UserError, first_line
from ..utils.files import cannot_write, hash_json
from .registry import Source

logger = logging.getLogger(__name__)

TIMEOUTS = (10.0, 30.0)  # seconds to wait for a connection, and for the next byte
RETRIES, PAUSE = 4, 1.0  # how often a request is tried again, and seconds before that; each pause is twice as long
BUSY = (408, 429, 500, 502, 503, 504)  # answers after which it is tried again
CHUNK = 1 << 16  # bytes; a transfer that stalls within a chunk loses that chunk
DRIVE = "https://drive.google.com/"  # whose large files need more than one request
LOCK = ".download.lock"
# Errors of the disk for which the names in an archive are to blame: it is unpacked into an empty folder
OF_MEMBERS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


class Broken(Exception):
    """A mirror, or what came from it, is of no use. The message is a reason in one line."""


def download(name: str, sources: Sequence[Source], folder: Path) -> None:
    """Fetches what is missing of a data set. UserError if a file cannot be fetched (the others are all the same)."""
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK):  # two at once would mix their bytes in one file: the second waits
            for source in sources:
                try:
                    fetch(source, folder)
                except UserError as error:
                    failures.append((source, error))
    except OSError as error:
        raise cannot_write(Path(os.fsdecode(error.filename2 or error.filename or folder)), error) from error
    # The archive of a later source may have brought what failed before
    if errors := [str(error) for source, error in failures if missing_of(source.targets, folder)]:
        raise UserError(f"{name} is not complete: {'; '.join(errors)}")


def fetch(source: Source, folder: Path) -> None:
    """Fetches one file unless its targets are in place. An archive is unpacked, then removed.

    Raises UserError if no mirror gives it, an archive that the user has put there is of no use, or a target is a link
    to nothing; and OSError if the disk is full or cannot be written.
    """
    alternatives = [source, *source.otherwise]
    if dangling := [folder / target for target in source.targets if _is_dangling(folder / target)]:
        place = os.readlink(dangling[0])
        raise UserError(f"{dangling[0]} is a link to {place}, which does not exist; restore it or delete the link")
    at_hand = next((a for a in alternatives if a.unpack and (folder / a.file).is_file()), None)
    if not missing_of(source.targets, folder):
        logger.info("%s: in place", folder / source.targets[0])
    elif at_hand:  # put there by hand, or left by an interruption while it was unpacked
        path = folder / at_hand.file
        try:
            check_file(path, at_hand.size, at_hand.checksum)
            _unpack(path, at_hand, source.targets)
        except Broken as error:
            raise UserError(f"{path} is of no use: {error}; delete it and run the same command again") from error
    else:
        _fetch_from_any(alternatives, folder)
    for path in [folder / alternative.file for alternative in alternatives]:
        _remove_remains(path)


def _remove_remains(path: Path) -> None:
    """Remove what killed downloads of `path` left, once its targets are in place."""
    for part in path.parent.glob(f"{path.name}.*.part*"):
        if not part.is_dir():
            part.unlink()
    if (temporary := _unpacking(path)).is_dir():  # killed after the last target was in place
        path.unlink(missing_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _fetch_from_any(alternatives: Sequence[Source], folder: Path) -> None:
    """Fetches and unpacks the first of the alternatives that a mirror gives."""
    wanted = alternatives[0]
    reasons = []
    for source, url in [(alternative, url) for alternative in alternatives for url in alternative.urls]:
        path = folder / source.file
        logger.info("%s: from %s", path, url)
        try:
            fetch_file(url, path, source.size, source.checksum)
            if source.unpack:
                _unpack(path, source, wanted.targets)
            return
        except Broken as error:
            reasons.append(f"{url}: {error}")
            logger.warning("%s", reasons[-1])
            path.unlink(missing_ok=True)
    raise UserError(
        f"cannot fetch {wanted.file} ({'; '.join(reasons)}); get it by hand, save it as {folder / wanted.file} and run "
        "the same command again"
    )


def missing_of(targets: Sequence[str], folder: Path) -> list[str]:
    """Targets that are not in `folder`, empty folders (which have nothing to lose) and links to nothing."""
    paths = {target: folder / target for target in targets}
    return [t for t, path in paths.items() if not path.exists() or (path.is_dir() and not any(path.iterdir()))]


def _is_dangling(path: Path) -> bool:
    """Whether a path is a link to nothing, such as a disk that is not mounted."""
    return path.is_symlink() and not path.exists()


# --- one file


def fetch_file(url: str, path: Path, size: int | None = None, checksum: str = "") -> None:
    """Makes `path`, whole and checked, of what is at an address. The next call goes on with what has come.

    Raises `Broken` if the mirror does not give the file, or not of this size in bytes or checksum, such as "md5:...",
    and OSError if it cannot be written.
    """
    part = path.with_name(f"{path.name}.{hash_json(url)[:16]}.part")
    note = part.with_name(f"{part.name}.version")
    if url.startswith(DRIVE):
        _from_drive(url, part)
    else:
        _from_server(url, part, note)
    try:
        check_file(part, size, checksum)
    except Broken:
        part.unlink()
        note.unlink(missing_ok=True)
        raise
    os.replace(part, path)
    note.unlink(missing_ok=True)


def check_file(path: Path, size: int | None, checksum: str) -> None:
    """Raises `Broken` unless size and checksum of a file are those that are known, and it is no web page."""
    found = path.stat().st_size
    if found == 0 or size not in (None, found):
        raise Broken(f"it has {found:,} bytes" + (f" where {size:,} are expected" if size else ""))
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm or "md5")
    with path.open("rb") as file:
        if file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise Broken("it sent a web page instead of the file (about a quota, a login or an error)")
        file.seek(0)
        while expected and (block := file.read(1 << 20)):
            digest.update(block)
    if expected and digest.hexdigest() != expected:
        raise Broken(f"its {algorithm} sum is {digest.hexdigest()} where {expected} is expected")


def _from_server(url: str, part: Path, note: Path) -> None:
    """Makes the part of a file whole, by as many requests as it takes while each of them brings something."""
    retries = urllib3.Retry(RETRIES, status_forcelist=BUSY, backoff_factor=PAUSE, respect_retry_after_header=False)
    reached = -1
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries))
        while True:
            try:
                return _request(session, url, part, note)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                here = part.stat().st_size if part.is_file() else 0
                if isinstance(error, requests.RequestException) or here <= reached:
                    raise Broken(_reason(error)) from error
                reached = here


def _reason(error: Exception) -> str:
    """The cause of a failed request in a few words, without the address, which the message names anyway."""
    cause = error.args[0] if error.args else error
    text = first_line(getattr(cause, "reason", None) or error)  # urllib3's MaxRetryError has a reason
    return re.sub(r"^(<[^>]*>|\w+\([^)]*\)): | for url: .*$", "", text)


def _request(session: requests.Session, url: str, part: Path, note: Path) -> None:
    """Asks for a file: for its rest alone, if there is a part of the version that the server still has."""
    version = note.read_bytes().decode("ascii", "replace").strip() if note.is_file() and part.is_file() else ""
    usable = version.isascii() and version.isprintable()  # no header takes anything else
    begin = part.stat().st_size if version and usable else 0
    headers = {"Accept-Encoding": "identity"}  # positions count the bytes of the file, not of a compressed stream
    if begin:
        headers |= {"Range": f"bytes={begin}-", "If-Range": version}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUTS) as response:
        if response.status_code == 416:  # all of it is here, or `check_file` tells that it is another file
            return
        response.raise_for_status()
        begin = begin if response.status_code == 206 else 0
        coming = response.raw.length_remaining
        total = None if coming is None else begin + coming
        if not begin:
            tag = response.headers.get("ETag", "")  # a weak one, W/"...", does not tell that all bytes are the same
            version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
            note.write_text(version, encoding="utf-8")
        bar = tqdm(desc=part.stem, total=total, initial=begin, unit="B", unit_scale=True, disable=None)
        with part.open("ab" if begin else "wb") as file, bar:
            for chunk in response.raw.stream(CHUNK, decode_content=False):  # some call the gzip of a file an encoding
                bar.update(file.write(chunk))
    if total is not None and part.stat().st_size < total:  # urllib3 before 2.0 does not tell
        raise urllib3.exceptions.HTTPError(f"it broke off after {part.stat().st_size:,} of {total:,} bytes")


def _from_drive(url: str, part: Path) -> None:
    """Makes the part of a file of Google Drive whole, by gdown, whose own parts have names that begin like it."""
    import gdown  # slow to import

    quiet = not sys.stderr.isatty()
    try:
        gdown.download(url, str(part), quiet, resume=True, retries=RETRIES, timeout=TIMEOUTS)
    except Exception as error:  # gdown raises many kinds, such as KeyError for a missing header
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
            raise
        raise Broken(f"gdown: {' '.join(str(error).split())}") from error


# --- archives


def _unpack(archive: Path, source: Source, required: Sequence[str]) -> None:
    """Unpacks an archive, moves the missing targets of a source into place beside it, and removes the archive.

    Raises `Broken` if it is damaged or not safe, or does not hold the targets that are `required`.
    """
    logger.info("unpacking %s", archive)
    folder, temporary = archive.parent, _unpacking(archive)
    shutil.rmtree(temporary, ignore_errors=True)
    content = temporary / "outer"
    try:
        _extract(archive, content)
        if source.inner:
            packed, content = _find(source.inner, content), temporary / "inner"
            if packed is None:
                raise Broken(f"{archive.name} holds no {source.inner}")
            _extract(packed, content)
        wanted = [to for to in missing_of(source.targets, folder) if not _is_dangling(folder / to)]
        found = {to: _find(end, content) for end, to in source.unpack.items() if to in wanted}
        if absent := [target for target in required if found.get(target, folder) is None]:
            raise Broken(f"{archive.name} holds no {absent[0]}")
        for target, path in found.items():
            if path is not None:
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                os.rename(path, folder / target)
        archive.unlink()  # before `temporary`, which shows that this archive was being unpacked
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpacking(archive: Path) -> Path:
    """The folder in which an archive is unpacked."""
    return archive.with_name(f".{archive.name}.unpacking")


def _extract(archive: Path, into: Path) -> None:
    """Unpacks a whole archive into a new folder; raises `Broken` if it cannot be read or is not safe."""
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"{archive}: this Python cannot unpack it safely; take 3.10.12, 3.11.4 or later")
    into.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):  # whose last member may be a zip file
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(into)  # keeps every member inside, and makes no links
            return
        with tarfile.open(archive, "r:*") as packed:  # finds the compression itself, as the name may be wrong
            packed.extractall(into, filter=_without_links)
            while packed.fileobj is not None and packed.fileobj.read(1 << 20):
                pass  # gzip compares its checksum at the end
    except Exception as error:  # the modules raise many kinds
        place = ""
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            if error.errno not in OF_MEMBERS or error.filename is None:
                raise
            place = f"{os.path.relpath(error.filename, into)}: "
        raise Broken(f"the archive is damaged or not safe: {place}{first_line(error)}") from error


def _without_links(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo:
    """Python's rules for data (PEP 706: no devices, nothing outside), and no symbolic links either."""
    if member.issym():
        raise ValueError(f"{member.name!a} is a symbolic link")
    return tarfile.data_filter(member, into)


def _find(end: str, content: Path) -> Path | None:
    """The file or folder nearest to the root whose path ends with `end`; None if there is none, `Broken` if two are."""
    found = [path for path in content.rglob(end) if "__MACOSX" not in path.relative_to(content).parts]
    found.sort(key=lambda path: (len(path.parts), path))
    if len(found) > 1 and len(found[0].parts) == len(found[1].parts):
        raise Broken(f"it holds two {end}: {found[0].relative_to(content)} and {found[1].relative_to(content)}")
    return found[0] if found else None

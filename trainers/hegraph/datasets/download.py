"""Download the files of a data set from several mirrors, and unpack archives into CoOp's layout.

A partial file has the name `x.zip.HASH.part`, with a hash of its address. `.part.version` records the version of the
file on the server; the next call continues the download if the server still has this version. An archive is unpacked
into a temporary folder, and complete targets are renamed into place. Existing targets are never changed. The next
successful download removes files of a killed one.

Archives are untrusted: Python's modules keep members inside the folder, and archives with symbolic links are refused.
"""

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
RETRIES, PAUSE = 4, 1.0  # number of retries, and seconds before the first retry; each pause doubles
BUSY = (408, 429, 500, 502, 503, 504)  # status codes that are retried
CHUNK = 1 << 16  # bytes; an interrupted transfer loses at most one chunk
DRIVE = "https://drive.google.com/"  # large files there need several requests
LOCK = ".download.lock"
# Errors of the file system that names in an archive cause, since the archive is unpacked into an empty folder
MEMBER_ERRORS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


class DownloadError(Exception):
    """A mirror or a downloaded file is unusable. The message is a reason in one line."""


def download(name: str, sources: Sequence[Source], folder: Path) -> None:
    """Download the missing files of a data set, one process at a time.

    After a failure the other files are still downloaded, because their archives may contain the same targets.

    Args:
        name: Name of the data set in messages.
        sources: Files, with the targets that each of them provides.
        folder: Folder of the data set, which is created if it is missing.

    Raises:
        UserError: If targets are still missing after the last file, or the folder cannot be written.
    """
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK):  # two processes would write to the same partial file
            for source in sources:
                try:
                    fetch(source, folder)
                except UserError as error:
                    failures.append((source, error))
    except OSError as error:
        raise cannot_write(Path(os.fsdecode(error.filename2 or error.filename or folder)), error) from error
    # The archive of a later source may contain the targets of a failed source
    if errors := [str(error) for source, error in failures if missing_of(source.targets, folder)]:
        raise UserError(f"{name} is not complete: {'; '.join(errors)}")


def fetch(source: Source, folder: Path) -> None:
    """Download one file unless its targets exist. An archive is unpacked, then removed.

    Raises:
        UserError: If no mirror has the file, an archive in the folder is unusable, or a target is a dangling link.
        OSError: If the disk is full or not writable.
    """
    alternatives = [source, *source.otherwise]
    if dangling := [folder / target for target in source.targets if _is_dangling(folder / target)]:
        place = os.readlink(dangling[0])
        raise UserError(f"{dangling[0]} is a link to {place}, which does not exist; restore it or delete the link")
    local = next((a for a in alternatives if a.unpack and (folder / a.file).is_file()), None)
    if not missing_of(source.targets, folder):
        logger.info("%s exists", folder / source.targets[0])
    elif local:  # saved by the user, or left by an interruption during unpacking
        path = folder / local.file
        try:
            check_file(path, local.size, local.checksum)
            _unpack(path, local, source.targets)
        except DownloadError as error:
            raise UserError(f"{path} is unusable: {error}; delete it and run the same command again") from error
    else:
        _fetch_from_any(alternatives, folder)
    for path in [folder / alternative.file for alternative in alternatives]:
        _remove_leftovers(path)


def _remove_leftovers(path: Path) -> None:
    """Remove files of killed downloads of `path`, whose targets are in place."""
    for part in path.parent.glob(f"{path.name}.*.part*"):
        if not part.is_dir():
            part.unlink()
    if (temporary := _unpacking(path)).is_dir():  # killed after the last target was moved into place
        path.unlink(missing_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _fetch_from_any(alternatives: Sequence[Source], folder: Path) -> None:
    """Download and unpack the first alternative that a mirror has."""
    wanted = alternatives[0]
    reasons = []
    for source, url in [(alternative, url) for alternative in alternatives for url in alternative.urls]:
        path = folder / source.file
        logger.info("downloading %s from %s", path, url)
        try:
            fetch_file(url, path, source.size, source.checksum)
            if source.unpack:
                _unpack(path, source, wanted.targets)
            return
        except DownloadError as error:
            reasons.append(f"{url}: {error}")
            logger.warning("%s", reasons[-1])
            path.unlink(missing_ok=True)
    advice = f"save it as {folder / wanted.file} by hand and run the same command again"
    raise UserError(f"cannot download {wanted.file} ({'; '.join(reasons)}); {advice}")


def missing_of(targets: Sequence[str], folder: Path) -> list[str]:
    """List the targets without a file or files in `folder`: absent paths, dangling links and empty folders."""
    paths = {target: folder / target for target in targets}
    return [t for t, path in paths.items() if not path.exists() or (path.is_dir() and not any(path.iterdir()))]


def _is_dangling(path: Path) -> bool:
    """Whether a path is a link to a missing file, such as one on an unmounted disk."""
    return path.is_symlink() and not path.exists()


# --- one file


def fetch_file(url: str, path: Path, size: int | None = None, checksum: str = "") -> None:
    """Download a file to `path`, complete and checked. After an interruption, the next call continues.

    Args:
        url: Address of the file.
        path: Target.
        size: Expected size in bytes; None if unknown.
        checksum: Expected checksum, such as "md5:..."; "" if unknown.

    Raises:
        DownloadError: If the mirror does not have the file, or has a file of another size or checksum.
        OSError: If `path` cannot be written.
    """
    part = path.with_name(f"{path.name}.{hash_json(url)[:16]}.part")
    note = part.with_name(f"{part.name}.version")
    if url.startswith(DRIVE):
        _from_drive(url, part)
    else:
        _from_server(url, part, note)
    try:
        check_file(part, size, checksum)
    except DownloadError:
        part.unlink()
        note.unlink(missing_ok=True)
        raise
    os.replace(part, path)
    note.unlink(missing_ok=True)


def check_file(path: Path, size: int | None, checksum: str) -> None:
    """Raise `DownloadError` if a file is empty or a web page, or differs from the known size or checksum."""
    actual_size = path.stat().st_size
    if actual_size == 0 or size not in (None, actual_size):
        raise DownloadError(f"expected {f'{size:,}' if size else 'more than 0'} bytes, got {actual_size:,}")
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm or "md5")
    with path.open("rb") as file:
        if file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise DownloadError("expected a file, got a web page (about a quota, a login or an error)")
        file.seek(0)
        while expected and (block := file.read(1 << 20)):
            digest.update(block)
    if expected and digest.hexdigest() != expected:
        raise DownloadError(f"expected the {algorithm} checksum {expected}, got {digest.hexdigest()}")


def _from_server(url: str, part: Path, note: Path) -> None:
    """Complete a partial file, by further requests while each one makes progress."""
    retries = urllib3.Retry(RETRIES, status_forcelist=BUSY, backoff_factor=PAUSE, respect_retry_after_header=False)
    previous_size = -1
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries))
        while True:
            try:
                return _request(session, url, part, note)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                size = part.stat().st_size if part.is_file() else 0
                if isinstance(error, requests.RequestException) or size <= previous_size:
                    raise DownloadError(_reason(error)) from error
                previous_size = size


def _reason(error: Exception) -> str:
    """Describe the cause of a failed request, without the address, which is part of the message."""
    cause = error.args[0] if error.args else error
    text = first_line(getattr(cause, "reason", None) or error)  # urllib3's MaxRetryError has a reason
    return re.sub(r"^(<[^>]*>|\w+\([^)]*\)): | for url: .*$", "", text)


def _request(session: requests.Session, url: str, part: Path, note: Path) -> None:
    """Request a file, or the rest of it if the partial file has the version on the server."""
    version = note.read_bytes().decode("ascii", "replace").strip() if note.is_file() and part.is_file() else ""
    usable = version.isascii() and version.isprintable()  # as required in a header
    begin = part.stat().st_size if version and usable else 0
    headers = {"Accept-Encoding": "identity"}  # ranges count bytes of the file, not of a compressed stream
    if begin:
        headers |= {"Range": f"bytes={begin}-", "If-Range": version}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUTS) as response:
        if response.status_code == 416:  # the file is complete, or `check_file` fails
            return
        response.raise_for_status()
        begin = begin if response.status_code == 206 else 0
        remaining = response.raw.length_remaining
        total = None if remaining is None else begin + remaining
        if not begin:
            tag = response.headers.get("ETag", "")  # a weak tag, W/"...", does not imply equal bytes
            version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
            note.write_text(version, encoding="utf-8")
        bar = tqdm(desc=part.stem, total=total, initial=begin, unit="B", unit_scale=True, disable=None)
        with part.open("ab" if begin else "wb") as file, bar:
            for chunk in response.raw.stream(CHUNK, decode_content=False):  # some servers declare a .gz file as encoded
                bar.update(file.write(chunk))
    if total is not None and part.stat().st_size < total:  # urllib3 before 2.0 does not raise
        raise urllib3.exceptions.HTTPError(f"connection closed after {part.stat().st_size:,} of {total:,} bytes")


def _from_drive(url: str, part: Path) -> None:
    """Complete a partial file from Google Drive by gdown, whose own partial files have the same prefix."""
    import gdown  # slow to import

    quiet = not sys.stderr.isatty()
    try:
        gdown.download(url, str(part), quiet, resume=True, retries=RETRIES, timeout=TIMEOUTS)
    except Exception as error:  # gdown raises exceptions of many types, such as KeyError for a missing header
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
            raise
        raise DownloadError(f"gdown: {' '.join(str(error).split())}") from error


# --- archives


def _unpack(archive: Path, source: Source, required: Sequence[str]) -> None:
    """Unpack an archive, move the missing targets of a source next to it, and remove the archive.

    Raises:
        DownloadError: If the archive is damaged or unsafe, or lacks one of the `required` targets.
    """
    logger.info("unpacking %s", archive)
    folder = archive.parent
    temporary = _unpacking(archive)
    shutil.rmtree(temporary, ignore_errors=True)
    content = temporary / "outer"
    try:
        _extract(archive, content)
        if source.inner:
            packed = _find(source.inner, content)
            content = temporary / "inner"
            if packed is None:
                raise DownloadError(f"{archive.name} does not contain {source.inner}")
            _extract(packed, content)
        wanted = [to for to in missing_of(source.targets, folder) if not _is_dangling(folder / to)]
        members = {to: _find(end, content) for end, to in source.unpack.items() if to in wanted}
        if absent := [target for target in required if members.get(target, folder) is None]:
            raise DownloadError(f"{archive.name} does not contain {absent[0]}")
        for target, path in members.items():
            if path is not None:
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                os.rename(path, folder / target)
        archive.unlink()  # before `temporary`, which marks an archive that was being unpacked
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpacking(archive: Path) -> Path:
    """Return the temporary folder in which an archive is unpacked."""
    return archive.with_name(f".{archive.name}.unpacking")


def _extract(archive: Path, into: Path) -> None:
    """Unpack an archive into a new folder; `DownloadError` if it is damaged or unsafe."""
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"{archive}: this Python cannot unpack it safely; use 3.10.12, 3.11.4 or later")
    into.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):  # a tar may end with a zip file
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(into)  # keeps members inside, and creates no links
            return
        with tarfile.open(archive, "r:*") as packed:  # detects the compression, since the name may be wrong
            packed.extractall(into, filter=_without_links)
            while packed.fileobj is not None and packed.fileobj.read(1 << 20):
                pass  # gzip verifies its checksum at the end
    except Exception as error:  # the modules raise exceptions of many types
        place = ""
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            if error.errno not in MEMBER_ERRORS or error.filename is None:
                raise
            place = f"{os.path.relpath(error.filename, into)}: "
        raise DownloadError(f"the archive is damaged or unsafe: {place}{first_line(error)}") from error


def _without_links(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo:
    """Apply Python's filter for data (PEP 706: no devices, nothing outside), and refuse symbolic links."""
    if member.issym():
        raise ValueError(f"{member.name!a} is a symbolic link")
    return tarfile.data_filter(member, into)


def _find(end: str, content: Path) -> Path | None:
    """Find the file or folder nearest to the root whose path ends with `end`; None without one.

    Raises:
        DownloadError: If two are equally near.
    """
    paths = [path.relative_to(content) for path in content.rglob(end)]
    paths = sorted((path for path in paths if "__MACOSX" not in path.parts), key=lambda path: (len(path.parts), path))
    if len(paths) > 1 and len(paths[0].parts) == len(paths[1].parts):
        raise DownloadError(f"it contains two {end}: {paths[0]} and {paths[1]}")
    return content / paths[0] if paths else None

"""Fetches the data sets of `sources.py` into CoOp's layout.

Each mirror in turn; a broken transfer goes on where it broke off, in this call or the next, but only if the server says
that the file is still the same one. What came is checked (length, size, checksum, not a web page), unpacked beside its
target and renamed into place when it is whole. What is in place is never touched, and nothing that an archive says can
put a file elsewhere.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import inspect
import logging
import lzma
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import requests
import urllib3
from tqdm import tqdm

from ..errors import UserError, unknown
from ..files import read_json, write_json
from .catalog import CATALOG
from .sources import BY_HAND, SOURCES, Member, Source

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

DRIVE = "gdrive:"
CHUNK = 1 << 16  # bytes; a transfer that stalls within a chunk loses that chunk
MAX_CONNECT_TIMEOUT = 10.0  # seconds: to accept a connection, unlike to answer, is no work
MAX_PAUSE = 60.0  # seconds
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
WEB_PAGE = "it sent a web page instead of the file (about a quota, a login or an error)"
GZIP_NAMES = (".gz", ".tgz")
MAX_LINK = 4096  # bytes of a path


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


class _Broken(Exception):
    """This mirror is of no use. The text is a reason in one line."""


class _Damaged(_Broken):
    """An archive cannot be read. One that only lacks what was expected is kept, for its content may be of use."""


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
    _make_folder(folder)
    failures = []
    with _alone_in(folder):
        for source in SOURCES[name]:
            try:
                fetch(source, folder, patience)
            except Unreachable as error:
                failures.append((source, error))
    # the archive of a later source may have brought what failed before
    errors = [str(error) for source, error in failures if _missing(source.targets, folder)]
    if errors:
        raise Unreachable(f"{name} is not complete: {'; '.join(errors)}")
    target, how = BY_HAND.get(name, ("", ""))
    if target and _missing([target], folder):
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
    if not _missing(source.targets, folder):
        logger.info("%s: in place", folder / source.targets[0])
        return
    _make_folder(folder)
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
        _unpack(path, source, required, folder)
    except (_Broken, OSError) as error:
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
                _unpack(path, source, wanted.targets, folder)
        except _Broken as error:
            logger.warning("%s: %s", _page(url), error)
            reasons.append(f"{_page(url)}: {error}")
            if isinstance(error, _Damaged):
                path.unlink()
        else:
            _remove_leftovers(alternatives, folder)
            return
    raise Unreachable(
        f"cannot fetch {wanted.file} ({'; '.join(reasons)}); get it by hand: open {_page(wanted.urls[0])}, save it as "
        f"{folder / wanted.file} and run the same command again"
    )


def _missing(targets: Sequence[str], folder: Path) -> list[str]:
    """Those of `targets` that are not there. An empty folder has nothing to lose and counts as not there.

    Raises:
        UserError: If one is a link to nothing, which is neither there nor ours to replace.
    """
    missing = []
    for target in targets:
        path = folder / target
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to nothing; mend it, or delete it and run the same command again")
        if not path.exists() or _is_empty_folder(path):
            missing.append(target)
    return missing


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _page(url: str) -> str:
    """The address that a browser opens."""
    return f"https://drive.google.com/file/d/{url[len(DRIVE) :]}/view" if url.startswith(DRIVE) else url


# --- one file from one mirror. While `x.zip` comes it is `x.zip.part`, with what the server said in `x.zip.part.json`.


def _transfer(url: str, path: Path, source: Source, patience: Patience) -> None:
    """Makes `path`, whole and checked.

    Raises:
        _Broken: If the mirror does not give the file.
        UserError: If the disk is full or cannot be written.
    """
    part = _part(path)
    if url.startswith(DRIVE):
        _from_drive(url[len(DRIVE) :], part, source, patience)
    else:
        _from_web(url, part, source, patience)
    try:
        _check(part, source)
    except _Broken:
        _forget(part)
        raise
    with _writing(path):
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
                    raise _Broken(f"{error} (gave up after {fruitless} more tries)") from error
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
        raise _Broken(_reason(error, timeout)) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Interrupted(_reason(error, timeout)) from error
    except requests.RequestException as error:
        raise _Broken(_reason(error, timeout)) from error
    with response:
        offset, total = _read_headers(response, part, offset, state)
        if None not in (total, source.size) and total != source.size:
            raise _Broken(f"it has {total:,} bytes where {source.size:,} are expected")
        expected = source.size if total is None else total
        _need_room(part.parent, (expected or 0) - offset)
        chunks = _chunks(response, timeout)
        chunk = next(chunks, b"")
        if not offset and _is_web_page(chunk):  # before it takes the place of what came earlier
            raise _Broken(WEB_PAGE)
        with _writing(part), part.open("ab" if offset else "wb") as file, _bar(part.stem, total, offset) as bar:
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
        raise _Broken(status)
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise _Broken(WEB_PAGE)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    is_file_itself = encoding in ("gzip", "x-gzip") and part.stem.endswith(GZIP_NAMES)  # some servers say so of .tar.gz
    if encoding != "identity" and not is_file_itself:
        raise _Broken(f"it sends the file encoded as {encoding}, which was not asked for")
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
        raise _Broken(f"gdown {gdown.__version__} would wait for ever on a stalled server: pip install 'gdown>=6.3'")
    fetched = part.with_name(f"{part.name}.{identifier}")  # gdown goes on with part files whose names begin like this
    with _bar(part.stem, source.size) as bar:

        def show(received: int, total: int | None) -> None:
            if not bar.n:
                _need_room(part.parent, (total or source.size or 0) - received)
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
                raise _cannot_write(part, error) from error
            raise _Broken(f"gdown: {_reason(error, patience.timeout)}") from error
    with _writing(part):
        part.touch()
        mode = part.stat().st_mode  # gdown's files are their owner's only
        os.replace(fetched, part)
        part.chmod(mode)


def _check(path: Path, source: Source) -> None:
    """Raises `_Broken` if the file is not the expected one, as far as that is known."""
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        raise _Broken(f"it has {size:,} bytes where {source.size:,} are expected")
    if not size:
        raise _Broken("it is empty")
    with path.open("rb") as file:
        if _is_web_page(file.read(64)):
            raise _Broken(WEB_PAGE)
    if source.checksum:
        algorithm, _, expected = source.checksum.partition(":")
        digest = hashlib.new(algorithm)
        with path.open("rb") as file, _bar(f"checking {source.file}", size) as bar:
            while block := file.read(1 << 20):
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() != expected:
            raise _Broken(f"its {algorithm} sum is {digest.hexdigest()} where {expected} is expected")


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
    with _writing(part):
        part.unlink(missing_ok=True)
        _state(part).unlink(missing_ok=True)


def _remove_leftovers(alternatives: Sequence[Source], folder: Path) -> None:
    """Removes what came from one mirror before another gave the file."""
    archives = {source.file for source in alternatives if source.unpack}
    parts = tuple(_part(folder / source.file).name for source in alternatives)
    with _writing(folder):
        for path in folder.iterdir():
            if path.name in archives or path.name.startswith(parts):
                path.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _bar(name: str, total: int | None, initial: int = 0) -> tqdm:
    return tqdm(desc=name, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024, disable=None)


# --- archives


@dataclass(frozen=True)
class _Entry:
    """A member of an archive, of whatever kind.

    Attributes:
        name: As the archive has it.
        parts: Its path.
        kind: "file", "folder", "link" (symbolic) or "hard link"; anything else is refused.
        size: Of a file, in bytes.
        link: Where a link leads, as the archive has it.
        handle: What the archive opens it by.
        leads_to: The path that a link leads to, once that is known to be safe.
    """

    name: str
    parts: tuple[str, ...]
    kind: str
    size: int
    link: str
    handle: Any
    leads_to: tuple[str, ...] = ()


def _unpack(archive: Path, source: Source, required: Sequence[str], folder: Path) -> None:
    """Puts the missing targets in place, each when it is whole, and removes the archive.

    Raises:
        _Broken: If the archive is damaged, or does not hold what is `required`.
        UserError: If it is not safe, or the disk is full or cannot be written.
    """
    logger.info("unpacking %s", archive)
    wanted = [member for member in source.unpack if _missing([member.target], folder)]
    temporary = folder / f".{archive.name}.unpacking"
    with _writing(folder):
        if temporary.exists():  # of a process that was killed
            shutil.rmtree(temporary)
        temporary.mkdir()
    try:
        packed = archive
        if source.inner:
            packed = _extract(archive, [Member(source.inner, "inner")], ["inner"], temporary / "outer")["inner"]
        for target, path in _extract(packed, wanted, required, temporary / "members").items():
            _settle(path, folder / target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with _writing(archive):
        archive.unlink()


def _settle(path: Path, target: Path) -> None:
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_empty_folder(target):
            target.rmdir()
        if not os.path.lexists(target):
            os.rename(path, target)


def _extract(archive: Path, members: Sequence[Member], required: Sequence[str], into: Path) -> dict[str, Path]:
    """Unpacks members into a new folder. Returns target -> where it is now; what is not required may be absent."""
    _make_folder(into)
    places = {}
    with _reading(archive), _open_archive(archive) as (entries, open_entry):
        entries = _safe(entries, archive)
        chosen = []
        for number, member in enumerate(members):
            root = _find(member.path, entries, archive)
            if root is None:
                if member.target in required:
                    raise _Broken(f"{archive.name} holds no {member.path}")
                continue
            places[member.target] = into / str(number)
            for entry in entries:
                if entry.parts[: len(root)] == root:
                    if entry.kind == "link" and entry.leads_to[: len(root)] != root:
                        raise _unsafe(archive, entry.name, f"a link to {entry.link}, which stays behind")
                    chosen.append((entry, places[member.target].joinpath(*entry.parts[len(root) :])))
        _need_room(into, sum(entry.size for entry, _ in chosen))
        with tqdm(chosen, desc=f"unpacking {archive.name}", unit="file", disable=None) as bar:
            for entry, path in bar:
                with _writing(path):
                    _write_entry(entry, path, open_entry)
    return places


def _write_entry(entry: _Entry, path: Path, open_entry: Callable[[Any], IO[bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.kind == "folder":
        path.mkdir(exist_ok=True)
    elif entry.kind == "link":
        path.symlink_to(entry.link)
    else:
        with open_entry(entry.handle) as packed, path.open("xb") as file:  # x: never through something that is there
            shutil.copyfileobj(packed, file, 1 << 20)
        if path.stat().st_size != entry.size:
            raise _Damaged(f"the archive is damaged: {entry.name} ends too early")


def _find(path: str, entries: Sequence[_Entry], archive: Path) -> tuple[str, ...] | None:
    """The file or folder nearest to the root whose path ends with `path`."""
    wanted = tuple(path.split("/"))
    paths = {entry.parts[:length] for entry in entries for length in range(len(wanted), len(entry.parts) + 1)}
    found = sorted((len(parts), parts) for parts in paths if parts[-len(wanted) :] == wanted)
    if len(found) > 1 and found[0][0] == found[1][0]:
        raise _Broken(f"{archive.name} holds two {path}: {'/'.join(found[0][1])} and {'/'.join(found[1][1])}")
    return found[0][1] if found else None


@contextlib.contextmanager
def _open_archive(archive: Path) -> Iterator[tuple[list[_Entry], Callable[[Any], IO[bytes]]]]:
    """All entries in the order of the archive, and a function that opens the content of one by its handle."""
    with archive.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(archive) as packed:
            yield [_zip_entry(info, packed, archive) for info in packed.infolist()], packed.open
    else:
        with tarfile.open(archive, "r:*") as packed:  # whatever compression, whatever its name says
            entries = [_tar_entry(member, archive) for member in packed.getmembers()]
            _read_to_the_end(packed.fileobj)
            yield entries, packed.extractfile


def _read_to_the_end(file: IO[bytes]) -> None:
    """Lets a gzip file compare its sum, which is behind all that a tar file needs."""
    try:
        while file.read(1 << 20):
            pass
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):  # that is rubbish behind the sum, which does no harm
            raise


def _zip_entry(info: zipfile.ZipInfo, packed: zipfile.ZipFile, archive: Path) -> _Entry:
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    kind = "folder" if info.is_dir() else kinds.get(stat.S_IFMT(info.external_attr >> 16), "device")
    link = ""
    if kind == "link":
        if info.file_size > MAX_LINK:
            raise _unsafe(archive, info.filename, "a link without end")
        link = packed.read(info).decode()
    return _Entry(info.filename, _parts(info.filename, archive), kind, info.file_size, link, info)


def _tar_entry(member: tarfile.TarInfo, archive: Path) -> _Entry:
    if member.isfile():
        kind = "file"
    elif member.isdir():
        kind = "folder"
    elif member.issym():
        kind = "link"
    else:
        kind = "hard link" if member.islnk() else "device"
    size = member.size if kind == "file" else 0
    return _Entry(member.name, _parts(member.name, archive), kind, size, member.linkname, member)


def _parts(name: str, archive: Path) -> tuple[str, ...]:
    path = name.replace("\\", "/")
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        raise _unsafe(archive, name, "an absolute path")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in path:
        raise _unsafe(archive, name, "a path that leads out of the archive")
    return parts


def _safe(entries: Sequence[_Entry], archive: Path) -> list[_Entry]:
    """The entries that may be unpacked, hard links as the files that they stand for. One bad entry refuses all.

    Raises:
        UserError: If an entry is a device, or leads out of the archive, itself or through a link.
    """
    by_path = {}
    for entry in entries:
        if entry.parts and entry.parts[0] != "__MACOSX":  # which holds what only the Finder reads
            by_path.pop(entry.parts, None)
            by_path[entry.parts] = entry  # of two with one path the later counts, as everywhere
    links = {entry.parts for entry in entries if entry.kind == "link"}
    for entry in entries:
        if entry.kind == "device":
            raise _unsafe(archive, entry.name, "a device")
        if any(entry.parts[:length] in links for length in range(1, len(entry.parts))):
            raise _unsafe(archive, entry.name, "a path through a link")
        if entry.kind not in ("link", "hard link"):
            continue
        leads_to = _follow(entry, entry.parts[:-1] if entry.kind == "link" else (), links, archive)
        resolved = replace(entry, leads_to=leads_to)
        if entry.kind == "hard link":
            target = by_path.get(leads_to)
            if target is None or target.kind != "file":
                raise _unsafe(archive, entry.name, "a link to nothing in the archive")
            resolved = replace(target, name=entry.name, parts=entry.parts)
        if by_path.get(entry.parts) is entry:
            by_path[entry.parts] = resolved
    return list(by_path.values())


def _follow(entry: _Entry, start: tuple[str, ...], links: set[tuple[str, ...]], archive: Path) -> tuple[str, ...]:
    """Where a link leads. One step at a time: behind another link, `..` would be elsewhere than it seems."""
    target = entry.link.replace("\\", "/")
    if target.startswith("/") or re.match(r"[A-Za-z]:", target):
        raise _unsafe(archive, entry.name, f"a link to {entry.link}")
    at = start
    for step in target.split("/"):
        if step == ".." and not at:
            raise _unsafe(archive, entry.name, f"a link to {entry.link}")
        if step not in ("", "."):
            at = at[:-1] if step == ".." else (*at, step)
        if at in links:
            raise _unsafe(archive, entry.name, "a link to a link")
    return at


def _unsafe(archive: Path, name: str, what: str) -> UserError:
    return UserError(
        f"{archive} is refused, as its member {name!r} is {what}; nothing of it was unpacked, delete it and get the "
        "data elsewhere"
    )


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """What Python's archive modules raise on a damaged file becomes `_Damaged`."""
    try:
        yield
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError,
        RuntimeError, NotImplementedError, UnicodeDecodeError,  # zipfile: encrypted, unknown method; a name
    ) as error:  # fmt: skip
        raise _Damaged(f"the archive is damaged: {str(error) or type(error).__name__}") from error


# --- the disk


def _make_folder(folder: Path) -> None:
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except gzip.BadGzipFile:  # an OSError that is not about writing
        raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}; free or choose a disk that can be written")


def _need_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        needed, there = (tqdm.format_sizeof(n, "B", 1024) for n in (size, free))
        raise UserError(f"{folder} has no room: {needed} more are needed and {there} are free; free some and run again")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps a second download out of the folder: two writers would mix their bytes in one file."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is downloading into {folder}; wait for it, or end it") from error
        except OSError as error:  # some network file systems lock no folders
            logger.debug("%s cannot be locked: %s", folder, error)
        yield
    finally:
        os.close(handle)

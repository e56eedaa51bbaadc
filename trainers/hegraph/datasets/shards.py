"""The user's own images in WebDataset's tar shards.

    ROOT/train/*.tar or ROOT/train-*.tar      and, if there are any, the same with val and test
    ROOT/*.tar                                whose names have no split: all are train
    train=URLS;val=URLS;test=URLS, or URLS    paths or addresses, such as https://HOST/train-{000..009}.tar

A split may have any of its names in `SPLIT_NAMES`, in upper or lower case.

A sample is the files of a shard whose names are equal up to the first dot: an image, and its label in `.cls`, or in
`.json` under "label". A label is a class name, or a position in the list `classnames.txt` beside the shards.

Shards that are not on this machine are fetched once, by HTTP alone: the package webdataset would hand other addresses
to programs. An image is read at its place in the shard.
"""

from __future__ import annotations

import logging
import math
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock

from ..utils.errors import UserError, first_line, shortened
from ..utils.files import absolute, hash_json
from ..utils.reading import check_regular, parse_json, read_text, reading
from .folder import OwnImages, Row, class_name, files_of_splits
from .images import IMAGE_SUFFIXES, open_image
from .layouts import CLASSNAMES, check_utf8
from .splits import SPLIT_NAMES

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

MOST_NAMES = 1_000_000  # of shards, which ranges in braces stand for
LONGEST_NUMBER = 15  # digits of a number in a range, or of a position in the list of names
LABELS = ("cls", "cls.txt", "json")
EXPECTED = 'each sample of a shard needs one image, and its label in .cls, or in .json under "label"'


class Shard(NamedTuple):
    """A tar file: its split, what paths of its images begin with, and where it is."""

    split: str
    name: str
    file: Path


class Member(NamedTuple):
    """Where an image lies: the tar file, the place of its first byte there, its bytes, and the file's time in ns."""

    shard: Path
    start: int
    size: int
    changed: int


def read_shards(root: str) -> OwnImages | None:
    """The images of tar shards; None if `root` names none."""
    folder = absolute(root)
    if local := os.path.isdir(folder):
        shards = [Shard(split, path, folder / path) for split, path in files_of_splits(folder, ".tar")]
    else:
        shards = _named_shards(root)
    if not shards:
        return None
    split_of: dict[str, str] = {}
    for split, _, file in shards:
        check_regular(file)
        if (first := split_of.setdefault(os.path.realpath(file), split)) != split:
            raise UserError(f"the shard {file} is in {first} and in {split}; a shard has one split: leave one out")
    parents = [folder] if local else [shard.file.parent for shard in shards if shard.file.parent != _cache()]
    names = _read_classnames(parents[0] / CLASSNAMES) if parents else []
    rows: list[Row] = []
    members: dict[str, Member] = {}
    for shard in shards:
        for name, member, label in _samples(shard.file, names):
            path = f"{shard.name}/{name}"
            rows.append(Row(shard.split, path, label))
            members[path] = member
    return OwnImages(rows, open=partial(_open, members), version=partial(_version, members), classnames=names)


def _open(members: dict[str, Member], path: str) -> Image.Image:
    member = members[path]
    with member.shard.open("rb") as file:
        file.seek(member.start)
        return open_image(file.read(member.size))


def _version(members: dict[str, Member], path: str) -> tuple[int, int]:
    return members[path].size, members[path].changed


# --- which shards


def _named_shards(root: str) -> list[Shard]:
    """The shards that paths and addresses name. Those at addresses are fetched."""
    if ".tar" not in root:
        return []
    urls_of: dict[str, list[str]] = defaultdict(list)
    for split, urls in _splits_and_urls(root):
        urls_of[split] += _expanded(urls)
    shards = []
    for split, expanded in urls_of.items():
        short = [re.split(r"[/\s]", url)[-1] for url in expanded]
        for url, name in zip(expanded, short):
            shards.append(Shard(split, f"{split}/{name if short.count(name) == 1 else url}", _fetched(url)))
    return shards


def _splits_and_urls(root: str) -> list[tuple[str, str]]:
    """The parts of "train=URLS;val=URLS"; all is train where no split is named."""
    parts = [part.strip() for part in root.split(";") if part.strip()]
    found = [
        (SPLIT_NAMES.get(name.strip().lower(), ""), urls.strip()) for name, _, urls in (p.partition("=") for p in parts)
    ]
    if not any(split for split, _ in found) and not re.match(r"\w+=", root):
        return [("train", root)]
    for part, (split, urls) in zip(parts, found):
        if not split or not urls:
            raise UserError(
                f"--root has {shortened(part, 80)!r}, which is not SPLIT=URLS; give train=URLS;val=URLS;test=URLS, "
                f"without other ; and with a SPLIT of {', '.join(SPLIT_NAMES)}"
            )
    return found


def _expanded(urls: str) -> list[str]:
    """The paths and addresses that a text stands for, which may hold `::` and braces, as webdataset takes them.

    Unlike there, variables of the environment are not put in: a text of a stranger's could send them anywhere.
    """
    shown, expanded = f"--root has {shortened(urls, 80)!r}", urls.split("::")
    if sum(map(_most_names, expanded)) > MOST_NAMES:
        raise UserError(f"{shown}, which names more than {MOST_NAMES} shards; give a shorter range")
    if "{" in urls:
        try:
            from braceexpand import braceexpand
        except ImportError as error:
            raise UserError(f"{shown}; braces need the package braceexpand: pip install braceexpand") from error
        try:
            expanded = [name for url in expanded for name in braceexpand(url)]
        except ValueError as error:
            raise UserError(f"{shown}, which cannot be read: {first_line(error)}") from error
    if any(re.match(r"(?!https?://)[A-Za-z][\w+.-]+:", url) for url in expanded):
        raise UserError(f"{shown}; a shard is a path, or an address that begins with http:// or https://")
    return expanded


def _most_names(url: str) -> int:
    """How many names the ranges {first..last} of a text make at most; too many if one has a number that is too long."""
    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", url)
    if any(len(number) > LONGEST_NUMBER for each in ranges for number in each):
        return MOST_NAMES + 1
    return math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges)


def _cache() -> Path:
    return Path(os.environ.get("WDS_CACHE") or Path.home() / ".cache" / "hegraph" / "shards")


def _fetched(url: str) -> Path:
    """The file of a shard, which is fetched if it is not on this machine."""
    if "://" not in url:
        return absolute(url)
    from .web import Broken, fetch_file, writing  # imports requests, which most tasks need not wait for

    path = _cache() / f"{hash_json(url)[:16]}.tar"
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # several runs may begin at once
            if not path.is_file():
                logger.info("fetching %s to %s", url, path)
                try:
                    fetch_file(url, path)
                except Broken as error:
                    raise UserError(f"cannot fetch the shard {url}: {error}") from error
    return path


# --- what a shard holds


def _samples(shard: Path, names: Sequence[str]) -> list[tuple[str, Member, str]]:
    """The samples of a shard: the name of the image there, where it lies, and its class, "" if it has none."""
    images: dict[str, list[tuple[str, Member]]] = defaultdict(list)  # of each sample, and the same of labels
    labels: dict[str, list[tuple[str, str]]] = defaultdict(list)
    with reading(shard, "a whole tar file that is not compressed"), tarfile.open(shard, "r:") as tar:
        status = shard.stat()
        for entry in tar:
            key, extension = _key_and_extension(entry.name)
            if not entry.isfile():
                continue
            if entry.offset_data + entry.size > status.st_size:
                raise ValueError(f"{entry.name!a} is cut off")
            check_utf8(entry.name, str(shard))
            if f".{extension.lower()}" in IMAGE_SUFFIXES:
                member = Member(shard, entry.offset_data, entry.size, status.st_mtime_ns)
                images[key].append((entry.name, member))
            elif extension in LABELS:
                content = tar.extractfile(entry)
                assert content is not None  # it is a file
                label = _class_of(content.read(), extension, names, f"{shard}: {entry.name}")
                labels[key].append((extension, label))
        _check_end(shard, tar.offset)
    found = []
    for key in {**images, **labels}:
        classes = sorted({label for _, label in labels[key] if label})
        endings = [ending for ending, _ in labels[key]]
        if len(images[key]) != 1 or len(classes) > 1 or len(set(endings)) < len(endings):
            held = ", ".join(f".{ending} {label}" for ending, label in labels[key]) or "none"
            raise UserError(f"{shard}: the sample {key} has {len(images[key])} images, and labels: {held}; {EXPECTED}")
        found.append((*images[key][0], "".join(classes)))
    return found


def _check_end(shard: Path, place: int) -> None:
    """Raises ValueError if no block of zeros follows where the members of a tar end: further ones may be missing."""
    with shard.open("rb") as file:
        file.seek(place)
        end = file.read(2 * tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise ValueError(f"it is cut off: no end of archive is at byte {place}")


def _key_and_extension(name: str) -> tuple[str, str]:
    """A member's name up to the first dot of its last part, and what follows, as webdataset cuts it."""
    folder, slash, last = name.rpartition("/")
    key, _, extension = last.partition(".")
    return f"{folder}{slash}{key}", extension


def _class_of(content: bytes, extension: str, names: Sequence[str], where: str) -> str:
    """The class that a member holds as a name or as a position in `names`; "" where it has no label."""
    try:
        text = content.decode("utf-8-sig").strip()
        label = class_name(parse_json(text).get("label") if extension == "json" else text, where)
    except UserError:
        raise
    except (ValueError, AttributeError) as error:  # AttributeError: a list or a number
        raise UserError(f"cannot read the label in {where}: {first_line(error)}") from error
    if not names or not label or (label in names and not label.isdecimal()):
        return label
    if not label.isdecimal() or len(label) > LONGEST_NUMBER or int(label) >= len(names):
        allowed = f"a name in {CLASSNAMES} nor a position from 0 to {len(names) - 1}"
        raise UserError(f"{where} has the label {label!r:.60}, which is neither {allowed}")
    return names[int(label)]


def _read_classnames(path: Path) -> list[str]:
    """The names in a list of class names, [] without one; raises UserError if one is there twice."""
    if not os.path.lexists(path):
        return []
    lines = read_text(path, "a list of class names in UTF-8").splitlines()
    names = [name for line in lines if (name := class_name(line, str(path)))]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path} has the name {twice!r} twice; two classes need two names, such as {twice + ' 2'!r}")
    return names

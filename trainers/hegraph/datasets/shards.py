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
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock

from ..utils.errors import UserError, first_line, shortened
from ..utils.files import absolute, hash_json
from ..utils.reading import check_regular, parse_json, read_text, reading
from .entry import Source
from .images import IMAGE_SUFFIXES, open_image
from .layouts import check_utf8, listing
from .rows import LONGEST_NUMBER, SPLIT_NAMES, OwnImages, Rows, name_of_label, splits_of_names
from .splits import SPLITS

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

Shards = dict[str, dict[str, Path]]  # split -> name of a shard in paths of images -> its file

CLASSNAMES = "classnames.txt"
MOST_NAMES = 1_000_000  # of shards, which ranges in braces stand for
LABELS = ("cls", "cls.txt", "json")
EXPECTED = 'each sample of a shard needs one image, and its label in .cls, or in .json under "label"'


class Member(NamedTuple):
    """Where an image lies: the tar file, the place of its first byte there, and its bytes."""

    shard: Path
    start: int
    size: int


def read_shards(root: str) -> OwnImages | None:
    """The images of tar shards; None if `root` names none."""
    folder = absolute(root)
    shards, names_file = _local_shards(folder) if os.path.isdir(folder) else _named_shards(root)
    if not shards:
        return None
    _check_one_split(shards)
    rows: Rows = {split: [] for split in SPLITS}
    members: dict[str, Member] = {}
    names = _read_classnames(names_file)
    for split, found in shards.items():
        for shard_name, shard in found.items():
            for key, member, label in _samples(shard, names):
                path = f"{shard_name}/{key}"
                rows[split].append((path, label))
                members[path] = member
    versions = {shard: shard.stat().st_mtime_ns for found in shards.values() for shard in found.values()}
    return OwnImages(
        rows,
        open=partial(_open_member, members),
        version=partial(_version, members, versions),
        classnames=names,
    )


def _open_member(members: dict[str, Member], path: str) -> Image.Image:
    member = members[path]
    with member.shard.open("rb") as file:
        file.seek(member.start)
        return open_image(file.read(member.size))


def _version(members: dict[str, Member], versions: dict[Path, int], path: str) -> tuple[int, int]:
    member = members[path]
    return member.size, versions[member.shard]


# --- which shards


def _check_one_split(shards: Shards) -> None:
    """Raises UserError if two splits have the same file, by whatever names: test images are no training images."""
    split_of: dict[str, str] = {}
    for split, found in shards.items():
        for shard in found.values():
            check_regular(shard)
            first = split_of.setdefault(os.path.realpath(shard), split)
            if first != split:
                raise UserError(f"the shard {shard} is in {first} and in {split}; a shard has one split: leave one out")


def _local_shards(root: Path) -> tuple[Shards, Path]:
    """The shards below a folder, and where class names would be."""
    found: dict[str, dict[str, Path]] = {}
    left_out: list[str] = []
    for name in listing(root):
        place = root / name
        if name.endswith(".tar"):
            found[name] = {name: place}
        elif place.is_dir():
            inside = {f"{name}/{file}": place / file for file in listing(place) if file.endswith(".tar")}
            if inside and name.lower() in SPLIT_NAMES:
                found[name] = inside
            elif inside:
                left_out.append(name)
    shards: Shards = {}
    for name, split in splits_of_names(root, found).items():
        shards.setdefault(split, {}).update(found[name])
    if shards and left_out:
        said = "%s: the shards in %s are left out; a folder of a split is called one of %s"
        logger.warning(said, root, ", ".join(left_out), ", ".join(SPLIT_NAMES))
    return shards, root / CLASSNAMES


def _named_shards(root: str) -> tuple[Shards, Path | None]:
    """As `_local_shards`, of paths and addresses."""
    if ".tar" not in root:
        return {}, None
    urls_of: dict[str, list[str]] = {}
    for split, urls in _split_and_urls(root):
        urls_of.setdefault(split, []).extend(_expanded(urls))
    shards: Shards = {}
    beside: Path | None = None
    for split, expanded in urls_of.items():
        short = [re.split(r"[/\s]", url)[-1] for url in expanded]
        for url, name in zip(expanded, short):
            shards.setdefault(split, {})[f"{split}/{name if short.count(name) == 1 else url}"] = _fetched(url)
        if "://" not in expanded[0]:
            beside = beside or absolute(expanded[0]).parent / CLASSNAMES
    return shards, beside


def _split_and_urls(root: str) -> list[tuple[str, str]]:
    """The parts of "train=URLS;val=URLS"; all is train where no split is named."""
    parts = [part.strip() for part in root.split(";") if part.strip()]
    pairs = [part.partition("=")[::2] for part in parts]
    named = [(SPLIT_NAMES.get(name.strip().lower()), urls.strip()) for name, urls in pairs]
    if not any(split for split, _ in named) and not re.match(r"\w+=", root):
        return [("train", root)]
    found = []
    for part, (split, urls) in zip(parts, named):
        if split is None or not urls:
            allowed = ", ".join(SPLIT_NAMES)
            raise UserError(
                f"--root has {shortened(part, 80)!r}, which is not SPLIT=URLS; give train=URLS;val=URLS;test=URLS, "
                f"without other ; and with a SPLIT of {allowed}"
            )
        found.append((split, urls))
    return found


def _expanded(urls: str) -> list[str]:
    """The paths and addresses that a text stands for, which may hold `::` and braces, as webdataset takes them.

    Unlike there, variables of the environment are not put in: a text of a stranger's could send them anywhere.
    """
    try:
        from braceexpand import braceexpand  # a package that webdataset needs
    except ImportError as error:
        raise UserError(f"{urls} needs the package webdataset: pip install 'webdataset>=0.2.100'") from error
    shown = f"--root has {shortened(urls, 80)!r}"
    number = 0
    for url in urls.split("::"):
        ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\}", url)
        number += math.prod(_length(*each) for each in ranges)
    if number > MOST_NAMES:
        raise UserError(f"{shown}, which names more than {MOST_NAMES} shards; give a shorter range")
    try:
        expanded = [name for url in urls.split("::") for name in braceexpand(url)]
    except ValueError as error:
        raise UserError(f"{shown}, which cannot be read: {error}") from error
    for url in expanded:
        if re.match(r"[A-Za-z][\w+.-]+:", url) and not re.match(r"https?://", url):
            raise UserError(f"{shown}; a shard is a path, or an address that begins with http:// or https://")
    return expanded


def _length(first: str, last: str, step: str) -> int:
    """How many numbers a range has, such as {first..last..step}, whose step may be ""."""
    if max(len(first), len(last), len(step)) > LONGEST_NUMBER:
        return MOST_NAMES + 1
    return abs(int(last) - int(first)) // max(int(step or 1), 1) + 1


def _fetched(url: str) -> Path:
    """The file of a shard, which is fetched if it is not on this machine."""
    if "://" not in url:
        return absolute(url)
    from .web import Broken, fetch_part, note_of, part_of, writing  # which own images elsewhere do not need

    folder = Path(os.environ.get("WDS_CACHE") or Path.home() / ".cache" / "hegraph" / "shards")
    path = folder / f"{hash_json(url)[:16]}.tar"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # several runs may begin at once
            if not path.is_file():
                logger.info("fetching %s to %s", url, path)
                try:
                    fetch_part(url, part_of(path), Source(path.name, (url,)))
                except Broken as error:
                    raise UserError(f"cannot fetch the shard {url}: {error}") from error
                os.replace(part_of(path), path)
                note_of(part_of(path)).unlink(missing_ok=True)
    return path


# --- what a shard holds


def _samples(shard: Path, names: Sequence[str]) -> list[tuple[str, Member, str]]:
    """The samples of a shard: the name of the image there, where it lies, and its class. Each has one of all."""
    pictures: dict[str, tuple[str, Member]] = {}
    labels: dict[str, dict[str, str]] = {}  # sample -> ending -> class
    with reading(shard, "a whole tar file that is not compressed"), tarfile.open(shard, "r:") as tar:
        size = shard.stat().st_size
        for entry in tar:
            key, dot, extension = _key_and_extension(entry.name)
            if not entry.isfile() or not dot:
                continue
            if entry.offset_data + entry.size > size:
                raise ValueError(f"{entry.name!a} is cut off")
            check_utf8(entry.name, str(shard))
            if f".{extension.lower()}" in IMAGE_SUFFIXES:
                if key in pictures:
                    raise UserError(f"{shard}: the sample {key} has several images; {EXPECTED}")
                pictures[key] = (entry.name, Member(shard, entry.offset_data, entry.size))
            elif extension in LABELS:
                if extension in labels.setdefault(key, {}):
                    raise UserError(f"{shard}: the sample {key} has .{extension} twice; {EXPECTED}")
                content = tar.extractfile(entry)
                assert content is not None  # it is a file
                labels[key][extension] = _class_of(content.read(), extension, names, f"{shard}: {entry.name}")
        _check_end(shard, tar.offset)
    found = {key: {name for name in of.values() if name} for key, of in labels.items()}
    for key in {**pictures, **found}:
        classes = sorted(found.get(key, ()))
        if key not in pictures or len(classes) != 1:
            labelled = f"the labels {' and '.join(classes)}" if classes else "no label"
            raise UserError(f"{shard}: the sample {key} has {labelled if key in pictures else 'no image'}; {EXPECTED}")
    return [(name, member, found[key].pop()) for key, (name, member) in pictures.items()]


def _check_end(shard: Path, place: int) -> None:
    """Raises ValueError if no block of zeros follows where the members of a tar end: further ones may be missing."""
    with shard.open("rb") as file:
        file.seek(place)
        end = file.read(2 * tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise ValueError(f"it is cut off: no end of archive is at byte {place}")


def _key_and_extension(name: str) -> tuple[str, str, str]:
    """A member's name up to the first dot of its last part, the dot, and what follows, as webdataset cuts it."""
    folder, slash, last = name.rpartition("/")
    key, dot, extension = last.partition(".")
    return f"{folder}{slash}{key}", dot, extension


def _class_of(content: bytes, extension: str, names: Sequence[str], where: str) -> str:
    """The class that a member holds as a name or as a position in `names`; "" where a `.json` has no label."""
    try:
        text = content.decode("utf-8-sig").strip()
        label = name_of_label(parse_json(text).get("label"), where) if extension == "json" else text
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


def _read_classnames(path: Path | None) -> Sequence[str]:
    """The names in a list of class names, () without one; raises UserError if one is there twice."""
    if path is None or not os.path.lexists(path):
        return ()
    lines = read_text(path, "a list of class names in UTF-8").splitlines()
    names = [name for line in lines if (name := line.strip())]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"{path} has the name {twice!r} twice; two classes need two names, such as {twice + ' 2'!r}")
    return names

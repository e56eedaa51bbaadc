"""The user's own images in WebDataset's tar shards.

    ROOT/train/*.tar or ROOT/train-*.tar      and, if there are any, the same with val and test
    ROOT/*.tar                                whose names have no split: all are train
    train=URLS;val=URLS;test=URLS, or URLS    paths or URLs as webdataset takes them, such as train-{000..009}.tar

A split may have any of its names in `SPLIT_NAMES`, in upper or lower case.

A sample is the files of a shard whose names are equal up to the first dot: an image, and its label in `.cls`, or in
`.json` under "label". A label is a class name, or a position in the list `classnames.txt` beside the shards.

Shards that are not on this machine are fetched once. An image is read at its place in the shard.
"""

from __future__ import annotations

import logging
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..utils.errors import UserError, first_line, shortened
from ..utils.files import absolute, atomic_path, hash_json
from ..utils.reading import parse_json, read_text
from .images import IMAGE_SUFFIXES, open_image
from .layouts import listing
from .own_rows import LONGEST_NUMBER, SPLIT_NAMES, OwnImages, Rows, name_of_label, splits_of_names
from .splits import SPLITS

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes that are fetched at once
CLASSNAMES = "classnames.txt"
MOST_NAMES = 1_000_000  # of shards, which ranges in braces stand for
EXPECTED = 'each sample of a shard needs one image, and its label in .cls, or in .json under "label"'


class Member(NamedTuple):
    """Where an image lies.

    Attributes:
        shard: The tar file.
        start: The place of its first byte there.
        size: Its bytes.
    """

    shard: Path
    start: int
    size: int


def read_shards(root: str) -> OwnImages | None:
    """The images of tar shards; None if `root` names none.

    Raises:
        UserError: If a shard cannot be had, or is of no known split or of two, or a sample has no image or no label.
    """
    folder = absolute(root)
    shards, names_file = _local_shards(folder) if os.path.isdir(folder) else _named_shards(root)
    if not shards:
        return None
    _check_one_split(shards)
    rows: Rows = {split: [] for split in SPLITS}
    members: dict[str, Member] = {}
    names = _read_classnames(names_file)
    class_names: dict[str, str] = {}  # of every label
    for split, found in shards.items():
        for shard_name, shard in found.items():
            for path, label, member in _samples(shard, shard_name):
                if label not in class_names:
                    class_names[label] = _class_name(label, names, path)
                rows[split].append((path, class_names[label]))
                members[path] = member
    versions = {shard: shard.stat().st_mtime_ns for found in shards.values() for shard in found.values()}
    return OwnImages(
        rows,
        open=partial(_open_member, members),
        version=partial(_version, members, versions),
        classnames=names,
    )


def _check_one_split(shards: dict[str, dict[str, Path]]) -> None:
    """Raises UserError if two splits have the same file, by whatever names: test images are no training images."""
    split_of: dict[Path, str] = {}
    for split, found in shards.items():
        for shard in found.values():
            first = split_of.setdefault(shard.resolve(), split)
            if first != split:
                raise UserError(f"the shard {shard} is in {first} and in {split}; a shard has one split: leave one out")


def _local_shards(root: Path) -> tuple[dict[str, dict[str, Path]], Path]:
    """Split -> name of a shard in paths of images -> its file, below a folder; and where class names would be."""
    found: dict[str, dict[str, Path]] = {}
    for name in listing(root):
        folder = root / name
        if name.endswith(".tar"):
            found[name] = {name: folder}
        elif folder.is_dir() and name.lower() in SPLIT_NAMES:
            inside = {f"{name}/{file}": folder / file for file in listing(folder) if file.endswith(".tar")}
            found.update({name: inside} if inside else {})
    shards: dict[str, dict[str, Path]] = {}
    for name, split in splits_of_names(root, found).items():
        shards.setdefault(split, {}).update(found[name])
    if shards:
        _warn_of_other_folders(root)
    return shards, root / CLASSNAMES


def _warn_of_other_folders(root: Path) -> None:
    folders = [name for name in listing(root) if name.lower() not in SPLIT_NAMES and (root / name).is_dir()]
    left_out = [name for name in folders if any((root / name).glob("*.tar"))]
    if left_out:
        said = "%s: the shards in %s are left out; a folder of a split is called one of %s"
        logger.warning(said, root, ", ".join(left_out), ", ".join(SPLIT_NAMES))


def _named_shards(root: str) -> tuple[dict[str, dict[str, Path]], Path | None]:
    """As `_local_shards`, of paths and URLs."""
    if ".tar" not in root:
        return {}, None
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise UserError(f"{root} needs the package webdataset: pip install 'webdataset>=0.2.100'") from error
    urls_of: dict[str, list[str]] = {}
    for split, urls in _split_and_urls(root):
        _check_number(urls)
        try:
            expanded = expand_urls(urls)
        except Exception as error:  # webdataset asserts, and what expands braces has errors of its own
            raise UserError(f"cannot read --root {shortened(urls, 80)!r}: {type(error).__name__}: {error}") from error
        urls_of.setdefault(split, []).extend(expanded)
    shards: dict[str, dict[str, Path]] = {}
    beside: Path | None = None
    for split, expanded in urls_of.items():
        short = [re.split(r"[/\s]", url)[-1] for url in expanded]
        for url, name in zip(expanded, short):
            shards.setdefault(split, {})[f"{split}/{name if short.count(name) == 1 else url}"] = _fetched(url)
        if "://" not in expanded[0] and not expanded[0].startswith("pipe:"):
            beside = beside or absolute(expanded[0]).parent / CLASSNAMES
    return shards, beside


def _check_number(urls: str) -> None:
    """Raises UserError if the ranges in braces stand for more names than `MOST_NAMES`, before they fill the memory."""
    number = 0
    for url in urls.split("::"):
        ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\}", url)
        number += math.prod(_length(first, last, step) for first, last, step in ranges)
    if number > MOST_NAMES:
        raise UserError(
            f"--root has {shortened(urls, 80)!r}, which names more than {MOST_NAMES} shards; give a shorter range"
        )


def _length(first: str, last: str, step: str) -> int:
    """How many numbers a range has, such as {first..last..step}, whose step may be ""."""
    if max(len(first), len(last), len(step)) > LONGEST_NUMBER:
        return MOST_NAMES + 1
    return abs(int(last) - int(first)) // max(int(step or 1), 1) + 1


def _split_and_urls(root: str) -> list[tuple[str, str]]:
    """The parts of "train=URLS;val=URLS"; all is train where no split is named.

    Raises:
        UserError: If a part names no split.
    """
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


def _fetched(url: str) -> Path:
    """The file of a shard, which is fetched if it is not on this machine.

    Raises:
        UserError: If it cannot be had.
    """
    if "://" not in url and not url.startswith("pipe:"):
        path = absolute(url)
        if not path.is_file():
            raise UserError(f"there is no shard {path}")
        return path
    folder = Path(os.environ.get("WDS_CACHE") or Path.home() / ".cache" / "hegraph" / "shards")
    path = folder / f"{hash_json(url)[:16]}.tar"
    if not path.is_file():
        logger.info("fetching %s to %s", url, path)
        with atomic_path(path) as temporary, temporary.open("wb") as target:
            for block in _blocks(url):
                target.write(block)
    return path


def _blocks(url: str) -> Iterator[bytes]:
    """The bytes of a shard, in blocks, as webdataset gets them; raises UserError if it cannot."""
    from webdataset.gopen import gopen

    try:
        with gopen(url) as source:
            while block := source.read(BLOCK):
                yield block
    except Exception as error:  # whatever the program or package raises that stands for this kind of URL
        raise UserError(f"cannot fetch the shard {url}: {first_line(error)}") from error


def _samples(shard: Path, name: str) -> Iterator[tuple[str, str, Member]]:
    """The samples of a shard: the path of the image, its label, and where it lies.

    Raises:
        UserError: If the shard is damaged, cut off or compressed, or a sample has no image or no label.
    """
    pictures: dict[str, tuple[str, Member]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                key, dot, extension = _key_and_extension(entry.name)
                if not entry.isfile() or not dot:
                    continue
                if f".{extension.lower()}" in IMAGE_SUFFIXES:
                    if key in pictures:
                        raise UserError(f"{shard}: the sample {key} has several images; {EXPECTED}")
                    pictures[key] = (f"{name}/{entry.name}", Member(shard, entry.offset_data, entry.size))
                elif extension in ("cls", "cls.txt", "json"):
                    content = tar.extractfile(entry)
                    if content is not None:
                        labels[key] = labels.get(key) or _label(content.read(), extension, shard, entry.name)
            _check_end(shard, tar.offset)
    except (OSError, tarfile.TarError) as error:
        said = f"cannot read the shard {shard}: {first_line(error)}; it must be a tar that is not compressed"
        raise UserError(said) from error
    for key, (path, member) in pictures.items():
        if not labels.get(key):
            raise UserError(f"{shard}: the sample {key} has no label; {EXPECTED}")
        yield path, labels[key], member
    without = next((key for key in labels if key not in pictures), None)
    if without is not None:
        raise UserError(f"{shard}: the sample {without} has no image; {EXPECTED}")


def _check_end(shard: Path, place: int) -> None:
    """Raises UserError if no block of zeros follows where the members of a tar end: further ones may be missing."""
    with shard.open("rb") as file:
        file.seek(place)
        end = file.read(2 * tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        said = f"the shard {shard} is cut off or damaged: no end of archive is at byte {place}"
        raise UserError(f"{said}; remove it and get it anew")


def _key_and_extension(name: str) -> tuple[str, str, str]:
    """A member's name up to the first dot of its last part, the dot, and what follows, as webdataset cuts it."""
    folder, slash, last = name.rpartition("/")
    key, dot, extension = last.partition(".")
    return f"{folder}{slash}{key}", dot, extension


def _label(content: bytes, extension: str, shard: Path, name: str) -> str:
    """The label that a member holds; "" where a `.json` has none."""
    try:
        text = content.decode("utf-8-sig").strip()
        if extension != "json":
            return text
        label = parse_json(text)["label"]
    except KeyError:
        return ""
    except (ValueError, TypeError) as error:
        raise UserError(f"{shard}: cannot read the label in {name}: {first_line(error)}") from error
    return name_of_label(label, f"{shard}: {name}")


def _read_classnames(path: Path | None) -> Sequence[str]:
    """The names in a list of class names, () without one; raises UserError if one is there twice."""
    if path is None or not path.is_file():
        return ()
    lines = read_text(path, "a list of class names in UTF-8").splitlines()
    names = [name for line in lines if (name := line.strip())]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"{path} has the name {twice!r} twice; two classes need two names, such as {twice + ' 2'!r}")
    return names


def _class_name(label: str, names: Sequence[str], path: str) -> str:
    """The class name of a label, which is a name or a position in `names`; raises UserError if it is neither."""
    if names and label.isdecimal():
        if len(label) > LONGEST_NUMBER or int(label) >= len(names):
            raise UserError(f"{path} has the label {label}, but {CLASSNAMES} names {len(names)} classes")
        return names[int(label)]
    if names and label not in names:
        raise UserError(
            f"{path} has the label {label!r}, which is neither a name in {CLASSNAMES} nor a position from 0 to "
            f"{len(names) - 1}; mend the label or the list"
        )
    return label


def _open_member(members: dict[str, Member], path: str) -> Image.Image:
    member = members[path]
    with member.shard.open("rb") as file:
        file.seek(member.start)
        return open_image(file.read(member.size))


def _version(members: dict[str, Member], versions: dict[Path, int], path: str) -> tuple[int, int]:
    member = members[path]
    return member.size, versions[member.shard]

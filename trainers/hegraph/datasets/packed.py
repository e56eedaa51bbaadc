"""The user's own images in WebDataset's tar shards, in Parquet files and in data sets of Hugging Face.

    ROOT/train/*.tar or ROOT/train-*.tar      and, if there are any, the same with val and test
    ROOT/*.tar                                whose names have no split: all are train
    train=URLS;val=URLS;test=URLS, or URLS    paths or addresses, such as https://HOST/train-{000..009}.tar

A sample is the files of a shard whose names are equal up to the first dot: an image, and its label in `.cls`, or in
`.json` under "label". A label is a class name, or a position in the list `classnames.txt` beside the shards. Shards
that are not on this machine are fetched once, by HTTP alone: the package webdataset would hand other addresses to
programs. An image is read at its place in the shard.

    hf:NAME, or hf:NAME#CONFIGURATION         a data set of the hub, or a folder that `datasets.load_dataset` takes
    ROOT/*.parquet, ROOT/data/*.parquet       files whose names begin with their split, or have none: all are train
    FILE.parquet                              one file, which is train

A table has the columns `image` and `label`. With HF_HUB_OFFLINE=1 nothing is fetched.

A split may have any of its names in `SPLIT_NAMES`, in upper or lower case.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from PIL import Image

from ..utils.errors import UserError, first_line, shortened
from ..utils.files import absolute, cannot_write, hash_json
from ..utils.reading import check_regular, parse_json, read_text, reading
from .folder import OwnImages, Row, class_name, files_of_splits
from .images import IMAGE_SUFFIXES, open_image
from .layouts import CLASSNAMES
from .splits import SPLIT_NAMES

logger = logging.getLogger(__name__)

MOST_SHARDS = 100_000  # that braces may stand for
LABELS = ("cls", "cls.txt", "json")
PREFIX = "hf:"
IMAGE, LABEL = "image", "label"


Shard = tuple[str, str, Path]  # of a tar file: its split, what paths of its images begin with, and where it is


class Member(NamedTuple):
    """Where an image lies: the tar file, its first byte there, how many it has, and the file's time in ns."""

    shard: Path
    start: int
    size: int
    changed: int


def read_shards(root: str) -> OwnImages | None:
    """The images of tar shards; None if `root` names none."""
    folder = absolute(root)
    if local := os.path.isdir(folder):
        shards = [(split, path, folder / path) for split, path in files_of_splits(folder, ".tar")]
    else:
        shards = _named_shards(root) if ".tar" in root else []
    if not shards:
        return None
    split_of: dict[str, str] = {}
    for split, _, file in shards:
        if (first := split_of.setdefault(os.path.realpath(file), split)) != split:
            raise UserError(f"the shard {file} is in {first} and in {split}; a shard has one split: leave one out")
    names = _read_classnames((folder if local else shards[0][2].parent) / CLASSNAMES)
    rows: list[Row] = []
    members: dict[str, Member] = {}
    for split, place, file in shards:
        for name, member, label in _samples(file, names):
            rows.append(Row(split, f"{place}/{name}", label))
            members[f"{place}/{name}"] = member

    def opened(path: str) -> Image.Image:
        member = members[path]
        with member.shard.open("rb") as file:
            file.seek(member.start)
            return open_image(file.read(member.size))

    return OwnImages(rows, opened, version=lambda path: (members[path].size, members[path].changed), classnames=names)


# --- which shards


def _named_shards(root: str) -> list[Shard]:
    """The shards of "train=URLS;val=URLS", or of URLS, which are train. Those at addresses are fetched."""
    urls_of: dict[str, list[str]] = defaultdict(list)
    for part in filter(None, map(str.strip, root.split(";"))) if re.match(r"\w+\s*=", root) else [f"train={root}"]:
        name, _, urls = part.partition("=")
        split = SPLIT_NAMES.get(name.strip().lower())
        if not split or not urls.strip():
            raise UserError(
                f"--root has {shortened(part, 80)!r}, which is not SPLIT=URLS; give train=URLS;val=URLS;test=URLS, "
                f"without other ; and with a SPLIT of {', '.join(SPLIT_NAMES)}"
            )
        urls_of[split] += _expanded(urls.strip())
    shards = []
    for split, expanded in urls_of.items():
        short = [re.split(r"[/\s]", url)[-1] for url in expanded]
        numbers = Counter(short)
        for url, name in zip(expanded, short):
            shards.append((split, f"{split}/{name if numbers[name] == 1 else url}", _fetched(url)))
    return shards


def _expanded(urls: str) -> list[str]:
    """The paths and addresses that a text stands for, which may hold `::` and braces, as webdataset takes them. Unlike
    there, variables of the environment are not put in: a text of a stranger's could send them anywhere.
    """
    shown, expanded = f"--root has {shortened(urls, 80)!r}", urls.split("::")
    if "{" in urls:
        try:
            from braceexpand import braceexpand

            ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", urls)  # inner ones would all be in memory at once
            many = math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges) > MOST_SHARDS
            names = (name for url in expanded for name in braceexpand(url))
            expanded = [] if many else list(islice(names, MOST_SHARDS + 1))
            if many or len(expanded) > MOST_SHARDS:
                raise ValueError(f"they stand for more than {MOST_SHARDS} shards")
        except (ImportError, ValueError, RecursionError) as error:
            raise UserError(f"{shown}; braces need `pip install braceexpand` and a range: {error}") from error
    if any(re.match(r"(?!https?://)[A-Za-z][\w+.-]+:", url) for url in expanded):
        raise UserError(f"{shown}; a shard is a path, or an address that begins with http:// or https://")
    return expanded


def _fetched(url: str) -> Path:
    """The file of a shard, which is fetched if it is not on this machine."""
    if "://" not in url:
        return absolute(url)
    from .download import Broken, fetch_file  # imports requests, which most tasks need not wait for

    cache = Path(os.environ.get("WDS_CACHE") or Path.home() / ".cache" / "hegraph" / "shards")
    path = cache / f"{hash_json(url)[:16]}.tar"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # several runs may begin at once
            if not path.is_file():
                logger.info("fetching %s to %s", url, path)
                fetch_file(url, path)
    except Broken as error:
        raise UserError(f"cannot fetch the shard {url}: {error}") from error
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


# --- what a shard holds


def _samples(shard: Path, names: Sequence[str]) -> list[tuple[str, Member, str]]:
    """The samples of a shard: the name of the image there, where it lies, and its class, "" if it has none."""
    images: dict[str, list[tuple[str, Member]]] = defaultdict(list)  # of each sample
    labels: dict[str, set[str]] = defaultdict(set)
    whole = reading(shard, "a whole tar file that is not compressed")
    with whole, shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        status = shard.stat()
        for entry in tar:
            entry.name.encode()  # no record could hold a name that is not UTF-8
            folder, _, last = entry.name.rpartition("/")
            stem, _, extension = last.partition(".")  # as webdataset cuts it
            key = f"{folder}/{stem}"
            if entry.isfile() and f".{extension.lower()}" in IMAGE_SUFFIXES:
                member = Member(shard, entry.offset_data, entry.size, status.st_mtime_ns)
                images[key].append((entry.name, member))
            elif entry.isfile() and extension in LABELS:
                content = tar.extractfile(entry)
                assert content is not None  # it is a file
                labels[key].add(_class_of(content.read(), extension, names, f"{shard}: {entry.name}"))
        file.seek(tar.offset)  # where a block of zeros has to follow the last member; further ones may be missing
        end = file.read(2 * tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE or any(end):
            raise ValueError(f"it is cut off: no end of archive is at byte {tar.offset}")
    for key in {**images, **labels}:
        found = sorted(labels[key] - {""})
        if len(images[key]) != 1 or len(found) > 1:
            raise UserError(
                f"{shard}: the sample {key.lstrip('/')} has {len(images[key])} images and the labels "
                f'{", ".join(found) or "none"}; it needs one image, and one label in .cls, or in .json under "label"'
            )
    return [(*images[key][0], "".join(labels[key])) for key in images]


def _class_of(content: bytes, extension: str, names: Sequence[str], where: str) -> str:
    """The class that a member holds as a name or as a position in `names`; "" where it has no label."""
    try:
        text = content.decode("utf-8-sig").strip()
        label = class_name(parse_json(text).get("label") if extension == "json" else text, where)
        if not names or not label:
            return label
        return names[int(label) if label.isdecimal() else names.index(label)]
    except (ValueError, IndexError, AttributeError) as error:  # AttributeError: a list or a number
        among = f", of {len(names)} names in {CLASSNAMES}" if names else ""
        raise UserError(f"cannot read the label {content!r:.60} in {where}{among}: {first_line(error)}") from error


def _read_classnames(path: Path) -> list[str]:
    """The names in a list of class names, [] without one; raises UserError if one is there twice."""
    if not os.path.lexists(path):
        return []
    lines = read_text(path, "a list of class names in UTF-8").splitlines()
    names = [name for line in lines if (name := class_name(line, str(path)))]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"{path} has the name {twice!r} twice; two classes need two names, such as {twice + ' 2'!r}")
    return names


# --- tables of Hugging Face's package `datasets`


def read_hugging_face(root: str) -> OwnImages | None:
    """The images of a Hugging Face data set; None if `root` names none."""
    files = {} if root.startswith(PREFIX) else _parquet_files(absolute(root))
    if not files and not root.startswith(PREFIX):
        return None
    rows: list[Row] = []
    classnames: list[str] = []
    tables = _load_tables(root, files)
    for split, table in tables.items():
        names = getattr(table.features[LABEL], "names", None) or []
        classnames = classnames or names
        for number, label in enumerate(table[LABEL]):
            if names and label is not None:
                label = names[label] if 0 <= label < len(names) else None
            rows.append(Row(split, f"{split}/{number}", label))

    def version(path: str) -> tuple[int, int]:
        stored = _stored(tables, path)
        size = len(stored) if isinstance(stored, bytes) else os.path.getsize(stored)
        return size, int(tables[path.partition("/")[0]]._fingerprint, 16)

    return OwnImages(rows, lambda path: open_image(_stored(tables, path)), version=version, classnames=classnames)


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """Split -> the Parquet files of a folder, or the one file."""
    files: dict[str, list[str]] = defaultdict(list)
    if os.path.isdir(path):  # URLs may be too long for `path.is_dir`
        for split, name in files_of_splits(path, ".parquet"):
            files[split].append(str(path / name))
    elif path.suffix == ".parquet" and os.path.exists(path):
        files["train"] = [str(path)]
    return files


def _load_tables(root: str, files: dict[str, list[str]]) -> dict[str, Any]:
    """Split -> its table, with images as they are stored. Of several names that mean one split, the last is taken."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{root} needs the package datasets: pip install 'datasets>=3'") from error
    for file in [file for found in files.values() for file in found]:
        check_regular(Path(file))  # the package would wait for a pipe
    name, _, configuration = root.removeprefix(PREFIX).partition("#")
    datasets.disable_progress_bars()
    # datasets 3 would run the script of a data set if the user agrees, or if a variable of the environment says so
    scripts = "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters
    safe = {"trust_remote_code": False} if scripts else {}
    try:
        if files:
            loaded = datasets.load_dataset("parquet", data_files=files, **safe)
        else:
            loaded = datasets.load_dataset(name, configuration or None, **safe)
        taken = {SPLIT_NAMES[given.lower()]: given for given in map(str, loaded) if given.lower() in SPLIT_NAMES}
        tables = {split: loaded[given].select_columns([IMAGE, LABEL]) for split, given in taken.items()}
        encoded = datasets.Image(decode=False)
        tables = {split: table.cast_column(IMAGE, encoded) for split, table in tables.items()}
    except Exception as error:  # the package raises errors of many kinds for what is missing, damaged or offline
        said = f"cannot load {root} with the package datasets as columns {IMAGE} and {LABEL}: {first_line(error)}"
        raise UserError(said) from error
    if left_out := ", ".join(given for given in map(str, loaded) if given not in taken.values()):
        said = "%s: left out are the splits %s; read are %s, since known are one train, val and test, called one of %s"
        logger.warning(said, root, left_out, ", ".join(taken.values()) or "none", ", ".join(SPLIT_NAMES))
    return tables


def _stored(tables: dict[str, Any], path: str) -> bytes | str:
    """The image of a row as it is stored: its bytes, or the path of its file; UserError if it has neither."""
    split, _, row = path.partition("/")
    stored = tables[split][int(row)][IMAGE] or {}
    for found in (stored.get("bytes"), stored.get("path")):
        if found is not None:
            return found
    raise UserError(f"row {row} of {split} has no image in the column {IMAGE}; give it one, or leave the row out")

"""Own images in WebDataset's tar shards, in Parquet files and in Hugging Face's data sets.

    ROOT/train/*.tar or ROOT/train-*.tar      and optionally the same with val and test
    ROOT/*.tar                                without splits in the names: all shards are train
    train=URLS;val=URLS;test=URLS, or URLS    paths or addresses, such as https://HOST/train-{000..009}.tar

A sample consists of the files of a shard with the same name up to the first dot: an image, and its label in `.cls`, or
in `.json` under "label". A label is a class name or a position in the list `classnames.txt` next to the shards. Remote
shards are downloaded once, only by HTTP, since the package webdataset would pass other addresses to programs. Images
are read from their positions in the shard.

    hf:NAME, or hf:NAME#CONFIGURATION         a data set of the Hub, or a folder for `datasets.load_dataset`
    ROOT/*.parquet, ROOT/data/*.parquet       files with the split in their names, or all train
    FILE.parquet                              one file, which is train

A table has the columns `image` and `label`. With HF_HUB_OFFLINE=1 nothing is downloaded.

All names of splits in `SPLIT_NAMES` are accepted, in upper or lower case.
"""

import logging
import math
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from ..utils.errors import UserError, first_line
from ..utils.files import absolute, cannot_write, hash_json
from ..utils.reading import check_regular, parse_json, read_text, reading
from ..utils.text import shortened
from .images import IMAGE_SUFFIXES
from .layouts import CLASSNAMES
from .own_images import OwnImages, Row, class_name, files_of_splits
from .splits import SPLIT_NAMES, split_of

logger = logging.getLogger(__name__)

MAX_SHARDS = 100_000  # in an expression with braces
LABELS = ("cls", "cls.txt", "json")
PREFIX = "hf:"
IMAGE, LABEL = "image", "label"


Shard = tuple[str, str, Path]  # split, prefix of the paths of its images, tar file


class Member(NamedTuple):
    """Location of an image in a tar file.

    Attributes:
        shard: The tar file.
        start: Position of the first byte.
        size: Number of bytes.
        changed: Modification time of the tar file in ns.
    """

    shard: Path
    start: int
    size: int
    changed: int


def read_shards(root: str) -> OwnImages | None:
    """Read own images from tar shards; None if `root` has none."""
    folder = absolute(root)
    if local := os.path.isdir(folder):
        shards = [(split, path, folder / path) for path, split in files_of_splits(folder, ".tar").items()]
    else:
        shards = _named_shards(root) if ".tar" in root else []
    if not shards:
        return None
    listed: dict[str, str] = {}  # shard -> its split
    for split, _, file in shards:
        if first := listed.get(os.path.realpath(file)):
            raise UserError(f"the shard {file} is in {first} and in {split}; expected each shard once, in one split")
        listed[os.path.realpath(file)] = split
    names = _read_classnames((folder if local else shards[0][2].parent) / CLASSNAMES)
    rows: list[Row] = []
    members: dict[str, Member] = {}
    for split, prefix, file in shards:
        for name, member, label in _samples(file, names):
            rows.append(Row(split, f"{prefix}/{name}", label))
            members[f"{prefix}/{name}"] = member

    def stored(path: str) -> bytes:
        member = members[path]
        with member.shard.open("rb") as file:
            file.seek(member.start)
            return file.read(member.size)

    def version(path: str) -> tuple[int, int]:
        return members[path].size, members[path].changed

    return OwnImages(rows, None, version, stored, names)


# --- lists of shards


def _named_shards(root: str) -> list[Shard]:
    """Parse "train=URLS;val=URLS", or URLS for train, and download remote shards."""
    urls_of: dict[str, list[str]] = defaultdict(list)
    parts = root.split(";") if re.match(r"\w+\s*=", root) else [f"train={root}"]
    for part in filter(None, map(str.strip, parts)):
        name, _, urls = part.partition("=")
        split = split_of(name.strip())
        if not split or not urls.strip():
            expected = f"train=URLS;val=URLS;test=URLS, without other ; and with a SPLIT of {', '.join(SPLIT_NAMES)}"
            raise UserError(f"--root has {shortened(part, 80)!r}, which is not SPLIT=URLS; expected {expected}")
        urls_of[split] += _expand_braces(urls.strip())
    shards = []
    for split, expanded in urls_of.items():
        names = [re.split(r"[/\s]", url)[-1] for url in expanded]
        counts = Counter(names)
        for url, name in zip(expanded, names):
            shards.append((split, f"{split}/{name if counts[name] == 1 else url}", _local_file(url)))
    return shards


def _expand_braces(urls: str) -> list[str]:
    """Expand `::` and braces to paths and addresses, as webdataset does.

    Unlike there, environment variables are not inserted, since untrusted text could send their values anywhere.
    """
    shown = f"--root has {shortened(urls, 80)!r}"
    expanded = urls.split("::")
    if "{" in urls:
        try:
            from braceexpand import braceexpand

            ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", urls)  # inner ranges would be expanded in memory
            many = math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges) > MAX_SHARDS
            names = (name for url in expanded for name in braceexpand(url))
            expanded = [] if many else list(islice(names, MAX_SHARDS + 1))
            if many or len(expanded) > MAX_SHARDS:
                raise ValueError(f"expected at most {MAX_SHARDS} shards")
        except (ImportError, ValueError, RecursionError) as error:
            raise UserError(f"{shown}; braces need `pip install braceexpand` and a range: {error}") from error
    if any(re.match(r"(?!https?://)[A-Za-z][\w+.-]+:", url) for url in expanded):
        raise UserError(f"{shown}; expected paths of shards, or addresses that begin with http:// or https://")
    return expanded


def _local_file(url: str) -> Path:
    """Return the file of a shard, after a download to the cache if it is remote."""
    if "://" not in url:
        return absolute(url)
    from .download import DownloadError, fetch_file  # imports requests, which few tasks need

    cache = Path(os.environ.get("WDS_CACHE") or Path.home() / ".cache" / "hegraph" / "shards")
    path = cache / f"{hash_json(url)[:16]}.tar"
    if path.is_file():  # perhaps in a folder that this user cannot write
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # several runs may start together
            if not path.is_file():
                logger.info("downloading %s to %s", url, path)
                fetch_file(url, path)
    except DownloadError as error:
        raise UserError(f"cannot download the shard {url}: {error}") from error
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


# --- samples of a shard


def _samples(shard: Path, names: Sequence[str]) -> list[tuple[str, Member, str]]:
    """List the samples of a shard: name and location of the image, and its class, "" without a label."""
    images: dict[str, list[tuple[str, Member]]] = defaultdict(list)  # by sample
    labels: dict[str, set[str]] = defaultdict(set)
    whole = reading(shard, "a whole tar file that is not compressed")
    with whole, shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        status = shard.stat()
        for entry in tar:
            entry.name.encode()  # fails for names that are not UTF-8, which records cannot contain
            folder, _, last = entry.name.rpartition("/")
            stem, _, extension = last.partition(".")  # as in webdataset
            key = f"{folder}/{stem}"
            extension = extension.lower()
            if entry.isfile() and f".{extension}" in IMAGE_SUFFIXES:
                member = Member(shard, entry.offset_data, entry.size, status.st_mtime_ns)
                images[key].append((entry.name, member))
            elif entry.isfile() and extension in LABELS:
                content = tar.extractfile(entry)
                assert content is not None  # for a file
                labels[key].add(_class_of(content.read(), extension, names, f"{shard}: {entry.name}"))
        file.seek(tar.offset)  # one block of zeros must follow the last member
        end = file.read(2 * tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE or any(end):
            raise ValueError(f"it is truncated: expected the end of the archive at byte {tar.offset}")
    for key in {**images, **labels}:
        names_of_sample = sorted(labels[key] - {""})
        if len(images[key]) != 1 or len(names_of_sample) > 1:
            problem = f"{len(images[key])} images and the labels {', '.join(names_of_sample) or 'none'}"
            expected = 'expected one image, and one label in .cls, or in .json under "label"'
            raise UserError(f"{shard}: the sample {key.lstrip('/')} has {problem}; {expected}")
    return [(*images[key][0], "".join(labels[key])) for key in images]


def _class_of(content: bytes, extension: str, names: Sequence[str], where: str) -> str:
    """Parse a label, a class name or a position in `names`, to a class name; "" without a label."""
    try:
        text = content.decode("utf-8-sig").strip()
        label = class_name(parse_json(text).get("label") if extension == "json" else text, where)
    except (ValueError, AttributeError) as error:  # AttributeError: a list or a number
        raise UserError(f"cannot read the label {content!r:.60} in {where}: {first_line(error)}") from error
    if not names or not label:
        return label
    if label.isdecimal() and int(label) < len(names):
        return names[int(label)]
    if label in names and not label.isdecimal():
        return label
    expected = f"expected one of the {len(names)} names in {CLASSNAMES}, or a position from 0 to {len(names) - 1}"
    raise UserError(f"unknown label {shortened(label, 60)!r} in {where}; {expected}")


def _read_classnames(path: Path) -> list[str]:
    """Read a list of class names, [] without a file; UserError if a name repeats."""
    if not os.path.lexists(path):
        return []
    lines = read_text(path, "a list of class names in UTF-8").splitlines()
    names = [class_name(line, str(path)) for line in lines]
    names = [name for name in names if name]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"{path} repeats the name {twice!r}; rename one class, for example {twice + ' 2'!r}")
    return names


# --- tables of Hugging Face's package `datasets`


def read_hugging_face(root: str) -> OwnImages | None:
    """Read own images from a Hugging Face data set or Parquet files; None if `root` has none."""
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

    sizes = {split: _sizes_of_images(table) for split, table in tables.items()}

    def version(path: str) -> tuple[int, int]:
        split, _, row = path.partition("/")
        size = sizes[split][int(row)]
        if size is None:
            size = os.stat(_file_of_row(tables, path)).st_size
        return size, int(tables[split]._fingerprint, 16)

    return OwnImages(rows, None, version, partial(_stored_image, tables), classnames)


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """List the Parquet files of a folder, or one file, by split."""
    files: dict[str, list[str]] = defaultdict(list)
    if os.path.isdir(path):  # URLs may be too long for `path.is_dir`
        for name, split in files_of_splits(path, ".parquet").items():
            files[split].append(str(path / name))
    elif path.suffix == ".parquet" and os.path.exists(path):
        files["train"] = [str(path)]
    return files


def _load_tables(root: str, files: dict[str, list[str]]) -> dict[str, Any]:
    """Load tables by split, without decoding images. If several names mean one split, the last table is used."""
    try:
        import datasets

        if int(datasets.__version__.partition(".")[0]) < 4:  # it would run the script of a data set, after a prompt
            raise ImportError
    except ImportError as error:
        raise UserError(f"{root} needs the package datasets: pip install 'datasets>=4'") from error
    for file in chain.from_iterable(files.values()):
        check_regular(Path(file))  # the package would block on a pipe
    name, _, configuration = root.removeprefix(PREFIX).partition("#")
    if not name:
        raise UserError(f"expected the name of a data set of the Hub, such as {PREFIX}cifar10, got {root!r}")
    datasets.disable_progress_bars()
    try:
        if files:
            loaded = datasets.load_dataset("parquet", data_files=files)
        else:
            loaded = datasets.load_dataset(name, configuration or None)
        names = {split_of(each): each for each in map(str, loaded) if split_of(each)}
        encoded = datasets.Image(decode=False)
        columns = {split: loaded[each].select_columns([IMAGE, LABEL]) for split, each in names.items()}
        tables = {split: table.cast_column(IMAGE, encoded) for split, table in columns.items()}
    except Exception as error:  # the package raises exceptions of many types
        problem = f"cannot load {root} with the package datasets as columns {IMAGE} and {LABEL}"
        raise UserError(f"{problem}: {first_line(error)}") from error
    if skipped := ", ".join(each for each in map(str, loaded) if each not in names.values()):
        warning = "%s: read the splits %s, skipped %s; expected one train, val and test each, named %s"
        logger.warning(warning, root, ", ".join(names.values()) or "none", skipped, ", ".join(SPLIT_NAMES))
    return tables


def _sizes_of_images(table: Any) -> list[int | None]:
    """Number of bytes of each image in a table, which is not read; None for images in files of their own."""
    from pyarrow import compute

    images = table.with_format("arrow")[:][IMAGE]
    return compute.binary_length(compute.struct_field(images, "bytes")).to_pylist()


def _cell_of_image(tables: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the bytes and the file of an image, as the column of a table has them; {} for an empty cell."""
    split, _, row = path.partition("/")
    cells = tables[split][int(row)]
    return cells[IMAGE] or {}


def _stored_image(tables: dict[str, Any], path: str) -> bytes:
    """Return the encoded bytes of an image, from its row or its file; UserError if the row has neither."""
    stored = _cell_of_image(tables, path).get("bytes")
    return _file_of_row(tables, path).read_bytes() if stored is None else stored


def _file_of_row(tables: dict[str, Any], path: str) -> Path:
    """Return the file of an image that a table names; UserError if it names none, or no regular file."""
    place = _cell_of_image(tables, path).get("path")
    if place is None:
        split, _, row = path.partition("/")
        raise UserError(f"row {row} of {split} has no image in the column {IMAGE}; add one or remove the row")
    file = Path(place)
    check_regular(file)
    return file

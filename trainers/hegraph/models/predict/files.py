"""Input paths and output rows of `predict`, and names of folders and files.

Paths are read one by one, so that memory does not depend on the number of images. File names may contain any byte
except NUL and "/". Rows have file names as `utf8` returns them, so that every output is valid UTF-8.
"""

import codecs
import csv
import io
import json
import logging
import os
import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ...utils.errors import UserError
from ...utils.files import check_not_read, hash_json
from ...utils.text import printable

logger = logging.getLogger(__name__)

STDIN = "-"
LIST_SUFFIX = ".txt"
BLOCK = MAX_PATH = 1 << 16  # bytes of a list to read at once, and bytes of a path
REPLACED = (".csv", ".jsonl", ".txt")  # suffixes of files that `--out` may replace in a folder of images
# Characters that a file system may reject, and "%", so that two classes never share a folder
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.|[. ]$|^ ')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", re.IGNORECASE)  # names of devices on Windows
MAX_NAME = 200  # bytes of a folder's name
MAX_FILE_NAME = 255  # bytes, of most file systems
DIGITS = ".6g"  # format of probabilities, with the precision of float32


def check_inputs(inputs: Sequence[str]) -> None:
    """Raise UserError for no input, a closed or repeated standard input, or a single input that does not exist.

    If one of several inputs does not exist, its row has the error.
    """
    if not inputs:
        raise UserError("nothing to classify: give images, folders, a .txt file that lists paths, - or --features")
    if STDIN in inputs and (inputs.count(STDIN) > 1 or sys.stdin is None):
        raise UserError("standard input (-) is closed, or given twice")
    if len(inputs) == 1 and inputs[0] != STDIN and not os.path.exists(inputs[0]):
        raise UserError(f"cannot read {inputs[0]}: no such file or folder")


def image_paths(
    inputs: Sequence[str], null: bool = False, excluded: Path | None = None, out: Path | None = None
) -> Iterator[str]:
    """Iterate over the paths of the images that the command line names.

    Args:
        inputs: Images, folders, `.txt` files with paths, and "-" for paths on standard input.
        null: Whether paths in lists end with a NUL character.
        excluded: Folder that is not searched.
        out: Output file, which must be none of the images.

    Raises:
        UserError: If a list cannot be read, or an image is the file `out`.
    """
    for path in _image_paths(inputs, null, excluded):
        if out is not None:
            check_not_read(out, path)
        yield path


def _image_paths(inputs: Sequence[str], null: bool, excluded: Path | None) -> Iterator[str]:
    for name in inputs:
        if name == STDIN:
            yield from read_list(sys.stdin.buffer, null)
        elif os.path.isdir(name):
            yield from _walk(name, excluded)
        elif name.lower().endswith(LIST_SUFFIX):
            from ...utils.reading import reading

            with reading(Path(name), "a list of paths"), open(name, "rb") as file:
                yield from read_list(file, null)
        else:
            yield name


def count_images(inputs: Sequence[str], excluded: Path | None = None) -> int | None:
    """Number of the images of `image_paths`; None with a list of paths, which may be readable only once."""
    total = 0
    for name in inputs:
        if os.path.isdir(name):
            total += sum(is_counted for _, is_counted in _files(name, excluded))
        elif name == STDIN or name.lower().endswith(LIST_SUFFIX):
            return None
        else:
            total += 1
    return total


def _walk(folder: str, excluded: Path | None) -> Iterator[str]:
    """Iterate over the paths below a folder that `_files` counts as images.

    At the end, a warning has the number of files whose suffix is not one of an image.
    """
    other_files = 0
    for path, is_counted in _files(folder, excluded):
        if is_counted:
            yield path
        else:
            other_files += 1
    if other_files:
        logger.warning("%s: %d files are skipped, because their suffix is not one of an image", folder, other_files)


def _files(folder: str, excluded: Path | None) -> Iterator[tuple[str, bool]]:
    """Iterate over the files below a folder in sorted order, and over folders that cannot be listed.

    Hidden files and folders are skipped. Links are followed, and no folder is searched twice.

    Args:
        folder: Folder to search.
        excluded: Folder that is not searched.

    Returns:
        Pairs of a path and whether it counts as an image: by its suffix, or as a folder that cannot be listed, whose
        row has the error.
    """
    from ...datasets.images import is_image

    stack = [folder]
    seen = set() if excluded is None else {os.path.realpath(excluded)}
    while stack:
        path = stack.pop()
        if not os.path.isdir(path):
            yield path, is_image(path)
            continue
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            names = sorted(os.listdir(path), reverse=True)
        except OSError:
            yield path, True
            continue
        stack += [os.path.join(path, name) for name in names if not name.startswith(".")]


def read_list(file: BinaryIO, null: bool) -> Iterator[str]:
    """Iterate over the paths in a file, in the encoding of the file system.

    Each path ends with a NUL character, or is a line that ends as on Linux or Windows. Empty lines are skipped. Spaces
    are part of a path.

    Raises:
        UserError: If a path has more than `MAX_PATH` bytes, so that the file is no list and may never end.
    """
    read = getattr(file, "read1", file.read)  # read1 returns the available bytes, without waiting for more
    end = b"\0" if null else b"\n"
    rest = b""  # beginning of a path whose end is not read yet
    block = read(BLOCK).removeprefix(codecs.BOM_UTF8)
    while block or rest:
        if block:
            *paths, rest = (rest + block).split(end)
        else:
            paths = [rest]
            rest = b""
        for path in paths:
            name = path if null else path.removesuffix(b"\r")
            if name:
                yield os.fsdecode(name)
        if len(rest) > MAX_PATH:
            raise UserError(f"the list holds a path of more than {MAX_PATH} bytes; is it a list of paths?")
        block = read(BLOCK)


class PredictionRow(NamedTuple):
    """Prediction for one image.

    Attributes:
        path: Path of the image.
        top: The most probable classes with their probabilities, in descending order; empty with an error. With several
            labels per image, all predicted labels, perhaps none.
        error: Reason why there is no prediction.
        known: Whether the image is accepted as one of a known class; None without open-set rejection.
        classes: Prediction set, the most probable class first; None without a coverage.
    """

    path: str
    top: Sequence[tuple[str, float]] = ()
    error: str = ""
    known: bool | None = None
    classes: Sequence[str] | None = None


def aligned_lines(head: Sequence[str], batches: Iterable[Sequence[Sequence[str]]]) -> Iterator[str]:
    """Lines of a table with aligned columns, for rows that arrive in batches.

    Columns are as wide as their widest cell so far. A table without rows has no header.
    """
    widths = [0] * len(head)
    heads = [head]
    for rows in filter(None, batches):
        lines = [list(map(printable, cells)) for cells in (*heads, *rows)]
        widths = [max(width, *map(len, column)) for width, column in zip(widths, zip(*lines))]
        yield from ("  ".join(map(str.ljust, cells, widths)).rstrip() + "\n" for cells in lines)
        heads = []


def table_lines(batches: Iterable[Sequence[PredictionRow]], open_set: bool, with_sets: bool = False) -> Iterator[str]:
    """Lines of an aligned table with the columns path, class, probability and next classes.

    The class of a rejected image is `NONE_OF_THESE`, and all its classes are next classes. With `with_sets`, the column
    "classes" before the next classes has the prediction set.
    """

    def cells(row: PredictionRow) -> Sequence[str]:
        classes = [(name, f"{100 * value:.2f} %") for name, value in row.top]
        if row.known is False:
            from ...datasets.folder import NONE_OF_THESE

            classes.insert(0, (NONE_OF_THESE, ""))
        elif not classes:
            classes.append(("error:" if row.error else "-", ""))
        (name, probability), *following = classes
        last = row.error or ", ".join(map(" ".join, following))
        of_set = [", ".join(row.classes or ())] if with_sets else []
        return [utf8(text) for text in (row.path, name, probability, *of_set, last)]

    heads = ("path", "class", "probability", *(["classes"] if with_sets else []), "next classes")
    return aligned_lines(heads, (list(map(cells, rows)) for rows in batches))


def csv_lines(batches: Iterable[Sequence[PredictionRow]], open_set: bool, with_sets: bool = False) -> Iterator[str]:
    """Lines `path,class,probability,rank,error`, one for each of the top classes; one line if there is none.

    With `open_set`, the column `none_of_these` is "true" for rejected images, else "false". With `with_sets`, the
    column `classes` has the prediction set, with `|` between classes.
    """
    for number, row in enumerate(chain.from_iterable(batches)):
        added: dict[str, str] = {}
        if open_set:
            added["none_of_these"] = "true" if row.known is False else "false"
        if with_sets:
            added["classes"] = "|".join(row.classes or ())
        if number == 0:
            yield csv_line("path", "class", "probability", "rank", "error", *added)
        if not row.top:
            nothing = [""] * len(added)
            yield csv_line(row.path, "", "", "", row.error, *nothing)
        for rank, (name, value) in enumerate(row.top, start=1):
            yield csv_line(row.path, name, f"{value:{DIGITS}}", rank, "", *added.values())


def json_lines(batches: Iterable[Sequence[PredictionRow]], open_set: bool, with_sets: bool = False) -> Iterator[str]:
    """Lines of `json_value`."""
    for row in chain.from_iterable(batches):
        yield json.dumps(json_value(row, open_set, with_sets), ensure_ascii=False) + "\n"


def json_value(row: PredictionRow, open_set: bool, with_sets: bool = False) -> dict[str, object]:
    """Value `{"path", "top": [{"class", "probability"}], "error"}` of a row; `error` is None or text.

    With `open_set`, the key `none_of_these` is true for rejected images, else false; with an error, it is None. With
    `with_sets`, the key `classes` has the list of the classes of the prediction set; with an error, it is None.
    """
    top = [{"class": name, "probability": float(f"{value:{DIGITS}}")} for name, value in row.top]
    value: dict[str, object] = {"path": utf8(row.path), "top": top, "error": utf8(row.error) or None}
    if open_set:
        value["none_of_these"] = None if row.error else row.known is False
    if with_sets:
        value["classes"] = None if row.error else list(row.classes or ())
    return value


FORMATS = {"table": table_lines, "csv": csv_lines, "jsonl": json_lines}


def chosen_format(args: Namespace) -> str:
    """Format of the rows: `--format`, else by the suffix of `--out`, else a table."""
    ending = args.out.suffix[1:].lower() if args.out else ""
    return args.format or (ending if ending in FORMATS else "table")


def csv_line(*cells: object) -> str:
    """Encode a line of a CSV file."""
    text = io.StringIO()
    # With the terminator "\n", Python's writer does not quote a carriage return in a name
    csv.writer(text, lineterminator="\r\n").writerow([utf8(str(cell)) for cell in cells])
    return text.getvalue().removesuffix("\r\n") + "\n"


def utf8(text: str) -> str:
    r"""Replace bytes of a file name that are not UTF-8 by their values, such as `\xff`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unique_names(names: Sequence[str], ids: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Make K class names unique.

    A repeated name gets the id of its class, as in "crane (n02012849)", and also its index if that is taken, too.

    Args:
        names: The K class names.
        ids: The K class ids.
        taken: Other names that no class may have.
    """
    counts = Counter([*names, *taken])
    seen = {*names, *taken}
    unique = list(names)
    for position, name in enumerate(names):
        if counts[name] > 1:
            unique[position] = f"{name} ({ids[position]})"
            while unique[position] in seen:
                unique[position] += f" ({position})"
            seen.add(unique[position])
    return unique


def folder_name(classname: str) -> str:
    """Folder name of a class: forbidden characters are percent-encoded (`%2F`), and a long name ends in a hash."""
    name = FORBIDDEN.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), classname)
    if RESERVED.match(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name.encode()) <= MAX_NAME:
        return name
    end = f"~{hash_json(classname)[:16]}"
    return name.encode()[: MAX_NAME - len(end)].decode(errors="ignore") + end


def numbered_path(path: Path, number: int) -> Path:
    """Insert a number before the suffix, as in `photo-1.jpg`, and cut a long name; 0 returns the path itself."""
    if not number:
        return path
    end = f"-{number}{path.suffix}"
    most = max(MAX_FILE_NAME - len(os.fsencode(end)), 1)
    stem = os.fsencode(path.stem)
    if len(stem) <= most:
        return path.with_name(f"{path.stem}{end}")
    return path.with_name(stem[:most].decode(errors="ignore") + end)

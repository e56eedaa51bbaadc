"""The user's own images in a data set of Hugging Face's `datasets`.

    hf:NAME, or hf:NAME#CONFIGURATION     a data set of the hub, or a folder that `datasets.load_dataset` takes
    ROOT/*.parquet, ROOT/data/*.parquet   files whose names begin with their split, or have none: all are train
    FILE.parquet                          one file, which is train

It has the columns `image` and `label`. A split may have any of its names in `SPLIT_NAMES`, in upper or lower case. With
HF_HUB_OFFLINE=1 nothing is fetched: what is on this machine is used.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import UserError, first_line
from ..utils.files import absolute
from ..utils.reading import check_regular
from .folder import OwnImages, Row, files_of_splits
from .images import open_image
from .splits import SPLIT_NAMES, SPLITS

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

PREFIX = "hf:"
IMAGE, LABEL = "image", "label"


def read_hugging_face(root: str) -> OwnImages | None:
    """The images of a Hugging Face data set; None if `root` names none."""
    files = {} if root.startswith(PREFIX) else _parquet_files(absolute(root))
    if not files and not root.startswith(PREFIX):
        return None
    tables = {split: _with_encoded_images(table, root) for split, table in _by_split(root, _load(root, files)).items()}
    rows: list[Row] = []
    classnames: list[str] = []
    for split, table in tables.items():
        names = getattr(table.features[LABEL], "names", None) or []
        classnames = classnames or names
        for number, label in enumerate(table[LABEL]):
            if names and label is not None:
                label = names[label] if 0 <= label < len(names) else None
            rows.append(Row(split, f"{split}/{number}", label))
    return OwnImages(rows, open=partial(_open_row, tables), version=partial(_version, tables), classnames=classnames)


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """Split -> the Parquet files of a folder, or the one file."""
    if not os.path.isdir(path):  # URLs may be too long for `path.is_dir`
        return {"train": [str(path)]} if path.suffix == ".parquet" and os.path.exists(path) else {}
    files: dict[str, list[str]] = {}
    for split, name in files_of_splits(path, ".parquet"):
        files.setdefault(split, []).append(str(path / name))
    return files


def _load(root: str, files: dict[str, list[str]]) -> Any:
    """What the package loads: the name of a split -> its table."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{root} needs the package datasets: pip install 'datasets>=3'") from error
    name, _, configuration = root.removeprefix(PREFIX).partition("#")
    paths = [Path(file) for found in files.values() for file in found]
    if not files and os.path.isdir(name):
        paths = [path for path in Path(name).rglob("*") if not path.is_dir()]
    for path in paths:
        check_regular(path)  # the package would wait for a pipe
    datasets.disable_progress_bars()
    try:
        if files:
            return datasets.load_dataset("parquet", data_files=files)
        return datasets.load_dataset(name, configuration or None)
    except Exception as error:  # the package raises errors of many kinds for what is missing, damaged or offline
        raise UserError(f"cannot load {root} with the package datasets: {first_line(error)}") from error


def _by_split(root: str, loaded: Any) -> dict[str, Any]:
    """Split -> its table. Of several names that mean one split, the split's own is taken, or else the first."""
    taken: dict[str, str] = {}
    for name in map(str, loaded):
        split = SPLIT_NAMES.get(name.lower())
        if split is not None and (split not in taken or name in SPLITS):
            taken[split] = name
    left_out = ", ".join(name for name in map(str, loaded) if name not in taken.values())
    allowed = ", ".join(SPLIT_NAMES)
    if not taken:
        raise UserError(f"{root} has only the splits {left_out}; rename one to train, and others to some of {allowed}")
    if left_out:
        said = "%s: left out are the splits %s; read are %s, since known are one train, val and test, called one of %s"
        logger.warning(said, root, left_out, ", ".join(taken.values()), allowed)
    return {split: loaded[name] for split, name in taken.items()}


def _with_encoded_images(table: Any, root: str) -> Any:
    """The table with images as they are stored, which are decoded one by one."""
    import datasets

    if missing := [column for column in (IMAGE, LABEL) if column not in table.column_names]:
        held = ", ".join(table.column_names)
        raise UserError(f"{root} has no column {' and none '.join(missing)}; rename one of its columns: {held}")
    try:
        return table.select_columns([IMAGE, LABEL]).cast_column(IMAGE, datasets.Image(decode=False))
    except (ValueError, TypeError, NotImplementedError) as error:  # of pyarrow, for types that it cannot convert
        raise UserError(f"{root}: the column {IMAGE} holds no images: {first_line(error)}") from error


def _open_row(tables: dict[str, Any], path: str) -> Image.Image:
    return open_image(_stored(tables, path))


def _version(tables: dict[str, Any], path: str) -> tuple[int, int]:
    stored = _stored(tables, path)
    size = len(stored) if isinstance(stored, bytes) else Path(stored).stat().st_size
    return size, int(tables[path.partition("/")[0]]._fingerprint, 16)


def _stored(tables: dict[str, Any], path: str) -> bytes | str:
    """The image of a row as it is stored: its bytes, or the path of its file; UserError if it has neither."""
    split, _, row = path.partition("/")
    stored = tables[split][int(row)][IMAGE] or {}
    for found in (stored.get("bytes"), stored.get("path")):
        if found is not None:
            return found
    raise UserError(f"row {row} of {split} has no image in the column {IMAGE}; give it one, or leave the row out")

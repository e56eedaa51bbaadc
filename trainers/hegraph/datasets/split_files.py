"""Files that hold splits or selections: CoOp's JSON and pickles, and how a split was drawn here.

A pickle is read without running any code that it holds.
"""

from __future__ import annotations

import io
import pickle
import posixpath
import random
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from ..utils.errors import UserError, first_line
from ..utils.files import hash_file, write_json
from ..utils.reading import read_json, reading
from ..utils.schema import Count, Finite, OpenPart, check
from .splits import SPLITS, Item, Pools

_Row = Annotated[tuple[str, Count, str], Field(strict=False)]  # a list in JSON; its entries are not converted


class _SplitFile(OpenPart):
    """Rows of path, label and class name."""

    train: list[_Row]
    val: list[_Row]
    test: list[_Row]


class _Drawn(OpenPart):
    """How a split file was drawn; the state is that of Python's generator."""

    seed: int
    sha256: str
    state: Annotated[tuple[int, list[int], Finite | None], Field(strict=False)]


def read_split_file(path: Path) -> Pools:
    """Reads a file `split_zhou_*.json`, which holds `{"train"|"val"|"test": [[path, label, class name], ...]}`."""
    form = "it must hold train, val and test, each a list of [path, label, class name]"
    splits = check(_SplitFile, read_json(path), f"{path} is not a split file: {form}")
    pools = {name: [Item(*row) for row in getattr(splits, name)] for name in SPLITS}
    check_pools(pools, str(path))
    return pools


def check_pools(pools: Pools, where: str) -> None:
    """Raises UserError, which begins with `where`, if an image is listed in two splits, or with two labels."""
    seen: dict[str, tuple[str, int]] = {}
    twice: dict[str, tuple[str, str]] = {}
    for split, items in pools.items():
        for item in items:
            before, label = seen.setdefault(_plain_path(item.path), (split, item.label))
            if before != split:
                twice.setdefault(item.path, (before, split))
            elif label != item.label:
                raise UserError(f"{where} lists {item.path} with the labels {label} and {item.label}; it has one")
    if twice:
        first, (one, other) = next(iter(twice.items()))
        more = f" (and {len(twice) - 1} more)" if len(twice) > 1 else ""
        raise UserError(f"{where} lists {first} in {one} and in {other}{more}; an image is in one split")


def _plain_path(path: str) -> str:
    return posixpath.normpath(path) if "./" in path or "//" in path else path


def read_drawn(split_file: Path) -> dict[str, Any] | None:
    """How this program drew a split file: "seed", "sha256" of the file, and "state" of the generator afterwards.

    None if it did not draw the file, or the file has been changed or replaced since.
    """
    path = _drawn_path(split_file)
    if not path.is_file():
        return None
    drawn = read_json(path)
    remedy = f"{path} is damaged; delete it, and the split file too to have it drawn anew"
    check(_Drawn, drawn, remedy)
    version, state, gauss = drawn["state"]
    drawn["state"] = version, tuple(state), gauss
    try:
        random.Random().setstate(drawn["state"])
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{remedy}: {first_line(error)}") from error
    return drawn if drawn["sha256"] == hash_file(split_file) else None


def write_drawn(split_file: Path, pools: Pools, seed: int, state: tuple) -> None:
    """Writes a split that was drawn, with paths as the file lists them, and then how it was drawn."""
    write_json(split_file, {split: [list(item) for item in pools[split]] for split in SPLITS})
    write_json(_drawn_path(split_file), {"seed": seed, "sha256": hash_file(split_file), "state": state})


def _drawn_path(split_file: Path) -> Path:
    return split_file.with_name(split_file.name + ".drawn")


class _Datum:
    """Takes the place of `dassl.data.datasets.base_dataset.Datum`, whose attributes it gets; it runs nothing."""

    _impath: object
    _label: object
    _classname: object


class _DatumUnpickler(pickle.Unpickler):
    """Accepts `Datum` and the plain types of Python, and refuses everything else."""

    def find_class(self, module: str, name: str) -> type:
        if name == "Datum" and module in ("dassl.data.datasets.base_dataset", "dassl.data.datasets"):
            return _Datum
        raise pickle.UnpicklingError(f"it holds {module}.{name}; nothing in it was run")


def read_coop_pickle(path: Path, folder: str) -> Pools:
    """Reads `split_fewshot/shot_<shots>-seed_<seed>.pkl` of CoOp, or ImageNet's `preprocessed.pkl`.

    Args:
        path: The file.
        folder: The folder of the data set below the data root. The pickle holds absolute paths, perhaps of another
            machine; they are cut so that they begin with this folder.

    Returns:
        The items of "train", and of "val" and "test" if the file has them.
    """
    with reading(path, "a pickle of CoOp's items, which is made anew if you delete it"):
        content = _DatumUnpickler(io.BytesIO(path.read_bytes())).load()
        if not isinstance(content, dict) or not content.get("train"):
            raise ValueError("it holds no training images")
        pools = {split: [_item(datum, folder) for datum in content[split]] for split in SPLITS if split in content}
    check_pools(pools, str(path))
    return pools


def path_from(folder: str, path: str) -> str:
    """The part of a path, perhaps of another machine, that begins with the folder of its data set.

    Raises:
        ValueError: If it is not in such a folder.
    """
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if folder not in parts or ".." in parts:
        raise ValueError(f"it names {path}, which is not in a folder {folder}")
    last = len(parts) - 1 - parts[::-1].index(folder)
    return "/".join(parts[last:])


def _item(datum: Any, folder: str) -> Item:
    if not isinstance(datum, _Datum):
        raise ValueError(f"it holds a {type(datum).__name__}")
    path, label, name = datum._impath, datum._label, datum._classname
    if not (isinstance(path, str) and isinstance(label, int) and isinstance(name, str)):
        raise ValueError("a Datum in it has no path, label and name")
    return Item(path_from(folder, path), label, name)

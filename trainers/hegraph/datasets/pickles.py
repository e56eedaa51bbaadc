"""CoOp's pickles of items, read without running any code that they hold."""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

from ..utils.errors import UserError
from .splits import SPLITS, Item, Pools, check_pools


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
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def read_coop_pickle(path: Path, folder: str) -> Pools:
    """Reads `split_fewshot/shot_<shots>-seed_<seed>.pkl` of CoOp, or ImageNet's `preprocessed.pkl`.

    Args:
        path: The file.
        folder: The folder of the data set below the data root. The pickle holds absolute paths, perhaps of another
            machine; they are cut so that they begin with this folder.

    Returns:
        The items of "train", and of "val" and "test" if the file has them.

    Raises:
        UserError: If it holds anything but `Datum` objects, or is damaged.
    """
    try:
        content = _DatumUnpickler(io.BytesIO(path.read_bytes())).load()
        if not isinstance(content, dict) or not content.get("train"):
            raise ValueError("it holds no training images")
        splits = [split for split in SPLITS if split in content]
        pools = {split: [_item(datum, folder) for datum in content[split]] for split in splits}
    except Exception as error:  # pickle raises many kinds of exceptions on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} is not a pickle of CoOp's items ({reason}); nothing in it was run. Delete it to have it made anew"
        ) from error
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

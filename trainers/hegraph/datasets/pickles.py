"""CoOp's pickles of items, read without executing what is in them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

from ..utils.errors import UserError
from .splits import Item


class _Datum:
    """Stands for `dassl.data.datasets.base_dataset.Datum`: attributes only, nothing is run or checked."""


class _DatumUnpickler(pickle.Unpickler):
    """Knows `Datum` and the plain types of Python, and nothing else."""

    def find_class(self, module: str, name: str) -> type:
        if name == "Datum" and module in ("dassl.data.datasets.base_dataset", "dassl.data.datasets"):
            return _Datum
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def read_coop_pickle(path: Path, folder: str) -> dict[str, list[Item]]:
    """Reads `split_fewshot/shot_<shots>-seed_<seed>.pkl` of CoOp, or ImageNet's `preprocessed.pkl`.

    Args:
        path: The file.
        folder: Folder of the data set below the data root. The absolute paths inside, which may be those of another
            machine, are cut to begin with it.

    Returns:
        "train", and "val" and "test" as far as the file has them.

    Raises:
        UserError: If anything but `Datum` objects is in it, or it is damaged.
    """
    try:
        content = _DatumUnpickler(io.BytesIO(path.read_bytes())).load()
        if not isinstance(content, dict) or not content.get("train"):
            raise ValueError("it holds no training images")
        splits = [split for split in ("train", "val", "test") if split in content]
        return {split: [_item(datum, folder) for datum in content[split]] for split in splits}
    except Exception as error:  # on a damaged file, pickle raises whatever its bytes lead to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} is not a pickle of CoOp's items ({reason}); nothing in it was run. Delete it to have it made anew"
        ) from error


def path_from(folder: str, path: str) -> str:
    """A path, perhaps of another machine, from the folder of its data set on.

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

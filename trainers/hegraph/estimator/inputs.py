"""What a user may hand to the classifier: features, paths or pictures; labels and names of classes.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..utils.errors import UserError

Source = str | os.PathLike | Image.Image  # an image that has still to be encoded

# A row whose norm is as near to 1 as float32 rounds is left as it is. So features that have been normalised before,
# such as those of a loaded feature bank, keep every bit.
UNIT_TOLERANCE = 1e-6
FLOATS = [np.float32, np.float16]  # types that features are kept in; others become the first


def is_images(X: Any) -> bool:
    """Whether `X` is a sequence of paths or pictures; if not, it is to be read as features.

    Raises:
        UserError: If it is a single path or picture.
    """
    if isinstance(X, (str, os.PathLike, Image.Image)):
        raise UserError(f"give a list of images, such as [{X!r:.80}], not a single one")
    if isinstance(X, (list, tuple)):
        return bool(X) and _is_source(X[0])
    if isinstance(X, Tensor) or not hasattr(X, "__array__") or getattr(X, "ndim", 2) != 1:
        return False
    entries = np.asarray(X)
    return entries.dtype.kind in "UO" and len(entries) > 0 and _is_source(entries[0])


def image_list(X: Sequence[Source]) -> list[Path | Image.Image]:
    """Paths and pictures of a sequence.

    Raises:
        UserError: If an entry is neither, or a picture without pixels.
    """
    for position, entry in enumerate(X):
        if not _is_source(entry):
            raise UserError(f"image {position} is neither a path nor a PIL image, but of type {type(entry).__name__}")
        if isinstance(entry, Image.Image) and 0 in entry.size:
            raise UserError(f"image {position} has no pixels: its size is {entry.width} x {entry.height}")
    return [entry if isinstance(entry, Image.Image) else Path(entry) for entry in X]


def as_array(X: Any) -> Any:
    """A tensor as an array; anything else as it came, for scikit-learn to check."""
    if not isinstance(X, Tensor):
        return X
    X = X.detach().cpu()
    return (X.float() if X.dtype == torch.bfloat16 else X).numpy()  # numpy has no bfloat16


def feature_array(X: Any) -> Any:
    """Features as `as_array` gives them.

    Raises:
        UserError: If they are no features by their form: pictures as arrays, a column of paths, or a generator.
    """
    if isinstance(X, Iterator):
        raise UserError(f"X is a {type(X).__name__}, which can be read only once; give a list, such as list(X)")
    if isinstance(X, (list, tuple)) and X and getattr(X[0], "ndim", 0) > 1:  # scikit-learn would blame the dimensions
        raise _pictures(f"a {type(X).__name__} of arrays of shape {list(X[0].shape)}")
    X = as_array(X)
    dimensions, dtype = getattr(X, "ndim", 2), getattr(X, "dtype", None)
    # Grey pictures [n, height, width] would pass as views, and only their whole numbers tell them from features
    if dimensions > 3 or (dimensions == 3 and getattr(dtype, "kind", "") in "iub"):
        raise _pictures(f"{dtype} of shape {list(X.shape)}")
    if _is_column_of_paths(X):
        raise UserError(
            f"X is a table of one column of paths, of shape {list(X.shape)}; give a list of paths or of PIL images"
        )
    return X


def _pictures(came: str) -> UserError:
    return UserError(
        f"X looks like pictures as an array ({came}); give a list of paths or of PIL images, or features [n, d] or "
        "[n, views, d] as floats"
    )


def _is_column_of_paths(X: Any) -> bool:
    if not hasattr(X, "__array__") or getattr(X, "ndim", 0) != 2 or X.shape[0] == 0 or X.shape[1] != 1:
        return False
    return _is_source(np.asarray(X)[0, 0])


def unit_rows(features: np.ndarray) -> Tensor:
    """Features with rows of unit norm, as float32; a row of zeros stays so. Rows of float16 are always scaled.

    Args:
        features: Shape `[..., d]`.
    """
    # A copy in memory that torch has aligned: the last bit of a matrix product can depend on the alignment
    rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).clone()
    scaled = F.normalize(rows, dim=-1)
    if features.dtype == np.float16:
        return scaled
    return torch.where((rows.norm(dim=-1, keepdim=True) - 1).abs() <= UNIT_TOLERANCE, rows, scaled)


def text_nodes(given: Any, name: str, num_classes: int, width: int) -> Tensor | None:
    """Text features as unit rows, shape `[K, d]`; None if none are given.

    Args:
        given: What the user gave as `name`.
        name: Of the argument, for the message.
        num_classes: K.
        width: d, that of the image features.

    Raises:
        UserError: If they have another shape, hold NaN or infinite values, or a row of zeros.
    """
    if given is None:
        return None
    try:
        rows = np.asarray(as_array(given))
        rows = rows if rows.dtype in FLOATS else rows.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be an array of numbers [classes, width]: {error}") from error
    if rows.shape != (num_classes, width):
        raise UserError(
            f"{name} must have shape [{num_classes}, {width}], one row for each class in the order of classes_ and as "
            f"wide as the image features, got {list(rows.shape)}"
        )
    if not np.isfinite(rows).all():
        raise UserError(f"{name} holds NaN or infinite values")
    if empty := np.flatnonzero(~rows.any(axis=1)).tolist():
        raise UserError(f"{name} holds zeros alone for the class {empty[0]}, which have no direction")
    return unit_rows(rows)


def class_names(classes: np.ndarray, given: Mapping | Sequence[str] | None) -> list[str]:
    """The name of every class, in the order of `classes_`.

    Args:
        classes: The K labels in sorted order.
        given: Names in that order, or a table from labels to names; None takes the labels as names.

    Raises:
        UserError: If a class has no name or an impossible one, there are more names than classes, or the names are the
            labels in another order.
    """
    labels = classes.tolist()
    if given is None:
        return _checked([str(label) for label in labels])
    if isinstance(given, Mapping):
        missing = [label for label in labels if label not in given]
        if missing:
            raise UserError(f"classnames has no name for the labels {missing[:5]} ({len(missing)} of {len(labels)})")
        return _checked([given[label] for label in labels])
    ordered = hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, str)
    if not ordered or len(given) != len(labels):
        came = f"{len(given)} names" if ordered else f"{given!r:.80}"
        raise UserError(
            f"classnames must hold one name for each of the {len(labels)} classes in y, in the order of their sorted "
            f"labels ({', '.join(map(repr, labels[:3]))}, ...), or be a dict from labels to names; got {came}"
        )
    names = _checked(list(given))
    _check_order(names, [str(label) for label in labels])
    return names


def labels_to_keep(classes: np.ndarray, names: Sequence[str]) -> tuple[bool | int | float | str, ...] | None:
    """The labels as a model folder can hold them; None where the names are the labels, or have to do in their place."""
    labels = classes.tolist()
    plain = all(isinstance(label, (bool, int, float, str)) for label in labels)
    return tuple(labels) if plain and labels != list(names) else None


def _check_order(names: list[str], labels: list[str]) -> None:
    """Raises UserError if labels would get each other's names."""
    if names != labels and set(names) == set(labels):
        raise UserError(
            f"classnames are the labels themselves in another order ({', '.join(names[:3])}, ... for "
            f"{', '.join(labels[:3])}, ...); leave classnames out, or give a dict from labels to names"
        )


def _checked(names: list[str]) -> list[str]:
    for position, name in enumerate(names):
        if not isinstance(name, str):
            raise UserError(f"class names must be text, but that of class {position} is {name!r:.80}")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the class name {name!a} holds half of a surrogate pair, which is no text") from error
        if not name.strip():
            raise UserError(f"the name of class {position} is empty; give classnames")
    return names


def _is_source(entry: Any) -> bool:
    return isinstance(entry, (str, os.PathLike, Image.Image))

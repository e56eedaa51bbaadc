"""What a user may hand to the classifier: features, paths or pictures; labels and names of classes.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from sklearn.base import BaseEstimator
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, column_or_1d, validate_data
from torch import Tensor

from ..utils.errors import UserError, first_line
from ..utils.schema import check

Source = str | os.PathLike | Image.Image  # an image that has still to be encoded

# A row whose norm is as near to 1 as float32 rounds is left as it is. So features that have been normalised before,
# such as those of a loaded feature bank, keep every bit.
UNIT_TOLERANCE = 1e-6
FLOATS = [np.float32, np.float16]  # types that features are kept in; others become the first
UNLABELLED = -1  # the label of a row without one, as in scikit-learn


def is_images(X: Any) -> bool:
    """Whether `X` is a sequence of paths or pictures; if not, it is to be read as features.

    Raises:
        UserError: If it is a single path or picture.
    """
    if isinstance(X, Source):
        raise UserError(f"give a list of images, such as [{X!r:.80}], not a single one")
    if isinstance(X, (list, tuple)):
        return bool(X) and isinstance(X[0], Source)
    if isinstance(X, Tensor) or not hasattr(X, "__array__") or getattr(X, "ndim", 2) != 1:
        return False
    entries = np.asarray(X)
    return entries.dtype.kind in "UO" and len(entries) > 0 and isinstance(entries[0], Source)


def image_list(X: Sequence[Source]) -> list[Path | Image.Image]:
    """Paths and pictures of a sequence; raises UserError if an entry is neither."""
    for position, entry in enumerate(X):
        if not isinstance(entry, Source):
            raise UserError(f"image {position} is neither a path nor a PIL image, but of type {type(entry).__name__}")
    return [entry if isinstance(entry, Image.Image) else Path(entry) for entry in X]


def as_array(X: Any) -> Any:
    """A tensor as an array; UserError if it is sparse, quantised or without data. Scikit-learn checks all else."""
    if not isinstance(X, Tensor):
        return X
    try:
        dense = X.detach().cpu()
        return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()  # numpy has no bfloat16
    except (RuntimeError, TypeError) as error:  # of torch, each layout and type in words of its own
        raise UserError(f"a tensor is no array: {first_line(error)}") from error


def checked_features(estimator: BaseEstimator, X: Any, reset: bool = False, **given: Any) -> tuple[np.ndarray, Any]:
    """Features `[n, V, d]`, and labels if `y` is given, as scikit-learn checks them; without `reset`, of the width of
    `fit`. Raises UserError for pictures as whole numbers.
    """
    X = as_array(X)
    has_views = getattr(X, "ndim", 2) == 3
    if has_views and X.dtype.kind in "iub":
        raise UserError(
            f"X looks like pictures as an array ({X.dtype} of shape {list(X.shape)}); give a list of paths or of PIL "
            "images, or features [n, d] or [n, views, d] as floats"
        )
    views = check_array(X.reshape(-1, X.shape[-1]), dtype=FLOATS).reshape(X.shape) if has_views else None
    first = validate_data(estimator, X if views is None else views[:, 0], dtype=FLOATS, reset=reset, **given)
    first, y = first if given else (first, None)
    return first[:, None] if views is None else views, y


def labelled(estimator: BaseEstimator, X: Any, y: Any, reset: bool = True) -> tuple[Any, np.ndarray]:
    """Features `[n, V, d]` or a list of images, and n labels; `reset`: whether the width may be another than before."""
    y = as_array(y)
    if is_images(X):
        X, y = image_list(X), column_or_1d(y, warn=True)
        check_consistent_length(X, y)
    else:
        X, y = checked_features(estimator, X, reset, y=y)
    check_classification_targets(y)
    return X, y


def rows_where(rows: np.ndarray, X: Any) -> Any:
    """Those rows of features or of a list of images."""
    return list(compress(X, rows)) if isinstance(X, list) else X[rows]


def unit_rows(features: np.ndarray, name: str = "X") -> Tensor:
    """Features `[..., d]` with rows of unit norm, as float32; a row of zeros stays so, and float16 is always scaled.
    UserError, with the name of the argument, for a row whose norm float32 cannot hold.
    """
    # A copy in memory that torch has aligned: the last bit of a matrix product can depend on the alignment
    rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).clone()
    scaled = F.normalize(rows, dim=-1)
    if ((scaled.norm(dim=-1) < 0.5) & rows.any(dim=-1)).any():
        raise UserError(f"{name} has a row of numbers that are too small or too large to be scaled to unit norm")
    if features.dtype == np.float16:
        return scaled
    return torch.where((rows.norm(dim=-1, keepdim=True) - 1).abs() <= UNIT_TOLERANCE, rows, scaled)


def text_nodes(given: Any, name: str, num_classes: int, width: int) -> Tensor | None:
    """Text features as unit rows, shape `[K, d]`; None if none are given as the argument `name`.

    Raises:
        UserError: If scikit-learn does not allow them, they have another shape or a row of zeros, or as of `unit_rows`.
    """
    if given is None:
        return None
    try:
        rows = check_array(as_array(given), dtype=FLOATS, input_name=name)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {first_line(error)}; give numbers [classes, width]") from error
    if rows.shape != (num_classes, width):
        raise UserError(
            f"{name} must have shape [{num_classes}, {width}], one row for each class in the order of classes_ and as "
            f"wide as the image features, got {list(rows.shape)}"
        )
    if not rows.any(axis=1).all():
        raise UserError(f"{name} has a row of zeros, which says nothing of its class")
    return unit_rows(rows, name)


def class_names(classes: np.ndarray, given: Mapping | Sequence[str] | None) -> list[str]:
    """The name of every class, in the order of `classes_`.

    Args:
        classes: The K labels in sorted order.
        given: Names in that order, or a table from labels to names; None takes the labels as names.

    Raises:
        UserError: If a class has no name or an impossible one, there are more names than classes, or the names are the
            labels in another order, so that labels would get each other's names.
    """
    labels = classes.tolist()
    own = [str(label) for label in labels]
    names: list[Any] = own
    if isinstance(given, Mapping):
        names = [given.get(label) for label in labels]
    elif given is not None:
        if isinstance(given, str) or not hasattr(given, "__getitem__") or len(given) != len(labels):
            raise UserError(
                f"classnames must hold one name for each of the {len(labels)} classes in y, in the order of their "
                f"sorted labels ({', '.join(map(repr, labels[:3]))}, ...), or be a dict from labels to names; got "
                f"{given!r:.80}"
            )
        names = list(given)
    names = check(list[Annotated[str, Field(pattern=r"\S")]], names, "classnames")
    if not isinstance(given, Mapping) and names != own and set(names) == set(own):
        raise UserError(
            f"classnames are the labels themselves in another order ({', '.join(names[:3])}, ...); leave them out, or "
            "give a dict from labels to names"
        )
    return names


def without_label(y: np.ndarray, given: Mapping | Sequence[str] | None) -> np.ndarray:
    """Which rows of `y` are -1 for no label, shape `[n]`: where labels are integers and names leave out -1 alone."""
    rows = np.zeros(len(y), dtype=bool)
    if y.dtype.kind != "i" or given is None or isinstance(given, str) or not hasattr(given, "__len__"):
        return rows
    if isinstance(given, Mapping):
        unnamed = UNLABELLED not in given
    else:
        unnamed = len(given) == len(np.unique(y)) - 1 or (len(given) > 1 and bool((y == UNLABELLED).all()))
    return y == UNLABELLED if unnamed else rows


def labels_to_keep(classes: np.ndarray, names: Sequence[str]) -> tuple[bool | int | float | str, ...] | None:
    """The labels as a model folder can hold them; None where the names are the labels, or have to do in their place."""
    labels = classes.tolist()
    plain = all(isinstance(label, (bool, int, float, str)) for label in labels)
    return tuple(labels) if plain and labels != list(names) else None

"""What a user may hand to the classifier: features, paths or pictures; labels and names of classes.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Sized
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
from ..utils.reading import validate

Source = str | os.PathLike | Image.Image  # an image that has still to be encoded
Names = Mapping[Any, str] | Sequence[str]  # of classes: by their labels, or in the order of their sorted labels

# A row whose norm is as near to 1 as float32 rounds is left as it is. So features that have been normalised before,
# such as those of a loaded feature bank, keep every bit.
UNIT_TOLERANCE = 1e-6
FLOATS = [np.float32, np.float16]  # types that features are kept in; others become the first
UNLABELLED = -1  # the label of a row without one, as in scikit-learn


def image_list(X: Any) -> list[Path | Image.Image] | None:
    """The paths and pictures of a sequence; None if `X` is none of such, but to be read as features.

    Raises:
        UserError: If it is a single path or picture, or an entry after the first is neither.
    """
    if isinstance(X, Source):
        raise UserError(f"give a list of images, such as [{X!r:.80}], not a single one")
    if not isinstance(X, (list, tuple)):
        X = [] if isinstance(X, Tensor) or getattr(X, "ndim", 2) != 1 else list(np.ravel(X))
    if not X or not isinstance(X[0], Source):
        return None
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
    y, images = as_array(y), image_list(X)
    if images is None:
        X, y = checked_features(estimator, X, reset, y=y)
    else:
        X, y = images, column_or_1d(y, warn=True)
        check_consistent_length(X, y)
    check_classification_targets(y)
    return X, y


def with_labels(X: Any, y: np.ndarray, given: Names | None) -> tuple[Any, np.ndarray, list[Any]]:
    """The images that have a label, their labels, and in a list those without, if there are any: rows whose label is
    -1, where labels are integers and names leave out -1 alone.
    """
    rows, count = y == UNLABELLED, len(given) if isinstance(given, Sized) else 0
    unnamed = 0 < count == len(np.unique(y)) - 1 or (count > 1 and bool(rows.all()))
    if isinstance(given, Mapping):
        unnamed = UNLABELLED not in given
    if y.dtype.kind != "i" or not unnamed or not rows.any():
        return X, y, []
    if isinstance(X, list):
        return list(compress(X, ~rows)), y[~rows], [list(compress(X, rows))]
    return X[~rows], y[~rows], [X[rows]]


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
    if rows.shape != (num_classes, width) or not rows.any(axis=1).all():
        raise UserError(
            f"{name} must have shape [{num_classes}, {width}], one row for each class in the order of classes_ and as "
            f"wide as the image features, none of zeros alone; got {list(rows.shape)}"
        )
    return unit_rows(rows, name)


def class_names(classes: np.ndarray, given: Names | None) -> list[str]:
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
                f"classnames must be a dict from labels to names, or hold one for each of the {len(labels)} classes in "
                f"y by their sorted labels ({', '.join(map(repr, labels[:3]))}, ...); got {given!r:.80}"
            )
        names = list(given)
    names = validate(list[Annotated[str, Field(pattern=r"\S")]], names, "classnames")
    if not isinstance(given, Mapping) and names != own and set(names) == set(own):
        raise UserError(
            f"classnames are the labels themselves in another order ({', '.join(names[:3])}, ...); leave them out, or "
            "give a dict from labels to names"
        )
    return names

"""Validation of the classifier's arguments: features, paths or PIL images; labels and names of classes.

Shapes: n images, V views of each, K classes, d feature width.
"""

import os
from collections.abc import Mapping, Sequence, Sized
from itertools import chain, compress
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, column_or_1d, validate_data
from torch import Tensor

from ..utils.errors import UserError, first_line
from ..utils.reading import validate

Source = str | os.PathLike | Image.Image  # image that is not encoded yet
Names = Mapping[Any, str] | Sequence[str]  # class names by label, or in the order of sorted labels

# Rows with this deviation from norm 1 are not rescaled, so that normalised features, such as those of a feature bank,
# keep every bit
UNIT_TOLERANCE = 1e-6
FLOATS = [np.float32, np.float16]  # accepted types, others are converted to the first
UNLABELLED = -1  # label of an unlabelled row, as in scikit-learn


def image_list(X: Any) -> list[Path | Image.Image] | None:
    """List of paths and PIL images; None if `X` contains features.

    Raises:
        UserError: If `X` is a single image, or an entry after the first one is not an image.
    """
    if isinstance(X, Source):
        raise UserError(f"expected a list of images, such as [{X!r:.80}], got a single image", "images.single")
    if not isinstance(X, (list, tuple)):
        X = [] if isinstance(X, Tensor) or getattr(X, "ndim", 2) != 1 else list(np.ravel(X))
    if not X or not isinstance(X[0], Source):
        return None
    for position, entry in enumerate(X):
        if not isinstance(entry, Source):
            raise UserError(f"expected a path or a PIL image as image {position}, got {type(entry).__name__}")
    return [entry if isinstance(entry, Image.Image) else Path(entry) for entry in X]


def as_array(X: Any) -> Any:
    """Convert a tensor to an array; other types are returned. UserError for sparse, quantised and meta tensors."""
    if not isinstance(X, Tensor):
        return X
    try:
        dense = X.detach().cpu()
        return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()  # numpy has no bfloat16
    except (RuntimeError, TypeError) as error:
        raise UserError(f"expected a dense tensor: {first_line(error)}") from error


def checked_features(estimator: BaseEstimator, X: Any, reset: bool = False, **labels: Any) -> tuple[np.ndarray, Any]:
    """Validate features `[n, V, d]`, and labels if passed as `y`, with scikit-learn.

    Without `reset`, the width must be the one of `fit`.

    Raises:
        UserError: If `X` contains pixels as integers.
    """
    X = as_array(X)
    has_views = getattr(X, "ndim", 2) == 3
    if has_views and X.dtype.kind in "iub":
        raise UserError(
            "expected a list of paths or of PIL images, or float features of shape [n, d] or [n, views, d], got "
            f"{X.dtype} {list(X.shape)}"
        )
    views = check_array(X.reshape(-1, X.shape[-1]), dtype=FLOATS).reshape(X.shape) if has_views else None
    first = validate_data(estimator, X if views is None else views[:, 0], dtype=FLOATS, reset=reset, **labels)
    first, y = first if labels else (first, None)
    return first[:, None] if views is None else views, y


def checked_X_y(
    estimator: BaseEstimator, X: Any, y: Any, reset: bool = True, columns: Sequence[Any] | None = None
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Validate features `[n, V, d]` or a list of images, and their labels.

    Args:
        reset: Whether another width than before is allowed.
        columns: As of `label_indicators`.

    Returns:
        The features or images; n labels, or label indicators, booleans of shape `[n, K]`; the sorted classes of `y`.
    """
    y, images = as_array(y), image_list(X)
    several = label_indicators(y, columns)
    if several is not None:
        y, classes = several
    if images is None:
        X, y = checked_features(estimator, X, reset, y=y, multi_output=several is not None)
    else:
        X, y = images, y if several is not None else column_or_1d(y, warn=True)
        check_consistent_length(X, y)
    if several is not None:
        return X, y, classes
    check_classification_targets(y)
    return X, y, np.unique(y)


def label_indicators(y: Any, columns: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Indicators, booleans of shape `[n, K]`, and the K sorted classes, for several labels per image.

    Args:
        y: Indicators of 0 and 1, shape `[n, K]` with K above 1, or a list of label sets. Lists of equal length with
            numbers are indicators.
        columns: Classes of the columns of indicators; None numbers them from 0.

    Returns:
        None for one label per image.

    Raises:
        UserError: If a value is not 0 or 1, the number of columns is wrong, or no image has a label.
    """
    rows = y.tolist() if str(getattr(y, "dtype", "")) == "object" else y
    if isinstance(rows, (list, tuple)) and rows and all(isinstance(row, (set, frozenset, list, tuple)) for row in rows):
        lengths, labels = [len(row) for row in rows], [*chain(*rows)]
        is_matrix = isinstance(rows[0], (list, tuple)) and all(isinstance(label, Real) for label in labels)
        if not is_matrix or len({*lengths}) > 1:
            if not labels:
                raise UserError("expected at least one label in y, got none")
            classes, places = np.unique(labels, return_inverse=True)
            matrix = np.zeros((len(rows), len(classes)), dtype=bool)
            matrix[np.repeat(np.arange(len(rows)), lengths), places] = True
            return matrix, classes
    matrix = y.toarray() if issparse(y) else np.asarray(y)
    if matrix.ndim != 2 or matrix.shape[1] < 2:
        return None
    if len(wrong := matrix[(matrix != 0) & (matrix != 1)]):
        problem = f"expected 0 and 1 in y of shape {[*matrix.shape]}, got {wrong.tolist()[0]!r}"
        raise UserError(f"{problem}; pass label sets as sets")
    columns = range(matrix.shape[1]) if columns is None else columns
    if len(columns) != matrix.shape[1]:
        raise UserError(f"expected {len(columns)} columns in y, one for each class, got {matrix.shape[1]}")
    classes, order = np.unique(np.asarray(columns), return_index=True)
    return matrix[:, order].astype(bool), classes


def split_labelled(X: Any, y: np.ndarray, classnames: Names | None) -> tuple[Any, np.ndarray, list[Any]]:
    """Split images into labelled and unlabelled ones.

    A label of -1 means unlabelled if all labels are integers and `classnames` names all other classes but not -1.

    Returns:
        The labelled images, their labels, and a list with the unlabelled images, empty if there are none.
    """
    rows, count = y == UNLABELLED, len(classnames) if isinstance(classnames, Sized) else 0
    unnamed = 0 < count == len(np.unique(y)) - 1 or (count > 1 and bool(rows.all()))
    if isinstance(classnames, Mapping):
        unnamed = UNLABELLED not in classnames
    if y.dtype.kind != "i" or not unnamed or not rows.any():
        return X, y, []
    if isinstance(X, list):
        return list(compress(X, ~rows)), y[~rows], [list(compress(X, rows))]
    return X[~rows], y[~rows], [X[rows]]


def unit_rows(features: np.ndarray, name: str = "X") -> Tensor:
    """Scale rows of features `[..., d]` to unit norm, as float32. Rows of zeros stay zero.

    Raises:
        UserError: If the norm of a row is out of the range of float32; the message contains `name`.
    """
    # A copy in aligned memory, because the last bit of a matrix product can depend on the alignment
    rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).clone()
    scaled = F.normalize(rows, dim=-1)
    if ((scaled.norm(dim=-1) < 0.5) & rows.any(dim=-1)).any():
        raise UserError(f"{name} has a row whose norm is too small or too large for float32")
    if features.dtype == np.float16:
        return scaled
    return torch.where((rows.norm(dim=-1, keepdim=True) - 1).abs() <= UNIT_TOLERANCE, rows, scaled)


def text_nodes(features: Any, name: str, num_classes: int, width: int) -> Tensor | None:
    """Validate text features `[K, d]`, the argument `name`, and scale them to unit norm; None stays None.

    Raises:
        UserError: If scikit-learn rejects them, the shape is wrong, a row is zero, or as of `unit_rows`.
    """
    if features is None:
        return None
    try:
        rows = check_array(as_array(features), dtype=FLOATS, input_name=name)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {first_line(error)}; expected numbers [classes, width]") from error
    if rows.shape != (num_classes, width) or not rows.any(axis=1).all():
        raise UserError(
            f"expected {name} of shape [{num_classes}, {width}], one row for each class in the order of classes_ and "
            f"no row of zeros, got {list(rows.shape)}"
        )
    return unit_rows(rows, name)


def class_names(classes: np.ndarray, classnames: Names | None) -> list[str]:
    """Names of the classes, in the order of `classes_`.

    Args:
        classes: The K labels in sorted order.
        classnames: Names in that order, or a dict from labels to names; None takes the labels as names.

    Raises:
        UserError: If a name is missing or invalid, the number of names is wrong, or the names are the labels in another
            order, which would swap classes.
    """
    labels = classes.tolist()
    own = [str(label) for label in labels]
    names: list[Any] = own
    if isinstance(classnames, Mapping):
        names = [classnames.get(label) for label in labels]
    elif classnames is not None:
        if isinstance(classnames, str) or not hasattr(classnames, "__getitem__") or len(classnames) != len(labels):
            raise UserError(
                f"expected classnames as a dict from labels to names, or as a list for the {len(labels)} sorted labels "
                f"in y ({', '.join(map(repr, labels[:3]))}, ...), got {classnames!r:.80}"
            )
        names = list(classnames)
    names = validate(list[Annotated[str, Field(pattern=r"\S")]], names, "classnames")
    if not isinstance(classnames, Mapping) and names != own and set(names) == set(own):
        problem = f"classnames are the labels in another order ({', '.join(names[:3])}, ...)"
        raise UserError(f"{problem}; omit them, or pass a dict from labels to names")
    return names

"""What a user may hand to the classifier: features, paths or pictures; labels and names of classes.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, column_or_1d, validate_data
from torch import Tensor

from ..utils.errors import UserError, first_line

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
    """Paths and pictures of a sequence; raises UserError if an entry is neither, or has no pixels."""
    for position, entry in enumerate(X):
        if not isinstance(entry, Source):
            raise UserError(f"image {position} is neither a path nor a PIL image, but of type {type(entry).__name__}")
        if isinstance(entry, Image.Image) and 0 in entry.size:
            raise UserError(f"image {position} has no pixels: its size is {entry.width} x {entry.height}")
    return [entry if isinstance(entry, Image.Image) else Path(entry) for entry in X]


def as_array(X: Any) -> Any:
    """A tensor as an array; UserError if it is sparse or has no data. All else is left for scikit-learn to check."""
    if not isinstance(X, Tensor):
        return X
    try:
        dense = X.detach().cpu()
        return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()  # numpy has no bfloat16
    except (RuntimeError, TypeError, NotImplementedError) as error:
        kind = f"{X.layout}, {X.dtype}, on {X.device}"
        raise UserError(f"a tensor ({kind}) is no array: {first_line(error)}; give a dense one of floats") from error


def feature_array(X: Any) -> Any:
    """Features as `as_array` gives them; UserError for pictures as arrays, a column of paths, or a generator."""
    if isinstance(X, Iterator):
        raise UserError(f"X is a {type(X).__name__}, which can be read only once; give a list, such as list(X)")
    came = ""
    if isinstance(X, (list, tuple)) and X and getattr(X[0], "ndim", 0) > 1:  # scikit-learn would blame the dimensions
        came = f"pictures as a {type(X).__name__} of arrays of shape {list(X[0].shape)}"
    X = as_array(X)
    dimensions, dtype = getattr(X, "ndim", 2), getattr(X, "dtype", None)
    # Grey pictures [n, height, width] would pass as views, and only their whole numbers tell them from features
    if dimensions > 3 or (dimensions == 3 and getattr(dtype, "kind", "") in "iub"):
        came = f"pictures as an array ({dtype} of shape {list(X.shape)})"
    elif hasattr(X, "shape") and dimensions == 2 and X.shape[0] and X.shape[1] == 1:
        came = f"a column of paths, of shape {list(X.shape)}" if isinstance(np.asarray(X)[0, 0], Source) else ""
    if came:
        raise UserError(
            f"X looks like {came}; give a list of paths or of PIL images, or features [n, d] or [n, views, d] as floats"
        )
    return X


def checked_features(estimator: BaseEstimator, X: Any, y: Any = None, reset: bool = False) -> tuple[np.ndarray, Any]:
    """Features `[n, V, d]`, and labels, as scikit-learn checks them; without `reset`, of the width of `fit`."""
    X = feature_array(X)
    given = {"reset": reset} if y is None else {"reset": reset, "y": y}
    has_views = getattr(X, "ndim", 2) == 3
    if has_views and X.shape[1] == 0:
        raise UserError(f"X has no views: its shape is {list(X.shape)}; give [images, views, width]")
    first = validate_data(estimator, X[:, 0] if has_views else X, dtype=FLOATS, **given)
    first, y = (first, None) if y is None else first
    if has_views:
        return check_array(X.reshape(-1, X.shape[-1]), dtype=FLOATS).reshape(X.shape), y
    return first[:, None], y


def labelled(estimator: BaseEstimator, X: Any, y: Any, reset: bool = True) -> tuple[Any, np.ndarray]:
    """Features `[n, V, d]` or a list of images, and n labels; `reset`: whether the width may be another than before."""
    if y is None:
        raise ValueError("HeGraphClassifier requires y to be passed, but the target y is None")
    y = as_array(y)
    if is_images(X):
        X, y = image_list(X), column_or_1d(y, warn=True)
        check_consistent_length(X, y)
    else:
        X, y = checked_features(estimator, X, y, reset)
    check_classification_targets(y)
    return X, y


def rows_where(rows: np.ndarray, X: Any) -> Any:
    """Those rows of features or of a list of images."""
    return list(compress(X, rows)) if isinstance(X, list) else X[rows]


def unit_rows(features: np.ndarray) -> Tensor:
    """Features `[..., d]` with rows of unit norm, as float32; a row of zeros stays so. float16 is always scaled."""
    # A copy in memory that torch has aligned: the last bit of a matrix product can depend on the alignment
    rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).clone()
    scaled = F.normalize(rows, dim=-1)
    if features.dtype == np.float16:
        return scaled
    return torch.where((rows.norm(dim=-1, keepdim=True) - 1).abs() <= UNIT_TOLERANCE, rows, scaled)


def text_nodes(given: Any, name: str, num_classes: int, width: int) -> Tensor | None:
    """Text features as unit rows, shape `[K, d]`; None if none are given as the argument `name`.

    Raises:
        UserError: If scikit-learn does not allow them, or they have another shape or a row of zeros.
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
    if len(zeros := np.flatnonzero(~rows.any(axis=1))):
        raise UserError(f"{name} holds zeros alone for the class {zeros[0]}")
    return unit_rows(rows)


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
    if given is None:
        return _checked(own)
    if isinstance(given, Mapping):
        if missing := [label for label in labels if label not in given]:
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
    if names != own and set(names) == set(own):
        raise UserError(
            f"classnames are the labels themselves in another order ({', '.join(names[:3])}, ... for "
            f"{', '.join(own[:3])}, ...); leave classnames out, or give a dict from labels to names"
        )
    return names


def _checked(names: list[str]) -> list[str]:
    for position, name in enumerate(names):
        try:
            if not (name.strip() and name.encode()):  # half of a surrogate pair is no text
                raise ValueError("it is empty")
        except (AttributeError, ValueError) as error:
            raise UserError(f"the name of class {position} is no text: {name!a:.80}; give classnames") from error
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

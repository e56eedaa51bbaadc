"""Validation of the classifier's images: features, paths or PIL images, with their labels.

Shapes: n images, V views of each, K classes, d feature width.
"""

import hashlib
import os
from collections.abc import Sequence
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
from ..utils.text import shown
from .classes import check_label_array, label_indicators

Source = str | os.PathLike | Image.Image  # image that is not encoded yet

# Rows with this deviation from norm 1 are not rescaled, so that normalised features, such as those of a feature bank,
# keep every bit
UNIT_TOLERANCE = 1e-6
HASHED_GROUPS = 2**62  # groups with names have numbers from here on
FLOATS = [np.float32, np.float16]  # accepted types, others are converted to the first


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
    first_views = X if views is None else views[:, 0]
    y = None
    if labels:
        first_views, y = validate_data(estimator, first_views, dtype=FLOATS, reset=reset, **labels)
    else:
        first_views = validate_data(estimator, first_views, dtype=FLOATS, reset=reset)
    if views is None:
        views = first_views[:, None]
    return views, y


def checked_X_y(
    estimator: BaseEstimator, X: Any, y: Any, reset: bool = True, columns: Sequence[Any] | None = None
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Validate features `[n, V, d]` or a list of images, and their labels.

    Args:
        reset: Whether another width than before is allowed. Then the labels must not be empty.
        columns: As in `label_indicators`.

    Returns:
        The features or images; n labels, or label indicators, booleans of shape `[n, K]`; the sorted classes of `y`.

    Raises:
        ValueError, TypeError: If scikit-learn rejects `X` or `y`.
        UserError: If labels cannot be kept with their values and types, or indicators are invalid.
    """
    y = as_array(y)
    images = image_list(X)
    indicators = label_indicators(y, columns, may_be_empty=not reset)
    if indicators is None:
        check_label_array(y)
        return _with_one_label(estimator, X, y, images, reset)
    y, classes = indicators
    if images is None:
        X, y = checked_features(estimator, X, reset, y=y, multi_output=True)
    else:
        X = images
        check_consistent_length(X, y)
    return X, y, classes


def _with_one_label(
    estimator: BaseEstimator, X: Any, y: Any, images: list[Path | Image.Image] | None, reset: bool
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Result of `checked_X_y` for one label per image; `images` are those of `X`, or None for features."""
    if images is None:
        X, y = checked_features(estimator, X, reset, y=y, multi_output=False)
    else:
        X = images
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
    check_targets(y)
    return X, y, np.unique(y)


def check_targets(y: np.ndarray) -> None:
    """Check with scikit-learn that labels are classes. ValueError for other numbers.

    The labels are passed twice, because scikit-learn warns where most classes have one image.
    """
    check_classification_targets(np.tile(y, 2))


def checked_groups(groups: Any, num: int) -> Tensor | None:
    """Number the groups of n images, int64 of shape `[n]`; None without groups.

    A group has the same number in every call: an integer that is not negative has itself, a string a hash.

    Raises:
        UserError: If there are not `num` groups, or a group is neither a string nor an integer from 0 to 2^62 - 1.
    """
    if groups is None:
        return None
    if isinstance(groups, (list, tuple)):  # an array would turn integers beside strings into strings
        values = [group.item() if isinstance(group, np.generic) else group for group in groups]
    else:
        values = np.ravel(as_array(groups)).tolist()
    if len(values) != num:
        raise UserError(f"expected a group for each of the {num} images, got {len(values)} groups")
    return torch.tensor([_group_number(value) for value in values], dtype=torch.long)


def _group_number(group: Any) -> int:
    """Number of a group: an integer below `HASHED_GROUPS` itself, and for a string a hash above."""
    if isinstance(group, str) and group.strip():
        digest = hashlib.sha256(group.encode()).digest()
        return HASHED_GROUPS + int.from_bytes(digest[:8], "big") % HASHED_GROUPS
    if isinstance(group, int) and not isinstance(group, bool) and 0 <= group < HASHED_GROUPS:
        return group
    raise UserError(f"expected groups that are strings or integers from 0 on, got {shown(group)}")


def unit_rows(features: np.ndarray, name: str = "X") -> Tensor:
    """Scale rows of features `[..., d]` to unit norm, as float32.

    Rows of zeros stay zero. Rows whose norm is 1 within `UNIT_TOLERANCE` stay as they are, unless they are float16.

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
        UserError: If scikit-learn rejects them, the shape is wrong, or the norm of a row is zero or out of the range of
            float32.
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

"""Validation of labels and of class names.

A label is a string, a number or a boolean, and all labels of a classifier are of one of these kinds. So labels keep
their values and types in arrays, in model folders and in the answers of a server. Other labels are refused.

Shapes: n images, K classes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import chain, compress
from numbers import Real
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from scipy.sparse import issparse

from ..utils.errors import UserError
from ..utils.reading import validate
from ..utils.text import shown

Names = Mapping[Any, str] | Sequence[str]  # class names by label, or in the order of sorted labels
NotBlank = Annotated[str, Field(pattern=r"\S")]

LABEL_ERROR = "labels.type"  # code of the error for a label that is refused
UNLABELLED = -1  # label of an unlabelled row, as in scikit-learn


def check_label_values(labels: Iterable[Any], name: str) -> None:
    """Check that labels can be kept with their values and types.

    Args:
        labels: The labels.
        name: Name of the argument for messages.

    Raises:
        UserError: If a label is not a string, a finite number or a boolean, the labels are of several of these kinds,
            or an array cannot hold them without changing a value.
    """
    plain = [label.item() if isinstance(label, np.generic) else label for label in labels]
    kinds = [_kind(label) for label in plain]
    if "" in kinds:
        wrong = plain[kinds.index("")]
        problem = f"expected strings, finite numbers or booleans as labels in {name}"
        raise UserError(f"{problem}, got {shown(wrong)} ({type(wrong).__name__}); convert them", LABEL_ERROR)
    if len(set(kinds)) > 1:
        other = next(label for label, kind in zip(plain, kinds) if kind != kinds[0])
        problem = f"expected labels of one kind in {name}, got {kinds[0]} such as {shown(plain[0])}"
        raise UserError(f"{problem}, and {shown(other)}; convert them", LABEL_ERROR)
    distinct = list({(type(label), label): label for label in plain}.values())
    array = np.asarray(distinct)
    changed = [label for label, stored in zip(distinct, array.tolist()) if stored != label]
    are_integers = all(isinstance(label, int) for label in distinct)
    loses_integers = are_integers and len(distinct) > 0 and array.dtype.kind not in "biu"
    if changed or loses_integers:
        wrong = changed[0] if changed else max(distinct, key=abs)
        problem = f"an array cannot hold the label {shown(wrong)} in {name} beside the others without a change"
        raise UserError(f"{problem}; use strings, or integers of 64 bits", LABEL_ERROR)


def _kind(label: Any) -> str:
    """Kind of a label; "" for an object that cannot be a label."""
    if isinstance(label, bool):
        return "booleans"
    if isinstance(label, str):
        return "strings"
    if isinstance(label, int) or (isinstance(label, float) and math.isfinite(label)):
        return "numbers"
    return ""


def check_label_array(y: Any, name: str = "y") -> None:
    """Check labels `[n]` or `[n, 1]` before scikit-learn converts them, which changes mixed labels to strings.

    Arrays of numbers are left to scikit-learn, which refuses complex ones.

    Raises:
        UserError: As in `check_label_values`.
    """
    kind = getattr(getattr(y, "dtype", None), "kind", "O")
    if y is None or kind in "biufc":
        return
    labels = np.asarray(y, dtype=object)
    if labels.ndim > 0:
        check_label_values(labels.ravel().tolist(), name)


def label_indicators(
    y: Any, columns: Sequence[Any] | None, may_be_empty: bool = False
) -> tuple[np.ndarray, np.ndarray] | None:
    """Indicators, booleans of shape `[n, K]`, and the K sorted classes, for several labels per image.

    Args:
        y: Indicators of 0 and 1, shape `[n, K]` with K above 1, or a list of label sets. Lists of equal length with
            numbers are indicators.
        columns: Classes of the columns of indicators; None numbers them from 0.
        may_be_empty: Whether indicators without any label are allowed.

    Returns:
        None for one label per image.

    Raises:
        UserError: If a value is not 0 or 1, the number of columns is wrong, two columns have one class, no image has a
            label, or a label is refused by `check_label_values`.
    """
    rows = y.tolist() if str(getattr(y, "dtype", "")) == "object" else y
    if isinstance(rows, (list, tuple)) and rows and all(isinstance(row, (set, frozenset, list, tuple)) for row in rows):
        labels = list(chain(*rows))
        lengths = {len(row) for row in rows}
        is_matrix = isinstance(rows[0], (list, tuple)) and all(isinstance(label, Real) for label in labels)
        if not is_matrix or len(lengths) > 1:
            return indicators_of_sets(rows, labels)
    matrix = y.toarray() if issparse(y) else np.asarray(y)
    if matrix.ndim != 2 or matrix.shape[1] < 2:
        return None
    wrong = matrix[(matrix != 0) & (matrix != 1)]
    if len(wrong):
        problem = f"expected 0 and 1 in y of shape {[*matrix.shape]}, got {wrong.tolist()[0]!r}"
        raise UserError(f"{problem}; pass label sets as sets")
    if not may_be_empty and not matrix.any():
        raise UserError(f"expected at least one label in y, got only zeros of shape {[*matrix.shape]}", "labels.none")
    if columns is None:
        return matrix.astype(bool), np.arange(matrix.shape[1])
    if len(columns) != matrix.shape[1]:
        raise UserError(f"expected {len(columns)} columns in y, one for each class, got {matrix.shape[1]}")
    check_label_values(columns, "classes")
    classes, order = np.unique(np.asarray(columns), return_index=True)
    if len(classes) < len(columns):
        raise UserError(f"expected different classes for the columns of y, got {shown(list(columns))}")
    return matrix[:, order].astype(bool), classes


def indicators_of_sets(rows: Sequence[Iterable[Any]], labels: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Indicators and classes, as in `label_indicators`, of n label sets, which have the labels `labels` one by one."""
    if not labels:
        raise UserError("expected at least one label in y, got none", "labels.none")
    check_label_values(labels, "y")
    classes, places = np.unique(labels, return_inverse=True)
    images = np.repeat(np.arange(len(rows)), [len(list(row)) for row in rows])
    matrix = np.zeros((len(rows), len(classes)), dtype=bool)
    matrix[images, places] = True
    return matrix, classes


def split_labelled(X: Any, y: np.ndarray, classnames: Names | None) -> tuple[Any, np.ndarray, list[Any]]:
    """Split images into labelled and unlabelled ones.

    A label of -1 means unlabelled if all labels are integers and `classnames` names all other classes but not -1.

    Returns:
        The labelled images, their labels, and a list with the unlabelled images, empty if there are none.
    """
    rows = y == UNLABELLED
    if y.dtype.kind != "i" or not rows.any():
        return X, y, []
    if isinstance(classnames, Mapping):
        is_unlabelled = UNLABELLED not in classnames
    else:
        num_names = len(classnames) if isinstance(classnames, Sized) else 0
        names_others = 0 < num_names == len(np.unique(y)) - 1
        is_unlabelled = names_others or (num_names > 1 and bool(rows.all()))
    if not is_unlabelled:
        return X, y, []
    if isinstance(X, list):
        return list(compress(X, ~rows)), y[~rows], [list(compress(X, rows))]
    return X[~rows], y[~rows], [X[rows]]


def checked_names(classes: np.ndarray, classnames: Names | None) -> list[str]:
    """Validate the names of the classes.

    Args:
        classes: The K labels in sorted order.
        classnames: Names in that order, or a dict from labels to names; None takes the labels as names.

    Returns:
        The K names, in the order of `classes_`.

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
    names = validate(list[NotBlank], names, "classnames")
    if not isinstance(classnames, Mapping) and names != own and set(names) == set(own):
        problem = f"classnames are the labels in another order ({', '.join(names[:3])}, ...)"
        raise UserError(f"{problem}; omit them, or pass a dict from labels to names")
    return names

"""Accuracy, macro accuracy and macro F1 in percent, and the choice of a candidate by its validation accuracy.

Shapes: B images of a batch, K classes, d feature width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...features.bank import FeatureBank

T = TypeVar("T")


def score(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy and macro F1 of logits `[M, K]` in percent, as computed by Dassl's evaluator.

    Macro F1 is the mean over the classes that occur in `labels`.

    Returns:
        The keys "accuracy" and "macro_f1".
    """
    from sklearn.metrics import f1_score  # takes a second to import, and a finished run is not scored again

    predicted = logits.argmax(dim=1).cpu().numpy()
    true = labels.cpu().numpy()
    f1 = float(f1_score(true, predicted, average="macro", labels=np.unique(true)))
    return {"accuracy": accuracy(logits, labels), "macro_f1": 100.0 * f1}


def score_multilabel(
    logits: Tensor, labels: Tensor, classnames: Sequence[str], thresholds: Tensor | None = None
) -> dict[str, Any]:
    """Scores of logits `[M, K]` with indicators `[M, K]`, in percent.

    Args:
        classnames: The K class names, which are distinct.
        thresholds: Least logit with which a class is predicted, `[K]`; None: F1 is None.

    Returns:
        The keys "map", the mean of "average_precision" over the classes with test images; "average_precision", class
        name -> average precision, or None without test images; "macro_f1" over the same classes, and "micro_f1". All
        are None if no class has test images.
    """
    from sklearn.metrics import average_precision_score, f1_score  # takes a second to import

    scores = logits.cpu().numpy()
    true = labels.cpu().numpy()
    tested = np.flatnonzero(true.any(axis=0)).tolist()
    precisions = {k: 100 * float(average_precision_score(true[:, k], scores[:, k])) for k in tested}
    macro = None
    micro = None
    if thresholds is not None and tested:
        predicted = (logits >= thresholds.to(logits.device)).cpu().numpy()
        macro = 100 * float(np.mean(f1_score(true, predicted, average=None, zero_division=0)[tested]))
        micro = 100 * float(f1_score(true, predicted, average="micro"))
    mean = float(np.mean(list(precisions.values()))) if precisions else None
    by_class = {name: precisions.get(k) for k, name in enumerate(classnames)}
    return {"map": mean, "macro_f1": macro, "micro_f1": micro, "average_precision": by_class}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Accuracy of logits `[M, K]` in percent. Logits and labels `[M]` may be on different devices."""
    return 100.0 * int((logits.argmax(dim=1) == labels.to(logits.device)).sum()) / len(labels)


def macro_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean accuracy in percent over the classes that occur in `labels` `[M]`, of logits `[M, K]`."""
    labels = labels.to(logits.device)
    correct = (logits.argmax(dim=1) == labels).double()
    images = labels.bincount()
    tested = images > 0
    by_class = labels.bincount(correct)[tested] / images[tested]
    return 100.0 * by_class.mean().item()


def choose(accuracies: Mapping[T, float], distance: Callable[[T], float] | None = None) -> tuple[T, dict]:
    """Choose the candidate with the best validation accuracy.

    Args:
        accuracies: Validation accuracy of each candidate, in percent.
        distance: Breaks ties: the candidate of least distance wins. None: the first one.

    Returns:
        The candidate, and an entry for the record: {"value": candidate, "candidates": [[candidate, accuracy], ...]}.
    """
    candidates = list(accuracies) if distance is None else sorted(accuracies, key=distance)
    best = max(candidates, key=accuracies.__getitem__)
    return best, {"value": best, "candidates": [[value, round(accuracies[value], 4)] for value in candidates]}


def has_val(bank: FeatureBank) -> bool:
    """Whether a task has validation images."""
    return bank.val_features is not None and len(bank.val_features) > 0


def val_images(bank: FeatureBank) -> tuple[Tensor, Tensor]:
    """Validation features `[L, d]` and labels `[L]`; ValueError if there are none (see `has_val`)."""
    if bank.val_features is None or bank.val_labels is None:
        raise ValueError("this task has no validation images; call has_val first")
    return bank.val_features, bank.val_labels


@torch.no_grad()
def val_accuracy(logits: Callable[[Tensor], Tensor], bank: FeatureBank) -> float:
    """Validation accuracy in percent of a classifier that maps unit-norm features `[L, d]` to logits `[L, K]`."""
    features, labels = val_images(bank)
    return accuracy(logits(features), labels)

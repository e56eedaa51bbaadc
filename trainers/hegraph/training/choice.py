"""Scores of logits against labels, in percent, and the choice among candidates by their accuracy on val.

Shapes: B images of a batch, K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..features.bank import FeatureBank

T = TypeVar("T")


def score(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """ "accuracy" and "macro_f1" in percent, as Dassl's evaluator computes them, of logits `[M, K]`.

    Macro F1 is over the classes that occur in `labels`.
    """
    from sklearn.metrics import f1_score  # takes a second to import, and a finished run is not scored again

    predicted, true = logits.argmax(dim=1).cpu().numpy(), labels.cpu().numpy()
    f1 = float(f1_score(true, predicted, average="macro", labels=np.unique(true)))
    return {"accuracy": accuracy(logits, labels), "macro_f1": 100.0 * f1}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Accuracy alone, in percent: a search needs it often, and F1 is slow. Logits and labels may be on two devices."""
    return 100.0 * int((logits.argmax(dim=1) == labels.to(logits.device)).sum()) / len(labels)


def choose(accuracies: Mapping[T, float], distance: Callable[[T], float] | None = None) -> tuple[T, dict]:
    """The candidate with the best accuracy on val; of equals, which are often several, the one at the least `distance`,
    or the first.

    `accuracies` are those of all candidates in percent. Returns the candidate, and for the record {"value": the
    candidate, "candidates": [[candidate, accuracy], ...]}.
    """
    candidates = list(accuracies) if distance is None else sorted(accuracies, key=distance)
    best = max(candidates, key=accuracies.__getitem__)
    return best, {"value": best, "candidates": [[value, round(accuracies[value], 4)] for value in candidates]}


def has_val(bank: FeatureBank) -> bool:
    """Whether the task has val images to choose on. A val split without images counts as none."""
    return bank.val_features is not None and len(bank.val_features) > 0


def val_images(bank: FeatureBank) -> tuple[Tensor, Tensor]:
    """The val features `[L, d]` and labels `[L]`; ValueError if the task has none: ask `has_val` first."""
    if bank.val_features is None or bank.val_labels is None:
        raise ValueError("this task has no val images; ask has_val first")
    return bank.val_features, bank.val_labels


@torch.no_grad()
def val_accuracy(logits: Callable[[Tensor], Tensor], bank: FeatureBank) -> float:
    """The accuracy of a classifier, from unit-norm image features to logits, on the task's val split, in percent."""
    features, labels = val_images(bank)
    return accuracy(logits(features), labels)

"""Scores of logits against labels, in percent."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def score(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy and macro F1, in percent, as Dassl's evaluator computes them.

    Args:
        logits: Shape `[M, K]`.
        labels: Shape `[M]`.

    Returns:
        "accuracy" and "macro_f1"; the latter over the classes that occur in `labels`.
    """
    from sklearn.metrics import f1_score  # takes a second to import, and a finished run is not scored again

    predicted, true = logits.argmax(dim=1).cpu().numpy(), labels.cpu().numpy()
    return {
        "accuracy": accuracy(logits, labels),
        "macro_f1": 100.0 * float(f1_score(true, predicted, average="macro", labels=np.unique(true))),
    }


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Accuracy alone, in percent: a search needs it often, and F1 is slow. Logits and labels may be on two devices."""
    return 100.0 * int((logits.argmax(dim=1) == labels.to(logits.device)).sum()) / len(labels)

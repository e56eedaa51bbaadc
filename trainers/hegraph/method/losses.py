"""The two named terms of the training loss. Eq. 7-9 of HeGraphAdapter."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .classifier import Logits


def adapter_losses(logits: Logits, labels: Tensor, visual_weight: float, visual_scale: float) -> dict[str, Tensor]:
    """Cross-entropy of each classifier.

    Args:
        logits: Both `[B, K]`, or `visual` None.
        labels: Shape `[B]`.
        visual_weight: `lambda` (Eq. 9).
        visual_scale: Factor on the visual logits: they are sums of affinities, which CLIP's `tau` does not scale.

    Returns:
        "text_loss" and, with a visual classifier, "visual_loss", which already holds `visual_weight`; the total
        is their sum.
    """
    losses = {"text_loss": F.cross_entropy(logits.text, labels)}
    if logits.visual is not None and visual_weight > 0:
        losses["visual_loss"] = visual_weight * F.cross_entropy(visual_scale * logits.visual, labels)
    return losses

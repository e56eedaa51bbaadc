"""The two terms of the loss (Eq. 9), against sums written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainers.hegraph.method.cache import adapter_losses
from trainers.hegraph.method.model import Logits

LABELS = torch.tensor([1, 0, 2])


@pytest.fixture
def logits() -> Logits:
    generator = torch.Generator().manual_seed(0)
    return Logits(torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator))


def cross_entropy(logits: Tensor, scale: float = 1.0) -> float:
    """Mean of -log softmax at the label, written out."""
    rows = [[scale * value for value in row] for row in logits.tolist()]
    terms = [math.log(sum(math.exp(v) for v in row)) - row[y] for row, y in zip(rows, LABELS.tolist())]
    return sum(terms) / len(terms)


def test_the_terms_are_the_two_cross_entropies_weighted_and_scaled(logits):
    losses = adapter_losses(logits, LABELS, visual_weight=0.1, visual_scale=3.0)
    assert set(losses) == {"text_loss", "visual_loss"}
    assert losses["text_loss"].item() == pytest.approx(cross_entropy(logits.text), rel=1e-5)
    assert losses["visual_loss"].item() == pytest.approx(0.1 * cross_entropy(logits.visual, 3.0), rel=1e-5)


def test_without_a_visual_classifier_the_text_term_is_the_loss(logits):
    losses = adapter_losses(logits._replace(visual=None), LABELS, visual_weight=0.1, visual_scale=3.0)
    assert set(losses) == {"text_loss"}


def test_without_a_weight_the_visual_term_is_not_computed(logits):
    assert set(adapter_losses(logits, LABELS, visual_weight=0.0, visual_scale=3.0)) == {"text_loss"}


def test_each_term_trains_its_own_logits(logits):
    text, visual = (x.requires_grad_() for x in logits)
    losses = adapter_losses(Logits(text, visual), LABELS, visual_weight=0.5, visual_scale=2.0)
    losses["text_loss"].backward()
    assert text.grad is not None and visual.grad is None
    losses["visual_loss"].backward()
    # The gradient of cross-entropy is softmax minus one-hot, over the batch; times weight and scale
    expected = 0.5 * 2.0 * ((2.0 * visual.detach()).softmax(1) - torch.eye(4)[LABELS]) / 3
    torch.testing.assert_close(visual.grad, expected)

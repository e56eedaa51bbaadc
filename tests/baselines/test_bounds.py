"""Options at the ends of their ranges are taken, and just beyond them they are refused."""

from __future__ import annotations

import pytest
import torch
from by_hand import bank_of, random_unit, tensor

from trainers.hegraph.baselines.coop import LearnedPrompts
from trainers.hegraph.utils.errors import UserError

IMAGES, TEXT = random_unit(5, 4, seed=1), random_unit(3, 4, seed=2)  # features are 4 wide
QUICK = {
    "CLIPAdapter": {"EPOCHS": [[1, 1]]},
    "GraphAdapter": {"EPOCHS": 1},
    "ProtoCLIP": {"EPOCHS_WITHOUT_VAL": [[1, 1]]},
}


def bank():
    return bank_of(IMAGES, [0, 1, 2, 0, 1], TEXT)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("CLIPAdapter", {"RATIO": 0.0}),
        ("CLIPAdapter", {"RATIO": 1.0}),
        ("CLIPAdapter", {"REDUCTION": 1}),
        ("CLIPAdapter", {"REDUCTION": 4}),
        ("GraphAdapter", {"ALPHA": 0.0}),
        ("GraphAdapter", {"ALPHA": 1.0}),
        ("GraphAdapter", {"BETA": 0.0}),
        ("GraphAdapter", {"BETA": 1.0}),
        ("GraphAdapter", {"GROUPS": 1}),
        ("APE", {"CHANNELS": [["", 1.0]]}),
        ("APE", {"CHANNELS": [["", 0.01]]}),
        ("LPPlusPlus", {"STEPS": 1, "BLOCK": 1}),
        ("LPPlusPlus", {"STEPS": 4, "BLOCK": 4}),
        ("LinearProbe", {"C": 0.01}),
        ("ProtoCLIP", {"RATIO": 1.0, "REDUCTION": 4, "ALPHA": 0.0, "BETA": 0.5, "TEMPERATURE": 0.5}),
        ("ProtoCLIP", {"RATIO": 0.0, "REDUCTION": 1, "ALPHA": 1.0}),
    ],
    ids=str,
)
def test_the_ends_of_a_range_are_taken(fit, name, changed):
    logits = fit(name, bank(), **QUICK.get(name, {}) | changed).logits(tensor(IMAGES))
    assert logits.shape == (5, 3)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("CLIPAdapter", {"RATIO": -0.1}, r"RATIO must lie in 0 \.\.\. 1, got -0\.1"),
        ("CLIPAdapter", {"RATIO": 1.1}, r"RATIO must lie in 0 \.\.\. 1, got 1\.1"),
        ("CLIPAdapter", {"REDUCTION": 0}, r"REDUCTION must lie in 1 \.\.\. 4, the width of the features, got 0"),
        ("CLIPAdapter", {"REDUCTION": 5}, r"REDUCTION must lie in 1 \.\.\. 4, the width of the features, got 5"),
        ("GraphAdapter", {"ALPHA": -0.1}, r"ALPHA and BETA must lie in 0 \.\.\. 1, got -0\.1"),
        ("GraphAdapter", {"ALPHA": 1.1}, r"ALPHA and BETA must lie in 0 \.\.\. 1, got 1\.1"),
        ("GraphAdapter", {"BETA": -0.1}, r"ALPHA and BETA must lie in 0 \.\.\. 1, got .* and -0\.1"),
        ("GraphAdapter", {"BETA": 1.1}, r"ALPHA and BETA must lie in 0 \.\.\. 1, got .* and 1\.1"),
        ("GraphAdapter", {"GROUPS": 0}, "GROUPS must be at least 1, got 0"),
        ("APE", {"CHANNELS": [["", 0.0]]}, r"above 0 and at most 1, got 0\.0"),
        ("APE", {"CHANNELS": [["", 1.01]]}, r"above 0 and at most 1, got 1\.01"),
        ("LPPlusPlus", {"STEPS": 3, "BLOCK": 0}, "STEPS must be at least BLOCK, and that 1, got 3 and 0"),
        ("LPPlusPlus", {"STEPS": 3, "BLOCK": 4}, "STEPS must be at least BLOCK, and that 1, got 3 and 4"),
        ("LinearProbe", {"C": 0.0}, r"C and CANDIDATES must be above 0, got 0\.0"),
        ("LinearProbe", {"CANDIDATES": [1.0, 0.0]}, "C and CANDIDATES must be above 0"),
    ],
    ids=str,
)
def test_just_beyond_a_range_is_refused(fit, name, changed, words):
    with pytest.raises(UserError, match=words):
        fit(name, bank(), **QUICK.get(name, {}) | changed)


def test_a_context_of_one_vector_is_enough_and_starts_small(mini):
    assert LearnedPrompts(mini, 1, seed=1).context.shape == (1, mini.text_width)
    context = LearnedPrompts(mini, 200, seed=1).context
    assert context.std().item() == pytest.approx(0.02, rel=0.05)
    assert context.mean().item() == pytest.approx(0, abs=0.001)
    assert context.requires_grad
    assert torch.equal(context, LearnedPrompts(mini, 200, seed=1).context)
    assert not torch.equal(context, LearnedPrompts(mini, 200, seed=2).context)

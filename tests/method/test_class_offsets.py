"""Class offsets: towards the frequencies of the training images, and towards equal classes."""

import math

import pytest
import torch
from torch.testing import assert_close

import trainers.hegraph.method.head.class_offsets as class_offsets_module
from trainers.hegraph.method.head.class_offsets import class_offsets, left_out_offsets


@pytest.mark.parametrize("factor", [0.06, 0.09, 0.125, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0])
def test_class_offsets_move_masses_towards_counts(monkeypatch, factor):
    # Times the factor, the logits are (log 6, 0, 0) for four images, of which three are of class 0 and one of class 1:
    # the NLL is least there. The masses are 3, 0.5 and 0.5, the counts 3, 1 and 0, and the prior is 4
    logits, labels = torch.tensor([math.log(6) / factor, 0.0, 0.0]).expand(4, 3), torch.tensor([0, 0, 0, 1])
    steps = [torch.tensor([7 / 7, 5 / 4.5, 4 / 4.5]).log() / factor]
    for _ in range(19):
        mass = 4 * ((logits[0] + steps[-1]) * factor).softmax(dim=0)
        steps.append(steps[-1] + (torch.tensor([7.0, 5.0, 4.0]) / (mass + 4)).log() / factor)
    assert_close(class_offsets(logits, labels, "training"), steps[-1] - steps[-1].mean(), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(class_offsets_module, "OFFSET_STEPS", 1)
    assert_close(class_offsets(logits, labels, "training"), steps[0] - steps[0].mean(), rtol=1e-4, atol=1e-4)


def test_balanced_offsets_by_hand(monkeypatch):
    # Equal logits: every probability is 1/2. Class 0 has 3 of 4 images and S' = 2, so that its images weigh 2/3 and the
    # one of class 1 weighs 2. Both masses are 2, in units of each class 3 and 1, which are the counts
    monkeypatch.setattr(class_offsets_module, "OFFSET_STEPS", 1)
    logits = torch.zeros(4, 2)
    labels = torch.tensor([0, 0, 0, 1])
    assert_close(class_offsets(logits, labels, "balanced"), torch.zeros(2))
    copied = torch.tensor([7 / 6, 5 / 6]).log()  # all temperatures tie, and 1 is taken
    assert_close(class_offsets(logits, labels, "training"), copied - copied.mean(), rtol=1e-4, atol=1e-4)


def test_both_priors_agree_on_equal_classes():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(60, 6, generator=generator)
    labels = torch.arange(6).repeat(10)
    assert torch.equal(class_offsets(logits, labels, "balanced"), class_offsets(logits, labels, "training"))


@pytest.mark.parametrize("prior", ["balanced", "training"])
def test_left_out_offsets_equal_separate_fits(prior):
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0] * 7 + [1] * 2 + [2])
    logits = 4 * torch.randn(len(labels), 3, generator=generator, dtype=torch.float64)
    found = left_out_offsets(logits, labels, prior)
    for row in range(len(labels)):
        others = torch.arange(len(labels)) != row
        expected = class_offsets(logits[others], labels[others], prior)
        assert_close(found[row], expected - expected.mean(), rtol=1e-6, atol=1e-6)

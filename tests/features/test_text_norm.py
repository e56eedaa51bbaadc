"""A bank may keep the norms of its text features; where they are not known the log says what is taken."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph.features.bank import FeatureBank, load_bank, text_norms, text_with_norm


@pytest.fixture
def bank(tiny_bank) -> FeatureBank:
    return load_bank(tiny_bank)


def test_the_text_of_a_bank_has_the_norms_that_it_keeps(bank, caplog):
    norms = torch.arange(9.0, 14.0)
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        text = text_with_norm(replace(bank, text_norms=norms))
    torch.testing.assert_close(text.norm(dim=1), norms)
    torch.testing.assert_close(F.normalize(text, dim=1), bank.text_positive)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("ViT-B-32-quickgelu/openai", 9.9),
        ("ViT-B/32/openai", 9.9),
        ("my-ViT-B-32/openai", 1.0),
    ],
)
def test_where_they_are_not_known_that_of_openais_vit_b_32_is_and_what_is_taken_is_said(bank, caplog, name, norm):
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        norms = text_norms(replace(bank, backbone=name))
    torch.testing.assert_close(norms, torch.full((5,), norm))
    [message] = caplog.messages
    assert f"the bank of Tiny holds no norms of its text features: {norm} is taken for all" in message
    assert (repr(name) in message) == (norm == 1.0)

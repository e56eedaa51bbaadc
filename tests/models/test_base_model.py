"""The backbone that a model card names to the Hub: by the Hub's own name, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainers.hegraph import HeGraphClassifier
from trainers.hegraph.models.card import card_header
from trainers.hegraph.models.saved import SavedModel
from trainers.hegraph.models.schema import Backbone


@pytest.fixture(scope="module")
def model() -> SavedModel:
    return HeGraphClassifier(variant="base").fit(torch.eye(4), [0, 1, 0, 1]).model_


@pytest.mark.parametrize(
    ("name", "pretrained", "expected"),
    [
        ("ViT-B-32-quickgelu", "openai", "timm/vit_base_patch32_clip_224.openai"),
        ("RN50-quickgelu", "auto", "timm/resnet50_clip.openai"),
        ("ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("hf-hub:org/birds", "", "org/birds"),
        ("hf-hub:org/birds", "auto", "org/birds"),
    ],
)
def test_a_backbone_of_the_hub_is_named_as_the_hub_names_it(name, pretrained, expected, model):
    backbone = Backbone(title="any", model=name, pretrained=pretrained)
    assert card_header(replace(model, backbone=backbone))["base_model"] == expected


@pytest.mark.parametrize(
    ("name", "pretrained"),
    [("hegraph-mini", ""), ("hegraph-mini", "auto"), ("local-dir:birds", ""), ("ViT-B-32", __file__), ("", "")],
)
def test_a_backbone_that_the_hub_does_not_have_is_left_out(name, pretrained, model):
    backbone = Backbone(title="any", model=name, pretrained=pretrained)
    assert "base_model" not in card_header(replace(model, backbone=backbone))

"""Encoders without text: `Backbone` says so in one place, `has_text`."""

from dataclasses import replace

import pytest
import torch

from trainers.hegraph import UserError, load_backbone
from trainers.hegraph.features.backbones.base import Backbone


@pytest.fixture(scope="module")
def image_only() -> Backbone:
    return replace(load_backbone("mini"), tokenizer=None)


def test_encoder_without_text_gives_image_features_only(image_only):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert load_backbone("mini").has_text and not image_only.has_text
    assert image_only.width == 64
    assert image_only.logit_scale == 100
    assert torch.equal(image_only.encode_images(pixels), load_backbone("mini").encode_images(pixels))


def test_text_of_an_encoder_without_text_is_refused(image_only):
    for encode in (lambda: image_only.encode_text([]), lambda: image_only.context_tokens(["X cat."], 1)):
        with pytest.raises(UserError, match=r"encodes images only.*choose a backbone with text"):
            encode()

"""What a frozen CLIP gives: features, and the transforms of its images."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tiny import (
    AUGMENTATION,
    kinds,
    wrap,
)
from torchvision import transforms as T


def test_a_loaded_model_is_frozen_and_in_evaluation_mode(mini):
    assert not any(parameter.requires_grad for parameter in mini.model.parameters())
    assert not any(module.training for module in mini.model.modules())


def test_features_are_unit_norm_float32_without_gradient(mini):
    pixels = torch.randn(5, 3, *mini.input_size, generator=torch.Generator().manual_seed(0))
    for features, count in ((mini.encode_images(pixels), 5), (mini.encode_text(["one", "two"]), 2)):
        assert (features.dtype, features.requires_grad, features.shape) == (torch.float32, False, (count, mini.width))
        torch.testing.assert_close(features.norm(dim=1), torch.ones(count))


def test_sentences_are_encoded_alike_in_any_batches(mini):
    sentences = [f"a photo of a {word}." for word in ("one", "two", "three", "four", "five")]
    torch.testing.assert_close(mini.encode_text(sentences, batch_size=2), mini.encode_text(sentences))


def test_the_logit_scale_is_the_exponential_of_the_models(mini):
    assert mini.logit_scale == pytest.approx(mini.model.logit_scale.exp().item())
    assert mini.logit_scale > 1


def test_training_images_are_cropped_flipped_and_normalised(mini):
    transform = mini.training_transform(AUGMENTATION, (0.3, 0.9), "bilinear")
    assert {"RandomResizedCrop", "RandomHorizontalFlip"} <= set(kinds(transform))
    assert not {"Resize", "CenterCrop"} & set(kinds(transform))
    [crop] = [step for step in transform.transforms if isinstance(step, T.RandomResizedCrop)]
    assert crop.size == (mini.input_size[0], mini.input_size[0])
    assert crop.scale == (0.3, 0.9)
    assert crop.interpolation == T.InterpolationMode.BILINEAR
    normalize = transform.transforms[-1]
    assert isinstance(normalize, T.Normalize)
    assert tuple(normalize.mean) == mini.mean
    assert tuple(normalize.std) == mini.std


def test_without_a_crop_training_images_are_resized_as_for_testing(mini):
    assert kinds(mini.training_transform(("normalize",), (0.08, 1.0), "bicubic")) == kinds(mini.preprocess)


def test_no_flip_happens_unless_asked_for(mini):
    assert "RandomHorizontalFlip" not in kinds(mini.training_transform(AUGMENTATION[:1], (0.08, 1.0), "bicubic"))


def test_building_a_training_transform_leaves_the_test_transform_alone(mini):
    before = repr(mini.preprocess)
    mini.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic")
    assert repr(mini.preprocess) == before


def test_both_transforms_give_pixels_of_the_models_size(mini):
    image = Image.new("L", (50, 20), 100)
    for transform in (mini.preprocess, mini.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic")):
        assert transform(image.convert("RGB")).shape == (3, mini.input_size[0], mini.input_size[0])


@pytest.mark.parametrize("name", ["RN101-quickgelu", "ViT-B-32-quickgelu"])
def test_width_and_resolution_are_the_models(name):
    backbone = wrap(name)
    assert (backbone.width, backbone.input_size, backbone.input_size[0]) == (512, (224, 224), 224)

"""The frozen CLIP: what loads, what is refused, and what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from trainers.hegraph.backbone import MINI_WEIGHTS, Backbone, create_model, load_backbone
from trainers.hegraph.errors import UserError

AUGMENTATION = ("random_resized_crop", "random_flip", "normalize")


@pytest.fixture(scope="module")
def mini() -> Backbone:
    return load_backbone("hegraph-mini")


@pytest.mark.parametrize(
    ("name", "nearest"), [("vit-b-16", "ViT-B-16"), ("RN5O", "RN50"), ("hegraph_mini", "hegraph-mini")]
)
def test_an_unknown_model_is_refused_with_the_nearest_name(name, nearest):
    with pytest.raises(UserError, match=rf"unknown backbone '{name}'; did you mean '{nearest}'\?"):
        load_backbone(name, "openai-weights")


def test_no_model_at_all_names_the_key():
    with pytest.raises(UserError, match=r"MODEL\.BACKBONE\.NAME"):
        load_backbone("", "")


def test_no_weights_name_the_key():
    with pytest.raises(UserError, match=r"MODEL\.BACKBONE\.PRETRAINED is empty; 'RN50' needs"):
        load_backbone("RN50")


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16"])
def test_openai_weights_without_quickgelu_are_refused(name):
    with pytest.raises(UserError, match=rf"QuickGELU: use '{name}-quickgelu', not '{name}'"):
        load_backbone(name, "openai")


def test_an_unknown_tag_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"'yfcc15n'.* did you mean 'yfcc15m'\?.*cc12m"):
        load_backbone("RN50", "yfcc15n")


def test_a_weights_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pt"):
        load_backbone("RN50", str(tmp_path / "nowhere.pt"))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 50])
def test_a_damaged_weights_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot load hegraph-mini") as caught:
        load_backbone("hegraph-mini", str(tmp_path / name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"cannot load hegraph-mini .*other\.pt"):
        load_backbone("hegraph-mini", str(tmp_path / "other.pt"))


def test_pickled_code_in_weights_is_refused_and_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"state_dict": Evil()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="cannot load hegraph-mini"):
        load_backbone("hegraph-mini", str(tmp_path / "weights.pt"))
    assert not (tmp_path / "executed").exists()


def test_mini_loads_its_shipped_weights_without_being_told(mini):
    assert mini.fingerprint == load_backbone("hegraph-mini", str(MINI_WEIGHTS)).fingerprint
    assert mini.name.startswith("hegraph-mini/")


def test_a_loaded_model_is_frozen_and_in_evaluation_mode(mini):
    assert not any(parameter.requires_grad for parameter in mini.model.parameters())
    assert not any(module.training for module in mini.model.modules())


def test_image_features_are_unit_norm_float32_without_gradient(mini):
    pixels = torch.randn(5, 3, mini.image_size, mini.image_size, generator=torch.Generator().manual_seed(0))
    features = mini.encode_images(pixels)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert len(features) == 5
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))


def test_text_features_are_unit_norm_float32_without_gradient(mini):
    features = mini.encode_text(["one", "two", "three"])
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert features.shape[1] == mini.encode_images(torch.zeros(1, 3, mini.image_size, mini.image_size)).shape[1]


def test_sentences_are_encoded_alike_in_any_batches(mini):
    sentences = [f"a photo of a {word}." for word in ("one", "two", "three", "four", "five")]
    torch.testing.assert_close(mini.encode_text(sentences, batch_size=2), mini.encode_text(sentences))


def test_the_logit_scale_is_the_exponential_of_the_models(mini):
    assert mini.logit_scale == pytest.approx(mini.model.logit_scale.exp().item())
    assert mini.logit_scale > 1


def test_other_weights_have_another_fingerprint(mini, tmp_path):
    model, _, _ = create_model("hegraph-mini")
    torch.save(model.state_dict(), tmp_path / "other.pt")
    other = load_backbone("hegraph-mini", str(tmp_path / "other.pt"))
    assert other.fingerprint["weights"] != mini.fingerprint["weights"]
    assert other.name == "hegraph-mini/other"


def test_a_fingerprint_holds_plain_values_that_do_not_name_an_address(mini):
    assert all(isinstance(value, str) for value in mini.fingerprint.values())
    assert " at 0x" not in "".join(mini.fingerprint.values())


def kinds(transform: T.Compose) -> list[str]:
    return [type(step).__name__ for step in transform.transforms]


def test_training_images_are_cropped_flipped_and_normalised(mini):
    transform = mini.training_transform(AUGMENTATION, (0.3, 0.9), "bilinear")
    assert {"RandomResizedCrop", "RandomHorizontalFlip"} <= set(kinds(transform))
    assert not {"Resize", "CenterCrop"} & set(kinds(transform))
    [crop] = [step for step in transform.transforms if isinstance(step, T.RandomResizedCrop)]
    assert crop.size == (mini.image_size, mini.image_size)
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
        assert transform(image.convert("RGB")).shape == (3, mini.image_size, mini.image_size)

"""A trained model with its backbone: images to features, whatever the images are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from trainers.hegraph.backbones import loading
from trainers.hegraph.backbones.clip import Backbone
from trainers.hegraph.backbones.loading import load_backbone
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.models.saved import Backbone as BackboneConfig
from trainers.hegraph.models.saved import SavedModel
from trainers.hegraph.utils.errors import UserError


@pytest.fixture(scope="module")
def mini() -> Backbone:
    return load_backbone("hegraph-mini")


@pytest.fixture
def mini_model(saved_model: Callable[..., SavedModel], mini: Backbone, unit_features) -> SavedModel:
    """A model of three classes on mini's features."""
    return saved_model(
        classifier=FoldedClassifier(20 * unit_features(3, 64)),
        text_positive=unit_features(3, 64, seed=2),
        backbone=BackboneConfig(title=mini.name, model="hegraph-mini", fingerprint=mini.fingerprint),
        transfer=None,
        transfer_rule="none",
        class_nodes=None,
    )


def test_a_backbone_of_other_features_is_refused_and_the_difference_is_named(mini_model, mini, unit_features):
    fingerprint = mini.fingerprint | {"preprocess": "else"}
    other = mini_model.backbone.model_copy(update={"fingerprint": fingerprint})
    for changes, message in (
        ({"backbone": other}, f"the backbone {mini.name} here has another preprocess; give"),
        ({"classifier": FoldedClassifier(unit_features(3, 32))}, "features of width 64, but the model takes 32"),
    ):
        with pytest.raises(UserError, match=message):
            ImageModel(mini_model.model_copy(update=changes), mini)


def test_a_model_of_a_bank_needs_its_backbone_to_be_named(mini_model, mini, caplog):
    of_bank = mini_model.model_copy(update={"backbone": BackboneConfig(title="RN50/openai")})
    with pytest.raises(UserError, match=r'from a feature bank \(RN50/openai\).*--backbone NAME.*backbone="NAME"'):
        ImageModel.load(of_bank)
    ImageModel.load(of_bank, backbone="hegraph-mini")
    assert "from says 'RN50/openai'; you say that its features are those of hegraph-mini" in caplog.text
    caplog.clear()
    ImageModel(mini_model.model_copy(update={"backbone": BackboneConfig(title=mini.name)}), mini)
    assert caplog.text == ""


def test_weights_are_those_of_the_model_for_its_own_backbone_alone(mini_model, monkeypatch):
    named = BackboneConfig(title="RN50/openai", model="RN50", pretrained="openai")
    of_rn50, loaded = mini_model.model_copy(update={"backbone": named}), []
    monkeypatch.setattr(loading, "load_backbone", lambda *words: loaded.append(words) or 1 / 0)
    for words in ((), ("RN50",), ("RN101", "yfcc15m"), ("RN101",)):
        with pytest.raises(ZeroDivisionError):
            ImageModel.load(of_rn50, "cpu", *words)
    own = ("RN50", "openai", "cpu", "auto")
    assert loaded == [own, own, ("RN101", "yfcc15m", "cpu", "auto"), ("RN101", "", "cpu", "auto")]


def test_features_are_those_of_the_backbones_own_transform_whatever_the_batches(tmp_path, mini_model, mini):
    paths = [tmp_path / f"{row}.png" for row in range(7)]
    for row, path in enumerate(paths):
        open_digit(f"digits/{row:04d}").save(path)
    expected = mini.encode_images(torch.stack([mini.preprocess(Image.open(path).convert("RGB")) for path in paths]))
    model = ImageModel(mini_model, mini)
    assert torch.equal(model.features(paths), expected)
    assert torch.allclose(model.features(map(str, paths), batch_size=2), expected, atol=1e-6)
    assert torch.equal(model.features([Image.open(path) for path in paths]), expected)
    assert (model.features([]).shape, model.probabilities([]).shape) == ((0, 64), (0, 3))
    assert torch.equal(model.probabilities(paths), mini_model.probabilities(expected))
    with pytest.raises(UserError, match=f"cannot read {tmp_path / 'none.png'}: No such file"):
        model.features([*paths, tmp_path / "none.png"])

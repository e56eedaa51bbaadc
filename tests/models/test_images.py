"""A trained model with its backbone: images to features, whatever the images are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainers.hegraph.backbones.clip import Backbone
from trainers.hegraph.backbones.loading import load_backbone
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.datasets.images import to_rgb
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.models import images as reading
from trainers.hegraph.models.folder import save_model
from trainers.hegraph.models.images import ImageModel, Reader, backbone_to_load
from trainers.hegraph.models.saved import Backbone as BackboneConfig
from trainers.hegraph.models.saved import SavedModel
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.threads import AHEAD


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


def with_backbone(model: SavedModel, **changes: object) -> SavedModel:
    return model.model_copy(update={"backbone": model.backbone.model_copy(update=changes)})


def write_digits(folder: Path, number: int) -> list[Path]:
    paths = [folder / f"{row}.png" for row in range(number)]
    for row, path in enumerate(paths):
        open_digit(f"digits/{row:04d}").save(path)
    return paths


# The backbone


def test_a_model_is_loaded_with_the_backbone_that_it_names(tmp_path, mini_model, mini):
    save_model(mini_model, tmp_path / "model")
    [path] = write_digits(tmp_path, 1)
    loaded = ImageModel.load(tmp_path / "model")
    assert torch.equal(loaded.probabilities([path]), ImageModel(mini_model, mini).probabilities([path]))


@pytest.mark.parametrize("key", ["model", "weights", "preprocess"])
def test_another_fingerprint_is_refused_and_the_difference_is_named(mini_model, mini, key):
    fingerprint = mini.fingerprint | {key: f"{mini.fingerprint[key][:40]}else"}
    with pytest.raises(UserError) as raised:
        ImageModel(with_backbone(mini_model, fingerprint=fingerprint), mini)
    message = str(raised.value)
    assert f"the backbone {mini.name} here has another {key}: " in message
    assert "instead of" in message and "else'" in message and "\n" not in message


def test_another_precision_than_that_of_the_training_is_one_line(mini_model, mini, caplog):
    fingerprint = mini.fingerprint | {"precision": "fp16"}
    ImageModel(with_backbone(mini_model, fingerprint=fingerprint, precision="fp16"), mini)
    assert caplog.messages == ["the model was trained on features in fp16, and these are in fp32"]


def test_a_model_of_a_bank_needs_its_backbone_to_be_named(tmp_path, mini_model, mini, caplog):
    of_bank = mini_model.model_copy(update={"backbone": BackboneConfig(title="RN50/openai")})
    with pytest.raises(UserError, match=r'from a feature bank \(RN50/openai\).*--backbone NAME.*backbone="NAME"'):
        ImageModel.of(of_bank)
    with pytest.raises(UserError, match="the weights of RN50 are not named; give --pretrained"):
        ImageModel.of(of_bank, backbone="RN50")
    ImageModel.of(of_bank, backbone="hegraph-mini")
    assert "from says 'RN50/openai'; you say that its features are those of hegraph-mini" in caplog.text
    caplog.clear()
    ImageModel.of(mini_model.model_copy(update={"backbone": BackboneConfig(title=mini.name)}), backbone="hegraph-mini")
    assert caplog.text == ""


def test_weights_are_those_of_the_model_for_its_own_backbone_alone(mini_model):
    named = BackboneConfig(title="RN50/openai", model="RN50", pretrained="openai")
    of_rn50 = mini_model.model_copy(update={"backbone": named})
    assert backbone_to_load(of_rn50) == backbone_to_load(of_rn50, "RN50") == ("RN50", "openai")
    assert backbone_to_load(of_rn50, "RN101", "yfcc15m") == ("RN101", "yfcc15m")
    with pytest.raises(UserError, match="the weights of RN101 are not named"):
        backbone_to_load(of_rn50, "RN101")


def test_features_of_another_width_are_refused(mini_model, mini, unit_features):
    model = mini_model.model_copy(update={"classifier": FoldedClassifier(unit_features(3, 32))})
    with pytest.raises(UserError, match="gives features of width 64, but the model takes 32"):
        ImageModel(model, mini)


# Images


def test_features_are_those_of_the_backbones_own_transform_whatever_the_batches(tmp_path, mini_model, mini):
    paths = write_digits(tmp_path, 7)
    expected = mini.encode_images(torch.stack([mini.preprocess(Image.open(path).convert("RGB")) for path in paths]))
    model = ImageModel(mini_model, mini)
    assert torch.equal(model.features(paths), expected)
    assert torch.allclose(model.features(map(str, paths), batch_size=2), expected, atol=1e-6)
    assert torch.equal(model.features([Image.open(path) for path in paths]), expected)
    assert (model.features([]).shape, model.probabilities([]).shape) == ((0, 64), (0, 3))
    assert torch.equal(model.probabilities(paths), mini_model.probabilities(expected))


def test_pixels_are_those_of_the_transform_to_the_bit_however_it_ends(tmp_path, mini):
    paths = write_digits(tmp_path, 5)
    for width, height in ((40, 24), (24, 40), (32, 32), (33, 32)):
        paths.append(tmp_path / f"{width}x{height}.png")
        open_digit("digits/0003").resize((width, height)).save(paths[-1])
    unusual = type(mini.preprocess)([*mini.preprocess.transforms, lambda pixels: pixels + 1])
    for transform in (mini.preprocess, unusual):
        [batch] = Reader(transform, mini.input_size).batches(paths, len(paths))
        assert torch.equal(batch.pixels, torch.stack([transform(to_rgb(Image.open(path))) for path in paths]))


def test_an_unreadable_image_is_named(tmp_path, mini_model, mini):
    [path] = write_digits(tmp_path, 1)
    with pytest.raises(UserError, match=f"cannot read image {tmp_path / 'none.png'}: No such file"):
        ImageModel(mini_model, mini).features([path, tmp_path / "none.png"])
    with pytest.raises(UserError, match="cannot read an image: its sides"):
        ImageModel(mini_model, mini).features([Image.new("1", (1, 200_000))])


def test_whatever_pillow_raises_is_a_problem_of_one_line(mini, monkeypatch):
    def broken(image: Image.Image) -> Image.Image:
        raise SyntaxError("broken PNG\nmore")

    monkeypatch.setattr(reading, "to_rgb", broken)
    [batch] = Reader(mini.preprocess, mini.input_size).batches([Image.new("L", (9, 9))], 1)
    assert batch.pixels.shape == (0, 3, 32, 32) and batch.problems == ["broken PNG"]


def test_half_of_the_cores_read_while_the_backbone_computes_on_the_others(mini, monkeypatch):
    for there, expected in ((1, (1, 1)), (8, (4, 8)), (64, (16, 16))):
        monkeypatch.setattr(reading, "cores", lambda there=there: there)
        readers = (Reader(mini.preprocess, mini.input_size, on_cpu) for on_cpu in (True, False))
        assert tuple(reader.threads for reader in readers) == expected


def test_images_are_taken_only_as_they_are_needed(mini):
    taken = 0

    def images():
        nonlocal taken
        while True:
            taken += 1
            yield Image.new("L", (9, 9))

    batches = Reader(mini.preprocess, mini.input_size).batches(images(), 4)
    for number in range(1, 6):
        assert next(batches).pixels.shape == (4, 3, 32, 32)
        assert taken <= 4 * (number + AHEAD)
    batches.close()

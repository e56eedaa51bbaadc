"""The ONNX file says what torch says: for the head with all that a classifier may have, and for whole backbones."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from trainers.hegraph.backbones.clip import Backbone
from trainers.hegraph.backbones.loading import create_model, load_backbone
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.export import graph
from trainers.hegraph.export.comparison import TOLERANCE, TOLERANCE_HALF
from trainers.hegraph.export.metadata import describe_preprocessing
from trainers.hegraph.export.modules import Head
from trainers.hegraph.export.onnx_file import write_onnx
from trainers.hegraph.export.source import load_source
from trainers.hegraph.features.extract import open_image
from trainers.hegraph.models.saved import Preprocessing
from trainers.hegraph.training.confidence import KnownScores
from trainers.hegraph.utils.errors import UserError

WIDTH = 24
PARTS = {
    "the text head alone": {"cache": False},
    "a bias": {"cache": False, "bias": torch.linspace(-5, 5, 10)},
    "a cache": {},
    "a cache with weights and a bias": {"key_weights": torch.linspace(0, 2, 23), "bias": torch.linspace(-5, 5, 10)},
}


def answer(path: Path, values: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and probabilities, each `[B, K]`, by onnxruntime alone."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {session.get_inputs()[0].name: values.numpy()})
    return torch.from_numpy(logits), torch.from_numpy(probabilities)


def metadata_of(path: Path) -> dict:
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def random_backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    model, preprocess, tokenizer = create_model(name)
    model = model.eval().requires_grad_(False)
    return Backbone(name, model, tokenizer, preprocess, (0.5,) * 3, (0.5,) * 3, fingerprint={})


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("batch", [1, 3, 50])
def test_the_head_gives_the_logits_and_probabilities_of_the_classifier(
    parts, batch, random_model, unit_features, tmp_path
):
    model, file = random_model(WIDTH, **parts), tmp_path / "head.onnx"
    write_onnx(model, None, file)
    features = unit_features(batch, WIDTH, seed=3)
    logits, probabilities = answer(file, features)
    expected = model.classifier.logits(features)
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()
    torch.testing.assert_close(probabilities, model.probabilities(features), atol=1e-4, rtol=0)
    assert list(tmp_path.iterdir()) == [file]


def test_an_empty_cache_is_none(random_model, unit_features, tmp_path):
    model = random_model(WIDTH, keys=torch.zeros(0, WIDTH), labels=torch.zeros(0, dtype=torch.long))
    write_onnx(model, None, tmp_path / "head.onnx")
    features = unit_features(3, WIDTH, seed=3)
    torch.testing.assert_close(answer(tmp_path / "head.onnx", features)[0], model.classifier.logits(features))


def test_the_head_in_half_precision_stores_floats_of_two_bytes_and_takes_and_gives_floats_of_four(
    random_model, unit_features, tmp_path
):
    model, file = random_model(WIDTH), tmp_path / "head.onnx"
    done = write_onnx(model, None, file, half=True)
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(file).graph.initializer if len(tensor.dims) == 2}
    assert set(weights.values()) == {onnx.TensorProto.FLOAT16}
    features = unit_features(5, WIDTH, seed=3)
    logits, _ = answer(file, features)
    assert logits.dtype == torch.float32
    expected = model.classifier.logits(features)
    difference = (logits - expected).abs().max() / expected.abs().max()
    assert 0 < difference < 1e-3
    assert 0 < done.differences.logits < 1e-3


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32", "ViT-B-16"])
def test_a_whole_backbone_gives_the_logits_of_torch(name, random_model, tmp_path):
    backbone, file = random_backbone(name), tmp_path / "full.onnx"
    model = random_model(backbone.width)
    write_onnx(model, backbone, file)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(7))
    logits, probabilities = answer(file, pixels)
    features = backbone.encode_images(pixels)
    expected = model.classifier.logits(features)
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()
    torch.testing.assert_close(probabilities, model.probabilities(features), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def digits(trained: Path) -> tuple[Tensor, Tensor]:
    """The whole test set as pixels `[M, 3, 32, 32]`, and what the trained model says of it, `[M, K]`."""
    model, backbone = load_source(trained, "full", "", "")
    dataset = load_digits_dataset()
    pixels = torch.stack([backbone.preprocess(open_image(dataset, item)) for item in dataset.test])
    assert len(pixels) == 899
    return pixels, model.probabilities(backbone.encode_images(pixels))


@pytest.mark.parametrize("half", [False, True])
def test_every_digit_of_the_test_set_gets_the_class_of_torch(half, digits, trained, tmp_path):
    pixels, expected = digits
    done = write_onnx(*load_source(trained, "full", "", ""), tmp_path / "full.onnx", half)
    assert done.differences.logits <= (TOLERANCE_HALF if half else TOLERANCE)
    _, probabilities = answer(tmp_path / "full.onnx", pixels)
    if half:
        assert (probabilities.argmax(1) == expected.argmax(1)).float().mean() >= 0.995
    else:
        assert (probabilities.argmax(1) == expected.argmax(1)).all()
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)


def test_the_metadata_says_all_that_inference_needs(trained, tmp_path):
    model, backbone = load_source(trained, "full", "", "")
    for part in ("full", "head"):
        write_onnx(model, backbone if part == "full" else None, tmp_path / "x.onnx")
        about = metadata_of(tmp_path / "x.onnx")
        proto = onnx.load(tmp_path / "x.onnx")
        assert proto.opset_import[0].version >= 17
        assert list(about["inputs"]) == [entry.name for entry in proto.graph.input]
        assert list(about["outputs"]) == [entry.name for entry in proto.graph.output] == ["logits", "probabilities"]
        assert about["outputs"]["logits"] == ["batch", 10]
        assert about["classes"] == list(model.classnames)
        assert about["tau"] == model.logit_scale
        assert about["temperature"] == model.temperature
        assert KnownScores(**about["known"] | {"quantiles": tuple(about["known"]["quantiles"])}) == model.known
        how = about["preprocessing"]
        assert (how["size"], how["resize"], how["interpolation"]) == ([32, 32], "shortest", "bicubic")
        assert (how["mean"], how["std"]) == (list(backbone.mean), list(backbone.std))
    assert about["inputs"] == {"features": ["batch", 64]}


def test_a_model_that_does_not_know_how_its_classes_score_says_null(random_model, tmp_path):
    write_onnx(random_model(WIDTH), None, tmp_path / "x.onnx")
    assert metadata_of(tmp_path / "x.onnx")["known"] is None


@pytest.mark.parametrize(
    ("transform", "resize", "interpolation"),
    [
        (
            "Compose( Resize(size=224, interpolation=bicubic, max_size=None) CenterCrop",
            "shortest",
            "bicubic",
        ),
        ("Compose( Resize(size=(224, 224), interpolation=bilinear, antialias=True) Maybe", "squash", "bilinear"),
        (
            "ResizeKeepRatio(size=(64, 64), interpolation=InterpolationMode.BICUBIC), longest=1.000)",
            "other",
            "bicubic",
        ),
        ("Something()", "other", None),
    ],
)
def test_the_transform_in_words_becomes_plain_values(transform, resize, interpolation):
    found = describe_preprocessing(Preprocessing(size=[224, 224], mean=[0.5] * 3, std=[0.5] * 3, transform=transform))
    assert (found["resize"], found["interpolation"]) == (resize, interpolation)
    assert found["transform"] == transform


def test_class_names_of_any_characters_survive(random_model, tmp_path):
    names = ('"quoted"', "new\nline", "Ünïcödé", "猫", "\ud800 half a pair", "\x00", "", " ", "a/b", "\u2028")
    model = random_model(WIDTH)
    object.__setattr__(model, "classnames", names)
    write_onnx(model, None, tmp_path / "head.onnx")
    assert metadata_of(tmp_path / "head.onnx")["classes"] == list(names)


# What fails leaves nothing


def test_a_file_that_differs_from_torch_is_not_left_behind(random_model, tmp_path, monkeypatch):
    file = tmp_path / "head.onnx"
    file.write_bytes(b"the older file")

    def wrong(self, features: Tensor, keys: Tensor) -> Tensor:
        return features.new_full((features.shape[0], self.num_classes), 0.5)

    monkeypatch.setattr(Head, "_cache_sums", wrong)
    with pytest.raises(UserError, match="would differ from torch's by .* of their scale, more than the 0.0001"):
        write_onnx(random_model(WIDTH), None, file)
    assert file.read_bytes() == b"the older file"
    assert list(tmp_path.iterdir()) == [file]


def test_logits_that_are_not_finite_are_refused(random_model, tmp_path):
    with pytest.raises(UserError, match="differ from torch's by nan"):
        write_onnx(random_model(WIDTH, beta=-1e5), None, tmp_path / "head.onnx")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(random_model, tmp_path, disk_full_after):
    with disk_full_after(1000), pytest.raises(UserError, match="cannot write .*head.onnx"):
        write_onnx(random_model(WIDTH), None, tmp_path / "head.onnx")
    assert not list(tmp_path.iterdir())


def test_a_backbone_too_large_for_the_format_is_refused_before_it_is_traced(random_model, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "LARGEST_FILE", 1000)
    backbone = load_backbone("hegraph-mini")
    with pytest.raises(UserError, match="can have 2 GB at most; --part head"):
        write_onnx(random_model(64), backbone, tmp_path / "full.onnx")
    assert not list(tmp_path.iterdir())


def test_what_has_no_form_in_onnx_is_one_line(random_model, tmp_path, monkeypatch):
    monkeypatch.setattr(Head, "_cache_sums", lambda self, features, keys: torch.linalg.eigvalsh(self.weights[:10, :10]))
    with pytest.raises(UserError, match="^the model has no form in ONNX: .*eig"):
        write_onnx(random_model(WIDTH), None, tmp_path / "head.onnx")
    assert not list(tmp_path.iterdir())


def test_tracing_leaves_torch_as_it_was(random_model, tmp_path):
    assert torch.backends.mha.get_fastpath_enabled()
    write_onnx(random_model(WIDTH), None, tmp_path / "head.onnx")
    assert torch.backends.mha.get_fastpath_enabled()

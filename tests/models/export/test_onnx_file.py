"""ONNX files: equality with torch for classifiers and backbones, output of `export`, and the code of the guide."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from torch import Tensor

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: pip install onnx onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

from trainers.hegraph import UserError  # noqa: E402
from trainers.hegraph.__main__ import main  # noqa: E402
from trainers.hegraph.datasets.digits import load_digits_dataset, open_digit  # noqa: E402
from trainers.hegraph.features.backbones.identity import MINI_WEIGHTS  # noqa: E402
from trainers.hegraph.features.backbones.open_clip_models import as_backbone, create_model  # noqa: E402
from trainers.hegraph.features.backbones.schema import BackboneConfig  # noqa: E402
from trainers.hegraph.method.cache import FoldedClassifier  # noqa: E402
from trainers.hegraph.method.training.confidence import KnownScores  # noqa: E402
from trainers.hegraph.models.export import onnx_file  # noqa: E402
from trainers.hegraph.models.export.onnx_file import TOLERANCE, describe_preprocessing, write_onnx  # noqa: E402
from trainers.hegraph.models.folder import save_model  # noqa: E402
from trainers.hegraph.models.images import ImageModel  # noqa: E402
from trainers.hegraph.models.saved import NOT_TESTED, Preprocessing, SavedModel, TrainedOn  # noqa: E402

WIDTH = 24
PAGE = Path(__file__).parents[3] / "docs" / "guides" / "onnx.md"
[LINES] = re.findall("^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
PARTS = {
    "the text head alone": {"cache": False},
    "a bias": {"cache": False, "bias": torch.linspace(-5, 5, 10)},
    "a cache": {},
    "a cache with weights and a bias": {"key_weights": torch.linspace(0, 2, 23), "bias": torch.linspace(-5, 5, 10)},
    "an empty cache": {"keys": torch.zeros(0, WIDTH), "labels": torch.zeros(0, dtype=torch.long)},
}


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def random_model(width: int, cache: bool = True, **parts: Tensor) -> SavedModel:
    """A model of 10 classes with random class weights, and with a cache of unequal numbers of images for each class
    unless `cache=False`; `parts` are of the classifier.
    """
    if cache:
        labels = torch.tensor([label for label in range(10) for _ in range(1 + label % 4)]).flip(0)
        parts = {"keys": unit(len(labels), width, seed=1), "labels": labels, "alpha": 2.0, "beta": 5.5, **parts}
    trained_on = TrainedOn(
        dataset="Letters", shots=1, seed=1, num_train=10, split_hash="0" * 64, selected_on="last_step", selected={},
        config={}, host="alone", git_commit=None, versions={},
    )  # fmt: skip
    return SavedModel(
        classifier=FoldedClassifier(100 * unit(10, width, seed=2), **parts),
        text_positive=unit(10, width, seed=2),
        classnames=tuple("abcdefghij"), class_ids=tuple("abcdefghij"),
        method="HeGraphAdapter", variant="full", logit_scale=100.0, temperature=1.3,
        backbone=BackboneConfig(title="random"), preprocessing=None, prompts=None,
        transfer=None, transfer_rule="none", trained_on=trained_on, scores=NOT_TESTED,
    )  # fmt: skip


def answer(path: Path, values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute logits and probabilities, each `[B, K]`, with onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {session.get_inputs()[0].name: values.numpy()})
    return torch.from_numpy(logits), torch.from_numpy(probabilities)


def assert_answers(file: Path, values: Tensor, expected: Tensor) -> None:
    """The file gives these logits, and the probabilities of a `random_model`."""
    logits, probabilities = answer(file, values)
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()
    torch.testing.assert_close(probabilities, (expected / 1.3).softmax(dim=1), atol=1e-4, rtol=0)


def metadata_of(path: Path) -> dict:
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_head_equals_the_classifier(parts, tmp_path):
    model, file = random_model(WIDTH, **parts), tmp_path / "head.onnx"
    write_onnx(model, None, file)
    for batch in (1, 50):
        assert_answers(file, features := unit(batch, WIDTH, seed=3), model.classifier.logits(features))
    assert list(tmp_path.iterdir()) == [file]
    metadata = metadata_of(file)
    assert metadata["known"] is metadata["preprocessing"] is None
    assert metadata["inputs"] == {"features": ["batch", WIDTH]}


def test_several_labels_per_image_have_sigmoids_and_thresholds(tmp_path):
    model = random_model(WIDTH, cache=False).model_copy(update={"thresholds": torch.linspace(-2, 2, 10)})
    write_onnx(model, None, tmp_path / "head.onnx")
    features = unit(5, WIDTH, seed=3)
    _, probabilities = answer(tmp_path / "head.onnx", features)
    torch.testing.assert_close(probabilities, model.classifier.logits(features).sigmoid(), atol=1e-5, rtol=0)
    thresholds = metadata_of(tmp_path / "head.onnx")["thresholds"]
    assert thresholds == pytest.approx([1 / (1 + np.exp(-value)) for value in np.linspace(-2, 2, 10)])


def test_half_precision_is_inside_the_head_only(tmp_path):
    model, file = random_model(WIDTH), tmp_path / "head.onnx"
    differences = write_onnx(model, None, file, half=True)
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(file).graph.initializer if len(tensor.dims) == 2}
    assert set(weights.values()) == {onnx.TensorProto.FLOAT16}
    logits, _ = answer(file, features := unit(5, WIDTH, seed=3))
    assert logits.dtype == torch.float32
    expected = model.classifier.logits(features)
    assert 0 < (logits - expected).abs().max() / expected.abs().max() < 1e-3
    assert 0 < differences[0] < 1e-3 and 0 < differences[1] < 1e-2


def test_damaged_float16_weights_are_refused(finished_digits_once, tmp_path, monkeypatch):
    images = ImageModel.load(finished_digits_once)
    halve = onnx_file.halve

    def zeroing(graph: object) -> None:
        halve(graph)
        for tensor in graph.graph.initializer:
            if tensor.name.startswith("tower.visual.attnpool.c_proj.weight"):
                tensor.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(tensor), tensor.name))

    monkeypatch.setattr(onnx_file, "halve", zeroing)
    expected = (
        r"expected cosines of at least 0.99 between features in float16 and in float32, got -?\d.*leave out --fp16"
    )
    with pytest.raises(UserError, match=expected):
        write_onnx(images.model, images.backbone, tmp_path / "half.onnx", half=True)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "ViT-B-16"])
def test_a_whole_backbone_gives_the_logits_of_torch(name, tmp_path):
    torch.manual_seed(0)
    built = create_model(name)
    built[0].eval().requires_grad_(False)
    backbone = as_backbone(name, built, fingerprint={})
    model, file = random_model(backbone.width), tmp_path / "full.onnx"
    write_onnx(model, backbone, file)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(7))
    assert_answers(file, pixels, model.classifier.logits(backbone.encode_images(pixels)))


def test_whole_model_equals_torch_and_has_metadata(finished_digits_once, tmp_path):
    images, dataset = ImageModel.load(finished_digits_once), load_digits_dataset()
    model = images.model
    pixels = torch.stack([images.backbone.preprocess(dataset.read(item.path)) for item in dataset.test])
    expected = model.probabilities(images.backbone.encode_images(pixels))
    write_onnx(model, images.backbone, tmp_path / "x.onnx")
    _, probabilities = answer(tmp_path / "x.onnx", pixels)
    assert len(pixels) == 899 and torch.equal(probabilities.argmax(1), expected.argmax(1))
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)
    metadata, proto = metadata_of(tmp_path / "x.onnx"), onnx.load(tmp_path / "x.onnx")
    assert proto.opset_import[0].version >= 17
    preprocessing = metadata.pop("preprocessing")
    assert KnownScores(**metadata.pop("known")) == model.known
    assert metadata.pop("sets") == {f"{share:g}": model.sets.threshold(share) for share in (0.8, 0.9, 0.95)}
    assert metadata == {
        "inputs": {"pixel_values": ["batch", 3, 32, 32]},
        "outputs": {"logits": ["batch", 10], "probabilities": ["batch", 10]}, "classes": list(model.classnames),
        "class_ids": list(model.class_ids), "tau": model.logit_scale, "temperature": model.temperature,
        "thresholds": None, "backbone": model.backbone.title, "method": "HeGraphAdapter", "variant": "full",
        "trained_on": {"dataset": "Digits", "shots": 4},
    }  # fmt: skip
    expected = {"size": [32, 32], "resize": "shortest", "interpolation": "bicubic", "crop": "center"}
    expected |= {"mean": list(images.backbone.mean), "std": list(images.backbone.std)}
    assert {key: preprocessing[key] for key in expected} == expected


@pytest.mark.parametrize(("transform", "resize", "interpolation"), [
    ("Compose( Resize(size=224, interpolation=bicubic, max_size=None) CenterCrop", "shortest", "bicubic"),
    ("Compose( Resize(size=(224, 224), interpolation=bilinear, antialias=True) Maybe", "squash", "bilinear"),
    ("Compose( Resize(size=256, interpolation=bicubic, max_size=None) CenterCrop(size=(224, 224))", "other", None),
    ("Compose( Resize(size=(256, 256), interpolation=bicubic, max_size=None) CenterCrop", "other", None),
    ("ResizeKeepRatio(size=(64, 64), interpolation=InterpolationMode.BICUBIC), longest=1.000)", "other", None),
])  # fmt: skip
def test_the_transform_in_words_becomes_plain_values(transform, resize, interpolation):
    found = describe_preprocessing(Preprocessing(size=[224, 224], mean=[0.5] * 3, std=[0.5] * 3, transform=transform))
    assert (found["resize"], found["interpolation"], found["transform"]) == (resize, interpolation, transform)


def test_crop_of_transformers_rounds_down():
    transform = "Compose( Resize(size=224, interpolation=bicubic, max_size=None) FloorCenterCrop(size=(224, 224))"
    found = describe_preprocessing(Preprocessing(size=[224, 224], mean=[0.5] * 3, std=[0.5] * 3, transform=transform))
    assert (found["resize"], found["crop"]) == ("shortest", "floor")


# A failure leaves no files


@pytest.mark.parametrize(("parts", "half", "patches", "message"), [
    ({"beta": -1e5}, False, {}, "differ from torch by nan"), ({}, True, {"TOLERANCE_HALF": 1e-7}, "1e-07"),
    ({}, False, {"affinities": lambda cosines, beta: cosines}, "differ .* 0.0001"),
    ({}, False, {"affinities": lambda cosines, beta: cosines * torch.linalg.eigvalsh(cosines[:1, :1])}, "ONNX: .*eig"),
])  # fmt: skip
def test_file_that_differs_from_torch_is_not_written(tmp_path, monkeypatch, capfd, parts, half, patches, message):
    file = tmp_path / "head.onnx"
    file.write_bytes(b"the older file")
    for name, value in patches.items():
        monkeypatch.setattr(onnx_file, name, value)
    with pytest.raises(UserError, match=message):
        write_onnx(random_model(WIDTH, **parts), None, file, half=half)
    assert file.read_bytes() == b"the older file" and list(tmp_path.iterdir()) == [file]
    assert torch.backends.mha.get_fastpath_enabled()
    assert capfd.readouterr().out == ""  # torch prints the graph at some errors


# The command


def export(*arguments: object) -> int:
    return main(["export", *map(str, arguments)])


def inputs_of(file: Path) -> list[str]:
    return [entry.name for entry in onnx.load(file).graph.input]


def test_export_prints_file_and_difference(finished_digits_once, tmp_path, capsys):
    file = tmp_path / "new" / "folder" / "model.onnx"
    assert export(finished_digits_once, "--onnx", file) == 0
    message = capsys.readouterr().out
    assert message.startswith(f"{file}: {file.stat().st_size / 1e6:.2f} MB; ")
    found = re.search(r"largest difference from torch: logits (\S+) of the largest, probabilities (\S+)\n$", message)
    assert max(map(float, found.groups())) <= 1e-4
    assert list(file.parent.iterdir()) == [file] and inputs_of(file) == ["pixel_values"]
    assert export(finished_digits_once / "model", "--onnx", file, "--part", "head", "--fp16") == 0  # replaces it
    assert inputs_of(file) == ["features"]


def test_model_of_a_bank_needs_a_backbone(tmp_path, cli_error):
    model, file = tmp_path / "of_bank", tmp_path / "full.onnx"
    save_model(random_model(64), model)
    assert "from a feature bank (" in cli_error("export", model, "--onnx", file) and not file.exists()
    assert (export(model, "--onnx", file, "--backbone", "hegraph-mini"), inputs_of(file)) == (0, ["pixel_values"])


def test_weights_are_not_overwritten(finished_digits_once, tmp_path, cli_error):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(MINI_WEIGHTS.read_bytes())
    error = cli_error("export", finished_digits_once, "--pretrained", weights, "--onnx", weights)
    assert "is read by this command" in error and weights.read_bytes() == MINI_WEIGHTS.read_bytes()


def test_missing_package_and_wrong_flags_are_refused(finished_digits_once, cli_error, monkeypatch):
    words = ("export", finished_digits_once, "--onnx", "x")
    assert "--part head takes features" in cli_error(*words, "--part", "head", "--backbone", "RN50")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "export needs the package onnxruntime: pip install 'onnx" in cli_error(*words)


# The lines of docs/guides/onnx.md


@pytest.fixture(scope="module")
def exported(finished_digits_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model as the page's lines read it."""
    folder = tmp_path_factory.mktemp("exported")
    assert export(finished_digits_once, "--onnx", folder / "model.onnx") == 0
    return folder


def digit(*size: int) -> Image.Image:
    return open_digit("digits/0007").convert("L").resize(size or (8, 8))


def wide() -> Image.Image:
    """A picture that is resized by a factor that leaves a remainder, and cropped at both sides."""
    canvas = Image.new("L", (301, 97), 40)
    canvas.paste(digit(90, 90), (104, 3))
    return canvas


def see_through() -> Image.Image:
    """Image of a digit in the alpha channel, with black pixels."""
    picture = Image.new("RGBA", (64, 64), "black")
    picture.putalpha(digit(64, 64))
    return picture


def on_its_side() -> Image.Image:
    """A digit that its EXIF orientation turns upright."""
    picture = digit(64, 64).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    picture.getexif()[ExifTags.Base.Orientation] = 6  # turn it by 90 degrees
    return picture


PICTURES = {
    "wide": (wide, "PNG"),
    "see-through": (see_through, "PNG"),
    "on its side": (on_its_side, "JPEG"),
    "16 bits": (lambda: Image.fromarray(np.array(digit()).astype(np.uint16) * 256), "PNG"),
    "32 bits, some above 65535": (lambda: Image.fromarray(np.array(digit()).astype(np.int32) * 300), "TIFF"),
    "no digit, and so below the threshold": (lambda: Image.linear_gradient("L"), "PNG"),
}


@pytest.mark.parametrize(("make", "kind"), PICTURES.values(), ids=PICTURES)
def test_page_lines_give_the_packages_predictions(make, kind, exported, finished_digits_once, monkeypatch, capsys):
    file, image = exported / "image.png", make()
    image.save(file, format=kind, exif=image.getexif())
    monkeypatch.chdir(exported)
    exec(compile(LINES, str(PAGE), "exec"), {})
    message, *marked = capsys.readouterr().out.splitlines()
    name, probability = message.split()
    images = ImageModel.load(finished_digits_once)
    logits = images.logits(images.features([file]))
    expected = images.model.calibrate(logits)[0]
    assert name == images.model.classnames[int(expected.argmax())]
    assert float(probability) == pytest.approx(float(expected.max()), abs=1e-5)
    assert marked == ([] if images.model.is_known(logits, 0.95).item() else ["none of these"])


@pytest.mark.slow
def test_page_lines_need_neither_torch_nor_package(exported):
    digit().save(exported / "image.png")
    without = "import sys\nsys.modules |= dict.fromkeys(['torch', 'torchvision', 'trainers', 'hegraph'])\n"
    program = [sys.executable, "-c", without + LINES]
    ran = subprocess.run(program, cwd=exported, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 and len(ran.stdout.split()) == 2, ran.stderr

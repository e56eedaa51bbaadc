"""int8 files: size, equality with float32, refusal of damaged quantisations; OpenVINO reads all exported files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: pip install onnx onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

from trainers.hegraph import Backbone, UserError  # noqa: E402
from trainers.hegraph.__main__ import main  # noqa: E402
from trainers.hegraph.datasets.digits import open_digit  # noqa: E402
from trainers.hegraph.models.export import int8  # noqa: E402
from trainers.hegraph.models.export.int8 import write_int8  # noqa: E402
from trainers.hegraph.models.export.onnx_file import write_onnx  # noqa: E402
from trainers.hegraph.models.images import ImageModel  # noqa: E402

Damage = Callable[[str, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Folder of 70 scans of digits."""
    folder = tmp_path_factory.mktemp("scans")
    for row in range(70):
        open_digit(f"digits/{row:04d}").save(folder / f"{row:04d}.png")
    return folder


@pytest.fixture
def model(finished_digits_once) -> ImageModel:
    return ImageModel.load(finished_digits_once)


def paths(scans: Path) -> list[str]:
    return [str(path) for path in sorted(scans.iterdir())]


def pixels_of(backbone: Backbone, scans: Path) -> np.ndarray:
    return torch.stack([backbone.preprocess(path) for path in paths(scans)]).numpy()


def answer(file: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["logits", "probabilities"], {"pixel_values": pixels})


def test_int8_file_is_small_and_close_to_float32(model, scans, tmp_path):
    write_onnx(model.model, model.backbone, tmp_path / "float32.onnx")
    comparison = write_int8(model.model, model.backbone, tmp_path / "int8.onnx", paths(scans))
    assert comparison.images == 70 and 0.99 <= comparison.cosine <= 1
    assert (tmp_path / "int8.onnx").stat().st_size < 0.3 * (tmp_path / "float32.onnx").stat().st_size
    pixels = pixels_of(model.backbone, scans)
    _, expected = answer(tmp_path / "float32.onnx", pixels)
    _, probabilities = answer(tmp_path / "int8.onnx", pixels)
    assert (probabilities.argmax(1) == expected.argmax(1)).mean() == pytest.approx(comparison.agreement)
    assert comparison.agreement > 0.95
    assert np.abs(probabilities - expected).mean() < 0.02


def test_int8_file_has_the_form_of_the_float32_file(model, scans, tmp_path):
    write_onnx(model.model, model.backbone, tmp_path / "float32.onnx")
    write_int8(model.model, model.backbone, tmp_path / "int8.onnx", paths(scans))
    float32, quantized = (onnx.load(tmp_path / f"{name}.onnx") for name in ("float32", "int8"))
    for part in ("input", "output"):
        names = [[value.name for value in getattr(file.graph, part)] for file in (float32, quantized)]
        assert names[0] == names[1]
    metadata = [{each.key: each.value for each in file.metadata_props} for file in (float32, quantized)]
    assert metadata[0] == metadata[1]
    one = answer(tmp_path / "int8.onnx", pixels_of(model.backbone, scans)[:1])
    assert one[0].shape == (1, 10)


def rounded(step: int) -> Damage:
    """Leave fewer bits of the weights: steps of 16 are 4 bits, steps of 64 are 2 bits."""

    def damage(name: str, values: np.ndarray) -> np.ndarray:
        if values.dtype != np.int8 or values.ndim < 2:
            return values
        return np.clip(np.round(values / step) * step, -128, 127).astype(np.int8)

    return damage


def exchanged_scales(name: str, values: np.ndarray) -> np.ndarray:
    """Give each output channel the scale of its neighbour."""
    is_scale = name.endswith("_scale") and values.ndim == 1 and values.dtype == np.float32
    return np.roll(values, 1) if is_scale else values


def zeroed_layer(name: str, values: np.ndarray) -> np.ndarray:
    is_layer = name.startswith("tower.visual.attnpool.c_proj.weight_quantized") and values.ndim == 2
    return np.zeros_like(values) if is_layer else values


DAMAGES: dict[str, Damage] = {
    "4 bits": rounded(16), "2 bits": rounded(64), "exchanged scales": exchanged_scales, "zeroed layer": zeroed_layer,
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_quantisation_is_refused(name, model, scans, tmp_path, monkeypatch):
    quantize = int8.quantize
    changed = []

    def damaged(graph: object, pixels: np.ndarray) -> object:
        quantized = quantize(graph, pixels)
        for tensor in quantized.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            after = DAMAGES[name](tensor.name, values)
            if not np.array_equal(after, values):
                changed.append(tensor.name)
                tensor.CopyFrom(onnx.numpy_helper.from_array(after.astype(values.dtype), tensor.name))
        return quantized

    monkeypatch.setattr(int8, "quantize", damaged)
    file = tmp_path / "int8.onnx"
    file.write_bytes(b"before")
    with pytest.raises(UserError, match=r"expected cosines of at least 0.99 .*, got -?\d.*the file is not written"):
        write_int8(model.model, model.backbone, file, paths(scans))
    assert changed and file.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [file]


def test_too_few_readable_images_are_refused(model, scans, tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"no image")
    images = [*paths(scans)[:63], str(tmp_path / "damaged.png")]
    with pytest.raises(UserError, match="expected at least 64 readable images, got 63"):
        write_int8(model.model, model.backbone, tmp_path / "int8.onnx", images)
    assert not (tmp_path / "int8.onnx").exists()


def test_many_images_are_read_at_even_distances(model, scans):
    assert len(int8.read_pixels(model.backbone, paths(scans) * 10)) == 234  # every third of 700


def test_export_writes_int8_and_says_how_close(finished_digits_once, scans, tmp_path, capsys):
    out = tmp_path / "int8.onnx"
    assert main(["export", str(finished_digits_once), "--onnx", str(out), "--int8", "--calibrate", str(scans)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: {out.stat().st_size / 1e6:.2f} MB; int8 against float32 on 70 images: smallest")
    assert "cosine of features 0.99" in printed and "same class for " in printed


@pytest.mark.parametrize(("flags", "message"), [
    (["--int8"], "--int8 needs --calibrate IMAGES"),
    (["--calibrate", "photos"], "--calibrate is for --int8"),
    (["--int8", "--calibrate", "photos", "--part", "head"], "--int8 quantises the image tower"),
    (["--int8", "--calibrate", "/none"], "cannot read /none: no such file or folder"),
])  # fmt: skip
def test_contradicting_flags_are_refused(finished_digits_once, tmp_path, cli_error, flags, message):
    assert message in cli_error("export", finished_digits_once, "--onnx", tmp_path / "a.onnx", *flags)


def openvino_answer(file: Path, pixels: np.ndarray) -> list[np.ndarray]:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled({"pixel_values": pixels})
    return [result[name] for name in ("logits", "probabilities")]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("batch", [1, 70])
def test_openvino_gives_equal_answers(model, scans, tmp_path, half, batch):
    write_onnx(model.model, model.backbone, tmp_path / "model.onnx", half)
    pixels = pixels_of(model.backbone, scans)[:batch]
    expected = answer(tmp_path / "model.onnx", pixels)
    for found, value in zip(openvino_answer(tmp_path / "model.onnx", pixels), expected):
        assert np.abs(found - value).max() <= 1e-4 * np.abs(value).max()


def test_openvino_reads_the_int8_file(model, scans, tmp_path):
    write_int8(model.model, model.backbone, tmp_path / "int8.onnx", paths(scans))
    pixels = pixels_of(model.backbone, scans)
    _, found = openvino_answer(tmp_path / "int8.onnx", pixels)
    _, expected = answer(tmp_path / "int8.onnx", pixels)
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95
    assert np.abs(found - expected).mean() < 0.02

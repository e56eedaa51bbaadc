"""Precision "auto" for models of transformers and timm: the choice, features, records and predictions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers.models")
pytest.importorskip("timm")

from random_models import KINDS, write_timm_model, write_transformers_model

from trainers.hegraph import load_backbone
from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.features.backbones import identity
from trainers.hegraph.features.backbones.identity import backbone_identity
from trainers.hegraph.models.folder import load_model

ENCODERS = [*KINDS, "timm"]
NODE = "TRAINER.HEGRAPHADAPTER"
QUICK = ("OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "0", f"{NODE}.MIN_STEPS", "0", f"{NODE}.FEATURES.VIEWS", "2")
OTHER_PRECISION = "the model was trained on features in bf16, and is used here with features in fp32"


@pytest.fixture(scope="module")
def name_of(tmp_path_factory) -> Callable[[str], str]:
    """Function of a `model_type` or "timm": name of a tiny random model."""
    root = tmp_path_factory.mktemp("models")
    names = {kind: f"transformers:{write_transformers_model(root / kind, kind)}" for kind in KINDS}
    names["timm"] = f"timm:{write_timm_model(root / 'timm')}"
    return names.__getitem__


@pytest.fixture
def has_fast_bfloat16(monkeypatch) -> Callable[[bool], None]:
    """Function that sets whether the machine multiplies bfloat16 fast."""
    return lambda answer: monkeypatch.setattr(identity, "has_fast_bfloat16", lambda device: answer)


def cosines_of(name: str, precision: str) -> torch.Tensor:
    """Cosines of the features of four images in fp32 and in another precision."""
    exact = load_backbone(name)
    pixels = torch.randn(4, 3, *exact.input_size, generator=torch.Generator().manual_seed(0))
    features = load_backbone(name, precision=precision).encode_images(pixels)
    return (exact.encode_images(pixels) * features).sum(dim=1)


@pytest.mark.parametrize("kind", ENCODERS)
def test_auto_is_fp32_on_other_machines(name_of, has_fast_bfloat16, kind):
    has_fast_bfloat16(False)
    backbone, exact = load_backbone(name_of(kind), precision="auto"), load_backbone(name_of(kind))
    assert backbone.precision == "fp32"
    assert backbone.fingerprint == exact.fingerprint and "precision" not in exact.fingerprint
    pixels = torch.randn(2, 3, *exact.input_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backbone.encode_images(pixels), exact.encode_images(pixels))


@pytest.mark.parametrize("kind", ENCODERS)
def test_auto_is_bf16_on_fast_machines(name_of, has_fast_bfloat16, kind):
    has_fast_bfloat16(True)
    backbone = load_backbone(name_of(kind), precision="auto")
    assert backbone.precision == backbone.fingerprint["precision"] == "bf16"
    assert backbone.fingerprint.items() >= backbone_identity(name_of(kind), "", "auto", "cpu").items()
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.bfloat16}
    cosines = cosines_of(name_of(kind), "auto")
    assert 0.995 < cosines.min() < 1 and cosines.max() < 1


@pytest.fixture(params=["clip", "dinov2", "timm"])
def trained(request, name_of, has_fast_bfloat16, tmp_path) -> Path:
    """Output folder of a training of the digits in "auto" on a fast machine."""
    has_fast_bfloat16(True)
    words = ["train", "digits", "--backbone", name_of(request.param), "--shots", "2", "--seed", "1"]
    keys = [f"{NODE}.FEATURES.DIR", str(tmp_path / "features"), *QUICK]
    assert main([*words, "--config-file", "mini", "--output-dir", str(tmp_path / "run"), *keys]) == 0
    return tmp_path / "run"


@pytest.fixture
def scans(tmp_path) -> Path:
    """Folder of ten scans of digits."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(10):
        open_digit(f"digits/{number:04d}").save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
def test_training_records_the_chosen_precision(trained):
    record = json.loads((trained / "result.json").read_text())
    backbone = load_model(trained).backbone
    assert record["precision"] == record["config"][f"{NODE}.PREC"] == "bf16"
    assert backbone.precision == backbone.fingerprint["precision"] == "bf16"
    assert record["accuracy"] > 15  # random features still tell the digits apart better than chance


@pytest.mark.slow
@pytest.mark.parametrize("is_fast", [True, False])
def test_prediction_reports_another_precision_in_one_line(trained, scans, has_fast_bfloat16, caplog, is_fast):
    has_fast_bfloat16(is_fast)
    caplog.clear()
    rows = trained / "rows.jsonl"
    assert main(["predict", str(trained), str(scans), "--top", "10", "--out", str(rows)]) == 0
    reported = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert reported == ([] if is_fast else [OTHER_PRECISION])
    model = load_model(trained)
    encoder = load_backbone(model.backbone.model, precision="bf16" if is_fast else "fp32")
    features = encoder.encode_images(sorted(scans.iterdir()))
    expected = model.probabilities(features).amax(dim=1).tolist()
    predicted = [json.loads(line)["top"][0]["probability"] for line in rows.read_text().splitlines()]
    assert predicted == pytest.approx(expected, abs=1e-5)

"""Model cards, and models with images as input."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from trainers.hegraph import UserError, load_bank
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.features.backbones import loading
from trainers.hegraph.features.backbones.schema import BackboneConfig
from trainers.hegraph.models.card import base_model_of, model_card
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.models.saved import NOT_TESTED, SavedModel
from trainers.hegraph.models.support_set import SupportSet
from trainers.hegraph.results.records import read_record


def header_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_card_states_provenance_and_scores(saved_model):
    scores = saved_model().scores
    card = model_card(saved_model(scores=scores.model_copy(update={"ece": 2.5, "ece_zero_shot": 11.25})))
    for line in (
        "# HeGraphAdapter on Tiny",
        "2 images of each class, 6 images in all, with seed 1.",
        "| zero-shot CLIP | 70.00 | 11.25 |",
        "| HeGraphAdapter(T), the text classifier alone | 80.00 |  |",
        "| HeGraphAdapter | 90.00 | 2.50 |",
        "hegraph predict MODEL_FOLDER IMAGE",
        "- crane",
    ):
        assert f"\n{line}\n" in card
    assert "divided by the temperature 1.500" in card and "NAME" not in card
    header = header_of(card)
    assert (header["license"], header["library_name"], header["datasets"]) == ("mit", "hegraph", ["Tiny"])
    assert header["pipeline_tag"] == "image-classification" and "hegraph" in header["tags"]
    [result] = header["model-index"][0]["results"]
    assert result["dataset"] == {"type": "Tiny", "name": "Tiny", "split": "test"}
    assert [(metric["type"], metric["name"], metric["value"]) for metric in result["metrics"]] == [
        ("accuracy", "Accuracy", 0.9), ("f1", "Macro F1", 0.89),
        ("accuracy", "Accuracy of the text classifier alone", 0.8), ("ece", "Expected calibration error", 0.025),
    ]  # fmt: skip
    assert header["metrics"] == ["accuracy", "f1", "ece"]


def test_card_omits_unknown_values_and_shortens_lists(saved_model):
    scores = saved_model().scores.model_copy(update={"accuracy_text": None})
    card = model_card(saved_model(method="TipAdapter", scores=scores))
    assert "| TipAdapter | 90.00 |  |\n" in card and "(T)" not in card
    [result] = header_of(card)["model-index"][0]["results"]
    assert [metric["name"] for metric in result["metrics"]] == ["Accuracy", "Macro F1"]
    names = tuple(f"class {number}" for number in range(52))
    bank = BackboneConfig(title="ViT-B-32/openai")
    card = model_card(saved_model(scores=NOT_TESTED, classnames=names, class_ids=names, prompts=None, backbone=bank))
    assert "It was not tested, so it has no scores" in card and not {"model-index", "metrics"} & {*header_of(card)}
    assert "\n- class 49\n- and 2 more, in `config.json`\n" in card and "class 50" not in card
    assert "hegraph predict MODEL_FOLDER IMAGE --backbone NAME --pretrained TAG\n" in card
    assert 'from_pretrained("MODEL_FOLDER", backbone="NAME", pretrained="TAG")' in card


def test_card_without_text_says_so(saved_model, unit_features):
    labels = torch.arange(6) % 3
    classes = np.array(["ant", "bee", "crane"])
    support_set = SupportSet(classes, tuple(classes), unit_features(1, 6, 8), labels, torch.zeros_like(labels))
    scores = saved_model().scores.model_copy(update={"accuracy_zero_shot": None})
    card = model_card(saved_model(scores=scores, prompts=None, support_set=support_set))
    assert "| HeGraphAdapter(T), without the cache | 80.00 |  |\n" in card
    assert "\nImages alone define the classes. " in card and "adapter of the frozen image encoder m/w" in card
    names = [metric["name"] for metric in header_of(card)["model-index"][0]["results"][0]["metrics"]]
    assert "Accuracy without the cache" in names
    assert "text classifier" not in card and "prompts" not in card and "zero-shot CLIP |" not in card


def test_card_escapes_names(saved_model):
    evil = "<img src=x onerror=alert(1)> [a](javascript:b) ![c](d)\n# `e`|*f*_g_"
    trained = saved_model().trained_on.model_copy(update={"dataset": f"{evil}\n---\nlicense: other"})
    names = {"classnames": (evil, "- list", "c"), "method": evil, "trained_on": trained}
    card = model_card(saved_model(backbone=BackboneConfig(title=evil), **names))
    shown = r"&lt;img src\=x onerror\=alert(1)&gt; \[a\](javascript\:b) \!\[c\](d) \# \`e\`\|\*f\*\_g\_"
    assert f"\n- {shown}\n- \\- list\n" in card
    assert f"the frozen CLIP {shown} to" in card and f"\n# {shown} on {shown}" in card and f"| {shown} |" in card
    assert "<img" not in card and "\n# `" not in card
    header = header_of(card)
    assert header["license"] == "mit"
    assert header["datasets"] == ["img src x onerror alert(1) a (javascript b) c (d) e f _g_ --- license other"]


def test_base_model_is_the_name_on_the_hub():
    named = {("ViT-B-32-quickgelu", "openai"): "timm/vit_base_patch32_clip_224.openai"}
    named |= {("RN50-quickgelu", "auto"): "timm/resnet50_clip.openai", ("hf-hub:org/birds", ""): "org/birds"}
    unnamed = (("hf-hub:<b>/birds", ""), ("hegraph-mini", "auto"), ("local-dir:birds", ""), ("ViT-B-32", __file__))
    for (name, pretrained), expected in (named | dict.fromkeys((*unnamed, ("", "")))).items():
        backbone = BackboneConfig(title="any", model=name, pretrained=pretrained)
        assert base_model_of(backbone) == expected


@pytest.mark.slow
def test_runs_from_banks_do_not_import_open_clip(tiny_bank, tmp_path):
    encoder = BackboneConfig(model="ViT-B-32", pretrained="openai", precision="fp32", fingerprint={"model": "ViT-B-32"})
    replace(load_bank(tiny_bank), encoder=encoder).save(tiny_bank)
    code = "import sys; from trainers.hegraph.__main__ import main; print(main(), 'open_clip' in sys.modules)"
    words = ["--features", tiny_bank, "--shots", "2", "--output-dir", tmp_path / "run", "OPTIM.MAX_EPOCH", "1"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert done.stdout.endswith("\n0 False\n"), done.stderr
    assert load_model(tmp_path / "run").backbone.model == "ViT-B-32"


def test_model_has_the_scores_of_its_record(finished_run_once):
    record, model = read_record(finished_run_once), load_model(finished_run_once)
    assert (model.scores.accuracy, model.scores.accuracy_text) == (record["accuracy"], record["accuracy_text"])
    assert model.scores.ece == record["calibration"]["after"]["ece"]
    assert model.scores.ece_zero_shot == record["calibration"]["zero_shot"]["ece"]


# Images


@pytest.fixture
def mini_model(finished_digits_once: Path) -> SavedModel:
    """A model of ten classes on mini's features."""
    return load_model(finished_digits_once)


@pytest.mark.parametrize(("key", "message"), [
    ("backbone", "got {} with another preprocess; use"),
    ("text_positive", "features of width 64, but the model takes 32"),
])  # fmt: skip
def test_other_backbones_are_rejected(mini_model, mini, unit_features, key, message):
    fingerprint = mini.fingerprint | {"preprocess": "else"}
    other = mini_model.backbone.model_copy(update={"fingerprint": fingerprint})
    changes = {"backbone": other, "text_positive": unit_features(3, 32)}
    with pytest.raises(UserError, match=message.format(mini.name)):
        ImageModel(mini_model.model_copy(update={key: changes[key]}), mini)


def test_models_from_banks_need_a_named_backbone(mini_model, mini, caplog):
    of_bank = mini_model.model_copy(update={"backbone": BackboneConfig(title="RN50/openai")})
    with pytest.raises(UserError, match=r'from a feature bank \(RN50/openai\).*--backbone NAME.*backbone="NAME"'):
        ImageModel.load(of_bank)
    ImageModel.load(of_bank, backbone="hegraph-mini")
    assert "the model was trained from a bank of 'RN50/openai', and its backbone is hegraph-mini" in caplog.text
    caplog.clear()
    ImageModel(mini_model.model_copy(update={"backbone": BackboneConfig(title=mini.name)}), mini)
    assert caplog.text == ""


def test_default_weights_belong_to_the_backbone(mini_model, monkeypatch):
    named = BackboneConfig(title="RN50/openai", model="RN50", pretrained="openai")
    of_rn50, loaded = mini_model.model_copy(update={"backbone": named}), []
    monkeypatch.setattr(loading, "load_backbone", lambda *words: loaded.append(words) or 1 / 0)
    for words in ((), ("RN50",), ("RN101", "yfcc15m"), ("RN101",)):
        with pytest.raises(ZeroDivisionError):
            ImageModel.load(of_rn50, "cpu", *words)
    own = ("RN50", "openai", "cpu", "auto")
    assert loaded == [own, own, ("RN101", "yfcc15m", "cpu", "auto"), ("RN101", "", "cpu", "auto")]


def test_features_do_not_depend_on_batches(tmp_path, mini_model, mini):
    paths = [tmp_path / f"{row}.png" for row in range(7)]
    for row, path in enumerate(paths):
        open_digit(f"digits/{row:04d}").save(path)
    expected = mini.encode_images(torch.stack([mini.preprocess(Image.open(path).convert("RGB")) for path in paths]))
    model = ImageModel(mini_model, mini)
    assert torch.equal(model.features(paths), expected)
    assert torch.allclose(model.features(map(str, paths), batch_size=2), expected, atol=1e-6)
    assert torch.equal(model.features([Image.open(path) for path in paths]), expected)
    assert (model.features([]).shape, model.probabilities([]).shape) == ((0, 64), (0, 10))
    assert torch.equal(model.probabilities(paths), mini_model.probabilities(expected))
    with pytest.raises(UserError, match=f"cannot read {tmp_path / 'none.png'}: No such file"):
        model.features([*paths, tmp_path / "none.png"])

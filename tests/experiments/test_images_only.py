"""Encoder without text: class names are not used, and images alone define the classes."""

import asyncio
import json
import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

from trainers.hegraph import HeGraphClassifier, UserError, compare_backbones, load_bank, load_cfg
from trainers.hegraph.__main__ import main
from trainers.hegraph.apps.demo.answer import compute_answer, summary
from trainers.hegraph.estimator.model_selection import backbones
from trainers.hegraph.estimator.model_selection.candidates import Candidate
from trainers.hegraph.experiments.prompt_source import images_only_backbone, with_prompt_source
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.images import ImageModel

NODE = "TRAINER.HEGRAPHADAPTER"
SOURCE = f"{NODE}.PROMPTS.SOURCE"
DIGITS = ("--dataset-config-file", "digits", "--config-file", "mini", f"{NODE}.FEATURES.VIEWS", "2")


@pytest.fixture
def words(images_only) -> tuple[str, ...]:
    """Arguments of a run on the digits with the encoder."""
    return (*DIGITS, "MODEL.BACKBONE.NAME", images_only, f"{NODE}.VARIANT", "training_free")


def test_auto_means_none_and_is_said_once(words, images_only, run, caplog):
    caplog.set_level(logging.INFO)
    record, out = run(*words, bank=None, quick=())
    said = [line for line in caplog.messages if "of images only" in line]
    assert said == [f"{images_only} has features of images only, so class names are not used (PROMPTS.SOURCE none)"]
    assert record["config"][SOURCE] == "none" and record["accuracy_zero_shot"] is None
    assert record["accuracy"] > 60 and record["backbone"] == "mini without text"
    model = load_model(out)
    assert not model.has_text and model.prompts is None and model.text_trust is None


@pytest.mark.parametrize(("key", "value", "asked"), [
    ("SOURCE", "templates", "PROMPTS.SOURCE templates"), ("SOURCE", "both", "PROMPTS.SOURCE both"),
    ("DESCRIPTIONS", "text.json", "PROMPTS.DESCRIPTIONS"),
])  # fmt: skip
def test_other_source_is_refused(images_only, key, value, asked, refused):
    cfg = load_cfg("digits", "mini", opts=["MODEL.BACKBONE.NAME", images_only, f"{NODE}.PROMPTS.{key}", value])
    problem = f"{asked} needs text, and {images_only} has features of images only"
    with refused("prompts.backbone", problem, "choose an encoder with text"):
        with_prompt_source(cfg, images_only_backbone(cfg))


def test_source_of_a_backbone_with_text_stays():
    cfg = load_cfg("digits", "mini")
    assert with_prompt_source(cfg, images_only_backbone(cfg)) is cfg


def test_methods_that_need_text_are_refused(words, images_only, run):
    message = run("--trainer", "TipAdapter", *words[:-2], bank=None, quick=(), code=2)
    assert f"TipAdapter needs class texts; choose an encoder with text instead of {images_only}" in message


def test_linear_probe_needs_no_text(words, run):
    record, out = run("--trainer", "LinearProbe", *words[:-2], bank=None, quick=())
    assert record["accuracy"] > 60 and record["accuracy_zero_shot"] is None
    assert not load_model(out).has_text


def test_model_is_tested_with_the_same_command(words, run):
    record, out = run(*words, bank=None, quick=())
    tested, _ = run("--eval-only", "--model-dir", str(out), *words, bank=None, quick=(), name="tested")
    assert tested["accuracy"] == record["accuracy"]


def test_table_mixes_encoders_with_and_without_text(images_only, digits_images, monkeypatch):
    candidates = [Candidate(name=images_only), Candidate(name="hegraph-mini")]
    monkeypatch.setattr(backbones, "read_candidates", lambda specified: candidates)
    frame = compare_backbones(*digits_images).set_index("backbone")
    assert frame["error"].tolist() == ["", ""] and frame["held_out"].min() > 50
    assert frame["zero_shot"].isna().to_dict() == {images_only: True, "hegraph-mini": False}


def test_label_check_needs_no_text(words, images_only, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    flags = ("label", "check", "--root", str(tmp_path), *words[:4], "--format", "jsonl")
    main([*flags, *words[6:8], "DATASET.NUM_SHOTS", "4"])
    for line in capsys.readouterr().out.splitlines():
        assert json.loads(line)["suggested"]
    assert f"{images_only} has features of images only" in caplog.text


def test_classifier_learns_images_but_no_names(images_only, digits_images):
    images, labels = digits_images
    classifier = HeGraphClassifier(images_only, config="mini", dataset_config="digits", variant="training_free")
    classifier.fit(images[:20], labels[:20]).partial_fit(images[20:], labels[20:])
    assert classifier.score(images, labels) > 0.8 and classifier.model_.prompts is None
    with pytest.raises(UserError, match="'ten' has no images, and images alone define the classes"):
        classifier.add_class("ten")
    with pytest.raises(UserError, match="PROMPTS.SOURCE templates needs text, and timm:mini has features"):
        HeGraphClassifier(images_only, options={SOURCE: "templates"}).fit(images, labels)


# Applications of a model


@pytest.fixture
def model(words, run) -> Path:
    """Output folder of a training of two shots."""
    return run(*words, bank=None, quick=())[1]


@pytest.fixture
def scans(tmp_path, digits_images) -> Path:
    """Folder of scans of zeros and ones, three of each."""
    for number, (image, label) in enumerate(zip(*digits_images)):
        if label in ("zero", "one"):
            (tmp_path / "scans/train" / label).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "scans/train" / label / f"{number}.png")
    return tmp_path / "scans"


def called(capsys, *words: object) -> str:
    """Run a command that succeeds; returns its standard output."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 0
    return capsys.readouterr().out


def test_commands_take_the_model(model, scans, tmp_path, capsys):
    rows = called(capsys, "predict", model, scans, "--format", "csv", "--top", "1").splitlines()
    assert len(rows) == 7
    assert len(called(capsys, "label", "suggest", model, scans, "-n", "2", "--format", "jsonl").splitlines()) == 2
    (scans / "train/zero").rename(scans / "train/part 43")
    called(capsys, "train-more", model, "--root", scans, "--out", tmp_path / "larger")
    larger = load_model(tmp_path / "larger")
    assert "part 43" in larger.classnames and not larger.has_text
    called(capsys, "results", "report", model, "--out", tmp_path / "report.html")
    assert "encoder mini without text to 10 classes" in (model / "model/README.md").read_text()


def test_server_takes_the_model(model, images_only, scans):
    pytest.importorskip("fastapi_offline", reason="the extra `serve` is not installed")
    from trainers.hegraph.apps.serve.learning import Learner

    shutil.copytree(model / "model", scans / "model")
    learner = Learner.load(scans / "model")
    try:
        [file] = [*(scans / "train/one").iterdir()][:1]
        asyncio.run(learner.add([(file.name, file.read_bytes())], [["part 43"]]))
        with pytest.raises(UserError, match="'part 44' has no images"):
            asyncio.run(learner.add([], [], ["part 44"]))
    finally:
        learner.close()
    assert "part 43" in load_model(scans / "model").classnames


def test_onnx_file_takes_pixels(model, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    printed = called(capsys, "export", model, "--onnx", tmp_path / "model.onnx")
    assert float(printed.split("probabilities ")[1]) < 1e-3


def test_demo_answers_without_zero_shot_clip(model):
    images = ImageModel.load(load_model(model))
    answer = compute_answer(images.model, images.features([Image.new("RGB", (8, 8))]))
    assert [each.zero_shot for each in answer.scores] == [None] * len(answer.scores)
    assert "image encoder mini without text" in summary(images.model)


def test_unlabelled_images_need_no_text(words, run):
    record, out = run("--unlabelled", "pool", *words, bank=None, quick=())
    assert record["unlabelled"]["num_images"] > 500 and record["accuracy"] > 60
    assert not load_model(out).has_text


def test_several_labels_need_no_text(images_only, digits_images):
    images, labels = digits_images
    y = [{label, "even" if label in ("zero", "two", "four", "six", "eight") else "odd"} for label in labels]
    classifier = HeGraphClassifier(images_only, config="mini", dataset_config="digits", variant="training_free")
    classifier.fit(images, y)
    assert classifier.model_.thresholds is not None and not classifier.model_.has_text


def test_bank_of_the_encoder_needs_no_text(words, run, tmp_path, capsys):
    bank = tmp_path / "bank.safetensors"
    called(capsys, "features", "extract", *words[:4], "--out", bank, *words[4:-2])
    assert not load_bank(bank).has_text
    record, _ = run(*words[2:4], *words[-2:], bank=bank, quick=())
    assert record["accuracy"] > 60 and record["accuracy_zero_shot"] is None
    assert record["backbone"] == "mini without text" and record["config"][SOURCE] == "none"

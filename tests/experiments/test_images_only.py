"""Encoder without text: class names are not used, and images alone define the classes."""

import json
import logging

import pytest

from trainers.hegraph import HeGraphClassifier, UserError, load_cfg
from trainers.hegraph.__main__ import main
from trainers.hegraph.experiments.prompt_source import images_only_backbone, with_prompt_source
from trainers.hegraph.models.folder import load_model

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

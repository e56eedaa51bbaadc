"""Runs with PROMPTS.SOURCE none: class names are not used, and class means stand in as text nodes."""

import json
import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.hegraph import UserError, load_bank, load_cfg
from trainers.hegraph.__main__ import main
from trainers.hegraph.baselines.hegraph import new_model
from trainers.hegraph.experiments.bank_task import BankTask
from trainers.hegraph.experiments.calibration import fit_calibration, without_images
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.method.graph import class_prototypes
from trainers.hegraph.method.mean_text import with_own_nodes, without_text
from trainers.hegraph.method.unlabelled import adapt_to_unlabelled
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.saved import adapt
from trainers.hegraph.results.comparison import calibration_table, compare

NODE = "TRAINER.HEGRAPHADAPTER"
NO_NAMES = (f"{NODE}.PROMPTS.SOURCE", "none")
FREE = (f"{NODE}.VARIANT", "training_free")


@pytest.fixture
def bank(tiny_bank) -> FeatureBank:
    return load_bank(tiny_bank)


def other_text(path) -> None:
    """Replace the text of a bank file by other features."""
    bank = load_bank(path)
    changed = {name: getattr(bank, name).roll(1, dims=1) for name in ("text_positive", "text_negative")}
    replace(bank, **changed).save(path)


@pytest.mark.parametrize("variant", ["full", "T", "training_free"])
def test_text_of_a_bank_changes_nothing(run, tiny_bank, variant):
    words = (f"{NODE}.VARIANT", variant, *NO_NAMES)
    record, out = run(*words)
    other_text(tiny_bank)
    again, other = run(*words, name="other")
    assert again["accuracy"] == record["accuracy"] and again["split_hash"] == record["split_hash"]
    left, right = load_model(out), load_model(other)
    assert torch.equal(left.classifier.weights, right.classifier.weights)


def test_record_has_no_zero_shot_scores(run):
    record, out = run(*NO_NAMES)
    empty = ("accuracy_zero_shot", "macro_accuracy_zero_shot")
    assert [record[key] for key in empty] == [None, None] and record["calibration"]["zero_shot"] is None
    assert record["accuracy"] > 40 and record["calibration"]["after"]["nll"] > 0
    assert record["config"][NO_NAMES[0]] == "none"
    model = load_model(out)
    assert not model.has_text and model.prompts is None and model.support_set.positive is None
    assert "| zero-shot CLIP |" not in (out / "model" / "README.md").read_text()
    assert compare([record]).labels == [("HeGraphAdapter(T)",), ("HeGraphAdapter",)]
    assert calibration_table([record]).labels == [("HeGraphAdapter",)]


def test_model_without_text_has_no_trust_in_text(run, tiny_bank):
    bank = load_bank(tiny_bank)
    labels = bank.train_labels.clone()
    labels[labels == 1] = 0  # images of two classes, which the mean feature of "ant" does not describe
    labels[bank.train_labels == 0] = torch.tensor([0, 1, 0, 1, 0, 1])
    replace(bank, train_labels=labels).save(tiny_bank)
    _, out = run("--shots", "-1", *NO_NAMES)
    model = load_model(out)
    assert model.text_trust is None and model.names_sentence == ""


def test_test_of_a_model_without_text_repeats_its_scores(run):
    record, out = run(*NO_NAMES, *FREE, quick=())
    tested, _ = run("--eval-only", "--model-dir", str(out), *FREE, quick=(), name="tested")
    assert (tested["accuracy"], tested["accuracy_zero_shot"]) == (record["accuracy"], None)


def test_head_of_the_training_free_variant_is_alone(bank):
    cfg = load_cfg(opts=FREE)
    nothing = torch.zeros_like(bank.text_positive)
    alone = new_model(replace(bank, text_positive=nothing, text_negative=nothing), cfg, 1).fold()
    found = new_model(without_text(bank), cfg, 1).fold()
    assert torch.equal(found.weights, alone.weights) and torch.equal(found.bias, alone.bias)


def test_nodes_are_means_of_the_training_images(bank):
    nodes = without_text(bank)
    keys = bank.cache_keys()
    means = torch.stack([keys[bank.train_labels == label].mean(dim=0) for label in range(5)])
    torch.testing.assert_close(nodes.text_positive, F.normalize(means, dim=-1))
    assert torch.equal(nodes.text_negative, -nodes.text_positive) and not nodes.has_text
    assert torch.equal(nodes.known_text, torch.zeros(5, 16))
    assert with_own_nodes(bank) is bank
    own = without_text(bank, bank.text_negative)
    assert torch.equal(with_own_nodes(own).text_negative, bank.text_negative)


def test_held_out_images_are_in_no_node(bank):
    for part, mask in without_images(without_text(bank), 1):
        keys = bank.cache_keys()[~mask]
        assert torch.equal(part.text_positive, class_prototypes(keys, bank.train_labels[~mask], bank.classnames))
        assert torch.equal(part.text_negative, -part.text_positive)


def test_one_shot_without_text_fits_no_temperature(bank):
    rows = torch.tensor([bank.train_labels.tolist().index(label) for label in range(5)])
    one_shot = replace(
        bank, train_features=bank.train_features[:, rows], train_labels=bank.train_labels[rows],
        val_features=None, val_labels=None,
    )  # fmt: skip

    def fit_again(part: FeatureBank):
        return lambda features: 10 * features @ part.text_positive.t()

    classify = fit_again(without_text(one_shot))
    assert fit_calibration(without_text(one_shot), classify, fit_again, False, 1).temperature == 1
    assert fit_calibration(one_shot, classify, fit_again, False, 1).num_images == 5


@pytest.fixture
def textless(tiny_bank, bank):
    """The file of the bank without its text."""
    replace(bank, has_text=False).save(tiny_bank)
    return tiny_bank


def test_bank_without_text_is_stored_without(bank, textless):
    found = load_bank(textless)
    assert not found.has_text and torch.equal(found.text_positive, torch.zeros(5, 16))
    torch.testing.assert_close(found.train_features, bank.train_features)
    assert found.text_norms is None
    with safe_open(textless, "pt") as file:
        assert not {"text_positive", "text_negative", "text_norms"} & {*file.keys()}


def test_bank_needs_both_text_features_or_none(tiny_bank):
    tensors = load_file(tiny_bank)
    with safe_open(tiny_bank, "pt") as file:
        metadata = file.metadata()
    del tensors["text_negative"]
    save_file(tensors, tiny_bank, metadata)
    with pytest.raises(UserError, match="it lacks text_negative"):
        load_bank(tiny_bank)


def test_run_on_a_bank_without_text_uses_no_names(run, textless, caplog):
    caplog.set_level(logging.INFO)
    record, out = run(*FREE, quick=())
    assert record["config"][NO_NAMES[0]] == "none" and record["accuracy_zero_shot"] is None
    assert f"{textless} has features of images only" in caplog.text
    named, _ = run(*FREE, *NO_NAMES, quick=(), name="named")
    assert named["run_id"] == record["run_id"]
    tested, _ = run("--eval-only", "--model-dir", str(out), *FREE, quick=(), name="tested")
    assert tested["accuracy"] == record["accuracy"]


def test_bank_without_text_refuses_prompts_and_other_methods(run, textless):
    message = run(*FREE, NO_NAMES[0], "templates", quick=(), code=2)
    assert f"PROMPTS.SOURCE templates needs text, and {textless} has features of images only" in message
    message = run("--trainer", "TipAdapter", quick=(), code=2)
    assert f"TipAdapter needs class texts; choose an encoder with text instead of {textless}" in message


def test_adaptation_without_text_takes_no_class_means_as_text(run):
    _, out = run(*FREE, *NO_NAMES, quick=())
    model = load_model(out)
    assert torch.equal(model.text_of_classes(), torch.zeros(5, 16))
    pool = model.support_set.keys()
    alone = adapt_to_unlabelled(
        model.classifier, model.labelled, torch.zeros(5, 16), pool, model.logit_scale, model.temperature
    )
    assert torch.equal(adapt(model, pool, "cpu")[0].classifier.weights, alone.classifier.weights)


@pytest.mark.parametrize(("words", "message"), [
    (("--trainer", "TipAdapter"), "TipAdapter needs class texts; leave out PROMPTS.SOURCE none"),
    (("--target-datasets", "Tiny:new", "DATASET.SUBSAMPLE_CLASSES", "base"), "known by their text alone"),
])  # fmt: skip
def test_runs_that_need_text_are_refused(run, words, message):
    assert message in run(*words, *NO_NAMES, quick=(), code=2)


def test_model_without_text_is_not_tested_on_other_classes(run):
    _, out = run("DATASET.SUBSAMPLE_CLASSES", "base", *FREE, *NO_NAMES, quick=())
    words = ("--eval-only", "--model-dir", str(out), "DATASET.SUBSAMPLE_CLASSES", "new")
    assert "no rule for other classes" in run(*words, *FREE, quick=(), name="tested", code=2)


def test_halves_of_a_bank_have_their_own_means(tiny_bank):
    cfg = load_cfg(opts=["DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "new", *NO_NAMES])
    bank = BankTask(tiny_bank, cfg, 1).bank()
    assert list(bank.classnames) == ["dog", "elk"]
    torch.testing.assert_close(
        bank.text_positive, class_prototypes(bank.cache_keys(), bank.train_labels, ["dog", "elk"])
    )


def test_images_are_trained_without_prompts(run, digits_features):
    words = ("--dataset-config-file", "digits", "--config-file", "mini", f"{NODE}.FEATURES.DIR", str(digits_features))
    record, out = run(*words, *FREE, *NO_NAMES, bank=None, quick=())
    assert record["accuracy_zero_shot"] is None and 50 < record["accuracy"] < 100
    named, _ = run(*words, *FREE, bank=None, quick=(), name="named")
    assert named["accuracy_zero_shot"] is not None and named["run_id"] != record["run_id"]
    model = load_model(out)
    assert model.prompts is None and model.preprocessing is not None


def test_label_check_needs_no_text(tiny_bank, capsys):
    bank = load_bank(tiny_bank)
    labels = bank.train_labels.clone()
    labels[3] = (labels[3] + 1) % 5
    replace(bank, train_labels=labels).save(tiny_bank)
    words = ["label", "check", "--features", str(tiny_bank), "--format", "jsonl", *NO_NAMES]
    assert main(words) == 1
    found = capsys.readouterr().out
    issues = [json.loads(line) for line in found.splitlines()]
    assert issues[0]["suggested"] == bank.classnames[bank.train_labels[3]] and len(issues) < 4
    other_text(tiny_bank)
    assert (main(words), capsys.readouterr().out) == (1, found)


def test_several_labels_per_image_need_no_names(tiny_bank, run):
    bank = load_bank(tiny_bank)

    def indicators(labels):
        return F.one_hot(labels, 5).bool() | F.one_hot((labels + 1) % 5, 5).bool()

    parts = {f"{split}_labels": indicators(getattr(bank, f"{split}_labels")) for split in ("train", "val", "test")}
    replace(bank, **parts).save(tiny_bank)
    record, out = run("--shots", "4", *FREE, *NO_NAMES, quick=())
    assert (record["map_zero_shot"], record["accuracy"]) == (None, None) and record["map"] > 50
    assert not load_model(out).has_text

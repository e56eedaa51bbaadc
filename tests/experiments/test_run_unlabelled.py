"""Runs that hear unlabelled images: which images, by which protocol, what is refused, and what the record says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers.hegraph.datasets import load_dataset
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.unlabelled import ClassSums, hear_unlabelled
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.results.records import read_record

TEXTS = ("text_positive", "text_negative")
DIGITS = ("--dataset-config-file", "digits", "--config-file", "mini", "--shots", "1", "--seed", "1")


@pytest.fixture
def pool_of(tiny_bank) -> Callable[[Path], tuple[torch.Tensor, ClassSums]]:
    """The features of the images of the tiny bank that a run has not drawn, and what those say that it has."""

    def split(out: Path) -> tuple[torch.Tensor, ClassSums]:
        bank = load_bank(tiny_bank)
        drawn = [row for row, *_ in json.loads((out / "split.json").read_text())["train"]]
        undrawn = [row for row in range(len(bank.train_labels)) if row not in drawn]
        keys = bank.cache_keys()
        return torch.cat([keys[undrawn], bank.val_features]), ClassSums.of(keys[drawn], bank.train_labels[drawn], 5)

    return split


def test_a_pool_is_what_was_not_drawn_and_val_and_the_model_has_heard_it(run, finished_run_once, tiny_bank, pool_of):
    plain = read_record(finished_run_once)
    record, out = run("--unlabelled", "pool")
    bank, before, model = load_bank(tiny_bank), load_model(finished_run_once), load_model(out)
    pool, labelled = pool_of(out)
    heard = hear_unlabelled(before.classifier, labelled, bank.text_positive, pool, bank.logit_scale, before.temperature)
    torch.testing.assert_close(model.classifier.weights, heard.classifier.weights, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.classifier.bias, heard.classifier.bias, rtol=1e-4, atol=1e-4)
    for key, classifier in (("accuracy", heard.classifier), ("accuracy_text", heard.classifier.text_only())):
        right = classifier.logits(bank.test_features).argmax(dim=1) == bank.test_labels
        assert record[key] == pytest.approx(100 * right.double().mean().item())
    assert record["protocol"] == "with unlabelled images" and "protocol" not in plain
    assert record["unlabelled"]["images"] == "pool" and record["unlabelled"]["num_images"] == len(pool) == 20 + 15
    assert record["unlabelled"]["shares"]["offsets"] == round(heard.shares.offsets, 4)
    assert model.temperature == before.temperature and model.known is None
    assert (before.unlabelled, model.unlabelled) == (0, 35)
    assert record["run_id"] != plain["run_id"] and "DATASET.UNLABELLED" not in plain["config"]


def test_the_test_images_together_leave_no_model(run, finished_run_once, tiny_bank, pool_of):
    record, out = run("--unlabelled", "test")
    bank, before, (_, labelled) = load_bank(tiny_bank), load_model(finished_run_once), pool_of(out)
    text, features, scale = bank.text_positive, bank.test_features, bank.logit_scale
    heard = hear_unlabelled(before.classifier, labelled, text, features, scale, before.temperature)
    predicted = load_file(out / "predictions.safetensors")["predicted"]
    assert predicted.tolist() == heard.logits.argmax(dim=1).tolist()
    assert record["protocol"] == "transductive" and record["unlabelled"]["num_images"] == 40
    assert not (out / "model").exists()


@pytest.mark.parametrize("what", ["pool", "test"])
def test_a_trained_model_hears_them_in_a_test_of_it_but_not_twice(run, finished_run_once, what):
    trained, heard = run("--unlabelled", what, name="trained")
    tested, folder = run("--eval-only", "--model-dir", str(finished_run_once), "--unlabelled", what, name="tested")
    assert tested["accuracy"] == pytest.approx(trained["accuracy"], abs=2.6)  # cache keys were rounded; 40 images
    assert {**tested["unlabelled"], "shares": None} == {**trained["unlabelled"], "shares": None}
    assert tested["protocol"] == trained["protocol"] and not (folder / "model").exists()
    if what == "pool":
        again = run("--eval-only", "--model-dir", str(heard), "--unlabelled", what, name="again", code=2)
        assert "heard unlabelled images before" in again


def test_zero_shot_has_seen_no_label_and_no_temperature(run, tiny_bank, pool_of):
    _, out = run("--trainer", "ZeroShot", "--unlabelled", "pool", quick=())
    bank, model, (pool, _) = load_bank(tiny_bank), load_model(out / "model"), pool_of(out)
    none = ClassSums.of(pool[:0], bank.train_labels[:0], 5)
    start = FoldedClassifier(bank.logit_scale * bank.text_positive)
    heard = hear_unlabelled(start, none, bank.text_positive, pool, bank.logit_scale, 1.0)
    torch.testing.assert_close(model.classifier.weights, heard.classifier.weights)


def test_images_of_another_bank(run, tiny_bank, tmp_path, unit_features):
    bank, other = load_bank(tiny_bank), tmp_path / "other.safetensors"
    made = replace(
        bank.without_test(), train_features=unit_features(2, 20, 16, seed=8), train_labels=torch.arange(5).repeat(4),
        val_features=None, val_labels=None,
    )  # fmt: skip
    made.save(other)
    record, _ = run("--unlabelled", str(other))
    assert record["unlabelled"]["num_images"] == 20 and record["unlabelled"]["images"] == str(other)
    found = made.train_features.clone()
    found[:, 3] = bank.test_features[7]
    narrow = {name: unit_features(*getattr(made, name).shape[:-1], 8) for name in (*TEXTS, "train_features")}
    for name, changes, said in (
        ("test", {"train_features": found}, "1 of 20 unlabelled images are test images as well, such as row 3"),
        ("backbone", {"backbone": "RN50"}, "'RN50'"),
        ("width", narrow, "width 16, got [20, 8]"),
    ):
        replace(made, **changes).save(other)
        assert said in run("--unlabelled", str(other), name=name, code=2)


@pytest.mark.parametrize("name", ["TransCLIP", "StatA"])
def test_a_transductive_method_starts_from_the_trained_adapter(run, name):
    words = ("--trainer", name, "--unlabelled", "test")
    record, out = run(*words)
    again, _ = run(*words, name="zero", quick=(f"TRAINER.{name.upper()}.BASE", "ZeroShot"))
    assert record["protocol"] == again["protocol"] == "transductive"
    assert record["num_parameters"] > again["num_parameters"] == 0
    assert record["config"]["OPTIM.MAX_EPOCH"] == 3 and "OPTIM.MAX_EPOCH" not in again["config"]
    assert not (out / "model").exists() and record["accuracy"] >= 80


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--trainer", "StatA"), "StatA predicts all test images together: give --unlabelled test"),
        (("--trainer", "StatA", "--unlabelled", "test", "TRAINER.STATA.BASE", "GDA"), "'GDA'"),
        (("--unlabelled", "test", "--target-datasets", "Tiny:new"), "leave out the targets"),
        (("--unlabelled", "nowhere"), "nowhere has to be encoded"),
    ],
)
def test_what_cannot_be_heard_is_refused_in_one_line(run, flags, words):
    assert words in run(*flags, quick=(), code=2)


def test_a_pool_of_images_is_encoded_and_a_folder_is_one(run, digits_features, tmp_path):
    keys = ("TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(digits_features))
    pool, _ = run(*DIGITS, "--unlabelled", "pool", bank=None, quick=keys)
    plain, _ = run(*DIGITS, name="plain", bank=None, quick=keys)
    assert pool["accuracy"] > plain["accuracy"] + 1
    assert pool["unlabelled"]["num_images"] == 898 - 10
    digits, folder = load_dataset("digits"), tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for number, item in enumerate(digits.train[:5]):
        digits.read(item.path).save(folder / "below" / f"{number}.png")
    own, _ = run(*DIGITS, "--unlabelled", str(folder), name="own", bank=None, quick=keys)
    assert own["unlabelled"]["num_images"] == 5
    table = tmp_path / "images.csv"
    table.write_text("path\nimages/below/3.png\nimages/below/4.png\n")
    listed, _ = run(*DIGITS, "--unlabelled", str(table), name="listed", bank=None, quick=keys)
    assert listed["unlabelled"]["num_images"] == 2
    (folder / "below" / "3.png").write_bytes(b"no image")
    assert "below/3.png" in run(*DIGITS, "--unlabelled", str(table), name="b", bank=None, quick=keys, code=2)
    skipped, _ = run(*DIGITS, "--unlabelled", str(table), "--skip-unreadable", name="skipped", bank=None, quick=keys)
    assert skipped["unlabelled"]["num_images"] == 1

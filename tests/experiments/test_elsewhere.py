"""Testing elsewhere what was trained: other domains of the same classes, and other classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets import load_dataset, load_few_shot
from trainers.hegraph.datasets.digits import DOMAINS
from trainers.hegraph.experiments.elsewhere import match_classes
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.utils.errors import UserError

ROOT = Path(__file__).parents[2]
NODE = "TRAINER.HEGRAPHADAPTER"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Function of trainer and arguments: the record of a quick run on the digits."""
    folder = tmp_path_factory.mktemp("targets")

    def command(name: str, trainer: str, *flags: str, opts: tuple[str, ...] = (), dataset: str = "digits") -> dict:
        code = main([
            "--dataset-config-file", str(ROOT / "configs" / "datasets" / f"{dataset}.yaml"),
            "--config-file", str(ROOT / "configs" / "trainers" / "HeGraphAdapter" / "mini.yaml"),
            "--output-dir", str(folder / name), "--shots", "2", "--seed", "1", "--trainer", trainer, *flags,
            f"{NODE}.FEATURES.DIR", str(folder / "features"), f"{NODE}.FEATURES.VIEWS", "2", *opts,
        ])  # fmt: skip
        assert code == 0
        return json.loads((folder / name / "result.json").read_text())

    return command


def test_the_same_images_as_their_own_domain_give_the_accuracy_of_the_text_classifier(run):
    heavy = (f"{NODE}.ALPHA_C", "16")  # a cache that changes the accuracy, which the text classifier alone has not
    record = run("same", "HeGraphAdapter", "--target-domains", "Digits", "DigitsInverted", opts=heavy)
    own, inverted = record["targets"]["Digits"], record["targets"]["DigitsInverted"]
    assert own["accuracy"] == record["accuracy_text"] != record["accuracy"]
    assert own["accuracy_zero_shot"] == record["accuracy_zero_shot"]
    assert own["rule"] == inverted["rule"] == "same classes"
    assert (inverted["num_test"], inverted["num_classes"]) == (899, 10)
    assert inverted["accuracy"] != own["accuracy"]


def test_of_some_of_the_classes_only_those_compete_and_they_are_matched_by_name(run):
    whole = run("whole", "ZeroShot", "--target-domains", "DigitsHigh", "DigitsLow")
    half = run("half", "ZeroShot", "--target-domains", "DigitsHigh", dataset="digits_high")
    assert whole["targets"]["DigitsHigh"]["num_classes"] == 5
    assert whole["targets"]["DigitsHigh"]["accuracy"] == half["accuracy"]
    assert whole["targets"]["DigitsLow"]["accuracy"] > whole["accuracy"]  # five classes are easier than ten


@pytest.mark.parametrize("trainer", ["ZeroShot", "CLIPAdapter", "HeGraphAdapter", "CoOp"])
def test_other_classes_are_scored_by_methods_with_a_rule(run, trainer):
    opts = ("TRAINER.COOP.EPOCHS", "[[1, 20]]") if trainer == "CoOp" else ()
    record = run(f"other-{trainer}", trainer, "--target-datasets", "DigitsHigh", opts=opts, dataset="digits_low")
    found = record["targets"]["DigitsHigh"]
    assert found["rule"] == "other classes"
    assert found["num_classes"] == 5
    assert found["accuracy"] > 40  # of five classes
    if trainer == "ZeroShot":
        assert found["accuracy"] == found["accuracy_zero_shot"]


def test_a_method_without_a_rule_for_other_classes_leaves_the_cell_empty(run):
    record = run("none", "TipAdapter", "--target-datasets", "DigitsHigh", dataset="digits_low")
    assert record["targets"]["DigitsHigh"]["accuracy"] is None
    assert record["targets"]["DigitsHigh"]["accuracy_zero_shot"] > 50


def test_a_half_of_the_classes_is_the_data_set_of_that_half(run):
    targets = ("--target-datasets", "Digits:new", "DigitsHigh")
    record = run("base", "ZeroShot", *targets, opts=("DATASET.SUBSAMPLE_CLASSES", "base"))
    assert record["targets"]["Digits:new"] == record["targets"]["DigitsHigh"]
    assert record["num_test"] == 448


def test_classes_are_matched_by_id_never_by_position():
    assert match_classes(["n1", "n2", "n3"], ["n3", "n1"], "ImageNet", "ImageNetA") == [2, 0]


def test_a_target_with_a_class_that_the_source_lacks_is_refused():
    with pytest.raises(UserError, match=r"2 of 3 classes of B are none of A's \(n8, n9\).*--target-datasets B"):
        match_classes(["n1", "n2"], ["n8", "n1", "n9"], "A", "B")


def test_a_bank_has_no_other_data_sets(tiny_bank, tmp_path, capsys):
    code = main(["--features", str(tiny_bank), "--output-dir", str(tmp_path / "out"), "--shots", "2",
                 "--trainer", "ZeroShot", "--target-domains", "DigitsInverted"])  # fmt: skip
    assert code == 2
    assert "a feature bank has no other data sets" in capsys.readouterr().err


def run_of(bank, out, *words):
    """The record of a run of two shots from a bank."""
    assert main(["--features", str(bank), "--output-dir", str(out), "--shots", "2", "--seed", "1", *words]) == 0
    [path] = out.rglob("result.json")
    return json.loads(path.read_text())


def test_the_other_half_of_a_banks_classes_is_a_target_and_scores_as_a_test_of_the_model_there(tiny_bank, tmp_path):
    base = ("DATASET.SUBSAMPLE_CLASSES", "base")
    trained = run_of(tiny_bank, tmp_path / "run", "--target-datasets", "Tiny:new", *base)
    tested = run_of(tiny_bank, tmp_path / "test", "--eval-only", "--model-dir", str(tmp_path / "run"),
                    "DATASET.SUBSAMPLE_CLASSES", "new")  # fmt: skip
    [(name, scores)] = trained["targets"].items()
    assert (name, scores["rule"], scores["num_classes"], scores["num_test"]) == ("Tiny:new", "other classes", 2, 16)
    for key in ("accuracy", "accuracy_zero_shot", "num_test"):
        assert scores[key] == tested[key]


def test_a_target_of_one_class_is_refused(tiny_bank, tmp_path, capsys):
    three = tmp_path / "three.safetensors"
    load_bank(tiny_bank).of_classes(torch.arange(3)).save(three)
    flags = ["--features", str(three), "--trainer", "ZeroShot", "--target-datasets", "Tiny:new"]
    assert main([*flags, "--output-dir", str(tmp_path / "run"), "DATASET.SUBSAMPLE_CLASSES", "base"]) == 2
    assert "Tiny:new: there must be at least two classes to tell apart, got 1" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["Tiny", "Tiny:", "Tiny:old", "Other:new"])
def test_a_bank_gives_no_other_classes_than_the_halves_of_its_own(tiny_bank, tmp_path, capsys, target):
    code = main(["--features", str(tiny_bank), "--output-dir", str(tmp_path / "out"), "--shots", "2",
                 "--target-datasets", target])  # fmt: skip
    assert code == 2
    assert f"may be Tiny:base or Tiny:new, got '{target}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_of_the_digits_has_other_pixels_of_the_same_test_scans(name):
    digits, domain = load_dataset("Digits"), load_dataset(name)
    assert domain.test == digits.test
    assert not domain.train
    for path in ("digits/0898", "digits/0899"):
        scan, other = (np.asarray(dataset.open(path)) for dataset in (digits, domain))
        assert other.shape == scan.shape == (8, 8, 3)
        assert not np.array_equal(scan, other)
        assert np.array_equal(other, np.asarray(load_dataset(name).open(path)))  # the same whenever it is opened


def test_a_domain_cannot_be_trained_on():
    with pytest.raises(UserError, match="only test images: train on Digits with --target-domains DigitsNoisy"):
        load_few_shot("DigitsNoisy", "", 2, 1)


def test_the_halves_of_the_digits_share_no_class():
    low, high = load_dataset("DigitsLow"), load_dataset("DigitsHigh")
    assert list(low.classnames) == ["zero", "one", "two", "three", "four"]
    assert list(high.classnames) == ["five", "six", "seven", "eight", "nine"]
    assert {item.label for item in high.test} == set(range(5))

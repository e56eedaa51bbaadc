"""Runs with DATASET.SHOTS_PER_CLASS: their sample, identity and record, for every method."""

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from trainers.hegraph.baselines import METHODS, TRANSDUCTIVE_METHODS, load_method
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.results.records import find_records

UNEQUAL = ("DATASET.SHOTS_PER_CLASS", "3,1,2,1,1")
TRAINED = ("--shots", "3", *UNEQUAL)
FREE = ("TRAINER.HEGRAPHADAPTER.VARIANT", "training_free")
ON_BANKS = [name for name in METHODS if not load_method(name).needs_backbone and name not in TRANSDUCTIVE_METHODS]


def images_of_classes(folder) -> list[int]:
    split = json.loads((folder / "split.json").read_text())
    counts = Counter(label for _, label, _ in split["train"])
    return [counts[label] for label in range(5)]


def test_record_and_model_say_the_unequal_numbers(run):
    record, out = run(*TRAINED)
    assert images_of_classes(out) == [3, 1, 2, 1, 1]
    said = (record["shots"], record["shots_per_class"], record["images_per_class"], record["num_train"])
    assert said == (3, "3,1,2,1,1", [1, 3], 8)
    assert record["config"]["DATASET.SHOTS_PER_CLASS"] == "3,1,2,1,1"
    assert load_model(out).images == (3, 1, 2, 1, 1)
    assert find_records([out]) == [record]
    tested, _ = run("--eval-only", "--model-dir", str(out), name="tested")
    assert (tested["shots_per_class"], tested["accuracy"]) == ("3,1,2,1,1", record["accuracy"])


@pytest.mark.parametrize("name", ON_BANKS)
def test_every_method_takes_unequal_numbers(run, name):
    record, out = run("--trainer", name, *TRAINED, quick=())
    assert (record["shots_per_class"], images_of_classes(out)) == ("3,1,2,1,1", [3, 1, 2, 1, 1])


def test_unequal_run_is_no_equal_run(run):
    equal, out = run("--shots", "3", *FREE, quick=())
    assert "shots_per_class" not in equal and UNEQUAL[0] not in equal["config"]
    assert "holds the result of a run with other settings" in run(*TRAINED, *FREE, quick=(), code=2)
    unequal, _ = run(*TRAINED, *FREE, quick=(), name="unequal")
    again, _ = run(*TRAINED, *FREE, quick=(), name="unequal")
    assert again == unequal and unequal["run_id"] != equal["run_id"]
    assert out.is_dir()


def test_equal_list_is_another_run_with_equal_scores(run):
    equal, _ = run(*FREE, quick=())
    listed, _ = run("DATASET.SHOTS_PER_CLASS", "2,2,2,2,2", *FREE, quick=(), name="listed")
    assert listed["run_id"] != equal["run_id"] and listed["split_hash"] == equal["split_hash"]
    assert (listed["accuracy"], listed["calibration"]) == (equal["accuracy"], equal["calibration"])


def test_long_tail_of_a_bank_follows_the_seed(run):
    first = images_of_classes(run("--shots", "4", "DATASET.SHOTS_PER_CLASS", "long-tailed:1-4", *FREE, quick=())[1])
    assert sorted(first) == [1, 1, 2, 3, 4]  # 4^(j/4): 1, 1.41, 2, 2.83, 4
    words = ("--shots", "4", "--seed", "5", "DATASET.SHOTS_PER_CLASS", "long-tailed:1-4")
    other = images_of_classes(run(*words, *FREE, quick=(), name="other")[1])
    assert sorted(other) == sorted(first) and other != first


def test_pool_of_a_test_lacks_the_unequal_images(run):
    _, out = run(*TRAINED, *FREE, quick=())
    words = ("--eval-only", "--model-dir", str(out), "--unlabelled", "pool")
    record, _ = run(*words, *FREE, quick=(), name="tested")
    assert record["unlabelled"]["num_images"] == 5 * (6 + 3) - 8


def test_list_needs_a_number_for_each_class(run):
    error = run("DATASET.SHOTS_PER_CLASS", "2,1", code=2)
    assert "DATASET.SHOTS_PER_CLASS has 2 numbers for 5 classes" in error


def test_record_has_macro_accuracy(run):
    record, out = run(*TRAINED)
    predicted = load_file(out / "predictions.safetensors")
    correct = (predicted["predicted"] == predicted["labels"]).double()
    of_class = [correct[predicted["labels"] == label].mean() for label in range(5)]
    assert record["macro_accuracy"] == pytest.approx(100 * torch.stack(of_class).mean().item())
    assert record["macro_accuracy_zero_shot"] == pytest.approx(record["accuracy_zero_shot"])  # 8 images of each class

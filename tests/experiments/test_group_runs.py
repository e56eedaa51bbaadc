"""Runs on images with groups: what they sample, and what they record."""

from dataclasses import replace

import pytest
import torch

from trainers.hegraph import load_bank, load_cfg
from trainers.hegraph.experiments import calibration
from trainers.hegraph.experiments.bank_task import BankTask
from trainers.hegraph.results.records import PREDICTIONS, read_test_groups


@pytest.fixture
def grouped_bank(tiny_bank):
    """The tiny bank, in which pairs of training images of a class are a group, and test shares four of the groups."""
    bank = load_bank(tiny_bank)
    position = torch.stack([(bank.train_labels[:row] == bank.train_labels[row]).sum() for row in range(30)])
    train = 3 * bank.train_labels + position // 2
    test = torch.arange(100, 140)
    test[:4] = torch.arange(4)
    changed = replace(bank, train_groups=train, val_groups=torch.arange(200, 215), test_groups=test)
    changed.save(tiny_bank)
    return changed


def test_record_names_shared_groups(grouped_bank, run, caplog):
    record, _ = run("--shots", "-1")
    groups = record["groups"]
    assert (groups["num_groups"], groups["test_in_train"], groups["val_in_train"]) == (66, 10.0, 0.0)
    assert groups["warning"].startswith("the groups of 4 of 40 test images (10.0 %) occur in train")
    assert f"Tiny: {groups['warning']}" in caplog.messages


def test_predictions_have_the_groups_of_test(grouped_bank, run):
    _, out = run()
    assert read_test_groups(out / PREDICTIONS).tolist() == grouped_bank.test_groups.tolist()
    _, tested = run("--eval-only", "--model-dir", str(out), name="tested")
    assert read_test_groups(tested / PREDICTIONS).tolist() == grouped_bank.test_groups.tolist()


def test_run_samples_whole_groups(grouped_bank, tiny_bank):
    task = BankTask(tiny_bank, load_cfg(opts=["DATASET.NUM_SHOTS", 2]), seed=1)
    groups = task.bank().train_groups
    assert len(groups) == 10 and len(groups.unique()) == 5


def test_calibration_holds_out_whole_groups(grouped_bank):
    parts = list(calibration.without_images(grouped_bank, seed=1))
    assert len(parts) == 3
    for rest, mask in parts:
        assert mask.sum() == 10 and len(rest.train_groups) == 20
        assert {*rest.train_groups.tolist()}.isdisjoint(grouped_bank.train_groups[mask].tolist())

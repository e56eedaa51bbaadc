"""Paired differences, confusion matrices and open-set scores, checked by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from trainers.hegraph import FeatureBank, UserError, load_bank
from trainers.hegraph.__main__ import main as train
from trainers.hegraph.commands.results import main
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.training.confidence import KnownScores
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.results.by_image import (
    PAIR_KEYS,
    ZERO_SHOT_SCORE,
    Difference,
    all_scores,
    confusion_matrix,
    difference,
    hardest_pairs,
    node_scores,
    paired_table,
    read_runs,
    score_images,
    separation,
)
from trainers.hegraph.results.records import PREDICTIONS, write_record, write_tensors_with_classes

# Differences


def correct(**rows: tuple[str, ...]) -> pd.DataFrame:
    """Runs of each data set, one per seed from 1 on; 1 in a text such as "110" is a correct prediction."""
    return pd.DataFrame([
        dict.fromkeys(PAIR_KEYS, "") | {"dataset": name, "seed": seed, "outcome": np.array([c == "1" for c in row])}
        for name, of_seeds in rows.items()
        for seed, row in enumerate(of_seeds, 1)
    ])  # fmt: skip


def test_difference_is_mean_over_images_seeds_data_sets():
    ours = correct(pets=("1110", "1100"), cars=("11", "10"))
    # pets: (1 + 1) of 8 more = 25 points; cars: 1 of 4 more = 25 points, or none
    assert difference(ours, correct(pets=("1010", "0100"), cars=("10", "10"))).mean == pytest.approx(25)
    assert difference(ours, correct(cars=("11", "10"), pets=("1010", "0100"))).mean == pytest.approx(12.5)
    assert difference(ours, ours) == Difference(0.0, 0.0, 0.0)
    with pytest.raises(UserError, match="at least two"):
        difference(correct(cars=("1",)), correct(cars=("1",)))


def test_interval_covers_resampled_images():
    found = difference(correct(pets=("1" * 60 + "0" * 40,)), correct(pets=("1" * 50 + "0" * 50,)))
    # 10 of 100 images differ, all one way: a binomial share of 0.1, whose 95% interval is 10 +- 1.96 * 3
    assert found.mean == pytest.approx(10)
    assert found.low == pytest.approx(4.1, abs=1.2) and found.high == pytest.approx(15.9, abs=1.2)
    assert str(found).startswith("**+10.00 (")
    assert str(Difference(-2.0, -3.0, -1.0)) == "**-2.00 (-3.00 to -1.00)**"


def test_rounding_errors_do_not_exclude_zero():
    same = "1" * 93
    ours = correct(pets=("1111" + "1" + "00" + same, "1111" + "1" + "11" + same, "1111" + "1" + "11" + same))
    theirs = correct(pets=("0000" + "0" + "11" + same, "0000" + "1" + "11" + same, "0000" + "1" + "11" + same))
    found = difference(ours, theirs)
    assert found.mean == pytest.approx(4 + 1 / 3 - 2 / 3)  # of 100 images four in every seed, and in one of three 1 - 2
    assert found.low == 0.0  # the sum of thirds is 4e-16
    assert str(found).startswith("+3.67 (0.00 to ")


def test_pairs_need_equal_data_sets_and_seeds():
    ours, both = correct(pets=("110", "010")), correct(pets=("110", "010"), cars=("1", "1"))
    assert difference(ours, ours[:0]) is None and difference(ours, correct(pets=("110",))) is None
    assert difference(ours, both) is None and difference(both, ours) is None
    assert difference(ours, ours.assign(rule="same classes")) is None


@pytest.fixture
def finish(tmp_path, run):
    """Function that writes a run with predictions, one label for all test images, and a changed record."""

    def make(folder: str, predicted: list[int], label: int = 0, **changes) -> Path:
        path = tmp_path / folder
        write_record(path, run() | changes)
        labels = torch.full((len(predicted),), label)
        write_tensors_with_classes(path / PREDICTIONS, ["a", "b"], predicted=torch.tensor(predicted), labels=labels)
        return path

    return make


TASKRES = {"trainer": "TaskRes", "variant": ""}


def test_paired_table_has_methods_by_shots(finish, tmp_path):
    for shots in (1, 4):
        finish(f"ours/{shots}", [0, 0, 0, 1], shots=shots)
    finish("theirs/1", [0, 0, 1, 1], **TASKRES, shots=1)
    finish("untested", [0], trainer="GDA", accuracy=None)
    caption, _, heads, _, row = paired_table([tmp_path]).splitlines()
    assert "mean of Toy;" in caption and heads == "| HeGraphAdapter minus | 1 | 4 |"
    assert row.startswith("| TaskRes | +25.00 (0.00 to ") and row.endswith(" |  |")
    *_, row = paired_table([tmp_path], of="TaskRes").splitlines()
    assert row.startswith("| HeGraphAdapter | -25.00 (-")
    with pytest.raises(UserError, match="did you mean 'TaskRes'"):
        paired_table([tmp_path], of="TaskRess")


@pytest.mark.parametrize("other", [{"predicted": [0, 0, 0]}, {"predicted": [0, 0], "label": 1}])
def test_runs_with_other_test_images_are_rejected(finish, tmp_path, other):
    finish("one", [0, 0])
    finish("two", **other, **TASKRES)
    with pytest.raises(UserError, match="not tested on the same images as another run on Toy with 4 shots"):
        read_runs([tmp_path])


def test_own_folders_have_their_own_test_images(finish, tmp_path):
    finish("one", [0, 0], source="pictures")
    finish("two", [0, 0, 0], source="photos")
    assert set(read_runs([tmp_path])["dataset"]) == {"pictures", "photos"}


def test_models_of_other_data_sets_are_not_paired(finish, tmp_path):
    finish("ours", [0, 0])
    finish("theirs", [0, 1], **TASKRES, rule="same classes", trained_on="Other")
    finish("adapted", [0, 1], protocol="transductive")
    adaptation = "| HeGraphAdapter, transductive | +50.00 (0.00 to 100.00) |"
    assert paired_table([tmp_path]).splitlines()[4:] == ["| TaskRes |  |", adaptation]
    finish("again", [0, 0])
    with pytest.raises(UserError, match="Toy, HeGraphAdapter, 4 shots: 2 runs have seed 1"):
        read_runs([tmp_path])


# Confusions


def test_confusion_matrix_and_hardest_pairs(tmp_path):
    predicted, labels = torch.tensor([0, 1, 1, 0, 0]), torch.tensor([0, 0, 1, 1, 1])
    write_tensors_with_classes(tmp_path / PREDICTIONS, ["a", "b", "c"], predicted=predicted, labels=labels)
    matrix, names = confusion_matrix(tmp_path)
    assert (matrix.tolist(), names) == ([[1, 1, 0], [2, 1, 0], [0, 0, 0]], ["a", "b", "c"])
    pairs = ["a and c: 6 (a as c 0, c as a 6)", "a and b: 4 (a as b 1, b as a 3)"]
    assert hardest_pairs(np.array([[9, 1, 0], [3, 9, 0], [6, 0, 9]]), names) == pairs  # b and c were never confused
    assert len(hardest_pairs(np.ones((9, 9), dtype=int), list("abcdefghi"))) == 10


@pytest.mark.parametrize(("predicted", "labels"), [
    ([0, 3], [0, 1]), ([0], [0, 1]), ([-1, 0], [0, 1]), ([], []), ([0.5], [0]),
])  # fmt: skip
def test_predictions_outside_the_classes_are_rejected(tmp_path, predicted, labels):
    tensors = {"predicted": torch.tensor(predicted), "labels": torch.tensor(labels)}
    save_file(tensors, tmp_path / PREDICTIONS, {"classnames": '["a", "b", "c"]'})
    with pytest.raises(UserError, match=r"predictions\.safetensors: .* class numbers"):
        confusion_matrix(tmp_path)


# Open-set rejection


def toy_bank(features: list[list[float]], labels: list[int]) -> FeatureBank:
    same = {"classnames": ["ant", "bee", "cow"], "dataset": "Toy", "backbone": "none", "logit_scale": 10.0}
    train = {"train_features": torch.eye(3).unsqueeze(0), "train_labels": torch.arange(3)}
    text = {"text_positive": torch.eye(3), "text_negative": -torch.eye(3)}
    return FeatureBank(**same, **train, **text, test_features=torch.tensor(features), test_labels=torch.tensor(labels))


@pytest.fixture
def two_classes(finished_run_once):
    """Model of two of the three classes; its logits are ten times the first two coordinates."""
    text = torch.eye(3)[:2]
    known = KnownScores(quantiles=[0.1 * step for step in range(101)], fitted_on="val", num_images=9)
    changes = {"classnames": ("ant", "bee"), "logit_scale": 10.0, "temperature": 1.0, "known": known, "transfer": None}
    changes |= {"classifier": FoldedClassifier(10 * text), "text_positive": text}
    return load_model(finished_run_once).model_copy(update=changes)


def test_images_of_other_classes_are_unknown(two_classes):
    features = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8], [0.0, 0.0, 1.0], [-0.6, -0.8, 0.0]]
    bank = toy_bank(features, [0, 1, 2, 2, 2])
    found = score_images(two_classes, bank, bank)
    assert found["energy"]["auroc"] == found["probability"]["auroc"] == found[ZERO_SHOT_SCORE]["auroc"] == 100
    assert found["energy"]["fpr95"] == 0
    # The threshold for 95 % is 0.5; energies are 10, 10 | 6, log 2 and about -6
    assert (found["energy"]["known"], found["energy"]["unknown"]) == (100, pytest.approx(200 / 3))
    assert "known" not in found["probability"]
    scores = all_scores(two_classes, bank.test_features, -torch.eye(3)[:2])
    assert scores["energy"].tolist() == pytest.approx(
        [math.log(math.e**10 + 1)] * 2 + [math.log(math.e**6 + 1), math.log(2), math.log(math.e**-6 + math.e**-8)]
    )
    assert scores["margin"].tolist() == pytest.approx([2.0, 2.0, 1.2, 0.0, -1.2])
    assert scores["margin, shuffled"].tolist() == pytest.approx([1.0, 1.0, 0.6, 0.0, -1.4])
    assert scores["own text"].tolist() == pytest.approx([1.0, 1.0, 0.6, 0.0, -0.6])


def test_known_class_in_another_bank_is_not_unknown(two_classes):
    bank = toy_bank([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0, 1])
    other = replace(toy_bank([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [0, 1]), classnames=["bee", "gnu", "elk"])
    assert score_images(two_classes, bank, other)["energy"]["auroc"] == 100  # its bee would have made it 75
    with pytest.raises(UserError, match="no test image of a class that the model does not know"):
        score_images(two_classes, bank, bank)


def test_rejection_table_averages_seeds_and_data_sets(tiny_bank, tmp_path, run, capsys, caplog):
    replace(load_bank(tiny_bank), dataset="Other").save(tmp_path / "other.safetensors")
    banks, found = [str(tiny_bank), str(tmp_path / "other.safetensors")], []
    quick = ("OPTIM.MAX_EPOCH", "2", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "0", "DATASET.SUBSAMPLE_CLASSES", "base")
    for bank, seed in ((0, "1"), (0, "2"), (1, "1")):
        out = tmp_path / "runs" / f"{bank}-{seed}"
        flags = ["--features", banks[bank], "--shots", "4", "--seed", seed, "--output-dir", str(out)]
        assert train([*flags, *quick]) == 0
        model, features = load_model(out), load_bank(tiny_bank)
        energy = (model.classifier.logits(features.test_features) / model.temperature).logsumexp(dim=1)
        found.append(separation(energy[features.test_labels < 3], energy[features.test_labels >= 3]))
    assert main(["rejection", str(tmp_path / "runs"), "--features", banks[0]]) == 2
    assert "--features 'Other' (known: Tiny)" in capsys.readouterr().err
    write_record(tmp_path / "runs" / "transductive", run(dataset="Tiny"))
    assert main(["rejection", str(tmp_path / "runs"), "--features", *banks]) == 0
    assert "1 of 4 runs are without a model and are skipped" in caplog.text
    lines = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in capsys.readouterr().out.splitlines()[4:]]
    ours = {(place, name): numbers for place, name, _, *numbers in lines}
    names = {ZERO_SHOT_SCORE, "probability", "energy", "distance", "angle", "own text", "margin", "margin, shuffled"}
    assert {*ours} == {(place, name) for place in ("Tiny", "Other", "mean of 2") for name in names}
    for column, key in enumerate(("auroc", "fpr95")):
        one, two, other = (each[key] for each in found)
        assert ours["Tiny", "energy"][column].startswith(f"{(one + two) / 2:.2f}")
        assert ours["mean of 2", "energy"][column] == f"{((one + two) / 2 + other) / 2:.2f}"
    assert len(ours["Tiny", "energy"]) == 4 > len([cell for cell in ours["Tiny", "probability"] if cell])
    against = ["--unknown", banks[1]]
    assert main(["rejection", str(tmp_path / "runs" / "0-1"), "--features", banks[0], *against]) == 0
    assert "known classes against Other, in %" in capsys.readouterr().out


def test_node_scores_use_the_whitened_space():
    mean, whitening = torch.tensor([0.1, 0.0]), torch.diag(torch.tensor([10.0, 5.0]))
    nodes = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    features = torch.tensor([[0.7, 0.8], [0.5, 0.0]])  # whitened: (6, 4), (4, 0)
    found = node_scores(features, mean, whitening, nodes)
    assert_close(found["distance"], torch.tensor([-5.0, -1.0]))  # (3, 4) to the first node, (6, 0) to the second
    assert_close(found["angle"], torch.tensor([6 / math.sqrt(52), 1.0]))


def test_auroc_and_fpr95_by_hand():
    # Pairs (known, unknown) in order: 3 with both, 2 and 1 with 0.5 only; all known images are accepted at 1 and above
    assert separation([3.0, 2.0, 1.0], [2.5, 0.5]) == pytest.approx({"auroc": 100 * 4 / 6, "fpr95": 50.0})
    assert separation([1.0, 1.0], [1.0, 0.0]) == pytest.approx({"auroc": 75.0, "fpr95": 50.0})
    known = [0.0, *range(2, 21)]  # 20 images; one may be rejected
    assert separation(known, [1.0, 1.0, 5.0, -1.0])["fpr95"] == pytest.approx(25.0)  # at 2 and above
    assert separation(known[:19], [1.0, 1.0, 5.0, -1.0])["fpr95"] == pytest.approx(75.0)  # 18 of 19 are too few

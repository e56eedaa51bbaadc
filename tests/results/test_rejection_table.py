"""The table of rejection: which images are known, what is averaged, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from trainers.hegraph.__main__ import main as train
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.results.__main__ import main
from trainers.hegraph.results.rejection import (
    ZERO_SHOT,
    all_scores,
    metric_scores,
    score_images,
    separation,
)
from trainers.hegraph.training.confidence import KnownScores
from trainers.hegraph.utils.errors import UserError

QUICK = ("OPTIM.MAX_EPOCH", "2", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "0")


def toy_bank(features: list[list[float]], labels: list[int]) -> FeatureBank:
    return FeatureBank(
        train_features=torch.eye(3).unsqueeze(0),
        train_labels=torch.arange(3),
        text_positive=torch.eye(3),
        text_negative=-torch.eye(3),
        classnames=["ant", "bee", "cow"],
        dataset="Toy",
        backbone="none",
        logit_scale=10.0,
        test_features=torch.tensor(features),
        test_labels=torch.tensor(labels),
    )


@pytest.fixture
def two_classes(tiny_bank, tmp_path):
    """A model of two of the three classes, whose logits are ten times the first two coordinates."""
    assert train(["--features", str(tiny_bank), "--trainer", "ZeroShot", "--output-dir", str(tmp_path / "zs")]) == 0
    made = load_model(tmp_path / "zs")
    text = torch.eye(3)[:2]
    known = KnownScores(quantiles=[0.1 * step for step in range(101)], fitted_on="val", num_images=9)
    names = ("ant", "bee")
    changes = {"classnames": names, "class_ids": names, "logit_scale": 10.0, "temperature": 1.0, "known": known}
    return made.model_copy(update=changes | {"classifier": FoldedClassifier(10 * text), "text_positive": text})


def test_images_of_the_models_classes_are_known_and_the_others_are_not(two_classes):
    bank = toy_bank(
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8], [0.0, 0.0, 1.0], [-0.6, -0.8, 0.0]], [0, 1, 2, 2, 2]
    )
    found = score_images(two_classes, bank, bank)
    assert found["energy"]["auroc"] == found["probability"]["auroc"] == found[ZERO_SHOT]["auroc"] == 100
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


def test_a_class_of_another_bank_with_a_known_name_is_not_unknown(two_classes):
    bank = toy_bank([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0, 1])
    other = replace(toy_bank([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [0, 1]), classnames=["bee", "gnu", "elk"])
    assert score_images(two_classes, bank, other)["energy"]["auroc"] == 100  # its bee would have made it 75
    with pytest.raises(UserError, match="no test image of a class that the model does not know"):
        score_images(two_classes, bank, bank)


def test_the_table_has_a_row_for_each_score_and_the_mean_over_seeds(tiny_bank, tmp_path, capsys):
    found = []
    for seed in ("1", "2"):
        out = tmp_path / "runs" / seed
        flags = ["--features", str(tiny_bank), "--shots", "4", "--seed", seed, "--output-dir", str(out), *QUICK]
        assert train([*flags, "DATASET.SUBSAMPLE_CLASSES", "base"]) == 0
        model, bank = load_model(out), load_bank(tiny_bank)
        logits = model.classifier.logits(bank.test_features)
        energy = (logits / model.temperature).logsumexp(dim=1)
        found.append(separation(energy[bank.test_labels < 3], energy[bank.test_labels >= 3]))
    capsys.readouterr()
    arguments = ["rejection", str(tmp_path / "runs"), "--features", str(tiny_bank)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()][4:]
    by_score = {row[0]: row[2:] for row in rows}
    assert {*by_score} == {
        ZERO_SHOT, "probability", "energy", "distance", "angle", "own text", "margin", "margin, shuffled",
    }  # fmt: skip
    for column, key in enumerate(("auroc", "fpr95")):
        assert by_score["energy"][column] == f"{(found[0][key] + found[1][key]) / 2:.2f}"
    assert by_score["energy"][2] and not by_score["probability"][2]


def test_data_sets_stand_as_their_mean_where_all_were_run(tiny_bank, tmp_path, capsys):
    replace(load_bank(tiny_bank), dataset="Other").save(tmp_path / "other.safetensors")
    banks = [str(tiny_bank), str(tmp_path / "other.safetensors")]
    for bank, shots in ((0, "1"), (0, "2"), (1, "2")):
        flags = ["--features", banks[bank], "--shots", shots, "--trainer", "ZeroShot", "--seed", "1"]
        out = str(tmp_path / "runs" / f"{bank}{shots}")
        assert train([*flags, "--output-dir", out, "DATASET.SUBSAMPLE_CLASSES", "base"]) == 0
    capsys.readouterr()
    assert main(["rejection", str(tmp_path / "runs"), "--features", *banks]) == 0
    printed = capsys.readouterr().out
    assert "| Tiny | 1 | energy | zero-shot |" in printed and "| mean of 2 | 2 | energy | zero-shot |" in printed
    assert "| Tiny | 2 |" not in printed


def test_distance_and_angle_are_taken_in_the_whitened_space():
    mean, whitening = torch.tensor([0.1, 0.0]), torch.diag(torch.tensor([10.0, 5.0]))
    nodes = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    features = torch.tensor([[0.7, 0.8], [0.5, 0.0]])  # whitened: (6, 4), (4, 0)
    found = metric_scores(features, mean, whitening, nodes)
    assert_close(found["distance"], torch.tensor([-5.0, -1.0]))  # (3, 4) to the first node, (6, 0) to the second
    assert_close(found["angle"], torch.tensor([6 / math.sqrt(52), 1.0]))


def test_auroc_counts_the_pairs_in_order_and_fpr95_the_unknown_that_are_kept():
    # Pairs (known, unknown) in order: 3 with both, 2 and 1 with 0.5 only; all of the known are kept at 1 and above
    assert separation([3.0, 2.0, 1.0], [2.5, 0.5]) == pytest.approx({"auroc": 100 * 4 / 6, "fpr95": 50.0})
    assert separation([1.0, 1.0], [1.0, 0.0]) == pytest.approx({"auroc": 75.0, "fpr95": 50.0})
    known = [0.0, *range(2, 21)]  # 20 images, of which one may be lost
    assert separation(known, [1.0, 1.0, 5.0, -1.0])["fpr95"] == pytest.approx(25.0)  # at 2 and above
    assert separation(known[:19], [1.0, 1.0, 5.0, -1.0])["fpr95"] == pytest.approx(75.0)  # 18 of 19 are too few

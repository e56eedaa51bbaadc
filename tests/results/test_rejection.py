"""Scores for open-set rejection, checked by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from trainers.hegraph import FeatureBank, UserError, load_bank
from trainers.hegraph.__main__ import main as train
from trainers.hegraph.commands.results import main
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.mean_text import without_text
from trainers.hegraph.method.training.confidence import KnownScores
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.support_set import SupportSet
from trainers.hegraph.results.records import write_record
from trainers.hegraph.results.rejection import ZERO_SHOT_SCORE, all_scores, node_scores, score_images, separation


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


def test_model_without_class_texts_has_no_scores_of_text(two_classes, tiny_bank):
    bank = load_bank(tiny_bank)
    support_set = SupportSet.of(without_text(bank), {})
    model = two_classes.model_copy(update={"support_set": support_set})
    scores = all_scores(model, torch.eye(3), -torch.eye(3)[:2])
    assert {"probability", "energy"} <= scores.keys()
    assert not scores.keys() & {ZERO_SHOT_SCORE, "own text", "margin", "margin, shuffled"}


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
    assert main(["rejection", str(tmp_path / "runs" / "0-1"), "--features", *banks]) == 2
    assert "has features of Other, and the runs are of Tiny; leave out" in capsys.readouterr().err
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
        assert ours["mean of 2", "energy"][column] == f"{((one + two) / 2 + other) / 2:.2f} (unequal seeds)"
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

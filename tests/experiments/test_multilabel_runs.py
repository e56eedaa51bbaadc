"""Runs with several labels per image: record, predictions, model, refusals and the methods for comparison."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from torch.testing import assert_close

from trainers.hegraph.__main__ import main
from trainers.hegraph.apps.demo.answer import summary
from trainers.hegraph.baselines import load_method
from trainers.hegraph.baselines.hegraph import fit_multilabel
from trainers.hegraph.datasets.loading import load_dataset
from trainers.hegraph.experiments.evaluation import Predictions
from trainers.hegraph.experiments.record import scores_on_test
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.method.head.multilabel import MultiLabelHead
from trainers.hegraph.method.training.choice import score_multilabel
from trainers.hegraph.method.training.confidence import Calibration
from trainers.hegraph.models.folder import load_model

FREE = ("TRAINER.HEGRAPHADAPTER.VARIANT", "training_free")
NAMES = ["ant", "bee", "cow", "dog"]


@pytest.fixture
def bank(unit_features) -> FeatureBank:
    """K = 4 classes, d = 16; an image is the sum of the centres of its classes; some images have no class."""
    generator = torch.Generator().manual_seed(3)
    centres, width = unit_features(len(NAMES), 16, seed=1), 16

    def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.rand(count, len(NAMES), generator=generator) < 0.4
        noise = 0.3 * torch.randn(count, width, generator=generator)
        return F.normalize(labels.float() @ centres + noise, dim=-1), labels

    (train, train_labels), (test, test_labels) = images(40), images(30)
    text = F.normalize(centres + 0.3 * torch.randn(centres.shape, generator=generator), dim=-1)
    return FeatureBank(
        train[None], train_labels, text, -text, NAMES, "Zoo", "none", 100.0, None, None, test, test_labels
    )


@pytest.fixture
def saved(bank, tmp_path) -> Path:
    bank.save(tmp_path / "zoo.safetensors")
    return tmp_path / "zoo.safetensors"


# --- banks


def rewritten(path: Path, **changes: torch.Tensor) -> Path:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | changes, path, metadata)
    return path


@pytest.mark.parametrize("name", ["bool", "int64", "int32", "uint8", "float32", "float64", "float16"])
def test_indicators_of_any_type_are_read(bank, saved, name):
    dtype = getattr(torch, name)
    path = rewritten(saved, train_labels=bank.train_labels.to(dtype), test_labels=bank.test_labels.to(dtype))
    loaded = load_bank(path)
    assert loaded.multilabel and torch.equal(loaded.train_labels, bank.train_labels)
    assert torch.equal(loaded.test_labels, bank.test_labels)


def changed(value: float, row: int = 3, column: int = 2) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(labels: torch.Tensor) -> torch.Tensor:
        labels = labels.float()
        labels[row, column] = value
        return labels

    return change


@pytest.mark.parametrize(("change", "words"), [
    (changed(2.0), "expected 0 or 1 in train_labels, got 2.0 in row 3, column 2"),
    (changed(float("nan")), "expected 0 or 1 in train_labels, got nan in row 3, column 2"),
    (changed(0.5), "got 0.5 in row 3"),
    (lambda labels: labels[:-1].clone(), "train_labels must be"),
    (lambda labels: labels[:, :-1].clone(), "of shape [40, 4]"),
])  # fmt: skip
def test_invalid_indicators_are_refused(run, bank, saved, change, words):
    assert words in run(*FREE, bank=rewritten(saved, train_labels=change(bank.train_labels)), quick=(), code=2)


def test_splits_need_labels_of_one_kind(run, saved):
    path = rewritten(saved, test_labels=torch.zeros(30, dtype=torch.int64))
    assert "test_labels must be" in run(*FREE, bank=path, quick=(), code=2)


# --- a run


def test_record_has_the_scores_of_scikit_learn(run, bank, saved):
    record, folder = run(*FREE, "DATASET.NUM_SHOTS", "8", bank=saved, quick=())
    predictions = load_file(folder / "predictions.safetensors")
    scores, true = predictions["scores"].numpy(), predictions["labels"].numpy()
    assert np.array_equal(true, bank.test_labels.numpy())
    by_class = average_precision_score(true, scores, average=None)
    assert list(record["average_precision"]) == NAMES
    assert list(record["average_precision"].values()) == pytest.approx((100 * by_class).tolist())
    assert record["map"] == pytest.approx(100 * by_class.mean())
    predicted = scores >= load_model(folder).thresholds.numpy()
    for kind in ("macro", "micro"):
        assert record[f"{kind}_f1"] == pytest.approx(100 * f1_score(true, predicted, average=kind))
    zero_shot = bank.test_features @ bank.text_positive.t()
    assert record["map_zero_shot"] == pytest.approx(100 * average_precision_score(true, zero_shot))
    assert (record["accuracy"], record["num_test"], record["images_per_class"][0]) == (None, 30, 8)


def test_model_has_the_map_of_its_record(run, saved):
    record, folder = run(*FREE, bank=saved, quick=())
    model = load_model(folder)
    assert (model.scores.map, model.scores.accuracy) == (record["map"], None)
    assert f"| HeGraphAdapter | {record['map']:.2f} |" in (folder / "model" / "README.md").read_text()
    scores = f"mAP on 30 test images: {record['map']:.2f} %, zero-shot {record['map_zero_shot']:.2f} %."
    assert summary(model).endswith(scores)


def test_run_uses_the_head_on_sampled_rows(run, bank, saved):
    _, folder = run("--shots", "-1", *FREE, bank=saved, quick=())
    head = MultiLabelHead.fit(bank.cache_keys(), bank.train_labels, bank.text_positive)
    scores = load_file(folder / "predictions.safetensors")["scores"]
    assert_close(scores, head.log_odds(head.scores(bank.test_features)).float(), rtol=1e-4, atol=1e-4)


def test_trained_model_is_tested_again(run, saved):
    record, folder = run(*FREE, bank=saved, quick=())
    again, _ = run("--eval-only", "--model-dir", str(folder), *FREE, name="again", bank=saved, quick=())
    keys = ("map", "map_zero_shot", "macro_f1", "micro_f1", "average_precision")
    assert {key: again[key] for key in keys} == {key: record[key] for key in keys}


def test_model_is_not_tested_on_labels_of_another_kind(run, bank, saved, tmp_path):
    _, folder = run(*FREE, bank=saved, quick=())
    single = replace(bank, train_labels=torch.arange(40) % 4, test_labels=torch.arange(30) % 4)
    single.save(tmp_path / "single.safetensors")
    words = ("--eval-only", "--model-dir", str(folder), *FREE)
    message = run(*words, name="again", bank=tmp_path / "single.safetensors", quick=(), code=2)
    assert "Zoo has one label per image, but the model has several labels" in message


def test_class_without_images_is_scored_by_its_text(run, bank, saved):
    train, test = bank.train_labels.clone(), bank.test_labels.clone()
    train[:, 1], test[:, 2] = False, False
    record, _ = run("--shots", "-1", *FREE, bank=rewritten(saved, train_labels=train, test_labels=test), quick=())
    precisions = record["average_precision"]
    assert precisions["bee"] > 100 * test[:, 1].float().mean() and precisions["cow"] is None
    assert record["map"] == pytest.approx(np.mean([precisions[name] for name in ("ant", "bee", "dog")]))


@pytest.mark.parametrize(("flags", "printed"), [
    ("", "Zoo has several labels per image, which VARIANT full does not support; end the command with"),
    ("--trainer GDA", "which GDA does not support; use one of HeGraphAdapter, ZeroShot, ZeroShotStandardised"),
    (f"--unlabelled pool {' '.join(FREE)}", "leave out --unlabelled"),
    (f"{' '.join(FREE)} DATASET.SUBSAMPLE_CLASSES base", "leave out DATASET.SUBSAMPLE_CLASSES base"),
    (f"--target-datasets Zoo:new {' '.join(FREE)}", "leave out --target-domains and --target-datasets"),
    (f"--select val {' '.join(FREE)}", "leave out --select val"),
])  # fmt: skip
def test_unsupported_requests_are_refused(run, saved, flags, printed):
    assert printed in run(*flags.split(), bank=saved, quick=(), code=2)


@pytest.mark.parametrize("name", ["ZeroShotStandardised", "OneVsRest", "Ridge"])
def test_methods_for_several_labels_refuse_one_label(run, name):
    assert f"{name} is for several labels per image, and Tiny has one" in run("--trainer", name, quick=(), code=2)


def test_commands_for_one_label_refuse_several(saved, run, capsys):
    _, folder = run(*FREE, bank=saved, quick=())
    for words in (("label", "check", "--features"), ("results", "rejection", str(folder), "--features")):
        assert main([*words, str(saved)]) == 2
        assert "needs one label per image" in capsys.readouterr().err


@pytest.mark.slow
def test_images_are_added_to_a_trained_model(tmp_path, digits_features, capsys):
    scenes, folder, names = load_dataset("digit_scenes"), tmp_path / "run", [f"{n}.png" for n in range(3)]
    words = ("--dataset-config-file", "digit_scenes", "--config-file", "mini", "--shots", "2", "--output-dir")
    assert main([*words, str(folder), "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(digits_features)]) == 0
    for name, item in zip(names, scenes.val):
        scenes.read(item.path).save(tmp_path / name)
    rows = [f"{name},{item.classname}" for name, item in zip(names, scenes.val)]
    (tmp_path / "more.csv").write_text("\n".join(["path,labels", *rows]))
    more = ("train-more", str(folder), "--root", str(tmp_path / "more.csv"), "--out")
    assert main([*more, str(tmp_path / "more")]) == 0
    added = sum(len(item.label) for item in scenes.val[:3])
    before, after = (load_model(path) for path in (folder, tmp_path / "more"))
    assert sum(after.images) == sum(before.images) + added
    assert len(after.support_set.labels) == 3 + before.trained_on.num_train
    (tmp_path / "more.csv").write_text(f"path,label\n{names[0]},one\n{names[1]},two")
    assert main([*more, str(tmp_path / "other")]) == 2
    assert "expected several labels per image, as the model has, got one label" in capsys.readouterr().err


def test_groups_are_left_out_of_thresholds(bank, caplog):
    groups = torch.arange(len(bank.train_labels)) // 4
    head = MultiLabelHead.fit(bank.cache_keys(), bank.train_labels, bank.text_positive, groups)
    fitted = fit_multilabel(replace(bank, train_groups=groups))
    assert torch.equal(fitted.thresholds, head.log_odds(head.thresholds).float())
    assert not torch.equal(fitted.thresholds, fit_multilabel(bank).thresholds)
    one = fit_multilabel(replace(bank, train_groups=torch.zeros_like(groups)))
    assert torch.equal(one.thresholds, fit_multilabel(bank).thresholds)
    assert "all training images are of one group" in caplog.text


# --- methods for comparison


@pytest.mark.parametrize("name", ["ZeroShot", "ZeroShotStandardised", "OneVsRest", "Ridge"])
def test_methods_are_scored(run, saved, caplog, name):
    record, folder = run("--trainer", name, bank=saved, quick=())
    assert record["map"] > 50 and (record["macro_f1"] is None) == name.startswith("ZeroShot")
    reason = "it chooses no thresholds" if name == "ZeroShot" else "it serves as a comparison"
    assert not (folder / "model").exists() and f"{name} saves no model folder: {reason}" in caplog.text


def test_one_vs_rest_is_scikit_learns(bank):
    labels = bank.train_labels.clone()
    labels[:, 2], labels[:, 3] = True, False
    method = load_method("OneVsRest")
    fitted = method.fit(replace(bank, train_labels=labels), method.options(), 1)
    logits, keys = fitted.logits(bank.test_features), bank.cache_keys().numpy()
    for k in (0, 1):
        probe = LogisticRegression(class_weight="balanced").fit(keys, labels[:, k].numpy())
        expected = probe.decision_function(bank.test_features.numpy()).astype("float32")  # float64 in scikit-learn 1.7
        assert_close(logits[:, k].numpy(), expected, rtol=1e-3, atol=1e-3)
    assert (logits[:, 2] == 1).all() and (logits[:, 3] == -1).all() and not fitted.thresholds.any()


def test_standardised_scores_by_hand(bank):
    fitted = load_method("ZeroShotStandardised").fit(bank, None, 1)
    parts, text = (bank.cache_keys(), bank.test_features), bank.text_positive.double().numpy()
    reference, cosines = (part.double().numpy() @ text.T for part in parts)
    by_prompt = (cosines - reference.mean(axis=0)) / reference.std(axis=0)
    expected = (by_prompt - by_prompt.mean(axis=1, keepdims=True)) / by_prompt.std(axis=1, keepdims=True)
    assert_close(fitted.logits(bank.test_features).double().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_ridge_has_no_text(bank):
    banks = bank, replace(bank, text_positive=-bank.text_positive)
    one, other = (load_method("Ridge").fit(each, None, 1).logits(bank.test_features) for each in banks)
    assert torch.equal(one, other)


# --- scores


def test_scores_without_positive_test_images():
    nothing = score_multilabel(torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.bool), ["ant", "bee"], torch.ones(2))
    assert nothing["map"] is None and nothing["average_precision"] == {"ant": None, "bee": None}
    assert nothing["macro_f1"] is None and nothing["micro_f1"] is None


def test_classes_of_equal_names_are_scored_apart():
    # The image of both classes is first in the order of the first class, and second in that of the other
    scores, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[True, True], [False, False]])
    found = scores_on_test(Predictions("Zoo", ["crane", "crane"], scores, None, scores, labels), Calibration())
    assert found["average_precision"] == {"0: crane": 100.0, "1: crane": 50.0}
    assert found["map"] == found["map_zero_shot"] == 75.0

"""What is held out is not seen by what classifies it; what follows for the temperature and for images of no class."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.hegraph.__main__ import main
from trainers.hegraph.experiments.calibration import assign_folds, find_temperature, hold_out_classes, hold_out_images
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.training.confidence import fit_temperature, known_score, mean_confidence

NODE = "TRAINER.HEGRAPHADAPTER."
QUICK = ("OPTIM.MAX_EPOCH", "5", f"{NODE}MIN_STEPS", "0")


class RecordingFit:
    """A method that remembers what it was fitted to: the nearest class mean, scaled.

    Attributes:
        banks: What it was fitted to, in order.
        asked: The features that were classified, in order.
    """

    def __init__(self, scale: float = 10.0) -> None:
        self.scale = scale
        self.banks: list[FeatureBank] = []
        self.asked: list[Tensor] = []

    def __call__(self, bank: FeatureBank) -> Callable[[Tensor], Tensor]:
        self.banks.append(bank)
        keys = bank.cache_keys()
        means = torch.stack([keys[bank.train_labels == label].mean(dim=0) for label in range(len(bank.classnames))])

        def classify(features: Tensor) -> Tensor:
            self.asked.append(features)
            return self.scale * features @ means.t()

        return classify


@pytest.fixture
def bank(tiny_bank) -> FeatureBank:
    """The tiny bank without test and val images: 6 training images of each of 5 classes."""
    return replace(load_bank(tiny_bank).without_test(), val_features=None, val_labels=None)


def rows(features: Tensor) -> set[tuple]:
    return {tuple(row.tolist()) for row in features}


def of_shots(bank: FeatureBank, *shots: int) -> FeatureBank:
    """The first images of each class."""
    kept = torch.cat([(bank.train_labels == label).nonzero().flatten()[:n] for label, n in enumerate(shots)])
    return replace(bank, train_features=bank.train_features[:, kept], train_labels=bank.train_labels[kept])


def test_a_held_out_image_is_not_among_those_that_its_classifier_was_fitted_to(bank):
    fit = RecordingFit()
    held = list(hold_out_images(bank, fit, seed=1))
    assert len(held) == len(fit.banks) == 4
    for part, fitted_to in zip(held, fit.banks):
        assert part.fitted_to is fitted_to
        for view in fitted_to.train_features:
            for held_view in bank.train_features:
                assert not rows(view) & rows(held_view[torch.isin(torch.arange(30), indices_of(part, bank))])
        assert not rows(part.features) & rows(fitted_to.cache_keys())
        assert len(part.labels) + len(fitted_to.train_labels) == 30
        _ = part.logits
        assert rows(fit.asked[-1]) == rows(part.features)


def indices_of(part, bank: FeatureBank) -> Tensor:
    keys = [tuple(row.tolist()) for row in bank.cache_keys()]
    return torch.tensor([keys.index(tuple(row.tolist())) for row in part.features])


def test_every_image_is_held_out_once_with_its_own_label(bank):
    held = list(hold_out_images(bank, RecordingFit(), seed=1))
    found = [(tuple(row.tolist()), label) for part in held for row, label in zip(part.features, part.labels.tolist())]
    expected = [(tuple(row.tolist()), label) for row, label in zip(bank.cache_keys(), bank.train_labels.tolist())]
    assert sorted(found) == sorted(expected)


def test_a_classifier_of_what_was_seen_would_be_found_out(bank):
    """The nearest image gets every image right that it has seen, and no logit of those that it has not."""

    def nearest_image(bank: FeatureBank) -> Callable[[Tensor], Tensor]:
        one_hot = torch.nn.functional.one_hot(bank.train_labels, 5).float()
        return lambda features: (features @ bank.cache_keys().t() > 0.99999).float() @ one_hot

    assert (nearest_image(bank)(bank.cache_keys()).argmax(dim=1) == bank.train_labels).all()
    for part in hold_out_images(bank, nearest_image, seed=1):
        assert (part.logits == 0).all()


def test_the_only_image_of_a_class_is_never_held_out(bank):
    folds = assign_folds(torch.tensor([0, 1, 1, 2, 2, 2]), seed=1)
    assert folds.tolist()[0] == -1
    assert sorted(folds.tolist()[1:3]) == [0, 1]
    assert sorted(folds.tolist()[3:]) == [0, 1, 2]
    assert list(hold_out_images(of_shots(bank, 1, 1, 1, 1, 1), RecordingFit(), seed=1)) == []


def test_held_out_classes_are_unknown_to_what_classifies_their_images(bank):
    held = list(hold_out_classes(of_shots(bank, 1, 1, 1, 1, 1), RecordingFit(), seed=1))
    names = [set(part.fitted_to.classnames) for part in held]
    assert [len(known) for known in names] == [3, 2] and not names[0] & names[1]
    for part, known in zip(held, names):
        assert not {bank.classnames[label] for label in part.labels.tolist()} & known
        assert not rows(part.features) & rows(part.fitted_to.cache_keys())
        assert len(part.labels) == 5 - len(known) and part.logits.shape == (len(part.labels), len(known))
        assert sorted(part.fitted_to.train_labels.tolist()) == list(range(len(known)))


def test_three_classes_are_too_few_to_hold_some_out(bank):
    few = of_shots(bank.of_classes(torch.tensor([0, 2, 4])), 1, 1, 1)
    assert list(hold_out_classes(few, RecordingFit(), seed=1)) == []
    assert find_temperature(few, RecordingFit()(few), RecordingFit(), True, 1).temperature == 1.0


def test_val_images_are_what_the_temperature_is_fitted_on_where_there_are_some(tiny_bank):
    bank = load_bank(tiny_bank).without_test()
    fit = RecordingFit()
    found = find_temperature(bank, fit(bank), fit, trains=True, seed=1)
    assert (found.fitted_on, found.num_images) == ("val", 15)
    assert found.temperature == fit_temperature(fit(bank)(bank.val_features), bank.val_labels)
    assert len(fit.banks) == 2  # once each by this test: nothing is fitted again


@pytest.mark.parametrize(("trains", "fits", "images"), [(True, 1, 10), (False, 4, 30)])
def test_a_method_that_trains_is_fitted_again_once_and_another_for_every_fold(bank, trains, fits, images):
    fit = RecordingFit()
    found = find_temperature(bank, RecordingFit()(bank), fit, trains, seed=1)
    assert (found.fitted_on, found.num_images, len(fit.banks)) == ("held-out images", images, fits)
    held = list(hold_out_images(bank, RecordingFit(), 1))[:fits]
    logits, labels = torch.cat([part.logits for part in held]), torch.cat([part.labels for part in held])
    assert found.temperature == fit_temperature(logits, labels)


def test_at_one_shot_the_method_is_as_sure_as_zero_shot_clip_of_classes_that_are_held_out(bank):
    one = of_shots(bank, 1, 1, 1, 1, 1)
    found = find_temperature(one, RecordingFit(30.0)(one), RecordingFit(30.0), trains=False, seed=3)
    assert (found.fitted_on, found.num_images) == ("held-out classes", 5)
    held = list(hold_out_classes(one, RecordingFit(30.0), 3))
    own = fit_temperature(100.0 * one.cache_keys() @ one.text_positive.t(), one.train_labels)
    zero_shot = [100.0 * part.features @ part.fitted_to.text_positive.t() for part in held]
    assert mean_confidence([part.logits for part in held], found.temperature) == pytest.approx(
        mean_confidence(zero_shot, own)
    )


@pytest.fixture
def run(tiny_bank, tmp_path) -> Callable[..., tuple[dict, Path]]:
    """Trains on the tiny bank, with or without its val images; returns the record and the output folder."""

    def train(*opts: str, val: bool = False, shots: int = 4, trainer: str = "HeGraphAdapter") -> tuple[dict, Path]:
        path, out = tiny_bank, tmp_path / "-".join(("run", trainer, str(val), str(shots), *opts[1::2]))
        if not val:
            path = tmp_path / "no_val.safetensors"
            replace(load_bank(tiny_bank), val_features=None, val_labels=None).save(path)
        quick = QUICK if trainer == "HeGraphAdapter" else ()
        flags = ["--features", str(path), "--shots", str(shots), "--trainer", trainer, "--output-dir", str(out)]
        assert main([*flags, *quick, *opts]) == 0
        return json.loads((out / "result.json").read_text()), out

    return train


@pytest.mark.parametrize(
    ("val", "shots", "fitted_on"), [(True, 4, "val"), (False, 4, "held-out images"), (False, 1, "held-out classes")]
)
@pytest.mark.parametrize("trainer", ["HeGraphAdapter", "TipAdapter", "TaskRes"])
def test_every_run_says_what_its_temperature_was_fitted_on(run, trainer, val, shots, fitted_on):
    record, _ = run(val=val, shots=shots, trainer=trainer)
    found = record["calibration"]
    assert found["fitted_on"] == fitted_on and found["num_images"] > 0
    assert found["temperature"] != 1.0
    for when in ("before", "after"):
        assert found[when]["accuracy"] == pytest.approx(record["accuracy"])
        assert found[when]["macro_f1"] == pytest.approx(record["macro_f1"])
        assert sum(found[when]["bins"]["count"]) == record["num_test"]
    assert found["zero_shot"]["accuracy"] == pytest.approx(record["accuracy_zero_shot"])
    assert record["seconds"]["calibration"] >= 0


def test_the_model_folder_has_the_temperature_and_divides_by_it(run, tiny_bank):
    record, out = run()
    model, bank = load_model(out), load_bank(tiny_bank)
    assert model.temperature == record["calibration"]["temperature"]
    logits = model.classifier.logits(bank.test_features)
    assert torch.allclose(model.probabilities(bank.test_features), (logits / model.temperature).softmax(dim=1))
    right = model.probabilities(bank.test_features)[torch.arange(len(logits)), bank.test_labels]
    assert -right.log().mean().item() == pytest.approx(record["calibration"]["after"]["nll"], abs=1e-3)


def test_a_test_of_the_trained_model_gives_the_same_scores(run, tiny_bank, tmp_path):
    record, out = run()
    flags = ["--features", str(tiny_bank), "--eval-only", "--model-dir", str(out), "--output-dir", str(tmp_path / "t")]
    assert main([*flags, "--shots", "4", *QUICK]) == 0
    tested = json.loads((tmp_path / "t" / "result.json").read_text())["calibration"]
    assert (tested["fitted_on"], tested["temperature"]) == ("model", record["calibration"]["temperature"])
    for score in ("nll", "brier"):
        assert tested["after"][score] == pytest.approx(record["calibration"]["after"][score], abs=1e-3)


def test_calibration_changes_no_prediction_and_no_parameter(run):
    calibrated, out = run()
    plain, plain_out = run(f"{NODE}CALIBRATE", "off")
    assert plain["calibration"]["temperature"] == 1.0 and plain["calibration"]["fitted_on"] == "nothing"
    assert load_model(plain_out).temperature == 1.0
    for name in ("adapter.safetensors", "model/model.safetensors", "predictions.safetensors", "text_nodes.safetensors"):
        if name != "adapter.safetensors":
            assert (out / name).read_bytes() == (plain_out / name).read_bytes()
    for key in ("accuracy", "macro_f1", "accuracy_text"):
        assert calibrated[key] == plain[key]
    assert plain["calibration"]["before"] == plain["calibration"]["after"] == calibrated["calibration"]["before"]
    assert plain["run_id"] != calibrated["run_id"]


def test_test_images_have_no_part_in_the_temperature(run, tiny_bank, tmp_path):
    record, _ = run(val=True)
    # Not by `load_bank` and `save`, since normalising once more may change a last bit of the other features
    with safe_open(tiny_bank, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    changed = {"test_features": -tensors["test_features"], "test_labels": tensors["test_labels"].flip(0)}
    save_file(tensors | changed, tiny_bank, metadata)
    other = main([
        "--features", str(tiny_bank), "--shots", "4", "--output-dir", str(tmp_path / "other"), *QUICK,
    ])  # fmt: skip
    assert other == 0
    changed = json.loads((tmp_path / "other" / "result.json").read_text())
    assert changed["calibration"]["temperature"] == record["calibration"]["temperature"]
    assert not math.isclose(changed["accuracy"], record["accuracy"])


def test_a_run_without_test_images_has_a_temperature_and_no_scores(run, tiny_bank):
    load_bank(tiny_bank).without_test().save(tiny_bank)
    record, out = run()
    assert record["calibration"]["fitted_on"] == "held-out images"
    assert record["calibration"]["before"] is record["calibration"]["after"] is None
    assert load_model(out).temperature == record["calibration"]["temperature"]


# How images of known classes score


def class_means(bank: FeatureBank):
    keys = bank.cache_keys()
    means = torch.stack([keys[bank.train_labels == label].mean(dim=0) for label in range(len(bank.classnames))])
    return lambda features: 30.0 * features @ means.t()


def quantiles(scores: Tensor) -> list[float]:
    return np.quantile(scores.double().numpy(), np.linspace(0, 1, 101)).tolist()


def test_known_scores_are_those_of_held_out_images(bank):
    found = find_temperature(bank, class_means(bank), class_means, trains=False, seed=1)
    held = list(hold_out_images(bank, class_means, 1))
    scores = known_score(torch.cat([part.logits for part in held]), found.temperature)
    assert found.known.quantiles == pytest.approx(quantiles(scores))
    assert (found.known.fitted_on, found.known.num_images) == ("held-out images", 30)
    seen = quantiles(known_score(class_means(bank)(bank.cache_keys()), found.temperature))
    assert found.known.threshold(0.95) < np.interp(0.05, np.linspace(0, 1, 101), seen)


def test_val_images_give_the_known_scores_where_there_are_some(tiny_bank):
    bank = load_bank(tiny_bank).without_test()
    found = find_temperature(bank, class_means(bank), class_means, trains=True, seed=1)
    scores = known_score(class_means(bank)(bank.val_features), found.temperature)
    assert found.known.quantiles == pytest.approx(quantiles(scores)) and found.known.fitted_on == "val"


def test_at_one_shot_known_scores_are_zero_shot_clips_plus_the_gain_on_classes_that_are_held_out(bank):
    first = torch.stack([(bank.train_labels == label).nonzero()[0, 0] for label in range(5)])
    one = replace(bank, train_features=bank.train_features[:, first], train_labels=bank.train_labels[first])
    found = find_temperature(one, class_means(one), class_means, trains=False, seed=3)

    def energy(logits: Tensor, temperature: float) -> Tensor:
        return (logits / temperature).exp().sum(dim=1).log()

    own = 100.0 * one.cache_keys() @ one.text_positive.t()
    honest = fit_temperature(own, one.train_labels)
    gains = [
        energy(part.logits, found.temperature)
        - energy(100.0 * part.features @ part.fitted_to.text_positive.t(), honest)
        for part in hold_out_classes(one, class_means, 3)
    ]
    assert found.known.quantiles == pytest.approx(quantiles(energy(own, honest) + torch.cat(gains).mean()), rel=1e-4)
    assert (found.known.fitted_on, found.known.num_images) == ("held-out classes", 5)


def train(path: Path, out: Path, *opts: str) -> dict:
    flags = ["--features", str(path), "--shots", "4", "--output-dir", str(out), *QUICK]
    assert main([*flags, "DATASET.SUBSAMPLE_CLASSES", "base", *opts]) == 0
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("val", [True, False])
def test_no_unknown_image_reaches_the_fit_or_the_threshold(tiny_bank, tmp_path, val):
    """Images of the classes that are held back, and all test images, are replaced by noise."""
    bank = load_bank(tiny_bank)
    if not val:
        bank = replace(bank, val_features=None, val_labels=None)
    changes = {}
    for split in ("train", "test", "val") if val else ("train", "test"):
        features, labels = getattr(bank, f"{split}_features").clone(), getattr(bank, f"{split}_labels")
        unknown = torch.ones_like(labels).bool() if split == "test" else labels >= 3
        features[..., unknown, :] = F.normalize(torch.randn_like(features[..., unknown, :]), dim=-1)
        changes[f"{split}_features"] = features
    bank.save(tmp_path / "one.safetensors")
    replace(bank, **changes).save(tmp_path / "other.safetensors")
    one = train(tmp_path / "one.safetensors", tmp_path / "one")
    other = train(tmp_path / "other.safetensors", tmp_path / "other")
    assert one["rejection"]["threshold"] == other["rejection"]["threshold"]
    assert one["rejection"]["kept"] > other["rejection"]["kept"]
    assert load_model(tmp_path / "one").known == load_model(tmp_path / "other").known
    tensors = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "other")]
    assert "class_nodes" in tensors[0]
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())


def test_the_record_tells_the_threshold_and_the_share_of_test_images_that_reach_it(tiny_bank, tmp_path):
    found = train(tiny_bank, tmp_path / "run")["rejection"]
    model, bank = load_model(tmp_path / "run"), load_bank(tiny_bank).subsample("base")
    logits = model.classifier.logits(bank.test_features)
    assert found["threshold"] == pytest.approx(model.known.threshold(0.95))
    assert found["kept"] == pytest.approx(100 * model.is_known(logits, 0.95).double().mean().item(), abs=1e-6)
    assert (found["score"], found["keep"], found["fitted_on"]) == (model.known.score, 0.95, "val")


def test_without_calibration_there_is_no_threshold(tiny_bank, tmp_path):
    assert train(tiny_bank, tmp_path / "run", f"{NODE}CALIBRATE", "off")["rejection"] is None
    assert load_model(tmp_path / "run").known is None

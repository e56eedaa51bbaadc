"""Calibration of a fitted method, whose held-out images it has not seen."""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainers.hegraph import FeatureBank, UserError, load_bank, load_cfg
from trainers.hegraph.baselines import load_method, method_options
from trainers.hegraph.config import Config
from trainers.hegraph.experiments import calibration
from trainers.hegraph.experiments.fitting import fit
from trainers.hegraph.experiments.record import rejection_on_test
from trainers.hegraph.experiments.run_folder import run_config
from trainers.hegraph.experiments.tasks import FeatureTask
from trainers.hegraph.method.training.confidence import Calibration, KnownScores, fit_temperature
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.results.records import read_record

NODE = "TRAINER.HEGRAPHADAPTER"
ALPHA, BETA, OMEGA = (f"{NODE}.{name}" for name in ("ALPHA_C", "BETA_C", "CLOSED_FORM.OMEGA"))
SHORT = ["OPTIM.MAX_EPOCH", 2, f"{NODE}.MIN_STEPS", 0, "DATASET.NUM_SHOTS", 2]


def nearest_mean(bank: FeatureBank) -> Callable[[Tensor], Tensor]:
    """The nearest class mean, times 30."""
    keys = bank.cache_keys()
    means = torch.stack([keys[bank.train_labels == label].mean(dim=0) for label in range(len(bank.classnames))])
    return lambda features: 30.0 * features @ means.t()


@pytest.fixture
def bank(tiny_bank) -> FeatureBank:
    """The tiny bank without test and val images: 6 training images of each of 5 classes."""
    return replace(load_bank(tiny_bank).without_test(), val_features=None, val_labels=None)


@pytest.fixture
def one_shot(bank) -> FeatureBank:
    """Bank with only the first image of each class."""
    first = torch.stack([(bank.train_labels == label).nonzero()[0, 0] for label in range(5)])
    return replace(bank, train_features=bank.train_features[:, first], train_labels=bank.train_labels[first])


def energy(logits: Tensor, temperature: float) -> Tensor:
    return (logits.double() / temperature).exp().sum(dim=1).log()


def quantiles(scores: Tensor) -> list[float]:
    return np.quantile(scores.double().numpy(), np.linspace(0, 1, 101)).tolist()


def confidence(logits: list[Tensor], temperature: float) -> float:
    """The mean of the highest probability."""
    return torch.cat([(part.double() / temperature).softmax(dim=1).amax(dim=1) for part in logits]).mean().item()


# Held-out images


def test_every_image_is_held_out_once(bank):
    parts = list(calibration.without_images(bank, seed=1))
    assert len(parts) == 4 and torch.equal(sum(held.int() for _, held in parts), torch.ones(30).int())
    for rest, held in parts:
        assert torch.equal(rest.train_features, bank.train_features[:, ~held])
        assert torch.equal(rest.train_labels, bank.train_labels[~held])


def test_folds_are_at_most_four_without_single_images(one_shot):
    folds = calibration.assign_folds(torch.tensor([0, 1, 1, 2, 2, 2]), seed=1)
    assert (folds.tolist()[0], sorted(folds.tolist()[1:3]), sorted(folds.tolist()[3:])) == (-1, [0, 1], [0, 1, 2])
    one, two = (calibration.assign_folds(torch.zeros(9).long(), seed).tolist() for seed in (1, 2))
    assert sorted(one) == [0, 0, 0, 1, 1, 2, 2, 3, 3] and one != two
    assert list(calibration.without_images(one_shot, seed=1)) == []


def test_classes_are_held_out_from_four_on(bank):
    parts = list(calibration.without_classes(bank, seed=1))
    names = [set(rest.classnames) for rest, _ in parts]
    assert [len(known) for known in names] == [3, 2] and names[0] | names[1] == set(bank.classnames)
    for (rest, held), known in zip(parts, names):
        assert [bank.classnames[label] in known for label in bank.train_labels.tolist()] == (~held).tolist()
        assert torch.equal(rest.train_features, bank.train_features[:, ~held])
    few, enough = bank.of_classes(torch.tensor([0, 2, 4])), bank.of_classes(torch.arange(4))
    assert (len(list(calibration.without_classes(enough, seed=1))), list(calibration.without_classes(few, seed=1))) == (
        2,
        [],
    )


# Confidence of the result


def test_temperature_is_fitted_on_val_images(tiny_bank):
    bank = load_bank(tiny_bank).without_test()
    logits = nearest_mean(bank)(bank.val_features)
    found = calibration.fit_calibration(bank, nearest_mean(bank), None, trains=True, seed=1)  # nothing is fitted again
    assert (found.fitted_on, found.num_images) == ("val", 15)
    assert found.temperature == fit_temperature(logits, bank.val_labels)
    assert found.known.quantiles == pytest.approx(quantiles(energy(logits, found.temperature)), rel=1e-5)
    assert (found.known.fitted_on, found.known.num_images) == ("val", 15)


@pytest.mark.parametrize(("trains", "fits", "images"), [(True, 1, 10), (False, 4, 30)])
def test_trained_method_is_refitted_for_one_fold_only(bank, trains, fits, images):
    seen: list[FeatureBank] = []
    found = calibration.fit_calibration(
        bank, None, lambda rest: seen.append(rest) or nearest_mean(rest), trains, seed=1
    )
    assert (found.fitted_on, found.num_images, len(seen)) == ("held-out images", images, fits)
    parts = list(calibration.without_images(bank, 1))[:fits]
    logits = torch.cat([nearest_mean(rest)(bank.cache_keys()[held]) for rest, held in parts])
    labels = torch.cat([bank.train_labels[held] for _, held in parts])
    assert found.temperature == fit_temperature(logits, labels)
    assert found.known.quantiles == pytest.approx(quantiles(energy(logits, found.temperature)), rel=1e-5)
    assert (found.known.fitted_on, found.known.num_images) == ("held-out images", images)


def test_one_shot_calibration_matches_zero_shot_confidence(one_shot):
    found = calibration.fit_calibration(one_shot, None, nearest_mean, trains=False, seed=3)
    assert (found.fitted_on, found.num_images) == ("held-out classes", 5)
    parts, keys = list(calibration.without_classes(one_shot, 3)), one_shot.cache_keys()
    ours = [nearest_mean(rest)(keys[held]) for rest, held in parts]
    clips = [100.0 * keys[held] @ rest.text_positive.t() for rest, held in parts]
    own = 100.0 * keys @ one_shot.text_positive.t()
    clip_temperature = fit_temperature(own, one_shot.train_labels)
    assert confidence(ours, found.temperature) == pytest.approx(confidence(clips, clip_temperature))
    # Score of known images: zero-shot CLIP plus the gain of the method on held-out classes
    gains = [energy(part, found.temperature) - energy(clip, clip_temperature) for part, clip in zip(ours, clips)]
    scores = energy(own, clip_temperature) + torch.cat(gains).mean()
    assert found.known.quantiles == pytest.approx(quantiles(scores), rel=1e-4)
    assert (found.known.fitted_on, found.known.num_images) == ("held-out classes", 5)


@pytest.mark.parametrize("calibrate", ["auto", "off"])
def test_nonfinite_logits_are_refused_after_training(tiny_bank, calibrate):
    cfg = load_cfg(opts=[*SHORT, BETA, 1e30, f"{NODE}.CALIBRATE", calibrate])  # exp(1e30 * rounding error) is infinite
    task = FeatureTask(load_bank(tiny_bank), cfg, 1)
    with pytest.raises(UserError, match="NaN or infinite logits; lower its learning rate and options"):
        calibration.calibrate(fit(task, task.bank()), task, task.bank())


def test_too_few_images_leave_the_temperature_at_one(one_shot, caplog):
    bank = one_shot.of_classes(torch.arange(3))
    task = FeatureTask(bank, load_cfg(opts=[*SHORT, f"{NODE}.VARIANT", "training_free"]), 1)
    nothing = calibration.calibrate(fit(task, bank), task, bank).calibration
    with caplog.at_level(logging.INFO):
        calibration.log_calibration(nothing)
    assert (nothing.temperature, nothing.fitted_on, nothing.known) == (1.0, "nothing", None)
    assert "not calibrated: this needs a class with two training images, or four classes" in caplog.text


# Values by shots


def unequal(bank: FeatureBank, counts: list[int]) -> FeatureBank:
    """Bank with the first images of each class, as many as `counts` says."""
    rows = [(bank.train_labels == label).nonzero()[:count, 0] for label, count in enumerate(counts)]
    kept = torch.cat(rows)
    return replace(bank, train_features=bank.train_features[:, kept], train_labels=bank.train_labels[kept])


def proker() -> Config:
    """Configuration of ProKeR with values of BETA by shots."""
    rows = [[1, 0.5], [3, 1.5], [6, 9.0]]
    opts = ["TRAINER.NAME", "ProKeR", "TRAINER.PROKER.BETA", rows]
    return load_cfg(method=method_options("ProKeR"), opts=opts)


def test_values_by_shots_follow_the_rounded_mean(bank):
    task = unequal(bank, [6, 6, 1, 1, 1])
    cfg = proker()
    assert load_method("ProKeR").options_for(cfg, task).beta == 1.5  # 3 images of a class on average


def test_calibration_is_of_the_options_of_the_whole_task(bank, monkeypatch):
    """A refit to fewer images has the values by shots of the method that it calibrates."""
    seen = []
    method = type(load_method("ProKeR"))
    fitting = method.fit

    def record(self, bank, options, *args, **kwargs):
        seen.append((len(bank.train_labels), options.beta))
        return fitting(self, bank, options, *args, **kwargs)

    monkeypatch.setattr(method, "fit", record)
    task = FeatureTask(bank, proker(), 1)
    calibration.calibrate(fit(task, bank), task, bank)
    assert len(seen) == 5 and min(number for number, _ in seen) < 25
    assert {beta for _, beta in seen} == {9.0}


# In a run


def test_model_and_record_hold_temperature_and_threshold(run, tiny_bank, tmp_path):
    no_val = tmp_path / "no_val.safetensors"
    replace(load_bank(tiny_bank), val_features=None, val_labels=None).save(no_val)
    record, out = run("DATASET.SUBSAMPLE_CLASSES", "base", bank=no_val)
    model, bank = load_model(out), load_bank(tiny_bank).subsample("base")
    assert model.temperature == record["calibration"]["temperature"] != 1.0
    logits = model.classifier.logits(bank.test_features)
    right = (logits / model.temperature).softmax(dim=1)[torch.arange(len(logits)), bank.test_labels]
    assert -right.log().mean().item() == pytest.approx(record["calibration"]["after"]["nll"], abs=1e-3)
    for when, key in (("before", "accuracy"), ("after", "accuracy"), ("zero_shot", "accuracy_zero_shot")):
        assert record["calibration"][when]["accuracy"] == pytest.approx(record[key])
    assert sum(record["calibration"]["after"]["bins"]["count"]) == record["num_test"]
    assert record["seconds"]["calibration"] > 0
    found = record["rejection"]
    threshold = np.interp(0.05, np.linspace(0, 1, 101), model.known.quantiles)
    kept = 100 * (energy(logits, model.temperature) >= threshold).double().mean().item()
    assert (found["threshold"], found["accepted"]) == (pytest.approx(threshold), pytest.approx(kept))
    assert (found["score"], found["rate"], found["fitted_on"]) == ("energy", 0.95, "held-out images")
    assert found["num_images"] == model.known.num_images


def test_calibration_shapes_the_runs_of_every_method():
    named = ["TRAINER.NAME", "TipAdapter", f"{NODE}.CALIBRATE"]
    without, fitted = (load_cfg(opts=[*named, how], method=method_options("TipAdapter")) for how in ("off", "auto"))
    assert run_config(without) != run_config(fitted)


def test_accepted_images_are_counted_by_calibrated_scores():
    # At temperature 2 the energies of single logits are 2, 3 and 4; the threshold is 2.5
    known = KnownScores.of(torch.full((3,), 2.5), "val")
    found = rejection_on_test(torch.tensor([[4.0], [6.0], [8.0]]), Calibration(2.0, "val", 3, known=known))
    assert (found.threshold, found.accepted) == (2.5, pytest.approx(200 / 3))


def test_calibration_changes_no_prediction(run, finished_run_once):
    calibrated = read_record(finished_run_once)
    plain, out = run(f"{NODE}.CALIBRATE", "off")
    assert (plain["calibration"]["temperature"], plain["calibration"]["fitted_on"]) == (1.0, "nothing")
    for name in ("model/model.safetensors", "predictions.safetensors", "text_nodes.safetensors"):
        assert (finished_run_once / name).read_bytes() == (out / name).read_bytes()
    assert plain["calibration"]["before"] == plain["calibration"]["after"] == calibrated["calibration"]["before"]
    assert plain["run_id"] != calibrated["run_id"] and plain["rejection"] is load_model(out).known is None


def test_test_images_have_no_part_in_the_temperature(run, finished_run_once, tiny_bank, tmp_path):
    record = read_record(finished_run_once)
    # Not by `load_bank` and `save`, since normalising once more may change a last bit of the other features
    with safe_open(tiny_bank, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    changed = {"test_features": -tensors["test_features"], "test_labels": tensors["test_labels"].flip(0)}
    save_file(tensors | changed, tmp_path / "changed.safetensors", metadata)
    save_file({k: v for k, v in tensors.items() if "test" not in k}, tmp_path / "none.safetensors", metadata)
    other, _ = run(bank=tmp_path / "changed.safetensors", name="changed")
    without, out = run(bank=tmp_path / "none.safetensors", name="none")
    assert other["accuracy"] != record["accuracy"]
    assert load_model(out).temperature == record["calibration"]["temperature"] == other["calibration"]["temperature"]
    not_tested = without["calibration"]["before"], without["calibration"]["after"], without["rejection"]["accepted"]
    assert not_tested == (None, None, None)
    assert (without["accuracy"], without["num_test"], without["test_set"]) == (None, 0, None)
    assert (out / "adapter.safetensors").exists() and not (out / "predictions.safetensors").exists()

"""Fit of a method: its data, selection on validation images, and the temperature."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.hegraph import FeatureBank, UserError, load_bank, load_cfg
from trainers.hegraph.baselines.base import FittedMethod
from trainers.hegraph.experiments import fitting
from trainers.hegraph.experiments.run import check_configuration
from trainers.hegraph.experiments.tasks import BankTask, FeatureTask
from trainers.hegraph.method.training.confidence import fit_temperature
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.results.records import read_record
from trainers.hegraph.utils.option import OptionGroup, option

NODE = "TRAINER.HEGRAPHADAPTER"
ALPHA, BETA, OMEGA = (f"{NODE}.{name}" for name in ("ALPHA_C", "BETA_C", "CLOSED_FORM.OMEGA"))
SHORT = ["OPTIM.MAX_EPOCH", 2, f"{NODE}.MIN_STEPS", 0, "DATASET.NUM_SHOTS", 2]

# Another method


@dataclass(frozen=True)
class SpyOptions:
    share: float = option(0.5, "SHARE", "share of something")


def test_fit_gets_no_test_images_and_is_timed(tiny_bank, monkeypatch):
    bank, method = load_bank(tiny_bank), Mock(needs_backbone=False, needs_base=False)
    method.name = "Spy"
    method.fit.side_effect = lambda *given: FittedMethod(lambda f: f, num_parameters=int(1e6 * torch.rand(1)))
    monkeypatch.setattr(fitting, "load_method", lambda name: method)
    monkeypatch.setattr(fitting, "wait_for", waited := Mock())
    cfg = load_cfg(method=OptionGroup("Spy", SpyOptions), opts=["TRAINER.NAME", "Spy", "TRAINER.SPY.SHARE", 0.25])

    def fit(seed: int, backbone: object) -> FittedMethod:
        monkeypatch.setattr(fitting, "time", Mock(**{"monotonic.side_effect": [100.0, 110.0]}))
        return fitting.fit_method(SimpleNamespace(cfg=cfg, seed=seed, backbone=backbone), bank)

    fitted = fit(7, "a backbone")
    seen, options, *rest = method.fit.call_args[0]
    assert seen.test_features is seen.test_labels is None
    for name in ("train_features", "train_labels", "val_features", "val_labels", "text_positive", "text_negative"):
        assert getattr(seen, name) is getattr(bank, name)
    assert (options, rest) == (SpyOptions(0.25), [7, None])  # it does not need a backbone
    assert (fitted.seconds, waited.call_count) == (10, 1)  # includes pending work of a GPU
    assert fitted.num_parameters == fit(7, None).num_parameters != fit(8, None).num_parameters  # by the seed
    method.needs_backbone = True
    fit(7, "a backbone")
    assert method.fit.call_args[0][3] == "a backbone"


# Choosing on val


@pytest.mark.parametrize(("rows", "trainings"), [
    ([[ALPHA, [2.0, 4.0, 8.0]], [OMEGA, [0.1, 0.3]]], 1),  # these only weight predictions
    ([[f"{NODE}.CLOSED_FORM.RHO", [0.1, 0.3]], [f"{NODE}.CLOSED_FORM.KAPPA", [2.0, 4.0]]], 2),  # KAPPA is in NOISE
])  # fmt: skip
def test_candidates_that_share_a_training_equal_single_runs(tiny_bank, monkeypatch, rows, trainings):
    trained, saved, train = [], [], fitting.train_to_end
    monkeypatch.setattr(fitting, "train_to_end", lambda training: trained.append(train(training)) or trained[-1])
    task = BankTask(tiny_bank, load_cfg(opts=[*SHORT, f"{NODE}.SELECT", str(rows)]), 1)
    bank = task.bank()
    chosen = fitting.tune_on_val(task, bank, SimpleNamespace(save_adapter=saved.append))
    assert (len(trained), chosen.seconds) == (trainings, pytest.approx(sum(summary.seconds for summary in trained)))
    keys, values = [key for key, _ in rows], list(itertools.product(*(values for _, values in rows)))
    configs = [load_cfg(opts=[*SHORT, *(word for pair in zip(keys, given) for word in pair)]) for given in values]
    alone = [fitting.train_adapter(BankTask(tiny_bank, cfg, 1), bank).logits(bank.val_features) for cfg in configs]
    on_val = [round(100 * (found.argmax(1) == bank.val_labels).double().mean().item(), 4) for found in alone]
    best = on_val.index(max(on_val))
    assert on_val.count(max(on_val)) > 1  # so that the order shows
    assert chosen.selected == {
        "keys": keys, "value": list(values[best]),
        "candidates": [[list(given), found] for given, found in zip(values, on_val)], "num_val": len(bank.val_labels),
    }  # fmt: skip
    [model] = saved
    assert model.options == configs[best].model
    assert torch.equal(chosen.logits(bank.val_features), alone[best])
    assert torch.equal(model.fold().logits(bank.val_features), alone[best])


def test_fitted_adapter_equals_its_model(tiny_bank):
    cfg = load_cfg(opts=[*SHORT, f"{NODE}.VARIANT", "training_free"])
    task = BankTask(tiny_bank, cfg, 1)
    bank = task.bank()
    fitted, model = fitting.train_adapter(task, bank), fitting.new_model(bank, cfg, 1)
    assert (fitted.num_parameters, fitted.steps, fitted.variant, fitted.text_nodes) == (0, 0, "training_free", None)
    assert torch.equal(fitted.logits(bank.test_features), model.fold().logits(bank.test_features))
    assert torch.equal(fitted.class_nodes, model.closed_form.to_text.nodes)
    trained = fitting.train_adapter(BankTask(tiny_bank, load_cfg(opts=[*SHORT, OMEGA, 0.0]), 1), bank)
    assert trained.class_nodes is None  # no messages in closed form
    parameters = fitting.new_model(bank, load_cfg(opts=SHORT), 1).parameters()
    assert trained.num_parameters == sum(parameter.numel() for parameter in parameters)
    before, after = trained.text_nodes
    assert torch.equal(before, bank.text_positive) and torch.allclose(after.norm(dim=1), torch.ones(5))


def test_initial_weights_depend_on_the_seed_alone(tiny_bank):
    cfg, bank = load_cfg(opts=[*SHORT, f"{NODE}.WEIGHT_INIT", "xavier"]), load_bank(tiny_bank)
    one, other, third = (fitting.new_model(bank, cfg, seed).layers.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not all(torch.equal(value, third[name]) for name, value in one.items())


# Through the command line


def test_selected_value_is_the_only_one_tested(run):
    grid = f'[["{ALPHA}", [0, 300]], ["{BETA}", ["7"]]]'
    first, out = run("--select", "val", ALPHA, "1.0", f"{NODE}.SELECT", grid)
    chosen, beta = first["selected"]["value"]
    assert (first["selected_on"], first["selected"]["keys"], beta) == ("val", [ALPHA, BETA], "7")
    assert load_file(out / "adapter.safetensors")
    test = ("--eval-only", "--model-dir", str(out))
    for name, same in (("one", ()), ("two", (ALPHA, str(chosen), BETA, "7.0"))):
        again, _ = run(*test, *same, name=name)
        for key in ("accuracy", "selected_on", "selected"):
            assert again[key] == first[key]
    error = run(*test, ALPHA, str(300.0 - chosen), name="three", code=2)
    assert f"{ALPHA} '{float(chosen)}'" in error and not (out.parent / "three").exists()


@pytest.mark.parametrize("selected", [{"keys": 1}, {"keys": ["NO.SUCH"], "value": [1]}])
def test_model_with_malformed_selection_is_refused(finished_run_once, selected):
    model = load_model(finished_run_once)
    changed = model.trained_on.model_copy(update={"selected": selected})
    with pytest.raises(UserError):
        check_configuration(model.model_copy(update={"trained_on": changed}), load_cfg())


# Temperature: the classifier has not seen the held-out images


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
    parts = list(fitting.without_images(bank, seed=1))
    assert len(parts) == 4 and torch.equal(sum(held.int() for _, held in parts), torch.ones(30).int())
    for rest, held in parts:
        assert torch.equal(rest.train_features, bank.train_features[:, ~held])
        assert torch.equal(rest.train_labels, bank.train_labels[~held])


def test_folds_are_at_most_four_without_single_images(one_shot):
    folds = fitting.assign_folds(torch.tensor([0, 1, 1, 2, 2, 2]), seed=1)
    assert (folds.tolist()[0], sorted(folds.tolist()[1:3]), sorted(folds.tolist()[3:])) == (-1, [0, 1], [0, 1, 2])
    one, two = (fitting.assign_folds(torch.zeros(9).long(), seed).tolist() for seed in (1, 2))
    assert sorted(one) == [0, 0, 0, 1, 1, 2, 2, 3, 3] and one != two
    assert list(fitting.without_images(one_shot, seed=1)) == []


def test_classes_are_held_out_from_four_on(bank):
    parts = list(fitting.without_classes(bank, seed=1))
    names = [set(rest.classnames) for rest, _ in parts]
    assert [len(known) for known in names] == [3, 2] and names[0] | names[1] == set(bank.classnames)
    for (rest, held), known in zip(parts, names):
        assert [bank.classnames[label] in known for label in bank.train_labels.tolist()] == (~held).tolist()
        assert torch.equal(rest.train_features, bank.train_features[:, ~held])
    few, enough = bank.of_classes(torch.tensor([0, 2, 4])), bank.of_classes(torch.arange(4))
    assert (len(list(fitting.without_classes(enough, seed=1))), list(fitting.without_classes(few, seed=1))) == (2, [])


# Confidence of the result


def test_temperature_is_fitted_on_val_images(tiny_bank):
    bank = load_bank(tiny_bank).without_test()
    logits = nearest_mean(bank)(bank.val_features)
    found = fitting.calibrate(bank, nearest_mean(bank), None, trains=True, seed=1)  # nothing is fitted again
    assert (found.fitted_on, found.num_images) == ("val", 15)
    assert found.temperature == fit_temperature(logits, bank.val_labels)
    assert found.known.quantiles == pytest.approx(quantiles(energy(logits, found.temperature)), rel=1e-5)
    assert (found.known.fitted_on, found.known.num_images) == ("val", 15)


@pytest.mark.parametrize(("trains", "fits", "images"), [(True, 1, 10), (False, 4, 30)])
def test_trained_method_is_refitted_for_one_fold_only(bank, trains, fits, images):
    seen: list[FeatureBank] = []
    found = fitting.calibrate(bank, None, lambda rest: seen.append(rest) or nearest_mean(rest), trains, seed=1)
    assert (found.fitted_on, found.num_images, len(seen)) == ("held-out images", images, fits)
    parts = list(fitting.without_images(bank, 1))[:fits]
    logits = torch.cat([nearest_mean(rest)(bank.cache_keys()[held]) for rest, held in parts])
    labels = torch.cat([bank.train_labels[held] for _, held in parts])
    assert found.temperature == fit_temperature(logits, labels)
    assert found.known.quantiles == pytest.approx(quantiles(energy(logits, found.temperature)), rel=1e-5)
    assert (found.known.fitted_on, found.known.num_images) == ("held-out images", images)


def test_one_shot_calibration_matches_zero_shot_confidence(one_shot):
    found = fitting.calibrate(one_shot, None, nearest_mean, trains=False, seed=3)
    assert (found.fitted_on, found.num_images) == ("held-out classes", 5)
    parts, keys = list(fitting.without_classes(one_shot, 3)), one_shot.cache_keys()
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
        fitting.calibrate_method(fitting.train_adapter(task, task.bank()), task, task.bank())


def test_too_few_images_leave_the_temperature_at_one(one_shot, caplog):
    bank = one_shot.of_classes(torch.arange(3))
    task = FeatureTask(bank, load_cfg(opts=[*SHORT, f"{NODE}.VARIANT", "training_free"]), 1)
    nothing = fitting.calibrate_method(fitting.train_adapter(task, bank), task, bank).calibration
    with caplog.at_level(logging.INFO):
        fitting.log_calibration(nothing)
    assert (nothing.temperature, nothing.fitted_on, nothing.known) == (1.0, "nothing", None)
    assert "no temperature is fitted, which needs a class with two training images, or four classes" in caplog.text


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

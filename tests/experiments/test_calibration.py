"""What is held out is not seen by what classifies it; what follows for the temperature and for images of no class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainers.hegraph.experiments.fitting import assign_folds, find_temperature, without_classes, without_images
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.training.confidence import fit_temperature

NODE = "TRAINER.HEGRAPHADAPTER."


def fit(bank: FeatureBank) -> Callable[[Tensor], Tensor]:
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
    """The same with the first image of each class alone."""
    first = torch.stack([(bank.train_labels == label).nonzero()[0, 0] for label in range(5)])
    return replace(bank, train_features=bank.train_features[:, first], train_labels=bank.train_labels[first])


def energy(logits: Tensor, temperature: float) -> Tensor:
    return (logits.double() / temperature).exp().sum(dim=1).log()


def quantiles(scores: Tensor) -> list[float]:
    return np.quantile(scores.double().numpy(), np.linspace(0, 1, 101)).tolist()


def confidence(logits: list[Tensor], temperature: float) -> float:
    """The mean of the highest probability."""
    return torch.cat([(part.double() / temperature).softmax(dim=1).amax(dim=1) for part in logits]).mean().item()


# What is held out


def test_every_image_is_held_out_once_and_is_then_in_no_view_of_the_rest(bank):
    parts = list(without_images(bank, seed=1))
    assert len(parts) == 4
    assert torch.equal(sum(held.int() for _, held in parts), torch.ones(30).int())
    for rest, held in parts:
        assert torch.equal(rest.train_features, bank.train_features[:, ~held])
        assert torch.equal(rest.train_labels, bank.train_labels[~held])


def test_images_are_dealt_to_at_most_four_folds_and_the_only_one_of_a_class_to_none(one_shot):
    folds = assign_folds(torch.tensor([0, 1, 1, 2, 2, 2]), seed=1)
    assert folds.tolist()[0] == -1
    assert sorted(folds.tolist()[1:3]) == [0, 1]
    assert sorted(folds.tolist()[3:]) == [0, 1, 2]
    assert sorted(assign_folds(torch.zeros(9).long(), seed=1).tolist()) == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert assign_folds(torch.zeros(9).long(), seed=1).tolist() != assign_folds(torch.zeros(9).long(), seed=2).tolist()
    assert list(without_images(one_shot, seed=1)) == []


def test_held_out_classes_are_unknown_to_the_rest_and_three_are_too_few_for_it(bank):
    parts = list(without_classes(bank, seed=1))
    names = [set(rest.classnames) for rest, _ in parts]
    assert [len(known) for known in names] == [3, 2] and names[0] | names[1] == set(bank.classnames)
    for (rest, held), known in zip(parts, names):
        assert [bank.classnames[label] in known for label in bank.train_labels.tolist()] == (~held).tolist()
        assert torch.equal(rest.train_features, bank.train_features[:, ~held])
    few, enough = bank.of_classes(torch.tensor([0, 2, 4])), bank.of_classes(torch.arange(4))
    assert (len(list(without_classes(enough, seed=1))), list(without_classes(few, seed=1))) == (2, [])


# What follows


def test_val_images_are_what_the_temperature_is_fitted_on_where_there_are_some(tiny_bank):
    bank = load_bank(tiny_bank).without_test()
    logits = fit(bank)(bank.val_features)
    found = find_temperature(bank, fit(bank), None, trains=True, seed=1)  # nothing is fitted again
    assert (found.fitted_on, found.num_images) == ("val", 15)
    assert found.temperature == fit_temperature(logits, bank.val_labels)
    assert found.known.quantiles == pytest.approx(quantiles(energy(logits, found.temperature)), rel=1e-5)
    assert (found.known.fitted_on, found.known.num_images) == ("val", 15)


@pytest.mark.parametrize(("trains", "fits", "images"), [(True, 1, 10), (False, 4, 30)])
def test_a_method_that_trains_is_fitted_again_once_and_another_for_every_fold(bank, trains, fits, images):
    seen: list[FeatureBank] = []
    found = find_temperature(bank, None, lambda rest: seen.append(rest) or fit(rest), trains, seed=1)
    assert (found.fitted_on, found.num_images, len(seen)) == ("held-out images", images, fits)
    parts = list(without_images(bank, 1))[:fits]
    logits = torch.cat([fit(rest)(bank.cache_keys()[held]) for rest, held in parts])
    labels = torch.cat([bank.train_labels[held] for _, held in parts])
    assert found.temperature == fit_temperature(logits, labels)
    assert found.known.quantiles == pytest.approx(quantiles(energy(logits, found.temperature)), rel=1e-5)
    assert (found.known.fitted_on, found.known.num_images) == ("held-out images", images)


def test_at_one_shot_the_method_is_as_sure_as_zero_shot_clip_of_classes_that_are_held_out(one_shot):
    found = find_temperature(one_shot, None, fit, trains=False, seed=3)
    assert (found.fitted_on, found.num_images) == ("held-out classes", 5)
    parts, keys = list(without_classes(one_shot, 3)), one_shot.cache_keys()
    ours = [fit(rest)(keys[held]) for rest, held in parts]
    clips = [100.0 * keys[held] @ rest.text_positive.t() for rest, held in parts]
    own = 100.0 * keys @ one_shot.text_positive.t()
    honest = fit_temperature(own, one_shot.train_labels)
    assert confidence(ours, found.temperature) == pytest.approx(confidence(clips, honest))
    # Known images score as with zero-shot CLIP, plus what the method adds on held-out classes
    gains = [energy(part, found.temperature) - energy(clip, honest) for part, clip in zip(ours, clips)]
    assert found.known.quantiles == pytest.approx(quantiles(energy(own, honest) + torch.cat(gains).mean()), rel=1e-4)
    assert (found.known.fitted_on, found.known.num_images) == ("held-out classes", 5)
    nothing = find_temperature(one_shot.of_classes(torch.arange(3)), None, fit, True, 1)
    assert (nothing.temperature, nothing.fitted_on, nothing.known) == (1.0, "nothing", None)


# In a run


def test_the_model_folder_has_the_temperature_and_the_threshold_and_the_record_their_effect(run, tiny_bank, tmp_path):
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
    assert (found["threshold"], found["kept"]) == (pytest.approx(threshold), pytest.approx(kept))
    assert (found["score"], found["keep"], found["fitted_on"]) == ("energy", 0.95, "held-out images")
    assert found["num_images"] == model.known.num_images


def test_calibration_changes_no_prediction_and_without_it_there_is_no_threshold(run):
    calibrated, out = run()
    plain, plain_out = run(f"{NODE}CALIBRATE", "off", name="plain")
    assert plain["calibration"]["temperature"] == 1.0 and plain["calibration"]["fitted_on"] == "nothing"
    assert load_model(plain_out).temperature == 1.0
    for name in ("model/model.safetensors", "predictions.safetensors", "text_nodes.safetensors"):
        assert (out / name).read_bytes() == (plain_out / name).read_bytes()
    for key in ("accuracy", "macro_f1", "accuracy_text"):
        assert calibrated[key] == plain[key]
    assert plain["calibration"]["before"] == plain["calibration"]["after"] == calibrated["calibration"]["before"]
    assert plain["run_id"] != calibrated["run_id"]
    assert plain["rejection"] is load_model(plain_out).known is None


def test_test_images_have_no_part_in_the_temperature_which_a_run_without_them_has_too(run, tiny_bank, tmp_path):
    record, _ = run()
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
    assert without["calibration"]["before"] is without["calibration"]["after"] is without["rejection"]["kept"] is None
    assert (without["accuracy"], without["num_test"], without["test_set"]) == (None, 0, None)
    assert (out / "adapter.safetensors").exists() and not (out / "predictions.safetensors").exists()

"""How images of known classes score: never found out on images that were fitted to, on test or on unknown images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from trainers.hegraph.__main__ import main
from trainers.hegraph.experiments.calibration import find_temperature
from trainers.hegraph.experiments.out_of_fold import hold_out_classes, hold_out_images
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.training.confidence import fit_temperature, known_score

NODE = "TRAINER.HEGRAPHADAPTER."
QUICK = ("OPTIM.MAX_EPOCH", "5", f"{NODE}MIN_STEPS", "0")


def class_means(bank: FeatureBank):
    keys = bank.cache_keys()
    means = torch.stack([keys[bank.train_labels == label].mean(dim=0) for label in range(len(bank.classnames))])
    return lambda features: 30.0 * features @ means.t()


@pytest.fixture
def bank(tiny_bank) -> FeatureBank:
    return replace(load_bank(tiny_bank).without_test(), val_features=None, val_labels=None)


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

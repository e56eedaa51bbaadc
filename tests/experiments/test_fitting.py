"""How a run fits a method: what the method is given, what it is never given, and what comes of it."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from trainers.hegraph.baselines.base import FittedMethod, Method, cosine_classifier
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.experiments import run as run_module
from trainers.hegraph.experiments.run import fit_method
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.utils.errors import UserError

NUM_TEST = 2500  # more than two batches of `out_of_fold.BATCH`


def bank_of(with_test: bool = True) -> FeatureBank:
    generator = torch.Generator().manual_seed(1)
    test = torch.nn.functional.normalize(torch.randn(NUM_TEST, 4, generator=generator), dim=-1)
    return FeatureBank(
        train_features=torch.eye(4)[None],
        train_labels=torch.tensor([0, 1, 2, 2]),
        text_positive=torch.eye(4)[:3],
        text_negative=torch.eye(4)[:3],
        classnames=["ant", "bee", "cow"],
        dataset="Tiny",
        backbone="none",
        logit_scale=10.0,
        val_features=torch.eye(4)[:3],
        val_labels=torch.tensor([0, 1, 2]),
        test_features=test if with_test else None,
        test_labels=torch.arange(NUM_TEST) % 3 if with_test else None,
    )


class Spy(Method):
    """Remembers what it was given, and draws one number, so that the seed shows."""

    defaults: ClassVar[dict] = {"SHARE": 0.5}

    def __init__(self, not_a_number: bool = False, saved: bool = True) -> None:
        self.given: tuple = ()
        self.batches: list[int] = []
        self.not_a_number, self.saved = not_a_number, saved

    def fit(self, bank, options, seed, backbone=None) -> FittedMethod:
        self.given, self.drawn = (bank, options, seed, backbone), torch.rand(1).item()

        def logits(features):
            self.batches.append(len(features))
            self.grad = torch.is_grad_enabled()
            found = 10 * features @ bank.text_positive.t()
            return found / 0 if self.not_a_number and len(self.batches) == 3 else found

        return FittedMethod(
            logits,
            num_parameters=12,
            epochs=3,
            steps=9,
            selected={"STEP": {"value": 1, "candidates": []}},
            transfer=len,
            classifier=cosine_classifier(bank.text_positive, 10.0) if self.saved else None,
            transfer_rule="zero-shot",
        )


class NeedsBackbone(Spy):
    needs_backbone = True


@pytest.fixture
def cfg():
    return load_cfg(method=("Spy", {"SHARE": 0.5}), opts=["TRAINER.NAME", "Spy", "TRAINER.SPY.SHARE", 0.25])


def test_a_method_is_given_everything_but_test(cfg):
    method, bank = Spy(), bank_of()
    fit_method(method, SimpleNamespace(backbone="a backbone"), bank, cfg, seed=7)
    seen, options, seed, backbone = method.given
    assert seen.test_features is None
    assert seen.test_labels is None
    for name in ("train_features", "train_labels", "val_features", "val_labels", "text_positive", "text_negative"):
        assert torch.equal(getattr(seen, name), getattr(bank, name))
    assert vars(options) == {"SHARE": 0.25}
    assert seed == 7
    assert backbone is None  # it does not need one
    assert bank.test_features is not None


def test_only_a_method_that_needs_the_backbone_gets_it_and_a_bank_has_none(cfg):
    method = NeedsBackbone()
    cfg = load_cfg(method=("NeedsBackbone", {"SHARE": 0.5}), opts=["TRAINER.NAME", "NeedsBackbone"])
    fit_method(method, SimpleNamespace(backbone="a backbone"), bank_of(), cfg, seed=7)
    assert method.given[3] == "a backbone"
    with pytest.raises(UserError, match="NeedsBackbone learns prompts through .* give images instead of --features"):
        fit_method(NeedsBackbone(), SimpleNamespace(), bank_of(), cfg, seed=7)


def test_the_outcome_holds_the_methods_logits_of_the_test_images_in_their_order(cfg):
    method, bank = Spy(), bank_of()
    outcome = fit_method(method, SimpleNamespace(), bank, cfg, seed=7)
    torch.testing.assert_close(outcome.logits, 10 * bank.test_features[:, :3])
    assert method.batches == [1024, 1024, 452]
    assert method.grad is False
    assert outcome.labels is bank.test_labels
    assert (outcome.num_parameters, outcome.training.epochs, outcome.training.steps) == (12, 3, 9)
    assert outcome.selected == {"STEP": {"value": 1, "candidates": []}}
    assert torch.equal(outcome.classify(torch.eye(4)), 10 * torch.eye(4)[:, :3])
    assert outcome.transfer([1, 2]) == 2
    assert torch.equal(outcome.classifier.weights, 10 * torch.eye(4)[:3])
    assert outcome.transfer_rule == "zero-shot"
    assert (outcome.text_logits, outcome.variant) == (None, "")


def test_the_time_of_training_is_that_of_fit_alone(cfg, monkeypatch):
    clock = [100.0]

    class Slow(Spy):
        def fit(self, bank, options, seed, backbone=None):
            clock[0] += 7
            fitted = super().fit(bank, options, seed, backbone)
            return fitted

        @property
        def name(self):
            return "Spy"

    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    assert fit_method(Slow(), SimpleNamespace(), bank_of(), cfg, seed=7).training.seconds == 7


def test_the_time_of_training_counts_what_a_gpu_still_had_to_do(cfg, monkeypatch):
    clock, waited = [100.0], []

    def wait_for(device):
        waited.append(device.type)
        clock[0] += 3

    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(run_module, "wait_for", wait_for)
    assert fit_method(Spy(), SimpleNamespace(), bank_of(), cfg, seed=7).training.seconds == 3
    assert waited == ["cpu"]


def test_the_generators_are_seeded_before_a_method_is_fitted(cfg):
    drawn = []
    for seed in (7, 7, 8):
        torch.rand(1)
        method = Spy()
        fit_method(method, SimpleNamespace(), bank_of(), cfg, seed=seed)
        drawn.append(method.drawn)
    assert drawn[0] == drawn[1] != drawn[2]


def test_without_test_images_nothing_is_predicted(cfg):
    method = Spy()
    outcome = fit_method(method, SimpleNamespace(), bank_of(with_test=False), cfg, seed=7)
    assert (outcome.logits, outcome.labels, method.batches) == (None, None, [])


def test_a_logit_that_is_not_a_number_in_any_batch_is_an_error(cfg):
    with pytest.raises(UserError, match="Spy predicts NaN or infinite logits"):
        fit_method(Spy(not_a_number=True), SimpleNamespace(), bank_of(), cfg, seed=7)


@pytest.mark.parametrize("saved", [True, False])
def test_a_method_that_does_not_fold_says_that_it_leaves_no_model(cfg, caplog, saved):
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        fit_method(Spy(saved=saved), SimpleNamespace(), bank_of(), cfg, seed=7)
    assert caplog.messages == ([] if saved else ["Spy leaves no model folder: it returns no classifier"])

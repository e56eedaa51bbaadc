"""The training loop: learning rates, length, resuming, and what stops it."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

from benchmarks.tasks import random_bank, start_training
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.method.model import HeGraphModel, build_model
from trainers.hegraph.training import loop as module
from trainers.hegraph.training.batches import BankBatches, products_with_cache
from trainers.hegraph.training.loop import (
    AdapterTraining,
    Checkpoints,
    TrainingSummary,
    learning_rate,
    text_share,
    train_to_end,
)
from trainers.hegraph.utils.errors import UserError

EPOCHS = 5
WIDTH = 16  # of the features of tiny_bank
NODE = "TRAINER.HEGRAPHADAPTER"
KEY = f"{NODE}.WEAK_TEXT_LR_MULT"


@dataclass
class Setup:
    """A small run: 30 images in batches of 8, five epochs of four steps."""

    bank: FeatureBank
    folder: Path

    def fit(self, *opts, name: str = "out", products: bool = False, keep=None) -> tuple[HeGraphModel, TrainingSummary]:
        pairs = ["OPTIM.MAX_EPOCH", EPOCHS, f"{NODE}.MIN_STEPS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 8]
        cfg = load_cfg(opts=[*pairs, *opts])
        features = self.bank.train_features
        kept = products_with_cache(features, self.bank.cache_keys()) if products else None
        data = BankBatches(features, self.bank.train_labels, cfg.data.batch_size, seed=1, products=kept)
        torch.manual_seed(0)
        model = build_model(self.bank, cfg.model)
        checkpoints = Checkpoints(self.folder / name, Path(cfg.run.resume or self.folder / name), "a run")
        training = AdapterTraining(model, data, cfg.training, checkpoints, keep)
        training.resume()
        return model, train_to_end(training)

    def state(self) -> dict:
        """What the checkpoint holds."""
        return torch.load(self.folder / "out" / "checkpoint.pt", weights_only=True)


@pytest.fixture
def setup(tiny_bank, tmp_path) -> Setup:
    return Setup(load_bank(Path(tiny_bank)), tmp_path)


def same(one: HeGraphModel, other: HeGraphModel) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Learning rates


def test_the_learning_rate_is_dassls_in_every_epoch(shared):
    golden = json.loads((Path(shared) / "golden" / "golden_lr.json").read_text())
    assert {"1", "2", "3", "10", "50"} <= set(golden)
    for epochs, rates in golden.items():
        ours = [learning_rate(epoch, int(epochs), 0.002, 1, 1e-5) for epoch in range(int(epochs))]
        assert ours == pytest.approx(rates, rel=1e-9)


@pytest.mark.parametrize(
    ("epoch", "warmup_epochs", "rate"),
    # cos(pi * 5 / 10) = 0 and cos(pi * 9 / 10) = -0.9510565
    [(0, 1, 1e-5), (1, 1, 0.5), (6, 1, 0.25), (10, 1, 0.25 * (1 - 0.9510565)), (0, 0, 0.5), (0, -1, 0.5), (1, 2, 1e-5)],
)
def test_the_rate_is_a_cosine_from_the_peak_after_the_warm_up(epoch, warmup_epochs, rate):
    assert learning_rate(epoch, 10, 0.5, warmup_epochs, 1e-5) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(("meant_for", "scale", "factor"), [(0, 0, 1), (4 * WIDTH, 0, 2), (0, 300, 3)])
def test_every_parameter_group_follows_the_schedule_from_its_own_peak(setup, monkeypatch, meant_for, scale, factor):
    """Where OPTIM.LR is meant for wider features, the rates of the text relations are larger by the root; where it is
    meant for a larger logit scale, they are larger by the quotient."""
    seen, step = [], AdamW.step
    monkeypatch.setattr(
        AdamW, "step", lambda self: (seen.append([group["lr"] for group in self.param_groups]), step(self))[1]
    )
    rates = ("OPTIM.LR", 0.1, f"{NODE}.WEIGHT_LR_MULT", 0.5, f"{NODE}.VISUAL_LR", 0.03)
    setup.fit(*rates, f"{NODE}.LR_WIDTH", meant_for, f"{NODE}.LR_TAU", scale)
    assert len(seen) == EPOCHS * 4
    peaks = [0.05 * factor, 0.1 * factor, 0.03]
    for index, rates in enumerate(seen):
        epoch = index // 4
        expected = [1e-5] * 3 if epoch == 0 else [learning_rate(epoch, EPOCHS, peak, 1, 1e-5) for peak in peaks]
        assert rates == pytest.approx(expected)


def test_the_share_of_the_classes_that_text_tells_is_worked_out_by_hand(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    axes, labels = torch.eye(3), torch.arange(3)
    # Logits (2, 0, 0) for the right class: NLL log(1 + 2 e^-2) = 0.239545, and log 3 = 1.098612
    assert text_share(axes, labels, axes, 2.0) == pytest.approx(1 - 0.239545 / 1.098612, abs=1e-6)
    assert text_share(axes, labels, axes, 100.0) == pytest.approx(1.0)
    assert text_share(axes, labels, torch.ones(3, 3), 2.0) == pytest.approx(0.0, abs=1e-6)
    # Wrong text is judged at the factor that suits it best, 0.06: logits (0, 0.12, 0) with the first class right
    nll = math.log(2 + math.exp(0.12))
    assert text_share(axes, labels, axes.roll(1, 0), 2.0) == pytest.approx(1 - nll / math.log(3), abs=1e-6)


def bank_of(strong: bool, shots: int) -> FeatureBank:
    """Five classes whose text is the mean of their images, or that of the next class."""
    bank = random_bank(5, 32, shots=shots, test=10)
    means = torch.nn.functional.normalize(bank.cache_keys().view(5, shots, -1).mean(dim=1), dim=-1)
    return replace(bank, text_positive=means if strong else means.roll(1, 0))


@pytest.mark.parametrize(
    ("strong", "shots", "opts", "factor"),
    [(True, 1, (), 1), (False, 1, (), 3), (False, 2, (), 1), (False, 2, (KEY, [[1, 3.0], [2, 1.5]]), 1.5)],
)
def test_at_one_shot_weak_text_is_left_at_a_larger_rate_and_the_log_says_so(caplog, strong, shots, opts, factor):
    def peak_rate(*opts: object) -> float:
        return start_training(bank_of(strong, shots), load_cfg(opts=["DATASET.NUM_SHOTS", shots, *opts])).peak_rate

    plain = peak_rate(KEY, [[1, 1.0]])
    with caplog.at_level(logging.INFO):
        assert peak_rate(*opts) == pytest.approx(factor * plain)
    assert ("text is weak" in caplog.text) == (factor > 1)


# Training and its checkpoints


def test_training_changes_every_parameter_and_nothing_else_and_is_the_same_twice(setup):
    model, _ = setup.fit(name="a", products=True)
    untrained = build_model(setup.bank, load_cfg().model)
    for name, tensor in untrained.state_dict().items():
        assert not torch.equal(tensor, model.state_dict()[name]), name
    assert untrained.cache_keys.equal(model.cache_keys) and untrained.x_positive.equal(model.x_positive)
    assert same(model, setup.fit(name="b", products=True)[0])
    anew, _ = setup.fit(name="c")  # products that are kept change nothing but rounding
    for name, parameter in model.state_dict().items():
        torch.testing.assert_close(parameter, anew.state_dict()[name], rtol=0, atol=1e-5)


def test_a_loss_that_is_not_a_number_is_an_error_that_names_the_epoch_and_the_rate(setup):
    with pytest.raises(UserError, match=r"the loss is nan in epoch 1; lower OPTIM\.LR"):
        setup.fit("OPTIM.WARMUP_CONS_LR", 1e30, "OPTIM.LR", 1e30)


@pytest.mark.parametrize("epochs", [1, EPOCHS - 1])
def test_resuming_after_any_checkpoint_gives_the_uninterrupted_parameters_bit_by_bit(
    setup, stopped_at_checkpoint, caplog, epochs
):
    uninterrupted, expected = setup.fit(name="other")
    with stopped_at_checkpoint(epochs), pytest.raises(KeyboardInterrupt):
        setup.fit("TRAIN.CHECKPOINT_FREQ", 1)
    before = setup.state()
    elsewhere, _ = setup.fit("RESUME", str(setup.folder / "out"), name="elsewhere")
    assert setup.state()["checksum"] == before["checksum"] and not (setup.folder / "elsewhere").exists()
    with caplog.at_level(logging.INFO):
        resumed, result = setup.fit("TRAIN.CHECKPOINT_FREQ", 1)
    assert same(resumed, uninterrupted) and same(elsewhere, uninterrupted)
    assert (result.epochs, result.steps) == (expected.epochs, expected.steps)
    assert f"resuming from {setup.folder / 'out' / 'checkpoint.pt'} after epoch {epochs} of {EPOCHS}" in caplog.text


def test_a_resumed_training_has_taken_the_time_of_all_sittings(setup, monkeypatch):
    monkeypatch.setattr(Checkpoints, "load", lambda *_: (3, 1000.0))
    _, result = setup.fit()
    assert (result.epochs, result.steps) == (EPOCHS, 4 * EPOCHS) and 1000 < result.seconds < 2000


def test_checkpoints_and_models_on_the_way_are_as_frequent_as_asked(setup, monkeypatch):
    kept: dict[int, dict] = {}

    def keep(model: HeGraphModel, epoch: int) -> None:
        kept[epoch] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    setup.fit(keep=keep)
    assert not (setup.folder / "out").exists() and kept == {}  # a short run leaves none
    setup.fit("TRAIN.CHECKPOINT_FREQ", 2, keep=keep)
    assert sorted(kept) == [2, 4] and setup.state()["epoch"] == 4
    assert all(torch.equal(kept[4][name], tensor) for name, tensor in setup.state()["model"].items())
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    (setup.folder / "out" / "checkpoint.pt").unlink()
    setup.fit()  # long epochs are saved without being asked
    assert setup.state()["epoch"] == EPOCHS - 1

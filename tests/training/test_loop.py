"""The training loop: schedule, length, resuming, and what stops it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.method.model import HeGraphModel, build_model
from trainers.hegraph.training import loop as module
from trainers.hegraph.training.batches import BankBatches, products_with_cache
from trainers.hegraph.training.checkpoints import Checkpoints
from trainers.hegraph.training.loop import AdapterTraining, TrainingSummary, train_to_end
from trainers.hegraph.training.schedule import learning_rate
from trainers.hegraph.utils.errors import UserError

EPOCHS = 5
WIDTH = 16  # of the features of tiny_bank
NODE = "TRAINER.HEGRAPHADAPTER"


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


@pytest.mark.parametrize(("meant_for", "scale", "factor"), [(0, 0, 1), (4 * WIDTH, 0, 2), (0, 300, 3)])
def test_every_parameter_group_follows_the_schedule_from_its_own_peak(setup, monkeypatch, meant_for, scale, factor):
    """Where OPTIM.LR is meant for wider features, the rates of the text relations are larger by the root; where it is
    meant for a larger logit scale, they are larger by the quotient."""
    seen = []
    step = AdamW.step
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


def test_the_schedule_is_as_long_as_the_epochs_that_the_least_steps_raise(setup):
    raised, result = setup.fit(f"{NODE}.MIN_STEPS", 39, name="a")
    assert (result.epochs, result.steps) == (10, 40) and result.seconds > 0
    assert same(raised, setup.fit("OPTIM.MAX_EPOCH", 10, name="b")[0])


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
    assert same(anew, setup.fit(name="d")[0])


def test_a_loss_that_is_not_a_number_is_an_error_that_names_the_epoch_and_the_rate(setup):
    with pytest.raises(UserError, match=r"the loss is nan in epoch 1; lower OPTIM\.LR"):
        setup.fit("OPTIM.WARMUP_CONS_LR", 1e30, "OPTIM.LR", 1e30)


# Checkpoints


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
    assert result.seconds > before["seconds"]  # those of all sittings
    assert f"resuming from {setup.folder / 'out' / 'checkpoint.pt'} after epoch {epochs} of {EPOCHS}" in caplog.text


def test_a_resumed_training_has_taken_the_time_of_all_sittings(setup, monkeypatch):
    monkeypatch.setattr(Checkpoints, "load", lambda *_: (3, 1000.0))
    _, result = setup.fit()
    assert (result.epochs, result.steps) == (EPOCHS, 4 * EPOCHS) and 1000 < result.seconds < 2000


def test_checkpoints_and_models_on_the_way_are_as_frequent_as_asked(setup):
    kept: dict[int, dict] = {}

    def keep(model: HeGraphModel, epoch: int) -> None:
        kept[epoch] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    setup.fit(keep=keep)
    assert not (setup.folder / "out").exists() and kept == {}  # a short run leaves none
    model, _ = setup.fit("TRAIN.CHECKPOINT_FREQ", 2, keep=keep)
    assert sorted(kept) == [2, 4] and setup.state()["epoch"] == 4
    assert all(torch.equal(kept[4][name], tensor) for name, tensor in setup.state()["model"].items())
    assert not all(torch.equal(kept[4][name], tensor) for name, tensor in model.state_dict().items())


def test_long_epochs_are_saved_without_being_asked(setup, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    setup.fit()
    assert setup.state()["epoch"] == EPOCHS - 1

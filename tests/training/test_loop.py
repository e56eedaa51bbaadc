"""The training loop: schedule, length, resuming, and what stops it."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

from benchmarks.tasks import random_bank, start_training
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.method.model import HeGraphModel, build_model
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

    def fit(
        self, *opts, run_id: str = "a run", name: str = "out", products: bool = False, keep=None
    ) -> tuple[HeGraphModel, TrainingSummary]:
        pairs = ["OPTIM.MAX_EPOCH", EPOCHS, f"{NODE}.MIN_STEPS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 8]
        cfg = load_cfg(opts=[*pairs, *opts])
        batch_size = cfg.data.batch_size
        features, keys = self.bank.train_features, self.bank.cache_keys()
        kept = products_with_cache(features, keys) if products else None
        data = BankBatches(features, self.bank.train_labels, batch_size, seed=1, products=kept)
        torch.manual_seed(0)
        model = build_model(self.bank, cfg.model)
        resume = Path(cfg.run.resume or self.folder / name)
        checkpoints = Checkpoints(self.folder / name, resume, run_id, self.bank.classnames)
        training = AdapterTraining(model, data, cfg.training, checkpoints, keep)
        training.resume()
        return model, train_to_end(training)


@pytest.fixture
def setup(tiny_bank, tmp_path) -> Setup:
    return Setup(load_bank(Path(tiny_bank)), tmp_path)


def same(one: HeGraphModel, other: HeGraphModel) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The schedule of `schedule.py`, for every parameter group


@pytest.mark.parametrize(
    ("meant_for", "scale", "factor"), [(0, 0, 1), (WIDTH, 0, 1), (4 * WIDTH, 0, 2), (0, 100, 1), (0, 300, 3)]
)
def test_every_parameter_group_follows_the_schedule_from_its_own_peak(setup, monkeypatch, meant_for, scale, factor):
    """Where OPTIM.LR is meant for wider features, the rates of the text relations are larger by the root; where it is
    meant for a larger logit scale, they are larger by the quotient."""
    seen = []
    step = AdamW.step
    monkeypatch.setattr(
        AdamW, "step", lambda self: (seen.append([group["lr"] for group in self.param_groups]), step(self))[1]
    )
    rates = ("OPTIM.LR", 0.1, f"{NODE}.WEIGHT_LR_MULT", 0.5, f"{NODE}.VISUAL_LR", 0.03)
    setup.fit(*rates, f"{NODE}.LR_WIDTH", meant_for, f"{NODE}.LR_TAU", scale, f"{NODE}.TEXT_W", True)
    assert len(seen) == EPOCHS * 4
    peaks = [0.1 * factor, 0.05 * factor, 0.03]
    for index, rates in enumerate(seen):
        epoch = index // 4
        expected = [1e-5] * 3 if epoch == 0 else [learning_rate(epoch, EPOCHS, peak, 1, 1e-5) for peak in peaks]
        assert sorted(rates) == pytest.approx(sorted(expected))


# Length


def test_the_schedule_is_as_long_as_the_epochs_that_the_least_steps_raise(setup):
    raised, result = setup.fit(f"{NODE}.MIN_STEPS", 39, name="a")
    assert (result.epochs, result.steps) == (10, 40) and result.seconds > 0
    asked_for, _ = setup.fit("OPTIM.MAX_EPOCH", 10, name="b")
    assert same(raised, asked_for)


# What training does


def test_training_changes_every_parameter_and_nothing_else(setup):
    torch.manual_seed(0)
    model, _ = setup.fit()
    untrained = build_model(setup.bank, load_cfg().model)
    for name, tensor in untrained.state_dict().items():
        assert not torch.equal(tensor, model.state_dict()[name]), name
    assert torch.equal(untrained.cache_keys, model.cache_keys)
    assert torch.equal(untrained.x_positive, model.x_positive)


@pytest.mark.parametrize("products", [False, True])
def test_the_same_run_twice_gives_identical_parameters(setup, products):
    assert same(setup.fit(name="a", products=products)[0], setup.fit(name="b", products=products)[0])


def test_a_run_of_many_classes_twice_gives_identical_parameters():
    # Large enough for several threads, and several chunks of the cache
    def train() -> dict:
        torch.manual_seed(0)
        training = start_training(random_bank(100, 64, shots=8))
        for batch in training.data.epoch(1):
            training.step(batch)
        return training.model.state_dict()

    first, second = train(), train()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_products_that_are_kept_change_nothing_but_rounding(setup):
    kept, anew = (setup.fit(name=str(products), products=products)[0] for products in (True, False))
    for name, parameter in kept.state_dict().items():
        torch.testing.assert_close(parameter, anew.state_dict()[name], rtol=0, atol=1e-5)


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
    with caplog.at_level(logging.INFO):
        resumed, result = setup.fit("TRAIN.CHECKPOINT_FREQ", 1)
    assert same(resumed, uninterrupted)
    assert (result.epochs, result.steps) == (expected.epochs, expected.steps)
    assert f"resuming from {setup.folder / 'out' / 'checkpoint.pt'} after epoch {epochs} of {EPOCHS}" in caplog.text


def test_a_resumed_run_reports_the_time_of_all_sittings(setup, stopped_at_checkpoint):
    with stopped_at_checkpoint(2), pytest.raises(KeyboardInterrupt):
        setup.fit("TRAIN.CHECKPOINT_FREQ", 2)
    state = torch.load(setup.folder / "out" / "checkpoint.pt", weights_only=True)
    torch.save(state | {"seconds": 1000.0}, setup.folder / "out" / "checkpoint.pt")
    assert setup.fit()[1].seconds > 1000


def test_checkpoints_are_as_frequent_as_asked(setup, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda *arguments: saved.append(arguments[3]))
    setup.fit()
    assert saved == []  # a short run leaves none
    setup.fit("TRAIN.CHECKPOINT_FREQ", 2)
    assert saved == [2, 4]


def test_long_epochs_are_saved_without_being_asked(setup, monkeypatch):
    from trainers.hegraph.training import loop as module

    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    setup.fit()
    assert torch.load(setup.folder / "out" / "checkpoint.pt", weights_only=True)["epoch"] == EPOCHS - 1


def test_a_checkpoint_of_another_run_is_refused_and_kept(setup):
    setup.fit("TRAIN.CHECKPOINT_FREQ", 2)
    shutil.copy(setup.folder / "out" / "checkpoint.pt", setup.folder / "copy.pt")
    with pytest.raises(UserError, match="belongs to a run with other settings or data"):
        setup.fit(run_id="another run")
    assert (setup.folder / "out" / "checkpoint.pt").read_bytes() == (setup.folder / "copy.pt").read_bytes()


# Resuming from another folder, adapters on the way


def test_resume_goes_on_from_another_folder_and_leaves_it_as_it_was(setup, stopped_at_checkpoint):
    uninterrupted, _ = setup.fit(name="other")
    with stopped_at_checkpoint(3), pytest.raises(KeyboardInterrupt):
        setup.fit("TRAIN.CHECKPOINT_FREQ", 3, name="killed")
    before = (setup.folder / "killed" / "checkpoint.pt").read_bytes()
    assert same(setup.fit("RESUME", str(setup.folder / "killed"))[0], uninterrupted)
    assert (setup.folder / "killed" / "checkpoint.pt").read_bytes() == before
    assert not (setup.folder / "out" / "checkpoint.pt").exists()


def test_models_on_the_way_are_kept_where_asked_and_are_those_of_the_checkpoints(setup):
    kept: dict[int, dict] = {}

    def keep(model: HeGraphModel, epoch: int) -> None:
        kept[epoch] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    model, _ = setup.fit("TRAIN.CHECKPOINT_FREQ", 2, keep=keep)
    assert sorted(kept) == [2, 4]
    checkpoint = torch.load(setup.folder / "out" / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == 4
    assert all(torch.equal(kept[4][name], tensor) for name, tensor in checkpoint["model"].items())
    assert not all(torch.equal(kept[4][name], tensor) for name, tensor in model.state_dict().items())

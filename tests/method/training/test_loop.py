"""Training: steps by hand, learning rates, length, resuming, and errors.

What training resumes from and leaves: everything that does not fit is refused by name.
"""

import json
import logging
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.tasks import random_bank, start_training
from trainers.hegraph import FeatureBank, HeGraphModel, ModelOptions, UserError, load_bank, load_cfg
from trainers.hegraph.method.cache import Logits
from trainers.hegraph.method.model import build_model
from trainers.hegraph.method.training import loop
from trainers.hegraph.method.training.batches import BankBatches, Batch, products_with_cache
from trainers.hegraph.method.training.options import TrainingOptions
from trainers.hegraph.utils.reading import read_metadata

EPOCHS = 5
WIDTH = 16  # of the features of tiny_bank
NODE = "TRAINER.HEGRAPHADAPTER"
KEY = f"{NODE}.WEAK_TEXT_LR_MULT"


@dataclass
class Setup:
    """A small run: 30 images in batches of 8, five epochs of four steps."""

    bank: FeatureBank
    folder: Path

    def fit(
        self, *opts, name: str = "out", products: bool = False, on_epoch=None
    ) -> tuple[HeGraphModel, loop.TrainingSummary]:
        pairs = ["OPTIM.MAX_EPOCH", EPOCHS, f"{NODE}.MIN_STEPS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 8]
        cfg = load_cfg(opts=[*pairs, *opts])
        features = self.bank.train_features
        kept = products_with_cache(features, self.bank.cache_keys()) if products else None
        data = BankBatches(features, self.bank.train_labels, cfg.data.batch_size, seed=1, products=kept)
        torch.manual_seed(0)
        model = build_model(self.bank, cfg.model)
        resume_from = Path(cfg.run.resume or self.folder / name)
        checkpoints = loop.Checkpoints(self.folder / name, resume_from, "a run", on_epoch=on_epoch)
        training = loop.AdapterTraining.start(model, data, cfg.training, checkpoints)
        return model, loop.train_to_end(training)

    def state(self) -> dict:
        """Content of the checkpoint."""
        return torch.load(self.folder / "out" / "checkpoint.pt", weights_only=True)


@pytest.fixture
def setup(tiny_bank, tmp_path) -> Setup:
    return Setup(load_bank(Path(tiny_bank)), tmp_path)


def same(one: HeGraphModel, other: HeGraphModel) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Learning rates


def test_learning_rate_is_dassls(shared):
    golden = json.loads((Path(shared) / "golden" / "golden_lr.json").read_text())
    assert {"1", "2", "3", "10", "50"} <= set(golden)
    for epochs, rates in golden.items():
        ours = [loop.learning_rate(epoch, int(epochs), 0.002, 1, 1e-5) for epoch in range(int(epochs))]
        assert ours == pytest.approx(rates, rel=1e-9)


@pytest.mark.parametrize(
    ("epoch", "warmup_epochs", "rate"),
    # cos(pi * 5 / 10) = 0 and cos(pi * 9 / 10) = -0.9510565
    [(0, 1, 1e-5), (1, 1, 0.5), (6, 1, 0.25), (10, 1, 0.25 * (1 - 0.9510565)), (0, 0, 0.5), (0, -1, 0.5), (1, 2, 1e-5)],
)
def test_rate_is_a_cosine_after_the_warm_up(epoch, warmup_epochs, rate):
    assert loop.learning_rate(epoch, 10, 0.5, warmup_epochs, 1e-5) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(("meant_for", "scale", "factor"), [(0, 0, 1), (4 * WIDTH, 0, 2), (0, 300, 3)])
def test_every_parameter_group_has_its_peak(setup, monkeypatch, meant_for, scale, factor):
    """An LR_WIDTH above the width raises the rates of the text relations by the root, LR_TAU by the quotient."""
    seen, step = [], AdamW.step

    def record_and_step(optimizer: AdamW) -> None:
        seen.append([group["lr"] for group in optimizer.param_groups])
        step(optimizer)

    monkeypatch.setattr(AdamW, "step", record_and_step)
    rates = ("OPTIM.LR", 0.1, f"{NODE}.WEIGHT_LR_MULT", 0.5, f"{NODE}.VISUAL_LR", 0.03)
    setup.fit(*rates, f"{NODE}.LR_WIDTH", meant_for, f"{NODE}.LR_TAU", scale)
    assert len(seen) == EPOCHS * 4
    peaks = [0.05 * factor, 0.1 * factor, 0.03]
    for index, rates in enumerate(seen):
        epoch = index // 4
        expected = [1e-5] * 3 if epoch == 0 else [loop.learning_rate(epoch, EPOCHS, peak, 1, 1e-5) for peak in peaks]
        assert rates == pytest.approx(expected)


def test_text_score_by_hand(monkeypatch):
    monkeypatch.setattr(loop, "QUERY_BATCH", 2)
    axes, labels = torch.eye(3), torch.arange(3)
    # Logits (2, 0, 0) for the right class: NLL log(1 + 2 e^-2) = 0.239545, and log 3 = 1.098612
    assert loop.text_score(axes, labels, axes, 2.0) == pytest.approx(1 - 0.239545 / 1.098612, abs=1e-6)
    assert loop.text_score(axes, labels, axes, 100.0) == pytest.approx(1.0)
    assert loop.text_score(axes, labels, torch.ones(3, 3), 2.0) == pytest.approx(0.0, abs=1e-6)
    # Wrong text is judged at the factor that suits it best, 0.06: logits (0, 0.12, 0) with the first class right
    nll = math.log(2 + math.exp(0.12))
    assert loop.text_score(axes, labels, axes.roll(1, 0), 2.0) == pytest.approx(1 - nll / math.log(3), abs=1e-6)


def bank_of(strong: bool, shots: int) -> FeatureBank:
    """Five classes whose text is the mean of their images, or that of the next class."""
    bank = random_bank(5, 32, shots=shots, test=10)
    means = torch.nn.functional.normalize(bank.cache_keys().view(5, shots, -1).mean(dim=1), dim=-1)
    return replace(bank, text_positive=means if strong else means.roll(1, 0))


@pytest.mark.parametrize(("strong", "shots", "opts", "factor"), [
    (True, 1, (), 1), (False, 1, (), 3), (False, 2, (), 1), (False, 2, (KEY, [[1, 3.0], [2, 1.5]]), 1.5),
])  # fmt: skip
def test_weak_text_raises_the_rate_at_one_shot(caplog, strong, shots, opts, factor):
    def peak_rate(*opts: object) -> float:
        return start_training(bank_of(strong, shots), load_cfg(opts=["DATASET.NUM_SHOTS", shots, *opts])).peak_rate

    plain = peak_rate(KEY, [[1, 1.0]])
    with caplog.at_level(logging.INFO):
        assert peak_rate(*opts) == pytest.approx(factor * plain)
    assert ("weak text" in caplog.text) == (factor > 1)


# Training and its checkpoints


def test_training_changes_every_parameter_and_is_repeatable(setup):
    model, _ = setup.fit(name="a", products=True)
    untrained = build_model(setup.bank, load_cfg().model)
    for name, tensor in untrained.state_dict().items():
        assert not torch.equal(tensor, model.state_dict()[name]), name
    assert untrained.cache_keys.equal(model.cache_keys) and untrained.x_positive.equal(model.x_positive)
    assert same(model, setup.fit(name="b", products=True)[0])
    again, _ = setup.fit(name="c")  # cached products only change the rounding
    for name, parameter in model.state_dict().items():
        torch.testing.assert_close(parameter, again.state_dict()[name], rtol=0, atol=1e-5)


def test_nan_loss_is_refused(setup):
    with pytest.raises(UserError, match=r"the loss is nan in epoch 1; lower OPTIM\.LR"):
        setup.fit("OPTIM.WARMUP_CONS_LR", 1e30, "OPTIM.LR", 1e30)


@pytest.mark.parametrize("epochs", [1, EPOCHS - 1])
def test_resumed_training_equals_the_uninterrupted_one(setup, stopped_at_checkpoint, caplog, epochs):
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


def test_resumed_training_sums_its_seconds(setup, monkeypatch):
    monkeypatch.setattr(loop.Checkpoints, "load", lambda *_: (3, 1000.0))
    _, result = setup.fit()
    assert (result.epochs, result.steps) == (EPOCHS, 4 * EPOCHS) and 1000 < result.seconds < 2000


def test_checkpoints_are_as_frequent_as_requested(setup, monkeypatch):
    kept: dict[int, dict] = {}

    def keep(model: HeGraphModel, epoch: int) -> None:
        kept[epoch] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    setup.fit(on_epoch=keep)
    assert not (setup.folder / "out").exists() and kept == {}  # a short run has none
    setup.fit("TRAIN.CHECKPOINT_FREQ", 2, on_epoch=keep)
    assert sorted(kept) == [2, 4] and setup.state()["epoch"] == 4
    assert all(torch.equal(kept[4][name], tensor) for name, tensor in setup.state()["model"].items())
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    (setup.folder / "out" / "checkpoint.pt").unlink()
    setup.fit()  # long epochs are saved without being asked
    assert setup.state()["epoch"] == EPOCHS - 1


# A step and the length, with numbers worked out by hand

IMAGES = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
LABELS = torch.tensor([0, 0, 1])
TEXT = torch.tensor([[0.8, 0.6], [0.6, 0.8]])


def options_of(**changed: object) -> TrainingOptions:
    return TrainingOptions(**{"learning_rate": 0.5, "lr_width": 0, "lr_tau": 0, **changed})


class FixedModel(nn.Module):
    """Model with constant logits that records its inputs and its mode.

    Its parameters count in the loss, so that a step can move them, but have no gradient.
    """

    logit_scale, x_positive = 4.0, TEXT

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.ParameterDict({name: nn.Parameter(torch.full((2,), 4.0)) for name in ("w", "b", "v")})
        self.asked: list[tuple] = []
        self.modes: list[bool] = []

    def parameter_groups(self, lr: float, weight_lr_mult: float, visual_lr: float) -> list[dict]:
        rates = {"w": lr * weight_lr_mult, "b": lr, "v": visual_lr}
        return [{"params": [self.kept[name]], "lr": rate} for name, rate in rates.items()]

    def with_noise(self, *arguments: object) -> str:
        return "noise"

    def forward(self, features: Tensor, *others: object) -> Logits:
        self.asked.append((features, *others))
        self.modes.append(self.training)
        nothing, rows = 0 * sum(parameter.sum() for parameter in self.parameters()), slice(len(features))
        text, visual = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.5], [0.0, 0.5]])
        return Logits(text[rows] + nothing, visual[rows] + nothing)


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_a_step_by_hand(leave_one_out):
    model, positions, products = FixedModel(), torch.tensor([2, 0]), torch.ones(2, 3)
    rates = {"weight_lr_mult": 0.1, "visual_lr": 0.2, "weight_decay": 0.4}
    options = options_of(visual_weight=3.0, visual_scale=4.0, leave_one_out=leave_one_out, **rates)
    training = loop.AdapterTraining.start(model, BankBatches(IMAGES[None], LABELS, batch_size=3, seed=1), options)
    for step in (1, 2):
        loss = training.step(Batch(IMAGES[:2], torch.tensor([0, 1]), positions, products))
        # Of the text: (log(1 + e^-1) + log 2) / 2 = 0.503204. The visual logits (0, 0.5) and (0, 0.5), times 4, are (0,
        # 2): (log(1 + e^2) + log(1 + e^-2)) / 2 = 1.126928
        assert loss.item() == pytest.approx(0.503204 + 3 * 1.126928, abs=1e-5) and not loss.requires_grad
        # The positions of images in the cache serve only to exclude them
        features, own, given, noise = model.asked[-1]
        assert torch.equal(features, IMAGES[:2]) and given is products and noise == "noise"
        assert own is (positions if leave_one_out else None)
        # Without a gradient AdamW only shrinks each parameter by its rate times the decay: matrices at the rate 0.5 *
        # 0.1, biases at 0.5 and the visual part at 0.2, so that a step keeps 0.98, 0.8 and 0.92
        found = {name: parameter[0].item() for name, parameter in model.kept.items()}
        assert found == pytest.approx({"b": 4 * 0.8**step, "v": 4 * 0.92**step, "w": 4 * 0.98**step}, rel=1e-5)


@pytest.mark.parametrize(("least", "epochs"), [(0, 4), (12, 4), (13, 5), (16, 6)])
def test_epochs_reach_the_least_steps(least, epochs):
    model, data = FixedModel().eval(), BankBatches(IMAGES[None], LABELS, batch_size=1, seed=1)  # three steps per epoch
    summary = loop.train_to_end(loop.AdapterTraining.start(model, data, options_of(epochs=4, min_steps=least)))
    assert (summary.epochs, summary.steps, model.modes) == (epochs, 3 * epochs, [True] * 3 * epochs)


# Checkpoints


def adapter(width: int = 8, steps: int = 1) -> tuple[HeGraphModel, AdamW]:
    """An adapter of three classes and its optimizer after so many steps."""
    model = build_model(random_bank(3, width, shots=1), ModelOptions())
    optimizer = AdamW(model.parameter_groups(0.1, 0.5, 0.02), fused=True)
    for _ in range(steps):
        model(model.cache_keys).text.square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture
def kept(tmp_path) -> loop.Checkpoints:
    """The checkpoints of a run that has saved one after seven epochs."""
    kept = loop.Checkpoints(tmp_path / "run", tmp_path / "run", "this run")
    kept.save(*adapter(), epoch=7, seconds=1.5)
    return kept


def test_checkpoint_has_epoch_and_time(kept):
    assert kept.load(*adapter(steps=0)) == (7, 1.5)
    kept.remove()
    assert kept.load(*adapter()) is None and kept.read() is None


def changed(change, checksum: bool = True):
    """Function that changes the content of a file and its checksum."""

    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state | ({"checksum": loop._checksum(state)} if checksum else {}), path)

    return damage


@pytest.mark.parametrize(("damage", "message"), [
    (lambda path: os.truncate(path, 2000), "is damaged"), (lambda path: torch.save({}, path), "is damaged"),
    (changed(lambda state: state["moments"][0]["exp_avg"].add_(1e-3), checksum=False), "is damaged .*has changed"),
    (changed(lambda state: state.update(epoch="seven")), "is damaged .*epoch: "),
    (changed(lambda state: state.update(seconds="few")), "is damaged .*seconds: "),
    (changed(lambda state: state.pop("moments")), "is damaged .*moments: "),
    (changed(lambda state: state.update(model=[])), "is damaged .*model: "),
    (changed(lambda state: state.update(model=adapter(width=4)[0].state_dict())), "do not fit"),
    (changed(lambda state: state["moments"][0].update(exp_avg=torch.zeros(2))), "do not fit"),
    (changed(lambda state: state["moments"][0].update(exp_avg=torch.zeros(8, 8).double())), "do not fit"),
    (changed(lambda state: state["moments"].update({99: state["moments"][0]})), "do not fit"),
])  # fmt: skip
def test_damaged_checkpoint_changes_nothing(kept, damage, message):
    damage(kept.path_to_resume)
    content, (model, optimizer) = kept.path_to_resume.read_bytes(), adapter(steps=0)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match=rf"checkpoint\.pt {message}.*; delete it to train from the start"):
        kept.load(model, optimizer)
    assert kept.path_to_resume.read_bytes() == content
    assert all(map(torch.equal, before, model.parameters()))


def test_checkpoint_of_another_run_is_refused(kept, tmp_path):
    content = kept.path_to_resume.read_bytes()
    for folder, remedy in (
        (tmp_path, "leave out --resume"),
        (kept.folder, f".* or delete {re.escape(str(kept.folder))}"),
    ):
        with pytest.raises(UserError, match=f"belongs to a run with other settings or data; {remedy}$"):
            loop.Checkpoints(folder, kept.folder, "another run").read()
    assert kept.path_to_resume.read_bytes() == content


def test_code_in_a_checkpoint_is_not_executed(kept, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"run_id": "this run", "model": Evil()}, kept.path_to_resume)
    with pytest.raises(UserError, match="is damaged"):
        kept.read()
    assert not (tmp_path / "executed").exists()


def test_adapter_holds_trained_parameters_only(tmp_path):
    loop.Checkpoints(tmp_path, tmp_path, "a run", ["cat", "dog", "bée"], "a hash").save_adapter(adapter()[0])
    with safe_open(tmp_path / "adapter.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name, _ in adapter()[0].named_parameters()}
        about = json.loads(read_metadata(file)["adapter"])
    assert about == {"variant": "full", "split_hash": "a hash", "classnames": ["cat", "dog", "bée"]}

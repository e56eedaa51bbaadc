"""How a run fits a method: what the method is given and never given, and what is chosen on val, and how."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from trainers.hegraph.__main__ import main
from trainers.hegraph.baselines.base import FittedMethod, Method
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.experiments import fitting
from trainers.hegraph.experiments.fitting import TrainedAdapter, fit, fit_method, train_adapter, tune_on_val
from trainers.hegraph.experiments.tasks import BankTask
from trainers.hegraph.features import bank as bank_module
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.training.loop import TrainingSummary
from trainers.hegraph.utils.errors import UserError

NODE = "TRAINER.HEGRAPHADAPTER"
ALPHA, BETA = f"{NODE}.ALPHA_C", f"{NODE}.BETA_C"
SHORT = ["OPTIM.MAX_EPOCH", 2, f"{NODE}.MIN_STEPS", 0, "DATASET.NUM_SHOTS", 2]
TASK = SimpleNamespace(backbone="a backbone", batches=lambda bank: "batches")

# Another method


class Spy(Method):
    """Remembers what it was given, and draws one number, so that the seed shows."""

    defaults: ClassVar[dict] = {"SHARE": 0.5}
    name = "Spy"

    def __init__(self, clock: list[float] | None = None) -> None:
        self.given: tuple = ()
        self.clock = clock

    def fit(self, bank, options, seed, backbone=None) -> FittedMethod:
        self.given, self.drawn = (bank, options, seed, backbone), torch.rand(1).item()
        if self.clock:
            self.clock[0] += 7
        return FittedMethod(lambda features: features, num_parameters=12, epochs=3, steps=9)


@pytest.fixture
def fit_spy(monkeypatch, tiny_bank):
    """Function of a method and a seed: fits it to the tiny bank."""

    def command(method: Spy, seed: int = 7, task: object = TASK) -> FittedMethod:
        monkeypatch.setattr(fitting, "load_method", lambda name: method)
        keys = ["TRAINER.NAME", "Spy", "TRAINER.SPY.SHARE", 0.25]
        return fit_method(task, load_bank(tiny_bank), load_cfg(method=("Spy", {"SHARE": 0.5}), opts=keys), seed)

    return command


def test_a_method_is_given_everything_but_test(fit_spy, tiny_bank):
    method, bank = Spy(), load_bank(tiny_bank)
    fitted = fit_spy(method)
    seen, options, seed, backbone = method.given
    assert seen.test_features is seen.test_labels is None
    for name in ("train_features", "train_labels", "val_features", "val_labels", "text_positive", "text_negative"):
        assert torch.equal(getattr(seen, name), getattr(bank, name))
    assert (vars(options), seed, backbone) == ({"SHARE": 0.25}, 7, None)  # it does not need a backbone
    assert (fitted.num_parameters, fitted.epochs, fitted.steps) == (12, 3, 9)


def test_only_a_method_that_needs_the_backbone_gets_it_and_a_bank_has_none(fit_spy):
    method = Spy()
    method.needs_backbone = True
    fit_spy(method)
    assert method.given[3] == "a backbone"
    with pytest.raises(UserError, match="Spy learns prompts .* give images instead of --features"):
        fit_spy(method, task=SimpleNamespace(backbone=None))


def test_the_time_of_training_is_that_of_fit_and_of_what_a_gpu_still_had_to_do(fit_spy, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(fitting, "wait_for", lambda device: clock.__setitem__(0, clock[0] + 3))
    assert fit_spy(Spy(clock)).seconds == 10


def test_the_generators_are_seeded_before_a_method_is_fitted(fit_spy):
    drawn = []
    for seed in (7, 7, 8):
        torch.rand(1)
        method = Spy()
        fit_spy(method, seed)
        drawn.append(method.drawn)
    assert drawn[0] == drawn[1] != drawn[2]


# Choosing on val


def bank_of(num_val: int = 4) -> FeatureBank:
    """Four val images of classes 0, 1, 1, 1; three test and two training images, all of class 0."""
    axes = torch.eye(2)
    return FeatureBank(
        train_features=axes[None],
        train_labels=torch.tensor([0, 0]),
        text_positive=axes,
        text_negative=axes,
        classnames=["cat", "dog"],
        dataset="Tiny",
        backbone="none",
        logit_scale=1.0,
        val_features=axes[[0, 1, 1, 1]][:num_val],
        val_labels=torch.tensor([0, 1, 1, 1])[:num_val],
        test_features=axes[[0, 0, 0]],
        test_labels=torch.tensor([0, 0, 0]),
    )


def always(label: int):
    """A classifier that says the same class for every image."""
    return lambda features: torch.eye(2)[[label]].expand(len(features), 2)


@dataclass
class Asked:
    """What `train_adapter` was asked for, in the order of the asking."""

    task: object
    bank: FeatureBank
    values: tuple[float, float]
    seed: int
    data: object


@pytest.fixture
def trains(monkeypatch):
    """Function of classifiers by the values of BETA_C and LR: trains none, and returns what will be asked."""

    def prepare(classifiers: dict) -> list[Asked]:
        asked: list[Asked] = []

        def train(task, bank, cfg, seed, data):
            values = (cfg.model.beta_c, cfg.training.learning_rate)
            asked.append(Asked(task, bank, values, seed, data))
            folded = SimpleNamespace(logits=classifiers[values])
            return TrainedAdapter(SimpleNamespace(fold=lambda: folded, values=values), TrainingSummary(3, 6, 1.5))

        monkeypatch.setattr(fitting, "train_adapter", train)
        return asked

    return prepare


def configured(*rows: list):
    return load_cfg(opts=[f"{NODE}.SELECT", str(list(rows)), BETA, 9.0, "OPTIM.LR", 9.0])


def test_every_candidate_is_trained_once_the_last_row_changing_fastest_and_the_best_on_val_is_returned(trains, caplog):
    # On val, always saying class 0 is right for 1 of 4 images, class 1 for 3 of 4; on test and train 0 is always right
    asked = trains({(2.0, 0.5): always(0), (2.0, 1.5): always(1), (1.0, 0.5): always(0), (1.0, 1.5): always(0)})
    bank, cfg = bank_of(), configured([BETA, [2.0, 1.0]], ["OPTIM.LR", [0.5, 1.5]])
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        found = tune_on_val(TASK, bank, cfg, seed=7)
    assert [one.values for one in asked] == [(2.0, 0.5), (2.0, 1.5), (1.0, 0.5), (1.0, 1.5)]
    assert all(one.task is TASK and one.bank is bank and one.seed == 7 and one.data == "batches" for one in asked)
    assert found.model.values == (2.0, 1.5)
    assert found.selected == {
        "keys": [BETA, "OPTIM.LR"],
        "value": [2.0, 1.5],
        "candidates": [[[2.0, 0.5], 25.0], [[2.0, 1.5], 75.0], [[1.0, 0.5], 25.0], [[1.0, 1.5], 25.0]],
        "num_val": 4,
    }
    assert found.training == TrainingSummary(3, 6, 4 * 1.5)  # the seconds are those of all candidates
    assert caplog.messages[1] == f"{BETA} 2.0, OPTIM.LR 1.5: 75.00 on val"
    assert cfg.model.beta_c == 9.0


@pytest.mark.parametrize(
    ("classifiers", "chosen"),
    [((0, 1, 1, 1), 2.0), ((1, 0, 0, 1), 1.0), ((0, 0, 1, 0), 3.0)],
)
def test_of_equals_the_first_wins_and_a_worse_one_after_the_best_does_not(trains, classifiers, chosen):
    trains({(value, 9.0): always(label) for value, label in zip((1.0, 2.0, 3.0, 0.5), classifiers)})
    found = tune_on_val(TASK, bank_of(num_val=3), configured([BETA, [1.0, 2.0, 3.0, 0.5]]), seed=1)
    assert found.selected["value"] == [chosen]
    assert found.model.values == (chosen, 9.0)
    assert {accuracy for _, accuracy in found.selected["candidates"]} == {33.3333, 66.6667}
    assert found.selected["num_val"] == 3


def test_without_val_images_or_candidates_nothing_is_trained(trains):
    asked = trains({})
    for bank in (bank_of(num_val=0), replace(bank_of(), val_features=None, val_labels=None)):
        with pytest.raises(UserError, match="Tiny has no val images besides test"):
            tune_on_val(TASK, bank, configured([BETA, [1.0]]), seed=1)
    with pytest.raises(UserError, match=r"--select val needs TRAINER\.HEGRAPHADAPTER\.SELECT"):
        tune_on_val(TASK, bank_of(), load_cfg(opts=[f"{NODE}.SELECT", "[]"]), seed=1)
    assert asked == []


# What candidates share


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """How often what is expensive is done."""
    counted: Counter = Counter()

    def count(owner, name: str) -> None:
        real = getattr(owner, name)

        def counting(*args, **kwargs):
            counted[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(bank_module, "mean_over_views")
    count(fitting, "train_to_end")
    count(BankTask, "batches")
    return counted


@pytest.mark.parametrize(
    ("rows", "trainings"),
    [
        ([[ALPHA, [2.0, 4.0, 8.0]], [f"{NODE}.CLOSED_FORM.OMEGA", [0.1, 0.3]]], 1),  # these weigh predictions alone
        ([[ALPHA, [2.0, 4.0]], ["OPTIM.LR", [0.001, 0.002]], [BETA, [0.5, 1.0]]], 4),
        ([[f"{NODE}.CLOSED_FORM.RHO", [0.1, 0.3]], [f"{NODE}.CLOSED_FORM.KAPPA", [2.0, 4.0]]], 2),  # KAPPA is in NOISE
    ],
)
def test_candidates_are_trained_once_for_all_that_training_would_see(tiny_bank, calls, rows, trainings):
    cfg = load_cfg(opts=[*SHORT, f"{NODE}.SELECT", str(rows)])
    task = BankTask(tiny_bank, cfg, 1)
    found = tune_on_val(task, task.bank(), cfg, 1).selected
    assert len(found["candidates"]) == len(list(itertools.product(*(values for _, values in rows))))
    assert calls == {"mean_over_views": 1, "train_to_end": trainings, "batches": 1}


@pytest.mark.parametrize("text_weights", [False, True])
def test_every_candidate_is_what_it_is_when_it_is_trained_alone(tiny_bank, text_weights, monkeypatch):
    candidates, real = [], fitting.val_accuracy
    model = HeldModels(candidates)
    monkeypatch.setattr(fitting, "new_model", model(fitting.new_model))
    monkeypatch.setattr(fitting, "val_accuracy", real)
    rows = [[ALPHA, [2.0, 8.0]], [f"{NODE}.CLOSED_FORM.OMEGA", [0.0, 0.3]], [f"{NODE}.SHUFFLE", ["none", "negative"]]]
    cfg = load_cfg(opts=[*SHORT, f"{NODE}.TEXT_W", text_weights, f"{NODE}.SELECT", str(rows)])
    task = BankTask(tiny_bank, cfg, 1)
    bank = task.bank()
    tune_on_val(task, bank, cfg, 1)
    monkeypatch.undo()
    shared = list(candidates)
    assert len(shared) == 8
    for changed, one in shared:
        other = train_adapter(task, bank, changed, 1).model
        assert one.options == other.options
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
        assert torch.equal(one.fold().logits(bank.val_features), other.fold().logits(bank.val_features))


class HeldModels:
    """Keeps every model that is built, with its configuration."""

    def __init__(self, kept: list) -> None:
        self.kept = kept

    def __call__(self, real):
        def build(bank, cfg, seed):
            model = real(bank, cfg, seed)
            self.kept.append((cfg, model))
            return model

        return build


# Which way a run goes


@pytest.mark.parametrize(
    ("trainer", "select", "called"),
    [("HeGraphAdapter", "val", "tune_on_val"), ("HeGraphAdapter", "last_step", "train_adapter"),
     ("TipAdapter", "last_step", "fit_method")],
)  # fmt: skip
def test_hegraphadapter_is_tuned_only_where_it_is_to_be_chosen_on_val(monkeypatch, trainer, select, called):
    asked = []
    for name in ("tune_on_val", "train_adapter", "fit_method"):
        monkeypatch.setattr(fitting, name, lambda *words, name=name: asked.append((name, words)) or SPY)
    monkeypatch.setattr(fitting, "fitted_adapter", lambda trained: ("fitted", trained))
    method = None if trainer == "HeGraphAdapter" else (trainer, {})
    cfg = load_cfg(method=method, opts=["TRAINER.NAME", trainer, f"{NODE}.SELECT_ON", select])
    saved = SimpleNamespace(save_adapter=lambda model: asked.append(("saved", model)))
    found = fit(TASK, "bank", cfg, 3, saved, "keep")
    assert asked[0][0] == called
    assert asked[0][1][:4] == (TASK, "bank", cfg, 3)
    assert asked[0][1][4:] == ((saved, "keep") if called == "train_adapter" else ())
    assert asked[1:] == ([("saved", SPY.model)] if called == "tune_on_val" else [])
    assert found == (SPY if called == "fit_method" else ("fitted", SPY))


SPY = SimpleNamespace(model="a model")


# Through the command line


@pytest.fixture
def command(tiny_bank, tmp_path):
    def run(out: str, *more: str) -> int:
        arguments = ["--features", str(tiny_bank), "--shots", "4", "--output-dir", str(tmp_path / out), *more]
        return main([*arguments, "OPTIM.MAX_EPOCH", "2", f"{NODE}.MIN_STEPS", "0"])

    return run


def record(tmp_path, out: str) -> dict:
    return json.loads((tmp_path / out / "result.json").read_text())


def test_a_chosen_value_is_kept_by_the_model_and_tested_with_it_but_no_other(command, tmp_path, capsys):
    grid = f'[["{ALPHA}", [0, 300]], ["{BETA}", ["7"]]]'
    assert command("out", "--select", "val", ALPHA, "1.0", f"{NODE}.SELECT", grid) == 0
    first = record(tmp_path, "out")
    chosen, beta = first["selected"]["value"]
    assert (first["selected_on"], first["selected"]["keys"], beta) == ("val", [ALPHA, BETA], "7")
    assert load_file(tmp_path / "out" / "adapter.safetensors")
    test = ("--eval-only", "--model-dir", str(tmp_path / "out"))
    for again, same in (("one", ()), ("two", (ALPHA, str(chosen), BETA, "7.0"))):
        assert command(again, *test, *same) == 0
        assert {key: record(tmp_path, again)[key] for key in ("accuracy", "selected_on", "selected")} == {
            key: first[key] for key in ("accuracy", "selected_on", "selected")
        }
    capsys.readouterr()
    assert command("three", *test, ALPHA, str(300.0 - chosen)) == 2
    error = capsys.readouterr().err
    assert f"{ALPHA} '{float(chosen)}'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize("selected", [{"keys": 1}, {"keys": ["NO.SUCH"], "value": [1]}, {"value": [1]}])
def test_a_model_with_another_account_of_its_choice_is_refused(finished_run, tiny_bank, tmp_path, capsys, selected):
    file = finished_run / "model" / "config.json"
    config = json.loads(file.read_text())
    config["trained_on"]["selected"] = selected
    file.write_text(json.dumps(config))
    flags = ["--features", str(tiny_bank), "--eval-only", "--model-dir", str(finished_run), "--shots", "2"]
    assert main([*flags, "--output-dir", str(tmp_path / "again")]) == 2
    assert capsys.readouterr().err.startswith("error: ")

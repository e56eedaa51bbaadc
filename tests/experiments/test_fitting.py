"""How a run fits a method: what the method is given and never given, and what is chosen on val, and how."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from trainers.hegraph.baselines.base import FittedMethod, Method
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.experiments import fitting
from trainers.hegraph.experiments.fitting import fit_method, new_model, train_adapter, tune_on_val
from trainers.hegraph.experiments.run import check_configuration
from trainers.hegraph.experiments.tasks import BankTask
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.utils.errors import UserError

NODE = "TRAINER.HEGRAPHADAPTER"
ALPHA, BETA, OMEGA = (f"{NODE}.{name}" for name in ("ALPHA_C", "BETA_C", "CLOSED_FORM.OMEGA"))
SHORT = ["OPTIM.MAX_EPOCH", 2, f"{NODE}.MIN_STEPS", 0, "DATASET.NUM_SHOTS", 2]

# Another method


class Spy(Method):
    """Remembers what it was given, and draws one number, so that the seed shows."""

    defaults: ClassVar[dict] = {"SHARE": 0.5}
    name = "Spy"

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def fit(self, bank, options, seed, backbone=None) -> FittedMethod:
        self.given, self.drawn = (bank, options, seed, backbone), torch.rand(1).item()
        self.clock[0] += 7
        return FittedMethod(lambda features: features, num_parameters=12)


@pytest.fixture
def fit_spy(monkeypatch, tiny_bank):
    """Function of attributes of the task: fits a spy to the tiny bank, whose clock stands still otherwise."""

    def command(seed: int = 7, backbone: object = "a backbone", **of_method: object) -> tuple[Spy, FittedMethod]:
        clock = [100.0]
        method = Spy(clock)
        vars(method).update(of_method)
        monkeypatch.setattr(fitting, "load_method", lambda name: method)
        monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        monkeypatch.setattr(fitting, "wait_for", lambda device: clock.__setitem__(0, clock[0] + 3))
        keys = ["TRAINER.NAME", "Spy", "TRAINER.SPY.SHARE", 0.25]
        cfg = load_cfg(method=("Spy", {"SHARE": 0.5}), opts=keys)
        return method, fit_method(SimpleNamespace(cfg=cfg, seed=seed, backbone=backbone), load_bank(tiny_bank))

    return command


def test_a_method_is_given_everything_but_test_and_timed_with_what_a_gpu_still_had_to_do(fit_spy, tiny_bank):
    (method, fitted), bank = fit_spy(), load_bank(tiny_bank)
    seen, options, seed, backbone = method.given
    assert seen.test_features is seen.test_labels is None
    for name in ("train_features", "train_labels", "val_features", "val_labels", "text_positive", "text_negative"):
        assert torch.equal(getattr(seen, name), getattr(bank, name))
    assert (vars(options), seed, backbone) == ({"SHARE": 0.25}, 7, None)  # it does not need a backbone
    assert (fitted.num_parameters, fitted.seconds) == (12, 7 + 3)
    assert method.drawn == fit_spy()[0].drawn != fit_spy(8)[0].drawn


def test_only_a_method_that_needs_the_backbone_gets_it_and_a_bank_has_none(fit_spy):
    assert fit_spy(needs_backbone=True)[0].given[3] == "a backbone"
    with pytest.raises(UserError, match="Spy learns prompts .* give images instead of --features"):
        fit_spy(needs_backbone=True, backbone=None)


# Choosing on val


def test_without_val_images_or_candidates_nothing_is_trained(tiny_bank):
    bank = load_bank(tiny_bank)
    for rows, given, said in (([[BETA, [1.0]]], replace(bank, val_features=None, val_labels=None), "Tiny has no val"),
                              ([], bank, r"--select val needs TRAINER\.HEGRAPHADAPTER\.SELECT")):  # fmt: skip
        task = BankTask(tiny_bank, load_cfg(opts=[f"{NODE}.SELECT", str(rows)]), 1)
        with pytest.raises(UserError, match=said):
            tune_on_val(task, given, None)


@pytest.mark.parametrize(
    ("rows", "trainings"),
    [
        ([[ALPHA, [2.0, 4.0, 8.0]], [OMEGA, [0.1, 0.3]]], 1),  # these weigh predictions alone
        ([[f"{NODE}.CLOSED_FORM.RHO", [0.1, 0.3]], [f"{NODE}.CLOSED_FORM.KAPPA", [2.0, 4.0]]], 2),  # KAPPA is in NOISE
    ],
)
def test_candidates_share_a_training_are_what_they_are_alone_and_the_first_of_the_best_is_kept(
    tiny_bank, monkeypatch, rows, trainings
):
    built, trained, saved = [], [], []

    def kept(name: str, calls: list) -> None:
        real = getattr(fitting, name)

        def keeping(*words):
            calls.append((words, real(*words)))
            return calls[-1][1]

        monkeypatch.setattr(fitting, name, keeping)

    kept("train_to_end", trained)
    kept("new_model", built)
    task = BankTask(tiny_bank, load_cfg(opts=[*SHORT, f"{NODE}.SELECT", str(rows)]), 1)
    bank = task.bank()
    chosen = tune_on_val(task, bank, SimpleNamespace(save_adapter=saved.append))
    monkeypatch.undo()
    assert len(trained) == trainings
    assert chosen.seconds == pytest.approx(sum(summary.seconds for _, summary in trained))
    values, on_val = list(itertools.product(*(values for _, values in rows))), []
    for (_, changed, _), one in built:
        logits = train_adapter(BankTask(tiny_bank, changed, 1), bank).logits(bank.val_features)
        on_val.append(round(100 * (logits.argmax(dim=1) == bank.val_labels).double().mean().item(), 4))
        assert one.options == changed.model
        assert torch.equal(one.fold().logits(bank.val_features), logits)
    best = on_val.index(max(on_val))
    assert on_val.count(max(on_val)) > 1  # so that the order shows
    assert chosen.selected == {
        "keys": [key for key, _ in rows],
        "value": list(values[best]),
        "candidates": [[list(given), found] for given, found in zip(values, on_val)],
        "num_val": len(bank.val_labels),
    }
    assert saved == [built[best][1]]


def test_a_fitted_adapter_is_its_model_and_tells_its_size(tiny_bank):
    cfg = load_cfg(opts=[*SHORT, f"{NODE}.VARIANT", "free"])
    task = BankTask(tiny_bank, cfg, 1)
    bank = task.bank()
    fitted, model = train_adapter(task, bank), new_model(bank, cfg, 1)
    assert (fitted.num_parameters, fitted.steps, fitted.variant, fitted.text_nodes) == (0, 0, "free", None)
    assert torch.equal(fitted.logits(bank.test_features), model.fold().logits(bank.test_features))
    assert torch.equal(fitted.class_nodes, model.closed_form.to_text.nodes)
    trained = train_adapter(BankTask(tiny_bank, load_cfg(opts=[*SHORT, OMEGA, 0.0]), 1), bank)
    assert trained.class_nodes is None  # no messages in closed form
    assert trained.num_parameters == sum(p.numel() for p in new_model(bank, load_cfg(opts=SHORT), 1).parameters())
    before, after = trained.text_nodes
    assert torch.equal(before, bank.text_positive)
    assert torch.allclose(after.norm(dim=1), torch.ones(5))


def test_a_model_begins_with_the_same_weights_whatever_was_drawn_before(tiny_bank):
    cfg, bank = load_cfg(opts=[*SHORT, f"{NODE}.WEIGHT_INIT", "xavier"]), load_bank(tiny_bank)
    one, other = new_model(bank, cfg, 1).layers.state_dict(), new_model(bank, cfg, 1).layers.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    third = new_model(bank, cfg, 2).layers.state_dict()
    assert not all(torch.equal(value, third[name]) for name, value in one.items())


# Through the command line


def test_a_chosen_value_is_kept_by_the_model_and_tested_with_it_but_no_other(run):
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
    assert f"{ALPHA} '{float(chosen)}'" in error
    assert not (out.parent / "three").exists()


def test_a_model_with_another_account_of_its_choice_is_refused(finished_run_once):
    model = load_model(finished_run_once)
    for selected in ({"keys": 1}, {"keys": ["NO.SUCH"], "value": [1]}):
        changed = model.trained_on.model_copy(update={"selected": selected})
        with pytest.raises(UserError):
            check_configuration(model.model_copy(update={"trained_on": changed}), load_cfg())

"""How a run fits a method: what the method is given and never given, and what is chosen on val, and how."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from trainers.hegraph.baselines.base import FittedMethod
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


def test_a_method_is_given_everything_but_test_and_a_backbone_if_it_needs_one_and_timed(tiny_bank, monkeypatch):
    bank, method = load_bank(tiny_bank), Mock(needs_backbone=False, needs_base=False)
    method.name = "Spy"
    method.fit.side_effect = lambda *given: FittedMethod(lambda f: f, num_parameters=int(1e6 * torch.rand(1)))
    monkeypatch.setattr(fitting, "load_method", lambda name: method)
    monkeypatch.setattr(fitting, "wait_for", waited := Mock())
    cfg = load_cfg(method=("Spy", {"SHARE": 0.5}), opts=["TRAINER.NAME", "Spy", "TRAINER.SPY.SHARE", 0.25])

    def fit(seed: int, backbone: object) -> FittedMethod:
        monkeypatch.setattr(fitting, "time", Mock(**{"monotonic.side_effect": [100.0, 110.0]}))
        return fit_method(SimpleNamespace(cfg=cfg, seed=seed, backbone=backbone), bank)

    fitted = fit(7, "a backbone")
    seen, options, *rest = method.fit.call_args[0]
    assert seen.test_features is seen.test_labels is None
    for name in ("train_features", "train_labels", "val_features", "val_labels", "text_positive", "text_negative"):
        assert getattr(seen, name) is getattr(bank, name)
    assert (vars(options), rest) == ({"SHARE": 0.25}, [7, None])  # it does not need a backbone
    assert (fitted.seconds, waited.call_count) == (10, 1)  # with what a GPU had still to do
    assert fitted.num_parameters == fit(7, None).num_parameters != fit(8, None).num_parameters  # by the seed
    method.needs_backbone = True
    fit(7, "a backbone")
    assert method.fit.call_args[0][3] == "a backbone"
    with pytest.raises(UserError, match="Spy learns prompts .* give images instead of --features"):
        fit(7, None)


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
    build, train = fitting.new_model, fitting.train_to_end
    monkeypatch.setattr(fitting, "new_model", lambda *words: built.append((words, build(*words))) or built[-1][1])
    monkeypatch.setattr(fitting, "train_to_end", lambda training: trained.append(train(training)) or trained[-1])
    task = BankTask(tiny_bank, load_cfg(opts=[*SHORT, f"{NODE}.SELECT", str(rows)]), 1)
    bank = task.bank()
    chosen = tune_on_val(task, bank, SimpleNamespace(save_adapter=saved.append))
    monkeypatch.undo()
    assert len(trained) == trainings
    assert chosen.seconds == pytest.approx(sum(summary.seconds for summary in trained))
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

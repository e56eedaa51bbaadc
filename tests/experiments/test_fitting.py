"""Fit of a method: its data, and selection on validation images."""

import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from trainers.hegraph import UserError, load_bank, load_cfg
from trainers.hegraph.baselines import hegraph, method_options
from trainers.hegraph.baselines.base import FittedMethod
from trainers.hegraph.experiments import fitting
from trainers.hegraph.experiments.bank_task import BankTask
from trainers.hegraph.experiments.run import check_configuration
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.utils.option import OptionGroup, option

NODE = "TRAINER.HEGRAPHADAPTER"
ALPHA, BETA, OMEGA = (f"{NODE}.{name}" for name in ("ALPHA_C", "BETA_C", "CLOSED_FORM.OMEGA"))
SHORT = ["OPTIM.MAX_EPOCH", 2, f"{NODE}.MIN_STEPS", 0, "DATASET.NUM_SHOTS", 2]

# Another method


@dataclass(frozen=True)
class SpyOptions:
    share: float = option(0.5, "SHARE", "share of something")


def test_fit_gets_no_test_images_and_is_timed(tiny_bank, monkeypatch):
    bank, method = load_bank(tiny_bank), Mock(needs_backbone=False, needs_base=False, needs_batches=False)
    method.name = "Spy"
    method.options_for = lambda cfg, bank: cfg.method
    method.fit.side_effect = lambda *given: FittedMethod(lambda f: f, num_parameters=int(1e6 * torch.rand(1)))
    monkeypatch.setattr(fitting, "load_method", lambda name: method)
    monkeypatch.setattr(fitting, "wait_for", waited := Mock())
    cfg = load_cfg(method=OptionGroup("Spy", SpyOptions), opts=["TRAINER.NAME", "Spy", "TRAINER.SPY.SHARE", 0.25])

    def fit(seed: int, backbone: object) -> FittedMethod:
        monkeypatch.setattr(fitting, "time", Mock(**{"monotonic.side_effect": [100.0, 110.0]}))
        return fitting.fit(SimpleNamespace(cfg=cfg, seed=seed, backbone=backbone, batches=None), bank)

    fitted = fit(7, "a backbone")
    seen, options, *rest = method.fit.call_args[0]
    assert seen.test_features is seen.test_labels is None
    for name in ("train_features", "train_labels", "val_features", "val_labels", "text_positive", "text_negative"):
        assert getattr(seen, name) is getattr(bank, name)
    assert (options, rest) == (SpyOptions(0.25), [7, None])  # it does not need a backbone
    assert (fitted.seconds, waited.call_count) == (10, 1)  # includes pending work of a GPU
    assert fitted.num_parameters == fit(7, None).num_parameters != fit(8, None).num_parameters  # by the seed
    method.needs_backbone = True
    fit(7, "a backbone")
    assert method.fit.call_args[0][3] == "a backbone"


# Choosing on val


@pytest.mark.parametrize(("rows", "trainings"), [
    ([[ALPHA, [2.0, 4.0, 8.0]], [OMEGA, [0.1, 0.3]]], 1),  # these only weight predictions
    ([[f"{NODE}.CLOSED_FORM.RHO", [0.1, 0.3]], [f"{NODE}.CLOSED_FORM.KAPPA", [2.0, 4.0]]], 2),  # KAPPA is in NOISE
])  # fmt: skip
def test_candidates_that_share_a_training_equal_single_runs(tiny_bank, monkeypatch, rows, trainings):
    trained, saved, train = [], [], hegraph.train_to_end
    monkeypatch.setattr(hegraph, "train_to_end", lambda training: trained.append(train(training)) or trained[-1])
    select = [f"{NODE}.SELECT_ON", "val", f"{NODE}.SELECT", str(rows)]
    task = BankTask(tiny_bank, load_cfg(opts=[*SHORT, *select]), 1)
    bank = task.bank()
    chosen = fitting.fit(task, bank, SimpleNamespace(save_adapter=saved.append))
    assert (len(trained), chosen.seconds) == (trainings, pytest.approx(sum(summary.seconds for summary in trained)))
    keys, values = [key for key, _ in rows], list(itertools.product(*(values for _, values in rows)))
    configs = [load_cfg(opts=[*SHORT, *(word for pair in zip(keys, given) for word in pair)]) for given in values]
    alone = [fitting.fit(BankTask(tiny_bank, cfg, 1), bank).logits(bank.val_features) for cfg in configs]
    on_val = [round(100 * (found.argmax(1) == bank.val_labels).double().mean().item(), 4) for found in alone]
    best = on_val.index(max(on_val))
    assert on_val.count(max(on_val)) > 1  # so that the order shows
    assert chosen.selected == {
        "keys": keys, "value": list(values[best]),
        "candidates": [[list(given), found] for given, found in zip(values, on_val)], "num_val": len(bank.val_labels),
    }  # fmt: skip
    [model] = saved
    assert model.options == configs[best].model
    assert torch.equal(chosen.logits(bank.val_features), alone[best])
    assert torch.equal(model.fold().logits(bank.val_features), alone[best])


def test_base_of_a_transductive_method_selects_nothing(tiny_bank):
    def logits(*opts: object) -> torch.Tensor:
        named = [*SHORT, "TRAINER.NAME", "TransCLIP", OMEGA, 0.0, *opts]
        task = BankTask(tiny_bank, load_cfg(opts=named, method=method_options("TransCLIP")), 1)
        bank = task.bank()
        return fitting.fit(task, bank).logits(bank.test_features)

    select = [f"{NODE}.SELECT_ON", "val", f"{NODE}.SELECT", [[ALPHA, [300.0]]]]
    assert torch.equal(logits(*select), logits()) and not torch.equal(logits(), logits(ALPHA, 300.0))


def test_fitted_adapter_equals_its_model(tiny_bank):
    cfg = load_cfg(opts=[*SHORT, f"{NODE}.VARIANT", "training_free"])
    task = BankTask(tiny_bank, cfg, 1)
    bank = task.bank()
    fitted, model = fitting.fit(task, bank), hegraph.new_model(bank, cfg, 1)
    assert (fitted.num_parameters, fitted.steps, fitted.variant, fitted.text_nodes) == (0, 0, "training_free", None)
    assert torch.equal(fitted.logits(bank.test_features), model.fold().logits(bank.test_features))
    assert torch.equal(fitted.class_nodes, model.closed_form.to_text.nodes)
    trained = fitting.fit(BankTask(tiny_bank, load_cfg(opts=[*SHORT, OMEGA, 0.0]), 1), bank)
    assert trained.class_nodes is None  # no messages in closed form
    parameters = hegraph.new_model(bank, load_cfg(opts=SHORT), 1).parameters()
    assert trained.num_parameters == sum(parameter.numel() for parameter in parameters)
    before, after = trained.text_nodes
    nodes = torch.nn.functional.normalize(trained.trusted.scaled, dim=1).float()
    torch.testing.assert_close(before, nodes)
    assert torch.allclose(after.norm(dim=1), torch.ones(5))


def test_initial_weights_depend_on_the_seed_alone(tiny_bank):
    cfg, bank = load_cfg(opts=[*SHORT, f"{NODE}.WEIGHT_INIT", "xavier"]), load_bank(tiny_bank)
    one, other, third = (hegraph.new_model(bank, cfg, seed).layers.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not all(torch.equal(value, third[name]) for name, value in one.items())


# Through the command line


def test_selected_value_is_the_only_one_tested(run):
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
    assert f"{ALPHA} '{float(chosen)}'" in error and not (out.parent / "three").exists()


@pytest.mark.parametrize("selected", [{"keys": 1}, {"keys": ["NO.SUCH"], "value": [1]}])
def test_model_with_malformed_selection_is_refused(finished_run_once, selected):
    model = load_model(finished_run_once)
    changed = model.trained_on.model_copy(update={"selected": selected})
    with pytest.raises(UserError):
        check_configuration(model.model_copy(update={"trained_on": changed}), load_cfg())

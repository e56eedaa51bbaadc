"""Every method keeps the contract of `baselines/base.py` and the same promises, and one table knows them all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from yacs.config import CfgNode

from trainers.hegraph.baselines import METHODS, load_method, method_options
from trainers.hegraph.baselines.__main__ import main

CHOOSES = set(METHODS) - {"ZeroShot", "CoOp", "CLIPAdapter", "TaskRes", "GraphAdapter", "CLAP"}  # something on val
# Trained parameters for N images, K classes, d wide, C = 800 / 1024 of d; nothing is trained by the others
PARAMETERS = {
    "LinearProbe": lambda n, k, d: k * (d + 1),
    "CLIPAdapter": lambda n, k, d: 2 * d * (d // 4),
    "TaskRes": lambda n, k, d: k * d,
    "TipAdapterF": lambda n, k, d: n * d,
    "GraphAdapter": lambda n, k, d: 2 * (d + k) * d,
    "ProtoCLIP": lambda n, k, d: (n + k) * d + 2 * d * (d // 4) + 2 * (d + d // 4),
    "CoOp": lambda n, k, d: 16 * 64,
    "LPPlusPlus": lambda n, k, d: k * (d + 2),
    "CLAP": lambda n, k, d: k * d,
    "APET": lambda n, k, d: k * round(d * 800 / 1024) + n,
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_name_and_options_that_yaml_yacs_and_a_record_can_hold(name):
    method = load_method(name)
    assert method.name == name
    assert all(key == key.upper() for key in method.defaults)
    assert json.loads(json.dumps(method.defaults)) == method.defaults
    assert method_options(name) == (name, method.defaults)
    assert method_options("HeGraphAdapter") is None


def test_a_method_that_needs_the_backbone_says_so_when_there_is_none(make_bank):
    method = load_method("CoOp")
    with pytest.raises(ValueError, match="CoOp .* needs the backbone"):
        method.fit(make_bank().without_test(), CfgNode(dict(method.defaults)), seed=1)


@pytest.mark.parametrize(("flags", "left_out"), [([], []), (["--from-bank"], ["CoOp"])], ids=str)
def test_the_command_prints_the_names_that_can_run_and_ours_last(capsys, flags, left_out):
    assert main(flags) == 0
    assert capsys.readouterr().out.split() == [name for name in [*METHODS, "HeGraphAdapter"] if name not in left_out]


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_alone_decides_and_the_bank_is_left_as_it_was(make_bank, fit, fit_once, name):
    bank = make_bank()
    before = {key: value.clone() for key, value in vars(bank).items() if isinstance(value, Tensor)}
    torch.manual_seed(6)
    found = fit(name, bank).logits(bank.test_features)
    assert torch.equal(found, fit_once(name).logits(bank.test_features))
    assert all(torch.equal(getattr(bank, key), value) for key, value in before.items())
    assert not bank.text_positive.requires_grad
    if name in ("CLIPAdapter", "GraphAdapter", "ProtoCLIP", "CoOp"):
        assert not torch.allclose(found, fit(name, bank, seed=2).logits(bank.test_features), atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shots", [(1, 1), (2, 2, 2, 2, 2, 2, 2), (4, 0, 3)], ids=str)
def test_any_number_of_classes_widths_views_and_unequal_shots(make_bank, fit, name, shots):
    width = 64 if load_method(name).needs_backbone else 10 + len(shots)  # 64: the backbone's
    bank = make_bank(shots=shots, width=width, views=1)
    fitted = fit(name, bank)
    logits = fitted.logits(bank.test_features)
    assert logits.shape == (20 * len(shots), len(shots))
    assert logits.isfinite().all()
    assert fitted.num_parameters == PARAMETERS.get(name, lambda *_: 0)(sum(shots), len(shots), width)
    assert (fitted.epochs > 0) == (name in PARAMETERS)
    assert fitted.steps >= fitted.epochs


@pytest.mark.parametrize("name", METHODS)
def test_what_val_chose_is_in_the_record_and_is_the_best(fit_once, name):
    selected = fit_once(name).selected
    assert bool(selected) == (name in CHOOSES)
    for entry in selected.values():
        accuracies = {json.dumps(value): percent for value, percent in entry["candidates"]}
        assert len(accuracies) > 1
        assert accuracies[json.dumps(entry["value"])] == max(accuracies.values())


@pytest.mark.parametrize("name", sorted(CHOOSES))
def test_without_val_images_nothing_is_chosen(make_bank, fit, name):
    bank = make_bank(val=0)
    empty = replace(bank, val_features=torch.empty(0, 64), val_labels=torch.empty(0, dtype=torch.long))
    for fitted in (fit(name, bank), fit(name, empty)):
        assert fitted.selected == {}
        assert fitted.logits(bank.test_features).isfinite().all()

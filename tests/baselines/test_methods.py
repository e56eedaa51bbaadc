"""Every method keeps the same promises."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainers.hegraph.__main__ import main
from trainers.hegraph.baselines import METHODS, load_method
from trainers.hegraph.training.evaluation import score
from trainers.hegraph.utils.errors import UserError

TRAINED = sorted(set(METHODS) - {"ZeroShot", "TipAdapter", "APE", "GDA", "TIMO", "TIMOS", "ProKeR"})
# What each chooses on val
SELECTED = {
    "ZeroShot": set(),
    "LinearProbe": {"C"},
    "CLIPAdapter": set(),
    "TaskRes": set(),
    "TipAdapter": {"ALPHA, BETA"},
    "TipAdapterF": {"ALPHA, BETA"},
    "GraphAdapter": set(),
    "ProtoCLIP": {"ALPHA, BETA in training", "EPOCH", "ALPHA, BETA at last"},
    "CoOp": set(),
    "LPPlusPlus": {"STEP"},
    "CLAP": set(),
    "GDA": {"ALPHA"},
    "TIMO": {"ALPHA"},
    "TIMOS": {"BETA, ALPHA"},
    "ProKeR": {"BETA, LAMBDA"},
    "APE": {"ALPHA, BETA, GAMMA"},
    "APET": {"ALPHA, BETA"},
}
# Trained parameters for N images, K classes, d wide, C = 800 / 1024 of d
PARAMETERS = {
    "ZeroShot": lambda n, k, d: 0,
    "LinearProbe": lambda n, k, d: k * (d + 1),
    "CLIPAdapter": lambda n, k, d: 2 * d * (d // 4),
    "TaskRes": lambda n, k, d: k * d,
    "TipAdapter": lambda n, k, d: 0,
    "TipAdapterF": lambda n, k, d: n * d,
    "GraphAdapter": lambda n, k, d: 2 * (d + k) * d,
    "ProtoCLIP": lambda n, k, d: (n + k) * d + 2 * d * (d // 4) + 2 * (d + d // 4),
    "CoOp": lambda n, k, d: 16 * 64,
    "LPPlusPlus": lambda n, k, d: k * (d + 2),
    "CLAP": lambda n, k, d: k * d,
    "GDA": lambda n, k, d: 0,
    "TIMO": lambda n, k, d: 0,
    "TIMOS": lambda n, k, d: 0,
    "ProKeR": lambda n, k, d: 0,
    "APE": lambda n, k, d: 0,
    "APET": lambda n, k, d: k * round(d * 800 / 1024) + n,
}


def accuracy(logits: Tensor, bank) -> float:
    return score(logits, bank.test_labels)["accuracy"]


@pytest.mark.parametrize("name", METHODS)
def test_learns_what_the_text_does_not_know(make_bank, fit, name):
    bank = make_bank(shots=(8,) * 5)
    reached, zero_shot = (accuracy(fit(n, bank).logits(bank.test_features), bank) for n in (name, "ZeroShot"))
    assert 50 < zero_shot < 92  # there is something to learn, and something known
    assert reached == zero_shot if name == "ZeroShot" else reached > zero_shot


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_logits(make_bank, fit, name):
    bank = make_bank()
    torch.manual_seed(5)
    one = fit(name, bank).logits(bank.test_features)
    torch.manual_seed(6)
    assert torch.equal(fit(name, bank).logits(bank.test_features), one)


@pytest.mark.parametrize("name", ["CLIPAdapter", "GraphAdapter", "ProtoCLIP", "CoOp"])
def test_another_seed_gives_other_logits(make_bank, fit, name):
    bank = make_bank()
    one, other = (fit(name, bank, seed).logits(bank.test_features) for seed in (1, 2))
    assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shots", [(1, 1), (3, 1, 5), (2, 2, 2, 2, 2, 2, 2), (4, 0, 3)], ids=str)
def test_any_number_of_classes_widths_views_and_unequal_shots(make_bank, fit, name, shots):
    width = 64 if load_method(name).needs_backbone else 10 + len(shots)  # 64: the backbone's
    bank = make_bank(shots=shots, width=width, views=1)
    fitted = fit(name, bank)
    logits = fitted.logits(bank.test_features)
    assert logits.shape == (20 * len(shots), len(shots))
    assert logits.isfinite().all()
    assert fitted.num_parameters == PARAMETERS[name](sum(shots), len(shots), width)


@pytest.mark.parametrize("name", METHODS)
def test_what_val_chose_is_in_the_record_and_is_the_best(make_bank, fit, name):
    selected = fit(name, make_bank()).selected
    assert set(selected) == SELECTED[name]
    for entry in selected.values():
        accuracies = {json.dumps(value): percent for value, percent in entry["candidates"]}
        assert len(accuracies) > 1
        assert accuracies[json.dumps(entry["value"])] == max(accuracies.values())


@pytest.mark.parametrize("val", ["none", "empty"])
@pytest.mark.parametrize("name", METHODS)
def test_without_val_nothing_is_chosen(make_bank, fit, name, val):
    bank = make_bank(val=0)
    if val == "empty":
        bank = replace(bank, val_features=torch.empty(0, 64), val_labels=torch.empty(0, dtype=torch.long))
    fitted = fit(name, bank)
    assert fitted.selected == {}
    assert fitted.logits(bank.test_features).isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_an_image_is_predicted_alike_alone_and_in_a_batch_and_nothing_is_left_to_train(make_bank, fit, name):
    bank = make_bank()
    fitted = fit(name, bank)
    together = fitted.logits(bank.test_features)
    alone = torch.cat([fitted.logits(image) for image in bank.test_features.split(1)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    assert not together.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_the_bank_is_left_as_it_was(make_bank, fit, name):
    bank = make_bank()
    before = {key: value.clone() for key, value in vars(bank).items() if isinstance(value, Tensor)}
    fit(name, bank)
    assert all(torch.equal(getattr(bank, key), value) for key, value in before.items())
    assert not bank.text_positive.requires_grad


@pytest.mark.parametrize("name", TRAINED)
def test_epochs_and_steps_are_counted(make_bank, fit, name):
    fitted = fit(name, make_bank())
    assert fitted.epochs > 0
    assert fitted.steps >= fitted.epochs


@pytest.mark.parametrize("name", [name for name in METHODS if not load_method(name).needs_backbone])
def test_runs_by_the_command_line(tiny_bank, tmp_path, name):
    quick = ["TRAINER.PROTOCLIP.EPOCHS", "100"] if name == "ProtoCLIP" else []
    arguments = ["--features", str(tiny_bank), "--trainer", name, "--shots", "4", "--seed", "1"]
    assert main([*arguments, "--output-dir", str(tmp_path / "out"), *quick]) == 0
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["trainer"] == name
    assert record["accuracy"] >= record["accuracy_zero_shot"]
    assert set(record["selected"]) == SELECTED[name]


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("LinearProbe", {"C": 0.0}, "C and CANDIDATES must be above 0, got 0.0"),
        ("LinearProbe", {"CANDIDATES": [1.0, -1.0]}, "C and CANDIDATES must be above 0"),
        ("LinearProbe", {"CANDIDATES": []}, "CANDIDATES must be a list of one number or more, got []"),
        ("CLIPAdapter", {"REDUCTION": 65}, "REDUCTION must lie in 1 ... 64, the width of the features, got 65"),
        ("CLIPAdapter", {"RATIO": 1.5}, "RATIO must lie in 0 ... 1, got 1.5"),
        ("CLIPAdapter", {"EPOCHS": [[8, 200]]}, "EPOCHS has no row for 4 shots"),
        ("CLIPAdapter", {"BATCH_SIZE": 0}, "BATCH_SIZE must be at least 1, got 0"),
        ("TaskRes", {"ALPHA": [["OxfordPets", 0.5]]}, "ALPHA has no row for 'Tiny'"),
        ("TaskRes", {"EPOCHS": [[1, 0]]}, "EPOCHS must be at least 1, got 0"),
        ("TaskRes", {"LR": [["", float("inf")]]}, "lower LR"),
        ("GraphAdapter", {"GROUPS": 0}, "GROUPS must be at least 1, got 0"),
        ("GraphAdapter", {"BETA": -0.1}, "ALPHA and BETA must lie in 0 ... 1, got 0.7 and -0.1"),
        ("ProtoCLIP", {"ALPHA": 2.0}, "ALPHA must lie in 0 ... 1"),
        ("ProtoCLIP", {"ASK_EVERY": 0}, "ASK_EVERY must be at least 1, got 0"),
        ("ProtoCLIP", {"REDUCTION": 0}, "REDUCTION must lie in 1 ... 64"),
        ("CoOp", {"N_CTX": 0}, "N_CTX must be at least 1, got 0"),
        ("CoOp", {"N_CTX": 75}, "N_CTX 75 and the class name 'one.' take 79 tokens, but CLIP reads 77"),
        ("LPPlusPlus", {"BLOCK": 0}, "STEPS must be at least BLOCK, and that 1, got 300 and 0"),
        ("LPPlusPlus", {"MOMENTUM": 2.0}, "lower MOMENTUM"),
        ("CLAP", {"EPOCHS": 0}, "EPOCHS must be at least 1, got 0"),
        ("CLAP", {"BATCH_SIZE": 0}, "BATCH_SIZE must be at least 1, got 0"),
        ("CLAP", {"LR": float("inf")}, "lower LR"),
        ("GDA", {"CANDIDATES": []}, "CANDIDATES must be a list of one number or more, got []"),
        ("GDA", {"CANDIDATES": ["much"]}, "CANDIDATES must be a list of one number or more, got ['much']"),
        ("TIMO", {"CANDIDATES": []}, "CANDIDATES must be a list of one number or more, got []"),
        ("TIMOS", {"BETA": 0}, "BETA and BETAS must be whole numbers from 1, got 0 and [1, 2]"),
        ("TIMOS", {"BETAS": [1, 1.5]}, "BETA and BETAS must be whole numbers from 1, got 1 and [1, 1.5]"),
        ("ProKeR", {"BETA": [[1, 0.0]], "SEARCH": False}, "BETA and LAMBDA must be above 0, got 0.0 and 0.05"),
        ("ProKeR", {"LAMBDA": [[8, 0.1]]}, "LAMBDA has no row for 4 shots"),
        ("ProKeR", {"SEARCH_RANGE": [["", [0.5, 3.0]]]}, "a value of SEARCH_RANGE must be 4 numbers, got [0.5, 3.0]"),
        ("ProKeR", {"SEARCH_RANGE": [["", [0.0, 3.0, 0.1, 1.0]]]}, "BETA and LAMBDA must be above 0, got 0.0 and 0.1"),
        ("ProKeR", {"SEARCH_STEP": [10, 0]}, "SEARCH_STEP must be whole numbers from 1, got [10, 0]"),
        ("APE", {"CHANNELS": [["", 1.1]]}, "CHANNELS must be a share of the channels"),
        ("APE", {"WEIGHTS": [["", [0.5]]]}, "WEIGHTS must be 2 numbers, got [0.5]"),
        ("APE", {"SEARCH_STEP": [20, 20]}, "SEARCH_STEP must be 3 numbers"),
        ("APET", {"SEARCH_STEP": [20, 0.5]}, "SEARCH_STEP must be whole numbers from 1"),
        ("APET", {"SEARCH_SCALE": [["", [1.0]]]}, "SEARCH_SCALE must be 2 numbers"),
    ],
)
def test_refuses_wrong_options_in_one_line(make_bank, fit, name, changed, words):
    with pytest.raises(UserError) as caught:
        fit(name, make_bank(), **changed)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


PAPER = re.compile(
    r"[A-Z][\w' -]*(?:, [A-Z][\w' -]*)*: .{20,}\. [A-Z][\w .]+,? 20\d\d\b.*\."
)  # authors: title. venue year.


@pytest.mark.parametrize("name", METHODS)
def test_a_file_opens_with_a_title_its_paper_its_equation_and_its_distance_from_the_original(request, name):
    path = Path(request.config.rootpath) / "trainers" / "hegraph" / "baselines" / f"{METHODS[name]}.py"
    title, paper, *rest = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")
    assert re.fullmatch(r"[A-Z].*\.", title)
    assert PAPER.fullmatch(" ".join(paper.split()))
    equations = [part for part in rest if part.startswith("    ")]
    if name == "TIMOS":
        assert "The equations are those of `timo.py`." in rest[0]
    else:
        assert re.match(r"    \S.* = ", equations[0])
    distance = [part for part in rest if part.startswith("Distance from the original: ")]
    # Zero-shot CLIP alone has none
    assert len(distance) == (0 if name == "ZeroShot" else 1)
    assert all(len(part) > 60 for part in distance)
    assert name != "ZeroShot" or "This is the original" in rest[-1]

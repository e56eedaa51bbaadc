"""A bank of a whole data set: a few-shot run reads the rows that it draws, and is known by what it reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.hegraph.__main__ import main
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets import Selection
from trainers.hegraph.experiments.tasks import BankTask
from trainers.hegraph.features import bank_file
from trainers.hegraph.features.bank import draw_bank, load_bank
from trainers.hegraph.features.bank_file import BankFile
from trainers.hegraph.features.tensor_file import TensorFile
from trainers.hegraph.utils.errors import UserError

TRAIN, VAL = [7, 0, 3, 29], [2, 11]
NAMES = [f"{split}_{what}" for split in ("train", "val", "test") for what in ("features", "labels")]


@pytest.fixture
def changed(tiny_bank) -> Callable[..., Path]:
    """Writes the tiny bank with one value changed: the name of a tensor, and where in it."""

    def write(name: str, *place: int, value: float = float("nan")) -> Path:
        with safe_open(tiny_bank, framework="pt") as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        tensors[name][place] = value
        path = tiny_bank.with_name("changed.safetensors")
        save_file(tensors, path, metadata)
        return path

    return write


@pytest.fixture
def too_large(monkeypatch):
    """Every bank is too large to be hashed whole."""
    monkeypatch.setattr(bank_file, "HASHED_WHOLE", 0)


@pytest.mark.parametrize("which", ["all", "base", "new"])
def test_what_is_drawn_from_the_file_are_rows_of_the_whole_bank(tiny_bank, which):
    drawn = draw_bank(BankFile(tiny_bank), Selection(TRAIN, VAL)).subsample(which).with_test()
    whole = load_bank(tiny_bank)
    rows = {"train_features": whole.train_features[:, TRAIN], "train_labels": whole.train_labels[TRAIN]}
    rows |= {"val_features": whole.val_features[VAL], "val_labels": whole.val_labels[VAL]}
    expected = replace(whole, **rows).subsample(which)
    for name in (*NAMES, "text_positive", "text_negative"):
        assert torch.equal(getattr(drawn, name), getattr(expected, name)), name
    assert drawn.classnames == expected.classnames


def test_test_features_stay_on_disk_until_they_are_asked_for(changed):
    drawn = draw_bank(BankFile(changed("test_features", 5, 1)), Selection(TRAIN, VAL))
    assert drawn.test_features is None
    assert len(drawn.test_labels) == 40
    with pytest.raises(UserError, match=r"test_features holds NaN or infinite values, first at \[5, 1\]"):
        drawn.with_test()
    assert drawn.without_test().with_test().test_features is None


def test_rows_that_are_not_drawn_are_neither_read_nor_checked(changed):
    drawn = draw_bank(BankFile(changed("train_features", 0, 4, 1)), Selection(TRAIN, VAL))
    assert drawn.train_features.isfinite().all()


def test_a_damaged_row_that_is_drawn_is_named_by_its_place_in_the_file(changed):
    file = BankFile(changed("train_features", 1, 29, 6))
    with pytest.raises(UserError, match=r"train_features holds NaN or infinite values, first at \[1, 29, 6\]"):
        draw_bank(file, Selection(TRAIN, VAL))


def test_a_bank_that_changes_while_it_is_in_use_is_refused(tiny_bank):
    file = BankFile(tiny_bank)
    os.utime(tiny_bank, ns=(0, 0))
    with pytest.raises(UserError, match=r"tiny\.safetensors was changed while it was in use; start again"):
        file.features("test")


def test_a_small_bank_is_known_by_all_its_bytes(changed, tiny_bank):
    assert BankFile(tiny_bank).identity(TRAIN, VAL) == bank_file.hash_file(tiny_bank)
    other = BankFile(changed("train_features", 0, 4, 1))  # a row that is not drawn
    assert other.identity(TRAIN, VAL) != BankFile(tiny_bank).identity(TRAIN, VAL)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("train_features", (1, 29, 6)),
        ("val_features", (11, 0)),
        ("test_features", (39, 15)),
        ("text_positive", (4, 2)),
        ("text_negative", (0, 0)),
        ("train_labels", (5,)),
        ("val_labels", (5,)),
        ("test_labels", (0,)),
        ("text_norms", (3,)),
    ],
)
def test_a_large_bank_that_changes_in_what_a_run_takes_from_it_is_another_one(
    too_large, changed, tiny_bank, name, place
):
    tiny_bank_with_norms(tiny_bank)
    before = BankFile(tiny_bank)
    labels = before.labels[name.removesuffix("_labels")] if name.endswith("labels") else None
    value = 0.1234 if labels is None else (int(labels[place]) + 1) % 5
    path = changed(name, *place, value=value)
    if name in ("text_positive", "text_negative"):  # a text feature is checked when the bank is opened
        path = changed(name, *place, value=float(_read(tiny_bank, name)[place]) + 1e-4)
    assert BankFile(path).identity(TRAIN, VAL) != before.identity(TRAIN, VAL)


def test_a_large_bank_is_the_same_one_for_a_run_whatever_its_other_rows_are(too_large, changed, tiny_bank):
    other = BankFile(changed("train_features", 0, 4, 1))
    assert other.identity(TRAIN, VAL) == BankFile(tiny_bank).identity(TRAIN, VAL)
    assert other.identity([*TRAIN, 4], VAL) != BankFile(tiny_bank).identity([*TRAIN, 4], VAL)


def test_the_class_names_of_a_large_bank_are_part_of_what_it_is_known_by(too_large, tiny_bank):
    before = BankFile(tiny_bank).identity(TRAIN, VAL)
    tiny_bank.write_bytes(tiny_bank.read_bytes().replace(b"ant", b"gnu"))
    assert BankFile(tiny_bank).identity(TRAIN, VAL) != before


def tiny_bank_with_norms(path: Path) -> torch.Tensor:
    bank = load_bank(path)
    norms = torch.arange(1.0, 1 + len(bank.classnames))
    replace(bank, text_norms=norms).save(path)
    return norms


# Runs from a bank that is too large


@pytest.fixture
def run_of(tiny_bank, tmp_path, capsys):
    """Runs ZeroShot or another method on the tiny bank; returns the exit code and what was said."""

    def run(*words: str) -> tuple[int, str]:
        flags = ["--features", str(tiny_bank), "--shots", "2", "--seed", "1", "--output-dir", str(tmp_path / "out")]
        code = main([*flags, *words, "OPTIM.MAX_EPOCH", "1"])
        return code, capsys.readouterr().err

    return run


def test_a_large_bank_gives_the_results_of_a_small_one(run_of, tmp_path, monkeypatch):
    def results() -> tuple[dict, dict[str, torch.Tensor]]:
        assert run_of()[0] == 0
        record = json.loads((tmp_path / "out" / "result.json").read_text())
        predictions = load_file(tmp_path / "out" / "predictions.safetensors")
        shutil.rmtree(tmp_path / "out")
        return record, predictions

    small, predictions = results()
    monkeypatch.setattr(bank_file, "HASHED_WHOLE", 0)
    large, of_large = results()
    assert large["run_id"] != small["run_id"]
    assert large["accuracy"] == small["accuracy"]
    assert all(torch.equal(of_large[name], predictions[name]) for name in predictions)


def test_test_rows_among_the_drawn_ones_of_a_large_bank_are_refused_before_a_record_is_written(
    too_large, tiny_bank, run_of, tmp_path
):
    bank = load_bank(tiny_bank)
    replace(bank, train_features=bank.test_features[:30].clone().unsqueeze(0)).save(tiny_bank)
    code, error = run_of()
    assert code == 2
    assert "train images of Tiny are test images as well" in error
    assert not (tmp_path / "out" / "result.json").exists()


def test_test_rows_of_a_large_bank_are_read_once_and_after_the_training(too_large, tiny_bank, monkeypatch):
    read: list[str] = []
    real = BankFile.features
    monkeypatch.setattr(BankFile, "features", lambda self, split: [read.append(split), real(self, split)][1])
    task = BankTask(tiny_bank, load_cfg(flags={"DATASET.NUM_SHOTS": 2}), seed=1)
    task.prepare()
    drawn = task.bank()
    assert read == []
    assert torch.equal(drawn.with_test().test_features, drawn.features_to_classify)
    assert read == ["test"]


def _read(path: Path, name: str) -> torch.Tensor:
    return TensorFile(path, "the feature bank").read(name)

"""A bank of a whole data set: a few-shot run reads the rows that it draws, and is known by what it reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trainers.hegraph.datasets import Selection
from trainers.hegraph.features import bank_identity
from trainers.hegraph.features.bank import draw_bank, load_bank
from trainers.hegraph.features.bank_file import BankFile
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.tensor_file import TensorFile

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
    monkeypatch.setattr(bank_identity, "HASHED_WHOLE", 0)


@pytest.mark.parametrize("which", ["all", "base", "new"])
def test_what_is_drawn_from_the_file_is_what_is_drawn_from_the_bank_in_memory(tiny_bank, which):
    selection = Selection(train=TRAIN, val=VAL)
    drawn = draw_bank(BankFile(tiny_bank), selection).subsample(which).with_test()
    expected = load_bank(tiny_bank).select(selection).subsample(which)
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


def test_a_bank_that_is_cut_short_while_it_is_in_use_is_refused(tiny_bank):
    file = BankFile(tiny_bank)
    version = tiny_bank.stat()
    tiny_bank.write_bytes(tiny_bank.read_bytes()[:-8])
    os.utime(tiny_bank, ns=(version.st_atime_ns, version.st_mtime_ns))
    with pytest.raises(UserError, match="changed while it was in use"):
        file.features("test")


def test_a_small_bank_is_known_by_all_its_bytes(changed, tiny_bank):
    assert BankFile(tiny_bank).identity.of(TRAIN, VAL) == bank_identity.hash_file(tiny_bank)
    other = BankFile(changed("train_features", 0, 4, 1))  # a row that is not drawn
    assert other.identity.of(TRAIN, VAL) != BankFile(tiny_bank).identity.of(TRAIN, VAL)


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
    ],
)
def test_a_large_bank_that_changes_in_what_a_run_takes_from_it_is_another_one(
    too_large, changed, tiny_bank, name, place
):
    before = BankFile(tiny_bank)
    labels = before.labels[name.removesuffix("_labels")] if name.endswith("labels") else None
    value = 0.1234 if labels is None else (int(labels[place]) + 1) % 5
    path = changed(name, *place, value=value)
    if name.startswith("text"):  # a text feature is checked when the bank is opened
        path = changed(name, *place, value=float(_read(tiny_bank, name)[place]) + 1e-4)
    assert BankFile(path).identity.of(TRAIN, VAL) != before.identity.of(TRAIN, VAL)


def test_a_large_bank_is_the_same_one_for_a_run_whatever_its_other_rows_are(too_large, changed, tiny_bank):
    other = BankFile(changed("train_features", 0, 4, 1))
    assert other.identity.of(TRAIN, VAL) == BankFile(tiny_bank).identity.of(TRAIN, VAL)
    assert other.identity.of([*TRAIN, 4], VAL) != BankFile(tiny_bank).identity.of([*TRAIN, 4], VAL)


def test_the_class_names_of_a_large_bank_are_part_of_what_it_is_known_by(too_large, tiny_bank):
    before = BankFile(tiny_bank).identity.of(TRAIN, VAL)
    tiny_bank.write_bytes(tiny_bank.read_bytes().replace(b"ant", b"gnu"))
    assert BankFile(tiny_bank).identity.of(TRAIN, VAL) != before


def _read(path: Path, name: str) -> torch.Tensor:
    return TensorFile(path, "the feature bank").read(name)

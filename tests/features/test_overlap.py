"""Images of train or val that are test images as well."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainers.hegraph.__main__ import main
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.features.overlap import is_among, refuse_test_rows
from trainers.hegraph.utils.errors import UserError


@pytest.fixture
def bank(tiny_bank):
    return load_bank(tiny_bank)


def test_rows_are_found_whatever_their_order_and_only_whole_rows_count():
    others = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [1.0, 2.0, 9.0]])
    rows = torch.tensor([[4.0, 5.0, 6.0], [1.0, 2.0, 4.0], [7.0, 8.0, 9.0], [1.0, 2.0, 9.0]])
    assert is_among(rows, others).tolist() == [True, False, False, True]


@pytest.mark.parametrize("width", [1, 2])
def test_rows_may_be_as_narrow_as_one_entry(width):
    rows = torch.arange(6.0).view(-1, width)
    assert is_among(rows, rows.flip(0)[:1]).tolist() == [False] * (len(rows) - 1) + [True]


def test_a_bank_of_different_images_is_accepted(bank):
    refuse_test_rows(bank)
    refuse_test_rows(bank.without_test())


@pytest.mark.parametrize("part", [slice(None), slice(3, 4)], ids=["val is test", "one image"])
def test_val_images_that_are_test_images_are_refused_with_their_number(bank, part):
    val = bank.test_features.flip(0)[part]
    with pytest.raises(UserError, match=rf"{len(val)} of {len(val)} val images of Tiny are test images as well"):
        refuse_test_rows(replace(bank, val_features=val, val_labels=bank.test_labels.flip(0)[part]))


def test_a_training_image_that_is_a_test_image_in_one_of_its_views_is_refused(bank):
    train = bank.train_features.clone()
    train[1, 4] = bank.test_features[7]
    with pytest.raises(UserError, match="1 of 30 train images of Tiny are test images as well"):
        refuse_test_rows(replace(bank, train_features=train))


def test_a_run_with_a_bank_whose_val_is_its_test_ends_before_anything_is_written(bank, tmp_path, capsys):
    val = {"val_features": bank.test_features.clone(), "val_labels": bank.test_labels.clone()}
    replace(bank, **val).save(tmp_path / "b.safetensors")
    out = tmp_path / "out"
    arguments = ["--features", str(tmp_path / "b.safetensors"), "--shots", "2", "--output-dir", str(out)]
    assert main(arguments) == 2
    assert "val images of Tiny are test images as well" in capsys.readouterr().err
    assert not out.exists()

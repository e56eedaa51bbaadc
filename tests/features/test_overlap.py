"""Images of train or val that are test images as well."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph.__main__ import main
from trainers.hegraph.features import overlap
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.features.overlap import count_near, is_among, refuse_test_rows, warn_of_near_copies
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


@pytest.mark.parametrize("flags", [(), ("--select", "val")], ids=["last step", "search"])
def test_a_run_with_a_bank_whose_val_is_its_test_ends_before_anything_is_written(bank, tmp_path, capsys, flags):
    val = {"val_features": bank.test_features.clone(), "val_labels": bank.test_labels.clone()}
    replace(bank, **val).save(tmp_path / "b.safetensors")
    out = tmp_path / "out"
    arguments = ["--features", str(tmp_path / "b.safetensors"), "--shots", "2", "--output-dir", str(out), *flags]
    assert main(arguments) == 2
    assert "val images of Tiny are test images as well" in capsys.readouterr().err
    assert not out.exists()


def test_near_copies_are_counted_and_not_refused(bank, caplog):
    noise = torch.randn(bank.test_features.shape, generator=torch.Generator().manual_seed(0))
    val = F.normalize(bank.test_features + 0.001 * noise, dim=-1)  # cosine about 1 - 16 * 0.001 ** 2 / 2 = 0.99999
    val[5:] = -val[5:]
    copied = replace(bank, val_features=val, val_labels=bank.test_labels)
    refuse_test_rows(copied)
    with caplog.at_level(logging.WARNING):
        warn_of_near_copies(copied)
    assert "Tiny: 5 of 40 val images are nearly the same as a test image (cosine above 0.9999)" in caplog.text


def test_of_different_images_nothing_is_said(bank, caplog):
    warn_of_near_copies(bank)
    assert caplog.text == ""


@pytest.mark.parametrize("width", [12, overlap.FEW, overlap.FEW + 1, 200])
def test_a_near_copy_has_a_cosine_above_the_bound(width):
    generator = torch.Generator().manual_seed(width)
    test, other = F.normalize(torch.randn(2, 50, width, generator=generator, dtype=torch.float64), dim=-1)
    aside = F.normalize(other - (other * test).sum(dim=1, keepdim=True) * test, dim=-1)
    for cosine, count in ((0.99991, 50), (0.99989, 0)):
        rows = cosine * test + (1 - cosine**2) ** 0.5 * aside
        assert count_near(rows.float(), test.float()) == count


def test_rows_that_differ_late_are_no_near_copies():
    alike = torch.ones(overlap.FEW).expand(3, -1)
    rows = F.normalize(torch.cat([alike, torch.eye(3)], dim=1), dim=-1)
    assert count_near(rows[:2], rows[2:]) == 0


def test_what_would_take_long_is_not_compared(bank, monkeypatch):
    assert count_near(bank.test_features, bank.test_features) == 40
    monkeypatch.setattr(overlap, "MOST_PAIRS", 40 * 40 - 1)
    assert count_near(bank.test_features, bank.test_features) == 0

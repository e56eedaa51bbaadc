"""Devices, values of options, and worker threads."""

import math
import os
from itertools import count
from unittest.mock import Mock

import pytest
import torch

from trainers.hegraph.config import is_pairs
from trainers.hegraph.features.options import is_fraction_range
from trainers.hegraph.utils import option
from trainers.hegraph.utils.devices import available_device, choose_device, wait_for
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.option import Option, rows_for
from trainers.hegraph.utils.threads import BATCHES_AHEAD, cores, in_batches


def test_choice_and_synchronization_of_the_gpu(monkeypatch):
    for there, wanted, device in ((True, True, "cuda"), (True, False, "cpu"), (False, True, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert available_device(wanted) == device
        assert choose_device(None, "--device") == choose_device("", "--device") == ("cuda" if there else "cpu")
    synchronize = Mock()
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    wait_for(torch.device("cpu"))
    wait_for(torch.device("cuda:1"))
    synchronize.assert_called_once_with(torch.device("cuda:1"))


@pytest.mark.parametrize(("device", "message"), [
    *((name, f"--device must be cpu, cuda or cuda:N, got '{name}'") for name in ("tpu", "meta", "gpu:0")),
    ("cuda:99", "cannot compute on --device cuda:99: "),
])  # fmt: skip
def test_invalid_devices_are_refused(device, message):
    assert choose_device("cpu", "--device") == choose_device(torch.device("cpu"), "--device") == "cpu"
    with pytest.raises(UserError, match=message):
        choose_device(device, "--device")


@pytest.mark.parametrize("row", [["1", 2], [1], [1, 2, 3], 1, "12", [1, "x"]])
def test_invalid_rows_are_refused(row):
    declared = Option("EPOCHS", [], "", rows=(int, "[shots, number]", lambda value: value != "x"))
    declared.check([[1, 2], (1, None)])
    with pytest.raises(UserError) as caught:
        declared.check([[1, 2], row])
    assert str(caught.value) == f"EPOCHS must have rows [shots, number], got {[[1, 2], row]!r}"


@pytest.mark.parametrize(("declared", "right", "wrong", "message"), [
    (Option("EPOCHS", 2, "", least=2), (2, 3), 1, "at least 2"),
    (Option("LR", 0.5, "", above=0.25), (0.5, 1.0), 0.25, "above 0.25"),
])  # fmt: skip
def test_bounds_of_options(declared, right, wrong, message):
    for value in right:
        declared.check(value)
    with pytest.raises(UserError, match=f"^{declared.key} must be {message}, got {wrong}$"):
        declared.check(wrong)


def test_checks_of_values():
    values = ([1, 2], (1, 0.5), [0.5, 1], [1], [], "ab", ["a"])
    kinds = [[check(value) for value in values] for check in (option.is_list, is_pairs, option.is_strings)]
    assert kinds[0] == [True, True, True, True, False, False, True]
    assert kinds[1] == [True, True, True, False, False, False, False]
    assert kinds[2] == [False, False, False, False, True, True, True]
    ranges = ([0.5, 1], [1, 1], (0.08, 0.9), [1, 0.5], [0, 1], [0.5, 1.5], [0.5])
    assert [is_fraction_range(value) for value in ranges] == [True] * 3 + [False] * 4
    assert [option.is_positive(value) for value in (1, 0.1, 0, -1, math.inf, True, "1")] == [True] * 2 + [False] * 5


@pytest.mark.parametrize(("shots", "values"), [
    (0, []), (1, ["one"]), (3, ["two", "one"]), (math.inf, ["eight", "two", "one"]),
])  # fmt: skip
def test_rows_with_more_shots_come_first(shots, values):
    assert rows_for([[8, "eight"], [1, "one"], [2, "two"]], shots) == values


def test_rows_of_the_data_set_come_first():
    rows = [["*", "every"], ["Digits", "digits"], ["", "any"], ["Pets", "pets"]]
    assert rows_for(rows, 1, "Digits".__eq__) == ["digits", "every", "any"]
    assert rows_for(rows, 1) == ["every", "any"]


@pytest.mark.parametrize(("declared", "right", "wrong", "message"), [
    (Option("MIX", 0.5, "", least=0, most=1), (0.0, 1.0), 1.5, "be at most 1"),
    (Option("STEP", [2, 2], "", numbers=2, least=1, whole=True), ([1, 9],), [1, 1.5], "be a list of 2 whole numbers"),
    (Option("STEP", [2, 2], "", numbers=2, least=1, whole=True), ([1, 9],), [1], "be a list of 2 whole numbers"),
    (Option("ENDS", [1.0], "", numbers=0, above=0), ([1], [0.5, 2]), [], "be a list of one or more numbers above 0"),
    (Option("C", [[1, 2.0]], "", by_task=True, above=0, most=3), ([[1, 3]],), [[1, 4]], "have rows .*above 0, at most"),
], ids=str)  # fmt: skip
def test_ranges_of_numbers_in_lists_and_rows(declared, right, wrong, message):
    for value in right:
        declared.check(value)
    with pytest.raises(UserError, match=f"^{declared.key} must {message}"):
        declared.check(wrong)


# Threads


def test_cores_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 3}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    for counted, found in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda counted=counted: counted)
        assert cores() == found


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_and_results_are_in_order(threads):
    batches = list(in_batches(lambda number: number * number, range(45), 20, threads))
    assert [batch for batch, _ in batches] == [list(range(20)), list(range(20, 40)), list(range(40, 45))]
    assert [result for _, results in batches for result in results] == [number**2 for number in range(45)]


def test_items_are_consumed_lazily():
    numbers = count()
    batches = in_batches(str, numbers, 4, 2)
    for number in range(1, 6):
        next(batches)
        assert next(numbers) <= 4 * (number + BATCHES_AHEAD) + number
    batches.close()


def test_exceptions_are_raised_at_their_batch():
    batches = in_batches(lambda number: 1 // (5 - number), range(8), 4, 2)
    assert next(batches)[0] == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        next(batches)

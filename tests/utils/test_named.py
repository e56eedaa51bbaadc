"""What a user names: a device, a configuration file that ships, an option's value."""

from __future__ import annotations

import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from trainers.hegraph.config_files import DATA_SET, METHOD, find_config_file
from trainers.hegraph.utils import option
from trainers.hegraph.utils.devices import available_device, choose_device, wait_for
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.option import Option, values_up_to

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_gpu_is_taken_where_there_is_one_and_it_is_wanted_and_waited_for(monkeypatch):
    for there, wanted, device in ((True, True, "cuda"), (True, False, "cpu"), (False, True, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert available_device(wanted) == device
        assert choose_device(None, "--device") == choose_device("", "--device") == ("cuda" if there else "cpu")
    synchronize = Mock()
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    wait_for(torch.device("cpu"))
    wait_for(torch.device("cuda:1"))
    synchronize.assert_called_once_with(torch.device("cuda:1"))


def test_another_kind_of_device_and_one_that_is_not_there_are_refused():
    for given in ("tpu", "meta", "gpu:0"):
        with pytest.raises(UserError, match=f"--device must be cpu, cuda or cuda:N, got '{given}'"):
            choose_device(given, "--device")
    with pytest.raises(UserError, match="cannot compute on --device cuda:99: "):
        choose_device("cuda:99", "--device")
    assert choose_device("cpu", "--device") == "cpu"


def test_every_configuration_that_ships_is_found_by_its_name():
    for kind, folder in ((DATA_SET, "datasets"), (METHOD, "trainers/HeGraphAdapter")):
        files = sorted((CONFIGS / folder).glob("*.yaml"))
        assert files and [find_config_file(kind, file.stem) for file in files] == files
    for kind, name, near in ((DATA_SET, "digit", "digits"), (METHOD, "vit_b61", "vit_b16")):
        with pytest.raises(UserError, match=f"unknown {kind} configuration '{name}'; did you mean '{near}'"):
            find_config_file(kind, name)
    with pytest.raises(UserError, match="unknown method configuration 'digits'"):  # it is one of a data set
        find_config_file(METHOD, "digits")


def test_a_file_of_that_name_wins_but_a_folder_does_not_and_a_path_to_nothing_stays_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "mini").write_text("SEED: 5\n")
    assert find_config_file(DATA_SET, "digits") == CONFIGS / "datasets" / "digits.yaml"
    assert find_config_file(METHOD, "mini") == Path("mini")
    for path in ("nowhere.yaml", "nowhere/mini"):
        assert find_config_file(METHOD, path) == Path(path)


@pytest.mark.parametrize("row", [["1", 2], [1], [1, 2, 3], 1, "12", [1, "x"]])
def test_a_row_of_another_form_is_shown_with_the_form_that_it_should_have(row):
    declared = Option("EPOCHS", [], "", rows=(int, "[shots, number]", lambda value: value != "x"))
    declared.check([[1, 2], (1, None)])
    with pytest.raises(UserError) as caught:
        declared.check([[1, 2], row])
    assert str(caught.value) == f"EPOCHS must have rows [shots, number], got {[[1, 2], row]!r}"


def test_the_kinds_of_values_are_told_apart():
    values = ([1, 2], (1, 0.5), [0.5, 1], [1], [], "ab", ["a"])
    kinds = [
        [check(value) for value in values] for check in (option.is_list, option.is_list_of_pairs, option.is_strings)
    ]
    assert kinds[0] == [True, True, True, True, False, False, True]
    assert kinds[1] == [True, True, True, False, False, False, False]
    assert kinds[2] == [False, False, False, False, True, True, True]
    ranges = ([0.5, 1], [1, 1], (0.08, 0.9), [1, 0.5], [0, 1], [0.5, 1.5], [0.5])
    assert [option.is_fraction_range(value) for value in ranges] == [True] * 3 + [False] * 4
    assert [option.is_positive(value) for value in (1, 0.1, 0, -1, math.inf, True, "1")] == [True] * 2 + [False] * 5


def test_the_rows_that_the_shots_reach_come_in_order():
    for shots, values in ((0, []), (1, ["one"]), (3, ["one", "two"]), (math.inf, ["one", "two", "eight"])):
        assert values_up_to([[8, "eight"], [1, "one"], [2, "two"]], shots) == values

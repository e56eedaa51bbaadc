"""Packages that Dassl imports and nobody needs: excused in a block, and nowhere else."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from importlib.util import find_spec

import pytest

from trainers.hegraph.utils.absent import absent_packages_excused, require_packages

NOBODY = "hegraph_package_that_nobody_has"


def test_an_absent_package_can_be_imported_inside_the_block_only():
    with absent_packages_excused(NOBODY):
        module = importlib.import_module(NOBODY)
        from_it = module.get_dataset
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(NOBODY)
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{NOBODY}', which this data set of Dassl's needs"):
        from_it("name")


def test_an_absent_package_is_gone_after_an_error_in_the_block():
    with pytest.raises(ZeroDivisionError), absent_packages_excused(NOBODY):
        importlib.import_module(NOBODY)
        _ = 1 / 0
    assert NOBODY not in sys.modules


def test_what_python_itself_asks_a_module_for_is_not_made_up():
    with absent_packages_excused(NOBODY):
        module = importlib.import_module(NOBODY)
        assert not hasattr(module, "__path__")
        assert not hasattr(module, "__wrapped__")


def test_whether_an_absent_package_is_there_can_be_asked():
    with absent_packages_excused(NOBODY):
        assert find_spec(NOBODY).origin is None  # torch 2.13 asks so for pandas, while Dassl imports torchvision
    assert find_spec(NOBODY) is None


def test_a_package_that_is_there_is_the_real_one(monkeypatch, tmp_path):
    (tmp_path / "hegraph_package_of_a_test.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    with absent_packages_excused("hegraph_package_of_a_test", "json"):
        assert importlib.import_module("hegraph_package_of_a_test").answer == 42
        assert importlib.import_module("json").dumps([1]) == "[1]"
    assert "hegraph_package_of_a_test" in sys.modules  # imported for good
    del sys.modules["hegraph_package_of_a_test"]


@pytest.mark.parametrize("before", [logging.NOTSET, logging.DEBUG])
def test_muted_logging_is_as_it_was_before(before):
    logging.disable(before)
    try:
        with absent_packages_excused(NOBODY):
            logging.disable(logging.WARNING)
        assert logging.root.manager.disable == before
    finally:
        logging.disable(logging.NOTSET)


def test_a_missing_package_of_ours_is_one_line_that_names_what_installs_it(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydantic" else found(name))
    with pytest.raises(SystemExit) as ended:
        require_packages("pip install -r needed.txt")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: HeGraphAdapter needs pydantic, not installed here; pip install -r needed.txt\n"
    monkeypatch.undo()
    require_packages("nothing")

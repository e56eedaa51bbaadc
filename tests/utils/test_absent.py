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
        assert find_spec(NOBODY).origin is None  # torch 2.13 asks so for pandas, while Dassl imports torchvision
        assert not hasattr(module, "__path__")  # what Python itself asks for is not made up
    assert find_spec(NOBODY) is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(NOBODY)
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{NOBODY}', which this data set of Dassl's needs"):
        from_it("name")


def test_after_an_error_the_package_is_gone_and_logging_is_as_it_was():
    logging.disable(logging.DEBUG)
    try:
        with pytest.raises(ZeroDivisionError), absent_packages_excused(NOBODY):
            logging.disable(logging.WARNING)
            _ = 1 / 0
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)
    assert NOBODY not in sys.modules


def test_a_package_that_is_there_is_the_real_one(monkeypatch, tmp_path):
    (tmp_path / "hegraph_package_of_a_test.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    with absent_packages_excused("hegraph_package_of_a_test", "json"):
        assert importlib.import_module("hegraph_package_of_a_test").answer == 42
        assert importlib.import_module("json").dumps([1]) == "[1]"
    assert sys.modules.pop("hegraph_package_of_a_test")  # imported for good


def test_a_missing_package_of_ours_is_one_line_that_names_what_installs_it(monkeypatch, capsys):
    require_packages("nothing")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydantic" else found(name))
    with pytest.raises(SystemExit) as ended:
        require_packages("pip install -r needed.txt")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: HeGraphAdapter needs pydantic, not installed here; pip install -r needed.txt\n"

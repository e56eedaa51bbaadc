"""Every method keeps the contract of `baselines/base.py`, and one table knows them all."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from yacs.config import CfgNode

from trainers.hegraph.baselines import METHODS, load_method, method_options
from trainers.hegraph.baselines.__main__ import main
from trainers.hegraph.baselines.base import Method
from trainers.hegraph.utils.commands import PACKAGE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "trainers" / "hegraph" / "baselines"
# Files of the folder that hold no method
SHARED = {
    "__init__",
    "__main__",
    "base",
    "training",
    "cache_search",
    "declared",
}


def methods_in(file: str) -> list[type[Method]]:
    """The methods that a file of the folder defines."""
    module = importlib.import_module(f"trainers.hegraph.baselines.{file}")
    classes = [
        value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    return [cls for cls in classes if issubclass(cls, Method) and not inspect.isabstract(cls)]


def is_plain(value: object) -> bool:
    """Whether YAML, yacs and a record can all hold a value."""
    if isinstance(value, list):
        return all(is_plain(entry) for entry in value)
    return type(value) in (bool, int, float, str)


def test_every_file_of_the_folder_is_registered_or_shared():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted({*METHODS.values(), *SHARED})


@pytest.mark.parametrize("file", sorted(SHARED))
def test_a_shared_file_holds_no_method(file):
    assert methods_in(file) == []


@pytest.mark.parametrize("name", METHODS)
def test_a_file_defines_one_method_which_is_named_as_it_is_registered(name):
    [cls] = methods_in(METHODS[name])
    method = load_method(name)
    assert type(method) is cls
    assert cls.__name__ == method.name == name


@pytest.mark.parametrize("name", METHODS)
def test_fit_takes_and_returns_what_the_contract_says(name):
    contract, fit = (inspect.signature(cls.fit) for cls in (Method, type(load_method(name))))
    assert [(p.name, p.kind, p.default) for p in fit.parameters.values()] == [
        (p.name, p.kind, p.default) for p in contract.parameters.values()
    ]
    assert fit.return_annotation == contract.return_annotation == "FittedMethod"


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_are_plain_values_under_capital_keys(name):
    defaults = load_method(name).defaults
    assert all(key == key.upper() and is_plain(value) for key, value in defaults.items())


def test_a_method_that_forgets_fit_cannot_be_used():
    with pytest.raises(TypeError, match="abstract"):
        type("Forgetful", (Method,), {"defaults": {}})()


@pytest.mark.parametrize("name", [name for name in METHODS if load_method(name).needs_backbone])
def test_a_method_that_needs_the_backbone_says_so_when_there_is_none(name, make_bank):
    method = load_method(name)
    with pytest.raises(ValueError, match=f"{name} .* needs the backbone"):
        method.fit(make_bank().without_test(), CfgNode(dict(method.defaults)), seed=1)


def test_the_options_of_a_method_are_a_copy_and_ours_are_not_among_them():
    name, options = method_options("TipAdapter")
    assert (name, options) == ("TipAdapter", dict(load_method("TipAdapter").defaults))
    options["ALPHA"] = 3.0
    assert load_method("TipAdapter").defaults["ALPHA"] == 1.0
    assert method_options("HeGraphAdapter") is None


def test_the_command_prints_all_names_and_ours_last(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines() == [*METHODS, "HeGraphAdapter"]


def test_the_command_leaves_out_what_no_feature_bank_can_serve(capsys):
    assert main(["--from-bank"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names == [name for name in [*METHODS, "HeGraphAdapter"] if name != "CoOp"]


def test_asking_for_names_stays_quick():
    """The shell scripts ask at the start of each of them."""
    asked = f"import sys; from {PACKAGE}.baselines.__main__ import main"
    for arguments, package in (([], "torch"), (["--from-bank"], "open_clip")):
        code = f"{asked}; main({arguments}); print({package!r} in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.split()[-2:] == ["HeGraphAdapter", "False"]

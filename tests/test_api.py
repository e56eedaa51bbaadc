"""The public API, as a contract: its names, what they are, and that importing the package is cheap."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
import torch

import trainers.hegraph as hegraph

# Name -> what it is. A name is added here when it is added to the package, and none is taken away without notice.
CONTRACT = {
    "Backbone": type,
    "FeatureBank": type,
    "HeGraphClassifier": type,
    "HeGraphModel": type,
    "HeteroGraph": type,
    "LabelIssue": type,
    "ModelOptions": type,
    "UserError": type,
    "build_graph": FunctionType,
    "load_backbone": FunctionType,
    "load_bank": FunctionType,
    "load_cfg": FunctionType,
    "load_dataset": FunctionType,
    "load_few_shot": FunctionType,
    "run": FunctionType,
}


def test_a_name_is_what_the_contract_says_and_its_docstring_and_that_of_the_package_explain_it():
    assert set(hegraph.__all__) == {*CONTRACT, "__version__"}
    assert set(hegraph.__all__) <= set(dir(hegraph))
    assert [part.isdecimal() for part in hegraph.__version__.split(".")] == [True] * 3
    for name, kind in CONTRACT.items():
        value = getattr(hegraph, name)
        assert isinstance(value, kind) and inspect.getdoc(value) and value.__name__ == name, name
        [line] = [line for line in hegraph.__doc__.splitlines() if line.startswith(f"    {name} ")]
        assert len(line.split()) >= 4
    assert issubclass(hegraph.HeGraphModel, torch.nn.Module) and issubclass(hegraph.UserError, ValueError)
    with pytest.raises(AttributeError, match=r"module 'trainers\.hegraph' has no attribute 'load_banks'"):
        _ = hegraph.load_banks


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hegraph.load_cfg("digits", "mini", opts="SEED 1"), r"options, a list \[KEY, VALUE, .*got 'SEED 1'"),
        (lambda: hegraph.load_cfg("digits", "mini", ["SEED", 1]), r"flags, a dict .*got \['SEED', 1\]"),
        (lambda: hegraph.load_cfg(3), "unknown data set configuration '3'"),
        (lambda: hegraph.run({}), "cfg: .*got {}"),
        (lambda: hegraph.load_bank(None), "path: .*got None"),
        (lambda: hegraph.load_dataset(3), "name: .*got 3"),
        (lambda: hegraph.load_dataset("Caltech101", 3), "root: .*got 3"),
        (lambda: hegraph.load_few_shot("Digits", "", shots=1.5, seed=1), "shots: .*got 1.5"),
        (lambda: hegraph.load_few_shot("Digits", "", shots=1, seed="x"), "seed: .*got 'x'"),
        (lambda: hegraph.load_backbone(3), "name: .*got 3"),
        (lambda: hegraph.load_backbone("hegraph-mini", device="abacus"), "device must be .*got 'abacus'"),
        (lambda: hegraph.load_backbone("hegraph-mini").encode_images([1]), r"images: .*got \[1\]"),
        (lambda: hegraph.build_graph(*torch.full((3, 2, 4), torch.nan)), "must be finite"),
    ],
)
def test_an_argument_of_another_type_is_an_error_that_names_it(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_package_itself_imports_nothing_and_configurations_and_errors_need_no_torch():
    program = (
        "import sys, trainers.hegraph as h; h.__version__, dir(h)\n"
        "print(*sorted(n for n in sys.modules if n.startswith(('trainers', 'torch', 'numpy', 'yacs'))))\n"
        "from trainers.hegraph import UserError, load_cfg\n"
        "print(load_cfg('digits', 'mini').data.name, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["trainers trainers.hegraph", "Digits False"]

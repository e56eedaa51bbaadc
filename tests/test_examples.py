"""Examples in the docstrings of public names run, and their results are as shown."""

import doctest
import inspect
import sys

import pytest

import trainers.hegraph as hegraph

PUBLIC = [name for name in hegraph.__all__ if name != "__version__"]
FINDER = doctest.DocTestFinder(exclude_empty=True)


@pytest.mark.parametrize("name", PUBLIC)
def test_example_gives_what_it_shows(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hegraph", hegraph)  # its name once installed
    documented = getattr(hegraph, name)
    # Of a class, also the examples of its methods
    examples = [found for found in FINDER.find(documented, name, inspect.getmodule(documented)) if found.examples]
    assert name in [found.name for found in examples]
    for found in examples:
        found.globs = {}
        assert doctest.DocTestRunner().run(found).failed == 0, capsys.readouterr().out

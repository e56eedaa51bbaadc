"""Examples in the docstrings of public names run, and their results are as shown."""

import doctest
import inspect
import sys

import pytest

import trainers.hegraph as hegraph

PUBLIC = [name for name in hegraph.__all__ if name != "__version__"]
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples_of(name: str) -> list[doctest.DocTest]:
    """Examples of a public name and, if it is a class, of its methods."""
    documented = getattr(hegraph, name)
    return [found for found in FINDER.find(documented, name, inspect.getmodule(documented)) if found.examples]


@pytest.mark.parametrize("name", PUBLIC)
def test_example_gives_what_it_shows(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hegraph", hegraph)  # its name once installed
    examples = examples_of(name)
    assert name in [found.name for found in examples]
    for found in examples:
        found.globs = {}
        assert doctest.DocTestRunner().run(found).failed == 0, capsys.readouterr().out

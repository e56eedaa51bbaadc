"""The mutation run: every source that is mutated has tests, and the sample leaves out what no test can notice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools.mutation.tests_of_change import TESTS, belonging_tests

if sys.version_info >= (3, 11):
    import tomllib

pytest.importorskip("cosmic_ray", reason="cosmic-ray is not installed: pip install -e '.[mutation]'")
from tools.mutation.sample import has_behaviour

ROOT = Path(__file__).parents[1]
SOURCE = '''"""Words."""
RATES: Defaults = {"LR": 1e-3}
WIDTH = 4


def double(x: int | None = 3) -> int | None:
    logger.info("twice %d", 2 + 2)
    if x > 1:
        raise ValueError(f"got {1 + 1}")
    y: int | None = 5
    return 2 * x
'''


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is younger than this Python")
def test_every_source_that_is_mutated_has_tests_of_its_own():
    config = tomllib.loads((ROOT / "tools" / "mutation" / "cosmic_ray.toml").read_text())["cosmic-ray"]
    assert [path.rstrip("/") for path in TESTS] == config["module-path"]
    assert all((ROOT / path).exists() for path in config["module-path"])
    assert all((ROOT / test.partition("::")[0]).is_file() for tests in TESTS.values() for test in tests)


def test_the_tests_of_a_change_are_those_of_its_file_and_without_a_change_all():
    path = "trainers/hegraph/training/choice.py"
    assert belonging_tests([path]) == TESTS[path]
    assert belonging_tests(["trainers/hegraph/baselines/ape.py"]) == TESTS["trainers/hegraph/baselines/"]
    assert set(belonging_tests([])) == {test for tests in TESTS.values() for test in tests}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("1e-3", False),  # in a table of options
        ("4", True),
        ("| None = 3", False),  # an annotation
        ("3) ->", True),
        ("| None:", False),
        ("+ 2)", False),  # a log line
        ("> 1", True),
        ("+ 1}", False),  # the words of an error
        ("5", True),
        ("* x", True),
    ],
)
def test_a_mutant_of_words_annotations_and_tables_is_left_out(words, expected):
    [(number, line)] = [(number, line) for number, line in enumerate(SOURCE.splitlines(), start=1) if words in line]
    assert has_behaviour((number, line.index(words)), SOURCE) == expected

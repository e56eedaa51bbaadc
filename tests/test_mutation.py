"""The mutation run: every source that is mutated has tests, and the sample leaves out what no test can notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.mutation.tests_of_change import belonging_tests

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


def test_the_tests_of_a_change_are_those_of_its_room_and_every_source_has_some():
    sources = [path.relative_to(ROOT).as_posix() for path in (ROOT / "trainers" / "hegraph").rglob("*.py")]
    assert sources and all(belonging_tests([source]) for source in sources)
    assert belonging_tests(["trainers/hegraph/training/choice.py"]) == ["tests/training"]
    assert belonging_tests(["trainers/hegraph/config.py", "README.md"]) == ["tests/test_config.py"]
    assert belonging_tests([]) == []


def test_a_mutant_of_words_annotations_and_tables_is_left_out():
    table, annotations, log, words = ("1e-3",), ("| None = 3", "| None:"), ("+ 2)",), ("+ 1}",)
    for place in (*table, *annotations, *log, *words, "4", "3) ->", "> 1", "5", "* x"):
        [(number, line)] = [(n, line) for n, line in enumerate(SOURCE.splitlines(), start=1) if place in line]
        left_out = place in table + annotations + log + words
        assert has_behaviour((number, line.index(place)), SOURCE) != left_out, place

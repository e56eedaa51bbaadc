"""README.md and the pages of docs/ show what the committed records say; `tools/tables.py` makes their tables."""

from __future__ import annotations

import re

import pytest

from tools.tables import BLOCK, MADE_BY, PAGES, made

README = PAGES[0]
BLOCKS = [(page, *found) for page in PAGES for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def test_every_table_is_shown_somewhere_and_once():
    assert sorted(name for _, name, _, _ in BLOCKS) == sorted(MADE_BY)


def test_no_marker_stands_alone():
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    opening, closing = re.findall(r"<!-- (\w+): ", texts), re.findall(r"<!-- /(\w+) -->", texts)
    assert opening == closing
    assert [name for name in opening if name in MADE_BY] == [name for _, name, _, _ in BLOCKS]


@pytest.mark.parametrize(("page", "name", "files", "text"), BLOCKS, ids=[f"{p.stem}-{n}" for p, n, _, _ in BLOCKS])
def test_a_table_is_made_from_the_records(page, name, files, text):
    assert text == made(name, files), "run python -m tools.tables"


def test_the_python_of_the_readme_says_what_the_table_above_it_shows():
    text = README.read_text(encoding="utf-8")
    [(zero_shot, adapted)] = re.findall(r"# (\S+) (\S+), as in the table above", text)
    for name, number in (("zero-shot", zero_shot), ("HeGraphAdapter", adapted)):
        [row] = re.findall(rf"^  {name}  .*$", text, re.MULTILINE)
        assert row.split()[3] == number  # of seed 1, behind name, mean and deviation

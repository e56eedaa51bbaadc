"""README.md and the pages of docs/ show what the committed records say.

A table that is made from records stands between `<!-- name: files -->` and `<!-- /name -->`; `MADE_BY` says how.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from trainers.hegraph.results.cases import read_cases
from trainers.hegraph.results.comparison import compare
from trainers.hegraph.results.records import find_records
from trainers.hegraph.results.render import as_text, markdown

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"<!-- (\w+): ([^>]*?) -->\n(.*?)<!-- /\1 -->", re.DOTALL)


def first_screen(files: list[Path]) -> str:
    """What the first command of README prints at its end."""
    runs = [r for r in find_records(files) if r["variant"] == "full" and r["shots"] == 16]
    return f"```text\n{as_text(compare(runs))}```\n"


def rows_of(printed: str) -> str:
    """A printed table without the caption above it."""
    return printed[printed.index("| ") :]


def means_by_shots(files: list[Path]) -> str:
    """What `compare --no-interval` prints."""
    return rows_of(markdown(compare(find_records(files), intervals=False)))


def summary(files: list[Path]) -> str:
    """Of the means by shots, those over the data sets, a row a method: some data sets lack the larger shots."""
    table = means_by_shots(files).splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert head[:2] == ["data set", "method"]
    merged: dict[str, list[str]] = {}
    for where, name, *cells in rows:
        if where.startswith("mean of "):
            so_far = merged.setdefault(name, [""] * len(cells))
            merged[name] = [new or old for new, old in zip(cells, so_far)]
    lines = [head[1:], ["---", *["---:"] * (len(head) - 2)], *([name, *cells] for name, cells in merged.items())]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def graph_cases(files: list[Path]) -> str:
    """What `compare --cases configs/sweeps/graph.yaml --no-interval` prints: the parts of the text classifier."""
    cases = read_cases(ROOT / "configs" / "sweeps" / "graph.yaml")
    return rows_of(markdown(compare(find_records(files), intervals=False, cases=cases)))


MADE_BY: dict[str, Callable[[list[Path]], str]] = {
    "digits": first_screen,
    "summary": summary,
    "real": means_by_shots,
    "stand": means_by_shots,
    "scans": means_by_shots,
    "graph": graph_cases,
    "paper": means_by_shots,
}
BLOCKS = [(page, *found) for page in PAGES for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def test_every_table_is_shown_somewhere_and_once():
    assert sorted(name for _, name, _, _ in BLOCKS) == sorted(MADE_BY)


def test_no_marker_stands_alone():
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    opening, closing = re.findall(r"<!-- (\w+): ", texts), re.findall(r"<!-- /(\w+) -->", texts)
    assert opening == closing == [name for _, name, _, _ in BLOCKS]


@pytest.mark.parametrize(("page", "name", "files", "text"), BLOCKS, ids=[f"{p.stem}-{n}" for p, n, _, _ in BLOCKS])
def test_a_table_is_made_from_the_records(page, name, files, text):
    assert text == MADE_BY[name]([ROOT / file for file in files.split()])

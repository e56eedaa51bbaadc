"""README.md and the pages of docs/ show what the committed records say.

A table that is made from records stands between `<!-- name: files -->` and `<!-- /name -->`; `MADE_BY` says how.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

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
    """Of the means by shots, the rows of the digits and of the mean of the banks."""
    head, rule, *rows = means_by_shots(files).splitlines()
    kept = [row for row in rows if row.startswith(("| Digits |", "| mean of "))]
    return "".join(f"{line}\n" for line in (head, rule, *kept))


def side_by_side(files: list[Path]) -> str:
    """All methods at 1, 4 and 16 shots, of HeGraphAdapter the full variant."""
    runs = [r for r in find_records(files) if r["variant"] in ("", "full") and r["shots"] in (1, 4, 16)]
    assert len(runs) == 12 * 4 * 9 + 13 * 9  # one method needs images, and the banks have none
    return markdown(compare(runs))


MADE_BY: dict[str, Callable[[list[Path]], str]] = {
    "digits": first_screen,
    "summary": summary,
    "means": means_by_shots,
    "paper": means_by_shots,
    "methods": side_by_side,
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

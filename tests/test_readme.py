"""README.md shows what the committed records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainers.hegraph.results.comparison import compare
from trainers.hegraph.results.records import find_records
from trainers.hegraph.results.render import as_text, markdown
from trainers.hegraph.results.table import average

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "results" / "README.md").read_text(encoding="utf-8")


def block(name: str, text: str = README) -> tuple[str, list[Path]]:
    """The text between `<!-- name: files -->` and `<!-- /name -->`, and those files."""
    found = re.search(rf"<!-- {name}: (.*?) -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found, f"there is no block {name}"
    return found[2], [ROOT / file for file in found[1].split()]


@pytest.mark.parametrize("name", ["grid", "paper"])
def test_a_grid_in_the_readme_is_made_from_the_records(name):
    text, files = block(name)
    assert text.splitlines() == means_by_shots(files)


def means_by_shots(files: list[Path]) -> list[str]:
    """The lines of the means of every data set and, below them, of all data sets, whatever their backbones."""
    table = compare(find_records(files), intervals=False)
    own = [row for row in table.rows if not row.labels[0].startswith("mean of ")]
    names = list(dict.fromkeys(row.labels[-1] for row in own))
    shown = [(row.labels[0], row.labels[-1], row.cells) for row in own]
    for name in names:
        cells = [row.cells for row in own if row.labels[-1] == name]
        shown.append((f"mean of {len(cells)}", name, [average(column) for column in zip(*cells)]))
    lines = [("data set", "method", *table.columns)]
    lines += [(*labels, *(table.number(cell, i) for i, cell in enumerate(cells))) for *labels, cells in shown]
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return [rows[0], "|---" * len(lines[0]) + "|", *rows[1:]]


def test_the_first_screen_shows_the_table_of_the_recorded_digits_runs():
    text, files = block("digits")
    runs = [r for r in find_records(files) if r["variant"] == "full" and r["shots"] == 16]
    assert text == f"```text\n{as_text(compare(runs))}```\n"


def side_by_side(files: list[Path]) -> list[str]:
    """The lines of all methods at 1, 4 and 16 shots, of HeGraphAdapter the full variant."""
    runs = [r for r in find_records(files) if r["variant"] in ("", "full") and r["shots"] in (1, 4, 16)]
    assert len(runs) == 12 * 4 * 9 + 13 * 9  # one method needs images, and the banks have none
    return markdown(compare(runs)).splitlines()


def test_the_comparison_with_other_methods_is_made_from_the_records():
    text, files = block("methods", RESULTS)
    assert text.splitlines() == side_by_side(files)


def test_the_readme_shows_its_rows_of_the_digits_and_of_the_mean():
    text, files = block("methods")
    lines = side_by_side(files)
    [header] = [i for i, line in enumerate(lines) if line.startswith("| data set |")]
    rows = [line for line in lines if line.startswith(("| Digits |", "| mean of 4 |"))]
    assert text.splitlines() == lines[header : header + 2] + rows


def test_every_file_the_readme_names_exists():
    named = set(re.findall(r"`((?:trainers|configs|scripts|results|tests)/[\w./]*\w)`", README))
    named |= set(re.findall(r"bash (scripts/\S+\.sh)", README))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert len(named) >= 5
    assert not missing

"""README.md shows what the committed records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainers.hegraph.results import compare, find_records, grid, table
from trainers.hegraph.results.render import markdown

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
    assert text == grid(find_records(files))


def test_the_first_screen_shows_the_table_of_the_recorded_digits_runs():
    text, files = block("digits")
    runs = [r for r in find_records(files) if r["variant"] == "full" and r["shots"] == 16]
    assert text == f"```text\n{table(runs).rstrip()}\n```\n"


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

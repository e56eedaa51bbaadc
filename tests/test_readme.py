"""README.md shows what the committed records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainers.hegraph.results import find_records, grid, table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> tuple[str, list[Path]]:
    """The text between `<!-- name: files -->` and `<!-- /name -->`, and those files."""
    found = re.search(rf"<!-- {name}: (.*?) -->\n(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert found, f"README.md has no block {name}"
    return found[2], [ROOT / file for file in found[1].split()]


@pytest.mark.parametrize("name", ["grid", "paper"])
def test_a_grid_in_the_readme_is_made_from_the_records(name):
    text, files = block(name)
    assert text == grid(find_records(files))


def test_the_first_screen_shows_the_table_of_the_recorded_digits_runs():
    text, files = block("digits")
    runs = [r for r in find_records(files) if r["variant"] == "full" and r["shots"] == 16]
    assert text == f"```text\n{table(runs).rstrip()}\n```\n"


def test_every_file_the_readme_names_exists():
    named = set(re.findall(r"`((?:trainers|configs|scripts|results|tests)/[\w./]*\w)`", README))
    named |= set(re.findall(r"bash (scripts/\S+\.sh)", README))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert len(named) >= 5
    assert not missing

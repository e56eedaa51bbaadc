"""docs/extend.md, followed to the letter in a copy of the checkout: its blocks go where it says, its commands run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")

LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "output", "data", "build", "dist")
WRITTEN = "docs/configuration.md"  # by `tools.options_page`
OUTPUT = ("output/", "data/", WRITTEN)  # where the commands of the page write
FENCE = re.compile(r"(?:^`([^`]+)` \((new|add below [^\n]+)\):\n\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Edit(NamedTuple):
    """A block that goes to a file: below the only line that has `below` in it, or "" if the file is new."""

    path: str
    below: str
    text: str


class Recipe(NamedTuple):
    """A section of the page."""

    title: str
    num_files: int
    edits: list[Edit]
    commands: list[str]


def read_recipes(page: str) -> list[Recipe]:
    recipes = []
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        edits, commands = [], []
        for path, how, language, text in FENCE.findall(section):
            if path:
                edits.append(Edit(path, "" if how == "new" else re.search("`(.*)`", how)[1], text))
            elif language == "bash" and not text.startswith("# needs "):
                commands.append(text)
        num_files = int(re.search(r"\*\*Files: (\d)", section)[1])
        recipes.append(Recipe(section.splitlines()[0], num_files, edits, commands))
    return recipes


RECIPES = read_recipes(PAGE)


def put(edit: Edit, checkout: Path) -> None:
    """Does what the page says with a block."""
    file = checkout / edit.path
    if not edit.below:
        assert not file.exists(), f"{edit.path} is not new"
        file.write_text(edit.text, encoding="utf-8")
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if edit.below in line]
    assert len(places) == 1, f"{edit.path} has {len(places)} lines with {edit.below!r}"
    lines.insert(places[0] + 1, edit.text)
    file.write_text("".join(lines), encoding="utf-8")


def contents(checkout: Path) -> dict[str, bytes]:
    files = (path for path in checkout.rglob("*") if path.is_file())
    named = {path.relative_to(checkout).as_posix(): path for path in files}
    passing = re.compile(r"(^|/)(__pycache__|\.\w+_cache)/")
    return {name: path.read_bytes() for name, path in named.items() if not passing.search(name)}


def record_below(folder: Path) -> dict:
    [path] = folder.rglob("result.json")
    return json.loads(path.read_text(encoding="utf-8"))


def check_data_set(checkout: Path, printed: str) -> None:
    assert "DigitScans, hegraph-mini" in printed
    [state] = [line for line in printed.splitlines() if line.startswith("DigitScans ")]
    assert state.split()[1] == "ready"
    record = record_below(checkout / "output" / "digit_scans")
    assert (record["dataset"], record["num_train"]) == ("DigitScans", 10)
    assert record["accuracy"] > 50  # of ten classes


def check_method(checkout: Path, printed: str) -> None:
    rows = [line for line in printed.splitlines() if "| NearestMean |" in line]
    assert len(rows) == 1
    by_default = record_below(checkout / "output" / "digits" / "NearestMean")
    with_option = record_below(checkout / "output" / "nearest_mean")
    assert with_option["config"]["TRAINER.NEARESTMEAN.ALPHA"] == 0.25
    assert by_default["accuracy"] != with_option["accuracy"]
    assert min(by_default["accuracy"], with_option["accuracy"]) > 50


def check_relation(checkout: Path, printed: str) -> None:
    [adapter] = (checkout / "output").rglob("adapter.safetensors")
    with safe_open(adapter, "pt") as file:
        assert [name for name in file.keys() if "negative_to_negative" in name]  # noqa: SIM118  # it is no dict
    record = record_below(checkout / "output" / "digits")
    assert record["config"]["TRAINER.HEGRAPHADAPTER.BETA_NN"] == 0.1
    assert record["accuracy"] > record["accuracy_zero_shot"]


def check_backbone(checkout: Path, printed: str) -> None:
    record = record_below(checkout / "output" / "digits" / "HeGraphAdapter" / "my_clip_1shots")
    assert record["backbone"] == "hegraph-mini/hegraph-mini"
    assert record["accuracy"] > 50


def check_option(checkout: Path, printed: str) -> None:
    record = record_below(checkout / "output" / "digits")
    assert record["config"]["TRAINER.HEGRAPHADAPTER.METAPATH_SCALE"] == 0.5
    assert "| `METAPATH_SCALE` | `1.0` | from 0 |" in (checkout / WRITTEN).read_text(encoding="utf-8")


CHECKS: dict[str, Callable[[Path, str], None]] = {
    "A data set": check_data_set,
    "A method": check_method,
    "A relation": check_relation,
    "An option": check_option,
    "A backbone": check_backbone,
}


def test_every_section_of_the_page_is_followed_and_checked():
    assert [recipe.title for recipe in RECIPES] == list(CHECKS)
    assert all(recipe.edits and recipe.commands for recipe in RECIPES)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.title)
def test_what_the_page_says_is_all_that_it_takes(recipe, tmp_path):
    checkout = Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=LEFT_OUT))
    before = contents(checkout)
    for edit in recipe.edits:
        put(edit, checkout)
    assert len({edit.path for edit in recipe.edits}) == recipe.num_files

    printed = run(recipe.commands, checkout)
    CHECKS[recipe.title](checkout, printed)

    after = contents(checkout)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert {name for name in changed if not name.startswith(OUTPUT)} == {edit.path for edit in recipe.edits}


def run(commands: list[str], checkout: Path) -> str:
    """Runs blocks of commands in a checkout; returns what they print."""
    programs = checkout.parent / "bin"
    programs.mkdir()
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if k not in ("DATA", "OUTPUT", "SEEDS", "METHODS", "PYTHONPATH")}
    environment = {**kept, "PATH": f"{programs}{os.pathsep}{kept['PATH']}", "PYTHON": sys.executable}
    lines = "set -e\n" + "".join(commands)
    ran = subprocess.run(
        ["bash", "-c", lines], cwd=checkout, env=environment, capture_output=True, text=True, timeout=400
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout

"""docs/extend.md, followed to the letter in a copy of the checkout: its blocks go where it says, its commands run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors import safe_open
from test_docs import EXTEND, ROOT, put_python, started, text_of

pytestmark = pytest.mark.slow
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "output", "data", "build", "dist")
WRITTEN = "docs/configuration.md"  # by `tools.options_page`
OUTPUT = ("output/", "data/", WRITTEN)  # where the commands of the page write
BLOCK = re.compile(r"(?:^`([^`]+)` \((new|add below [^\n]+)\):\n\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SECTIONS = re.split(r"^## ", text_of(EXTEND), flags=re.MULTILINE)[1:]


class Edit(NamedTuple):
    """A block that goes to a file: below the only line that has `below` in it, or "" if the file is new."""

    path: str
    below: str
    text: str

    def put(self, checkout: Path) -> None:
        """Does what the page says with the block."""
        file = checkout / self.path
        if not self.below:
            assert not file.exists(), f"{self.path} is not new"
            file.write_text(self.text, encoding="utf-8")
            return
        lines = text_of(file).splitlines(keepends=True)
        [place] = [number for number, line in enumerate(lines) if self.below in line]
        lines.insert(place + 1, self.text)
        file.write_text("".join(lines), encoding="utf-8")


def contents(checkout: Path) -> dict[str, bytes]:
    files = {path.relative_to(checkout).as_posix(): path for path in checkout.rglob("*") if path.is_file()}
    passing = re.compile(r"(^|/)(__pycache__|\.\w+_cache)/")
    return {name: path.read_bytes() for name, path in files.items() if not passing.search(name)}


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
    [_] = [line for line in printed.splitlines() if "| NearestMean |" in line]
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
    assert "| `METAPATH_SCALE` | `1.0` | from 0 |" in text_of(checkout / WRITTEN)


CHECKS = {
    "A data set": check_data_set,
    "A method": check_method,
    "A relation": check_relation,
    "An option": check_option,
    "A backbone": check_backbone,
}


def test_every_section_of_the_page_is_followed_and_checked():
    assert [section.splitlines()[0] for section in SECTIONS] == list(CHECKS)


@pytest.mark.parametrize("section", SECTIONS, ids=list(CHECKS))
def test_what_the_page_says_is_all_that_it_takes(section, tmp_path):
    edits, commands = [], []
    for path, how, language, text in BLOCK.findall(section):
        if path:
            edits.append(Edit(path, "" if how == "new" else re.search("`(.*)`", how)[1], text))
        elif language == "bash" and not text.startswith("# needs "):
            commands.append(text)
    assert edits and commands
    files = {edit.path for edit in edits}
    assert len(files) == int(re.search(r"\*\*Files: (\d)", section)[1])

    checkout = put_python(Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=LEFT_OUT)))
    before = contents(checkout)
    for edit in edits:
        edit.put(checkout)
    printed = started(["bash", "-c", "set -e\n" + "".join(commands)], checkout)
    CHECKS[section.splitlines()[0]](checkout, printed)
    after = contents(checkout)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert {name for name in changed if not name.startswith(OUTPUT)} == files

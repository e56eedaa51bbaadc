"""Fills the tables of README.md and of docs/ from the committed records, and draws README's plot.

A table that is made from records stands between `<!-- name: files -->` and `<!-- /name -->`; `MADE_BY` says how. After
a change of `results/*.jsonl`, run `python -m tools.tables`; `tests/test_docs.py` fails where it was forgotten.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from tools import labels_study
from tools.unlabelled_study import table as study_table
from trainers.hegraph.results.comparison import base_to_new, compare, read_cases
from trainers.hegraph.results.figures import render
from trainers.hegraph.results.records import find_records
from trainers.hegraph.results.scores import OUR_METHOD, method
from trainers.hegraph.results.table import as_text, markdown
from trainers.hegraph.utils.files import atomic_path

from .readme_plot import summary_curve

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def first_screen(files: list[Path]) -> str:
    """What the first command of README prints at its end."""
    runs = [r for r in find_records(files) if method(r) == OUR_METHOD and r["shots"] == 16]
    return f"```text\n{as_text(compare(runs))}```\n"


def rows_of(printed: str) -> str:
    """A printed table without the caption above it."""
    return printed[printed.index("| ") :]


def means_by_shots(files: list[Path]) -> str:
    """What `compare --no-interval` prints."""
    return rows_of(markdown(compare(find_records(files), intervals=False)))


# README is short: these are far behind or have a better method of the same paper beside them. docs/results.md has all
NOT_IN_README = ("LinearProbe", "CLIPAdapter", "TipAdapter", "GDA", "TIMO", "APE")


def summary(files: list[Path]) -> str:
    """Of the means by shots, those over the data sets, a row a method: some data sets lack the larger shots."""
    table = means_by_shots(files).splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert head[:2] == ["data set", "method"]
    merged: dict[str, list[str]] = {}
    for where, name, *cells in rows:
        if where.startswith("mean of ") and name not in NOT_IN_README:
            so_far = merged.setdefault(name, [""] * len(cells))
            merged[name] = [new or old for new, old in zip(cells, so_far)]
    lines = [head[1:], ["---", *["---:"] * (len(head) - 2)], *([name, *cells] for name, cells in merged.items())]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def graph_cases(files: list[Path]) -> str:
    """What `compare --cases configs/sweeps/graph.yaml --no-interval` prints: the parts of the text classifier."""
    cases = read_cases(ROOT / "configs" / "sweeps" / "graph.yaml")
    return rows_of(markdown(compare(find_records(files), intervals=False, cases=cases)))


def new_classes(files: list[Path]) -> str:
    """What `base-to-new` prints, with the means over the data sets alone."""
    head, line, *rows = rows_of(markdown(base_to_new(find_records(files)))).splitlines()
    return "".join(f"{row}\n" for row in (head, line, *(row for row in rows if "| mean of " in row)))


def protocols(files: list[Path]) -> str:
    """HeGraphAdapter by each protocol, and the transductive methods beside it."""
    records = [record for record in find_records(files) if record.get("protocol") or method(record) == OUR_METHOD]
    return rows_of(markdown(compare(records, intervals=False)))


def conditions(files: list[Path]) -> str:
    """What `python -m tools.unlabelled_study` prints."""
    return study_table(pd.read_json(files[0], lines=True))


def of_labels(table: Callable[[pd.DataFrame], str]) -> Callable[[list[Path]], str]:
    """A table that `python -m tools.labels_study` prints."""
    return lambda files: table(pd.read_json(files[0], lines=True))


MADE_BY: dict[str, Callable[[list[Path]], str]] = {
    "digits": first_screen,
    "summary": summary,
    "real": means_by_shots,
    "surrogate": means_by_shots,
    "scans": means_by_shots,
    "graph": graph_cases,
    "graph_surrogate": graph_cases,
    "base_to_new": new_classes,
    "adapted_real": protocols,
    "adapted_surrogate": protocols,
    "conditions": conditions,
    "suggested": of_labels(labels_study.suggest_table),
    "wrong_labels": of_labels(labels_study.wrong_table),
    "thresholds": of_labels(labels_study.threshold_table),
}


HIGHLIGHTED = (
    "HeGraphAdapter",
    "HeGraphAdapter(paper)",
    "HeGraphAdapter(training-free)",
    "APET",
    "TaskRes",
    "TipAdapterF",
)

# Other markers in the pages, such as those of the options, are not of records
BLOCK = re.compile(rf"<!-- ({'|'.join(MADE_BY)}): ([^>]*?) -->\n(.*?)<!-- /\1 -->", re.DOTALL)


def made(name: str, files: str) -> str:
    """The text of a table, from its name and the files that its marker names."""
    return MADE_BY[name]([ROOT / file for file in files.split()])


def draw() -> None:
    """Draws README's plot, accuracy by shots on the banks with real text, for light pages and dark ones."""
    records = find_records([ROOT / "results" / "real_text.jsonl"])
    for name, dark in (("light", False), ("dark", True)):
        with atomic_path(ROOT / "docs" / f"accuracy_{name}.svg") as temporary:
            temporary.write_bytes(render(summary_curve(records, HIGHLIGHTED, dark), "svg"))


def main() -> int:
    """Writes every table anew, and says which pages have changed."""
    draw()
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = BLOCK.sub(lambda b: f"<!-- {b[1]}: {b[2]} -->\n{made(b[1], b[2])}<!-- /{b[1]} -->", old)
        if new != old:
            with atomic_path(page) as temporary:
                temporary.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Update the tables and plots of README.md and docs/ from the committed records.

    python -m tools.tables

Run it after a change of `results/*.jsonl`; `tests/test_docs.py` compares the pages with the records. A table is the
text between `<!-- name: files -->` and `<!-- /name -->`, and `MAKERS` has the function of each name.
"""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from tools import labels_study
from tools.unlabelled_study import table as study_table
from trainers.hegraph.results.comparison import base_to_new, compare, read_cases
from trainers.hegraph.results.figures import render
from trainers.hegraph.results.records import find_records
from trainers.hegraph.results.scores import OUR_METHOD, method
from trainers.hegraph.results.table import as_text, markdown, markdown_table
from trainers.hegraph.utils.files import atomic_path

from .readme_plot import data_set_curves, summary_curve

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def first_screen(files: list[Path]) -> str:
    """Last lines that the first command of README.md prints."""
    runs = [r for r in find_records(files) if method(r) == OUR_METHOD and r["shots"] == 16]
    return f"```text\n{as_text(compare(runs))}```\n"


def rows_of(printed: str) -> str:
    """Remove the caption of a printed table."""
    return printed[printed.index("| ") :]


def means_by_shots(files: list[Path]) -> str:
    """Table of `results compare --no-interval`."""
    return rows_of(markdown(compare(find_records(files), intervals=False)))


# Methods with low accuracy, or with a better method of the same paper; docs/results/accuracy.md has all methods
NOT_IN_README = ("LinearProbe", "CLIPAdapter", "TipAdapter", "GDA", "TIMO", "APE", "ProtoCLIP", "LPPlusPlus", "TIMOS")


def mean_rows(files: list[Path], left_out: tuple[str, ...] = (), cases: dict[str, list] | None = None) -> str:
    """Means over data sets by shots, with one row per method, although some data sets lack the larger shots."""
    table = rows_of(markdown(compare(find_records(files), intervals=False, cases=cases))).splitlines()
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert heads[:2] == ["data set", "method"]
    merged: dict[str, list[str]] = {}
    for dataset, name, *cells in rows:
        if dataset.startswith("mean of ") and name not in left_out:
            previous = merged.setdefault(name, [""] * len(cells))
            merged[name] = [new or old for new, old in zip(cells, previous)]
    return markdown_table(heads[1:], [[name, *cells] for name, cells in merged.items()])


def graph_cases(files: list[Path]) -> str:
    """Means of `results compare --cases configs/sweeps/graph.yaml --no-interval`, the parts of the text classifier."""
    return mean_rows(files, cases=read_cases(ROOT / "configs" / "sweeps" / "graph.yaml"))


def new_classes(files: list[Path]) -> str:
    """Table of `results base-to-new`: means over data sets at 1, 4 and 16 shots."""
    head, line, *rows = rows_of(markdown(base_to_new(find_records(files)))).splitlines()
    shown = [row for row in rows if re.match(r"\| mean of \d+ \| (1|4|16) \|", row)]
    return "".join(f"{row}\n" for row in (head, line, *shown))


def protocols(files: list[Path]) -> str:
    """Table of HeGraphAdapter with each protocol, and of transductive methods."""
    records = [record for record in find_records(files) if record.get("protocol") or method(record) == OUR_METHOD]
    return rows_of(markdown(compare(records, intervals=False)))


def conditions(files: list[Path]) -> str:
    """Table of `python -m tools.unlabelled_study`."""
    return study_table(pd.read_json(files[0], lines=True))


def labels_table(table: Callable[[pd.DataFrame], str]) -> Callable[[list[Path]], str]:
    """Function that makes a table of `python -m tools.labels_study` from a file."""
    return lambda files: table(pd.read_json(files[0], lines=True))


MAKERS: dict[str, Callable[[list[Path]], str]] = {
    "digits": first_screen,
    "summary": partial(mean_rows, left_out=NOT_IN_README),
    "real": mean_rows,
    "scans": means_by_shots,
    "graph": graph_cases,
    "base_to_new": new_classes,
    "adapted_real": protocols,
    "adapted_surrogate": protocols,
    "conditions": conditions,
    "suggested": labels_table(labels_study.suggest_table),
    "wrong_labels": labels_table(labels_study.wrong_table),
    "thresholds": labels_table(labels_study.threshold_table),
}


HIGHLIGHTED = (
    "HeGraphAdapter",
    "HeGraphAdapter(paper)",
    "HeGraphAdapter(training-free)",
    "APET",
    "TaskRes",
    "TipAdapterF",
)

# Other markers, such as those of tools/options_page.py, are not matched
BLOCK = re.compile(rf"<!-- ({'|'.join(MAKERS)}): ([^>]*?) -->\n(.*?)<!-- /\1 -->", re.DOTALL)


def made(name: str, files: str) -> str:
    """Make a table from its name and the files in its marker."""
    return MAKERS[name]([ROOT / file for file in files.split()])


def draw() -> None:
    """Draw accuracy by shots: the means with real text, for light and dark pages, and each data set."""
    real, surrogate = (find_records([ROOT / "results" / f"{name}_text.jsonl"]) for name in ("real", "surrogate"))
    plots = {
        "accuracy_light": summary_curve(real, HIGHLIGHTED),
        "accuracy_dark": summary_curve(real, HIGHLIGHTED, dark=True),
        "accuracy_banks": data_set_curves([*real, *surrogate], HIGHLIGHTED),
    }
    for name, figure in plots.items():
        with atomic_path(ROOT / "docs" / "images" / f"{name}.svg") as temporary:
            temporary.write_bytes(render(figure, "svg"))


def main() -> int:
    """Update all tables, and print the pages that have changed."""
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
    raise SystemExit(main())

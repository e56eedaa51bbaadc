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

from tools import held_out_study, intervals, labels_study, names_study
from tools.unlabelled_study import table as study_table
from trainers.hegraph.baselines import TRANSDUCTIVE_METHODS
from trainers.hegraph.results.comparison import base_to_new, compare
from trainers.hegraph.results.figures import render
from trainers.hegraph.results.records import find_records
from trainers.hegraph.results.scores import OUR_METHOD, method
from trainers.hegraph.results.settings import read_cases
from trainers.hegraph.results.table import as_text, markdown, markdown_table
from trainers.hegraph.utils.files import atomic_path

from .readme_plot import data_set_curves, summary_curve

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


CALIBRATED = ("TaskRes", "TipAdapterF", "APET", "HeGraphAdapter(training-free)", "HeGraphAdapter")
CALIBRATED_SHOTS = (1, 4, 16)


def printed_table(files: list[Path]) -> str:
    """Table that the first command of README.md prints last."""
    runs = [r for r in find_records(files) if method(r) == OUR_METHOD and r["shots"] == 16]
    return f"```text\n{as_text(compare(runs))}```\n"


def rows_of(printed: str) -> str:
    """Remove the caption of a printed table."""
    return printed[printed.index("| ") :]


def means_by_shots(files: list[Path], is_shown: Callable[[str], bool] = lambda name: True) -> str:
    """Table of `results compare --no-interval` for the methods whose name `is_shown` accepts."""
    records = [record for record in find_records(files) if is_shown(method(record))]
    return rows_of(markdown(compare(records, intervals=False)))


def digits_rows(files: list[Path]) -> str:
    """Table of `means_by_shots` with zero-shot CLIP, the closest methods and HeGraphAdapter."""
    return means_by_shots(files, lambda name: name in CLOSE_ON_DIGITS or name.startswith(OUR_METHOD))


# Methods with low accuracy, or with a better method of the same paper; docs/results/accuracy.md has the means of all
# methods, results/README.md their paired differences
NOT_IN_README = (
    "LinearProbe", "CLIPAdapter", "TipAdapter", "TipAdapterFHOSO", "GDA", "TIMO", "APE", "ProtoCLIP", "LPPlusPlus",
    "TIMOS", "ReHARK",
)  # fmt: skip
# Methods with the best or nearly the best accuracy on the digits; results/README.md has all
CLOSE_ON_DIGITS = ("LinearProbe", "ProtoCLIP", "GDA", "TIMO", "APE")
# Rows that docs/guides/unlabelled.md omits. On zero-shot CLIP, only ECALP uses the labelled images
ON_ZERO_SHOT = (f"{name}(zero-shot)" for name in TRANSDUCTIVE_METHODS if name != "ECALP")
NOT_ADAPTED = ("zero-shot", "HeGraphAdapter(T)", *ON_ZERO_SHOT)
# Scores that results/README.md omits
WORSE_SCORES = ("cleanlab, normalized_margin", "cleanlab, confidence_weighted_entropy")


def mean_rows(
    files: list[Path], left_out: tuple[str, ...] = (), cases: dict[str, list] | None = None, protocols: bool = False
) -> str:
    """Means over data sets by shots, with one row per method.

    Some data sets lack the larger shots. A mean of fewer data sets than others of its column is left out. With
    `protocols`, a method has a row for each protocol, and only HeGraphAdapter has inductive rows.
    """
    records = find_records(files)
    if protocols:
        records = [record for record in records if record.get("protocol") or method(record) == OUR_METHOD]
    table = rows_of(markdown(compare(records, intervals=False, cases=cases))).splitlines()
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    labels = 1 + protocols  # columns between that of the data set and the scores
    assert heads[: 1 + labels] == ["data set", *["protocol"] * protocols, "method"]
    means = [
        (int(dataset.removeprefix("mean of ")), tuple(cells[:labels]), cells[labels:])
        for dataset, *cells in rows
        if dataset.startswith("mean of ") and cells[labels - 1] not in left_out
    ]
    sizes = [max(size for size, _, scores in means if scores[column]) for column in range(len(means[0][2]))]
    merged: dict[tuple[str, ...], list[str]] = {}
    for size, names, scores in means:
        merged.setdefault(names, [""] * len(sizes))
        merged[names] = [new if size == most else old for new, old, most in zip(scores, merged[names], sizes)]
    groups = [[scores for key, scores in merged.items() if key[:-1] == group] for group in {key[:-1] for key in merged}]
    for group in groups:
        mark_best(group)
    return markdown_table(heads[1:], [[*names, *scores] for names, scores in merged.items()], labels)


def mark_best(rows: list[list[str]]) -> None:
    """Make the highest score of each column bold, among the rows that are shown; a single row has none."""
    for column in range(len(rows[0])):
        plain = [row[column].strip("*") for row in rows]
        best = max(plain, key=lambda score: float(score or 0))
        for row, score in zip(rows, plain):
            row[column] = f"**{score}**" if score == best and score and len(rows) > 1 else score


def leads(files: list[Path]) -> str:
    """Best mean of a variant of HeGraphAdapter minus the best mean of another method, named in brackets, by shots."""
    shots: list[str] = []  # of the data sets with the most numbers of shots
    rows = []
    for file in files:
        table = (means_by_shots if file.stem == "digits" else mean_rows)([file]).splitlines()
        heads, _, *cells = ([cell.strip(" *") for cell in line.strip("|").split("|")] for line in table)
        row = [file.stem.replace("_", " ")]
        shots = max(shots, heads[1:], key=len)
        for column in range(1, len(heads)):
            scores = sorted((float(line[column] or 0), line[0]) for line in cells)
            own = max(score for score, name in scores if name.startswith(OUR_METHOD))
            other, name = max(pair for pair in scores if not pair[1].startswith(OUR_METHOD))
            row.append(f"{own - other:+.2f} ({name})")
        rows.append(row)
    filled = [row + [""] * (1 + len(shots) - len(row)) for row in rows]
    return markdown_table(["data sets", *shots], filled)


def graph_cases(files: list[Path]) -> str:
    """Means of `results compare --cases configs/sweeps/graph.yaml`; `base` is zero-shot CLIP and left out."""
    return mean_rows(files, ("base",), cases=read_cases(ROOT / "configs" / "sweeps" / "graph.yaml"))


def new_classes(files: list[Path]) -> str:
    """Table of `results base-to-new` at 1, 4 and 16 shots: means, without the column of the data sets."""
    head, line, *rows = rows_of(markdown(base_to_new(find_records(files)))).splitlines()
    shown = [row for row in rows if re.match(r"\| mean of \d+ \| (1|4|16) \|", row)]
    return "".join(f"|{row.split('|', 2)[2]}\n" for row in (head, line, *shown))


def suggested(files: list[Path]) -> str:
    """Table of `python -m tools.labels_study suggest`, with means over banks only."""
    head, line, *rows = labels_study.suggest_table(pd.read_json(files[0], lines=True)).splitlines()
    return "".join(f"{row}\n" for row in (head, line, *(row for row in rows if "| mean of " in row)))


def conditions(files: list[Path]) -> str:
    """Table of `python -m tools.unlabelled_study`."""
    return study_table(pd.read_json(files[0], lines=True))


def wrong_labels(files: list[Path]) -> str:
    """Table of `python -m tools.labels_study wrong`, with the best score of cleanlab only."""
    results = pd.read_json(files[0], lines=True)
    return labels_study.wrong_table(results[~results["score"].isin(WORSE_SCORES)])


def calibration_errors(files: list[Path]) -> str:
    """Table of the mean ECE of some methods, for a temperature of 1 and for the fitted one."""
    rows = []
    for name in CALIBRATED:
        records = [record for record in find_records(files) if method(record) == name]
        row = [name]
        for shots in CALIBRATED_SHOTS:
            chosen = [record["calibration"] for record in records if record["shots"] == shots]
            means = [sum(scores[when]["ece"] for scores in chosen) / len(chosen) for when in ("before", "after")]
            row.append(" → ".join(f"{mean:.2f}" for mean in means))
        rows.append(row)
    return markdown_table(["method", *(str(shots) for shots in CALIBRATED_SHOTS)], rows)


def study_rows(table: Callable[[pd.DataFrame], str]) -> Callable[[list[Path]], str]:
    """Function that makes a table of a study, such as `tools.names_study`, from a file."""
    return lambda files: table(pd.read_json(files[0], lines=True))


MAKERS: dict[str, Callable[[list[Path]], str]] = {
    "digits": printed_table,
    "summary": partial(mean_rows, left_out=NOT_IN_README),
    "real": mean_rows,
    "scans": digits_rows,
    "paired": partial(intervals.table, left_out=NOT_IN_README),
    "paired_all": intervals.table,
    "paired_digits": intervals.table,
    "paired_ucf101": partial(intervals.table, of="HeGraphAdapter(training-free)"),
    "paired_training_free": partial(intervals.table, of="HeGraphAdapter(training-free)"),
    "paired_transductive": partial(intervals.table, of="HeGraphAdapter, transductive"),
    "leads": leads,
    "calibration": calibration_errors,
    "graph": graph_cases,
    "base_to_new": new_classes,
    "adapted_real": partial(mean_rows, left_out=NOT_ADAPTED, protocols=True),
    "adapted_surrogate": partial(mean_rows, left_out=NOT_ADAPTED, protocols=True),
    "conditions": conditions,
    "suggested": suggested,
    "wrong_labels": wrong_labels,
    "thresholds": study_rows(labels_study.threshold_table),
    "names": study_rows(names_study.names_table),
    "unequal": study_rows(names_study.unequal_table),
    "held_out": study_rows(held_out_study.banks_table),
    "videos": study_rows(held_out_study.videos_table),
    "sets": study_rows(held_out_study.sets_table),
    "wrong_videos": study_rows(held_out_study.wrong_table),
}


# Methods in colour
HIGHLIGHTED = (
    "HeGraphAdapter",
    "HeGraphAdapter(paper)",
    "HeGraphAdapter(training-free)",
    "APET",
    "TaskRes",
    "TipAdapterF",
    "SimNL",
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

"""HTML page of results, which needs no script and no other file."""

import base64
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from ...results import comparison
from ...results.comparison import compare, has_calibration, on_base_classes
from ...results.figures import confusion, curves, read_text_nodes, reliability_diagrams, render_for_page, tsne
from ...results.predictions import confusion_matrix
from ...results.records import PREDICTIONS, TEXT_NODES, find_records, find_runs, main_score
from ...results.scores import PLACE, data_set, is_multilabel, method, place, shots_of
from ...results.settings import split_sweeps
from ...results.table import Table
from ...utils.errors import UserError
from ...utils.files import atomic_path
from ...utils.theme import THEME_CSS
from .summary import MAX_BARS, choose_run, summarise

TEMPLATE = Path(__file__).parent / "page.html"

Piece = dict[str, Any]  # values for the template: a table, an image, or the reason why there is none


def write_report(sources: Sequence[Path], out: Path) -> None:
    """Write the HTML page atomically, with a part for each source.

    Args:
        sources: Output folders and files of `collect`.
        out: The page.

    Raises:
        UserError: If a source has no record, or the page cannot be written.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    parts = []
    for source in sources:
        records = find_records([source])
        folder, record = choose_run([*find_runs([source]).items()] if source.is_dir() else [(None, r) for r in records])
        run = f"{data_set(record)}, {record['backbone']}, {shots_of(record)}, seed {record['seed']}"
        part = {"name": source.resolve().name, "runs": len(records), "facts": _facts(records)}
        part["summary"] = summarise(folder, record, f"{method(record)}, {run}")
        part["pieces"] = [*_record_pieces(records), *(_run_pieces(folder, record, run) if folder is not None else ())]
        if has_calibration(record):
            alt = "Accuracy by confidence before and after temperature scaling"
            part["calibration"] = _piece(reliability_diagrams, [record], alt=alt)
        parts.append(part)
    with atomic_path(out) as temporary:
        temporary.write_text(page.render(parts=parts, theme=Markup(THEME_CSS), max_bars=MAX_BARS), encoding="utf-8")


def _record_pieces(records: Sequence[dict]) -> Iterator[Piece]:
    """Tables and figures of records; sweeps, runs with targets and runs on base classes have their own tables."""
    tested = [record for record in records if main_score(record) is not None]
    base = [record for record in tested if on_base_classes(record)]
    with_targets = [record for record in tested if record.get("targets") and not on_base_classes(record)]
    plain, sweeps = split_sweeps([r for r in tested if not r.get("targets") and not on_base_classes(r)])
    if plain:
        places = pd.DataFrame(map(place, plain))
        varying = [key for key in ("shots", *PLACE) if places[key].nunique() > 1]
        yield _piece(compare, plain, varying[0] if varying else "shots")
    if len({record["shots"] for record in plain}) > 1:
        alt = "Scores on test by shots, a line per method; the numbers are in the table above"
        yield _piece(curves, plain, alt=alt, caption="Scores by shots; bars are 95% intervals over seeds.")
    several_labels = list(filter(is_multilabel, tested))
    if several_labels:
        yield _piece(comparison.multilabel_table, several_labels)
    for sweep in sweeps:
        yield _piece(compare, sweep, "setting")
    by_rule: dict[str, list[dict]] = {}
    for record in with_targets:
        for rule in {str(test.get("rule")) for test in record["targets"].values()}:
            by_rule.setdefault(rule, []).append(record)
    for rule in sorted(by_rule):
        yield _piece(compare, by_rule[rule], "target")
    if base:
        yield _piece(comparison.base_to_new, base)
    if any(map(comparison.has_times, plain)):
        yield _piece(comparison.complexity, plain)
    if any(map(has_calibration, plain)):
        yield _piece(comparison.calibration_table, plain)
    if sum(map(has_calibration, plain)) > 1:  # the summary has the diagram of a single run
        alt = "Accuracy by confidence, a panel per method; the calibration errors are in the table above"
        caption = "Reliability diagrams; the diagonal is perfect, and larger dots have more test images."
        yield _piece(reliability_diagrams, plain, alt=alt, caption=caption)


def _run_pieces(folder: Path, record: dict, run: str) -> Iterator[Piece]:
    """Text nodes and confusion matrix of a run."""
    if (folder / TEXT_NODES).exists():
        caption = f"Positive text nodes before and after, {run}; t-SNE of both together."
        alt = "Two panels of points, one per class: text nodes before and after"
        yield _piece(lambda: tsne(*read_text_nodes(folder)), alt=alt, caption=caption)
    if (folder / PREDICTIONS).exists() and not is_multilabel(record):
        alt = "Matrix of true by predicted classes; the pairs that are confused most are listed above"
        caption = f"Confusion matrix on test, {run}."
        yield _piece(lambda: confusion(*confusion_matrix(folder)), alt=alt, caption=caption)


def _facts(records: Sequence[dict]) -> dict[str, str]:
    """Metadata of records: fact -> all its values."""
    versions = set()
    for record in records:
        packages = [f"{name} {number}" for name, number in (record.get("versions") or {}).items()]
        versions.add(", ".join(packages) or "unknown")
    facts: dict[str, set] = {
        "runs": {len(records)},
        "methods": {method(record) for record in records},
        "data sets": {f"{data_set(record)} ({record['num_test']} test images)" for record in records},
        "backbones": {record["backbone"] for record in records},
        "shots": {shots_of(record) for record in records},
        "seeds": {record["seed"] for record in records},
        "chosen on": {record["selected_on"].replace("_", " ") for record in records},
        "versions": versions,
        "commits": {record.get("git_commit") or "unknown" for record in records},
        "machines": {comparison.machine(record) for record in records},
    }
    return {name: "; ".join(map(str, sorted(values))) for name, values in facts.items()}


def _piece(make: Callable[..., Table | Figure], *arguments: Any, **texts: str) -> Piece:
    """Make a table or a figure for the template, or the message of its UserError.

    Args:
        make: Function that makes it.
        arguments: Arguments of the function.
        texts: "caption" and "alt" of a figure.
    """
    try:
        result = make(*arguments)
    except UserError as error:
        return {"refused": str(error)}
    if isinstance(result, Table):
        rows = result.text_rows(Markup("<strong>{}</strong>").format)
        return {"heads": result.heads, "columns": result.columns.values(), "rows": rows, "caption": result.caption}
    return {"image": base64.b64encode(render_for_page(result)).decode(), **texts}

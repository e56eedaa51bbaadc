"""One HTML page that shows everything the records below some folders tell; it needs no script and no other file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from ..utils.errors import UserError
from ..utils.files import atomic_path
from . import comparison
from .comparison import compare, on_base_classes, split_sweeps
from .figures import as_svg, confusion, curves, read_text_nodes, reliability_diagrams, tsne
from .paired import confusion_matrix, hardest_pairs
from .records import PREDICTIONS, TEXT_NODES, find_records, find_runs
from .scores import OURS, PAPER, PLACE, method, place
from .table import Table

TEMPLATE = Path(__file__).parent / "page.html"

Piece = dict[str, Any]  # what the template shows: a table, an image, a list, or why there is none


def write_report(sources: Sequence[Path], out: Path) -> None:
    """Writes the page, whole or not at all, with a part for each source: an output folder or a file of `collect`.

    Raises UserError if a source has no record, or the file cannot be written.
    """
    # Everything that stands in a page comes from data, and is escaped
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(parts=[_part(source) for source in sources])
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _part(source: Path) -> Piece:
    """The part of the page about one source."""
    records = find_records([source])
    pieces = [*_of_records(records), *(_of_last_run(find_runs([source])) if source.is_dir() else ())]
    return {"name": source.resolve().name, "pieces": pieces, "facts": _facts(records)}


def _of_records(records: Sequence[dict]) -> Iterator[Piece]:
    # Sweeps, runs with targets and runs on base classes have tables of their own, so that none of them is averaged
    # with runs of the usual setting
    scored = [record for record in records if record["accuracy"] is not None]
    base = [record for record in scored if on_base_classes(record)]
    away = [record for record in scored if record.get("targets") and not on_base_classes(record)]
    plain, sweeps = split_sweeps([r for r in scored if not r.get("targets") and not on_base_classes(r)])
    if plain:
        several = (key for key in ("shots", *PLACE) if len({place(record)[key] for record in plain}) > 1)
        yield _shown(partial(compare, plain, next(several, "shots")))
    if len({record["shots"] for record in plain}) > 1:
        alt = "Accuracy on test by shots, a line per method; the numbers are in the table above"
        yield _shown(lambda: curves(plain), alt=alt, caption="Accuracy by shots; bars are 95% intervals over seeds.")
    for sweep in sweeps:
        yield _shown(partial(compare, sweep, "setting"))
    for rule in sorted({str(test.get("rule")) for record in away for test in record["targets"].values()}):
        runs = [r for r in away if rule in {str(test.get("rule")) for test in r["targets"].values()}]
        yield _shown(partial(compare, runs, "target"))
    if base:
        yield _shown(lambda: comparison.base_to_new(base))
    if any(map(comparison.has_times, plain)):
        yield _shown(lambda: comparison.complexity(plain))
    if any(map(comparison.has_calibration, plain)):
        alt = "Accuracy by confidence, a panel per method; the calibration errors are in the table above"
        caption = "Reliability diagrams over all test images; the diagonal is perfect, large dots are many images."
        yield _shown(lambda: comparison.calibration_table(plain))
        yield _shown(lambda: reliability_diagrams(plain), alt=alt, caption=caption)


def _of_last_run(runs: dict[Path, dict]) -> Iterator[Piece]:
    """Text nodes and confusions of one run: the full run on all classes with the most shots and, of several, the last
    one, since the best one would be chosen on test.
    """
    full = {f: r for f, r in runs.items() if method(r) in (OURS, PAPER) and not on_base_classes(r)}
    order = {folder: (record["shots"], record.get("finished_at") or "") for folder, record in full.items()}
    if not full:
        return
    record = full[folder := max(full, key=order.__getitem__)]
    name = f"{record['dataset']}, {record['backbone']}, {record['shots']} shots, seed {record['seed']}"
    if (folder / TEXT_NODES).exists():
        caption = f"Positive text nodes before and after, {name}; t-SNE of both together."
        alt = "Two panels of points, one per class: text nodes before and after"
        yield _shown(lambda: tsne(*read_text_nodes(folder)), alt=alt, caption=caption)
    if (folder / PREDICTIONS).exists():
        found = confusion_matrix(folder)
        alt = "Matrix of true by predicted classes; the pairs that are confused most are listed below"
        yield _shown(lambda: confusion(*found), alt=alt, caption=f"Confusion matrix on test, {name}.")
        yield {"pairs": hardest_pairs(*found)}


def _facts(records: Sequence[dict]) -> dict[str, str]:
    """How the numbers came about: for each fact all values that the records have."""
    versions = [record.get("versions") or {} for record in records]
    facts: dict[str, set] = {
        "runs": {len(records)},
        "methods": {method(record) for record in records},
        "data sets": {f"{record['dataset']} ({record['num_test']} test images)" for record in records},
        "backbones": {record["backbone"] for record in records},
        "training images per class": {record["shots"] for record in records},
        "seeds": {record["seed"] for record in records},
        "chosen on": {record["selected_on"].replace("_", " ") for record in records},
        "versions": {", ".join(f"{name} {number}" for name, number in of.items()) or "unknown" for of in versions},
        "commits": {record.get("git_commit") or "unknown" for record in records},
        "machines": {comparison.machine(record) for record in records},
    }
    return {name: "; ".join(map(str, sorted(values))) for name, values in facts.items()}


def _shown(make: Callable[[], Table | Figure], **about: str) -> Piece:
    """A table or a figure or, if it cannot be made, the reason; `about` is a figure's caption and the text for it."""
    try:
        made = make()
    except UserError as error:
        return {"refused": str(error)}
    if isinstance(made, Table):
        rows = made.shown(Markup("<strong>{}</strong>").format)
        return {"heads": made.heads, "columns": made.columns.values(), "rows": rows, "caption": made.caption}
    return {"image": base64.b64encode(as_svg(made)).decode(), **about}

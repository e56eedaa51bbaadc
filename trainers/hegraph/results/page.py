"""One HTML page that shows everything the records below some folders tell; it needs no script and no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import UserError
from ..utils.files import atomic_path
from .analysis import confusion_matrix, describe, hardest_pairs, read_text_nodes
from .calibration import calibration_table, reliability_diagrams
from .comparison import base_to_new, compare, on_base_classes
from .costs import complexity, machine
from .curves import curves
from .figures import as_svg, confusion, tsne
from .methods import OURS, method
from .records import PREDICTIONS, TEXT_NODES, find_records, find_runs
from .rejection import has_threshold, kept_table
from .render import as_html
from .settings import split_sweeps
from .table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = (
    "Training images are drawn per class from the seed by CoOp's few-shot protocol. No method sees a test image before "
    "it is done; test is scored once."
)

# How the page spells a record's "selected_on"
CHOSEN = {
    "last_step": "nothing: fixed hyper-parameters, the last step is tested",
    "val": "on the few-shot val split",
}

# Colours are the browser's own, light or dark; figures are drawn for white paper and keep it
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70em; padding: 1rem; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; }
figure { margin: 1.5rem 0; }
.scroll { margin: 0.5rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid GrayText; padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; }
.label { text-align: left; }
tbody th { font-weight: normal; }
img { background: white; display: block; max-width: max(100%, 60rem); }
dt { font-weight: 600; }
dd { margin: 0 0 0.5rem 1rem; }
"""


def write_report(sources: Sequence[Path], out: Path) -> None:
    """Writes the page, whole or not at all.

    Args:
        sources: Output folders and files that `collect` wrote; each has a part of the page.
        out: The file to write.

    Raises:
        UserError: If a source has no record, or the file cannot be written.
    """
    parts = [_part(source) for source in sources]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>HeGraphAdapter: results</title>
<style>{STYLE}</style>
</head>
<body>
<h1>HeGraphAdapter: results</h1>
<p>Made from the records of finished runs, and from nothing else. An empty cell has no run.</p>
{"".join(parts)}</body>
</html>
"""
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _part(source: Path) -> str:
    """The part of the page about one source."""
    records = find_records([source])
    scored = [record for record in records if record["accuracy"] is not None]
    base = [record for record in scored if on_base_classes(record)]
    away = [record for record in scored if record.get("targets") and record not in base]
    # Sweeps, runs with targets and runs on base classes have tables of their own, so that none of them is averaged
    # with runs of the usual setting
    plain, sweeps = split_sweeps([record for record in scored if record not in base and record not in away])
    pieces = [f"<h2>{html.escape(source.resolve().name)}</h2>\n"]
    pieces += _comparisons(plain)
    pieces += [_table(partial(compare, sweep, "setting")) for sweep in sweeps]
    pieces += [_table(partial(compare, runs, "target")) for runs in _by_rule(away).values()]
    if base:
        pieces.append(_table(lambda: base_to_new(base)))
    if any(record.get("seconds") for record in plain):
        pieces.append(_table(lambda: complexity(plain)))
    if any((record.get("calibration") or {}).get("after") for record in plain):
        alt = "Accuracy by confidence, a panel per method; the calibration errors are in the table above"
        caption = "Reliability diagrams over all test images; the diagonal is perfect, large dots are many images."
        pieces += [_table(lambda: calibration_table(plain)), _figure(lambda: reliability_diagrams(plain), alt, caption)]
    if any(map(has_threshold, plain)):
        pieces.append(_table(lambda: kept_table(plain)))
    if source.is_dir():
        pieces += _of_last_run(find_runs([source]))
    pieces.append(_protocol(records))
    return "".join(pieces)


def _comparisons(records: Sequence[dict]) -> list[str]:
    """All methods in one table, and as curves if there are several numbers of shots."""
    pieces = []
    if records:
        by = next((key for key in ("shots", "dataset", "backbone") if len({r[key] for r in records}) > 1), "shots")
        pieces.append(_table(lambda: compare(records, by)))
    if len({record["shots"] for record in records}) > 1:
        alt = "Accuracy on test by shots, a line per method; the numbers are in the table above"
        pieces.append(_figure(lambda: curves(records), alt, "Accuracy by shots; bars are 95% intervals over seeds."))
    return pieces


def _by_rule(records: Sequence[dict]) -> dict[str, list[dict]]:
    """Runs with targets, by the rule of their targets: same classes or other classes."""
    by_rule: dict[str, list[dict]] = {}
    for record in records:
        for rule in sorted({str(scores.get("rule")) for scores in record["targets"].values()}):
            by_rule.setdefault(rule, []).append(record)
    return by_rule


def _of_last_run(runs: dict[Path, dict]) -> list[str]:
    """Text nodes and confusions of one run: the last one, since the best one would be chosen on test."""
    pieces = []
    if folder := _last(runs, TEXT_NODES):
        nodes = partial(read_text_nodes, folder)
        caption = f"Positive text nodes before and after, {_run_name(runs[folder])}; t-SNE of both together."
        alt = "Two panels of points, one per class: text nodes before and after"
        pieces.append(_figure(lambda: tsne(nodes()), alt, caption))
    if folder := _last(runs, PREDICTIONS):
        matrix, classnames = confusion_matrix(folder)
        caption = f"Confusion matrix on test, {_run_name(runs[folder])}."
        alt = "Matrix of true by predicted classes; the pairs that are confused most are listed below"
        pieces.append(_figure(lambda: confusion(matrix, classnames), alt, caption))
        items = "".join(f"<li>{html.escape(describe(pair))}</li>\n" for pair in hardest_pairs(matrix, classnames))
        pieces.append(f"<h3>Hardest pairs of classes</h3>\n<p>Test images confused:</p>\n<ol>\n{items}</ol>\n")
    return pieces


def _last(runs: dict[Path, dict], file: str) -> Path | None:
    """The run that ended last of the full runs on all classes that have a file, and of these of the most shots."""
    full = [
        folder
        for folder, record in runs.items()
        if method(record) == OURS and not on_base_classes(record) and (folder / file).exists()
    ]
    return max(full, key=lambda folder: (runs[folder]["shots"], runs[folder].get("finished_at") or ""), default=None)


def _run_name(record: dict) -> str:
    return f"{record['dataset']}, {record['backbone']}, {record['shots']} shots, seed {record['seed']}"


def _protocol(records: Sequence[dict]) -> str:
    """How the numbers came about: the protocol, and for each fact all values that the records have."""
    facts: dict[str, set] = {
        "runs": {len(records)},
        "methods": {method(record) for record in records},
        "data sets": {f"{record['dataset']} ({record['num_test']} test images)" for record in records},
        "backbones": {record["backbone"] for record in records},
        "training images per class": {record["shots"] for record in records},
        "seeds": {record["seed"] for record in records},
        "chosen": {CHOSEN.get(record["selected_on"], record["selected_on"]) for record in records},
        "versions": {_versions(record) for record in records},
        "commits": {record.get("git_commit") or "unknown" for record in records},
        "machines": {machine(record) for record in records},
    }
    items = "".join(
        f"<dt>{name}</dt>\n<dd>{html.escape('; '.join(map(str, sorted(values))))}</dd>\n"
        for name, values in facts.items()
    )
    return f"<h3>Protocol and versions</h3>\n<p>{PROTOCOL}</p>\n<dl>\n{items}</dl>\n"


def _versions(record: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items()) or "unknown"


def _table(make: Callable[[], Table]) -> str:
    """A table or, if it cannot be made, the reason."""
    try:
        table = make()
    except UserError as error:
        return _not_shown(error)
    return _captioned(as_html(table), table.caption)


def _figure(make: Callable[[], Figure], alt: str, caption: str) -> str:
    """A figure or, if it cannot be made, the reason."""
    try:
        image = base64.b64encode(as_svg(make())).decode()
    except UserError as error:
        return _not_shown(error)
    return _captioned(f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{image}">\n', caption)


def _captioned(content: str, caption: str) -> str:
    """Content and its caption. Content wider than the page scrolls in a box, which the keyboard reaches too."""
    caption = html.escape(caption)
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n{content}</div>'
    return f"<figure>\n<figcaption>{caption}</figcaption>\n{box}\n</figure>\n"


def _not_shown(error: UserError) -> str:
    return f"<p>Not shown: {html.escape(str(error))}.</p>\n"

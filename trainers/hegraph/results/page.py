"""One self-contained HTML page of what the records below some folders say: no script, no outside request."""

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
from .cells import OURS, method
from .comparison import base_to_new, compare, on_base_classes
from .costs import complexity, machine
from .figures import as_svg, confusion, curves, tsne
from .records import PREDICTIONS, TEXT_NODES, find_records, find_runs
from .render import Table, as_html
from .settings import split_sweeps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = (
    "Training images are drawn per class from the seed by CoOp's few-shot protocol. No method sees a test image before "
    "it is done; test is scored once."
)
CHOSEN = {
    "last_step": "nothing: fixed hyper-parameters, the last step is tested",
    "val": "on the few-shot val split",
}

# Colours are the browser's, light or dark; figures keep the white ground they are drawn for
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
    """Writes the page, whole or not at all: a part for each source.

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
    """What the page says of one source: runs with targets, on base classes, and off the usual setting apart."""
    records = find_records([source])
    scored = [record for record in records if record["accuracy"] is not None]
    base = [record for record in scored if on_base_classes(record)]
    away = [record for record in scored if record.get("targets") and record not in base]
    plain, sweeps = split_sweeps([record for record in scored if record not in base and record not in away])
    pieces = [f"<h2>{html.escape(source.resolve().name)}</h2>\n"]
    if plain:
        by = next((key for key in ("shots", "dataset", "backbone") if len({r[key] for r in plain}) > 1), "shots")
        pieces.append(_table(lambda: compare(plain, by)))
    if len({record["shots"] for record in plain}) > 1:
        alt = "Accuracy on test by shots, a line per method; the numbers are in the table above"
        pieces.append(_figure(lambda: curves(plain), alt, "Accuracy by shots; bars are 95% intervals over seeds."))
    pieces += [_table(partial(compare, sweep, "setting")) for sweep in sweeps]
    by_rule: dict[str, list[dict]] = {}
    for record in away:
        for rule in sorted({str(scores.get("rule")) for scores in record["targets"].values()}):
            by_rule.setdefault(rule, []).append(record)
    pieces += [_table(partial(compare, runs, "target")) for runs in by_rule.values()]
    if base:
        pieces.append(_table(lambda: base_to_new(base)))
    if any(record.get("seconds") for record in plain):
        pieces.append(_table(lambda: complexity(plain)))
    if source.is_dir():
        pieces += _of_last_run(find_runs([source]))
    pieces.append(_protocol(records))
    return "".join(pieces)


def _of_last_run(runs: dict[Path, dict]) -> list[str]:
    """Text nodes and confusions of one run, not the best one, which would be chosen on test."""
    pieces = []
    if folder := _last(runs, TEXT_NODES):
        caption = f"Positive text nodes before and after, {_run_name(runs[folder])}; t-SNE of both together."
        alt = "Two panels of points, one per class: text nodes before and after"
        pieces.append(_figure(lambda: tsne(read_text_nodes(folder)), alt, caption))
    if folder := _last(runs, PREDICTIONS):
        matrix, classnames = confusion_matrix(folder)
        caption = f"Confusion matrix on test, {_run_name(runs[folder])}."
        alt = "Matrix of true by predicted classes; the pairs that are confused most are listed below"
        pieces.append(_figure(lambda: confusion(matrix, classnames), alt, caption))
        items = "".join(f"<li>{html.escape(describe(pair))}</li>\n" for pair in hardest_pairs(matrix, classnames))
        pieces.append(f"<h3>Hardest pairs of classes</h3>\n<p>Test images confused:</p>\n<ol>\n{items}</ol>\n")
    return pieces


def _last(runs: dict[Path, dict], file: str) -> Path | None:
    """Of the full runs on all classes that have a file, and of those of the most shots, the one that ended last."""
    full = [
        folder
        for folder, record in runs.items()
        if method(record) == OURS and not on_base_classes(record) and (folder / file).exists()
    ]
    return max(full, key=lambda folder: (runs[folder]["shots"], runs[folder].get("finished_at") or ""), default=None)


def _run_name(record: dict) -> str:
    return f"{record['dataset']}, {record['backbone']}, {record['shots']} shots, seed {record['seed']}"


def _protocol(records: Sequence[dict]) -> str:
    """How the numbers came about: every value that the records have."""
    facts = {
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
    """A table, or why there is none."""
    try:
        table = make()
    except UserError as error:
        return _not_shown(error)
    return _captioned(as_html(table), table.caption)


def _figure(make: Callable[[], Figure], alt: str, caption: str) -> str:
    """A figure, or why there is none."""
    try:
        image = base64.b64encode(as_svg(make())).decode()
    except UserError as error:
        return _not_shown(error)
    return _captioned(f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{image}">\n', caption)


def _captioned(content: str, caption: str) -> str:
    """What is wider than the page scrolls in a box of its own, by keyboard too; its caption stays."""
    caption = html.escape(caption)
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n{content}</div>'
    return f"<figure>\n<figcaption>{caption}</figcaption>\n{box}\n</figure>\n"


def _not_shown(error: UserError) -> str:
    return f"<p>Not shown: {html.escape(str(error))}.</p>\n"

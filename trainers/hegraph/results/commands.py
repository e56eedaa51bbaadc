"""python -m trainers.hegraph.results NAME SOURCE ...

table SOURCE ...                 one experiment: mean and spread over seeds
grid SOURCE ...                  Markdown: data sets and methods by shots
collect SOURCE ... --out FILE    many records in one .jsonl file
compare SOURCE ...               methods by shots, data set, backbone, target or setting, with 95% intervals
base-to-new SOURCE ...           base classes, new classes, harmonic mean
complexity SOURCE ...            epochs, time, parameters, memory
curves SOURCE ... --out STEM     accuracy by shots
tsne RUN --out STEM              text nodes of a run before and after
confusion RUN --out STEM         confusion matrix of a run, and its hardest pairs of classes
report SOURCE ... --out FILE     all of it in one HTML page

A SOURCE is an output folder or a file written by `collect`, a RUN the output folder of one run. Figures are written as
STEM.png and STEM.svg. --quote shows the paper's numbers (results/paper.csv) beside ours.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..utils.errors import UserError, report
from .analysis import confusion_matrix, describe, hardest_pairs, mean_distance, read_text_nodes
from .comparison import BY, base_to_new, compare
from .costs import complexity
from .paper import Quote, read_quotes
from .records import collect, find_records
from .render import FORMATS, Table
from .tables import grid, table

logger = logging.getLogger(__name__)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainers.hegraph.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, summary: str, out: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary)
        if name in ("tsne", "confusion"):
            command.add_argument("run", type=Path, metavar="RUN", help="output folder of one run")
        else:
            command.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="output folder or .jsonl file")
        if out:
            command.add_argument("--out", type=Path, required=True, metavar=out)
        return command

    add("table", "one experiment: mean and spread over seeds")
    add("grid", "Markdown table: data sets and methods by shots")
    add("collect", "write many records into one .jsonl file", "FILE")
    tables = {
        "compare": add("compare", "methods side by side, with 95%% intervals over seeds"),
        "base-to-new": add("base-to-new", "base classes, new classes and their harmonic mean"),
        "complexity": add("complexity", "epochs, time, parameters and memory"),
    }
    for command in tables.values():
        command.add_argument("--format", choices=FORMATS, default="markdown")
    tables["compare"].add_argument("--by", choices=BY, default="shots", help="what the columns are (%(default)s)")
    for name in ("compare", "complexity"):
        tables[name].add_argument("--quote", metavar="TABLE", help="the paper's numbers beside ours: 1 to 5, or fig2")
    curves = add("curves", "accuracy by shots, as figures", "STEM")
    curves.add_argument("--quote", action="store_true", help="the paper's numbers beside ours")
    add("tsne", "text nodes of a run before and after, as figures", "STEM")
    add("confusion", "confusion matrix of a run, as figures, and its hardest pairs of classes", "STEM")
    add("report", "tables, curves, t-SNE and confusion matrix in one HTML page", "FILE.html")
    return parser.parse_args(arguments)


def scored(records: Sequence[dict]) -> list[dict]:
    """Those of runs with test images.

    Raises:
        UserError: If there is none.
    """
    found = [record for record in records if record["accuracy"] is not None]
    if len(found) < len(records):
        logger.warning("%d of %d runs had no test images and are left out", len(records) - len(found), len(records))
    if not found:
        raise UserError("no run had test images, so there is nothing to show")
    return found


def table_command(args: argparse.Namespace) -> None:
    """Prints a table as text or in one of `FORMATS`."""
    records = scored(find_records(args.sources))
    if args.command in ("table", "grid"):
        sys.stdout.write({"table": table, "grid": grid}[args.command](records))
        return
    quotes = read_quotes(args.quote) if getattr(args, "quote", None) else []
    make: dict[str, Callable[[], Table]] = {
        "compare": lambda: compare(records, args.by, quotes),
        "base-to-new": lambda: base_to_new(records),
        "complexity": lambda: complexity(records, quotes),
    }
    made = make[args.command]()
    if quotes and not any(row.quoted for row in made.rows):
        _nothing_quoted()
    sys.stdout.write(FORMATS[args.format](made))


def curves_command(args: argparse.Namespace) -> None:
    from .figures import curves, save

    quotes: list[Quote] = []
    if args.quote:
        quotes = [quote for name in ("fig2", "2") for quote in read_quotes(name) if quote.method == "HeGraphAdapter"]
    figure = curves(scored(find_records(args.sources)), quotes)
    if quotes and not any("(quoted)" in text.get_text() for text in figure.legends[0].get_texts()):
        _nothing_quoted()
    _written(save(figure, args.out))


def run_figure_command(args: argparse.Namespace) -> None:
    """Draws what the files of one run show, and prints it in numbers."""
    from .figures import confusion, save, tsne

    if args.command == "tsne":
        nodes = read_text_nodes(args.run)
        paths = save(tsne(nodes), args.out)
        before, after = mean_distance(nodes.before), mean_distance(nodes.after)
        sys.stdout.write(f"mean inter-class distance: before {before:.4f}, after {after:.4f}\n")
    else:
        matrix, classnames = confusion_matrix(args.run)
        paths = save(confusion(matrix, classnames), args.out)
        pairs = hardest_pairs(matrix, classnames)
        sys.stdout.writelines(f"{describe(pair)}\n" for pair in pairs)
    _written(paths)


def report_command(args: argparse.Namespace) -> None:
    from .page import write_report

    write_report(args.sources, args.out)
    _written([args.out])


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit code, 2 for a mistake of the user's."""
    args = parse_arguments(arguments)
    run: dict[str, Callable[[argparse.Namespace], None]] = {
        "collect": lambda args: collect(find_records(args.sources), args.out),
        "curves": curves_command,
        "tsne": run_figure_command,
        "confusion": run_figure_command,
        "report": report_command,
    }
    return report(lambda: run.get(args.command, table_command)(args))


def _nothing_quoted() -> None:
    logger.warning("the paper has no number of the same data set, backbone and shots there: nothing is quoted")


def _written(paths: Sequence[Path]) -> None:
    sys.stdout.writelines(f"wrote {path}\n" for path in paths)

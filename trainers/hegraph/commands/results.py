"""The command `results`, which makes tables, figures and pages from the records of runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results.scores import BY, OUR_METHOD, QUOTED, TABLE_FORMATS, read_quotes
from ..utils.command_line import Parser, echo, run_cli
from ..utils.errors import UserError
from ..utils.files import OutputFile

if TYPE_CHECKING:
    from ..results.table import Table

EPILOG = """\
A SOURCE is an output folder or a file that `collect` wrote. A FOLDER is an output folder, with the runs below it. A RUN
is the output folder of one run. Figures are written as STEM.png and STEM.svg."""

STEM = OutputFile(".png", ".svg", added=(".png", ".svg"))  # argument type: path of a figure without suffix
OUTPUTS = {"FILE": OutputFile(".jsonl"), "STEM": STEM, "FILE.html": OutputFile(".html")}  # metavar -> type of --out

EXAMPLE_OUTPUTS = {"FILE": "runs.jsonl", "STEM": "figures/dtd", "FILE.html": "report.html"}
SOURCES = {"SOURCE": "output folder or .jsonl file", "FOLDER": "output folder", "RUN": "output folder of one run"}

Run = Callable[[argparse.Namespace], "str | Table"]


class Once(argparse.Action):
    """Action of argparse that stores a value, and refuses a second one, which would replace it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.is_given = False

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.is_given and option_string is not None:
            several = ", with all values after it" if self.nargs == "+" else ""
            parser.error(f"argument {option_string}: expected once{several}, got it twice")
        self.is_given = True
        setattr(namespace, self.dest, values)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments; `run` is the function of the command, which returns the text or the table to print."""
    parser = Parser("results", "Make tables, figures and pages from the records of runs.", epilog=EPILOG)
    parser.examples = ("compare output", "report output --out report.html")

    def add(name: str, summary: str, run: Run, out: str = "", source: str = "SOURCE", more: str = "") -> Parser:
        end = f" --out {EXAMPLE_OUTPUTS[out]}" if out else more
        subparser = parser.add_command(name, summary)
        examples = ("output/run", "output/digits/seed1") if source == "RUN" else ("output", "output/dtd output/pets")
        subparser.examples = [f"{path}{end}" for path in examples]
        for action in (None, "store"):
            subparser.register("action", action, Once)
        subparser.set_defaults(run=run, out=None)
        count = 1 if source == "RUN" else "+"
        subparser.add_argument("sources", type=Path, nargs=count, metavar=source, help=SOURCES[source])
        if out:
            kind = "figures to write, without the ending" if out == "STEM" else "file to write"
            subparser.add_argument("--out", type=OUTPUTS[out], required=True, metavar=out, help=kind)
        return subparser

    def add_table(name: str, summary: str, run: Run, source: str = "SOURCE", more: str = "") -> Parser:
        subparser = add(name, summary, run, source=source, more=more)
        formats = [key for key in TABLE_FORMATS if key != "text" or name == "compare"]  # text is for accuracies
        subparser.add_argument("--format", choices=formats, default="markdown", help="format of the table")
        if name in ("compare", "complexity"):
            subparser.add_argument("--quote", choices=QUOTED, help="also show the numbers of this table of the paper")
        return subparser

    add("collect", "write many records to one .jsonl file", collect_command, "FILE")
    table = add_table("compare", "compare methods, with 95% intervals over seeds", compare_command)
    cases = "grid file of a sweep, whose cases (--case) are the rows in place of methods"
    table.add_argument("--by", choices=BY, default="shots", help="key of the columns")
    table.add_argument("--cases", type=Path, metavar="GRID.yaml", help=cases)
    macro = "compare the macro accuracy: the mean of the accuracies of the classes"
    table.add_argument("--macro", action="store_true", help=macro)
    table.add_argument("--no-interval", action="store_true", help="show means without intervals")
    add_table("base-to-new", "show accuracy on base and new classes, and its harmonic mean", base_to_new_command)
    add_table("complexity", "show epochs, time, parameters and memory", complexity_command)
    add_table("labels", "show mAP, F1 and AP by class, for several labels per image", labels_command)
    table = add_table("calibration", "show NLL, Brier score and ECE before and after scaling", calibration_command)
    table.add_argument("--out", type=STEM, metavar="STEM", help="reliability diagrams to write, without the ending")
    summary, more = "show AUROC and FPR95 of open-set scores on feature banks", " --features bank.safetensors"
    table = add_table("rejection", summary, rejection_command, "FOLDER", more)
    banks = "feature bank of each data set"
    table.add_argument("--features", type=Path, nargs="+", required=True, metavar="BANK", help=banks)
    unknown = "unknown images: of classes that are not in the training (new), or of a feature bank"
    table.add_argument("--unknown", default="new", metavar="new|BANK", help=unknown)
    summary = "compare accuracy on the same images, with intervals over images and seeds"
    table = add("paired", summary, paired_command, source="FOLDER")
    table.add_argument("--of", default=OUR_METHOD, metavar="METHOD", help="method to compare with all others")
    groups = "feature banks with groups of the test images, which are resampled as a whole (default: those of the runs)"
    table.add_argument("--groups", type=Path, nargs="+", default=[], metavar="BANK", help=groups)
    figures = add("curves", "draw accuracy by shots", curves_command, "STEM")
    figures.add_argument("--quote", action="store_true", help="also draw the numbers of the paper")
    add("tsne", "draw the text nodes of a run before and after message passing", tsne_command, "STEM", "RUN")
    add("confusion", "draw the confusion matrix of a run, and list its hardest pairs", confusion_command, "STEM", "RUN")
    add("report", "write summary, example errors, tables and figures as one HTML page", report_command, "FILE.html")
    return parser.parse_args(arguments)


def tested_records(sources: Sequence[Path]) -> list[dict]:
    """Read the records of runs with test images, and warn about other runs.

    Raises:
        UserError: If there is none.
    """
    from ..results.records import find_records, main_score, warn_skipped  # slow to import, here and below

    records = find_records(sources)
    tested = [record for record in records if main_score(record) is not None]
    warn_skipped(records, tested, "without test images")
    if not tested:
        raise UserError("expected runs with test images, got none; name runs of a data set with a test split")
    return tested


def collect_command(args: argparse.Namespace) -> str:
    from ..results.records import collect, find_records

    collect(find_records(args.sources), args.out)
    return f"wrote {args.out}\n"


def compare_command(args: argparse.Namespace) -> Table:
    from ..results.comparison import compare
    from ..results.settings import read_cases

    if args.no_interval and args.format == "text":
        raise UserError("--format text has standard deviations and no intervals; leave out --no-interval")
    quotes = read_quotes(args.quote) if args.quote else None
    cases = read_cases(args.cases) if args.cases else None
    return compare(tested_records(args.sources), args.by, quotes, not args.no_interval, cases, args.macro)


def base_to_new_command(args: argparse.Namespace) -> Table:
    from ..results.comparison import base_to_new

    return base_to_new(tested_records(args.sources))


def complexity_command(args: argparse.Namespace) -> Table:
    from ..results.comparison import complexity

    quotes = read_quotes(args.quote) if args.quote else None
    return complexity(tested_records(args.sources), quotes)


def labels_command(args: argparse.Namespace) -> Table:
    from ..results.comparison import multilabel_table

    return multilabel_table(tested_records(args.sources))


def calibration_command(args: argparse.Namespace) -> str:
    from ..results.comparison import calibration_table
    from ..results.table import TABLE_WRITERS

    records = tested_records(args.sources)
    table = TABLE_WRITERS[args.format](calibration_table(records))
    if not args.out:
        return table
    from ..results.figures import reliability_diagrams, save  # matplotlib and torch are slow to import, here and below

    return table + save(reliability_diagrams(records), args.out)


def rejection_command(args: argparse.Namespace) -> Table:
    from ..results.rejection import rejection_table

    return rejection_table(args.sources, args.features, args.unknown)


def paired_command(args: argparse.Namespace) -> str:
    from ..results.paired import paired_table
    from ..results.paired_runs import read_groups

    return paired_table(args.sources, args.of, read_groups(args.groups))


def curves_command(args: argparse.Namespace) -> str:
    from ..results.figures import curves, save

    quotes = read_quotes("2", "fig2")
    quotes = quotes[quotes["method"] == OUR_METHOD]
    return save(curves(tested_records(args.sources), quotes if args.quote else None), args.out)


def tsne_command(args: argparse.Namespace) -> str:
    from ..results.figures import mean_distance, read_text_nodes, save, tsne

    nodes = read_text_nodes(args.sources[0])
    files = save(tsne(*nodes), args.out)
    before, after = map(mean_distance, nodes[:2])
    return f"mean inter-class distance: before {before:.4f}, after {after:.4f}\n{files}"


def confusion_command(args: argparse.Namespace) -> str:
    """Write the confusion matrix of a run; returns its most confused pairs of classes and the written files."""
    from ..results.figures import confusion, save
    from ..results.predictions import confusion_matrix, hardest_pairs

    matrix, classnames = confusion_matrix(args.sources[0])
    files = save(confusion(matrix, classnames), args.out)
    return "".join(f"{pair}\n" for pair in hardest_pairs(matrix, classnames)) + files


def report_command(args: argparse.Namespace) -> str:
    from ..apps.report.page import write_report

    write_report(args.sources, args.out)
    return f"wrote {args.out}\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""

    def run() -> None:
        args = parse_arguments(arguments)
        from ..results.table import TABLE_WRITERS

        result = args.run(args)
        echo(result if isinstance(result, str) else TABLE_WRITERS[args.format](result))

    return run_cli(run)

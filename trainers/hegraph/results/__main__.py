"""The command line: prints and writes the tables, figures and pages that are made from records."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..utils.commands import Parser, command
from ..utils.errors import UserError, report, say
from ..utils.files import check_output
from .comparison import BY, base_to_new, compare, read_cases
from .costs import calibration_table, complexity
from .paper import Quote, read_quotes
from .records import PREDICTIONS, RECORD, TEXT_NODES, collect, find_records
from .table import FORMATS, Table

logger = logging.getLogger(__package__)  # __name__ is "__main__" here

DESCRIPTION = """\
collect SOURCE ... --out FILE    many records in one .jsonl file
compare SOURCE ...               methods by shots, data set, backbone, target or setting, with 95% intervals
base-to-new SOURCE ...           base classes, new classes, harmonic mean
complexity SOURCE ...            epochs, time, parameters, memory
calibration SOURCE ...           honesty of the probabilities; with --out STEM, reliability diagrams
rejection FOLDER ... --features BANK ...
                                 images of no known class: AUROC and FPR95 of every score
paired FOLDER ...                who is ahead, on the same seeds and test images, with bootstrap intervals
curves SOURCE ... --out STEM     accuracy by shots
tsne RUN --out STEM              text nodes of a run before and after message passing
confusion RUN --out STEM         confusion matrix of a run, and its hardest pairs of classes
report SOURCE ... --out FILE     all of it in one HTML page

A SOURCE is an output folder or a file written by `collect`, a RUN the output folder of one run. Figures are written as
STEM.png and STEM.svg. --quote shows the paper's numbers beside ours.
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog=command("results"), description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, summary: str, out: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary)
        if name in ("tsne", "confusion"):
            added.add_argument("run", type=Path, metavar="RUN", help="output folder of one run")
        else:
            added.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="output folder or .jsonl file")
        if out:
            added.add_argument("--out", type=Path, required=True, metavar=out)
        return added

    add("collect", "write many records into one .jsonl file", "FILE")
    _add_compare_options(add("compare", "methods side by side, with 95%% intervals over seeds"))
    to_new = add("base-to-new", "base classes, new classes and their harmonic mean")
    costs = add("complexity", "epochs, time, parameters and memory")
    honesty = add("calibration", "NLL, Brier score and calibration error before and after the temperature")
    honesty.add_argument("--out", type=Path, metavar="STEM", help="draw reliability diagrams, too")
    rejection = add("rejection", "how well scores tell images of no known class, for runs on feature banks")
    rejection.add_argument("--features", type=Path, nargs="+", required=True, metavar="BANK", help="of the runs")
    rejection.add_argument(
        "--unknown",
        default="new",
        metavar="new|BANK",
        help="unknown images: of the banks' classes that a run left out (%(default)s), or of another bank",
    )
    for table in (to_new, costs, honesty, rejection):
        table.add_argument("--format", choices=[name for name in FORMATS if name != "text"], default="markdown")
    _add_quote_option(costs)
    paired = add("paired", "differences of accuracy on the same seeds and test images, with bootstrap intervals")
    paired.add_argument("--of", default="HeGraphAdapter", metavar="METHOD", help="who is compared (%(default)s)")
    curves = add("curves", "accuracy by shots, as figures", "STEM")
    curves.add_argument("--quote", action="store_true", help="the paper's numbers beside ours")
    add("tsne", "text nodes of a run before and after, as figures", "STEM")
    add("confusion", "confusion matrix of a run, as figures, and its hardest pairs of classes", "STEM")
    add("report", "tables, curves, t-SNE and confusion matrix in one HTML page", "FILE.html")
    return parser.parse_args(arguments)


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--by", choices=BY, default="shots", help="what the columns are (%(default)s)")
    parser.add_argument(
        "--format", choices=FORMATS, default="markdown", help="text shows every seed (default: %(default)s)"
    )
    parser.add_argument("--cases", type=Path, metavar="GRID.yaml", help="rows are the cases of a sweep, from its file")
    parser.add_argument("--no-interval", action="store_true", help="means alone")
    _add_quote_option(parser)


def _add_quote_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quote", metavar="TABLE", help="the paper's numbers beside ours: 1 to 5, or fig2")


def scored(records: Sequence[dict]) -> list[dict]:
    """The records of runs that had test images; a warning says how many are left out.

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
    """Prints a table."""
    records = scored(find_records(args.sources))
    cases = read_cases(args.cases) if getattr(args, "cases", None) else None
    quotes = read_quotes(args.quote) if getattr(args, "quote", None) else []
    make: dict[str, Callable[[], Table]] = {
        "compare": lambda: compare(records, args.by, quotes, not args.no_interval, cases),
        "base-to-new": lambda: base_to_new(records),
        "complexity": lambda: complexity(records, quotes),
        "calibration": lambda: calibration_table(records),
    }
    table = make[args.command]()
    if quotes and not any(row.quoted for row in table.rows):
        _warn_that_nothing_is_quoted()
    say(FORMATS[args.format](table))


def calibration_command(args: argparse.Namespace) -> None:
    """Prints the table of calibration, and draws reliability diagrams if they are asked for."""
    from .figures import reliability_diagrams, save

    table_command(args)
    if args.out is not None:
        _say_written(save(reliability_diagrams(scored(find_records(args.sources))), args.out))


def rejection_command(args: argparse.Namespace) -> None:
    """Prints how well scores tell images of no known class."""
    from .rejection import rejection_table

    _check_folders(args.sources, "models")
    say(FORMATS[args.format](rejection_table(args.sources, args.features, args.unknown)))


def paired_command(args: argparse.Namespace) -> None:
    """Prints the table of paired differences."""
    from .paired import paired_table

    _check_folders(args.sources, "predictions")
    say(paired_table(args.sources, args.of))


def curves_command(args: argparse.Namespace) -> None:
    """Draws accuracy by shots."""
    from .figures import curves, save

    quotes: list[Quote] = []
    if args.quote:
        quotes = [quote for name in ("fig2", "2") for quote in read_quotes(name) if quote.method == "HeGraphAdapter"]
    figure = curves(scored(find_records(args.sources)), quotes)
    if quotes and not any("(quoted)" in text.get_text() for text in figure.legends[0].get_texts()):
        _warn_that_nothing_is_quoted()
    _say_written(save(figure, args.out))


def tsne_command(args: argparse.Namespace) -> None:
    """Draws the text nodes of a run, and prints how far they are apart."""
    from .figures import mean_distance, read_text_nodes, save, tsne

    nodes = read_text_nodes(args.run)
    paths = save(tsne(nodes), args.out)
    before, after = mean_distance(nodes.before), mean_distance(nodes.after)
    say(f"mean inter-class distance: before {before:.4f}, after {after:.4f}\n")
    _say_written(paths)


def confusion_command(args: argparse.Namespace) -> None:
    """Draws the confusion matrix of a run, and prints the pairs of classes that are confused most."""
    from .figures import confusion, save
    from .paired import confusion_matrix, hardest_pairs

    matrix, classnames = confusion_matrix(args.run)
    paths = save(confusion(matrix, classnames), args.out)
    say("".join(f"{pair}\n" for pair in hardest_pairs(matrix, classnames)))
    _say_written(paths)


def report_command(args: argparse.Namespace) -> None:
    """Writes the HTML page."""
    from .page import write_report

    write_report(args.sources, args.out)
    _say_written([args.out])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake of the user's."""
    run: dict[str, Callable[[argparse.Namespace], None]] = {
        "collect": lambda args: collect(find_records(args.sources), args.out),
        "calibration": calibration_command,
        "rejection": rejection_command,
        "paired": paired_command,
        "curves": curves_command,
        "tsne": tsne_command,
        "confusion": confusion_command,
        "report": report_command,
    }

    def run_command() -> None:
        args = parse_arguments(arguments)
        check_outputs(args)
        run.get(args.command, table_command)(args)

    return report(run_command)


def check_outputs(args: argparse.Namespace) -> None:
    """Raises UserError if --out would replace a source, or a file of a run."""
    if (out := getattr(args, "out", None)) is None:
        return
    written = [out] if args.command in ("collect", "report") else [Path(f"{out}.png"), Path(f"{out}.svg")]
    for path in written:
        in_run = [path] if path.name in (RECORD, PREDICTIONS, TEXT_NODES, "config.json", "split.json") else []
        check_output(path, [*getattr(args, "sources", ()), *in_run])


def _check_folders(sources: Sequence[Path], what: str) -> None:
    for source in sources:
        if not source.is_dir():
            raise UserError(f"{source} is no folder; {what} are in output folders, not in the files of collect")


def _warn_that_nothing_is_quoted() -> None:
    logger.warning("the paper has no number of the same data set, backbone and shots there: nothing is quoted")


def _say_written(paths: Sequence[Path]) -> None:
    say("".join(f"wrote {path}\n" for path in paths))


if __name__ == "__main__":
    sys.exit(main())

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

Run = Callable[[argparse.Namespace], None]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments, with the function that carries them out as `run`."""
    parser = Parser(
        prog=command("results"), description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, summary: str, run: Run, out: str = "", of_run: bool = False) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary)
        added.set_defaults(run=run)
        if of_run:
            added.add_argument("run_folder", type=Path, metavar="RUN", help="output folder of one run")
        else:
            added.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="output folder or .jsonl file")
        if out:
            added.add_argument("--out", type=Path, required=True, metavar=out)
        return added

    def add_table(name: str, summary: str, run: Run, quote: bool = False) -> argparse.ArgumentParser:
        added, text = add(name, summary, run), name == "compare"  # accuracies alone are shown as text
        formats = [one for one in FORMATS if text or one != "text"]
        shown = "text shows every seed (default: %(default)s)" if text else None
        added.add_argument("--format", choices=formats, default="markdown", help=shown)
        if quote:
            added.add_argument("--quote", metavar="TABLE", help="the paper's numbers beside ours: 1 to 5, or fig2")
        return added

    add("collect", "write many records into one .jsonl file", collect_command, "FILE")
    table = add_table("compare", "methods side by side, with 95%% intervals over seeds", compare_command, quote=True)
    table.add_argument("--by", choices=BY, default="shots", help="what the columns are (%(default)s)")
    table.add_argument("--cases", type=Path, metavar="GRID.yaml", help="rows are the cases of a sweep, from its file")
    table.add_argument("--no-interval", action="store_true", help="means alone")
    add_table("base-to-new", "base classes, new classes and their harmonic mean", base_to_new_command)
    add_table("complexity", "epochs, time, parameters and memory", complexity_command, quote=True)
    honesty = "NLL, Brier score and calibration error before and after the temperature"
    table = add_table("calibration", honesty, calibration_command)
    table.add_argument("--out", type=Path, metavar="STEM", help="draw reliability diagrams, too")
    known = "how well scores tell images of no known class, for runs on feature banks"
    table = add_table("rejection", known, rejection_command)
    table.add_argument("--features", type=Path, nargs="+", required=True, metavar="BANK", help="of the runs")
    unknown = "unknown images: of the banks' classes that a run left out (%(default)s), or of another bank"
    table.add_argument("--unknown", default="new", metavar="new|BANK", help=unknown)
    ahead = "differences of accuracy on the same seeds and test images, with bootstrap intervals"
    paired = add("paired", ahead, paired_command)
    paired.add_argument("--of", default="HeGraphAdapter", metavar="METHOD", help="who is compared (%(default)s)")
    curves = add("curves", "accuracy by shots, as figures", curves_command, "STEM")
    curves.add_argument("--quote", action="store_true", help="the paper's numbers beside ours")
    add("tsne", "text nodes of a run before and after, as figures", tsne_command, "STEM", of_run=True)
    pairs = "confusion matrix of a run, as figures, and its hardest pairs of classes"
    add("confusion", pairs, confusion_command, "STEM", of_run=True)
    add("report", "tables, curves, t-SNE and confusion matrix in one HTML page", report_command, "FILE.html")
    return parser.parse_args(arguments)


def scored(sources: Sequence[Path]) -> list[dict]:
    """The records of runs that had test images; a warning says how many are left out.

    Raises:
        UserError: If there is none.
    """
    records = find_records(sources)
    found = [record for record in records if record["accuracy"] is not None]
    if len(found) < len(records):
        logger.warning("%d of %d runs had no test images and are left out", len(records) - len(found), len(records))
    if not found:
        raise UserError("no run had test images, so there is nothing to show")
    return found


def collect_command(args: argparse.Namespace) -> None:
    collect(find_records(args.sources), args.out)


def compare_command(args: argparse.Namespace) -> None:
    cases = read_cases(args.cases) if args.cases else None
    quotes = read_quotes(args.quote) if args.quote else []
    _say_table(args, compare(scored(args.sources), args.by, quotes, not args.no_interval, cases), quotes)


def base_to_new_command(args: argparse.Namespace) -> None:
    _say_table(args, base_to_new(scored(args.sources)))


def complexity_command(args: argparse.Namespace) -> None:
    quotes = read_quotes(args.quote) if args.quote else []
    _say_table(args, complexity(scored(args.sources), quotes), quotes)


def calibration_command(args: argparse.Namespace) -> None:
    from .figures import reliability_diagrams, save

    records = scored(args.sources)
    _say_table(args, calibration_table(records))
    if args.out is not None:
        _say_written(save(reliability_diagrams(records), args.out))


def rejection_command(args: argparse.Namespace) -> None:
    from .rejection import rejection_table

    _check_folders(args.sources, "models")
    _say_table(args, rejection_table(args.sources, args.features, args.unknown))


def paired_command(args: argparse.Namespace) -> None:
    from .paired import paired_table

    _check_folders(args.sources, "predictions")
    say(paired_table(args.sources, args.of))


def curves_command(args: argparse.Namespace) -> None:
    from .figures import curves, save

    quotes = [quote for name in ("fig2", "2") for quote in read_quotes(name) if quote.method == "HeGraphAdapter"]
    figure = curves(scored(args.sources), quotes if args.quote else [])
    _warn_unless(not args.quote or any("(quoted)" in text.get_text() for text in figure.legends[0].get_texts()))
    _say_written(save(figure, args.out))


def tsne_command(args: argparse.Namespace) -> None:
    from .figures import mean_distance, read_text_nodes, save, tsne

    nodes = read_text_nodes(args.run_folder)
    paths = save(tsne(nodes), args.out)
    before, after = mean_distance(nodes.before), mean_distance(nodes.after)
    say(f"mean inter-class distance: before {before:.4f}, after {after:.4f}\n")
    _say_written(paths)


def confusion_command(args: argparse.Namespace) -> None:
    from .figures import confusion, save
    from .paired import confusion_matrix, hardest_pairs

    matrix, classnames = confusion_matrix(args.run_folder)
    paths = save(confusion(matrix, classnames), args.out)
    say("".join(f"{pair}\n" for pair in hardest_pairs(matrix, classnames)))
    _say_written(paths)


def report_command(args: argparse.Namespace) -> None:
    from .page import write_report

    write_report(args.sources, args.out)
    _say_written([args.out])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake of the user's."""

    def run_command() -> None:
        args = parse_arguments(arguments)
        check_outputs(args)
        args.run(args)

    return report(run_command)


def check_outputs(args: argparse.Namespace) -> None:
    """Raises UserError if --out would replace a source, or a file of a run."""
    if (out := getattr(args, "out", None)) is None:
        return
    written = [out] if args.command in ("collect", "report") else [Path(f"{out}.png"), Path(f"{out}.svg")]
    for path in written:
        in_run = [path] if path.name in (RECORD, PREDICTIONS, TEXT_NODES, "config.json", "split.json") else []
        check_output(path, [*getattr(args, "sources", ()), *in_run])


def _say_table(args: argparse.Namespace, table: Table, quotes: Sequence[Quote] = ()) -> None:
    _warn_unless(not quotes or any(row.quoted for row in table.rows))
    say(FORMATS[args.format](table))


def _check_folders(sources: Sequence[Path], what: str) -> None:
    for source in sources:
        if not source.is_dir():
            raise UserError(f"{source} is no folder; {what} are in output folders, not in the files of collect")


def _warn_unless(quoted: bool) -> None:
    if not quoted:
        logger.warning("the paper has no number of the same data set, backbone and shots there: nothing is quoted")


def _say_written(paths: Sequence[Path]) -> None:
    say("".join(f"wrote {path}\n" for path in paths))


if __name__ == "__main__":
    sys.exit(main())

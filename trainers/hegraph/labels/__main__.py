"""The command `label`: `suggest MODEL INPUT ... [-n N]`, and `check --root DIR` or `check --features BANK`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..backbones.identity import AUTO, DEFAULT_BACKBONE, PRECISIONS
from ..predict.__main__ import chosen_format, whole
from ..predict.files import FORMATS, Row, check_inputs, csv_line, image_paths, utf8
from ..utils.errors import Parser, command, printable, report
from ..utils.files import check_output
from ..utils.option import NODE
from . import SUSPICIOUS

if TYPE_CHECKING:
    from .issues import LabelIssue

logger = logging.getLogger(__name__)

COLUMNS = ("path", "label", "suggested", "score")
CHECK = """Each image is judged by a model that has not seen it. Rows are the images whose label seems wrong, with the
class that each seems to be, and about the log of how many times likelier that is. The exit code is 1 if there are any.
"""
SUGGEST = "Rows are those of predict, the image to label first at the top. The exit code is 1 if one cannot be read."


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(prog=command("label"), description="Says what to label next, and which labels seem wrong.")
    commands = parser.add_subparsers()
    first = commands.add_parser("suggest", help="choose the images to label next", epilog=SUGGEST)
    first.add_argument("model", metavar="MODEL", help="a model folder, or the output folder of a run")
    first.add_argument("inputs", nargs="+", metavar="INPUT", help="images, folders, .txt files of paths, or -")
    first.add_argument("-n", "--number", type=whole, default=20, metavar="N", help="how many (%(default)s)")
    first.add_argument("--top", type=whole, default=3, metavar="N", help="how many classes a row has (%(default)s)")
    first.add_argument("--backbone", default="", metavar="NAME", help="of a model that was trained from a bank")
    first.add_argument("--pretrained", default="", metavar="TAG", help="its weights")
    first.set_defaults(run=suggest_command)
    check = commands.add_parser("check", help="find labels that seem wrong", epilog=CHECK)
    what = check.add_mutually_exclusive_group(required=True)
    what.add_argument("--root", metavar="DIR", help="your images: a folder of class folders, or a CSV file")
    what.add_argument("--features", type=Path, metavar="BANK", help="a feature bank in place of images")
    check.add_argument("--config-file", default=DEFAULT_BACKBONE.config, help="names the backbone (%(default)s)")
    check.add_argument("--dataset-config-file", default="folder", help="YAML of the data set (%(default)s)")
    check.add_argument("opts", nargs="*", metavar="KEY VALUE", help="configuration keys")
    check.add_argument("--above", type=float, default=SUSPICIOUS, metavar="SCORE", help="least score (%(default)s)")
    check.set_defaults(run=check_command)
    for each in (first, check):
        each.add_argument("--format", choices=tuple(FORMATS), help="by default the ending of --out, else table")
        each.add_argument("--out", type=Path, metavar="FILE", help="write the rows here, whole or not at all")
        each.add_argument("--device", default="", help='such as "cpu" or "cuda"; by default a GPU if there is one')
        each.add_argument("--precision", choices=PRECISIONS, default=AUTO, help="of the backbone (%(default)s)")
    return parser.parse_args(arguments)


def suggest_command(args: argparse.Namespace) -> int:
    """Writes the images to label next; returns how many images could not be read."""
    check_inputs(args.inputs)
    import torch  # takes seconds

    from ..models.images import ImageModel
    from ..predict.prediction import Options, default_batch_size, open_model, rows_of, write_rows
    from ..utils.devices import choose_device
    from .suggest import suggest

    options = Options(args.top, chosen_format(args), args.out)
    saved = open_model(args.model, options, args.inputs)
    device = choose_device(args.device, "--device")
    model = ImageModel.load(saved, device, args.backbone, args.pretrained, args.precision)
    paths, unreadable, features = [], [], [torch.zeros(0, saved.classifier.width)]
    for batch, problems, found in model.encode(image_paths(args.inputs), default_batch_size(model.backbone.input_size)):
        paths += [str(path) for path, problem in zip(batch, problems) if not problem]
        unreadable += [Row(str(path), error=problem) for path, problem in zip(batch, problems) if problem]
        features.append(found.cpu())
    pool = torch.cat(features)
    order = suggest(saved, pool, args.number) if len(pool) else []
    rows = rows_of(saved, [paths[place] for place in order], saved.classifier.logits(pool[order]), options)
    return write_rows([*rows, *unreadable], options)


def check_command(args: argparse.Namespace) -> int:
    """Writes the images whose labels seem wrong; returns how many there are."""
    if args.out is not None:
        check_output(args.out, [path for path in (args.features, args.root) if path])
    from ..config_files import load_cfg
    from ..experiments.tasks import open_task  # torch takes seconds to import
    from ..predict.prediction import open_output
    from ..utils.devices import choose_device
    from .issues import find_label_issues

    files = "" if args.features else args.dataset_config_file, args.config_file
    opts = [*args.opts, "DATASET.NUM_SHOTS", "-1", f"{NODE}.PREC", args.precision]
    cfg = load_cfg(*files, {"DATASET.ROOT": args.root or ""}, opts)
    task = open_task(cfg, args.features, max(cfg.run.seed, 0), choose_device(args.device, "--device"))
    bank, images = task.bank(), [place for place, _, _ in task.split["train"]]
    paths = [f"{args.features}#train/{row}" if args.features else str(Path(args.root) / row) for row in images]
    of_bank = bank.cache_keys(), bank.train_labels, bank.text_positive, bank.logit_scale, list(bank.classnames)
    issues = [issue for issue in find_label_issues(*of_bank) if issue.score > args.above]
    with open_output(args.out) as write:
        for line in issue_lines(issues, paths, chosen_format(args)):
            write(line)
    logger.info("%d of %d labels seem wrong", len(issues), len(images))
    return len(issues)


def issue_lines(issues: Sequence[LabelIssue], paths: Sequence[str], form: str) -> Iterator[str]:
    """Path, label, suggested class and score of each image, one a line, as "table", "csv" or "jsonl"."""
    if form == "csv":
        yield csv_line(*COLUMNS)
    for issue in issues:
        path, label, suggested = map(utf8, (paths[issue.index], issue.label, issue.suggested))
        row = dict(zip(COLUMNS, (path, label, suggested, round(issue.score, 4))))
        if form == "table":
            yield printable(f"{path}  {issue.score:6.2f}  {label} -> {suggested}") + "\n"
        else:
            yield csv_line(*row.values()) if form == "csv" else json.dumps(row, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, 1 if there is something wrong with an image, else as of `report`."""

    def run() -> int:
        args = parse_arguments(arguments)
        return int(args.run(args) > 0)

    return report(run)


if __name__ == "__main__":
    sys.exit(main())

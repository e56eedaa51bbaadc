"""The command `label`: `suggest MODEL INPUT ... [-n N]`, and `check --root DIR` or `check --features BANK`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..backbones.identity import AUTO, DEFAULT_BACKBONE, PRECISIONS
from ..predict.__main__ import chosen_format, whole
from ..predict.files import FORMATS, REPLACED, Row, aligned, check_inputs, csv_line, image_paths, utf8
from ..utils.errors import Parser, UserError, command, run_cli
from ..utils.files import OutputFile, check_output
from ..utils.option import NODE
from . import SUSPICIOUS

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import Config
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
    # A CSV file in a folder of labelled images may hold the labels
    for each, out, precision in ((first, OutputFile(*REPLACED), AUTO), (check, OutputFile(), None)):
        each.add_argument("--format", choices=tuple(FORMATS), help="by default the ending of --out, else table")
        each.add_argument("--out", type=out, metavar="FILE", help="write the rows here, whole or not at all")
        each.add_argument("--device", default="", help='such as "cpu" or "cuda"; by default a GPU if there is one')
        each.add_argument("--precision", choices=PRECISIONS, default=precision, help="of the backbone (auto)")
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
    saved = open_model(args, options)
    device = choose_device(args.device, "--device")
    model = ImageModel.load(saved, device, args.backbone, args.pretrained, args.precision)
    paths, unreadable, features = [], [], [torch.zeros(0, saved.classifier.width)]
    images = image_paths(args.inputs, out=args.out)
    for batch, problems, found in model.encode(images, default_batch_size(model.backbone.input_size)):
        paths += [str(path) for path, problem in zip(batch, problems) if not problem]
        unreadable += [Row(str(path), error=problem) for path, problem in zip(batch, problems) if problem]
        features.append(found.cpu())
    pool = torch.cat(features)
    order = suggest(saved, pool, args.number) if len(pool) else []
    rows = rows_of(saved, [paths[place] for place in order], saved.classifier.logits(pool[order]), options)
    return write_rows([[*rows, *unreadable]], options)


def check_command(args: argparse.Namespace) -> int:
    """Writes the images whose labels seem wrong; returns how many there are."""
    from ..config_files import DATA_SET, METHOD, find_config_file, load_cfg
    from ..predict.prediction import open_output  # torch takes seconds to import
    from .issues import find_label_issues

    files = "" if args.features else args.dataset_config_file, args.config_file
    flags = {"DATASET.ROOT": args.root or ""} | ({f"{NODE}.PREC": args.precision} if args.precision else {})
    cfg = load_cfg(*files, flags, [*args.opts, "DATASET.NUM_SHOTS", "-1"])
    if args.out is not None:
        named = [find_config_file(kind, file) for kind, file in zip((DATA_SET, METHOD), files) if file]
        check_output(args.out, [named, {key: value for key, value in cfg.values.items() if key != "OUTPUT_DIR"}])
    labelled, paths = labelled_images(cfg, args)
    issues = [issue for issue in find_label_issues(*labelled) if issue.score > args.above]
    with open_output(args.out) as write:
        for line in issue_lines(issues, paths, chosen_format(args)):
            write(line)
    logger.info("%d of %d labels seem wrong", len(issues), len(paths))
    return len(issues)


def labelled_images(
    cfg: Config, args: argparse.Namespace
) -> tuple[tuple[Tensor, Tensor, Tensor, float, list[str]], list[str]]:
    """The arguments of `find_label_issues`, and the paths of the training images. An image is encoded once, as a test
    image is. UserError if --out is one of the images, or an image cannot be read.
    """
    from ..experiments.tasks import load_image_task, open_task  # torch takes seconds to import
    from ..utils.devices import choose_device

    seed, device = max(cfg.run.seed, 0), choose_device(args.device, "--device")
    if args.features:
        task = open_task(cfg, args.features, seed, device)
        bank, rows = task.bank(), task.split["train"]
        of_bank = bank.cache_keys(), bank.train_labels, bank.text_positive, bank.logit_scale, list(bank.classnames)
        return of_bank, [f"{args.features}#train/{row}" for row, _, _ in rows]
    images, root = load_image_task(cfg, seed, device), Path(args.root)
    train = images.dataset.train
    paths = [str((root.parent if root.is_file() else root) / item.path) for item in train]
    if args.out is not None:
        check_output(args.out, paths)
    images.dataset = replace(images.dataset, train=[], val=[], test=train)
    (features, labels), (text, _) = images.test_features(), images.text_features()
    if features is None or labels is None:
        raise UserError(f"expected training images in {args.root}, found none")
    return (features, labels, text, images.backbone.logit_scale, list(images.classnames)), paths


def issue_lines(issues: Sequence[LabelIssue], paths: Sequence[str], form: str) -> Iterator[str]:
    """Path, label, suggested class and score of each image, one a line, as "table", "csv" or "jsonl"."""
    rows = [(utf8(paths[i.index]), utf8(i.label), utf8(i.suggested), round(i.score, 4)) for i in issues]
    if form == "table":
        yield from aligned(COLUMNS, [[(*names, f"{score:.2f}") for *names, score in rows]])
    elif form == "csv":
        yield from (csv_line(*row) for row in (COLUMNS, *rows))
    else:
        yield from (json.dumps(dict(zip(COLUMNS, row)), ensure_ascii=False) + "\n" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, 1 if there is something wrong with an image, else as of `report`."""

    def run() -> int:
        args = parse_arguments(arguments)
        return int(args.run(args) > 0)

    return run_cli(run)


if __name__ == "__main__":
    sys.exit(main())

"""The command `predict`: `MODEL IMAGE|FOLDER|FILE.txt|- ... [--format table|csv|jsonl] [--out FILE] [...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..backbones.identity import AUTO, PRECISIONS
from ..utils.errors import Parser, UserError, command, number, report
from ..utils.files import OutputFile
from .files import FORMATS, REPLACED, check_inputs

KEEP = 'mark images as "none of these" that score lower than this share of images of known classes, as 0.95'
EPILOG = """\
A folder is searched with all its folders, in sorted order. Lists are relative to the current folder.
The exit code is 1 if an image could not be read: its row says why, and the others go on.
"""

whole = number(int, 1, 2**31 - 1)  # what turns a word into a number from 1 on


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    about = "Classifies images with a trained model."
    parser = Parser(prog=command("predict"), description=about, epilog=EPILOG)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model folder, or the output folder of a run")
    add("inputs", nargs="*", metavar="INPUT", help="images, folders, .txt files of paths, or - for a list on stdin")
    add("--features", type=Path, metavar="BANK", help="classify the features of a bank; no images")
    add("--split", choices=("train", "val", "test"), default="test", help="which features of the bank (%(default)s)")
    add("--top", type=whole, default=5, metavar="N", help="how many classes a row has (%(default)s)")
    add("--format", choices=tuple(FORMATS), help="by default the ending of --out, else table")
    add("--out", type=OutputFile(*REPLACED), metavar="FILE", help="write the rows here, whole or not at all")
    add("--keep", type=float, metavar="SHARE", help=KEEP)
    add("--together", action="store_true", help="these images inform each other: what is said of one depends on all")
    add("--sort-into", type=Path, metavar="DIR", help="copy each image into the folder of its class below DIR")
    add("-0", "--null", action="store_true", help="paths of lists end with a NUL character, as of find -print0")
    add("--batch-size", type=whole, default=0, metavar="N", help="images encoded at once (64 of 224 x 224 pixels)")
    add("--device", default="", help='such as "cpu" or "cuda"; by default a GPU if there is one')
    add("--backbone", default="", metavar="NAME", help="of a model that was trained from a bank: what encodes images")
    add("--pretrained", default="", metavar="TAG", help="its weights: a tag of open_clip's, or a file")
    add("--precision", choices=PRECISIONS, default=AUTO, help="what the backbone computes in (%(default)s)")
    return parser.parse_intermixed_args(arguments)  # flags may stand among the inputs


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError where flags do not go together, a share is none, or there is nothing to classify."""
    if args.keep is not None and not 0 < args.keep < 1:
        raise UserError(f"--keep must lie between 0 and 1, as 0.95, got {args.keep:g}")
    if args.keep is not None and args.together:
        raise UserError("--keep has thresholds for images that are classified one by one; leave it out with --together")
    if args.features is None:
        check_inputs(args.inputs)
        if args.split != "test":
            raise UserError(f"--split {args.split} goes with --features")
    else:
        flags = {"--sort-into": args.sort_into, "--backbone": args.backbone, "--pretrained": args.pretrained}
        flags |= {"INPUT": args.inputs, "--precision": args.precision != AUTO}
        if given := [name for name, value in flags.items() if value]:
            raise UserError(f"--features takes the place of images, and {given[0]} is for these; leave one of them out")


def predict(args: argparse.Namespace) -> int:
    """Predicts as the flags say; returns how many images could not be read."""
    check_arguments(args)
    from .prediction import Options, predict_bank, predict_images  # torch and open_clip take seconds to import

    options = Options(args.top, chosen_format(args), args.out, args.keep, args.together)
    return predict_images(args, options) if args.features is None else predict_bank(args, options)


def chosen_format(args: argparse.Namespace) -> str:
    """The format of the rows: as `--format` says, else by the ending of `--out`, else the table."""
    ending = args.out.suffix[1:].lower() if args.out else ""
    return args.format or (ending if ending in FORMATS else "table")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, 1 if an image could not be read, else as of `report`."""
    return report(lambda: int(predict(parse_arguments(arguments)) > 0))


if __name__ == "__main__":
    sys.exit(main())

"""The command `predict`, which classifies images with a trained model."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..features.backbones.arguments import MODEL, add_device_arguments, add_encoder_arguments
from ..features.backbones.identity import AUTO
from ..models.predict.files import FORMATS, REPLACED, check_inputs
from ..utils.command_line import Parser, announce, run_cli, whole
from ..utils.errors import UserError
from ..utils.files import OutputFile

EPILOG = """\
Folders are searched recursively, in sorted order. Paths in lists are relative to the current folder.
An image that cannot be read has a row with the reason.
"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("predict", "Classify images with a trained model.", epilog=EPILOG)
    parser.examples = ("output/model photo.jpg", "output/model photos --open-set 0.95 --out rows.csv")
    parser.failure = "an image could not be read"
    add = parser.add_argument
    open_set = "reject images as unknown below the score that RATE of known images reach, such as 0.95"
    add("model", metavar="MODEL", help=MODEL)
    add("inputs", nargs="*", metavar="INPUT", help="images, folders, .txt files of paths, or - for paths on stdin")
    add("--top", type=whole, default=5, metavar="N", help="number of classes to list for an image, the likeliest first")
    add("--format", choices=tuple(FORMATS), help="format of the rows (default: the ending of --out, or table)")
    add("--out", type=OutputFile(*REPLACED), metavar="FILE", help="file to write (default: standard output)")
    add("--open-set", type=float, metavar="RATE", help=open_set)
    coverage = "list the classes that contain the class of an image with the probability SHARE, such as 0.9"
    add("--coverage", type=float, metavar="SHARE", help=coverage)
    add("--sort-into", type=Path, metavar="DIR", help="copy each image to the folder of its class in DIR")
    add("--transductive", action="store_true", help="adapt the model to all these images before predicting them")
    add("-0", "--null", action="store_true", help="paths in lists end with NUL, as those of find -print0")
    bank = parser.add_argument_group("features instead of images")
    bank.add_argument("--features", type=Path, metavar="BANK", help="feature bank to classify instead of images")
    splits = ("train", "val", "test")
    bank.add_argument("--split", choices=splits, default="test", help="split of the feature bank")
    encoder = parser.add_argument_group("encoder and device")
    add_encoder_arguments(encoder)
    add_device_arguments(encoder)
    batch = "images per batch (default: 64 of 224 x 224 pixels)"
    encoder.add_argument("--batch-size", type=whole, default=0, metavar="N", help=batch)
    return parser.parse_intermixed_args(arguments)  # options may appear between the inputs


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for contradicting flags, a rate out of range, or missing inputs."""
    if args.open_set is not None and not 0 < args.open_set < 1:
        raise UserError(f"--open-set must be between 0 and 1, such as 0.95, got {args.open_set:g}")
    if args.open_set is not None and args.transductive:
        raise UserError("--open-set needs predictions of single images; leave it out with --transductive")
    if args.coverage is not None and not 0 < args.coverage < 1:
        raise UserError(f"--coverage must be between 0 and 1, such as 0.9, got {args.coverage:g}")
    if args.coverage is not None and args.transductive:
        raise UserError("--coverage needs predictions of single images; leave it out with --transductive")
    if args.features is None:
        check_inputs(args.inputs)
        if args.sort_into in map(Path, args.inputs):
            problem = f"--sort-into {args.sort_into} is an input too, and the folder of the copies is not searched"
            raise UserError(f"{problem}; choose another folder")
        if args.split != "test":
            raise UserError(f"--split {args.split} needs --features")
    else:
        flags = {"--sort-into": args.sort_into, "--backbone": args.backbone, "--pretrained": args.pretrained}
        flags |= {"INPUT": args.inputs, "--precision": args.precision != AUTO, "--batch-size": args.batch_size}
        flags["--device"] = args.device
        if conflicts := [name for name, value in flags.items() if value]:
            raise UserError(f"--features replaces images, which {conflicts[0]} needs; leave one of them out")


def predict(args: argparse.Namespace) -> int:
    """Run the command; returns the number of images that could not be read."""
    check_arguments(args)
    announce(f"loading the model {args.model}")
    from ..models.predict.prediction import predict_bank, predict_images  # slow imports

    return predict_images(args) if args.features is None else predict_bank(args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 1 if an image could not be read, else 2 for wrong input."""
    return run_cli(lambda: int(predict(parse_arguments(arguments)) > 0))

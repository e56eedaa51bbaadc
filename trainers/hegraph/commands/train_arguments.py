"""Arguments of a training or test: CoOp's flags, and the configuration keys that follow them."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..baselines import ALL_BASELINES, load_method
from ..features.backbones.help_texts import ENCODER, WEIGHTS
from ..utils.command_line import Parser, command, is_word, refuse_several_processes
from ..utils.errors import UserError, unknown
from ..utils.option import NODE, OUR_METHOD

TRAINERS = (OUR_METHOD, *ALL_BASELINES)
DATA = "folder of images, CSV file, annotations, feature bank, hf:NAME, or name of a data set such as digits"

SELECT_ON = f"{NODE}.SELECT_ON"
PROMPTS_SOURCE = f"{NODE}.PROMPTS.SOURCE"
# Flags of CoOp's parser for trainers that this package does not have; CoOp's own trainers ignore them as well
SOURCE_DOMAINS, HEAD = "DATASET.SOURCE_DOMAINS", "MODEL.HEAD.NAME"

logger = logging.getLogger(__name__)


def train_parser() -> Parser:
    """Build the parser of the command `train`."""
    summary = "Train and test a model on images. Flags set the configuration key in brackets."
    usage = f"{command('train [DATA] [OPTION ...] [KEY VALUE ...]')}"
    parser = Parser("train", summary, usage=usage)
    parser.examples = ("photos", "digits --backbone mini --shots 4")
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA)
    add_flags(parser, "output/NAME, after DATA")
    return parser


def parse_train(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the command `train`; DATA is the first word, or the first one after all flags.

    Raises:
        UserError: If an argument is unknown or invalid, or there are two words for DATA.
    """
    # Separately, because argparse would add all flags after a first word to the keys and values
    first = [*arguments[:1]] if arguments and not arguments[0].startswith("-") else []
    args = parse_flags(train_parser(), arguments[len(first) :])
    words = [*first, *([] if args.data is None else [args.data]), *args.opts]
    args.data = ""
    if words and not is_key(words[0]):
        args.data = words.pop(0)
    if args.data and words and is_word(words[0]):
        got = f"{args.data!r} and {words[0]!r}"
        raise UserError(f"expected one folder, file or data set, got {got}; write a name with spaces in quotes")
    args.opts = words
    return args


def is_key(word: str) -> bool:
    """Whether a word is a configuration key, and no file or folder."""
    from ..config import KEY_PATTERN  # slow to import

    return KEY_PATTERN.fullmatch(word) is not None and not os.path.exists(word)


def flags_parser(usage: str | None = None, summary: str = "Train and test a model.") -> Parser:
    """Build the parser of flags without a command, which is CoOp's way."""
    parser = Parser("", summary, usage=usage)
    parser.examples = (
        "train photos",
        "--dataset-config-file digits --config-file mini --shots 4 --seed 1 --output-dir output/digits",
    )
    add_flags(parser, "./output")
    parser.add_argument("--version", action="store_true", help="print the version and the commit")
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse flags without a command."""
    return parse_flags(flags_parser(), arguments)


def parse_flags(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse flags, configuration keys and values. A flag that sets a configuration key is stored under this key."""
    args = parser.parse_args([*arguments])
    from ..config import split_at_key  # slow to import

    for key in ("INPUT.TRANSFORMS", SOURCE_DOMAINS, "DATASET.TARGET_DOMAINS", "DATASET.TARGET_DATASETS"):
        if (words := getattr(args, key)) is not None:
            values, pairs = split_at_key(words)
            args.opts[:0] = pairs
            setattr(args, key, values)
    return args


def add_flags(parser: Parser, output: str) -> None:
    """Add CoOp's flags, and the keys and values that follow them; `output` describes the default output folder."""
    many: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    count: dict[str, Any] = {"type": int, "metavar": "N"}
    add = parser.add_argument
    add("--backbone", dest="MODEL.BACKBONE.NAME", metavar="NAME", help=ENCODER)
    add("--shots", dest="DATASET.NUM_SHOTS", **count, help="training images per class; -1: all (default: 16)")
    add("--output-dir", dest="OUTPUT_DIR", metavar="DIR", help=f"folder of the results (default: {output})")
    add("--root", dest="DATASET.ROOT", metavar="DIR", help="folder of the data sets, or your own folder or CSV file")
    no_names = "let images alone define the classes, without their names"
    add("--no-names", dest=PROMPTS_SOURCE, action="store_const", const="none", help=no_names)
    strict: dict[str, Any] = {"action": "store_true", "default": None}
    add("--strict", dest="DATASET.STRICT", **strict, help="stop at an image of yours that cannot be read")
    add("--keep-thumbnails", action="store_true", help="save thumbnails of the training images with the model")
    add("--seed", dest="SEED", **count, help="random seed; below 0: random (default: 1)")
    _add_flags_of_data(parser, many)
    _add_flags_of_method(parser, many)
    add = parser.add_argument_group("test of a trained model").add_argument
    add("--eval-only", action="store_true", help="test the model in --model-dir without training")
    add("--model-dir", default="", metavar="DIR", help="model folder, or output folder of a run")
    add("--load-epoch", **count, help="epoch of the model to test (see TRAIN.CHECKPOINT_FREQ; default: last)")
    add = parser.add_argument_group("flags of CoOp without effect").add_argument
    add("--source-domains", dest=SOURCE_DOMAINS, **many, help="without effect, as for CoOp's trainers")
    add("--head", dest=HEAD, metavar="NAME", help="without effect, as for CoOp's trainers")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys and their values"
    )


def _add_flags_of_data(parser: Parser, many: dict[str, Any]) -> None:
    """Add the flags that name data; `many` describes a flag with several names."""
    add = parser.add_argument_group("data").add_argument
    add("--dataset-config-file", default="", metavar="NAME", help="YAML file of the data set, or a name such as digits")
    add("--features", type=Path, metavar="BANK", help="feature bank to train and test on, instead of images")
    unlabelled = "adapt with unlabelled images: pool (images not sampled), test (transductive), or a path"
    add("--unlabelled", dest="DATASET.UNLABELLED", metavar="SOURCE", help=unlabelled)
    skip: dict[str, Any] = {"action": "store_true", "default": None}
    add("--skip-unreadable", dest="DATASET.SKIP_UNREADABLE", **skip, help="skip unlabelled images that cannot be read")
    domains = "data sets with the same classes to test on too"
    add("--target-domains", dest="DATASET.TARGET_DOMAINS", **many, help=domains)
    targets = "data sets with other classes to test on too, such as NAME:base or NAME:new"
    add("--target-datasets", dest="DATASET.TARGET_DATASETS", **many, help=targets)


def _add_flags_of_method(parser: Parser, many: dict[str, Any]) -> None:
    """Add the flags of encoder, method and training; `many` as for `_add_flags_of_data`."""
    add = parser.add_argument_group("encoder, method and training").add_argument
    add("--config-file", default="", metavar="NAME", help="YAML file of the method, or a name such as mini")
    add("--pretrained", dest="MODEL.BACKBONE.PRETRAINED", metavar="WEIGHTS", help=WEIGHTS)
    add("--transforms", dest="INPUT.TRANSFORMS", **many, help="transforms of training images")
    add("--trainer", default=OUR_METHOD, metavar="NAME", help=f"method: {', '.join(TRAINERS)}")
    select = "val: choose the values of the key SELECT that are best on validation images (default: last_step, none)"
    add("--select", dest=SELECT_ON, choices=("last_step", "val"), help=select)
    add("--no-train", action="store_true", help="encode the features without training")
    add("--resume", dest="RESUME", metavar="DIR", help="output folder of an interrupted run to continue")
    host = "program that runs the training: Dassl, or this package alone; auto: Dassl in a CoOp checkout"
    add("--host", choices=("auto", "dassl", "alone"), default="auto", help=host)


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that exclude each other."""
    if args.opts and is_word(args.opts[0]):
        example = command("train photos --seed 1")
        raise UserError(f"{args.opts[0]!r} follows flags; a command, a folder or a data set comes first: {example}")
    if late := next((key for key in args.opts[::2] if key.startswith("--")), ""):
        raise UserError(f"{late[:80]} follows KEY VALUE pairs; put all flags before them")
    for flag, key in (("--source-domains", SOURCE_DOMAINS), ("--head", HEAD)):
        if getattr(args, key):
            logger.info("%s has no effect: a method of this package uses no such part of Dassl", flag)
    if args.trainer not in TRAINERS:
        raise unknown("trainer", args.trainer, TRAINERS)
    if args.eval_only != bool(args.model_dir):
        raise UserError("--eval-only and --model-dir go together: give both, or none")
    if args.no_train and args.eval_only:
        raise UserError("--no-train encodes training images, and --eval-only tests a model: leave one out")
    if not args.no_train:
        refuse_several_processes()
    if args.load_epoch is not None and (not args.eval_only or args.trainer in ALL_BASELINES):
        raise UserError("--load-epoch needs --eval-only and --model-dir of HeGraphAdapter")
    if args.trainer in ALL_BASELINES and getattr(args, SELECT_ON):
        raise UserError(f"--select is an option of HeGraphAdapter, got --trainer {args.trainer}; leave it out")
    if args.trainer in ALL_BASELINES and args.eval_only and (reason := load_method(args.trainer).not_saved):
        raise UserError(f"{args.trainer} saves no model: {reason}; leave out --eval-only and --model-dir")

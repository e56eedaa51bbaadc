"""The command line: trains and tests one seed with CoOp's flags, or runs a command such as `predict`.

In a CoOp checkout with Dassl and a data set of CoOp, Dassl and CoOp's train.py run the training; elsewhere, this
package does. Slow imports, such as torch, are in the functions that need them.
"""

import argparse
import importlib
import importlib.util
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .baselines import ALL_BASELINES, TRANSDUCTIVE_METHODS, load_method, method_options
from .utils.command_line import Parser, command, echo, refuse_several_processes, run_cli
from .utils.errors import UserError, first_line, unknown
from .utils.option import NODE, OUR_METHOD

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from .config import Config

# Command -> module of this package with its `main`, and summary
SUBCOMMANDS = {
    "sweep": ("commands.sweep", "run a grid of data sets, methods, shots and seeds"),
    "results": ("commands.results", "make tables, figures and pages from the records of runs"),
    "datasets": ("commands.datasets", "check or download data sets"),
    "features": ("commands.features", "encode a data set as a feature bank, or import a Tip-Adapter cache"),
    "baselines": ("commands.baselines", "list the methods"),
    "describe": ("commands.describe", "generate class descriptions with a chat model"),
    "predict": ("commands.predict", "classify images with a trained model"),
    "train-more": ("commands.train_more", "add images and classes to a trained model"),
    "backbones": ("commands.backbones", "compare backbones on labelled images, and recommend one"),
    "label": ("commands.label", "select images to label, or find wrong labels"),
    "export": ("commands.export", "export a trained model to an ONNX file"),
    "demo": ("commands.demo", "try a trained model in the browser"),
    "serve": ("commands.serve", "answer HTTP requests with the predictions of a trained model"),
    "teach": ("commands.teach", "train a model interactively in the browser"),
}
TRAINERS = (OUR_METHOD, *ALL_BASELINES)
CHECKOUT = Path(__file__).parents[2]  # not resolved: with `install.sh --link`, this is CoOp's

SELECT_ON = f"{NODE}.SELECT_ON"
# Flags of CoOp's parser for trainers that this package does not have; CoOp's own trainers ignore them as well
SOURCE_DOMAINS, HEAD = "DATASET.SOURCE_DOMAINS", "MODEL.HEAD.NAME"
# Rule of a transfer, as a record names it -> end of the phrase that `summary` prints
RULES = {"same classes": "as the model's", "other classes": "than the model's"}

logger = logging.getLogger(__package__)  # __name__ is "__main__" here


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of a training or test. A flag that sets a configuration key is stored under this key."""
    args = build_parser().parse_args(arguments)
    from .config import split_at_key  # slow to import

    for key in ("INPUT.TRANSFORMS", SOURCE_DOMAINS, "DATASET.TARGET_DOMAINS", "DATASET.TARGET_DATASETS"):
        if (words := getattr(args, key)) is not None:
            values, pairs = split_at_key(words)
            args.opts[:0] = pairs
            setattr(args, key, values)
    return args


def build_parser() -> Parser:
    """Build the parser of a training or test."""
    commands = [f"  {name:12}{summary}" for name, (_, summary) in SUBCOMMANDS.items()]
    usage = f"{command()} [OPTION ...] [KEY VALUE ...]\n       {command()} COMMAND ..."
    summary = "Train and test one seed, or run a command. Flags set the configuration key in brackets."
    epilog = "\n".join(["commands, each with its own --help:", *commands])
    parser = Parser("", summary, usage=usage, epilog=epilog)
    parser.examples = (
        "--dataset-config-file digits --config-file mini --shots 4 --seed 1 --output-dir output/digits",
        "--dataset-config-file folder --root photos --config-file vit_b16 --shots -1 --output-dir output/photos",
    )
    add = parser.add_argument
    many: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    count: dict[str, Any] = {"type": int, "metavar": "N"}
    add("--dataset-config-file", default="", metavar="NAME", help="YAML file of the data set, or a name such as digits")
    add("--config-file", default="", metavar="NAME", help="YAML file of the method, or a name such as mini")
    add("--root", dest="DATASET.ROOT", metavar="DIR", help="folder of the data sets, or your own folder or CSV file")
    add("--features", type=Path, metavar="BANK", help="feature bank to train and test on, instead of images")
    add("--output-dir", dest="OUTPUT_DIR", metavar="DIR", help="folder of the results (default: ./output)")
    add("--shots", dest="DATASET.NUM_SHOTS", **count, help="training images per class; -1: all (default: 16)")
    add("--seed", dest="SEED", **count, help="random seed; below 0: random (default: 1)")
    add("--trainer", default=OUR_METHOD, metavar="NAME", help=f"method: {', '.join(TRAINERS)}")
    backbone = "image encoder: mini, or an open_clip model name"
    add("--backbone", dest="MODEL.BACKBONE.NAME", metavar="NAME", help=backbone)
    add("--transforms", dest="INPUT.TRANSFORMS", **many, help="transforms of training images")
    add("--resume", dest="RESUME", metavar="DIR", help="output folder of an interrupted run to continue")
    add("--eval-only", action="store_true", help="test the model in --model-dir without training")
    add("--model-dir", default="", metavar="DIR", help="model folder, or output folder of a run")
    add("--load-epoch", **count, help="epoch of the model to test (see TRAIN.CHECKPOINT_FREQ; default: last)")
    add("--select", dest=SELECT_ON, choices=("last_step", "val"), help="val: select the values of SELECT on val images")
    add("--no-train", action="store_true", help="encode the features without training")
    add("--keep-thumbnails", action="store_true", help="save thumbnails of the training images with the model")
    host = "program that runs the training: Dassl, or this package alone; auto: Dassl in a CoOp checkout"
    add("--host", choices=("auto", "dassl", "alone"), default="auto", help=host)
    unlabelled = "adapt with unlabelled images: pool (images not sampled), test (transductive), or a path"
    add("--unlabelled", dest="DATASET.UNLABELLED", metavar="SOURCE", help=unlabelled)
    skip: dict[str, Any] = {"action": "store_true", "default": None}
    add("--skip-unreadable", dest="DATASET.SKIP_UNREADABLE", **skip, help="skip unlabelled images that cannot be read")
    domains = "data sets with the same classes to test on too"
    add("--target-domains", dest="DATASET.TARGET_DOMAINS", **many, help=domains)
    targets = "data sets with other classes to test on too, such as NAME:base or NAME:new"
    add("--target-datasets", dest="DATASET.TARGET_DATASETS", **many, help=targets)
    add("--source-domains", dest=SOURCE_DOMAINS, **many, help="without effect, as for CoOp's trainers")
    add("--head", dest=HEAD, metavar="NAME", help="without effect, as for CoOp's trainers")
    add("--version", action="store_true", help="print the version and the commit")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys and their values")
    return parser


def dassl_obstacles(args: argparse.Namespace) -> list[str]:
    """List the reasons why Dassl cannot run these arguments. Without one, Dassl is imported."""
    name = args.trainer
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    of_coop = name in ALL_BASELINES and load_method(name).trainer_of_coop
    checks = {
        f"{CHECKOUT} is not a CoOp checkout (scripts/hegraph/install.sh installs this package into one)": not in_coop(),
        "--features needs no images, which Dassl loads": args.features is not None,
        "--keep-thumbnails is not available with Dassl": args.keep_thumbnails,
        "Dassl does not support several processes of torchrun": several,
        f"{name} is transductive, which Dassl does not support": name in TRANSDUCTIVE_METHODS,
        f"CoOp has its own trainer {name}, which python train.py --trainer {name} runs": of_coop,
        "Dassl is not installed and not on PYTHONPATH": importlib.util.find_spec("dassl") is None,
    }
    obstacles = [obstacle for obstacle, holds in checks.items() if holds]
    if not obstacles:
        try:
            importlib.import_module(f"{__package__}.trainer")
        except ImportError as error:
            obstacles.append(f"Dassl cannot be imported ({error})")
    return obstacles


def in_coop() -> bool:
    """Whether this package is in a CoOp checkout."""
    return (CHECKOUT / "train.py").is_file() and (CHECKOUT / "datasets" / "oxford_pets.py").is_file()


def configure(args: argparse.Namespace) -> "tuple[Config, CfgNode | None]":
    """Build the configuration, and Dassl's configuration, or None if the run does without Dassl.

    Raises:
        UserError: If the configuration is invalid, or `--host dassl` is given and Dassl cannot run.
    """
    from .config import OPTIONS
    from .config_files import load_cfg

    flags = {key: value for key, value in vars(args).items() if key in OPTIONS and value not in (None, "")}
    flags["TRAINER.NAME"] = args.trainer
    files = args.dataset_config_file, args.config_file, flags, args.opts, method_options(args.trainer)
    obstacles = ["--host alone"] if args.host == "alone" else dassl_obstacles(args)
    if not obstacles:
        from .trainer import configure_coop

        try:
            return configure_coop(CHECKOUT, *files)
        except UserError as error:
            if error.code != "dassl":
                raise
            obstacles = [str(error)]
    if args.host == "dassl":
        raise UserError(f"--host dassl: {'; '.join(obstacles)}")
    cfg = load_cfg(*files)
    if args.host == "auto" and in_coop():
        logger.info("running without Dassl: %s", "; ".join(obstacles))
    return cfg, None


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that exclude each other."""
    word = args.opts[0] if args.opts else ""
    if word[:1].isalpha() and "." not in word and word != word.upper():  # a key has a dot or is in capitals
        raise unknown("command", word, SUBCOMMANDS)
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


def run_command(args: argparse.Namespace) -> None:
    """Train and test, and print the result in one line."""
    check_flags(args)
    cfg, dassl_cfg = configure(args)
    from .utils import processes

    with processes.process_group():
        if dassl_cfg is None:
            from .experiments.run import run

            model = args.model_dir or None, args.load_epoch
            record = run(cfg, args.features, *model, not args.no_train, args.keep_thumbnails)
        else:
            from .trainer import run_in_coop

            record = run_in_coop(args, dassl_cfg)
        if record:
            echo(f"{summary(record)} -> {cfg.run.output_dir}\n")
            for line in next_commands(Path(cfg.run.output_dir)):
                logger.info("%s", line)


def next_commands(output: Path) -> list[str]:
    """List commands that use the model in an output folder; empty if the folder has no model."""
    from .models.folder import CONFIG

    if not (output / "model" / CONFIG).is_file():
        return []
    calls = {"classify images": "predict {} IMAGES", "try the model in the browser": "demo {}"}
    return [f"{purpose}: {command(call.format(shlex.quote(str(output))))}" for purpose, call in calls.items()]


def version() -> str:
    """Version of the package and, if known, its commit."""
    from . import __version__
    from .utils.commit import git_commit

    commit = git_commit()
    return f"HeGraphAdapter {__version__}" + (f" ({commit})" if commit not in (None, "unknown") else "")


def summary(record: dict) -> str:
    """Result of a run in one line."""
    rule = f" ({record['rule']} {RULES[record['rule']]})" if "rule" in record else ""
    from .results.scores import data_set, shots_of

    task = f"{data_set(record)}{rule}, {shots_of(record)}, seed {record['seed']}"
    if record["accuracy"] is None and record.get("map") is None:
        return f"{task}: trained, no test images"
    method = f"{record['trainer']} ({record['variant']})" if record["variant"] else record["trainer"]
    scores = {"zero-shot": record["accuracy_zero_shot"], "HeGraphAdapter(T)": record["accuracy_text"]}
    scores[method] = record["accuracy"]
    if record["accuracy"] is None:
        scores = {"zero-shot mAP": record["map_zero_shot"], f"{method} mAP": record["map"]}
        scores |= {f"{kind} F1": record[f"{kind}_f1"] for kind in ("macro", "micro")}
    return f"{task}: {', '.join(f'{name} {score:.2f}' for name, score in scores.items() if score is not None)}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    first = arguments[0] if arguments else ""
    if first in SUBCOMMANDS:
        return importlib.import_module(f".{SUBCOMMANDS[first][0]}", __package__).main(arguments[1:])

    def train_and_test() -> None:
        try:
            "".join(arguments).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"expected arguments in UTF-8: {first_line(error)}") from error
        args = parse_arguments(arguments)
        if args.version:
            echo(f"{version()}\n")
        else:
            run_command(args)

    return run_cli(train_and_test, several_processes=True, continues=True)  # --no-train shares its work


if __name__ == "__main__":
    raise SystemExit(main())

"""The command line: trains and tests one seed with CoOp's flags, or runs one of the sub-commands.

Inside a CoOp checkout, with Dassl at hand and a data set of CoOp's, the real Dassl and CoOp's train.py train and test;
else the package does so alone. What takes long to import, torch first of all, is imported where it is used.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .baselines import ALL_BASELINES, TRANSDUCTIVE_METHODS, load_method, method_options
from .utils.errors import Parser, UserError, command, echo, first_line, refuse_several_processes, run_cli, unknown
from .utils.option import NODE, OUR_METHOD

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from .config import Config

# Sub-command -> the module of this package whose `main` does it, and what it is for. To add one is to add a row
SUBCOMMANDS = {
    "sweep": ("sweep.__main__", "do many runs: data sets, methods, shots, seeds"),
    "results": ("results.__main__", "tables, figures and pages made from the records of runs"),
    "datasets": ("datasets.__main__", "say what is missing of a data set, or download it"),
    "features": ("features.__main__", "encode a whole data set as a feature bank, or import a Tip-Adapter cache"),
    "baselines": ("baselines.__main__", "list the other methods"),
    "describe": ("describe.__main__", "ask a chat endpoint for sentences about your classes"),
    "predict": ("predict.__main__", "classify images with a trained model"),
    "train-more": ("estimator.__main__", "teach a trained model more images and classes"),
    "label": ("labels.__main__", "say what to label next, and which labels seem wrong"),
    "export": ("export.__main__", "write a trained model as an ONNX file"),
    "demo": ("demo.__main__", "show a page in the browser to try a trained model"),
    "teach": ("teach.__main__", "show a page in the browser to teach a model with images in a folder"),
}
DESCRIPTION = "Trains and tests one seed. The flags are CoOp's; a sub-command in first place does something else."
TRAINERS = (OUR_METHOD, *ALL_BASELINES)
CHECKOUT = Path(__file__).parents[2]  # not resolved: with `install.sh --link`, this is CoOp's

SELECT_ON = f"{NODE}.SELECT_ON"
RULES = {"same classes": "as the model's", "other classes": "than the model's"}  # ends of the record's "rule"

logger = logging.getLogger(__package__)  # __name__ is "__main__" here


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the flags of training and testing. Those that set a key of the configuration are called by the key."""
    listed = [f"  {name:12}{summary}" for name, (_, summary) in SUBCOMMANDS.items()]
    program = command()
    parser = Parser(
        prog=program,
        usage=f"{program} [FLAG ...] [KEY VALUE ...]\n       {program} SUBCOMMAND ...",
        description=DESCRIPTION,
        epilog="\n".join(["sub-commands, each with a --help of its own:", *listed]),
    )
    add = parser.add_argument
    add("--features", type=Path, metavar="BANK", help="train and test from a feature bank; no images")
    add("--root", dest="DATASET.ROOT", help="folder that holds the data sets; of ImageFolder, your folder or CSV file")
    add("--output-dir", dest="OUTPUT_DIR", help="where split.json, the adapter and result.json go")
    add("--shots", dest="DATASET.NUM_SHOTS", type=int, help="training images per class")
    add("--seed", dest="SEED", type=int, help="from 0; below 0: unseeded (one is drawn and recorded)")
    add("--config-file", default="", help="YAML of the method: a path, or a name that ships such as mini")
    add("--dataset-config-file", default="", help="YAML of the data set: a path, or a name that ships such as digits")
    add("--trainer", default=OUR_METHOD, help=f"the method: {', '.join(TRAINERS)}")
    add("--backbone", dest="MODEL.BACKBONE.NAME", help="an open_clip model, or mini")
    add("--transforms", dest="INPUT.TRANSFORMS", nargs="+", help="of training images")
    add("--resume", dest="RESUME", metavar="DIR", help="go on with the interrupted run of this folder")
    add("--eval-only", action="store_true", help="do not train; test the model in --model-dir")
    add("--model-dir", default="", help="output folder of a finished run, or its model folder")
    add("--load-epoch", type=int, help="the model as it was after so many epochs (see TRAIN.CHECKPOINT_FREQ)")
    add("--select", dest=SELECT_ON, choices=("last_step", "val"), help="choose SELECT on the few-shot val split")
    add("--no-train", action="store_true", help="encode the features and stop")
    add("--keep-thumbnails", action="store_true", help="put small pictures of the training images beside the model")
    add("--host", choices=("auto", "dassl", "alone"), default="auto", help="what drives the training")
    add("--unlabelled", dest="DATASET.UNLABELLED", help="images without labels to hear: pool, test, or a path")
    add(
        "--skip-unreadable", dest="DATASET.SKIP_UNREADABLE", action="store_true", default=None,
        help="leave out unlabelled images that cannot be read",
    )  # fmt: skip
    add("--target-domains", dest="DATASET.TARGET_DOMAINS", nargs="+", help="also test on these, of the same classes")
    add("--target-datasets", dest="DATASET.TARGET_DATASETS", nargs="+", help="also test on these: NAME[:base or :new]")
    add("--version", action="store_true", help="print the version and the commit")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys, as in CoOp")
    args = parser.parse_args(arguments)
    from .config import split_at_key  # --help needs no configuration

    for key in ("INPUT.TRANSFORMS", "DATASET.TARGET_DOMAINS", "DATASET.TARGET_DATASETS"):
        if (words := getattr(args, key)) is not None:
            values, pairs = split_at_key(words)
            args.opts[:0] = pairs
            setattr(args, key, values)
    return args


def obstacles_to_dassl(args: argparse.Namespace) -> list[str]:
    """What keeps Dassl from running this, as far as the flags tell; imports Dassl if nothing does."""
    name, several = args.trainer, os.environ.get("WORLD_SIZE", "1") != "1"
    of_coop = name in ALL_BASELINES and load_method(name).trainer_of_coop
    checks = {
        f"{CHECKOUT} is no CoOp checkout (scripts/hegraph/install.sh puts this package into one)": not in_coop(),
        "--features needs no images, and so no Dassl": args.features is not None,
        "--keep-thumbnails is not done through Dassl": args.keep_thumbnails,
        "several processes of torchrun share the encoding without Dassl alone": several,
        f"{name} predicts all test images together, which Dassl does not": name in TRANSDUCTIVE_METHODS,
        f"Dassl knows CoOp's own trainer of that name (python train.py --trainer {name})": of_coop,
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
    """Whether this package lies in a CoOp checkout."""
    return (CHECKOUT / "train.py").is_file() and (CHECKOUT / "datasets" / "oxford_pets.py").is_file()


def configure(args: argparse.Namespace) -> tuple[Config, CfgNode | None]:
    """Builds the configuration, and with it that of Dassl; None in its place if the run goes without. UserError if
    something in the configuration is wrong, or Dassl is asked for and cannot run.
    """
    from .config import OPTIONS
    from .config_files import load_cfg

    flags = {key: value for key, value in vars(args).items() if key in OPTIONS and value not in (None, "")}
    flags["TRAINER.NAME"] = args.trainer
    files = args.dataset_config_file, args.config_file, flags, args.opts, method_options(args.trainer)
    obstacles = ["--host alone"] if args.host == "alone" else obstacles_to_dassl(args)
    if not obstacles:
        from .trainer import configure_coop, obstacles_in

        cfg, tree = configure_coop(CHECKOUT, *files)
        if not (obstacles := obstacles_in(cfg)):
            return cfg, tree
    if args.host == "dassl":
        raise UserError(f"--host dassl: {'; '.join(obstacles)}")
    cfg = load_cfg(*files)
    if args.host == "auto" and in_coop():
        logger.info("running without Dassl: %s", "; ".join(obstacles))
    return cfg, None


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError where flags do not go together."""
    word = args.opts[0] if args.opts else ""
    if word[:1].isalpha() and "." not in word and word != word.upper():  # a key has a dot or is in capitals
        raise unknown("sub-command", word, SUBCOMMANDS)
    if args.trainer not in TRAINERS:
        raise unknown("trainer", args.trainer, TRAINERS)
    if args.eval_only != bool(args.model_dir):
        raise UserError("--eval-only and --model-dir go together")
    if args.no_train and args.eval_only:
        raise UserError("--no-train encodes the images of a training, and --eval-only tests a model: give one of them")
    if not args.no_train:
        refuse_several_processes()
    if args.load_epoch is not None and (not args.eval_only or args.trainer in ALL_BASELINES):
        raise UserError("--load-epoch goes with --eval-only and --model-dir of HeGraphAdapter")
    if args.trainer in ALL_BASELINES and getattr(args, SELECT_ON):
        raise UserError(f"--select chooses HeGraphAdapter's values; {args.trainer} has none for it: leave it out")
    if args.trainer in ALL_BASELINES and args.eval_only and (reason := load_method(args.trainer).not_saved):
        raise UserError(f"{args.trainer} leaves no model for --eval-only to test: {reason}; train it in every run")


def run_command(args: argparse.Namespace) -> None:
    """Trains and tests as the flags say, and prints the result in one line."""
    check_flags(args)
    cfg, of_dassl = configure(args)
    from .utils import processes

    with processes.process_group():
        if of_dassl is None:
            from .experiments.run import run

            record = run(
                cfg, args.features, args.model_dir or None, args.load_epoch, not args.no_train, args.keep_thumbnails
            )
        else:
            from .trainer import run_in_coop

            record = run_in_coop(args, of_dassl)
        if record:
            echo(f"{summary(record)} -> {cfg.run.output_dir}\n")
            for line in next_commands(Path(cfg.run.output_dir)):
                logger.info("%s", line)


def next_commands(output: Path) -> list[str]:
    """The commands that use the model in an output folder, each with its purpose; none where there is no model."""
    from .models.folder import CONFIG

    if not (output / "model" / CONFIG).is_file():
        return []
    folder = shlex.quote(str(output))
    return [
        f"classify images: {command(f'predict {folder} IMAGES')}",
        f"try the model in the browser: {command(f'demo {folder}')}",
    ]


def version() -> str:
    """The version of the package and, where it is known, the commit."""
    from . import __version__
    from .utils.commit import git_commit

    commit = git_commit()
    return f"HeGraphAdapter {__version__}" + (f" ({commit})" if commit not in (None, "unknown") else "")


def summary(record: dict) -> str:
    """The result of a run in one line."""
    rule = f" ({record['rule']} {RULES[record['rule']]})" if "rule" in record else ""
    from .datasets.splits import images_per_class

    shots = f"{record['shots']} shots{images_per_class(record['shots'], record.get('images_per_class'))}"
    task = f"{record['dataset']}{rule}, {shots}, seed {record['seed']}"
    if record["accuracy"] is None:
        return f"{task}: trained; no test images, nothing scored"
    method = f"{record['trainer']} ({record['variant']})" if record["variant"] else record["trainer"]
    scores = {"zero-shot": record["accuracy_zero_shot"], "HeGraphAdapter(T)": record["accuracy_text"]}
    found = [(name, score) for name, score in [*scores.items(), (method, record["accuracy"])] if score is not None]
    return f"{task}: {', '.join(f'{name} {score:.2f}' for name, score in found)}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake of the user's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    first = arguments[0] if arguments else ""
    if first in SUBCOMMANDS:
        return importlib.import_module(f".{SUBCOMMANDS[first][0]}", __package__).main(arguments[1:])

    def train_and_test() -> None:
        try:
            "".join(arguments).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"no record can hold a name that is not UTF-8: {first_line(error)}") from error
        args = parse_arguments(arguments)
        if args.version:
            echo(f"{version()}\n")
        else:
            run_command(args)

    return run_cli(train_and_test, several_processes=True)  # which --no-train allows


if __name__ == "__main__":
    sys.exit(main())

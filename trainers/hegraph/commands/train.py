"""The command `train`, which trains and tests a model with one seed.

It takes a folder, a file or the name of a data set, and all flags of CoOp. Flags alone, without the command, are
CoOp's way (`train_without_command`). In a CoOp checkout with Dassl and a data set of CoOp, Dassl and CoOp's train.py
run the training; elsewhere, this package does. Slow imports, such as torch, are in the functions that need them.
"""

import argparse
import importlib
import importlib.util
import logging
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..baselines import ALL_BASELINES, TRANSDUCTIVE_METHODS, load_method, method_options
from ..utils.command_line import command, echo, run_cli
from ..utils.errors import OTHER_RUN, UserError, first_line
from ..utils.logs import PACKAGE, without_repetitions
from .train_arguments import check_flags, flags_parser, parse_flags, parse_train

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from ..config import Config

CHECKOUT = Path(__file__).parents[3]  # not resolved: with `install.sh --link`, this is CoOp's
# Rule of a transfer, as a record names it -> end of the phrase that `summary` prints
RULES = {"same classes": "as the model's", "other classes": "than the model's"}

logger = logging.getLogger(__name__)


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
            importlib.import_module(f"{PACKAGE}.trainer")
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
    from ..config import OPTIONS
    from ..config_files import load_cfg

    flags = {key: value for key, value in vars(args).items() if key in OPTIONS and value not in (None, "")}
    flags["TRAINER.NAME"] = args.trainer
    files = args.dataset_config_file, args.config_file, flags, args.opts, method_options(args.trainer)
    obstacles = ["--host alone"] if args.host == "alone" else dassl_obstacles(args)
    if not obstacles:
        from ..trainer import configure_coop

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


def run_command(args: argparse.Namespace, arguments: Sequence[str]) -> tuple[dict, Path]:
    """Train and test; returns the record, {} without one, and the output folder.

    Args:
        args: Parsed arguments.
        arguments: The same before parsing, for a message.
    """
    cfg, dassl_cfg = configure(args)
    if not cfg.data.name and args.features is None:
        from .train_choices import missing_data  # --help does not need it

        raise missing_data(arguments, cfg.data.root)
    from ..utils import processes

    with processes.process_group():
        if dassl_cfg is None:
            from ..experiments.run import run

            model = args.model_dir or None, args.load_epoch
            record = run(cfg, args.features, *model, not args.no_train, args.keep_thumbnails)
        else:
            from ..trainer import run_in_coop

            record = run_in_coop(args, dassl_cfg)
    return record, Path(cfg.run.output_dir)


def run_in_new_folder(args: argparse.Namespace, arguments: Sequence[str]) -> tuple[dict, Path]:
    """Train and test as `run_command`, in the first of the folders X, X-2, X-3, ... without another run.

    X is the output folder that `fill_in` chose.
    """
    from .train_choices import OUTPUT  # --help does not need it

    values = vars(args)
    folder = values[OUTPUT]
    number = 1
    with without_repetitions():
        while True:
            try:
                return run_command(args, arguments)
            except UserError as error:
                if error.code != OTHER_RUN:
                    raise
            used = values[OUTPUT]
            number += 1
            values[OUTPUT] = f"{folder}-{number}"
            message = "%s holds a run with other images or settings, which stays; the results go to %s."
            logger.info(message, used, values[OUTPUT])


def next_commands(output: Path) -> list[str]:
    """List commands that use the model in an output folder; empty if the folder has no model."""
    from ..models.folder import CONFIG

    if not (output / "model" / CONFIG).is_file():
        return []
    calls = {"classify images": "predict {} IMAGES", "try the model in the browser": "demo {}"}
    return [f"{purpose}: {command(call.format(shlex.quote(str(output))))}" for purpose, call in calls.items()]


def version() -> str:
    """Version of the package and, if known, its commit."""
    from .. import __version__
    from ..utils.commit import git_commit

    commit = git_commit()
    return f"HeGraphAdapter {__version__}" + (f" ({commit})" if commit not in (None, "unknown") else "")


def summary(record: dict) -> str:
    """Result of a run in one line."""
    rule = f" ({record['rule']} {RULES[record['rule']]})" if "rule" in record else ""
    from ..results.scores import data_set, shots_of

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


def result_sentence(record: dict) -> str:
    """Result of a run in a sentence."""
    if record["accuracy"] is None and record.get("map") is None:
        return "The model is trained. Its accuracy is unknown, because there are no test images."
    count = record["num_test"]
    if record["accuracy"] is None:
        zero_shot = record["map_zero_shot"]
        of_clip = "" if zero_shot is None else f", and of CLIP without training {zero_shot:.2f} %"
        return f"On {count} test images, the mean average precision of the model is {record['map']:.2f} %{of_clip}."
    accuracy = f"The model classifies {record['accuracy']:.2f} % of {count} test images correctly"
    if record["accuracy_zero_shot"] is None:
        return f"{accuracy}."
    return f"{accuracy}, and CLIP without training {record['accuracy_zero_shot']:.2f} %."


def check_encoding(arguments: Sequence[str]) -> None:
    """Raise UserError if the arguments are not UTF-8."""
    try:
        "".join(arguments).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"expected arguments in UTF-8: {first_line(error)}") from error


def show_result(record: dict, describe: Callable[[dict], str], output: Path) -> None:
    """Print the result of a run, and the commands that use its model; nothing without a record.

    Args:
        record: Record of the run, or {}.
        describe: Function from the record to a line of text.
        output: Output folder of the run.
    """
    if record:
        echo(f"{describe(record)}\n")
        for line in next_commands(output):
            logger.info("%s", line)


def main(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code."""

    def train() -> None:
        check_encoding(arguments)
        args = parse_train(arguments)
        check_flags(args)
        from ..datasets.loading import listing_own_images_once  # slow to import
        from ..datasets.readable import counting_left_out
        from .train_choices import fill_in, names_output

        run_chosen = run_command if names_output(args) else run_in_new_folder
        with listing_own_images_once(), counting_left_out() as left_out:
            for sentence in fill_in(args):
                logger.info("%s", sentence)
            record, output = run_chosen(args, arguments)
        show_result(record, result_sentence, output)
        if left_out:
            logger.warning(
                "%d images could not be read, and are not in the model; they are named above.", len(left_out)
            )

    return run_cli(train, several_processes=True, continues=True)  # --no-train shares its work


def train_without_command(arguments: Sequence[str], usage: str, description: str) -> int:
    """Train and test with CoOp's flags; returns the exit code.

    Args:
        arguments: Arguments of the command line, which begin with a flag or a key.
        usage: Usage of the program, for its help.
        description: Start of the help.
    """

    def train() -> None:
        check_encoding(arguments)
        args = parse_flags(flags_parser(usage, description), arguments)
        if args.version:
            echo(f"{version()}\n")
            return
        check_flags(args)
        record, output = run_command(args, arguments)
        show_result(record, lambda tested: f"{summary(tested)} -> {output}", output)

    return run_cli(train, several_processes=True, continues=True)  # --no-train shares its work

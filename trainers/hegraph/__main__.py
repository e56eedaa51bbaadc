"""The command line: runs a command such as `train`, or prints a short help.

Flags without a command are CoOp's way of training: `hegraph --dataset-config-file digits --config-file mini`.
Commands import torch and other slow packages in the functions that need them.
"""

import importlib
import os
import shlex
import sys

from .utils.command_line import command, echo, is_word, run_cli
from .utils.errors import UserError, unknown
from .utils.garbage import skip_search_at_exit
from .utils.signals import INTERRUPTED, ignore_interrupts

# Command -> module of this package with its `main`, and summary. The first group is for the first steps
GROUPS = {
    "": {
        "train": ("commands.train", "train and test a model on images"),
        "predict": ("commands.predict", "classify images with a trained model"),
        "teach": ("commands.teach", "train a model interactively in the browser"),
        "serve": ("commands.serve", "answer HTTP requests with the predictions of a trained model"),
        "export": ("commands.export", "export a trained model to an ONNX file"),
    },
    "data and labels": {
        "datasets": ("commands.datasets", "check or download data sets"),
        "features": ("commands.features", "encode a data set as a feature bank, or import a Tip-Adapter cache"),
        "label": ("commands.label", "select images to label, or find wrong labels"),
        "describe": ("commands.describe", "generate class descriptions with a chat model"),
    },
    "models": {
        "train-more": ("commands.train_more", "add images and classes to a trained model"),
        "demo": ("commands.demo", "try a trained model in the browser"),
        "backbones": ("commands.backbones", "compare backbones on labelled images, and recommend one"),
    },
    "experiments": {
        "sweep": ("commands.sweep", "run a grid of data sets, methods, shots and seeds"),
        "results": ("commands.results", "make tables, figures and pages from the records of runs"),
        "baselines": ("commands.baselines", "list the methods"),
    },
}
SUBCOMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}
SUMMARY = "Train an image classifier from a few labelled images per class, and use it."


def command_lines(groups: dict[str, dict[str, tuple[str, str]]]) -> list[str]:
    """Lines of the commands and their summaries, with the title of each group."""
    lines = []
    for title, commands in groups.items():
        if title:
            lines.append(f" {title}:")
        lines += [f"  {name:12}{summary}" for name, (_, summary) in commands.items()]
    return lines


def short_help() -> str:
    """Help of the program without arguments: the commands of the first steps, and the names of the others."""
    first = {"": GROUPS[""]}
    others = [f"  {title:17}{', '.join(commands)}" for title, commands in GROUPS.items() if title]
    lines = [
        f"usage: {command('COMMAND ...')}", "", SUMMARY, "", "commands:", *command_lines(first), "",
        "more commands:", *others, "",
        "first steps, with a folder of images for each class in photos:",
        f"  {command('train photos')}", f"  {command('predict output/photos new_photos')}", "",
        f"{command('COMMAND --help')} describes a command; {command('--help')} lists all commands and flags.",
    ]  # fmt: skip
    return "".join(f"{line}\n" for line in lines)


def unknown_command(word: str) -> UserError:
    """Return the error for a first argument that is no command, with a remedy if it is a file or folder."""
    if os.path.exists(word):
        return UserError(f"{word} is no command; to train on it: {command(f'train {shlex.quote(word)}')}", "unknown")
    return unknown("command", word, SUBCOMMANDS)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. Without arguments, it is the one of this program, which ends."""
    skip_search_at_exit()
    if arguments is not None:
        return run_command_line(arguments)
    code = run_command_line(sys.argv[1:])
    if code == INTERRUPTED:
        ignore_interrupts()
    return code


def run_command_line(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    if not arguments:
        return run_cli(lambda: echo(short_help()))
    name = arguments[0]
    if name in SUBCOMMANDS:
        return importlib.import_module(f".{SUBCOMMANDS[name][0]}", __package__).main(arguments[1:])
    if is_word(name):

        def refuse() -> None:
            raise unknown_command(name)

        return run_cli(refuse)
    from .commands.train import train_without_command

    usage = f"{command('COMMAND ...')}\n       {command('[OPTION ...] [KEY VALUE ...]')}"
    commands = "\n".join(["commands, each with its own --help:", *command_lines(GROUPS)])
    return train_without_command(arguments, usage, f"{SUMMARY}\n\n{commands}")


if __name__ == "__main__":
    raise SystemExit(main())

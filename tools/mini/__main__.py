"""Train hegraph-mini: `python -m tools.mini [--steps N --seed K --out FILE --threads T]`."""

import argparse
import logging
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainers.hegraph.features.backbones.identity import MINI_NAME
from trainers.hegraph.features.backbones.open_clip_models import create_model
from trainers.hegraph.utils.command_line import run_cli
from trainers.hegraph.utils.files import atomic_path
from trainers.hegraph.utils.logs import show_messages

from .train import Settings, train

logger = logging.getLogger("tools.mini")  # __name__ is "__main__" here


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.mini",
        description="Train the mini backbone on rendered glyphs. The shipped weights are the result of the "
        "default settings; they took 4.3 minutes on one CPU thread.",
    )
    parser.add_argument("--steps", type=int, default=Settings.steps, help="training steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="seed of all random numbers (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("mini.safetensors"), help="weights file to write (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="number of CPU threads, which changes the weights slightly (%(default)s)"
    )
    return parser.parse_args(arguments)


def retrain(args: argparse.Namespace) -> None:
    """Train mini and write its weights; UserError if the file cannot be written."""
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    with atomic_path(args.out) as temporary:  # fails before the training if --out cannot be written
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)  # open_clip initialises its weights from the global generator
            model, _, tokenizer = create_model(MINI_NAME)
        state = train(model, tokenizer, Settings(steps=args.steps, seed=args.seed))
        save_file(state, temporary)
    logger.info("%s written after %.0f s", args.out, time.monotonic() - started)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code, 2 for bad input."""
    args = parse_arguments(arguments)
    show_messages()
    return run_cli(lambda: retrain(args))


if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m trainers.hegraph.mini [--steps N --seed K --out FILE --threads T]`` retrains the backbone."""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..backbone import create_model
from . import MODEL_NAME
from .train import Settings, train

logger = logging.getLogger(__name__)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainers.hegraph.mini",
        description="Train the mini backbone on rendered glyphs. The shipped weights are the result of the "
        "default settings; they took 17.5 minutes on one CPU thread.",
    )
    parser.add_argument("--steps", type=int, default=Settings.steps, help="training steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="of everything random (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("mini.safetensors"), help="weights file to write (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; the weights depend on it slightly (%(default)s)"
    )
    return parser.parse_args(arguments)


def save(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write a weights file in one move, so that an interrupted run leaves no half file behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(state, part)
    os.replace(part, path)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)  # open_clip initialises its weights from the global generator
        model, _, tokenizer = create_model(MODEL_NAME)
    state = train(model, tokenizer, Settings(steps=args.steps, seed=args.seed))
    save(state, args.out)
    logger.info("%s written after %.0f s", args.out, time.monotonic() - started)


if __name__ == "__main__":
    main()

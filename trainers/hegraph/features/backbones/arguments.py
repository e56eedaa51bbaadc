"""Command line arguments of the image encoder, the same in all commands."""

import argparse

from .help_texts import ENCODER, WEIGHTS
from .identity import AUTO, PRECISIONS

MODEL = "model folder, or output folder of a run"


def add_encoder_arguments(parser: argparse._ActionsContainer, default: str = "the one of the model") -> None:
    """Add `--backbone` and `--pretrained`; `default` describes the default encoder."""
    add = parser.add_argument
    add("--backbone", default="", metavar="NAME", help=f"{ENCODER} (default: {default})")
    add("--pretrained", default="", metavar="WEIGHTS", help=WEIGHTS)


def add_device_arguments(parser: argparse._ActionsContainer, default: str = AUTO) -> None:
    """Add `--device` and `--precision`; `default` is a precision, or describes the default precision."""
    add = parser.add_argument
    add("--device", default="", metavar="NAME", help='torch device such as "cpu" or "cuda" (default: a GPU, if any)')
    precision = default if default in PRECISIONS else None
    add("--precision", choices=PRECISIONS, default=precision, help=f"number format of the encoder (default: {default})")

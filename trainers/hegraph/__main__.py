"""python -m trainers.hegraph: trains and tests one seed, with CoOp's flags."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from .config import load_cfg
from .errors import UserError, report, unknown
from .run import run

TRAINERS = ("HeGraphAdapter",)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainers.hegraph", description=__doc__)
    parser.add_argument("--features", type=Path, metavar="BANK", help="train and test from a feature bank; no images")
    parser.add_argument("--root", help="folder that holds the data sets")
    parser.add_argument("--output-dir", help="where split.json, the adapter and result.json go")
    parser.add_argument("--shots", type=int, help="training images per class (DATASET.NUM_SHOTS)")
    parser.add_argument("--seed", type=int, help="from 0; below 0: unseeded (one is drawn and recorded)")
    parser.add_argument("--config-file", default="", help="YAML of the method")
    parser.add_argument("--dataset-config-file", default="", help="YAML of the data set")
    parser.add_argument("--trainer", default="HeGraphAdapter", help="only HeGraphAdapter so far")
    parser.add_argument("--eval-only", action="store_true", help="do not train; test the adapter in --model-dir")
    parser.add_argument("--model-dir", type=Path, help="folder of a finished run")
    parser.add_argument("--no-train", action="store_true", help="encode the features and stop")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys, as in CoOp")
    return parser.parse_args(arguments)


def run_command(args: argparse.Namespace) -> None:
    if args.trainer not in TRAINERS:
        raise unknown("trainer", args.trainer, TRAINERS)
    if args.eval_only != (args.model_dir is not None):
        raise UserError("--eval-only and --model-dir go together")
    flags = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "DATASET.NUM_SHOTS": args.shots,
        "SEED": args.seed,
        "TRAINER.NAME": args.trainer,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    cfg = load_cfg(args.dataset_config_file, args.config_file, given, args.opts)
    record = run(cfg, args.features, args.model_dir, train=not args.no_train)
    if record:
        sys.stdout.write(
            f"{record['dataset']}, {record['shots']} shots, seed {record['seed']}: zero-shot "
            f"{record['accuracy_zero_shot']:.2f}, HeGraphAdapter(T) {record['accuracy_text']:.2f}, "
            f"{record['trainer']} ({record['variant']}) {record['accuracy']:.2f} -> {cfg.OUTPUT_DIR}\n"
        )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake of the user's."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger(__package__).setLevel(logging.INFO)  # other packages log at the root: warnings only
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return report(lambda: run_command(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())

"""Run one benchmark, print its table, and write its figures to a file."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch

NAMES = (
    "graph-step", "train-step", "whole-graph", "growth", "imagenet-scale", "predict", "predict-images", "peers",
    "extraction", "startup", "sweep", "big-bank", "ray", "unlabelled", "precision", "incremental", "teach",
    "multilabel", "serve", "photos",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="JSON file for the figures and their targets")
    parser.add_argument("--small", action="store_true", help="run at small sizes, as a test")
    args = parser.parse_args(arguments)
    module = importlib.import_module(f".{args.name.replace('-', '_')}", __package__)
    sizes = dict(module.SMALL) if args.small else {}
    report = module.run(**sizes)
    sys.stdout.write(f"{report}\ntorch {torch.__version__}, {torch.get_num_threads()} threads\n")
    if args.json:
        args.json.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Add the groups of the videos to the feature bank `ucf101`, whose rows follow CoOp's split file.

    python -m tools.ucf101_groups BANK SPLIT --out FILE

BANK has the test images in the order of SPLIT, which is CoOp's `split_zhou_UCF101.json`, sixteen training images of
each class, which `random.Random(1)` sampled, and every second val image of each class. FILE is a copy of BANK with a
group for each class and video. `results paired --groups FILE` resamples whole groups.
"""

import argparse
import random
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch

from trainers.hegraph import UserError, load_bank
from trainers.hegraph.datasets.groups import groups_in_paths
from trainers.hegraph.datasets.registry import ENTRIES
from trainers.hegraph.datasets.splits import SPLITS, Item, Pools, read_split_file

SHOTS = 16
SEED = 1
VAL_STEP = 2


def rows_of_bank(pools: Pools) -> Pools:
    """Return the items of a split file that are rows of the bank, in its order."""
    rng = random.Random(SEED)
    train = [item for items in _by_class(pools["train"]) for item in rng.sample(items, SHOTS)]
    val = [item for items in _by_class(pools["val"]) for item in items[1::VAL_STEP]]
    return {"train": train, "val": val, "test": pools["test"]}


def _by_class(items: list[Item]) -> list[list[Item]]:
    """Items of each class, in label order."""
    by_class: defaultdict[int, list[Item]] = defaultdict(list)
    for item in items:
        by_class[item.label].append(item)
    return [by_class[label] for label in sorted(by_class)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.ucf101_groups", description=__doc__)
    parser.add_argument("bank", type=Path)
    parser.add_argument("split", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    bank = load_bank(args.bank)
    pools = read_split_file(args.split, "")
    items = rows_of_bank(pools)
    paths = [item.path for split in SPLITS for item in pools[split]]
    group_of = groups_in_paths(paths, ENTRIES["UCF101"].group_pattern)
    numbers = {name: number for number, name in enumerate(sorted({*group_of.values()}))}
    groups = {}
    for split in SPLITS:
        labels = torch.tensor([item.label for item in items[split]])
        if not torch.equal(labels, getattr(bank, f"{split}_labels")):
            raise UserError(f"{args.bank}: its {split} rows do not follow {args.split}")
        groups[f"{split}_groups"] = torch.tensor([numbers[group_of[item.path]] for item in items[split]])
    replace(bank, **groups).save(args.out)
    sys.stdout.write(f"wrote {args.out} with {len(numbers)} groups\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

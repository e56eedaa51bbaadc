"""Accuracy of the training-free variant with wrong class names, and with unequal numbers of images.

    python -m tools.names_study BANKS --out results/names.jsonl

`names` compares text with and without `TRUST_TEXT`: as it is, with the names of a tenth or of half of the classes
exchanged in a cycle, with all names permuted, and without names. `unequal` draws 1 to 16 images of each class, and
compares the class priors. Scores are percentages on test images. Rows that the file has are not computed again.
"""

import argparse
import itertools
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tools.labels_study import rounded
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets.splits import sample_few_shot
from trainers.hegraph.features.bank import FeatureBank, load_bank, mean_count
from trainers.hegraph.method.model import build_model
from trainers.hegraph.results.table import markdown_table
from trainers.hegraph.utils.option import NODE

SHOTS = (1, 2, 4, 8, 16)
LARGEST = 16  # images of a class in the study of unequal numbers
KINDS = {"good": 0.0, "10 % exchanged": 0.1, "50 % exchanged": 0.5, "all permuted": 1.0, "no names": 0.0}


def changed_text(text: Tensor, kind: str, seed: int) -> Tensor:
    """Text features `[K, d]` with the rows of a share of the classes exchanged, or 0 without names."""
    if kind == "no names":
        return torch.zeros_like(text)
    generator = torch.Generator().manual_seed(seed)
    num_classes = len(text)
    if kind == "all permuted":
        return text[torch.randperm(num_classes, generator=generator)]
    chosen = torch.randperm(num_classes, generator=generator)[: round(KINDS[kind] * num_classes)]
    changed = text.clone()
    changed[chosen] = text[chosen.roll(1)]
    return changed


def sampled(bank: FeatureBank, shots: int | list[int], seed: int) -> FeatureBank:
    """Bank with the few-shot sample of a seed."""
    generator = random.Random(seed)
    val = [] if bank.val_labels is None else bank.val_labels.tolist()
    rows = sample_few_shot(bank.train_labels.tolist(), val, shots, generator).train
    chosen = torch.tensor(rows)
    return replace(bank, train_features=bank.train_features[:, chosen], train_labels=bank.train_labels[chosen])


def accuracies(bank: FeatureBank, text: Tensor, options: dict) -> dict[str, float]:
    """Accuracy and macro accuracy of the training-free variant on test images, in percent."""
    shots = mean_count(bank.train_labels.bincount().tolist())
    flags = {"DATASET.NUM_SHOTS": shots, f"{NODE}.VARIANT": "training_free"}
    cfg = load_cfg(flags=flags | {f"{NODE}.{name}": value for name, value in options.items()})
    model = build_model(replace(bank, text_positive=text, text_negative=-text), cfg.model)
    predicted = model.fold().logits(bank.features_to_classify).argmax(dim=1)
    right = (predicted == bank.test_labels).double()
    by_class = [right[bank.test_labels == label].mean() for label in bank.test_labels.unique()]
    return {"accuracy": 100 * right.mean().item(), "macro_accuracy": 100 * torch.stack(by_class).mean().item()}


def names(bank: FeatureBank, shots: int, seed: int) -> list[dict]:
    """Rows with and without trust in text for each kind of text."""
    part = sampled(bank, shots, seed)
    rows = []
    for kind, trusts in itertools.product(KINDS, (True, False)):
        text = changed_text(bank.text_positive, kind, seed)
        rows.append({"kind": kind, "trust_text": trusts} | accuracies(part, text, {"TRUST_TEXT": trusts}))
    return rows


def unequal(bank: FeatureBank, seed: int) -> list[dict]:
    """Rows of both class priors, with and without trust in text, for 1 to `LARGEST` images of each class."""
    generator = random.Random(seed)
    part = sampled(bank, [generator.randint(1, LARGEST) for _ in bank.classnames], seed)
    rows = []
    for prior, trusts in itertools.product(("balanced", "training"), (True, False)):
        scores = accuracies(part, bank.text_positive, {"CLASS_PRIOR": prior, "TRUST_TEXT": trusts})
        rows.append({"class_prior": prior, "trust_text": trusts} | scores)
    return rows


def names_table(results: pd.DataFrame) -> str:
    """Table of accuracy by kind of text and shots: means over banks of means over seeds."""
    of_names = results[results["shots"] > 0]
    means = of_names.groupby(["kind", "trust_text", "shots", "bank"], sort=False)["accuracy"].mean()
    averages = means.groupby(["kind", "trust_text", "shots"], sort=False).mean()
    rows = []
    for kind, trusts in itertools.product(KINDS, (False, True)):
        cells = [f"{averages.loc[(kind, trusts, shots)]:.2f}" for shots in SHOTS]
        rows.append([kind, "yes" if trusts else "no", *cells])
    return markdown_table(["names", "`TRUST_TEXT`", *map(str, SHOTS)], rows, 2)


def unequal_table(results: pd.DataFrame) -> str:
    """Table of macro accuracy and accuracy by class prior: means over banks of means over seeds."""
    of_unequal = results[results["shots"] == 0]
    scores = ["macro_accuracy", "accuracy"]
    means = of_unequal.groupby(["class_prior", "trust_text", "bank"], sort=False)[scores].mean()
    averages = means.groupby(["class_prior", "trust_text"], sort=False).mean()
    rows = []
    for prior, trusts in itertools.product(("training", "balanced"), (False, True)):
        cells = [f"{averages.loc[(prior, trusts), name]:.2f}" for name in scores]
        rows.append([f"`{prior}`", "yes" if trusts else "no", *cells])
    return markdown_table(["`CLASS_PRIOR`", "`TRUST_TEXT`", "macro accuracy", "accuracy"], rows, 2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.names_study", description=__doc__)
    parser.add_argument("banks", type=Path)
    parser.add_argument("--out", type=Path, required=True, help=".jsonl file to extend")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    done = set()
    if args.out.exists():
        lines = map(json.loads, args.out.read_text(encoding="utf-8").splitlines())
        done = {(row["bank"], row["seed"], row["shots"]) for row in lines}
    for file in sorted(args.banks.glob("*.safetensors")):
        bank = load_bank(file)
        largest = int(bank.train_labels.bincount().min())
        cases = [shots for shots in SHOTS if shots <= largest] + ([0] if largest >= LARGEST else [])
        for seed, shots in itertools.product(args.seeds, cases):
            of = {"bank": file.stem, "seed": seed, "shots": shots}
            if tuple(of.values()) in done:
                continue
            rows = names(bank, shots, seed) if shots else unequal(bank, seed)
            with args.out.open("a", encoding="utf-8") as out:
                out.writelines(f"{json.dumps(of | rounded(row))}\n" for row in rows)
    results = pd.read_json(args.out, lines=True)
    sys.stdout.write(f"{names_table(results)}\n{unequal_table(results)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Measure transductive adaptation with unequal class frequencies: the study of docs/guides/unlabelled.md.

    python -m tools.unlabelled_study OUTPUT BANKS --out FILE

OUTPUT has runs of HeGraphAdapter, as a sweep writes them, and BANKS their feature banks. The models are adapted to the
test images, or to a subset by each condition, with the whole method and with each half of it. FILE gets a JSON line for
each run, condition and part.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from torch import Tensor

from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.method import unlabelled
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.unlabelled import ClassPrior, ClassSums, adapt_to_unlabelled
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.results.table import markdown_table

BATCH = 64
WHOLE = "whole test set"
NO_CLASS_PRIOR = mock.patch.object(ClassPrior, "of", lambda *_: ClassPrior(1.0, 1.0, 0.0, 0.0))
PARTS = {
    "all": nullcontext(),
    "nodes alone": NO_CLASS_PRIOR,
    "class prior alone": mock.patch.object(unlabelled, "OMEGA", 0.0),
}


def conditions(labels: Tensor, num_classes: int, seed: int) -> Iterator[tuple[str, list[Tensor]]]:
    """Conditions, each with its name and sets of row indices `[n]` to adapt to, sampled with the seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    counts = labels.bincount(minlength=num_classes)

    def first_of_classes(numbers: Tensor) -> Tensor:
        """First rows of each class in random order, from their numbers `[K]`."""
        rank = torch.zeros(len(order), dtype=torch.long)
        for c in range(num_classes):
            of_class = labels[order] == c
            rank[of_class] = torch.arange(int(of_class.sum()))
        return order[rank < numbers[labels[order]]]

    yield WHOLE, [order]
    shares = torch.distributions.Exponential(1.0).icdf(torch.rand(num_classes, generator=generator))
    most = (counts / shares.clamp_min(1e-9)).quantile(0.3)  # so that 3 of 10 classes have all their images
    yield "Dirichlet(1) shares", [first_of_classes((most * shares).round().long().minimum(counts))]
    classes = torch.randperm(num_classes, generator=generator)[: max(num_classes // 4, 2)]
    yield "a quarter of the classes", [order[torch.isin(labels[order], classes)]]
    yield "one class alone", [order[labels[order] == classes[0]]]
    yield "one image a class", [first_of_classes(torch.ones(num_classes, dtype=torch.long))]
    yield f"batches of {BATCH}", list(order[: 20 * BATCH].split(BATCH))


def study(bank: FeatureBank, classifier: FoldedClassifier, labelled: ClassSums, temperature: float, seed: int) -> list:
    """Rows with condition, part, number of images, and accuracy before and after adaptation in percent."""
    assert bank.test_features is not None and bank.test_labels is not None
    rows = []
    for condition, sets in conditions(bank.test_labels, len(bank.classnames), seed):
        for part, changed in PARTS.items():
            correct = torch.zeros(2, dtype=torch.float64)
            with ExitStack() as stack:
                stack.enter_context(changed)
                for transductive in sets:
                    features, labels = bank.test_features[transductive], bank.test_labels[transductive]
                    text, scale = bank.text_positive, bank.logit_scale
                    adaptation = adapt_to_unlabelled(classifier, labelled, text, features, scale, temperature)
                    for index, logits in enumerate((classifier.logits(features), adaptation.logits)):
                        correct[index] += (logits.argmax(dim=1) == labels).sum()
            count = sum(map(len, sets))
            rows.append([condition, part, count, *(100 * correct / count).tolist()])
            if condition != WHOLE and part == "all":
                break  # the table has the halves for the whole test set only
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.unlabelled_study", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("banks", type=Path)
    parser.add_argument("--out", type=Path, required=True, help=".jsonl file to extend; runs that it has are skipped")
    args = parser.parse_args()
    done = set()
    if args.out.exists():
        done = {tuple(json.loads(line)[k] for k in ("bank", "shots", "seed")) for line in args.out.open()}
    runs = sorted(args.output.rglob("HeGraphAdapter/*/seed*/model"))
    for model_folder in runs:
        record = json.loads((model_folder.parent / "result.json").read_text(encoding="utf-8"))
        name = model_folder.parents[3].name
        bank = load_bank(args.banks / f"{name}.safetensors")
        keys, model = bank.cache_keys(), load_model(model_folder)
        sampled = json.loads((model_folder.parent / "split.json").read_text(encoding="utf-8"))["train"]
        rows = torch.tensor([row for row, *_ in sampled])
        cases = {record["shots"]: (model.classifier, rows, model.temperature)}
        if record["seed"] == 1 and (name, 0, 1) not in done:
            cases[0] = FoldedClassifier(bank.logit_scale * bank.text_positive), rows[:0], 1.0
        for shots, (classifier, used, temperature) in cases.items():
            if (name, shots, record["seed"]) in done:
                continue
            done.add((name, shots, record["seed"]))
            sums = ClassSums.of(keys[used], bank.train_labels[used], len(bank.classnames))
            rows_of_study = study(bank, classifier, sums, temperature, record["seed"])
            head = {"bank": name, "shots": shots, "seed": record["seed"]}
            columns = ("condition", "part", "num_images", "before", "after")
            with args.out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(head | dict(zip(columns, row))) + "\n" for row in rows_of_study)
    sys.stdout.write(table(pd.read_json(args.out, lines=True)))
    return 0


def table(results: pd.DataFrame) -> str:
    """Table of gains in points by shots: the mean over banks of means over seeds, and the smallest one of a bank."""
    keys = ["condition", "part", "shots"]
    gains = results.assign(gain=results["after"] - results["before"])
    means = gains.groupby([*keys, "bank"], sort=False)["gain"].mean().groupby(keys, sort=False)
    cells = means.agg(lambda gains: f"{gains.mean():+.2f} ({gains.min():+.2f})").unstack("shots").sort_index(axis=1)
    heads = ["condition", "part", *map(str, cells.columns)]
    return markdown_table(heads, [[*names, *row] for names, row in zip(cells.index, cells.to_numpy())], 2)


if __name__ == "__main__":
    raise SystemExit(main())

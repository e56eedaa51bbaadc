"""Measure the detection of wrong labels and the value of suggested images: the studies of docs/guides/labels.md.

    python -m tools.labels_study wrong BANKS --out FILE       (needs `pip install cleanlab`)
    python -m tools.labels_study suggest BANKS --out FILE

BANKS is a folder of feature banks. Only labels of training images are changed, and only training images are suggested;
test images give the accuracy of the model. FILE gets a JSON line for each bank, seed, setting and score. Settings that
it already has are skipped.
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.hegraph.datasets.splits import sample_few_shot
from trainers.hegraph.estimator.labels.issues import find_label_issues, label_scores
from trainers.hegraph.estimator.labels.leave_one_out import left_out_logits, training_free_options
from trainers.hegraph.estimator.labels.suggest import select, typicality
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.head.class_offsets import class_offsets, left_out_offsets
from trainers.hegraph.method.head.closed_form import OMEGA_NEW, ClosedForm
from trainers.hegraph.method.training.confidence import fit_temperature
from trainers.hegraph.method.unlabelled import ClassSums, adapt_to_unlabelled
from trainers.hegraph.results.table import markdown_table

SHOTS = (4, 8, 16)
WRONG = 0.1  # share of wrong labels
NEAREST = 3  # classes that a label is changed to
FOLDS = 5
THRESHOLDS = (0.0, 1.0, 2.0, 3.0)
KINDS = ("any", "nearest", "none")
BUDGETS = (1, 2, 4, 8)  # labels per class after each round
CLEANLAB = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


class Pool:
    """Training images of a bank, with one feature each, and their classes."""

    def __init__(self, bank: FeatureBank) -> None:
        self.bank, self.keys, self.labels = bank, bank.cache_keys(), bank.train_labels
        self.text, self.scale, self.num_classes = bank.text_positive, bank.logit_scale, len(bank.classnames)

    def nearest(self) -> Tensor:
        """Nearest classes of each class, by the cosine of the centred mean images, shape `[K, NEAREST]`."""
        means = torch.stack([self.keys[self.labels == c].mean(dim=0) for c in range(self.num_classes)])
        means = F.normalize(means - means.mean(dim=0), dim=1)
        return (means @ means.t()).fill_diagonal_(-2).topk(NEAREST, dim=1).indices

    def fit(self, features: Tensor, labels: Tensor) -> FoldedClassifier:
        """Fit the training-free variant; classes without images have the rule for new classes, as in `partial_fit`."""
        seen, indices = labels.unique(return_inverse=True)
        if len(seen) < 2:
            return FoldedClassifier(self.scale * self.text)
        options = training_free_options(int(labels.bincount().max()))
        closed = ClosedForm.fit(features, indices, self.text[seen], options.kappa, options.rho)
        new, trained = closed.for_new_classes(), closed.to_text
        weights = F.normalize(self.text @ new.matrix + new.offset, dim=1) @ new.whitening
        weights, bias = OMEGA_NEW * self.scale * weights, -OMEGA_NEW * self.scale * weights @ new.mean
        weights[seen] = options.omega * self.scale * trained.weights
        bias[seen] = options.omega * self.scale * trained.bias
        bias[seen] += class_offsets(self.scale * features @ self.text[seen].t(), indices, "training")
        return FoldedClassifier(self.scale * self.text + weights, bias)

    def temperature(self, features: Tensor, labels: Tensor) -> float:
        seen, indices = labels.unique(return_inverse=True)
        if len(seen) < 2:
            return 1.0
        options = training_free_options(int(labels.bincount().max()))
        logits = left_out_logits(features, indices, self.text[seen], self.scale, options, trusts_text=False)
        logits += left_out_offsets(self.scale * features.double() @ self.text[seen].double().t(), indices, "training")
        return fit_temperature(logits, indices)


# Wrong labels


def changed(pool: Pool, labels: Tensor, kind: str, seed: int) -> Tensor:
    """Change the share `WRONG` of the labels `[N]`, unless the kind is "none"."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(labels), generator=generator)[: round(WRONG * len(labels))]
    result = labels.clone()
    if kind == "any":
        steps = torch.randint(1, pool.num_classes, (len(rows),), generator=generator)
        result[rows] = (labels[rows] + steps) % pool.num_classes
    elif kind == "nearest":
        result[rows] = pool.nearest()[labels[rows], torch.randint(NEAREST, (len(rows),), generator=generator)]
    return result


def out_of_fold(pool: Pool, features: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Calibrated probabilities `[N, K]` by the training-free variant, with stratified cross-validation."""
    generator = random.Random(seed)
    folds = torch.zeros_like(labels)
    for c in labels.unique().tolist():
        rows = (labels == c).nonzero()[:, 0].tolist()
        generator.shuffle(rows)
        folds[rows] = (torch.arange(len(rows)) + generator.randrange(FOLDS)) % FOLDS
    logits = torch.zeros(len(labels), pool.num_classes, dtype=torch.float64)
    for fold in range(FOLDS):
        test = folds == fold
        logits[test] = pool.fit(features[~test], labels[~test]).logits(features[test]).double()
    return (logits / fit_temperature(logits, labels)).softmax(dim=1)


def wrong(pool: Pool, shots: int, seed: int, kind: str) -> Iterator[dict]:
    """Measure how well each score detects changed labels."""
    from cleanlab.rank import get_label_quality_scores
    from sklearn.metrics import roc_auc_score

    sampled = torch.tensor(sample_few_shot(pool.labels.tolist(), [], shots, random.Random(seed)).train)
    features, truth = pool.keys[sampled], pool.labels[sampled]
    labels = changed(pool, truth, kind, seed)
    is_wrong = labels != truth
    scores, proposed = torch.zeros(len(labels), dtype=torch.float64), torch.zeros_like(labels)
    for issue in find_label_issues(features, labels, pool.text, pool.scale, range(pool.num_classes)):
        scores[issue.index], proposed[issue.index] = issue.score, issue.suggested
    if kind == "none":
        flagged = {f"flagged_{t:g}": (scores > t).double().mean().item() for t in THRESHOLDS}
        yield {"score": "leave one out", "count": len(labels)} | flagged
        return
    by_score = {"leave one out": scores}
    probabilities = out_of_fold(pool, features, labels, seed)
    for name in CLEANLAB:
        quality = get_label_quality_scores(labels.numpy(), probabilities.numpy(), method=name)
        by_score[f"cleanlab, {name}"] = -torch.from_numpy(quality)
    by_score["zero-shot"] = label_scores((pool.scale * features @ pool.text.t()).double(), labels)[0]
    for name, values in by_score.items():
        first = values.argsort(descending=True)[: int(is_wrong.sum())]
        row = {"score": name, "count": len(labels), "auroc": roc_auc_score(is_wrong, values)}
        row["precision"] = is_wrong[first].double().mean().item()
        if name == "leave one out":
            row["right_class"] = (proposed == truth)[is_wrong].double().mean().item()
            row |= {f"found_{t:g}": (scores > t)[is_wrong].double().mean().item() for t in THRESHOLDS}
            row |= {f"flagged_{t:g}": (scores > t)[~is_wrong].double().mean().item() for t in THRESHOLDS}
        yield row


# Suggestions


def smallest_margins(pool: Pool, labelled: Tensor, unlabelled: Tensor, number: int, _: torch.Generator) -> Tensor:
    best = _probabilities(pool, labelled, unlabelled).topk(2, dim=1).values
    return unlabelled[(best[:, 0] - best[:, 1]).argsort()[:number]]


def largest_entropies(pool: Pool, labelled: Tensor, unlabelled: Tensor, number: int, _: torch.Generator) -> Tensor:
    entropy = torch.special.entr(_probabilities(pool, labelled, unlabelled)).sum(dim=1)
    return unlabelled[entropy.argsort(descending=True)[:number]]


def random_images(_: Pool, labelled: Tensor, unlabelled: Tensor, number: int, generator: torch.Generator) -> Tensor:
    return unlabelled[torch.randperm(len(unlabelled), generator=generator)[:number]]


def core_set(pool: Pool, labelled: Tensor, unlabelled: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Select the image farthest from all labelled ones, one by one (Sener and Savarese, ICLR 2018: k-Center-Greedy)."""
    features, selected = pool.keys[unlabelled], []
    cosines = (features @ pool.keys[labelled].t()).amax(dim=1) if len(labelled) else None
    for _ in range(number):
        if cosines is None:
            index = int(torch.randint(len(unlabelled), (1,), generator=generator))
            cosines = features @ features[index]
        else:
            index = int(cosines.argmin())
            cosines = torch.maximum(cosines, features @ features[index])
        cosines[index] = 2.0
        selected.append(index)
    return unlabelled[selected]


def suggestions(pool: Pool, labelled: Tensor, unlabelled: Tensor, number: int, _: torch.Generator) -> Tensor:
    features, labels = pool.keys[labelled], pool.labels[labelled]
    sums, temperature = ClassSums.of(features, labels, pool.num_classes), pool.temperature(features, labels)
    features = pool.keys[unlabelled]
    adaptation = adapt_to_unlabelled(pool.fit(features, labels), sums, pool.text, features, pool.scale, temperature)
    soft_labels = (adaptation.logits / temperature).softmax(dim=1)
    return unlabelled[select(soft_labels, typicality(soft_labels, features, sums), sums.counts, number)]


def _probabilities(pool: Pool, labelled: Tensor, unlabelled: Tensor) -> Tensor:
    features, labels = pool.keys[labelled], pool.labels[labelled]
    logits = pool.fit(features, labels).logits(pool.keys[unlabelled])
    return (logits / pool.temperature(features, labels)).softmax(dim=1)


CHOICES: dict[str, Callable[..., Tensor]] = {
    "random": random_images,
    "margin": smallest_margins,
    "entropy": largest_entropies,
    "CoreSet": core_set,
    "suggest": suggestions,
}


def labelling(pool: Pool, seed: int, name: str) -> Iterator[dict]:
    """Measure the test accuracy after each round of labelling, from no label on."""
    features, truth = pool.bank.features_to_classify, pool.bank.test_labels
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool.keys), generator=generator)  # so that ties favour no class
    labelled = order[:0]
    for budget in BUDGETS:
        number = budget * pool.num_classes - len(labelled)
        unlabelled = order[~torch.isin(order, labelled)]
        if number >= len(unlabelled):
            return
        labelled = torch.cat([labelled, CHOICES[name](pool, labelled, unlabelled, number, generator)])
        right = pool.fit(pool.keys[labelled], pool.labels[labelled]).logits(features).argmax(dim=1) == truth
        classes = len(pool.labels[labelled].unique()) / pool.num_classes
        yield {"labels": budget, "accuracy": 100 * right.double().mean().item(), "classes": classes}


# Tables


def wrong_table(results: pd.DataFrame) -> str:
    """Table of AUROC and precision in percent by shots: means over banks of means over seeds."""
    rows = []
    for kind in ("any", "nearest"):
        of_kind = results[results["kind"] == kind]
        means = 100 * of_kind.groupby(["score", "shots", "bank"], sort=False)[["auroc", "precision"]].mean()
        averages = means.groupby(["score", "shots"], sort=False).mean()
        best = averages.groupby("shots").max().round(2)
        for name in of_kind["score"].unique():
            cells = [f"{kind} class" if kind == "any" else "one of the 3 nearest", name]
            for shots in sorted(of_kind["shots"].unique()):
                for column in ("auroc", "precision"):
                    value = round(averages.loc[(name, shots), column], 2)
                    cells.append(f"**{value:.2f}**" if value == best.loc[shots, column] else f"{value:.2f}")
            rows.append(cells)
    shots = sorted(results["shots"].unique())
    head = ["changed to", "score", *(f"{name}, {s} shots" for s in shots for name in ("AUROC", "precision"))]
    return markdown_table(head, rows, 2)


def threshold_table(results: pd.DataFrame) -> str:
    """Table of the labels above each threshold in percent: means over banks, shots and seeds."""
    scores = results[results["score"] == "leave one out"]
    rows = []
    for t in THRESHOLDS:
        flagged, hits = (
            (100 * scores.groupby(["kind", "bank", "shots"])[f"{name}_{t:g}"].mean()).groupby("kind").mean()
            for name in ("flagged", "found")
        )
        rows.append([f"{t:g}", *(f"{value:.1f}" for value in (hits["any"], hits["nearest"], *flagged[list(KINDS)]))])
    heads = ["score above", "found, any", "found, nearest"]
    heads += ["right ones, any", "right ones, nearest", "where all are right"]
    return markdown_table(heads, rows, 0)


def suggest_table(results: pd.DataFrame) -> str:
    """Table of accuracy by labels per class: the mean over seeds of each bank, and means over banks."""
    means = results.groupby(["bank", "labels", "choice"], sort=False)["accuracy"].mean().unstack("choice")
    rows = []
    banks = list(dict.fromkeys(results["bank"]))
    for budget in BUDGETS:
        complete = [bank for bank in banks if (bank, budget) in means.index]
        values = means.loc[[(bank, budget) for bank in complete]]
        mean = (f"mean of {len(complete)}", values.mean().to_numpy())
        for name, of_scores in [*zip(complete, values.to_numpy()), mean]:
            best = of_scores.round(2).max()
            cells = [f"**{v:.2f}**" if round(v, 2) == best else f"{v:.2f}" for v in of_scores]
            rows.append([str(budget), name, *cells])
    return markdown_table(["labels a class", "bank", *means.columns], rows)


def rounded(row: dict) -> dict:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.labels_study", description=__doc__)
    parser.add_argument("study", choices=("wrong", "suggest"))
    parser.add_argument("banks", type=Path)
    parser.add_argument("--out", type=Path, required=True, help=".jsonl file to extend")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    done = set()
    if args.out.exists():
        done = {tuple(json.loads(line)["of"]) for line in args.out.read_text(encoding="utf-8").splitlines()}
    pools = {file.stem: Pool(load_bank(file)) for file in sorted(args.banks.glob("*.safetensors"))}
    for seed, (name, pool) in itertools.product(args.seeds, pools.items()):
        if args.study == "wrong":
            cases = itertools.product((s for s in SHOTS if s <= int(pool.labels.bincount().min())), KINDS)
            work = [({"shots": s, "kind": k}, partial(wrong, pool, s, seed, k)) for s, k in cases]
        else:
            work = [({"choice": choice}, partial(labelling, pool, seed, choice)) for choice in CHOICES]
        for setting, rows in work:
            key = [name, seed, *setting.values()]
            if tuple(key) in done:
                continue
            lines = [json.dumps({"of": key, "bank": name, "seed": seed} | setting | rounded(row)) for row in rows()]
            with args.out.open("a", encoding="utf-8") as out:
                out.writelines(f"{line}\n" for line in lines)
    results = pd.read_json(args.out, lines=True)
    tables = [wrong_table(results), threshold_table(results)] if args.study == "wrong" else [suggest_table(results)]
    sys.stdout.write("\n".join(tables))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""How well wrong labels are found, and what suggestions are worth: the studies of docs/labels.md.

    python -m tools.labels_study wrong BANKS --out FILE       (needs `pip install cleanlab`)
    python -m tools.labels_study suggest BANKS --out FILE

BANKS is the folder of the feature banks. Only training images are changed or suggested; test images say how good the
model is that the suggested labels make. One JSON line for each bank, seed, setting and score; what FILE holds is not
done again.
"""

from __future__ import annotations

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
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.labels.issues import (
    find_label_issues,
    free_options,
    left_out_logits,
    suspicions,
)
from trainers.hegraph.labels.suggest import choose, typicality
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.closed_form import OMEGA_NEW, ClosedForm, class_offsets, left_out_offsets
from trainers.hegraph.method.unlabelled import ClassSums, adapt_to_unlabelled
from trainers.hegraph.training.confidence import fit_temperature

SHOTS = (4, 8, 16)
SHARE = 0.1  # of the labels are changed
NEAREST = 3
FOLDS = 5
THRESHOLDS = (0.0, 1.0, 2.0, 3.0)
KINDS = ("any", "nearest", "none")
BUDGETS = (1, 2, 4, 8)  # labels a class, in as many rounds
CLEANLAB = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


class Pool:
    """The training images of a bank, one feature each, and what their classes are."""

    def __init__(self, bank: FeatureBank) -> None:
        self.bank, self.keys, self.labels = bank, bank.cache_keys(), bank.train_labels
        self.text, self.scale, self.num_classes = bank.text_positive, bank.logit_scale, len(bank.classnames)

    def nearest(self) -> Tensor:
        """The classes whose mean image is nearest to that of each class, all centred, shape `[K, NEAREST]`."""
        means = torch.stack([self.keys[self.labels == c].mean(dim=0) for c in range(self.num_classes)])
        means = F.normalize(means - means.mean(dim=0), dim=1)
        return (means @ means.t()).fill_diagonal_(-2).topk(NEAREST, dim=1).indices

    def free(self, features: Tensor, labels: Tensor) -> FoldedClassifier:
        """The variant "training_free"; classes without images have their text and its message, as in `partial_fit`."""
        seen, places = labels.unique(return_inverse=True)
        if len(seen) < 2:
            return FoldedClassifier(self.scale * self.text)
        options = free_options(int(labels.bincount().max()))
        closed = ClosedForm(features, places, self.text[seen], options.kappa, options.rho)
        new, known = closed.for_new_classes(), closed.to_text
        weights = F.normalize(self.text @ new.matrix + new.offset, dim=1) @ new.whitening
        weights, bias = OMEGA_NEW * self.scale * weights, -OMEGA_NEW * self.scale * weights @ new.mean
        weights[seen] = options.omega * self.scale * known.weights
        bias[seen] = options.omega * self.scale * known.bias
        bias[seen] += class_offsets(self.scale * features @ self.text[seen].t(), places)
        return FoldedClassifier(self.scale * self.text + weights, bias)

    def temperature(self, features: Tensor, labels: Tensor) -> float:
        seen, places = labels.unique(return_inverse=True)
        if len(seen) < 2:
            return 1.0
        options = free_options(int(labels.bincount().max()))
        logits = left_out_logits(features, places, self.text[seen], self.scale, options)
        logits += left_out_offsets(self.scale * features.double() @ self.text[seen].double().t(), places)
        return fit_temperature(logits, places)


# Wrong labels


def changed(pool: Pool, labels: Tensor, kind: str, seed: int) -> Tensor:
    """Labels of which a share is another one, shape `[N]`; "none" changes none."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(labels), generator=generator)[: round(SHARE * len(labels))]
    found = labels.clone()
    if kind == "any":
        steps = torch.randint(1, pool.num_classes, (len(rows),), generator=generator)
        found[rows] = (labels[rows] + steps) % pool.num_classes
    elif kind == "nearest":
        found[rows] = pool.nearest()[labels[rows], torch.randint(NEAREST, (len(rows),), generator=generator)]
    return found


def out_of_fold(pool: Pool, features: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Calibrated probabilities `[N, K]` by the variant "training_free", of folds that deal the images of each class."""
    dealer = random.Random(seed)
    folds = torch.zeros_like(labels)
    for c in labels.unique().tolist():
        rows = (labels == c).nonzero()[:, 0].tolist()
        dealer.shuffle(rows)
        folds[rows] = (torch.arange(len(rows)) + dealer.randrange(FOLDS)) % FOLDS
    logits = torch.zeros(len(labels), pool.num_classes, dtype=torch.float64)
    for fold in range(FOLDS):
        held = folds == fold
        logits[held] = pool.free(features[~held], labels[~held]).logits(features[held]).double()
    return (logits / fit_temperature(logits, labels)).softmax(dim=1)


def wrong(pool: Pool, shots: int, seed: int, kind: str) -> Iterator[dict]:
    """What each score makes of changed labels."""
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
    tried = {"leave one out": scores}
    probabilities = out_of_fold(pool, features, labels, seed)
    for name in CLEANLAB:
        quality = get_label_quality_scores(labels.numpy(), probabilities.numpy(), method=name)
        tried[f"cleanlab, {name}"] = -torch.from_numpy(quality)
    tried["zero-shot"] = suspicions((pool.scale * features @ pool.text.t()).double(), labels)[0]
    for name, found in tried.items():
        first = found.argsort(descending=True)[: int(is_wrong.sum())]
        row = {"score": name, "count": len(labels), "auroc": roc_auc_score(is_wrong, found)}
        row["precision"] = is_wrong[first].double().mean().item()
        if name == "leave one out":
            row["right_class"] = (proposed == truth)[is_wrong].double().mean().item()
            row |= {f"found_{t:g}": (scores > t)[is_wrong].double().mean().item() for t in THRESHOLDS}
            row |= {f"flagged_{t:g}": (scores > t)[~is_wrong].double().mean().item() for t in THRESHOLDS}
        yield row


# What to label next


def least_sure(pool: Pool, labelled: Tensor, others: Tensor, number: int, _: torch.Generator) -> Tensor:
    best = _probabilities(pool, labelled, others).topk(2, dim=1).values
    return others[(best[:, 0] - best[:, 1]).argsort()[:number]]


def most_entropy(pool: Pool, labelled: Tensor, others: Tensor, number: int, _: torch.Generator) -> Tensor:
    entropy = torch.special.entr(_probabilities(pool, labelled, others)).sum(dim=1)
    return others[entropy.argsort(descending=True)[:number]]


def at_random(_: Pool, labelled: Tensor, others: Tensor, number: int, generator: torch.Generator) -> Tensor:
    return others[torch.randperm(len(others), generator=generator)[:number]]


def core_set(pool: Pool, labelled: Tensor, others: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Each time the image that is farthest from all labelled ones (Sener and Savarese, ICLR 2018: k-Center-Greedy)."""
    features, chosen = pool.keys[others], []
    cosines = (features @ pool.keys[labelled].t()).amax(dim=1) if len(labelled) else None
    for _ in range(number):
        if cosines is None:
            place = int(torch.randint(len(others), (1,), generator=generator))
            cosines = features @ features[place]
        else:
            place = int(cosines.argmin())
            cosines = torch.maximum(cosines, features @ features[place])
        cosines[place] = 2.0
        chosen.append(place)
    return others[chosen]


def ours(pool: Pool, labelled: Tensor, others: Tensor, number: int, _: torch.Generator) -> Tensor:
    known, labels = pool.keys[labelled], pool.labels[labelled]
    sums, temperature = ClassSums.of(known, labels, pool.num_classes), pool.temperature(known, labels)
    features = pool.keys[others]
    adaptation = adapt_to_unlabelled(pool.free(known, labels), sums, pool.text, features, pool.scale, temperature)
    edges = (adaptation.logits / temperature).softmax(dim=1)
    return others[choose(edges, typicality(edges, features, sums), sums.counts, number)]


def _probabilities(pool: Pool, labelled: Tensor, others: Tensor) -> Tensor:
    known, labels = pool.keys[labelled], pool.labels[labelled]
    logits = pool.free(known, labels).logits(pool.keys[others])
    return (logits / pool.temperature(known, labels)).softmax(dim=1)


CHOICES: dict[str, Callable[..., Tensor]] = {
    "random": at_random,
    "margin": least_sure,
    "entropy": most_entropy,
    "CoreSet": core_set,
    "suggest": ours,
}


def labelling(pool: Pool, seed: int, name: str) -> Iterator[dict]:
    """Accuracy on test images after each round of labelling what a score chooses, from no label on."""
    features, truth = pool.bank.features_to_classify, pool.bank.test_labels
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool.keys), generator=generator)  # ties go to no class
    labelled = order[:0]
    for budget in BUDGETS:
        number = budget * pool.num_classes - len(labelled)
        others = order[~torch.isin(order, labelled)]
        if number >= len(others):
            return  # nothing is left to choose
        labelled = torch.cat([labelled, CHOICES[name](pool, labelled, others, number, generator)])
        right = pool.free(pool.keys[labelled], pool.labels[labelled]).logits(features).argmax(dim=1) == truth
        classes = len(pool.labels[labelled].unique()) / pool.num_classes
        yield {"labels": budget, "accuracy": 100 * right.double().mean().item(), "classes": classes}


# Tables


def wrong_table(found: pd.DataFrame) -> str:
    """AUROC and precision in percent by shots: means over the banks of the means over seeds."""
    rows = []
    for kind in ("any", "nearest"):
        some = found[found["kind"] == kind]
        means = 100 * some.groupby(["score", "shots", "bank"], sort=False)[["auroc", "precision"]].mean()
        shown = means.groupby(["score", "shots"], sort=False).mean()
        best = shown.groupby("shots").max().round(2)
        for name in some["score"].unique():
            cells = [f"{kind} class" if kind == "any" else "one of the 3 nearest", name]
            for shots in sorted(some["shots"].unique()):
                for column in ("auroc", "precision"):
                    value = round(shown.loc[(name, shots), column], 2)
                    cells.append(f"**{value:.2f}**" if value == best.loc[shots, column] else f"{value:.2f}")
            rows.append(cells)
    shots = sorted(found["shots"].unique())
    head = ["changed to", "score", *(f"{name}, {s} shots" for s in shots for name in ("AUROC", "precision"))]
    return _markdown(head, rows)


def threshold_table(found: pd.DataFrame) -> str:
    """Which labels the thresholds flag, in percent: means over banks, shots and seeds."""
    some = found[found["score"] == "leave one out"]
    rows = []
    for t in THRESHOLDS:
        flagged, hits = (
            (100 * some.groupby(["kind", "bank", "shots"])[f"{what}_{t:g}"].mean()).groupby("kind").mean()
            for what in ("flagged", "found")
        )
        rows.append([f"{t:g}", *(f"{value:.1f}" for value in (hits["any"], hits["nearest"], *flagged[list(KINDS)]))])
    head = [
        "score above",
        "found, any",
        "found, nearest",
        "right ones, any",
        "right ones, nearest",
        "where all are right",
    ]
    return _markdown(head, rows)


def suggest_table(found: pd.DataFrame) -> str:
    """Accuracy by labels a class: of each bank the mean over seeds, and the means over the banks that have them all."""
    means = found.groupby(["bank", "labels", "choice"], sort=False)["accuracy"].mean().unstack("choice")
    rows = []
    banks = list(dict.fromkeys(found["bank"]))
    for budget in BUDGETS:
        here = [bank for bank in banks if (bank, budget) in means.index]
        values = means.loc[[(bank, budget) for bank in here]]
        for name, of_scores in [*zip(here, values.to_numpy()), (f"mean of {len(here)}", values.mean().to_numpy())]:
            best = of_scores.round(2).max()
            cells = [f"**{v:.2f}**" if round(v, 2) == best else f"{v:.2f}" for v in of_scores]
            rows.append([str(budget), name, *cells])
    return _markdown(["labels a class", "bank", *means.columns], rows)


def rounded(row: dict) -> dict:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()}


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    text = sum(not cell.replace(".", "").replace("*", "").isdigit() for cell in rows[0])
    line = ["---"] * text + ["---:"] * (len(head) - text)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, line, *rows))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.labels_study", description=__doc__)
    parser.add_argument("study", choices=("wrong", "suggest"))
    parser.add_argument("banks", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl file")
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
        for about, rows in work:
            key = [name, seed, *about.values()]
            if tuple(key) in done:
                continue
            lines = [json.dumps({"of": key, "bank": name, "seed": seed} | about | rounded(row)) for row in rows()]
            with args.out.open("a", encoding="utf-8") as out:
                out.writelines(f"{line}\n" for line in lines)
    found = pd.read_json(args.out, lines=True)
    tables = [wrong_table(found), threshold_table(found)] if args.study == "wrong" else [suggest_table(found)]
    sys.stdout.write("\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())

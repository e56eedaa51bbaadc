"""Compare estimates on held-out images with new images: the studies of docs/guides/backbones.md and groups.md.

    python -m tools.held_out_study banks BANKS --out results/held_out.jsonl
    python -m tools.held_out_study videos BANK --out results/videos.jsonl
    python -m tools.held_out_study wrong BANK --out results/wrong_videos.jsonl

`banks` has the accuracy that `backbones` and `teach` show, and the accuracy on test images, for the few-shot samples of
the banks in the folder BANKS. `videos` has the same for new videos, and the coverage and size of prediction sets for
90 %. BANK is the feature bank `ucf101` with groups (`tools.ucf101_groups`). Its test images are split by videos:
`shots` images of each class come from four videos, in turn; the remaining images of these are the "same" videos, and
all images of the other videos the "new" ones. `wrong` has the average precision with which changed labels are found, of
5 % of the videos or of single images, in few-shot samples of whole videos. All scores are percentages of the
training-free variant. Rows that the file has are not computed again.
"""

import argparse
import itertools
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from tools.labels_study import rounded
from tools.names_study import accuracies, sampled
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets.splits import sample_few_shot
from trainers.hegraph.estimator.labels.held_out import held_out_predictions
from trainers.hegraph.estimator.labels.issues import find_label_issues
from trainers.hegraph.estimator.labels.leave_one_out import leave_one_out
from trainers.hegraph.experiments.calibration import calibrate
from trainers.hegraph.experiments.fitting import fit
from trainers.hegraph.experiments.tasks import FeatureTask
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.results.table import markdown_table
from trainers.hegraph.utils.option import NODE

SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2)
VIDEO_SHOTS = (4, 8, 16)
DRAWS = (1, 2, 3, 4, 5)
VIDEOS = 4  # videos of a class with training images
COVERAGE = 0.9
WRONG_SHOTS = (8,)
WRONG_SEEDS = (1, 2, 3)
WRONG = 0.05  # share of videos, or of images, with a wrong label
NAMES = {
    "caltech101": "Caltech101", "caltech55": "Caltech101, 55 classes", "imagenet283": "ImageNet, 283 classes",
    "oxford_pets": "OxfordPets", "stanford_cars": "StanfordCars", "ucf101": "UCF101",
}  # fmt: skip


def percentage(right: Tensor) -> float:
    """Share of true values in percent."""
    return 100 * right.double().mean().item()


def compare_banks(name: str, bank: FeatureBank, shots: int, seed: int) -> dict:
    """Row with the accuracy on held-out and on test images of a few-shot sample."""
    part = sampled(bank, shots, seed)
    labels = part.train_labels
    predicted = held_out_predictions(part.cache_keys(), labels, part.text_positive, part.logit_scale)
    accuracy = accuracies(part, part.text_positive, {})["accuracy"]
    return {"bank": name, "shots": shots, "seed": seed, "held_out": percentage(predicted == labels), "test": accuracy}


# Videos


class Draw(NamedTuple):
    """Test images of a bank: training images, other images of the same videos, and images of new videos."""

    train: Tensor
    same: Tensor
    new: Tensor


def draw_videos(bank: FeatureBank, shots: int, seed: int) -> Draw:
    """Draw `shots` images of each class from `VIDEOS` of its videos, in turn."""
    assert bank.test_labels is not None and bank.test_groups is not None
    rng = random.Random(seed)
    train: list[int] = []
    same: list[int] = []
    new: list[int] = []
    for label in range(len(bank.classnames)):
        frames: defaultdict[int, list[int]] = defaultdict(list)
        for row in (bank.test_labels == label).nonzero().flatten().tolist():
            frames[int(bank.test_groups[row])].append(row)
        videos = sorted(frames)
        rng.shuffle(videos)
        for video in videos[VIDEOS:]:
            new += frames[video]
        chosen = [frames[video] for video in videos[:VIDEOS]]
        for rows in chosen:
            rng.shuffle(rows)
        in_turn = [row for position in itertools.zip_longest(*chosen) for row in position if row is not None]
        train += in_turn[:shots]
        same += in_turn[shots:]
    return Draw(torch.tensor(train), torch.tensor(same), torch.tensor(new))


def bank_of(bank: FeatureBank, draw: Draw) -> FeatureBank:
    """Bank whose training images are those of a draw, and whose test images are of new videos."""
    assert bank.test_labels is not None and bank.test_groups is not None
    features = bank.features_to_classify
    return replace(
        bank,
        train_features=features[draw.train][None],
        train_labels=bank.test_labels[draw.train],
        train_groups=bank.test_groups[draw.train],
        val_features=None,
        val_labels=None,
        val_groups=None,
        test_features=features[draw.new],
        test_labels=bank.test_labels[draw.new],
        test_groups=bank.test_groups[draw.new],
    )


def sets_on_new_videos(bank: FeatureBank, shots: int, seed: int) -> dict[str, float]:
    """Accuracy on new videos, and coverage and size of prediction sets for `COVERAGE`."""
    cfg = load_cfg(flags={"DATASET.NUM_SHOTS": shots, f"{NODE}.VARIANT": "training_free"})
    task = FeatureTask(bank, cfg, seed)
    fitted = calibrate(fit(task, bank), task, bank)
    assert fitted.calibration.sets is not None and bank.test_labels is not None
    logits = fitted.logits(bank.features_to_classify)
    predicted = logits.argmax(dim=1)
    sets = fitted.calibration.sets.sets_of(logits, predicted, COVERAGE)
    covered = sets.gather(1, bank.test_labels.unsqueeze(1))
    size = sets.sum(dim=1).double().mean().item()
    return {"accuracy": percentage(predicted == bank.test_labels), "coverage": percentage(covered), "size": size}


def compare_videos(bank: FeatureBank, shots: int, seed: int) -> dict:
    """Row of a draw of videos."""
    draw = draw_videos(bank, shots, seed)
    part = bank_of(bank, draw)
    same = replace(part, test_features=bank.features_to_classify[draw.same], test_labels=bank.test_labels[draw.same])
    arguments = (part.cache_keys(), part.train_labels, part.text_positive, part.logit_scale)
    new = sets_on_new_videos(part, shots, seed)
    alone = sets_on_new_videos(replace(part, train_groups=None), shots, seed)
    return {
        "shots": shots,
        "seed": seed,
        "same": accuracies(same, part.text_positive, {})["accuracy"],
        "new": new["accuracy"],
        "held_out": percentage(held_out_predictions(*arguments, groups=part.train_groups) == part.train_labels),
        "leave_one_out": percentage(leave_one_out(*arguments)[1] == part.train_labels),
        "coverage": new["coverage"],
        "size": new["size"],
        "coverage_alone": alone["coverage"],
    }


# Wrong labels


def find_wrong_labels(bank: FeatureBank, shots: int, seed: int) -> dict:
    """Row with the average precision of changed labels in a few-shot sample of whole videos."""
    from sklearn.metrics import average_precision_score

    assert bank.train_groups is not None
    generator = random.Random(seed)
    rows = sample_few_shot(bank.train_labels.tolist(), [], shots, generator, bank.train_groups.tolist(), []).train
    chosen = torch.tensor(rows)
    features = bank.cache_keys()[chosen]
    truth = bank.train_labels[chosen]
    groups = bank.train_groups[chosen]
    classes = range(len(bank.classnames))
    row: dict[str, float] = {"shots": shots, "seed": seed}
    for kind, units in (("videos", groups), ("images", torch.arange(len(chosen)))):
        labels = changed_labels(truth, units, len(classes), seed)
        for name, of_check in ((kind, groups), (f"{kind}_alone", None)):
            scores = torch.zeros(len(labels), dtype=torch.float64)
            issues = find_label_issues(features, labels, bank.text_positive, bank.logit_scale, classes, groups=of_check)
            for issue in issues:
                scores[issue.index] = issue.score
            row[name] = 100 * float(average_precision_score((labels != truth).numpy(), scores.numpy()))
    return row


def changed_labels(labels: Tensor, units: Tensor, num_classes: int, seed: int) -> Tensor:
    """Labels `[N]` in which a share `WRONG` of the units, numbers `[N]`, has another class."""
    changed = labels.clone()
    generator = torch.Generator().manual_seed(seed)
    numbers = units.unique()
    order = torch.randperm(len(numbers), generator=generator)
    for number in numbers[order[: round(WRONG * len(numbers))]]:
        inside = units == number
        step = torch.randint(1, num_classes, (1,), generator=generator)
        changed[inside] = (labels[inside] + step) % num_classes
    return changed


# Tables


def banks_table(results: pd.DataFrame) -> str:
    """Held-out minus test accuracy by bank and shots: means over seeds."""
    difference = (results["held_out"] - results["test"]).groupby([results["bank"], results["shots"]]).mean().unstack()
    rows = []
    for bank, values in difference.iterrows():
        cells = ["" if pd.isna(value) else f"{value:+.1f}" for value in values]
        rows.append([NAMES.get(str(bank), str(bank)), *cells])
    return markdown_table(["bank", *(str(shots) for shots in difference.columns)], rows)


def videos_table(results: pd.DataFrame) -> str:
    """Accuracy on the same and on new videos, and its estimates: means over draws."""
    heads = {
        "same": "test on the same videos", "new": "test on new videos", "held_out": "estimate with groups",
        "leave_one_out": "leave-one-out",
    }  # fmt: skip
    return _means_by_shots(results, heads)


def sets_table(results: pd.DataFrame) -> str:
    """Coverage and size of prediction sets on new videos: means over draws."""
    heads = {
        "coverage_alone": "images held out alone", "coverage": "groups held out",
        "size": "classes in a set, groups held out",
    }  # fmt: skip
    return _means_by_shots(results, heads)


def wrong_table(results: pd.DataFrame) -> str:
    """Average precision of changed labels: means over seeds."""
    heads = {
        "videos_alone": "whole videos, without groups", "videos": "whole videos, with groups",
        "images_alone": "single images, without groups", "images": "single images, with groups",
    }  # fmt: skip
    return _means_by_shots(results, heads)


TABLES: dict[str, list[Callable[[pd.DataFrame], str]]] = {
    "banks": [banks_table],
    "videos": [videos_table, sets_table],
    "wrong": [wrong_table],
}


def _means_by_shots(results: pd.DataFrame, heads: dict[str, str]) -> str:
    """Table with a row for each number of shots and a column for each score."""
    means = results.groupby("shots")[list(heads)].mean()
    rows = [[str(shots), *(f"{value:.1f}" for value in values)] for shots, values in means.iterrows()]
    return markdown_table(["shots", *heads.values()], rows, 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.held_out_study", description=__doc__)
    parser.add_argument("study", choices=("banks", "videos", "wrong"))
    parser.add_argument("source", type=Path, metavar="BANKS")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl file to extend")
    args = parser.parse_args()
    done = set()
    if args.out.exists():
        rows = [json.loads(line) for line in args.out.read_text(encoding="utf-8").splitlines()]
        done = {(row.get("bank", ""), row["shots"], row["seed"]) for row in rows}
    work: dict[tuple[str, int, int], Callable[[], dict]] = {}
    if args.study == "banks":
        banks = {file.stem: load_bank(file) for file in sorted(args.source.glob("*.safetensors"))}
        for seed, (name, bank), shots in itertools.product(SEEDS, banks.items(), SHOTS):
            pool = int(bank.train_labels.bincount().min())  # with all its images, the samples of all seeds are equal
            if shots < pool or (shots == pool and seed == SEEDS[0]):
                work[name, shots, seed] = partial(compare_banks, name, bank, shots, seed)
    elif args.study == "videos":
        bank = load_bank(args.source)
        for shots, seed in itertools.product(VIDEO_SHOTS, DRAWS):
            work["", shots, seed] = partial(compare_videos, bank, shots, seed)
    else:
        bank = load_bank(args.source)
        for shots, seed in itertools.product(WRONG_SHOTS, WRONG_SEEDS):
            work["", shots, seed] = partial(find_wrong_labels, bank, shots, seed)
    for key, row in work.items():
        if key not in done:
            with args.out.open("a", encoding="utf-8") as out:
                out.write(f"{json.dumps(rounded(row()))}\n")
    results = pd.read_json(args.out, lines=True)
    sys.stdout.write("\n".join(table(results) for table in TABLES[args.study]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

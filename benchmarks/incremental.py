"""Incremental training in two parts against one fit: accuracy on the test images of feature banks, and seconds.

The first part has half of the images of each class, or all images of half of the classes, and the second part has the
others. There are eight images of each class, sampled with three seeds. Both results of "training_free" are equal, and
"full" continues from its parameters. No temperature is fitted. The banks are those of $HEGRAPH_SHARED/banks.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from trainers.hegraph import FeatureBank, HeGraphClassifier, load_bank
from trainers.hegraph.datasets.splits import sample_few_shot
from trainers.hegraph.method.training.choice import accuracy

from .report import Report
from .tasks import random_bank

SMALL = {"names": (), "seeds": (1,), "shots": 2, "epochs": 2}
BAR = -0.3  # points of accuracy
QUIET = "TRAINER.HEGRAPHADAPTER.CALIBRATE"
STEPS = "TRAINER.HEGRAPHADAPTER.MIN_STEPS"


def run(
    names: tuple[str, ...] = ("caltech55", "oxford_pets", "ucf101"),
    seeds: tuple[int, ...] = (1, 2, 3),
    shots: int = 8,
    epochs: int | None = None,
) -> Report:
    options = {QUIET: "off"} | ({} if epochs is None else {"OPTIM.MAX_EPOCH": epochs, STEPS: 0})
    report = Report(
        f"Incremental training, {shots} images of each class, mean of {len(seeds)} seeds",
        ["bank", "variant", "parts", "one fit, %", "two parts, %", "difference", "one fit, s", "second part, s"],
    )
    folder = Path(os.environ["HEGRAPH_SHARED"]) / "banks" if names else None
    banks = {name: load_bank(folder / f"{name}.safetensors") for name in names} if folder else {"random": _random()}
    for variant in ("training_free", "full"):
        differences = {"images": [], "classes": []}
        for name, bank in banks.items():
            results = [_compare(bank, shots, seed, {**options}, variant) for seed in seeds]
            for part, of_part in differences.items():
                one, one_s = (mean(each["one"][i] for each in results) for i in (0, 1))
                two, two_s = (mean(each[part][i] for each in results) for i in (0, 1))
                of_part.append(two - one)
                cells = [f"{one:.2f}", f"{two:.2f}", f"{two - one:+.2f}", one_s, two_s]
                report.rows.append([name, variant, part, *cells])
        for part, of_part in differences.items():
            report.at_least(f"{variant}, halves of the {part}, points", mean(of_part), BAR)
    return report


def _random() -> FeatureBank:
    return random_bank(num_classes=4, width=16, shots=4, test=40)


def _compare(bank: FeatureBank, shots: int, seed: int, options: dict, variant: str) -> dict[str, tuple[float, float]]:
    """Accuracy in percent and seconds, for one fit and for the second part of both divisions."""
    rows = sample_few_shot(bank.train_labels.tolist(), [], shots, random.Random(seed)).train
    X, y = bank.cache_keys()[rows].numpy(), bank.train_labels[rows].numpy()
    text = bank.text_positive.numpy(), bank.text_negative.numpy()
    rank = np.array([np.flatnonzero(np.flatnonzero(y == label) == row)[0] for row, label in enumerate(y)])

    def new() -> HeGraphClassifier:
        return HeGraphClassifier(variant=variant, options=options, random_state=seed)

    def timed(work: Callable[[], HeGraphClassifier]) -> tuple[float, float]:
        began = time.monotonic()
        classifier = work()
        seconds = time.monotonic() - began
        return _accuracy(classifier, bank.features_to_classify, bank.test_labels), seconds

    early, old = rank < shots // 2, y < len(bank.classnames) // 2
    half = new().fit(X[early], y[early], text_features=text[0], negative_text_features=text[1])
    count = len(np.unique(y[old]))
    some = new().fit(X[old], y[old], text_features=text[0][:count], negative_text_features=text[1][:count])
    rest = {"text_features": text[0][count:], "negative_text_features": text[1][count:]}
    return {
        "one": timed(lambda: new().fit(X, y, text_features=text[0], negative_text_features=text[1])),
        "images": timed(lambda: half.partial_fit(X[~early], y[~early])),
        "classes": timed(lambda: some.partial_fit(X[~old], y[~old], **rest)),
    }


def _accuracy(classifier: HeGraphClassifier, features: Tensor, labels: Tensor | None) -> float:
    assert labels is not None  # all banks have test images
    return accuracy(torch.from_numpy(classifier.predict_proba(features)), labels)

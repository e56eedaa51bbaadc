"""What runs predicted image by image: differences of accuracy on the same seeds and test images, and confusions.

Two methods that are tested on the same images make many mistakes together, so the difference of their accuracies is
known far better than either accuracy. It is taken image by image, as McNemar's test does, and averaged over seeds and
data sets. The interval says how the difference may change with other test images of these data sets. It does not say
how it may change with other data sets, nor, where all seeds draw the same training images, with other training images.

Shapes: M test images of a data set, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..utils.errors import UserError, unknown
from .records import PREDICTIONS, find_runs, read_beside
from .scores import OURS, PLACE, PROTOCOL, check_averaged, grouped, method, method_order, place
from .table import CONFIDENCE, pipes

RESAMPLES = 2000

# What tells tests apart that cannot be paired, beside the number of shots
TEST = (*(key for key in PLACE if key not in ("shots", PROTOCOL)), "rule", "trained_on")


class Difference(NamedTuple):
    """How far one method is ahead of another, in percent of the test images, with the ends of its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as "+0.65 (0.12 to 1.18)"; bold where the interval excludes no difference."""
        text = f"{self.mean:+.2f} ({self.low:.2f} to {self.high:.2f})"
        return f"**{text}**" if self.low > 0 or self.high < 0 else text


def paired_table(folders: Sequence[Path], of: str = OURS) -> str:
    """A table in markdown: how far the method `of`, named as tables have it, is ahead of every other one, by shots.

    Raises UserError if there are no runs of it below the folders, or as `read_runs`.
    """
    runs = read_runs(folders)
    methods = sorted(set(runs["method"]), key=method_order)
    if of not in methods:
        raise unknown("method", of, methods)
    ours = runs[runs["method"] == of]
    shots = sorted(set(ours["shots"]))
    rows = []
    for name in methods:
        if name != of:
            theirs = runs[runs["method"] == name]
            found = [difference(ours[ours["shots"] == n], theirs[theirs["shots"] == n]) for n in shots]
            rows.append([name, *("" if one is None else str(one) for one in found)])
    caption = (
        f"Accuracy of {of} minus that of the other method (points), mean of {', '.join(sorted(set(ours['dataset'])))};"
        f" same seeds and test images; in brackets the {CONFIDENCE:.0%} bootstrap interval over test images, bold where"
        " it excludes 0"
    )
    return f"{caption}\n\n{pipes([f'{of} minus', *map(str, shots)], 1, rows)}"


def read_runs(folders: Sequence[Path]) -> pd.DataFrame:
    """Finished runs, one a row: the keys of `TEST`, "method" (with the protocol if it has heard images without labels),
    "shots", "seed" and "correct", which test images were classified correctly, shape `[M]`.

    Raises UserError if there is no run, if runs of one method, data set and number of shots must not be averaged, or if
    two runs of one data set and number of shots were not tested on the same images.
    """
    rows: list[dict] = []
    tested: dict[tuple, Tensor] = {}
    for folder, record in find_runs(folders).items():
        if record["accuracy"] is None:
            continue
        predicted, labels, _ = read_predictions(folder)
        test = {"shots": record["shots"]} | {key: record.get(key) or "" for key in TEST}
        if not torch.equal(tested.setdefault(tuple(test.values()), labels), labels):
            raise UserError(
                f"{folder}: not tested on the same images as another run on {record['dataset']} with {record['shots']} "
                "shots, so the two cannot be paired; name runs with one test set"
            )
        name = ", ".join(filter(None, (method(record), place(record)[PROTOCOL])))
        correct = (predicted == labels).numpy()
        rows.append(test | {"method": name, "seed": record["seed"], "correct": correct, "record": record})
    if not rows:
        raise UserError(f"no run with test images below {', '.join(map(str, folders))}; run an experiment first")
    runs = pd.DataFrame(rows)
    for (dataset, name, shots, *_), found in grouped(runs, ["dataset", "method", "shots", *TEST[1:]]):
        check_averaged(list(found["record"]), f"{dataset}, {name}, {shots} shots")
    return runs


def difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> Difference | None:
    """The difference of two methods at one number of shots; None where they were not run on the same data and seeds."""
    from scipy.stats import bootstrap  # takes half a second to import

    both = ours.merge(theirs, on=[*TEST, "seed"], suffixes=("", "_theirs"))
    if not len(both) == len(ours) == len(theirs):
        return None
    by_image = []
    for _, found in both.groupby(list(TEST)):
        rows = [a.astype(float) - b for a, b in zip(found["correct"], found["correct_theirs"])]
        by_image.append(100 * np.mean(rows, axis=0))

    def mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    if not any(row.any() for row in by_image):
        return Difference(0.0, 0.0, 0.0)
    options: dict[str, Any] = {"n_resamples": RESAMPLES, "batch": 100, "confidence_level": CONFIDENCE}
    random = np.random.default_rng(0)
    found = bootstrap(by_image, mean_of_means, method="percentile", random_state=random, **options)
    low, high = (round(float(end), 9) + 0.0 for end in found.confidence_interval)  # rounding errors are no difference
    return Difference(float(mean_of_means(*by_image)), low, high)


def read_predictions(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Reads what a run predicted: the predicted and the true classes of its test images, each `[M]`, and K class names.

    Raises UserError if the folder has no predictions, or the file holds something else.
    """
    path = folder / PREDICTIONS
    (predicted, labels), classnames = read_beside(path, "predictions of a run", ("predicted", "labels"))
    found = {*predicted.flatten().tolist(), *labels.flatten().tolist()}
    of_images = predicted.shape == labels.shape == (labels.numel(),)
    if not (of_images and found and found <= set(range(len(classnames)))):
        raise UserError(f"{path}: predicted and labels must be class numbers [M] below {len(classnames)}")
    return predicted.long(), labels.long(), classnames


def confusion_matrix(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Test images of a run by true class (row) and predicted class (column), shape `[K, K]`, and K class names."""
    from sklearn.metrics import confusion_matrix as count  # takes a second to import

    predicted, labels, classnames = read_predictions(folder)
    return count(labels.numpy(), predicted.numpy(), labels=list(range(len(classnames)))), classnames


def hardest_pairs(matrix: np.ndarray, classnames: Sequence[str]) -> list[str]:
    """The pairs of classes that were taken for each other most often, such as "a and b: 4 (a as b 1, b as a 3)".

    They are at most ten, of a matrix as of `confusion_matrix`; pairs that were never confused are left out.
    """
    both = matrix + matrix.T
    pairs = [(int(a), int(b)) for a, b in np.argwhere(np.triu(both, 1))]
    pairs.sort(key=lambda pair: -both[pair])  # a stable sort: equal pairs keep their label order
    lines = []
    for a, b in pairs[:10]:
        one, other = classnames[a], classnames[b]
        apart = f"{one} as {other} {matrix[a, b]}, {other} as {one} {matrix[b, a]}"
        lines.append(f"{one} and {other}: {both[a, b]} ({apart})")
    return lines

"""Paired differences of methods on the same test images.

Two methods misclassify many of the same test images, so the difference of their accuracies has a narrower interval than
either accuracy. The difference is computed for each image, as in McNemar's test, and averaged over seeds and data sets.
The interval is for other test images of these data sets and other draws of training images, as in `intervals.py`, not
for other data sets. With several labels per image, mAP takes the place of accuracy, and bootstrap samples of the images
give its variance. Test images with groups are resampled by groups.

Shapes: M test images of a data set, R draws of training images (seeds), K classes.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..features.bank import BankFile
from ..utils.errors import UserError, unknown
from ..utils.option import describe_shots
from .intervals import (
    Difference,
    Ranking,
    analyse_bootstrap,
    analyse_variance,
    bootstrap_weights,
    interval_of_mean,
    mean_precision,
    values_of_groups,
)
from .predictions import read_predictions, read_scores
from .records import PREDICTIONS, find_runs, main_score, read_test_groups, read_training_rows
from .scores import (
    OUR_METHOD,
    PER_CLASS,
    PLACE,
    PROTOCOL,
    check_averaged,
    grouped,
    is_multilabel,
    method,
    method_order,
    place,
    title,
)
from .table import CONFIDENCE, markdown_table

# Keys of tests with equal values for paired runs, besides the number of shots
Groups = Mapping[str, np.ndarray]  # data set -> groups of its test images, integers [M]
PAIR_KEYS = (*(key for key in PLACE if key not in ("shots", PROTOCOL)), "rule", "trained_on")


def paired_table(folders: Sequence[Path], of: str = OUR_METHOD, groups: Groups | None = None) -> str:
    """Table in Markdown with the accuracy of the method `of` minus the accuracy of every other method, by shots.

    Args:
        folders: Output folders.
        of: The first method of each difference.
        groups: As in `read_runs`.

    Raises:
        UserError: If the folders have no runs of the method, runs of one method, data set and number of shots are not
            comparable, runs of one data set and number of shots were tested on different images, or a data set has a
            single test image.
    """
    runs = read_runs(folders, groups)
    compared = paired_differences(runs, of)
    first = runs[runs["method"] == of]
    shots = sorted(set(first["shots"]))
    rows = []
    for name, by_shots in compared.items():
        cells = [str(by_shots.get(n, "")) for n in shots]
        rows.append([name, *cells])
    means = f"in points, mean of {', '.join(sorted(set(first['dataset'])))}; same seeds and test images"
    brackets = f"in brackets the {CONFIDENCE:.0%} interval over test images and seeds, bold if it excludes 0"
    caption = f"{title(runs['record'])} of {of} minus the method in the row, {means}; {brackets}"
    grouped_sets = sorted({name for name, own in zip(first["dataset"], first["groups"]) if own is not None})
    if grouped_sets:
        caption += f"; groups of test images as units: {', '.join(grouped_sets)}"
    fixed = fixed_training_images(first)
    if fixed:
        caption += f"; given these training images: {', '.join(fixed)}"
    return f"{caption}\n\n{markdown_table([f'{of} minus', *map(str, shots)], rows)}"


def fixed_training_images(runs: pd.DataFrame) -> list[str]:
    """Data sets and shots of runs whose seeds do not sample different training images, such as "Toy with 16 shots"."""
    fixed = []
    for (dataset, shots), group in grouped(runs, ["dataset", "shots"]):
        if len(set(group["training_images"])) == 1:
            fixed.append(f"{dataset} with {describe_shots(shots)}")
    return fixed


def paired_differences(runs: pd.DataFrame, of: str = OUR_METHOD) -> dict[str, dict[int, Difference]]:
    """Differences of the method `of` and every other method, by method and number of shots, from `read_runs`.

    Raises:
        UserError: If there are no runs of the method, or a data set has a single test image.
    """
    methods = sorted(set(runs["method"]), key=method_order)
    if of not in methods:
        raise unknown("method", of, methods)
    by_cell = {(name, n): group for (name, n), group in grouped(runs, ["method", "shots"])}
    shots = sorted(n for name, n in by_cell if name == of)
    differences: dict[str, dict[int, Difference]] = {name: {} for name in methods if name != of}
    for name, n in itertools.product(differences, shots):
        if (name, n) not in by_cell:
            continue
        value = difference(by_cell[of, n], by_cell[name, n])
        if value is not None:
            differences[name][n] = value
    return differences


def read_groups(banks: Sequence[Path]) -> Groups:
    """Read the groups of the test images of feature banks, by data set; UserError for a bank without groups."""
    groups = {}
    for path in banks:
        file = BankFile(path)
        if "test" not in file.groups:
            raise UserError(f"{path} has no groups of test images; add the tensor test_groups, or leave the bank out")
        groups[file.dataset] = file.groups["test"].numpy()
    return groups


def read_runs(folders: Sequence[Path], groups: Groups | None = None) -> pd.DataFrame:
    """Read which test images finished runs classified correctly.

    Args:
        folders: Output folders.
        groups: Groups of the test images by data set, which replace the groups in the predictions.

    Returns:
        Frame with a row per run and the columns `PAIR_KEYS`, "method" (with the protocol, unless it is inductive),
        "shots", "seed", "record", "training_images" as in `read_training_images`, "groups" of the test images, `[M]` or
        None, and "outcome": whether each test image was classified correctly, `[M]`, or with several labels per image
        its `Ranking`.

    Raises:
        UserError: If there is no run, runs of one method, data set and number of shots are not comparable, runs of one
            data set and number of shots were tested on different images, or some runs have equal and others unequal
            numbers of training images.
    """
    rows: list[dict] = []
    test_labels: dict[tuple, Tensor] = {}
    for folder, record in find_runs(folders).items():
        if main_score(record) is None:
            continue
        labels, outcome = read_outcome(folder, record)
        values = record | place(record)
        test = {"shots": record["shots"]} | {key: values.get(key) or "" for key in PAIR_KEYS}
        if not torch.equal(test_labels.setdefault(tuple(test.values()), labels), labels):
            other = f"another run on {values['dataset']} with {describe_shots(record['shots'])}"
            raise UserError(f"{folder}: not tested on the same images as {other}; name runs with one test set")
        name = ", ".join(filter(None, (method(record), record.get(PROTOCOL))))
        training_images = read_training_images(folder, record)
        run = {"method": name, "seed": record["seed"], "training_images": training_images}
        run["groups"] = groups_of_test(folder, len(labels), (groups or {}).get(record["dataset"]))
        rows.append(test | run | {"outcome": outcome, "record": record})
    if not rows:
        raise UserError(f"no run with test images below {', '.join(map(str, folders))}; run an experiment first")
    runs = pd.DataFrame(rows)
    if runs[PER_CLASS].nunique() > 1:
        kinds = ", ".join(sorted(runs[PER_CLASS].unique()))
        raise UserError(f"runs have different numbers of shots per class ({kinds}); name runs of one kind")
    for (dataset, name, shots, *_), group in grouped(runs, ["dataset", "method", "shots", *PAIR_KEYS[1:]]):
        check_averaged(list(group["record"]), f"{dataset}, {name}, {describe_shots(shots)}")
    return runs


def groups_of_test(folder: Path, images: int, given: np.ndarray | None) -> np.ndarray | None:
    """Groups of the test images of a run, `[M]`: the given ones, else those in its predictions; None without groups.

    Raises:
        UserError: If the number of given groups is not the number of test images.
    """
    if given is not None:
        if len(given) != images:
            raise UserError(f"{folder}: expected groups of {images} test images, got {len(given)}; name the right bank")
        return given
    stored = read_test_groups(folder / PREDICTIONS)
    return None if stored is None else stored.numpy()


def read_outcome(folder: Path, record: dict) -> tuple[Tensor, np.ndarray | Ranking]:
    """Read the labels of a run's test images, and its "outcome" as in `read_runs`."""
    if is_multilabel(record):
        scores, labels = read_scores(folder)
        return labels, Ranking(scores.numpy(), labels.numpy())
    predicted, labels, _ = read_predictions(folder)
    return labels, (predicted == labels).numpy()


def read_training_images(folder: Path, record: dict) -> frozenset:
    """Read the sampled training images of a run; its seed stands for them if its folder does not name them.

    Raises:
        UserError: If the file is damaged.
    """
    rows = read_training_rows(folder)
    return frozenset(str(row[0]) for row in rows) if rows else frozenset({record["seed"]})


def difference(first: pd.DataFrame, second: pd.DataFrame) -> Difference | None:
    """Difference of two methods at one number of shots; None if their data sets or seeds differ.

    Raises:
        UserError: If a data set has a single test image.
    """
    pairs = first.merge(second, on=[*PAIR_KEYS, "seed"], suffixes=("", "_second"))
    if not len(pairs) == len(first) == len(second):
        return None
    if any(isinstance(outcome, Ranking) for outcome in pairs["outcome"]):
        return map_difference(pairs)
    parts = []
    for _, group in pairs.groupby(list(PAIR_KEYS)):
        rows = [one.astype(float) - other for one, other in zip(group["outcome"], group["outcome_second"])]
        values = 100 * np.stack(rows)  # [R, M]
        groups = group["groups"].iloc[0]
        if groups is not None:
            values = values_of_groups(values, groups)
        check_number_of_images(values.shape[1])
        parts.append(analyse_variance(values)._replace(overlap=overlap(group["training_images"])))
    return interval_of_mean(parts)


def overlap(draws: Iterable[frozenset]) -> float:
    """Share of training images that two draws have in common, on average over all pairs of draws; 0 for one draw."""
    pairs = list(itertools.combinations(draws, 2))
    if not pairs:
        return 0.0
    shares = [len(one & other) / max(len(one), len(other)) for one, other in pairs]
    return sum(shares) / len(shares)


def check_number_of_images(images: int) -> None:
    """Raise UserError if a data set has a single test image."""
    if images < 2:
        raise UserError("an interval over test images needs at least two test images of each data set, got one")


def map_difference(pairs: pd.DataFrame) -> Difference:
    """Difference of two mAPs; each bootstrap sample of test images is the same for both methods and all seeds.

    Args:
        pairs: Rows with the columns "outcome" and "outcome_second" of the two methods.

    Raises:
        UserError: If a data set has a single test image.
    """
    rng = np.random.default_rng(0)
    parts = []
    for _, group in pairs.groupby(list(PAIR_KEYS)):
        images = len(group["outcome"].iloc[0].labels)
        groups = group["groups"].iloc[0]
        units = np.arange(images) if groups is None else np.unique(groups, return_inverse=True)[1]
        images = int(units.max()) + 1
        check_number_of_images(images)
        weights = bootstrap_weights(images, rng)[:, units]
        by_seed = []
        for one, other in zip(group["outcome"], group["outcome_second"]):
            by_seed.append(mean_precision(one, weights) - mean_precision(other, weights))
        part = analyse_bootstrap(100 * np.stack(by_seed), images)
        parts.append(part._replace(overlap=overlap(group["training_images"])))
    return interval_of_mean(parts)

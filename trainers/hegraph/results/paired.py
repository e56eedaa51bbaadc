"""Paired differences of methods on the same test images.

Two methods misclassify many of the same test images, so the difference of their accuracies has a narrower interval than
either accuracy. The difference is computed for each image, as in McNemar's test, and averaged over seeds and data sets.
The interval is for other test images of these data sets and other draws of training images, as in `intervals.py`, not
for other data sets. With several labels per image, mAP takes the place of accuracy, and bootstrap samples of the images
give its variance. Test images with groups are resampled by groups. Only data sets are independent: runs of several
backbones, or of models trained on other data, have tables of their own.

Shapes: M test images of a data set, R draws of training images (seeds), K classes.
"""

import itertools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..utils.errors import UserError, unknown
from ..utils.option import describe_shots
from .intervals import (
    Difference,
    Ranking,
    Variances,
    analyse_bootstrap,
    analyse_variance,
    bootstrap_weights,
    interval_of_mean,
    mean_precision,
    values_of_groups,
)
from .paired_runs import PAIR_KEYS, Groups, kinds_of, read_runs
from .scores import OUR_METHOD, grouped, method_order, title
from .table import CONFIDENCE, markdown_table

logger = logging.getLogger(__name__)


class Comparison(NamedTuple):
    """Differences of a method and every other one.

    Attributes:
        differences: Differences by method and number of shots.
        notes: Sentences on seeds and data sets that only some runs have.
    """

    differences: dict[str, dict[int, Difference]]
    notes: list[str]


def paired_table(folders: Sequence[Path], of: str = OUR_METHOD, groups: Groups | None = None) -> str:
    """Tables in Markdown with the accuracy of the method `of` minus the accuracy of every other method, by shots.

    Each kind of runs (`paired_runs.KIND`) has a table of its own. Notes below a table name the seeds and data sets that
    only some methods have.

    Args:
        folders: Output folders.
        of: The first method of each difference.
        groups: As in `read_runs`.

    Raises:
        UserError: If the folders have no runs of the method and of another one of one kind, runs are not comparable as
            in `read_runs`, or a data set has a single test image.
    """
    runs = read_runs(folders, groups)
    check_method(runs, of)
    tables = []
    for kind, rows in kinds_of(runs):
        if set(rows["method"]) > {of}:
            tables.append(_table(kind, rows, of))
        else:
            logger.warning("%s: %s, so nothing is compared", kind, _only_methods(rows, of))
    if not tables:
        raise UserError(f"expected runs of {of} and of other methods with one backbone and one source, got none")
    return "\n".join(tables)


def _only_methods(rows: pd.DataFrame, of: str) -> str:
    return f"only runs of {of}" if of in set(rows["method"]) else f"no run of {of}"


def _table(kind: str, runs: pd.DataFrame, of: str) -> str:
    """Table of runs of one kind, with its caption and notes."""
    compared = paired_differences(runs, of)
    first = runs[runs["method"] == of]
    shots = sorted(set(first["shots"]))
    rows = []
    for name, by_shots in compared.differences.items():
        cells = [str(by_shots.get(n, "")) for n in shots]
        rows.append([name, *cells])
    datasets = ", ".join(sorted(set(first["dataset"])))
    caption = [
        f"{title(runs['record'])} of {of} minus the method in the row, in points, mean of {datasets}",
        kind,
        "same seeds and test images",
        f"in brackets the {CONFIDENCE:.0%} interval over test images and seeds, bold if it excludes 0",
    ]
    grouped_sets = sorted({name for name, own in zip(first["dataset"], first["groups"]) if own is not None})
    if grouped_sets:
        caption.append(f"groups of test images as units: {', '.join(grouped_sets)}")
    fixed, unnamed = training_images_of(first)
    if fixed:
        caption.append(f"given these training images: {', '.join(fixed)}")
    if unnamed:
        problem = "seeds count as independent, because no folder names the training images"
        caption.append(f"{problem} (split.json): {', '.join(unnamed)}")
    table = markdown_table([f"{of} minus", *map(str, shots)], rows)
    notes = "".join(f"- {note}\n" for note in compared.notes)
    return f"{'; '.join(caption)}\n\n{table}" + (f"\n{notes}" if notes else "")


def training_images_of(runs: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Data sets and shots whose training images need a remark, such as "Toy with 16 shots".

    Returns:
        Those whose seeds do not sample different training images, and those with different unknown training images.
    """
    fixed = []
    unnamed = []
    for (dataset, shots), group in grouped(runs, ["dataset", "shots"]):
        name = f"{dataset} with {describe_shots(shots)}"
        if len(set(images_of_draws(group))) == 1:
            fixed.append(name)
        elif group["training_images"].isna().any():
            unnamed.append(name)
    return fixed, unnamed


def images_of_draws(runs: pd.DataFrame) -> list[frozenset]:
    """Training images of each run; the hash of the split stands for images that no folder names."""
    pairs = zip(runs["training_images"], runs["draw"])
    return [frozenset({draw}) if images is None else images for images, draw in pairs]


def check_method(runs: pd.DataFrame, of: str) -> None:
    """Raise UserError if there are no runs of a method."""
    methods = sorted(set(runs["method"]), key=method_order)
    if of not in methods:
        raise unknown("method", of, methods)


def paired_differences(runs: pd.DataFrame, of: str = OUR_METHOD) -> Comparison:
    """Differences of the method `of` and every other method, by method and number of shots, from `read_runs`.

    Raises:
        UserError: If there are no runs of the method, runs are of several kinds, or a data set has a single test image.
    """
    check_method(runs, of)
    kinds = [kind for kind, _ in kinds_of(runs)]
    if len(kinds) > 1:
        raise UserError(f"expected runs of one backbone and one source, got {' and '.join(kinds)}; name runs of one")
    methods = sorted(set(runs["method"]), key=method_order)
    by_cell = {(name, n): group for (name, n), group in grouped(runs, ["method", "shots"])}
    shots = sorted(n for name, n in by_cell if name == of)
    differences: dict[str, dict[int, Difference]] = {name: {} for name in methods if name != of}
    noted: dict[tuple[str, str], list[int]] = {}
    for name, n in itertools.product(differences, shots):
        if (name, n) not in by_cell:
            continue
        first = by_cell[of, n]
        second = by_cell[name, n]
        pairs = pair_runs(first, second)
        if pairs is not None:
            differences[name][n] = difference(pairs)
        note = note_on_pairs(first, second, pairs)
        if note:
            noted.setdefault((name, note), []).append(n)
    notes = []
    for (name, note), noted_shots in noted.items():
        notes.append(f"{name} with {', '.join(map(describe_shots, noted_shots))}: {note}")
    return Comparison(differences, notes)


# Pairs of runs


def pair_runs(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame | None:
    """Pair the runs of two methods at one number of shots by data set and seed.

    Seeds of one method only are left out. Data sets with the same draws (see `clusters_of`) have their common seeds.

    Returns:
        Rows sorted by data set and seed, with "outcome" of the first method, "outcome_second", and "cluster"; None if
        the methods have other data sets, or no seed in common on one of them.
    """
    pairs = first.merge(second, on=[*PAIR_KEYS, "seed"], suffixes=("", "_second"))
    pairs = pairs.sort_values(["dataset", "seed"], kind="stable", ignore_index=True)
    pairs = pairs.assign(cluster=clusters_of(pairs))
    for _, cluster in pairs.groupby("cluster"):
        common = set.intersection(*(set(group["seed"]) for _, group in cluster.groupby("dataset")))
        pairs = pairs.drop(cluster.index[~cluster["seed"].isin(common)])
    datasets = {*first["dataset"], *second["dataset"]}
    return pairs if set(pairs["dataset"]) == datasets else None


def clusters_of(pairs: pd.DataFrame) -> list[str]:
    """Name the cluster of each row: the first data set that shares a draw with its own, perhaps through others."""
    cluster = {name: name for name in pairs["dataset"]}
    for _, group in pairs.groupby("draw"):
        merged = {cluster[name] for name in group["dataset"]}
        for name, current in cluster.items():
            if current in merged:
                cluster[name] = min(merged)
    return [cluster[name] for name in pairs["dataset"]]


def note_on_pairs(first: pd.DataFrame, second: pd.DataFrame, pairs: pd.DataFrame | None) -> str:
    """Sentence on data sets or seeds that only one of two methods has, or other training images; "" otherwise."""
    own = set(first["dataset"])
    others = set(second["dataset"])
    if own != others:
        return f"no mean, because only one of the methods was tested on {', '.join(sorted(own ^ others))}"
    if pairs is None:
        return "no mean, because the methods have no seed in common"
    by_seeds: dict[str, list[str]] = {}
    for dataset in sorted(own):
        paired = set(pairs.loc[pairs["dataset"] == dataset, "seed"])
        seeds = {*first.loc[first["dataset"] == dataset, "seed"], *second.loc[second["dataset"] == dataset, "seed"]}
        if paired != seeds:
            text = f"only the common seeds {', '.join(map(str, sorted(paired)))} of {len(seeds)}"
            by_seeds.setdefault(text, []).append(dataset)
    texts = [f"{text} on {', '.join(names)}" for text, names in by_seeds.items()]
    one = pairs["training_images"]
    other = pairs["training_images_second"]
    if (one.notna() & other.notna() & (one != other)).any():
        texts.append("other training images with equal seeds")
    return "; ".join(texts)


# Differences


def difference(pairs: pd.DataFrame) -> Difference:
    """Difference of two methods in points, from `pair_runs`.

    Raises:
        UserError: If a data set has a single test image.
    """
    is_map = any(isinstance(outcome, Ranking) for outcome in pairs["outcome"])
    rng = np.random.default_rng(0)
    clusters: dict[str, list[Variances]] = {}
    for (cluster, _), group in grouped(pairs, ["cluster", "dataset"]):
        part = map_variances(group, rng) if is_map else accuracy_variances(group)
        clusters.setdefault(cluster, []).append(part._replace(overlap=overlap(images_of_draws(group))))
    return interval_of_mean(list(clusters.values()))


def accuracy_variances(group: pd.DataFrame) -> Variances:
    """Variances of the difference of two accuracies on a data set.

    Raises:
        UserError: If the data set has a single test image.
    """
    rows = [one.astype(float) - other for one, other in zip(group["outcome"], group["outcome_second"])]
    values = 100 * np.stack(rows)  # [R, M]
    groups = group["groups"].iloc[0]
    if groups is not None:
        values = values_of_groups(values, groups)
    check_number_of_images(values.shape[1])
    return analyse_variance(values)


def map_variances(group: pd.DataFrame, rng: np.random.Generator) -> Variances:
    """Variances of the difference of two mAPs; a bootstrap sample of images is the same for both methods and all seeds.

    Args:
        group: Rows of a data set with the columns "outcome" and "outcome_second" of the two methods.
        rng: Generator of the bootstrap samples.

    Raises:
        UserError: If the data set has a single test image.
    """
    images = len(group["outcome"].iloc[0].labels)
    groups = group["groups"].iloc[0]
    units = np.arange(images) if groups is None else np.unique(groups, return_inverse=True)[1]
    images = int(units.max()) + 1
    check_number_of_images(images)
    weights = bootstrap_weights(images, rng)[:, units]
    by_seed = []
    for one, other in zip(group["outcome"], group["outcome_second"]):
        by_seed.append(mean_precision(one, weights) - mean_precision(other, weights))
    return analyse_bootstrap(100 * np.stack(by_seed), images)


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

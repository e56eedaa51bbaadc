"""Runs with the outcome of each test image, for paired differences.

Runs of one kind (`KIND`) can be averaged over data sets. Runs with another backbone, or with models that were trained
on other data, have the same test images, so they are no further independent observations.

Shapes: M test images of a data set, K classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..features.bank import BankFile
from ..utils.errors import UserError, unknown
from ..utils.files import hash_json
from ..utils.option import describe_shots
from ..utils.reading import read_json
from .intervals import Ranking
from .predictions import read_predictions, read_scores
from .records import (
    PREDICTIONS,
    SPLIT,
    ImageFiles,
    check_exist,
    find_runs,
    main_score,
    read_test_files,
    read_test_groups,
    read_training_rows,
    warn_skipped,
)
from .scores import PER_CLASS, PROTOCOL, check_averaged, grouped, is_multilabel, method, place

KIND = ("backbone", PER_CLASS, "rule", "trained_on")  # keys with one value in all runs of a mean over data sets
PAIR_KEYS = ("dataset", *KIND)  # keys of tests with equal values for paired runs, besides the number of shots

Groups = Mapping[str, np.ndarray]  # data set -> groups of its test images, integers [M]


class TestImages(NamedTuple):
    """Test images of a run, for comparison with those of other runs.

    Attributes:
        folder: Output folder of the run.
        classnames: K class names.
        labels: Labels `[M]`, or with several labels per image indicators `[M, K]`.
        files: Files of the images; None if they are unknown, or no files.
    """

    folder: Path
    classnames: list[str]
    labels: Tensor
    files: ImageFiles | None

    def equals(self, other: "TestImages") -> bool:
        """Whether the images are equal, as far as the runs name them."""
        if self.files is not None and other.files is not None and self.files.test != other.files.test:
            return False
        return self.classnames == other.classnames and torch.equal(self.labels, other.labels)


def read_groups(banks: Sequence[Path]) -> Groups:
    """Read the groups of the test images of feature banks, by data set.

    Raises:
        UserError: If a bank has no groups, or two banks are of one data set.
    """
    groups: dict[str, np.ndarray] = {}
    for path in banks:
        file = BankFile(path)
        if "test" not in file.groups:
            raise UserError(f"{path} has no groups of test images; add the tensor test_groups, or leave the bank out")
        if file.dataset in groups:
            raise UserError(f"two banks have groups of {file.dataset}, the second is {path}; name one of them")
        groups[file.dataset] = file.groups["test"].numpy()
    return groups


def read_runs(folders: Sequence[Path], groups: Groups | None = None) -> pd.DataFrame:
    """Read which test images finished runs classified correctly.

    Args:
        folders: Output folders.
        groups: Groups of the test images by data set, which replace the groups in the predictions.

    Returns:
        Frame with a row per run and the columns `PAIR_KEYS`, "method" (with the protocol, unless it is inductive),
        "shots", "seed", "record", "draw" (equal for runs with the same sampled images), "training_images" (a set, or
        None if no folder names them), "groups" of the test images, `[M]` or None, and "outcome": whether each test
        image was classified correctly, `[M]`, or with several labels per image its `Ranking`.

    Raises:
        UserError: If there is no run, runs of one method, data set and number of shots are not comparable, runs of one
            data set were tested on different images or have different groups, given groups are of no run, or some runs
            have equal and others unequal numbers of training images.
    """
    given = groups or {}
    check_exist(folders)
    found = find_runs(folders)
    tested = {folder: record for folder, record in found.items() if main_score(record) is not None}
    warn_skipped([*found], [*tested], "without test images")
    if not tested:
        raise UserError(f"no run with test images below {', '.join(map(str, folders))}; run an experiment first")
    check_used(given, [record["dataset"] for record in tested.values()])
    splits = find_splits(tested)
    rows: list[dict] = []
    test_images: dict[tuple, TestImages] = {}
    for folder, record in tested.items():
        images, outcome = read_outcome(folder, record)
        values = record | place(record)
        test = {key: values.get(key) or "" for key in PAIR_KEYS}
        other = test_images.setdefault((test["dataset"], test["rule"], test["trained_on"]), images)
        if not images.equals(other):
            problem = f"{folder}: not tested on the same images as {other.folder}, another run on {values['dataset']}"
            raise UserError(f"{problem}; name runs with one test set")
        draw = record.get("split_hash") or hash_of_split(folder) or f"{record['dataset']} {record['seed']}"
        run = {"method": name_of(record), "shots": record["shots"], "seed": record["seed"], "draw": draw}
        run["training_images"] = splits.get(draw)
        run["groups"] = groups_of_test(folder, len(images.labels), given.get(record["dataset"]))
        rows.append(test | run | {"outcome": outcome, "record": record})
    runs = with_common_groups(pd.DataFrame(rows))
    if runs[PER_CLASS].nunique() > 1:
        kinds = ", ".join(sorted(runs[PER_CLASS].unique()))
        raise UserError(f"runs have different numbers of shots per class ({kinds}); name runs of one kind")
    for (dataset, name, shots, *_), group in grouped(runs, ["dataset", "method", "shots", *KIND]):
        check_averaged(list(group["record"]), f"{dataset}, {name}, {describe_shots(shots)}")
    return runs


def name_of(record: dict) -> str:
    """Name of the method of a run, with its protocol unless it is inductive."""
    return ", ".join(filter(None, (method(record), record.get(PROTOCOL))))


def check_used(groups: Groups, tested: Sequence[str]) -> None:
    """Raise UserError if there are groups of a data set on which no run was tested."""
    for dataset in groups:
        if dataset not in tested:
            raise unknown("data set of --groups", dataset, sorted(set(tested)))


def with_common_groups(runs: pd.DataFrame) -> pd.DataFrame:
    """Give each run the groups of its test images that any run names; UserError if two runs name different ones."""
    by_test: dict[tuple, np.ndarray] = {}
    keys = list(zip(runs["dataset"], runs["rule"], runs["trained_on"]))
    for key, groups in zip(keys, runs["groups"]):
        if groups is not None and not np.array_equal(by_test.setdefault(key, groups), groups):
            raise UserError(f"runs on {key[0]} have different groups of test images; name one kind, or --groups BANK")
    runs["groups"] = pd.Series([by_test.get(key) for key in keys], index=runs.index, dtype=object)
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


def read_outcome(folder: Path, record: dict) -> tuple[TestImages, np.ndarray | Ranking]:
    """Read the test images of a run, and its "outcome" as in `read_runs`."""
    files = read_test_files(folder / PREDICTIONS)
    if is_multilabel(record):
        scores, labels = read_scores(folder)
        names = list(record.get("average_precision") or ())
        return TestImages(folder, names, labels, files), Ranking(scores.numpy(), labels.numpy())
    predicted, labels, classnames = read_predictions(folder)
    return TestImages(folder, classnames, labels, files), (predicted == labels).numpy()


# Training images


def find_splits(runs: Mapping[Path, dict]) -> dict[str, frozenset]:
    """Find the training images of all sampled splits: hash of the split -> training images.

    A test with `--eval-only` has no split file of its own. Its split is the file beside its model, or the file of the
    training run, if that is one of the runs.

    Raises:
        UserError: If a file is damaged.
    """
    folders = list(runs)
    folders += [Path(record["adapter_from"]).parent for record in runs.values() if record.get("adapter_from")]
    splits: dict[str, frozenset] = {}
    for folder in dict.fromkeys(folders):
        split_hash = hash_of_split(folder)
        if split_hash and split_hash not in splits:
            splits[split_hash] = frozenset(str(row[0]) for row in read_training_rows(folder))
    return splits


def hash_of_split(folder: Path) -> str:
    """Hash of the split file in a folder; "" without one. UserError if it is damaged."""
    path = folder / SPLIT
    return hash_json(read_json(path)) if path.exists() else ""


# Kinds of runs


def kind_text(kind: Mapping[str, Any]) -> str:
    """Describe a kind of runs, such as "RN50/openai, models trained on ImageNet (other classes)"."""
    texts = [str(kind["backbone"])]
    if kind["rule"]:
        texts.append(f"models trained on {kind['trained_on'] or 'another data set'} ({kind['rule']})")
    return ", ".join(texts)


def kinds_of(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Separate runs by kind, each with its description."""
    return [(kind_text(dict(zip(KIND, kind))), group) for kind, group in grouped(runs, list(KIND))]

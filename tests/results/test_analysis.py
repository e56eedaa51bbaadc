"""Distances and confusions by hand; files that hold something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainers.hegraph.results.figures import mean_distance, read_text_nodes
from trainers.hegraph.results.paired import confusion_matrix, hardest_pairs
from trainers.hegraph.results.records import PREDICTIONS, TEXT_NODES, write_predictions
from trainers.hegraph.utils.errors import UserError


def write_nodes(folder: Path, before: torch.Tensor, after: torch.Tensor, names: object = ("a", "b", "c")) -> None:
    save_file({"before": before, "after": after}, folder / TEXT_NODES, {"classnames": json.dumps(names)})


def test_the_mean_distance_is_over_pairs_of_unit_norm_nodes(tmp_path):
    before = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    write_nodes(tmp_path, before, torch.ones(3, 2))
    nodes = read_text_nodes(tmp_path)
    # of (1, 0), (0, 1), (-1, 0): sqrt 2, 2, sqrt 2
    assert mean_distance(nodes.before) == pytest.approx((2 + 2 * 2**0.5) / 3)
    assert mean_distance(nodes.after) == pytest.approx(0, abs=1e-3)
    assert nodes.classnames == ["a", "b", "c"]


@pytest.mark.parametrize("names", [["a"], {"a": 1}, None])
def test_nodes_that_do_not_fit_their_classes_are_refused(tmp_path, names):
    write_nodes(tmp_path, torch.ones(3, 2), torch.ones(3, 2), names)
    with pytest.raises(UserError, match=r"text_nodes\.safetensors"):
        read_text_nodes(tmp_path)


def test_nodes_of_different_shapes_are_refused(tmp_path):
    write_nodes(tmp_path, torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(UserError, match=r"before \[3, 2\], after \[3, 4\]"):
        read_text_nodes(tmp_path)


def test_a_run_without_the_file_is_named(tmp_path):
    for read in (read_text_nodes, confusion_matrix):
        with pytest.raises(UserError, match=f"{tmp_path.name} holds no "):
            read(tmp_path)


def test_confusions_are_true_by_predicted_and_a_class_may_be_missing(tmp_path):
    predicted, labels = torch.tensor([0, 1, 1, 0, 0]), torch.tensor([0, 0, 1, 1, 1])
    write_predictions(tmp_path, predicted, labels, ["a", "b", "c"])
    matrix, names = confusion_matrix(tmp_path)
    assert matrix.tolist() == [[1, 1, 0], [2, 1, 0], [0, 0, 0]]
    assert names == ["a", "b", "c"]


@pytest.mark.parametrize(("predicted", "labels"), [([0, 3], [0, 1]), ([0], [0, 1]), ([-1, 0], [0, 1]), ([], [])])
def test_predictions_that_do_not_fit_their_classes_are_refused(tmp_path, predicted, labels):
    write_predictions(tmp_path, torch.tensor(predicted), torch.tensor(labels), ["a", "b", "c"])
    with pytest.raises(UserError, match=r"predictions\.safetensors"):
        confusion_matrix(tmp_path)


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / PREDICTIONS).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is damaged or not predictions"):
        confusion_matrix(tmp_path)


def test_the_hardest_pairs_count_both_directions_and_leave_out_what_is_never_confused():
    matrix = np.array([[9, 1, 0], [3, 9, 0], [6, 0, 9]])
    pairs = hardest_pairs(matrix, ["a", "b", "c"])
    assert pairs == ["a and c: 6 (a as c 0, c as a 6)", "a and b: 4 (a as b 1, b as a 3)"]
    assert hardest_pairs(matrix, ["a", "b", "c"], most=1) == pairs[:1]

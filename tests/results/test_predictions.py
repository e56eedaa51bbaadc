"""Predictions of runs and confusion matrices, checked by hand."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainers.hegraph import UserError
from trainers.hegraph.results.predictions import confusion_matrix, hardest_pairs
from trainers.hegraph.results.records import PREDICTIONS, write_tensors_with_classes


def test_confusion_matrix_and_hardest_pairs(tmp_path):
    predicted, labels = torch.tensor([0, 1, 1, 0, 0]), torch.tensor([0, 0, 1, 1, 1])
    write_tensors_with_classes(tmp_path / PREDICTIONS, ["a", "b", "c"], predicted=predicted, labels=labels)
    matrix, names = confusion_matrix(tmp_path)
    assert (matrix.tolist(), names) == ([[1, 1, 0], [2, 1, 0], [0, 0, 0]], ["a", "b", "c"])
    pairs = ["a and c: 6 (a as c 0, c as a 6)", "a and b: 4 (a as b 1, b as a 3)"]
    assert hardest_pairs(np.array([[9, 1, 0], [3, 9, 0], [6, 0, 9]]), names) == pairs  # b and c were never confused
    assert len(hardest_pairs(np.ones((9, 9), dtype=int), list("abcdefghi"))) == 10


@pytest.mark.parametrize(("predicted", "labels"), [
    ([0, 3], [0, 1]), ([0], [0, 1]), ([-1, 0], [0, 1]), ([], []), ([0.5], [0]),
])  # fmt: skip
def test_predictions_outside_the_classes_are_rejected(tmp_path, predicted, labels):
    tensors = {"predicted": torch.tensor(predicted), "labels": torch.tensor(labels)}
    save_file(tensors, tmp_path / PREDICTIONS, {"classnames": '["a", "b", "c"]'})
    with pytest.raises(UserError, match=r"predictions\.safetensors: .* class numbers"):
        confusion_matrix(tmp_path)

"""Support sets: merging of views, text and labels, with expected values by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from trainers.hegraph import UserError
from trainers.hegraph.models.support_set import SupportSet, labels_like


def support_set(labels: list, views: int = 1, text: float = 1.0) -> SupportSet:
    """Support set with one image of each class, whose view v of image n is `[v + 1, n + 1]`, and constant text."""
    rows = [[[float(view + 1), float(place + 1)] for place in range(len(labels))] for view in range(views)]
    nodes = torch.full((len(labels), 2), text)
    places = torch.arange(len(labels))
    names = tuple(f"class {label}" for label in labels)
    return SupportSet(np.array(labels), names, torch.tensor(rows), places, places + 1, nodes, -nodes)


def test_two_and_three_views_are_repeated_six_times():
    merged = support_set([0, 1], views=2).merge(support_set([0, 1], views=3), torch.tensor([False, False]))
    assert merged.features.shape == (6, 4, 2)
    assert merged.features[:, 0, 0].tolist() == [1, 2, 1, 2, 1, 2]
    assert merged.features[:, 2, 0].tolist() == [1, 2, 3, 1, 2, 3]
    assert merged.features[0, :, 1].tolist() == [1, 2, 1, 2]


def test_merge_replaces_the_text_of_some_classes():
    more = replace(support_set([0, 1, 2], text=5.0), names=("new 0", "new 1", "new 2"))
    merged = support_set([0, 1]).merge(more, torch.tensor([False, True, True]))
    assert merged.positive[:, 0].tolist() == [1, 5, 5]
    assert merged.negative[:, 0].tolist() == [-1, -5, -5]
    assert merged.names == ("class 0", "new 1", "new 2")


@pytest.mark.parametrize(
    ("earlier", "more", "expected"),
    [
        (np.array([0, 5]), np.array([7.0]), np.array([7])),
        (np.array([0.0, 5.0]), np.array([7]), np.array([7.0])),
        (np.array([2**60]), np.array([2**61], np.uint64), np.array([2**61])),
        (np.array([1], np.int32), np.array([2**40]), np.array([2**40])),
        (np.array(["a"]), np.array(["long"]), np.array(["long"])),
        (np.array([True]), np.array([0]), np.array([False])),
    ],
    ids=str,
)
def test_labels_take_the_earlier_type(earlier, more, expected):
    converted = labels_like(more, earlier)
    assert converted.dtype == expected.dtype
    assert converted.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("earlier", "more", "got"),
    [
        (np.array([0, 5]), np.array([5.5]), "5.5"),
        (np.array([0, 5]), np.array([2.0**63]), "9.22"),
        (np.array([0, 5]), np.array([2**63], np.uint64), "9223372036854775808"),
        (np.array([0.0]), np.array([2**53 + 1]), "9007199254740993"),
        (np.array([0]), np.array([np.nan]), "nan"),
        (np.array([0]), np.array(["0"]), "'0'"),
        (np.array(["0"]), np.array([0]), "0"),
        (np.array([False, True]), np.array([2]), "2"),
        (np.array([0]), np.array(["2026-01-01"], "datetime64[D]"), "datetime"),
    ],
    ids=str,
)
def test_labels_that_would_change_are_refused(earlier, more, got):
    with pytest.raises(UserError, match=rf"got .*{got}"):
        labels_like(more, earlier)


def test_refused_merge_keeps_large_labels():
    whole = support_set([0, 5, 2**63 - 1])
    with pytest.raises(UserError, match="the labels so far are such as 0"):
        whole.merge(support_set([2.5]), torch.tensor([True]))
    assert whole.classes.tolist() == [0, 5, 2**63 - 1]
    merged = whole.merge(support_set([9.0]), torch.tensor([True]))
    assert merged.classes.tolist() == [0, 5, 9, 2**63 - 1]

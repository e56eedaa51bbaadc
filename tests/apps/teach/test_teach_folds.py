"""Folds of the images of a teach project, which stay almost the same when an image is added."""

import torch
from teach_files import NAMES, last

from trainers.hegraph.apps.teach.contents import Picture
from trainers.hegraph.apps.teach.folds import folds_of_pictures, stable_folds
from trainers.hegraph.datasets.groups import NOT_HELD_OUT


def test_units_of_a_class_go_to_the_folds_in_turn():
    assert stable_folds([0] * 6 + [1] * 2, ["a", "d", "b", "e", "c", "f", "x", "y"]) == [0, 3, 1, 0, 2, 1, 0, 1]


def test_unit_goes_to_the_fold_with_the_fewest_images():
    labels = [0, 0, 0, 0, 0, 0]
    assert stable_folds(labels, ["a", "a", "a", "b", "c", "d"]) == [0, 0, 0, 1, 2, 3]
    assert stable_folds([*labels, 0], ["a", "a", "a", "b", "c", "d", "e"]) == [0, 0, 0, 1, 2, 3, 1]


def test_no_class_loses_all_its_images():
    assert stable_folds([0, 0, 0, 1, 1], ["a", "a", "b", "c", "c"]) == [0, 0, 1, NOT_HELD_OUT, NOT_HELD_OUT]
    assert stable_folds([0, 1, 2], ["a", "b", "c"]) == [NOT_HELD_OUT] * 3


def test_group_of_two_classes_is_not_held_out_with_the_rest():
    """The group "f" goes to fold 0 with the fewest images of class 0, and so would all images of class 1."""
    folds = stable_folds([0] * 16 + [1, 0, 1], [*"a", *"bbbbb", *"ccccc", *"ddddd", *"e", *"ff"])
    assert folds == [0, *[1] * 5, *[2] * 5, *[3] * 5, 0, NOT_HELD_OUT, NOT_HELD_OUT]


def test_added_image_moves_images_of_its_class_only():
    labels = [0] * 4 + [1] * 4 + [2] * 3
    units = ["b", "d", "f", "h", "a", "c", "g", "i", "e", "j", "k"]
    before = dict(zip(units, stable_folds(labels, units)))
    after = dict(zip(["new", *units], stable_folds([0, *labels], ["aa", *units])))
    assert [after[unit] for unit in units[4:]] == [before[unit] for unit in units[4:]]
    assert [after[unit] for unit in "bdfh"] == [1, 2, 3, 0]


def test_folds_do_not_depend_on_the_order_of_images():
    labels = [0, 0, 0, 1, 1, 1, 1]
    units = ["c", "a", "b", "f", "a", "d", "e"]
    folds = stable_folds(labels, units)
    assert stable_folds(labels[::-1], units[::-1]) == folds[::-1]


def test_images_without_groups_are_in_folds_up_to_four_a_class():
    pictures = [Picture(f"{number}.png", f"{number:064x}") for number in range(10)]
    few = torch.arange(8) % 2
    assert folds_of_pictures(pictures[:8], few, None).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert folds_of_pictures(pictures[:8], few, torch.arange(8)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert folds_of_pictures(pictures, torch.arange(10) % 2, None).tolist() == [NOT_HELD_OUT] * 10


def test_groups_are_in_folds_and_unmatched_images_alone():
    pictures = [Picture(f"{number}.png", f"{number:064x}") for number in range(5)]
    groups = torch.tensor([3, -1, 3, -2, 3])
    assert folds_of_pictures(pictures, torch.zeros(5, dtype=torch.long), groups).tolist() == [2, 0, 2, 1, 2]


def test_images_of_other_classes_keep_their_folds_in_a_session(session):
    before = last(session)
    session.project.move([before.contents.unlabelled[0]], "six")
    after = last(session)
    folds = []
    for view in (before, after):
        support_set = view.model.support_set
        of_pictures = folds_of_pictures(view.trained_on, support_set.labels, support_set.groups).tolist()
        folds.append({p.path: fold for p, fold in zip(view.trained_on, of_pictures) if "/six/" not in p.path})
    assert folds[0] == folds[1] and len(NAMES) == 4 and len(folds[0]) == 10

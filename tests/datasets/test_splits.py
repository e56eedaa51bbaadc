"""CoOp's few-shot protocol against plain `random`, and split files."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from trainers.hegraph.datasets import Item, Selection, select_few_shot, subsample_labels
from trainers.hegraph.datasets.splits import read_drawn, read_split_file, write_drawn
from trainers.hegraph.utils.errors import UserError


def select(train: list[int], val: list[int], shots: int, seed: int) -> Selection:
    """What a run with a seed selects from a split that is there."""
    return select_few_shot(train, val, shots, random.Random(seed))


def test_classes_are_drawn_in_order_of_first_appearance_all_of_train_before_val():
    train, val = [2, 0, 2, 1, 0, 2, 1, 1], [1, 1, 0, 2, 0, 2]
    rng = random.Random(5)  # what Dassl's set_random_seed(5) makes of the module's own generator
    expected_train = rng.sample([0, 2, 5], 2) + rng.sample([1, 4], 2) + rng.sample([3, 6, 7], 2)
    expected_val = rng.sample([0, 1], 2) + rng.sample([2, 4], 2) + rng.sample([3, 5], 2)
    state = random.getstate()
    assert select(train, val, shots=2, seed=5) == Selection(expected_train, expected_val)
    assert random.getstate() == state  # the global generator is not touched


def test_a_class_with_fewer_items_is_taken_whole_in_split_order_without_a_draw_and_warned_of(caplog):
    rng = random.Random(3)
    expected = [0, 4, *rng.sample([1, 2, 3, 5], 3), *rng.sample([6, 7, 8], 3)]  # 3 of 3 are drawn, as in CoOp
    assert select([1, 0, 0, 0, 1, 0, 2, 2, 2], [], shots=3, seed=3).train == expected
    select([0] * 5 + [1] * 2 + [2], [0, 1, 2], shots=4, seed=1)
    assert caplog.messages == [
        "1 of 3 classes have fewer than 3 training images (fewest: 2); these are taken whole",
        "2 of 3 classes have fewer than 4 training images (fewest: 1); these are taken whole",
    ]


@pytest.mark.parametrize(("shots", "val_shots"), [(1, 1), (4, 4), (8, 4)])
def test_validation_gets_as_many_images_per_class_as_shots_but_at_most_four(shots, val_shots):
    selection = select([0, 1] * 20, [0, 1] * 20, shots, seed=1)
    assert Counter(i % 2 for i in {*selection.train}) == {0: shots, 1: shots}
    assert Counter(i % 2 for i in {*selection.val}) == {0: val_shots, 1: val_shots}


def test_minus_one_shot_selects_all_in_split_order_without_a_draw(caplog):
    rng = random.Random(1)
    assert select_few_shot([1, 0, 1], [0, 1], -1, rng) == Selection([0, 1, 2], [0, 1])
    assert rng.getstate() == random.Random(1).getstate()
    assert caplog.messages == []
    with pytest.raises(UserError, match="-1 for all, got 0$"):
        select([0, 1], [], 0, seed=1)


def test_base_is_the_first_half_of_the_labels_with_the_middle_one_and_new_the_rest():
    assert [subsample_labels([9, 2, 0, 1, 5, 2], half) for half in ("base", "new")] == [[0, 1, 2], [5, 9]]
    with pytest.raises(UserError, match="SUBSAMPLE_CLASSES new is empty: there are 1 classes"):
        subsample_labels([3, 3], "new")
    with pytest.raises(UserError, match="'basis'; did you mean 'base'"):
        subsample_labels([3, 4], "basis")


# --- split files


@pytest.mark.parametrize("row", ["0", '["a", 0]', '["a", true, "ant"]', '["a", -1, "ant"]', ""])
def test_a_file_of_another_structure_is_an_error_that_names_it_and_says_what_it_must_hold(tmp_path, row):
    path = tmp_path / "split.json"
    path.write_text(f'{{"train": [{row}], "val": [], "test": []}}' if row else '{"train": [], "val": []}')
    with pytest.raises(UserError, match=r"split\.json is not a split file: it must hold train, val and test"):
        read_split_file(path, "")


@pytest.mark.parametrize(("split", "path", "label"), [("test", "./a/1.jpg", 0), ("train", "b/../a/1.jpg", 1)])
def test_a_split_file_with_an_image_in_two_splits_or_with_two_labels_is_refused(tmp_path, split, path, label):
    rows = {"train": [["a/1.jpg", 0, "ant"], ["b/1.jpg", 1, "bee"]], "val": [], "test": []}
    rows[split].append([path, label, "ant"])
    (tmp_path / "split.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=f"{path} in train with the label 0 and in {split} with the label {label}"):
        read_split_file(tmp_path / "split.json", "")
    rows[split].pop()
    (tmp_path / "split.json").write_text(json.dumps(rows))
    read = {"train": [("a/1.jpg", 0, "ant"), ("b/1.jpg", 1, "bee")], "val": [], "test": []}
    assert read_split_file(tmp_path / "split.json", "") == read


def test_how_a_split_was_drawn_is_known_until_the_file_changes(tmp_path):
    path, rng = tmp_path / "split.json", random.Random(5)
    rng.random()
    rng.gauss(0, 1)  # keeps a second number for the next time
    assert read_drawn(path) is None
    write_drawn(path, "", {"train": [Item("a.jpg", 0, "ant")], "val": [], "test": []}, 5, rng.getstate())
    drawn = read_drawn(path)
    assert (drawn.seed, drawn.state) == (5, rng.getstate())
    kept = tmp_path / "split.json.drawn"
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps(content | {"state": [3, [1, 2], None]}))
    with pytest.raises(UserError, match=r"split\.json\.drawn is damaged .*; delete it, and the split file too"):
        read_drawn(path)
    kept.write_text(json.dumps(content))
    path.write_text(path.read_text() + " ")
    assert read_drawn(path) is None

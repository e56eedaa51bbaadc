"""Groups of images: where they come from, and what keeps them whole."""

import json
import random
from pathlib import Path

import pytest
from dataset_files import counts, load, make, picture, refused, write

from trainers.hegraph import UserError, load_dataset, load_few_shot
from trainers.hegraph.__main__ import main
from trainers.hegraph.commands.datasets import check_own_images
from trainers.hegraph.datasets.base import Dataset
from trainers.hegraph.datasets.folder import SPLIT_SEED
from trainers.hegraph.datasets.groups import (
    NOT_HELD_OUT,
    SharedGroups,
    assign_parts,
    balanced_folds,
    groups_in_paths,
    sample_groups,
)
from trainers.hegraph.datasets.splits import sample_few_shot

PATTERN = r"_(v\d+)_"


def group_names(dataset: Dataset, split: str) -> set[str]:
    return set(dataset.groups_of(dataset.splits[split]) or ())


def videos(root: Path, classes: int = 2, groups: int = 4, frames: int = 2, folders: bool = True) -> Path:
    """Write frames of videos as <class>/<video>/<frame>.png, or as <class>/a_<video>_<frame>.png."""
    shades = iter(range(250))
    for label in range(classes):
        for group in range(groups):
            for frame in range(frames):
                video = f"v{label}{group}"
                name = f"{video}/{frame}.png" if folders else f"a_{video}_{frame}.png"
                write(root / f"class{label}" / name, picture(next(shades), label))
    return root


# Sources


def test_column_group_names_groups(tmp_path):
    make(tmp_path, *(f"{number}.jpg" for number in range(4)))
    write(tmp_path / "labels.csv", "path,label,group\n0.jpg,a,x\n1.jpg,b, x\n2.jpg,a,\n3.jpg,b,y\n")
    dataset = load(tmp_path)
    assert dataset.groups == {"0.jpg": "x", "1.jpg": "x", "3.jpg": "y"}
    assert dataset.groups_of(dataset.train) == ["x", "x", "2.jpg", "y"]


def test_metadata_in_split_folders_has_groups(tmp_path):
    make(tmp_path, "train/0.jpg", "test/1.jpg")
    for split, number in (("train", 0), ("test", 1)):
        write(tmp_path / split / "metadata.csv", f"file_name,label,group\n{number}.jpg,a,x{number}\n")
    assert load(tmp_path).groups == {"train/0.jpg": "x0", "test/1.jpg": "x1"}


def test_folders_in_class_folders_are_groups(tmp_path):
    files = "train/a/g1/1.jpg train/a/g1/2.jpg train/b/g1/3.jpg test/a/g2/4.jpg"
    dataset = load(make(tmp_path, *files.split()))
    assert counts(dataset) == [3, 0, 1] and list(dataset.classnames) == ["a", "b"]
    assert dataset.groups == {path: path.split("/")[2] for path in files.split()}


def test_files_beside_groups_are_skipped(tmp_path, caplog):
    dataset = load(make(tmp_path, "train/a/g1/1.jpg", "train/a/notes.txt", "train/a/g1/x.txt", "train/b"))
    assert counts(dataset) == [1, 0, 0]
    [message] = caplog.messages
    assert "skipped 3 files and folders that are not train/<class>/<group>/IMAGE, such as " in message


def test_class_beside_others_with_groups_is_not_dropped(tmp_path):
    make(tmp_path, "train/a/1.jpg", "train/a/old/3.jpg", "train/b/g1/2.jpg")
    refused(
        tmp_path, "the images of train/b are in folders below it, and those of train/a are not; move them up, or put"
    )


def test_pattern_finds_groups_in_paths(tmp_path):
    dataset = load_dataset("ImageFolder", str(videos(tmp_path, folders=False)), group_pattern=PATTERN)
    assert set(dataset.groups.values()) == {f"v{label}{group}" for label in range(2) for group in range(4)}
    assert dataset.groups["class1/a_v13_0.png"] == "v13"


def test_pattern_groups_named_data_sets():
    dataset = load_dataset("Digits", group_pattern=r"/0(\d)")
    assert dataset.groups["digits/0123"] == "1" and "digits/1123" not in dataset.groups


def test_paths_without_match_are_own_groups(caplog):
    assert groups_in_paths(["a_v1_.jpg", "b.jpg"], PATTERN) == {"a_v1_.jpg": "v1"}
    assert "matches 1 of 2 paths; each other image is a group of its own, such as b.jpg" in caplog.messages[0]


def test_empty_and_missing_groups_are_own_groups():
    assert groups_in_paths(["a_v1.jpg", "b.jpg", "a_ .jpg"], r"a?(?:_(v\d| ))?") == {"a_v1.jpg": "v1"}


@pytest.mark.parametrize(("pattern", "words"), [
    ("(", "expected a regular expression with one group in parentheses, got '\\('"),
    ("v1", "expected a regular expression with one group in parentheses, got 'v1'"),
    ("(x)(y)", "expected a regular expression with one group"), ("_(x)_", "matches none of 16 paths, such as class0/"),
])  # fmt: skip
def test_useless_patterns_are_refused(tmp_path, pattern, words):
    with pytest.raises(UserError, match=words):
        load_dataset("ImageFolder", str(videos(tmp_path, folders=False)), group_pattern=pattern)


def test_pattern_beside_groups_is_refused(tmp_path):
    with pytest.raises(UserError, match="has the group 'v00' already; leave out DATASET.GROUP_PATTERN"):
        load_dataset("ImageFolder", str(videos(tmp_path)), group_pattern="(v0)")


def test_config_refuses_useless_pattern(cli_error):
    line = cli_error("--dataset-config-file", "digits", "DATASET.GROUP_PATTERN", "v1")
    assert "DATASET.GROUP_PATTERN must be a regular expression with one group in parentheses, got 'v1'" in line


# Random split


def test_random_split_takes_whole_groups(tmp_path, caplog):
    dataset = load(videos(tmp_path, groups=10))
    assert counts(dataset) == [20, 8, 12]  # 5, 2 and 3 of the ten videos of each class, two frames each
    names = [group_names(dataset, split) for split in dataset.splits]
    assert sum(map(len, names)) == len(set.union(*names)) == 20
    assert "the groups of each class were split at random into 50 % train, 20 % val, 30 % test" in caplog.text


def test_too_few_groups_are_not_split(tmp_path):
    refused(videos(tmp_path, groups=2), "the groups of class0 are too few to split: none is left for val; add images")


def test_groups_of_one_image_are_split_as_images(tmp_path):
    grouped = load(videos(tmp_path / "a", groups=10, frames=1))
    plain = load(videos(tmp_path / "b", groups=10, frames=1, folders=False))
    numbers = [[item.path.split("v")[1][:2] for item in dataset.test] for dataset in (grouped, plain)]
    assert numbers[0] == numbers[1]


def test_unequal_groups_leave_no_split_empty():
    groups = ["big"] * 90 + ["middle"] * 6 + ["small"] * 4
    parts = assign_parts([0] * 100, groups, (0.5, 0.2, 0.3), random.Random(SPLIT_SEED))
    assert (parts[0], {parts[90], parts[96]}) == (0, {1, 2})


# Few-shot sample


def test_sample_takes_whole_groups_first():
    groups = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    sampled = [groups[row] for row in sample_groups(range(9), 5, groups, random.Random(1))]
    assert sorted(sampled.count(group) for group in set(sampled)) == [2, 3]


def test_val_leaves_out_groups_of_train(caplog):
    sample = sample_few_shot([0, 0, 1, 1], [0, 0, 1], 2, random.Random(1), ["a", "a", "b", "b"], ["a", "c", "d"])
    assert sorted(sample.train) == [0, 1, 2, 3] and sorted(sample.val) == [1, 2]
    assert caplog.messages == ["left out 1 of 3 val images, whose groups are in train"]


def test_all_images_leave_out_val_of_their_groups():
    assert sample_few_shot([0, 1], [0, 1], -1, random.Random(1), ["a", "b"], ["b", "c"]) == ([0, 1], [1])


def test_groups_of_one_image_change_no_sample():
    labels = [0, 1] * 20
    plain = sample_few_shot(labels, labels, 3, random.Random(7))
    grouped = sample_few_shot(labels, labels, 3, random.Random(7), range(40), range(40, 80))
    assert grouped == plain


def test_few_shot_task_keeps_groups_whole(tmp_path):
    task = load_few_shot("ImageFolder", str(videos(tmp_path, groups=10)), shots=4, seed=1)
    assert len(task.train) == 8 and len(group_names(task, "train")) == 4  # two whole videos of each class


# Folds


def test_folds_take_a_group_of_every_class():
    labels = [label for label in range(3) for _ in range(16)]
    groups = [f"{label}{frame // 4}" for label in range(3) for frame in range(16)]
    folds = balanced_folds(labels, groups, seed=1)
    for fold in range(4):
        held_out = [(label, group) for label, group, of in zip(labels, groups, folds) if of == fold]
        assert [label for label, _ in held_out] == [0] * 4 + [1] * 4 + [2] * 4 and len({g for _, g in held_out}) == 3


def test_only_group_of_a_class_is_never_held_out():
    assert balanced_folds([0, 0, 1, 1], ["a", "a", "b", "c"], seed=1)[:2] == [NOT_HELD_OUT] * 2
    assert balanced_folds([0, 0, 1, 1], ["a", "a", "b", "b"], seed=1) == [NOT_HELD_OUT] * 4


def test_shared_group_that_would_empty_a_class_stays():
    folds = balanced_folds([0, 1, 1, 1], ["a", "a", "b", "c"], seed=1)
    assert folds[:2] == [NOT_HELD_OUT] * 2 and sorted(folds[2:]) == [0, 1]


# Splits that divide groups


def test_shared_groups_are_counted():
    shared = SharedGroups.of("aab", "bc", "aaad")
    assert shared == SharedGroups(groups=4, val=2, test=4, val_in_train=1, test_in_train=3)
    expected = "the groups of 3 of 4 test images (75.0 %) and 1 of 2 val images (50.0 %) occur in train"
    assert shared.warning.startswith(expected)
    assert SharedGroups.of("a", "b", "c").warning == ""


def own_split(root: Path, test_group: str) -> Path:
    for number in range(4):
        write(root / f"{number}.png", picture(40 * number))
    rows = ["0.png,a,train,g0", "1.png,b,train,g1", f"2.png,a,test,{test_group}", "3.png,b,test,g3"]
    write(root / "labels.csv", "\n".join(["path,label,split,group", *rows]))
    return root


def test_check_reports_split_that_divides_groups(tmp_path):
    ready, lines = check_own_images(str(own_split(tmp_path, "g0")))
    assert ready and "groups: 3" in lines
    assert any(line.startswith("warning: the groups of 1 of 2 test images (50.0 %) occur in train") for line in lines)


def test_check_is_silent_about_whole_groups(tmp_path):
    _, lines = check_own_images(str(own_split(tmp_path, "g2")))
    assert "groups: 4" in lines and not any("warning" in line for line in lines)


def test_check_of_ucf101_reports_its_val(tmp_path, capsys):
    folder = tmp_path / "ucf101"
    images = [f"Kick/v_Kick_g0{group}_c0{clip}.jpg" for group in (1, 2, 8) for clip in (1, 2)]
    make(folder / "UCF-101-midframes", *images)
    rows = [[path, 0, "Kick"] for path in images]
    split = {"train": rows[0::2][:2], "val": rows[1::2][:2], "test": rows[4:]}
    write(folder / "split_zhou_UCF101.json", json.dumps(split))
    assert main(["datasets", "check", "ucf101", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "groups: 3\n" in printed and "the groups of 2 of 2 val images (100.0 %) occur in train" in printed

"""Images with several labels: tables, Pascal VOC, COCO, few-shot samples and `datasets check`."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dataset_files import load, make, picture, refused, write

from trainers.hegraph.commands.datasets import check_own_images
from trainers.hegraph.datasets.digits import SPLIT_ROWS, open_digit, open_scene
from trainers.hegraph.datasets.loading import load_dataset
from trainers.hegraph.datasets.splits import sample_few_shot


def label_sets(dataset) -> dict[str, list[tuple[str, str]]]:
    return {split: [(item.path, item.classname) for item in items] for split, items in dataset.splits.items()}


# --- tables


def test_table_separates_unlabelled_images_and_images_without_labels(tmp_path, caplog):
    make(tmp_path, *(f"{name}.png" for name in "abcde"))
    rows = ["a.png,dog|cat,train", "b.png,|,train", "c.png,,train", "d.png,cat|cat| dog ,test", "e.png,bee,train"]
    write(tmp_path / "labels.csv", "\n".join(["path,labels,split", *rows]))
    dataset = load(tmp_path)
    assert list(dataset.classnames) == ["bee", "cat", "dog"]
    assert [item.label for item in dataset.train] == [(1, 2), (), (0,)]
    assert label_sets(dataset)["test"] == [("d.png", "cat|dog")]
    assert ["left out 1 of 5 images, which are unlabelled, such as c.png" in m for m in caplog.messages] == [True]


@pytest.mark.parametrize(("text", "message"), [
    ("path,labels,split\na.png,dog,train\nb.png,cat,test\n", "1 classes of val or test have no training image: cat"),
    ("path,labels\na.png,\n", "a.png has no label"), ("path,labels\na.png,|\n", "has no training image"),
    ("path,label,labels\na.png,dog,dog|cat\n", "expected the column label or labels, got both"),
])  # fmt: skip
def test_invalid_tables_are_refused(tmp_path, text, message):
    write(tmp_path / "labels.csv", text)
    refused(tmp_path, message)


# --- Pascal VOC


def voc(root: Path, **lists: dict[str, list[str] | None]) -> Path:
    """Write lists of images, and the objects of each; None writes no annotation."""
    for split, images in lists.items():
        write(root / f"ImageSets/Main/{split}.txt", "".join(f"{name}  1\n" for name in images))
        for name, objects in images.items():
            make(root, f"JPEGImages/{name}.jpg")
            if objects is not None:
                each = "".join(f"<object><name>{one}</name><difficult>1</difficult></object>" for one in objects)
                write(root / f"Annotations/{name}.xml", f"<annotation><filename>x</filename>{each}</annotation>")
    return root


def test_voc_images_have_the_classes_of_all_objects(tmp_path):
    train = {"a b": ["dog", "cat", "dog"], "2": []}
    dataset = load(voc(tmp_path, train=train, val={"3": ["cat"]}, test={"4": ["dog"]}))
    images = [("JPEGImages/a b.jpg", "cat|dog"), ("JPEGImages/2.jpg", ""), ("JPEGImages/3.jpg", "cat")]
    assert label_sets(dataset) == {"train": images, "val": [], "test": [("JPEGImages/4.jpg", "dog")]}
    write(tmp_path / "ImageSets/Main/train.txt", "a b\n2\n")  # without flags
    dataset = load(tmp_path)
    assert label_sets(dataset) == {"train": images, "val": [], "test": [("JPEGImages/4.jpg", "dog")]}
    dataset.check_files()


def test_voc_images_of_any_format_are_found_by_name(tmp_path):
    voc(tmp_path, train={"a b": ["dog"], "c": ["cat"], "d": ["cat"]})
    for name, file in ("a b", "a b.png"), ("c", "c.JPEG"):
        (tmp_path / f"JPEGImages/{name}.jpg").rename(tmp_path / "JPEGImages" / file)
    make(tmp_path, "JPEGImages/d.png", "JPEGImages/a b.txt")
    paths = ["JPEGImages/a b.png", "JPEGImages/c.JPEG", "JPEGImages/d.jpg"]
    assert [item.path for item in load(tmp_path).train] == paths


def test_voc_without_annotated_test_images_is_tested_on_val(tmp_path, caplog):
    dataset = load(voc(tmp_path, trainval={"1": ["dog"]}, val={"3": ["dog"]}, test={"4": None}))
    assert {split: len(items) for split, items in dataset.splits.items()} == {"train": 1, "val": 0, "test": 1}
    assert "left out 1 of 3 images, which are unlabelled" in caplog.text


@pytest.mark.parametrize(("text", "message"), [
    ("<annotation>", "1.xml is damaged or not an annotation of Pascal VOC"),
    ("<annotation><object/></annotation>", "an object has no name"),
    (
        '<!DOCTYPE a [<!ENTITY x0 "xxxxxxxxxx">'
        + "".join(f'<!ENTITY x{n + 1} "{f"&x{n};" * 10}">' for n in range(9))
        + "]><annotation><object><name>&x9;</name></object></annotation>",
        "1.xml is damaged or not an annotation of Pascal VOC",
    ),
], ids=["cut", "nameless", "entities"])  # fmt: skip
def test_invalid_voc_annotation_is_refused(tmp_path, text, message):
    write(voc(tmp_path, train={"1": ["dog"]}) / "Annotations/1.xml", text)
    refused(tmp_path, message)


# --- COCO


def coco(root: Path, split: str, files: dict[str, list[int]], folder: str = "", **changes: object) -> Path:
    """Write the file of a split, with the categories dog (7), ant (3) and cat (9)."""
    make(root, *(f"{folder or split}/{name}" for name in files))
    content = {
        "info": {"year": 2014},
        "images": [{"id": n, "file_name": name, "width": 8} for n, name in enumerate(files)],
        "annotations": [
            {"image_id": n, "category_id": category, "iscrowd": 1}
            for n, categories in enumerate(files.values())
            for category in categories
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "ant"}, {"id": 9, "name": "cat"}],
    }
    write(root / f"annotations/instances_{split}.json", json.dumps(content | changes))
    return root


@pytest.mark.parametrize("folder", ["", "images/val2014", "images", "."])
def test_coco_has_its_categories_in_order(tmp_path, folder):
    coco(tmp_path, "train2014", {"1.jpg": [9, 7, 9], "2.jpg": []})
    dataset = load(coco(tmp_path, "val2014", {"3.jpg": [3]}, folder))
    assert list(dataset.classnames) == ["dog", "ant", "cat"]  # "ant" has no training image
    assert [item.label for item in dataset.train] == [(0, 2), ()]
    assert [item.label for item in dataset.test] == [(1,)] and dataset.val == []
    dataset.check_files()
    assert len(load(tmp_path / "annotations/instances_train2014.json").train) == 2


def test_blank_coco_category_without_objects_is_no_class(tmp_path):
    categories = [{"id": 7, "name": "dog"}, {"id": 8, "name": " "}]
    assert load(coco(tmp_path, "train2014", {"1.jpg": [7]}, categories=categories)).classnames == ["dog"]


def test_coco_files_with_unclear_split_are_refused(tmp_path):
    coco(tmp_path, "minival2014", {"1.jpg": [7]})
    assert len(load(tmp_path).train) == 1
    refused(coco(tmp_path, "train2014", {"2.jpg": [7]}), "instances_minival2014.json has no split, but others have one")


@pytest.mark.parametrize(("changes", "message"), [
    ({"annotations": [{"image_id": 0, "category_id": 8}]}, "category 8, but categories have no id 8"),
    ({"annotations": [{"image_id": 4, "category_id": 7}]}, "image 4 and category 7, but images have no id 4"),
    ({"categories": [{"id": 7}]}, "is damaged or not COCO's instances"),
    ({"images": [], "annotations": []}, "lists no image"),
    ({"images": [{"id": 0, "file_name": "1.jpg"}] * 2}, "two images, or two categories, have the same id"),
    ({"categories": [{"id": 7, "name": "dog"}, {"id": 7, "name": "cat"}]}, "two images, or two categories, have the"),
    ({"images": [{"id": n, "file_name": "1.jpg"} for n in (0, 1)]}, "1.jpg is listed more than once"),
])  # fmt: skip
def test_invalid_coco_annotations_are_refused(tmp_path, changes, message):
    refused(coco(tmp_path, "train2014", {"1.jpg": [7]}, **changes), message)


# --- few-shot samples


@pytest.mark.parametrize("shots", [1, 2, 4, 16])
def test_every_label_has_its_shots(shots):
    rng = random.Random(0)
    sets = [tuple(sorted(rng.sample(range(6), rng.randint(0, 3)))) for _ in range(60)]
    sets += [(6,), (6, 7), (7,)]
    sample = sample_few_shot(sets, [], shots, random.Random(1))
    assert sample == sample_few_shot(sets, [], shots, random.Random(1)) and len(set(sample.train)) == len(sample.train)
    sampled, available = (Counter(label for row in rows for label in sets[row]) for rows in (sample.train, range(63)))
    assert all(sampled[label] >= min(shots, available[label]) for label in available)
    assert all(sets[row] for row in sample.train)
    assert len(sample.train) <= sum(min(shots, available[label]) for label in available)


def test_minus_one_shots_include_images_without_labels():
    assert sample_few_shot([(0,), (), (1,)], [], -1, random.Random(1)).train == [0, 1, 2]


# --- the embedded example


def test_scenes_show_disjoint_digits_of_a_split():
    dataset, digits = load_dataset("digit_scenes"), load_dataset("digits")
    names = {item.path[-4:]: item.classname for items in digits.splits.values() for item in items}
    for split, items in dataset.splits.items():
        scans = [item.path.removeprefix("scenes/").split("-") for item in items]
        rows = [int(row) for scene in scans for row in scene]
        assert len(set(rows)) == len(rows) >= len(SPLIT_ROWS[split]) - 1 and {*rows} <= {*SPLIT_ROWS[split]}
        assert {len(scene) for scene in scans} == {2, 3}
        for item, scene in zip(items, scans):
            assert {*item.classname.split("|")} == {names[row] for row in scene}
            assert [dataset.classnames[label] for label in item.label] == item.classname.split("|")
    assert load_dataset("digit_scenes").splits == dataset.splits


def test_scene_is_a_row_of_scans():
    scene, scans = np.asarray(open_scene("scenes/0001-0002-0003")), [np.asarray(open_digit(f"{n}")) for n in (1, 2, 3)]
    assert scene.shape == (24, 24, 3) and not scene[:8].any() and not scene[16:].any()
    assert np.array_equal(scene[8:16], np.concatenate(scans, axis=1))


# --- datasets check


def test_check_counts_labels_and_pairs(tmp_path):
    for number, name in enumerate("abcd"):
        write(tmp_path / f"{name}.png", picture(number))
    rows = ["a.png,dog|cat,train", "b.png,|,train", "c.png,dog|cat|bee,train", "d.png,cat,test"]
    write(tmp_path / "labels.csv", "\n".join(["path,labels,split", *rows]))
    ready, lines = check_own_images(str(tmp_path))
    assert ready, lines
    assert lines[0] == "3 train, 0 val and 1 test images of 3 classes"
    assert "train images per class: 1 to 2" in lines
    assert "labels per image: 0 to 3, mean 1.50; 1 images without any label" in lines
    assert "most frequent labels: cat (3), dog (2), bee (1); rarest: bee (1), dog (2), cat (3)" in lines
    pairs = "cat and dog (2), bee and cat (1), bee and dog (1)"
    assert f"images with two labels, the most frequent of 3 pairs: {pairs}" in lines
    assert lines[-1].endswith(f"hegraph train {tmp_path}")

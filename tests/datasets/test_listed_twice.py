"""An image has one label and is in one split, whichever file lists it."""

from __future__ import annotations

import json
import logging

import pytest

from trainers.hegraph.datasets.own import load_own_images
from trainers.hegraph.datasets.split_files import read_split_file
from trainers.hegraph.utils.errors import UserError

ROWS = {
    "train": [["a/1.jpg", 0, "ant"], ["b/1.jpg", 1, "bee"]],
    "val": [["a/2.jpg", 0, "ant"]],
    "test": [["a/3.jpg", 0, "ant"], ["b/3.jpg", 1, "bee"]],
}


def split_file(tmp_path, **changes):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(ROWS | changes))
    return path


@pytest.mark.parametrize("spelling", ["a/1.jpg", "./a/1.jpg", "a/../a/1.jpg", "a//1.jpg"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_file_with_an_image_in_two_splits_is_refused(tmp_path, split, spelling):
    path = split_file(tmp_path, **{split: [[spelling, 0, "ant"], ["b/1.jpg", 1, "bee"]]})
    with pytest.raises(UserError) as caught:
        read_split_file(path)
    assert f"{path} lists {spelling} in train and in {split} (and 1 more)" in str(caught.value)


def test_a_split_file_with_two_labels_of_one_image_is_refused(tmp_path):
    path = split_file(tmp_path, train=[["a/1.jpg", 0, "ant"], ["a/1.jpg", 1, "bee"]])
    with pytest.raises(UserError, match="with the labels 0 and 1; it has one"):
        read_split_file(path)


@pytest.mark.parametrize("row", [[1, 0, "ant"], ["a.jpg", 0.5, "ant"], ["a.jpg", -1, "ant"], ["a.jpg", True, "ant"]])
def test_a_row_of_other_types_is_refused(tmp_path, row):
    with pytest.raises(UserError, match=r"split\.json is not a split file: .*val\.0"):
        read_split_file(split_file(tmp_path, val=[row]))


def test_a_table_with_a_column_twice_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,Label\na.jpg,ant,bee\n")
    with pytest.raises(UserError, match="has the column 'label' twice"):
        load_own_images(str(tmp_path / "t.csv"))


def test_an_image_with_a_relative_and_an_absolute_path_is_listed_twice(tmp_path):
    (tmp_path / "t.csv").write_text(f"path,label\na.jpg,ant\n{tmp_path}/a.jpg,bee\n")
    with pytest.raises(UserError, match="is listed more than once"):
        load_own_images(str(tmp_path / "t.csv"))


def test_an_empty_class_folder_is_said(tmp_path, caplog):
    (tmp_path / "train" / "ant").mkdir(parents=True)
    (tmp_path / "train" / "ant" / "1.jpg").touch()
    (tmp_path / "train" / "bee").mkdir()
    with caplog.at_level(logging.WARNING):
        assert load_own_images(str(tmp_path)).classnames == ["ant"]
    assert "1 class folders hold no image, such as train/bee" in caplog.text

"""Copies of images in folders of classes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainers.hegraph.predict.files import ClassFolders, folder_name
from trainers.hegraph.utils.errors import UserError


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_overwritten_and_nothing_is_copied_twice_and_a_copy_has_the_time_of_the_image(tmp_path):
    images = [tmp_path / str(number) / "x y.png" for number in range(3)]
    for number, image in enumerate(images):
        image.parent.mkdir()
        image.write_bytes(bytes([number]))
        os.utime(image, (1000, 1000))
    (tmp_path / "sorted" / "ant").mkdir(parents=True)
    (tmp_path / "sorted" / "ant" / "x y.png").write_bytes(b"mine")
    (tmp_path / "sorted" / "ant" / "x y-2.png").write_bytes(b"mine, too")
    expected = {"x y.png": b"mine", "x y-1.png": b"\0", "x y-2.png": b"mine, too", "x y-3.png": b"\1"}
    for _ in range(2):
        folders = ClassFolders(tmp_path / "sorted")
        assert [folders.copy(str(image), "ant") for image in (*images, images[2])] == [""] * 4
        assert files_below(tmp_path / "sorted" / "ant") == expected | {"x y-4.png": b"\2"}
    assert (tmp_path / "sorted" / "ant" / "x y-1.png").stat().st_mtime == 1000


def test_a_class_name_becomes_a_name_that_every_file_system_takes(tmp_path):
    names = {"größe": "größe", "and/or": "and%2For", "..": "%2E%2E", ".hidden": "%2Ehidden", "ends.": "ends%2E"}
    names |= {"ends ": "ends%20", " starts": "%20starts", "100%": "100%25", "a\nb\0c": "a%0Ab%00c"}
    names |= {'a:b*c?"<>|\\': "a%3Ab%2Ac%3F%22%3C%3E%7C%5C"}
    assert {name: folder_name(name) for name in names} == names
    (tmp_path / "x.png").touch()
    folders = ClassFolders(tmp_path / "sorted")
    assert [folders.copy(str(tmp_path / "x.png"), name) for name in names] == [""] * len(names)
    assert set(files_below(tmp_path / "sorted")) == {f"{expected}/x.png" for expected in names.values()}


def test_an_image_that_has_gone_is_no_end_and_what_cannot_be_written_is_one_line_and_leaves_no_half(
    tmp_path, disk_full_after
):
    folders = ClassFolders(tmp_path / "sorted")
    assert folders.copy(str(tmp_path / "x.png"), "ant") == "cannot be copied: No such file or directory"
    (tmp_path / "x.png").write_bytes(bytes(1000))
    with pytest.raises(UserError, match=r"cannot write .*ant/x.png: File too large"), disk_full_after(100):
        folders.copy(str(tmp_path / "x.png"), "ant")
    assert files_below(tmp_path / "sorted") == {}

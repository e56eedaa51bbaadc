"""Copies of images in folders of classes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainers.hegraph.predict.sorting import ClassFolders, folder_name, with_suffix
from trainers.hegraph.utils.errors import UserError


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_has_the_name_and_the_time_of_the_image(tmp_path):
    image = tmp_path / "x y.png"
    image.write_bytes(b"image")
    os.utime(image, (1000, 1000))
    assert ClassFolders(tmp_path / "sorted", ["ant", "bee"]).copy(str(image), 1) == ""
    assert files_below(tmp_path / "sorted") == {"bee/x y.png": b"image"}
    assert (tmp_path / "sorted" / "bee" / "x y.png").stat().st_mtime == 1000


def test_nothing_is_overwritten(tmp_path):
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x.png").write_bytes(bytes([number]))
    (tmp_path / "sorted" / "ant").mkdir(parents=True)
    (tmp_path / "sorted" / "ant" / "x.png").write_bytes(b"mine")
    (tmp_path / "sorted" / "ant" / "x-2.png").write_bytes(b"mine, too")
    for _ in range(2):
        folders = ClassFolders(tmp_path / "sorted", ["ant"])
        for number in range(3):
            assert folders.copy(str(tmp_path / str(number) / "x.png"), 0) == ""
    found = files_below(tmp_path / "sorted" / "ant")
    assert found.pop("x.png") == b"mine" and found.pop("x-2.png") == b"mine, too"
    assert found == {f"x-{number}.png": bytes([i % 3]) for i, number in enumerate((1, 3, 4, 5, 6, 7))}


@pytest.mark.parametrize(
    ("classname", "expected"),
    [
        ("sea lion", "sea lion"),
        ("größe", "größe"),
        ("and/or", "and%2For"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        (".hidden", "%2Ehidden"),
        ("ends.", "ends%2E"),
        ("ends ", "ends%20"),
        ("100%", "100%25"),
        ("a\nb\0c", "a%0Ab%00c"),
        ('a:b*c?"<>|\\', "a%3Ab%2Ac%3F%22%3C%3E%7C%5C"),
    ],
)
def test_a_class_name_becomes_a_name_that_every_file_system_takes(tmp_path, classname, expected):
    assert folder_name(classname) == expected
    (tmp_path / "x.png").touch()
    assert ClassFolders(tmp_path / "sorted", [classname]).copy(str(tmp_path / "x.png"), 0) == ""
    assert list(files_below(tmp_path / "sorted")) == [f"{expected}/x.png"]


def test_long_class_names_stay_apart(tmp_path):
    names = ["ä" * 300 + end for end in "ab"]
    one, other = map(folder_name, names)
    assert one != other and all(len(name.encode()) <= 255 for name in (one, other))


def test_a_long_file_name_makes_room_for_its_suffix(tmp_path):
    name = "ä" * 125 + ".png"
    assert len(os.fsencode(with_suffix(tmp_path / name, 12).name)) <= 255
    (tmp_path / name).touch()
    folders = ClassFolders(tmp_path / "sorted", ["ant"])
    assert [folders.copy(str(tmp_path / name), 0) for _ in range(3)] == [""] * 3
    assert len(files_below(tmp_path / "sorted")) == 3


def test_an_image_that_has_gone_is_no_end(tmp_path):
    assert ClassFolders(tmp_path / "sorted", ["ant"]).copy(str(tmp_path / "x"), 0) == (
        "cannot be copied: No such file or directory"
    )


def test_a_copy_that_cannot_be_written_ends_in_one_line_and_leaves_no_half(tmp_path, disk_full_after):
    (tmp_path / "x.png").write_bytes(bytes(1000))
    folders = ClassFolders(tmp_path / "sorted", ["ant"])
    with pytest.raises(UserError, match=r"cannot copy .*x.png to .*ant: File too large"), disk_full_after(100):
        folders.copy(str(tmp_path / "x.png"), 0)
    assert files_below(tmp_path / "sorted") == {}


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "sorted").touch()
    with pytest.raises(UserError, match="cannot make the folder .*sorted: File exists"):
        ClassFolders(tmp_path / "sorted", ["ant"])

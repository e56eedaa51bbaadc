"""Copies of images in folders of classes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainers.hegraph.predict import sorting
from trainers.hegraph.predict.sorting import ClassFolders, folder_name, with_suffix
from trainers.hegraph.utils.errors import UserError


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_has_the_name_and_the_time_of_the_image(tmp_path):
    image = tmp_path / "x y.png"
    image.write_bytes(b"image")
    os.utime(image, (1000, 1000))
    image.chmod(0o640)
    assert ClassFolders(tmp_path / "sorted", ["ant", "bee"]).copy(str(image), 1) == ""
    assert files_below(tmp_path / "sorted") == {"bee/x y.png": b"image"}
    status = (tmp_path / "sorted" / "bee" / "x y.png").stat()
    assert (status.st_mtime, status.st_mode & 0o777) == (1000, 0o640)


@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_overwritten_and_nothing_is_copied_twice(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x.png").write_bytes(bytes([number]))
    (tmp_path / "sorted" / "ant").mkdir(parents=True)
    (tmp_path / "sorted" / "ant" / "x.png").write_bytes(b"mine")
    (tmp_path / "sorted" / "ant" / "x-2.png").write_bytes(b"mine, too")
    expected = {"x.png": b"mine", "x-1.png": b"\0", "x-2.png": b"mine, too", "x-3.png": b"\1", "x-4.png": b"\2"}
    for _ in range(2):
        folders = ClassFolders(tmp_path / "sorted", ["ant"])
        for number in range(3):
            assert folders.copy(str(tmp_path / str(number) / "x.png"), 0) == ""
        assert files_below(tmp_path / "sorted" / "ant") == expected


def refuse(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_a_copy_that_is_ended_leaves_nothing(tmp_path, monkeypatch):
    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "x.png").write_bytes(bytes(1000))
    monkeypatch.setattr(sorting.shutil, "copystat", ended)
    with pytest.raises(KeyboardInterrupt):
        ClassFolders(tmp_path / "sorted", ["ant"]).copy(str(tmp_path / "x.png"), 0)
    assert files_below(tmp_path / "sorted") == {}


def test_a_class_name_becomes_a_name_that_every_file_system_takes(tmp_path):
    names = {"größe": "größe", "and/or": "and%2For", "..": "%2E%2E", ".hidden": "%2Ehidden", "ends.": "ends%2E"}
    names |= {"ends ": "ends%20", " starts": "%20starts", "100%": "100%25", "a\nb\0c": "a%0Ab%00c"}
    names |= {'a:b*c?"<>|\\': "a%3Ab%2Ac%3F%22%3C%3E%7C%5C"}
    assert {name: folder_name(name) for name in names} == names
    (tmp_path / "x.png").touch()
    folders = ClassFolders(tmp_path / "sorted", list(names))
    assert [folders.copy(str(tmp_path / "x.png"), label) for label in range(len(names))] == [""] * len(names)
    assert set(files_below(tmp_path / "sorted")) == {f"{expected}/x.png" for expected in names.values()}


def test_long_names_stay_apart_and_make_room_for_a_suffix(tmp_path):
    one, other = (folder_name("ä" * 300 + end) for end in "ab")
    assert one != other and all(len(name.encode()) <= 255 for name in (one, other))
    name = "ä" * 125 + ".png"
    assert len(os.fsencode(with_suffix(tmp_path / name, 12).name)) <= 255
    folders = ClassFolders(tmp_path / "sorted", ["ant"])
    for content in (b"1", b"2", b"3"):
        (tmp_path / name).write_bytes(content)
        assert folders.copy(str(tmp_path / name), 0) == ""
    assert sorted(files_below(tmp_path / "sorted").values()) == [b"1", b"2", b"3"]


def test_an_image_that_has_gone_is_no_end(tmp_path):
    said = ClassFolders(tmp_path / "sorted", ["ant"]).copy(str(tmp_path / "x"), 0)
    assert said == "cannot be copied: No such file or directory"


def test_what_cannot_be_written_is_one_line_and_leaves_no_half(tmp_path, disk_full_after):
    (tmp_path / "x.png").write_bytes(bytes(1000))
    folders = ClassFolders(tmp_path / "sorted", ["ant"])
    with pytest.raises(UserError, match=r"cannot write .*ant/x.png: File too large"), disk_full_after(100):
        folders.copy(str(tmp_path / "x.png"), 0)
    assert files_below(tmp_path / "sorted") == {}
    with pytest.raises(UserError, match="x.png"):
        ClassFolders(tmp_path / "x.png", ["ant"])

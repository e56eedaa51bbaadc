"""What a user names becomes a stream of paths."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainers.hegraph.predict.files import check_inputs, image_paths, read_list
from trainers.hegraph.utils.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def walked(folder: Path, leave_out: Path | None = None) -> list[str]:
    """The paths of a folder, below it."""
    return [os.path.relpath(path, folder) for path in image_paths([str(folder)], leave_out=leave_out)]


def test_a_folder_gives_its_images_in_sorted_order_with_those_of_its_folders(tmp_path, caplog):
    names = ["B.png", "a/1.jpeg", "a/2.JPG", "album.jpg/x.png", "b.png", "c/d/3.webp", f"e/{'d/' * 200}x.png"]
    touch(tmp_path, *reversed(names), ".x.png", ".git/x.png")
    assert walked(tmp_path) == names and caplog.messages == []
    touch(tmp_path, "a.txt", "a/b.heic", ".hidden")
    assert walked(tmp_path) == names and caplog.messages[0].startswith(f"{tmp_path}: 2 files are left out")
    assert walked(tmp_path, leave_out=tmp_path / "a") == [name for name in names if not name.startswith("a/")]


def test_links_are_followed_and_never_round_in_circles_and_a_folder_that_cannot_be_listed_is_a_path(
    tmp_path, monkeypatch
):
    touch(tmp_path / "elsewhere", "x.png")
    touch(tmp_path / "images", "a.png", "closed/b.png")
    links = {"link": tmp_path / "elsewhere", "up": tmp_path / "images", "loop": "loop", "loop.png": "loop.png"}
    for name, target in (links | {"gone.png": "nowhere"}).items():
        (tmp_path / "images" / name).symlink_to(target)
    listdir = os.listdir

    def refuse_one(path: str) -> list[str]:
        if path.endswith("closed"):
            raise PermissionError
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse_one)
    assert walked(tmp_path / "images") == ["a.png", "closed", "gone.png", "link/x.png", "loop.png"]


def test_several_inputs_come_in_order(tmp_path):
    touch(tmp_path, "z.png", "folder/a.png", "empty/readme.md")
    (tmp_path / "list.TXT").write_text("one.png\ntwo.png\n")
    given = [str(tmp_path / name) for name in ("z.png", "list.TXT", "folder", "empty", "missing.png")]
    check_inputs(given)
    expected = [given[0], "one.png", "two.png", str(tmp_path / "folder" / "a.png"), given[4]]
    assert list(image_paths(given)) == expected


@pytest.mark.parametrize(
    ("text", "null", "expected"),
    [
        (b"a.png\r\nb c.png", False, ["a.png", "b c.png"]),
        (b"\xef\xbb\xbfa.png\n\n  b.png \n", False, ["a.png", "  b.png "]),
        ("größe.png\n".encode() + b"a\xff\r.png\n", False, ["größe.png", "a\udcff\r.png"]),
        (b"a\nb.png\0c\r\0", True, ["a\nb.png", "c\r"]),
        (b"", False, []),
    ],
)
def test_a_list_gives_its_paths(text, null, expected):
    assert list(read_list(io.BytesIO(text), null)) == expected


def test_a_list_that_never_ends_is_an_error():
    with pytest.raises(UserError, match="is it a list of paths"):
        list(read_list(SimpleNamespace(read=lambda size: b"a" * size), null=True))


def test_a_list_comes_from_standard_input_as_it_arrives(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file, os.fdopen(writer, "wb", buffering=0) as other_end:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
        other_end.write(b"first.png\nsecond.p")
        found = image_paths(["-"])
        assert next(found) == "first.png"  # and does not wait for more
        other_end.write(b"ng\n")
        assert next(found) == "second.png"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "nothing to classify: give images"),
        (["-", "-"], "given twice"),
        (["missing.png"], "cannot read missing.png"),
        (["nu\0l"], "cannot read nu"),
    ],
)
def test_an_input_that_gives_nothing_is_an_error(monkeypatch, given, expected):
    check_inputs(["-"])
    with pytest.raises(UserError, match=expected):
        check_inputs(given)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="closed"):
        check_inputs(["-"])

"""What a user names becomes a stream of paths."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainers.hegraph.predict.inputs import Inputs, read_list
from trainers.hegraph.utils.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def walked(folder: Path, leave_out: Path | None = None) -> list[str]:
    """The paths of a folder, below it."""
    return [os.path.relpath(path, folder) for path in Inputs([str(folder)], leave_out=leave_out)]


def test_a_folder_gives_its_images_in_sorted_order_with_those_of_its_folders(tmp_path):
    names = ["B.png", "a/1.jpeg", "a/2.JPG", "album.jpg/x.png", "b.png", "c/d/3.webp", f"e/{'d/' * 200}x.png"]
    touch(tmp_path, *reversed(names), "a.txt", "notes.md", ".x.png", ".git/x.png")
    assert walked(tmp_path) == names
    assert Inputs([str(tmp_path)]).count() == 7


def test_files_with_other_endings_are_counted_once_and_hidden_ones_are_not(tmp_path, caplog):
    touch(tmp_path, "a.png", "b.heic", "c/d.heic", "c/e.jfif", ".hidden", ".git/x", "Thumbs.db")
    inputs = Inputs([str(tmp_path)])
    with caplog.at_level(logging.WARNING):
        inputs.check()
        assert inputs.count() == len(list(inputs)) == 2
        [said] = caplog.messages
        assert said.startswith(f"{tmp_path}: 3 files are left out, ") and said.endswith((".heic", "Thumbs.db"))
        caplog.clear()
        touch(tmp_path, "images/a.png")
        assert len(list(Inputs([str(tmp_path / "images")]))) == 1 and caplog.messages == []


def test_links_are_followed_and_never_round_in_circles(tmp_path):
    touch(tmp_path / "elsewhere", "x.png")
    touch(tmp_path / "images", "a.png")
    links = {"link": tmp_path / "elsewhere", "up": tmp_path / "images", "loop": "loop", "loop.png": "loop.png"}
    for name, target in (links | {"gone.png": "nowhere"}).items():
        (tmp_path / "images" / name).symlink_to(target)
    assert walked(tmp_path / "images") == ["a.png", "gone.png", "link/x.png", "loop.png"]


def test_the_folder_that_copies_go_to_is_left_out(tmp_path):
    touch(tmp_path, "a.png", "sorted/one/a.png")
    assert walked(tmp_path, leave_out=tmp_path / "sorted") == ["a.png"]
    assert walked(tmp_path, leave_out=tmp_path / "not there yet") == ["a.png", "sorted/one/a.png"]


def test_several_inputs_come_in_order_and_a_folder_without_images_as_itself(tmp_path):
    touch(tmp_path, "z.png", "folder/a.png", "empty/readme.md")
    (tmp_path / "list.txt").write_text("one.png\ntwo.png\n")
    given = [str(tmp_path / name) for name in ("z.png", "list.txt", "folder", "missing.png", "empty")]
    inputs = Inputs(given)
    inputs.check()
    assert list(inputs) == [given[0], "one.png", "two.png", str(tmp_path / "folder" / "a.png"), *given[3:]]


@pytest.mark.parametrize(
    ("text", "null", "expected"),
    [
        (b"a.png\nb c.png\n", False, ["a.png", "b c.png"]),
        (b"a.png\r\nb.png", False, ["a.png", "b.png"]),
        (b"\xef\xbb\xbfa.png\n\n  b.png \n", False, ["a.png", "  b.png "]),
        ("größe.png\n".encode(), False, ["größe.png"]),
        (b"a\xff.png\n", False, ["a\udcff.png"]),
        (b"a\nb.png\0c\r\0", True, ["a\nb.png", "c\r"]),
        (b"", False, []),
        (b"\n\n\n", False, []),
        ("\n".join(f"{number:06d}.png" for number in range(50_000)).encode(), False, None),  # in several blocks
    ],
    ids=range(9),
)
def test_a_list_gives_its_paths(text, null, expected):
    assert list(read_list(io.BytesIO(text), null)) == (text.decode().split("\n") if expected is None else expected)


@pytest.mark.parametrize(("text", "null"), [(b"\0", False), (b"\n", True), (b"a.png", True)])
def test_what_never_ends_is_no_list(text, null):
    endless = SimpleNamespace(read=lambda size: text * (size // len(text)))
    with pytest.raises(UserError, match="the list holds a path of more than 65536 bytes; is it a list of paths?"):
        list(read_list(endless, null))


def test_a_list_comes_from_standard_input_as_it_arrives(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file, os.fdopen(writer, "wb", buffering=0) as other_end:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
        other_end.write(b"first.png\nsecond.p")
        found = iter(Inputs(["-"]))
        assert next(found) == "first.png"  # and does not wait for more
        other_end.write(b"ng\n")
        assert next(found) == "second.png"
    assert Inputs(["-"]).count() is None
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        list(Inputs(["-"]))


def test_a_pipe_can_be_read_once_and_so_is_not_counted(tmp_path):
    os.mkfifo(tmp_path / "list.txt")
    assert Inputs([str(tmp_path / "list.txt")]).count() is None
    assert Inputs([str(tmp_path / "none.png")]).count() == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "nothing to classify: give images"),
        (["-", "-"], "given twice"),
        (["missing.png"], "cannot read missing.png: No such file"),
        (["nu\0l"], "null byte"),
        (["empty"], "empty is a folder that holds no image"),
    ],
)
def test_an_input_that_gives_nothing_is_an_error(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "empty/readme.md")
    with pytest.raises(UserError, match=expected):
        Inputs(given).check()


def test_a_list_that_is_not_there_is_an_error_among_several_too(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the list .*none.txt: No such file"):
        Inputs([str(tmp_path / "none.txt"), "x.png"]).count()

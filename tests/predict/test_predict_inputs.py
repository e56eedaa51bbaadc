"""What a user names becomes a stream of paths."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainers.hegraph.predict.inputs import NO_IMAGE, Found, Inputs, read_list
from trainers.hegraph.utils.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def paths(*given: object, null: bool = False, leave_out: Path | None = None) -> list[str]:
    return [found.path for found in Inputs([str(one) for one in given], null, leave_out)]


def test_a_folder_gives_its_images_in_sorted_order_with_those_of_its_folders(tmp_path):
    touch(tmp_path, "b.png", "a/2.JPG", "a/1.jpeg", "c/d/3.webp", "B.png", "a.txt", "notes.md", ".x.png", ".git/x.png")
    expected = ["B.png", "a/1.jpeg", "a/2.JPG", "b.png", "c/d/3.webp"]
    assert paths(tmp_path) == [str(tmp_path / name) for name in expected]
    assert Inputs([str(tmp_path)]).count() == 5


def test_files_with_other_endings_are_counted_once_and_hidden_ones_are_not(tmp_path, caplog):
    touch(tmp_path, "a.png", "b.heic", "c/d.heic", "c/e.jfif", ".hidden", ".git/x", "Thumbs.db")
    inputs = Inputs([str(tmp_path)])
    with caplog.at_level(logging.WARNING):
        inputs.check()
        assert inputs.count() == len(list(inputs)) == 2
    [said] = caplog.messages
    assert said.startswith(
        f"{tmp_path}: 3 files are left out, whose ending is not that of an image, such as {tmp_path}"
    )
    assert said.endswith((".heic", "Thumbs.db"))


def test_nothing_is_said_of_a_folder_that_holds_images_alone(tmp_path, caplog):
    touch(tmp_path, "a.png", "c/e.jfif")
    with caplog.at_level(logging.WARNING):
        assert Inputs([str(tmp_path)]).count() == 2
    assert caplog.messages == []


def test_links_are_followed_and_never_round_in_circles(tmp_path):
    touch(tmp_path / "elsewhere", "x.png")
    touch(tmp_path / "images", "a.png")
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "up").symlink_to(tmp_path / "images")
    assert paths(tmp_path / "images") == [str(tmp_path / "images" / name) for name in ("a.png", "link/x.png")]


def test_a_link_that_leads_to_itself_or_nowhere_is_an_image_by_its_name_alone(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone.png").symlink_to("nowhere")
    assert paths(tmp_path) == [str(tmp_path / name) for name in ("a.png", "gone.png", "loop.png")]


def test_a_folder_that_is_called_like_an_image_is_walked(tmp_path):
    touch(tmp_path, "album.jpg/a.png")
    assert paths(tmp_path) == [str(tmp_path / "album.jpg" / "a.png")]


def test_a_folder_of_many_levels_is_walked(tmp_path):
    deep = "/".join(["d"] * 200)
    touch(tmp_path, f"{deep}/x.png")
    assert paths(tmp_path) == [f"{tmp_path}/{deep}/x.png"]


def test_the_folder_that_copies_go_to_is_left_out(tmp_path):
    touch(tmp_path, "a.png", "sorted/one/a.png")
    assert paths(tmp_path, leave_out=tmp_path / "sorted") == [str(tmp_path / "a.png")]
    assert paths(tmp_path, leave_out=tmp_path / "not there yet")


def test_several_inputs_come_in_the_order_that_they_were_given_in(tmp_path):
    touch(tmp_path, "z.png", "folder/a.png")
    (tmp_path / "list.txt").write_text("one.png\ntwo.png\n")
    given = [tmp_path / "z.png", tmp_path / "list.txt", tmp_path / "folder", tmp_path / "missing.png"]
    expected = [tmp_path / "z.png", "one.png", "two.png", tmp_path / "folder" / "a.png", tmp_path / "missing.png"]
    assert paths(*given) == [str(path) for path in expected]


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
        (b"x", False, ["x"]),
        (b"\n\n\n", False, []),
    ],
)
def test_a_list_gives_its_paths(text, null, expected):
    assert list(read_list(io.BytesIO(text), null)) == expected


@pytest.mark.parametrize(("text", "null"), [(b"\0", False), (b"\n", True), (b"a.png", True)])
def test_what_never_ends_is_no_list(text, null):
    class Endless:
        def read(self, size: int) -> bytes:
            return text * (size // len(text))

    with pytest.raises(UserError, match="the list holds a path of more than 65536 bytes; is it a list of paths?"):
        list(read_list(Endless(), null))


def test_a_long_list_is_read_in_blocks():
    names = [f"{number:06d}.png" for number in range(50_000)]
    assert list(read_list(io.BytesIO("\n".join(names).encode()), null=False)) == names


def test_a_closed_standard_input_is_no_list(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        list(Inputs(["-"]))


def test_a_list_comes_from_standard_input_as_it_arrives(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file, os.fdopen(writer, "wb", buffering=0) as other_end:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
        other_end.write(b"first.png\nsecond.p")
        found = iter(Inputs(["-"]))
        assert next(found) == Found("first.png")  # and does not wait for more
        other_end.write(b"ng\n")
        assert next(found) == Found("second.png")
    assert Inputs(["-"]).count() is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "nothing to classify: give images"),
        (["-", "-"], "given twice"),
        (["missing.png"], "cannot read missing.png: No such file"),
        (["new\nline.png"], r"cannot read new\\nline.png"),
        (["empty"], "empty holds no image"),
        (["empty.txt"], "empty.txt lists no path"),
    ],
)
def test_an_input_that_gives_nothing_is_an_error(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "empty/readme.md", "empty.txt")
    with pytest.raises(UserError, match=expected):
        Inputs(given).check()


def test_among_several_such_an_input_has_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "empty/readme.md")
    inputs = Inputs(["empty", "missing.png"])
    inputs.check()
    assert list(inputs) == [Found("empty", NO_IMAGE), Found("missing.png")]


def test_a_list_that_is_not_there_is_an_error_among_several_too(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the list .*none.txt: No such file"):
        Inputs([str(tmp_path / "none.txt"), "x.png"]).count()

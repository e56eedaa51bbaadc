"""Input paths, rows with any file names, and copies of images."""

import csv
import io
import json
import logging
import math
import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.predict import files
from trainers.hegraph.models.predict.prediction import rows_of, write_rows
from trainers.hegraph.models.predict.sorting import SortedCopies
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.logs import _AboveBars
from trainers.hegraph.utils.progress import Progress

TOP = [("ant", 0.9), ("bee", 0.0999999), ("cow", 1.23456789e-12)]
NASTY = ["a b.png", 'quo"te.png', "com,ma.png", "new\nline.png", "return\r.png", "größe.png", "\udcff.png", "=1+1.png"]


# Paths


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def relative_paths(folder: Path, excluded: Path | None = None) -> list[str]:
    """Relative paths of the images in a folder."""
    return [os.path.relpath(path, folder) for path in files.image_paths([str(folder)], excluded=excluded)]


def test_folder_is_searched_in_sorted_order(tmp_path, caplog):
    names = ["B.png", "a/1.jpeg", "a/2.JPG", "album.jpg/x.png", "b.png", "c/d/3.webp", f"e/{'d/' * 200}x.png"]
    touch(tmp_path, *reversed(names), ".x.png", ".git/x.png")
    assert relative_paths(tmp_path) == names and caplog.messages == []
    touch(tmp_path, "a.txt", "a/b.svg", ".hidden")
    assert relative_paths(tmp_path) == names and caplog.messages[0].startswith(f"{tmp_path}: 2 files are skipped")
    assert relative_paths(tmp_path, excluded=tmp_path / "a") == [name for name in names if not name.startswith("a/")]


def test_images_of_folders_are_counted_without_a_warning(tmp_path, caplog):
    touch(tmp_path, "photos/a/1.png", "photos/2.jpg", "photos/notes.txt", "copies/3.png", "list.txt")
    folder = str(tmp_path / "photos")
    assert files.count_images([folder, str(tmp_path / "one.png")]) == 3
    assert files.count_images([str(tmp_path)], excluded=tmp_path / "copies") == 2
    assert files.count_images([folder, str(tmp_path / "list.txt")]) is None
    assert files.count_images([folder, "-"]) is None
    assert caplog.messages == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_messages_do_not_break_the_progress_bar(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(logging.getLogger(), "handlers", [_AboveBars(terminal)])

    def batches():
        yield [files.PredictionRow("a.png", TOP)]
        logging.getLogger().warning("two files are skipped")
        yield [files.PredictionRow("b.png", TOP)]

    write_rows(batches(), tmp_path / "rows.csv", "csv", progress=Progress(2, "predicting"))
    assert "2/2" in terminal.getvalue()
    [line] = [line for line in terminal.getvalue().replace("\r", "\n").split("\n") if "skipped" in line]
    assert line == "two files are skipped"


def test_predictions_have_lines_without_a_terminal(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("trainers.hegraph.utils.progress.LINE_SECONDS", 0)
    batches = [[files.PredictionRow(f"{number}.png", TOP)] for number in range(2)]
    with caplog.at_level(logging.INFO):
        write_rows(batches, tmp_path / "rows.csv", "csv", progress=Progress(2, "predicting"))
    assert [line[:20] for line in caplog.messages][:2] == ["predicting: 1 of 2, ", "predicting: 2 of 2, "]


def test_links_are_followed_once(tmp_path, monkeypatch):
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
    assert relative_paths(tmp_path / "images") == ["a.png", "closed", "gone.png", "link/x.png", "loop.png"]


def test_several_inputs_in_order(tmp_path):
    touch(tmp_path, "z.png", "folder/a.png", "empty/readme.md")
    (tmp_path / "list.TXT").write_text("one.png\ntwo.png\n")
    inputs = [str(tmp_path / name) for name in ("z.png", "list.TXT", "folder", "empty", "missing.png")]
    files.check_inputs(inputs)
    expected = [inputs[0], "one.png", "two.png", str(tmp_path / "folder" / "a.png"), inputs[4]]
    assert list(files.image_paths(inputs)) == expected


@pytest.mark.parametrize(("text", "null", "expected"), [
    (b"a.png\r\nb c.png", False, ["a.png", "b c.png"]),
    (b"\xef\xbb\xbfa.png\n\n  b.png \n", False, ["a.png", "  b.png "]),
    ("größe.png\n".encode() + b"a\xff\r.png\n", False, ["größe.png", "a\udcff\r.png"]),
    (b"a\nb.png\0c\r\0", True, ["a\nb.png", "c\r"]), (b"", False, []),
])  # fmt: skip
def test_list_has_paths(text, null, expected):
    assert list(files.read_list(io.BytesIO(text), null)) == expected


def test_endless_list_is_an_error():
    with pytest.raises(UserError, match="is it a list of paths"):
        list(files.read_list(SimpleNamespace(read=lambda size: b"a" * size), null=True))


def test_list_on_standard_input_is_streamed(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file, os.fdopen(writer, "wb", buffering=0) as other_end:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
        other_end.write(b"first.png\nsecond.p")
        found = files.image_paths(["-"])
        assert next(found) == "first.png"  # and does not wait for more
        other_end.write(b"ng\n")
        assert next(found) == "second.png"


@pytest.mark.parametrize(("inputs", "expected"), [
    ([], "nothing to classify: give images"), (["-", "-"], "given twice"),
    (["missing.png"], "cannot read missing.png"), (["nu\0l"], "cannot read nu"),
])  # fmt: skip
def test_inputs_are_checked(monkeypatch, inputs, expected):
    files.check_inputs(["-"])
    with pytest.raises(UserError, match=expected):
        files.check_inputs(inputs)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="closed"):
        files.check_inputs(["-"])


# Rows


def test_formats_have_rejected_images_and_errors():
    rows = [
        files.PredictionRow("a", TOP[:2], known=True),
        files.PredictionRow("b", TOP[:2], known=False),
        files.PredictionRow("c", error="why"),
        files.PredictionRow("d", TOP[:1]),
    ]
    assert list(files.table_lines([rows[:2], rows[2:]], True)) == [
        "path  class          probability  next classes\n",
        "a     ant            90.00 %      bee 10.00 %\n",
        "b     none of these               ant 90.00 %, bee 10.00 %\n",
        "c     error:                      why\n",
        "d     ant            90.00 %\n",
    ]
    assert list(files.table_lines([], True)) == []
    header, *lines = files.csv_lines([rows[:3]], True)
    assert header == "path,class,probability,rank,error,none_of_these\n"
    assert lines[:2] == ["a,ant,0.9,1,,false\n", "a,bee,0.0999999,2,,false\n"]
    assert lines[2:] == ["b,ant,0.9,1,,true\n", "b,bee,0.0999999,2,,true\n", "c,,,,why,\n"]
    assert list(files.csv_lines([rows[2:3]], False)) == ["path,class,probability,rank,error\n", "c,,,,why\n"]
    marks = [json.loads(line)["none_of_these"] for line in files.json_lines([rows[:3]], True)]
    assert marks == [False, True, None] and "none_of_these" not in next(files.json_lines([rows[1:]], False))


def test_formats_have_prediction_sets():
    rows = [files.PredictionRow("a", TOP[:2], classes=["ant", "bee"]), files.PredictionRow("c", error="why")]
    assert list(files.table_lines([rows], False, True)) == [
        "path  class   probability  classes   next classes\n",
        "a     ant     90.00 %      ant, bee  bee 10.00 %\n",
        "c     error:                         why\n",
    ]
    header, *lines = files.csv_lines([rows], True, True)
    assert header == "path,class,probability,rank,error,none_of_these,classes\n"
    assert lines == ["a,ant,0.9,1,,false,ant|bee\n", "a,bee,0.0999999,2,,false,ant|bee\n", "c,,,,why,,\n"]
    classes = [json.loads(line)["classes"] for line in files.json_lines([rows], False, True)]
    assert classes == [["ant", "bee"], None]


@pytest.mark.parametrize("path", NASTY)
def test_every_format_preserves_any_file_name(path):
    shown = path.replace("\udcff", r"\xff")
    _, line = files.table_lines([[files.PredictionRow(path, [("\x1b[2J\n", 1.0)])]], False)
    assert line.count("\n") == 1 and "\r" not in line and line.encode() and r"\x1b[2J\n" in line

    both = [files.PredictionRow(path, TOP), files.PredictionRow(path, error='no "image",\nreally')]
    text = "".join(files.csv_lines([both], False))
    *rows, failed = csv.DictReader(io.StringIO(text.encode().decode(), newline=""))
    found = [(row["path"], row["class"], row["rank"]) for row in rows]
    assert found == [(shown, "ant", "1"), (shown, "bee", "2"), (shown, "cow", "3")]
    assert [float(row["probability"]) for row in rows] == pytest.approx([value for _, value in TOP], rel=1e-5)
    assert failed == {"path": shown, "class": "", "probability": "", "rank": "", "error": 'no "image",\nreally'}

    first, second = map(json.loads, files.json_lines([both], False))
    assert (first["path"], first["error"]) == (shown, None)
    assert [entry["class"] for entry in first["top"]] == ["ant", "bee", "cow"]
    assert first["top"][2]["probability"] == pytest.approx(1.23456789e-12, rel=1e-5)
    assert second == {"path": shown, "top": [], "error": 'no "image",\nreally'}


# Copies


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_copies_replace_no_file_and_preserve_time(tmp_path):
    images = [tmp_path / str(number) / "x y.png" for number in range(3)]
    touch(tmp_path, "0/x y.png", "1/x y.png", "2/x y.png", "ant/x y.png")
    for number, image in enumerate(images):
        image.write_bytes(bytes([number]))
        os.utime(image, (1000, 1000))
    (tmp_path / "ant" / "x y.png").write_bytes(b"mine")
    (tmp_path / "ant" / "x y-2.png").write_bytes(b"?")
    for _ in range(2):
        copies = SortedCopies(tmp_path, ["ant"])
        assert [copies.add("ant", str(image)) for image in (*images, images[2])] == [""] * 4
        summary = f"copied 4 images into {tmp_path}: 4 in ant"
        assert copies.summary() == summary
        copies.add("ant", str(images[0]), is_doubtful=True)
        doubts = f"doubtful, with a probability below 50 %: 1, such as {tmp_path}/ant/x y.png"
        assert copies.summary() == f"{summary.replace('4', '5')}; {doubts}"
        expected = {"x y.png": b"mine", "x y-1.png": b"\0", "x y-2.png": b"?", "x y-3.png": b"\1", "x y-4.png": b"\2"}
        assert files_below(tmp_path / "ant") == expected
    assert (tmp_path / "ant" / "x y-1.png").stat().st_mtime == 1000


def test_folder_names_are_percent_encoded(tmp_path):
    names = {"größe": "größe", "and/or": "and%2For", "..": "%2E%2E", ".hidden": "%2Ehidden", "ends.": "ends%2E"}
    names |= {"ends ": "ends%20", " starts": "%20starts", "100%": "100%25", "a\nb\0c": "a%0Ab%00c"}
    names |= {'a:b*c?"<>|\\': "a%3Ab%2Ac%3F%22%3C%3E%7C%5C"}
    assert {name: files.folder_name(name) for name in names} == names


def test_long_class_names_have_unique_folders(tmp_path):
    names = ["ü" * 150, "ü" * 150 + "a", "ü" * 149 + "/", "x" * 201, "x" * 2000, "/" * 255]
    folders = [files.folder_name(name) for name in names]
    assert len(set(folders)) == len(names) and max(len(folder.encode()) for folder in folders) <= 200
    assert files.folder_name("x" * 200) == "x" * 200 and files.folder_name("x" * 201).startswith("x" * 180)
    touch(tmp_path, "a.png")
    copies = SortedCopies(tmp_path, names)
    assert [copies.folder(name).name for name in names] == folders
    for name in names:
        assert copies.add(name, str(tmp_path / "a.png")) == ""


def test_folders_differ_where_file_systems_fold_case_and_unicode(tmp_path):
    names = [
        "Cat",
        "cat",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "cafe\N{COMBINING ACUTE ACCENT}",
        "STRASSE",
        "straße",
    ]
    folders = [SortedCopies(tmp_path, names).folder(name).name for name in names]
    assert folders[::2] == names[::2]
    assert [name.partition("~")[0] for name in folders[1::2]] == names[1::2] and all(
        "~" in name for name in folders[1::2]
    )
    reserved = {"con": "%63on", "NUL.txt": "%4EUL.txt", "com1": "%63om1", "cone": "cone", "auxiliary": "auxiliary"}
    assert {name: files.folder_name(name) for name in reserved} == reserved


def test_images_of_one_long_name_are_copied_in_linear_time(tmp_path, monkeypatch):
    looked = Counter()
    exists = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: looked.update([path]) or exists(path))
    name = "x" * 249 + ".jpeg"
    images = [tmp_path / str(number) / name for number in range(60)]
    touch(tmp_path, *(f"{number}/{name}" for number in range(60)))
    for number, image in enumerate(images):
        image.write_bytes(bytes([number]))
    copies = SortedCopies(tmp_path, ["ant"])
    assert {copies.add("ant", str(image)) for image in images} == {""}
    contents = files_below(tmp_path / "ant")
    assert sorted(contents.values()) == [bytes([number]) for number in range(60)]
    assert {len(each) for each in contents} == {254, 255} and all(each.endswith(".jpeg") for each in contents)
    assert looked.total() < 3 * len(images)


@pytest.mark.parametrize(("names", "ids", "expected"), [
    (["a", "b"], ["1", "2"], ["a", "b"]), (["a", "a"], ["1", "2"], ["a (1)", "a (2)"]),
    (["a", "a", "a (1)"], ["1", "2", "3"], ["a (1) (0)", "a (2)", "a (1)"]),
    (["a", "a"], ["1", "1"], ["a (1)", "a (1) (1)"]),
    (["a", "a", "a (1)", "a (1)", "a (1) (1)"], list("11111"), None),
    (["none of these", "a"], ["1", "2"], ["none of these (1)", "a"]),
])  # fmt: skip
def test_class_names_become_unique(names, ids, expected):
    found = files.unique_names(names, ids, ["none of these"])
    assert len({*found, "none of these"}) == len(names) + 1 and expected in (None, found)


def test_image_removed_during_copying_is_copied(tmp_path, monkeypatch):
    image, write = tmp_path / "x.png", Path.write_bytes
    image.write_bytes(b"pixels")

    def remove_first(path, content):
        image.unlink()
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", remove_first)
    assert (SortedCopies(tmp_path, ["ant"]).add("ant", str(image)), files_below(tmp_path / "ant")) == (
        "",
        {"x.png": b"pixels"},
    )


def test_failed_copy_leaves_no_file(tmp_path, disk_full_after):
    image = tmp_path / "x.png"
    copies = SortedCopies(tmp_path, ["ant"])
    assert copies.add("ant", str(image)) == "cannot be copied: No such file or directory"
    image.write_bytes(bytes(1000))
    with pytest.raises(UserError, match=r"cannot write .*ant/x.png: File too large"), disk_full_after(100):
        copies.add("ant", str(image))
    assert files_below(tmp_path / "ant") == {}


def test_label_below_its_threshold_displaces_no_other(finished_run_once):
    model = load_model(finished_run_once)
    thresholds = torch.full((len(model.classnames),), 5.0)
    thresholds[1] = -2.0
    logits = torch.full((1, len(model.classnames)), -9.0)
    logits[0, :2] = torch.tensor([1.0, -1.0])  # the first label is more probable, and below its threshold of 5
    [row] = rows_of(model.model_copy(update={"thresholds": thresholds}), ["a.png"], logits, 1)
    assert row.top == [(model.classnames[1], pytest.approx(1 / (1 + math.e)))]

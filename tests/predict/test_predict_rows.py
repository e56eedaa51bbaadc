"""A row is one line for people, and valid CSV and JSON for programs, whatever its names hold."""

from __future__ import annotations

import csv
import io
import json

import pytest

from trainers.hegraph.predict.rows import Csv, JsonLines, Row, Table

TOP = [("ant", 0.9), ("bee", 0.0999999), ("cow", 1.23456789e-12)]
NASTY = ["a b.png", 'quo"te.png', "com,ma.png", "new\nline.png", "return\r.png", "größe.png", "\udcff.png", "=1+1.png"]


def test_the_table_has_a_line_for_each_image_and_grows_with_its_paths():
    table = Table()
    assert table(Row("a.png", TOP)) == "a.png  ant  90.00 %  (bee 10.00 %, cow 0.00 %)\n"
    assert table(Row("long.png", TOP[:1])) == "long.png  ant  90.00 %\n"
    assert table(Row("b.png", error="is a folder")) == "b.png     error: is a folder\n"


@pytest.mark.parametrize("path", NASTY)
def test_a_name_in_the_table_takes_one_line(path):
    line = Table()(Row(path, TOP))
    assert line.count("\n") == 1 and "\r" not in line and line.encode("utf-8")


def test_what_would_steer_a_terminal_is_shown_as_an_escape():
    assert r"\x1b[2J\n" in Table()(Row("x", [("\x1b[2J\n", 1.0)]))


@pytest.mark.parametrize("path", NASTY)
def test_csv_is_read_again_by_pythons_own_reader(path):
    to_line = Csv()
    text = to_line.header + to_line(Row(path, TOP)) + to_line(Row(path, error='no "image",\nreally'))
    rows = list(csv.DictReader(io.StringIO(text.encode().decode(), newline="")))
    shown = path.replace("\udcff", r"\xff")
    assert [(row["path"], row["class"], row["rank"]) for row in rows[:3]] == [
        (shown, "ant", "1"), (shown, "bee", "2"), (shown, "cow", "3"),
    ]  # fmt: skip
    assert [float(row["probability"]) for row in rows[:3]] == pytest.approx([value for _, value in TOP], rel=1e-5)
    assert rows[3] == {"path": shown, "class": "", "probability": "", "rank": "", "error": 'no "image",\nreally'}


@pytest.mark.parametrize("path", NASTY)
def test_a_json_line_is_one_line_of_valid_utf_8(path):
    lines = JsonLines()(Row(path, TOP)) + JsonLines()(Row(path, error="why"))
    first, second = map(json.loads, lines.encode("utf-8").decode().split("\n")[:2])
    assert first["path"] == path.replace("\udcff", r"\xff")
    assert [entry["class"] for entry in first["top"]] == ["ant", "bee", "cow"]
    assert first["top"][2]["probability"] == pytest.approx(1.23456789e-12, rel=1e-5)
    assert first["error"] is None
    assert second == {"path": first["path"], "top": [], "error": "why"}

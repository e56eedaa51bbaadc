"""A row is one line for people, and valid CSV and JSON for programs, whatever its names hold."""

from __future__ import annotations

import csv
import io
import json

import pytest

from trainers.hegraph.predict.files import Row, csv_lines, json_lines, table_lines

TOP = [("ant", 0.9), ("bee", 0.0999999), ("cow", 1.23456789e-12)]
NASTY = ["a b.png", 'quo"te.png', "com,ma.png", "new\nline.png", "return\r.png", "größe.png", "\udcff.png", "=1+1.png"]


def test_every_format_marks_an_image_of_none_of_these_and_an_error():
    rows = [Row("a", TOP[:2], known=True), Row("b", TOP[:2], known=False), Row("c", error="why"), Row("d", TOP[:1])]
    assert list(table_lines(rows, True)) == [
        "a  ant  90.00 %  (bee 10.00 %)\n",
        "b  none of these    (ant 90.00 %, bee 10.00 %)\n",
        "c  error:  why\n",
        "d  ant  90.00 %\n",
    ]
    header, *lines = csv_lines(rows[:3], True)
    assert header == "path,class,probability,rank,error,none_of_these\n"
    assert lines[:2] == ["a,ant,0.9,1,,false\n", "a,bee,0.0999999,2,,false\n"]
    assert lines[2:] == ["b,ant,0.9,1,,true\n", "b,bee,0.0999999,2,,true\n", "c,,,,why,\n"]
    assert list(csv_lines(rows[2:3], False)) == ["path,class,probability,rank,error\n", "c,,,,why\n"]
    marks = [json.loads(line)["none_of_these"] for line in json_lines(rows[:3], True)]
    assert marks == [False, True, None]
    assert "none_of_these" not in next(json_lines(rows[1:], False))


@pytest.mark.parametrize("path", NASTY)
def test_a_name_of_any_characters_is_kept_in_every_format(path):
    shown = path.replace("\udcff", r"\xff")
    [line] = table_lines([Row(path, [("\x1b[2J\n", 1.0)])], False)
    assert line.count("\n") == 1 and "\r" not in line and line.encode() and r"\x1b[2J\n" in line

    both = [Row(path, TOP), Row(path, error='no "image",\nreally')]
    text = "".join(csv_lines(both, False))
    *rows, failed = csv.DictReader(io.StringIO(text.encode().decode(), newline=""))
    found = [(row["path"], row["class"], row["rank"]) for row in rows]
    assert found == [(shown, "ant", "1"), (shown, "bee", "2"), (shown, "cow", "3")]
    assert [float(row["probability"]) for row in rows] == pytest.approx([value for _, value in TOP], rel=1e-5)
    assert failed == {"path": shown, "class": "", "probability": "", "rank": "", "error": 'no "image",\nreally'}

    first, second = map(json.loads, json_lines(both, False))
    assert (first["path"], first["error"]) == (shown, None)
    assert [entry["class"] for entry in first["top"]] == ["ant", "bee", "cow"]
    assert first["top"][2]["probability"] == pytest.approx(1.23456789e-12, rel=1e-5)
    assert second == {"path": shown, "top": [], "error": 'no "image",\nreally'}

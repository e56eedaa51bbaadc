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
    assert table(Row("x" * 70, [("b", 0.05)])) == f"{'x' * 70}  b     5.00 %\n"
    assert table(Row("y", [("bee", 1.0)])) == f"{'y':60}  bee  100.00 %\n"


def test_every_format_marks_an_image_of_none_of_these():
    known, unknown, failed = Row("a", TOP[:2], known=True), Row("b", TOP[:2], known=False), Row("c", error="why")
    table = Table(True)
    assert table(known) == "a  ant  90.00 %  (bee 10.00 %)\n"
    assert table(unknown) == "b  none of these           (ant 90.00 %, bee 10.00 %)\n"
    lines = Csv(True)
    assert lines.header == "path,class,probability,rank,error,none_of_these\n"
    assert lines(unknown) == "b,ant,0.9,1,,true\nb,bee,0.0999999,2,,true\n"
    assert lines(known) == "a,ant,0.9,1,,false\na,bee,0.0999999,2,,false\n"
    assert lines(failed) == "c,,,,why,\n"
    assert (Csv().header, Csv()(failed)) == ("path,class,probability,rank,error\n", "c,,,,why\n")
    marks = [json.loads(JsonLines(True)(row))["none_of_these"] for row in (known, unknown, failed)]
    assert marks == [False, True, None]
    assert "none_of_these" not in JsonLines()(unknown)


@pytest.mark.parametrize("path", NASTY)
def test_a_name_of_any_characters_is_kept_in_every_format(path):
    shown = path.replace("\udcff", r"\xff")
    line = Table()(Row(path, [("\x1b[2J\n", 1.0)]))
    assert line.count("\n") == 1 and "\r" not in line and line.encode() and r"\x1b[2J\n" in line

    to_line = Csv()
    text = to_line.header + to_line(Row(path, TOP)) + to_line(Row(path, error='no "image",\nreally'))
    *rows, failed = csv.DictReader(io.StringIO(text.encode().decode(), newline=""))
    found = [(row["path"], row["class"], row["rank"]) for row in rows]
    assert found == [(shown, "ant", "1"), (shown, "bee", "2"), (shown, "cow", "3")]
    assert [float(row["probability"]) for row in rows] == pytest.approx([value for _, value in TOP], rel=1e-5)
    assert failed == {"path": shown, "class": "", "probability": "", "rank": "", "error": 'no "image",\nreally'}

    first, second = map(json.loads, (JsonLines()(Row(path, TOP)) + JsonLines()(Row(path, error="why"))).splitlines())
    assert (first["path"], first["error"]) == (shown, None)
    assert [entry["class"] for entry in first["top"]] == ["ant", "bee", "cow"]
    assert first["top"][2]["probability"] == pytest.approx(1.23456789e-12, rel=1e-5)
    assert second == {"path": shown, "top": [], "error": "why"}

"""Rows of a comparison that are the cases of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.hegraph.results.__main__ import main
from trainers.hegraph.results.comparison import compare, name_cases, read_cases
from trainers.hegraph.results.records import collect
from trainers.hegraph.utils.errors import UserError

ALPHA, BETA = "TRAINER.X.ALPHA", "TRAINER.X.BETA"
GRID = f"""
set: {{{BETA}: 1.0}}
cases:
  plain: {{}}
  none: {{{ALPHA}: 0}}
  both: {{{ALPHA}: 0, {BETA}: 2.0}}
"""


@pytest.fixture
def grid(tmp_path) -> Path:
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path / "grid.yaml"


def test_rows_are_cases_in_the_order_of_their_file_and_a_run_is_of_the_case_that_says_most(run, cells, grid):
    runs = [
        run(1, 83.0, {ALPHA: 0.0, BETA: 2.0}), run(1, 82.0, {ALPHA: 0.0}), run(1, 81.0), run(2, 83.0),
        run(1, 70.0, {ALPHA: 0.0}, shots=16),
    ]  # fmt: skip
    table = compare(runs, cases=read_cases(grid))
    assert [row.labels[-1] for row in table.rows] == ["zero-shot", "plain", "none", "both"]
    shown = cells(compare(runs, intervals=False, cases=read_cases(grid)))
    assert shown["plain",]["4"] == "82.00"
    assert shown["none",] == {"4": "82.00", "16": "70.00"}
    assert shown["both",]["4"] == "83.00"


def test_runs_of_no_case_are_left_out_and_counted(run, grid, caplog):
    found = name_cases([run(1), run(1, config={BETA: 3.0})], read_cases(grid))
    assert [record["case"] for record in found] == ["plain"]
    assert "1 of 2 runs are of no case and are left out" in caplog.text
    with pytest.raises(UserError, match="no run belongs to one of the cases plain, none, both"):
        name_cases([run(1, config={BETA: 3.0})], read_cases(grid))


def test_runs_of_several_methods_are_refused(run, grid):
    with pytest.raises(UserError, match=r"of several methods \(HeGraphAdapter, TaskRes\)"):
        name_cases([run(1), run(1, trainer="TaskRes", variant="", shots=1)], read_cases(grid))


def test_the_command_takes_the_grid_and_files_of_records(run, grid, tmp_path, capsys):
    collect([run(1, 81.0), run(1, 82.0, {ALPHA: 0.0})], tmp_path / "runs.jsonl")
    assert main(["compare", "--cases", str(grid), str(tmp_path / "runs.jsonl")]) == 0
    assert "| none | **82.00** |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "cases: [a]", "cases: {a: 1}", "shots: 1", "a: b: c", "cases: {}\nset: [1]", None]
)
def test_a_file_without_cases_is_refused(tmp_path, text):
    path = tmp_path / "grid.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="cannot read|names no cases|is damaged|set must hold"):
        read_cases(path)

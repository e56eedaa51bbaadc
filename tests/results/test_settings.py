"""Names of settings, the runs of a sweep, and rows that are the cases of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.hegraph.results.comparison import compare, name_cases, read_cases, shortest_names, split_sweeps
from trainers.hegraph.utils.errors import UserError

ALPHA, BETA = "TRAINER.X.ALPHA", "TRAINER.X.BETA"


def test_the_shortest_name_is_the_end_of_one_key_only():
    keys = {"OPTIM.LR", "X.LR", "X.VISUAL_LR", "X.ALPHA"}
    assert shortest_names(sorted(keys), keys) == {
        "OPTIM.LR": "OPTIM.LR", "X.LR": "X.LR", "X.VISUAL_LR": "VISUAL_LR", "X.ALPHA": "ALPHA",
    }  # fmt: skip


def test_a_sweep_of_one_key_has_its_values_as_columns_in_the_order_of_numbers(run, cells):
    sweep = [run(seed, 80 + a, {ALPHA: a}) for a in (10.0, 0.0, 2.0) for seed in (1, 2)]
    table = compare(sweep, "setting")
    assert [*table.columns] == ["ALPHA=0", "ALPHA=2", "ALPHA=10"]
    assert cells(table)["HeGraphAdapter",]["ALPHA=10"] == "90.00 ± 0.00"
    assert "where not named" not in table.caption
    assert [*compare(sweep[:2], "setting").columns.values()] == ["one setting"]


def test_sweeps_around_one_point_are_named_by_what_is_unusual(run):
    runs = [run(1), run(1, config={ALPHA: 0.5}), run(1, config={BETA: 2.0}), run(1, config={BETA: "auto"})]
    table = compare(runs, "setting")
    assert [*table.columns] == ["ALPHA=0.1, BETA=1", "ALPHA=0.5", "BETA=2", "BETA=auto"]
    assert "where not named, ALPHA=0.1, BETA=1" in table.caption


def test_a_key_that_only_some_runs_have_is_a_difference(run):
    assert compare([run(1), run(1, config={"NEW": True})], "setting").columns.keys() == {"NEW=True", "NEW=None"}


def test_methods_that_are_not_swept_are_left_out_and_it_is_said(run, cells, caplog):
    table = compare([run(1), run(1, config={ALPHA: 0.5}), run(1, trainer="APE", variant="")], "setting")
    assert ("APE",) not in cells(table)
    assert "1 of 3 runs" in caplog.text


def test_the_runs_of_a_sweep_stand_apart_and_those_of_its_middle_count_once_and_for_both(run):
    middle, again = run(1), run(1, adapter_from="trained/seed1")
    low, high, other = run(1, config={ALPHA: 0.0}), run(1, config={ALPHA: 0.5}), run(1, config={BETA: 2.0})
    tip = run(1, trainer="TipAdapter", variant="")
    plain, sweeps = split_sweeps([again, low, middle, run(2), high, other, tip])
    assert plain == [middle, run(2), tip]
    assert sweeps == [[low, middle, run(2), high, other]]


# Cases


@pytest.fixture
def grid(tmp_path) -> Path:
    lines = (
        f"set: {{{BETA}: 1.0}}",
        "cases:",
        "  plain: {}",
        f"  1: {{{ALPHA}: 0}}",
        f"  both: {{{ALPHA}: 0, {BETA}: 2.0}}",
    )
    (tmp_path / "grid.yaml").write_text("\n".join(lines))
    return tmp_path / "grid.yaml"


def test_rows_are_cases_in_the_order_of_their_file_and_a_run_is_of_the_case_that_says_most(run, cells, grid):
    runs = [
        run(1, 83.0, {ALPHA: 0.0, BETA: 2.0}), run(1, 82.0, {ALPHA: 0.0}), run(1, 81.0), run(2, 83.0),
        run(1, 70.0, {ALPHA: 0.0}, shots=16),
    ]  # fmt: skip
    table = compare(runs, intervals=False, cases=read_cases(grid))
    assert [labels[-1] for labels in table.labels] == ["zero-shot", "plain", "1", "both"]
    shown = cells(table)
    assert shown["plain",]["4"] == "82.00"
    assert shown["1",] == {"4": "82.00", "16": "70.00"}
    assert shown["both",]["4"] == "83.00"


def test_runs_of_no_case_are_left_out_and_counted(run, grid, caplog):
    found = name_cases([run(1), run(1, config={BETA: 3.0})], read_cases(grid))
    assert [record["case"] for record in found] == ["plain"]
    assert "1 of 2 runs are of no case and are left out" in caplog.text
    with pytest.raises(UserError, match="no run belongs to one of the cases plain, 1, both"):
        name_cases([run(1, config={BETA: 3.0})], read_cases(grid))


@pytest.mark.parametrize("text", ["", "cases: {a: 1}", "cases: {}", "cases: {a: {}}\nset: [1]"])
def test_a_file_without_cases_is_refused(tmp_path, text):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UserError, match=r"grid\.yaml names no cases"):
        read_cases(tmp_path / "grid.yaml")

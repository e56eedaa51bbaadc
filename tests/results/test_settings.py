"""Names of settings, and the runs of a sweep."""

from __future__ import annotations

from trainers.hegraph.results.comparison import compare, split_sweeps
from trainers.hegraph.results.scores import shortest_names

ALPHA, BETA = "TRAINER.X.ALPHA", "TRAINER.X.BETA"


def test_the_shortest_name_is_the_end_of_one_key_only():
    keys = {"OPTIM.LR", "X.LR", "X.VISUAL_LR", "X.ALPHA"}
    assert shortest_names(sorted(keys), keys) == {
        "OPTIM.LR": "OPTIM.LR", "X.LR": "X.LR", "X.VISUAL_LR": "VISUAL_LR", "X.ALPHA": "ALPHA",
    }  # fmt: skip


def test_a_sweep_of_one_key_has_its_values_as_columns_in_the_order_of_numbers(run, cells):
    sweep = [run(seed, 80 + a, {ALPHA: a}) for a in (10.0, 0.0, 2.0) for seed in (1, 2)]
    table = compare(sweep, "setting")
    assert table.columns == ["ALPHA=0", "ALPHA=2", "ALPHA=10"]
    assert cells(table)["HeGraphAdapter",]["ALPHA=10"] == "90.00 ± 0.00"


def test_sweeps_around_one_point_are_named_by_what_is_unusual(run):
    runs = [run(1), run(1, config={ALPHA: 0.5}), run(1, config={BETA: 2.0})]
    table = compare(runs, "setting")
    assert table.columns == ["ALPHA=0.1, BETA=1", "ALPHA=0.5", "BETA=2"]
    assert "where not named, ALPHA=0.1, BETA=1" in table.caption


def test_a_key_that_only_some_runs_have_is_a_difference(run):
    assert compare([run(1), run(1, config={"NEW": True})], "setting").columns == ["NEW=True", "NEW=None"]


def test_methods_that_are_not_swept_are_left_out_and_it_is_said(run, cells, caplog):
    table = compare([run(1), run(1, config={ALPHA: 0.5}), run(1, trainer="APE", variant="")], "setting")
    assert ("APE",) not in cells(table)
    assert "1 of 3 runs" in caplog.text


def test_a_run_in_which_several_keys_vary_is_beside_the_usual_ones(run, cells):
    usual, one = run(1), run(1, config={ALPHA: 0.5})
    both = run(1, config={ALPHA: 0.5, BETA: 2.0})
    plain, sweeps = split_sweeps([usual, run(2), one, both])
    assert plain == [usual, run(2)] and sweeps == [[usual, run(2), one], [usual, run(2), both]]
    plain, sweeps = split_sweeps([usual, run(2), both])  # no run has one of the two values alone
    assert sweeps == [[usual, run(2), both]]


def test_sweeps_are_split_by_key_and_their_middle_counts_once(run):
    middle, again = run(1), run(1, adapter_from="trained/seed1")
    low, high, other = run(1, config={ALPHA: 0.0}), run(1, config={ALPHA: 0.5}), run(1, config={BETA: 2.0})
    both = run(1, config={ALPHA: 0.5, BETA: 2.0})
    tip = run(1, trainer="TipAdapter", variant="")
    plain, sweeps = split_sweeps([again, low, middle, high, other, both, tip])
    assert plain == [middle, tip]
    assert sweeps == [[low, middle, high], [middle, other], [middle, both]]

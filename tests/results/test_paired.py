"""Paired differences by hand: which images count, what is paired with what, and what an interval excludes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from trainers.hegraph.results.__main__ import main
from trainers.hegraph.results.paired import TEST, Difference, difference, paired_table, read_runs
from trainers.hegraph.results.records import write_predictions, write_record
from trainers.hegraph.utils.errors import UserError


def correct(**rows: tuple[str, ...]) -> pd.DataFrame:
    """Runs of each data set, one a seed from 1 on, that got those images right whose digit is 1, such as in "110"."""
    return pd.DataFrame([
        dict.fromkeys(TEST, "") | {"dataset": name, "seed": seed, "correct": np.array([c == "1" for c in row])}
        for name, of_seeds in rows.items()
        for seed, row in enumerate(of_seeds, 1)
    ])  # fmt: skip


def test_the_difference_is_the_mean_over_images_and_seeds_then_over_data_sets():
    ours = correct(pets=("1110", "1100"), cars=("11", "10"))
    # pets: (1 + 1) of 8 more = 25 points; cars: 1 of 4 more = 25 points, or none
    assert difference(ours, correct(pets=("1010", "0100"), cars=("10", "10"))).mean == pytest.approx(25)
    assert difference(ours, correct(cars=("11", "10"), pets=("1010", "0100"))).mean == pytest.approx(12.5)


def test_an_interval_holds_what_resampling_the_images_may_give():
    found = difference(correct(pets=("1" * 60 + "0" * 40,)), correct(pets=("1" * 50 + "0" * 50,)))
    # 10 of 100 images differ, all one way: a binomial share of 0.1, whose 95% interval is 10 +- 1.96 * 3
    assert found.mean == pytest.approx(10)
    assert found.low == pytest.approx(4.1, abs=1.2) and found.high == pytest.approx(15.9, abs=1.2)
    assert str(found).startswith("**+10.00 (")


def test_methods_that_answer_alike_differ_by_nothing():
    same = correct(pets=("110", "010"))
    assert difference(same, same) == Difference(0.0, 0.0, 0.0)
    assert str(Difference(0.0, 0.0, 0.0)) == "+0.00 (0.00 to 0.00)"
    assert str(Difference(-2.0, -3.0, -1.0)) == "**-2.00 (-3.00 to -1.00)**"


def test_an_end_of_the_interval_that_is_0_but_for_rounding_excludes_nothing():
    same = "1" * 93
    ours = correct(pets=("1111" + "1" + "00" + same, "1111" + "1" + "11" + same, "1111" + "1" + "11" + same))
    theirs = correct(pets=("0000" + "0" + "11" + same, "0000" + "1" + "11" + same, "0000" + "1" + "11" + same))
    found = difference(ours, theirs)
    assert found.mean == pytest.approx(4 + 1 / 3 - 2 / 3)  # of 100 images four in every seed, and in one of three 1 - 2
    assert found.low == 0.0  # a sum of thirds, which came to 4e-16
    assert str(found).startswith("+3.67 (0.00 to ")


def test_only_runs_of_the_same_data_sets_and_seeds_are_paired():
    ours, both = correct(pets=("110", "010")), correct(pets=("110", "010"), cars=("1", "1"))
    assert difference(ours, ours[:0]) is None
    assert difference(ours, correct(pets=("110",))) is None
    assert difference(ours, both) is None and difference(both, ours) is None
    assert difference(ours, ours.assign(rule="same classes")) is None


@pytest.fixture
def finish(tmp_path, run):
    """Function of a folder, predictions, the class of all test images, and changes of the record: a finished run."""

    def make(folder: str, predicted: list[int], label: int = 0, **changes) -> Path:
        path = tmp_path / folder
        write_record(path, run(**changes))
        write_predictions(path, torch.tensor(predicted), torch.full((len(predicted),), label), ["a", "b"])
        return path

    return make


def test_the_table_has_a_row_for_every_other_method_and_a_column_for_each_number_of_shots(finish, run, tmp_path):
    for shots in (1, 4):
        finish(f"ours/{shots}", [0, 0, 0, 1], shots=shots)
    finish("theirs/1", [0, 0, 1, 1], trainer="TaskRes", variant="", shots=1)
    write_record(finish("untested", [0]), run(trainer="GDA") | {"accuracy": None})
    caption, _, heads, _, row = paired_table([tmp_path]).splitlines()
    assert "mean of Toy;" in caption
    assert heads == "| HeGraphAdapter minus | 1 | 4 |"
    assert row.startswith("| TaskRes | +25.00 (0.00 to ") and row.endswith(" |  |")
    *_, row = paired_table([tmp_path], of="TaskRes").splitlines()
    assert row.startswith("| HeGraphAdapter | -25.00 (-")


@pytest.mark.parametrize("other", [{"predicted": [0, 0, 0]}, {"predicted": [0, 0], "label": 1}])
def test_runs_with_other_test_images_are_refused(finish, tmp_path, other):
    finish("one", [0, 0])
    finish("two", **other, trainer="TaskRes", variant="")
    with pytest.raises(UserError, match="not tested on the same images as another run on Toy with 4 shots"):
        read_runs([tmp_path])


def test_a_model_that_was_trained_elsewhere_is_not_paired_and_a_run_counts_once(finish, tmp_path):
    finish("ours", [0, 0])
    finish("theirs", [0, 1], trainer="TaskRes", variant="", rule="same classes", trained_on="Other")
    assert paired_table([tmp_path]).splitlines()[-1] == "| TaskRes |  |"
    finish("again", [0, 0])
    with pytest.raises(UserError, match="Toy, HeGraphAdapter, 4 shots: seed 1 is there more than once"):
        read_runs([tmp_path])


def test_mistakes_on_the_command_line_are_one_line(finish, tmp_path, capsys):
    finish("one", [0, 0], trainer="TaskRes", variant="")
    (tmp_path / "records.jsonl").write_text("{}\n")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((str(tmp_path), "--of", "TaskRess"), "did you mean 'TaskRes'"),
        ((str(tmp_path / "records.jsonl"),), "Not a directory"),
        ((str(tmp_path / "empty"),), "no run with test images"),
    ):
        assert main(["paired", *arguments]) == 2
        assert message in capsys.readouterr().err

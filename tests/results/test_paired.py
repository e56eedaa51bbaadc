"""Paired differences by hand: which images count, what is paired with what, and what an interval excludes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.hegraph.results.__main__ import main
from trainers.hegraph.results.paired import Difference, difference, paired_table, read_runs
from trainers.hegraph.results.records import write_predictions, write_record
from trainers.hegraph.utils.errors import UserError


def correct(*rows: str) -> dict[int, np.ndarray]:
    """Seed -> which images are right, from rows such as "110"."""
    return {seed: np.array([c == "1" for c in row]) for seed, row in enumerate(rows, 1)}


PETS, CARS = ("pets", "b", "", ""), ("cars", "b", "", "")


def test_the_difference_is_the_mean_over_images_and_seeds_then_over_data_sets():
    ours = {PETS: correct("1110", "1100"), CARS: correct("11", "10")}
    theirs = {PETS: correct("1010", "0100"), CARS: correct("10", "10")}
    # pets: (1 + 1) of 8 more = 25 points; cars: 1 of 4 more = 25 points
    assert difference(ours, theirs).mean == pytest.approx(25)
    theirs[CARS] = correct("11", "10")
    assert difference(ours, theirs).mean == pytest.approx(12.5)


def test_an_interval_holds_what_resampling_the_images_may_give():
    ours, theirs = {PETS: correct("1" * 60 + "0" * 40)}, {PETS: correct("1" * 50 + "0" * 50)}
    found = difference(ours, theirs)
    # 10 of 100 images differ, all one way: a binomial share of 0.1, whose 95% interval is 10 +- 1.96 * 3
    assert found.mean == pytest.approx(10)
    assert found.low == pytest.approx(4.1, abs=1.2) and found.high == pytest.approx(15.9, abs=1.2)
    assert str(found).startswith("**+10.00 (")


def test_methods_that_answer_alike_differ_by_nothing():
    same = {PETS: correct("110", "010")}
    assert difference(same, same) == Difference(0.0, 0.0, 0.0)
    assert str(Difference(0.0, 0.0, 0.0)) == "+0.00 (0.00 to 0.00)"


def test_an_end_of_the_interval_that_is_0_but_for_rounding_excludes_nothing():
    same = "1" * 93
    ours = {PETS: correct("1111" + "1" + "00" + same, "1111" + "1" + "11" + same, "1111" + "1" + "11" + same)}
    theirs = {PETS: correct("0000" + "0" + "11" + same, "0000" + "1" + "11" + same, "0000" + "1" + "11" + same)}
    found = difference(ours, theirs)
    assert found.mean == pytest.approx(4 + 1 / 3 - 2 / 3)  # of 100 images four in every seed, and in one of three 1 - 2
    assert found.low == 0.0  # a sum of thirds, which came to 4e-16
    assert str(found).startswith("+3.67 (0.00 to ")


def test_only_runs_of_the_same_data_sets_and_seeds_are_paired():
    ours = {PETS: correct("110", "010")}
    assert difference(ours, {}) is None
    assert difference(ours, {PETS: correct("110")}) is None
    assert difference(ours, ours | {CARS: correct("1", "1")}) is None


@pytest.fixture
def finish(tmp_path, run):
    """Function of a folder, predictions, the class of all test images, and changes of the record: a finished run."""

    def make(folder: str, predicted: list[int], label: int = 0, **changes) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        write_record(path, run(**changes))
        write_predictions(path, torch.tensor(predicted), torch.full((len(predicted),), label), ["a", "b"])
        return path

    return make


def test_the_table_has_a_row_for_every_other_method_and_a_column_for_each_number_of_shots(finish, tmp_path):
    for shots in (1, 4):
        finish(f"ours/{shots}", [0, 0, 0, 1], shots=shots)
    finish("theirs/1", [0, 0, 1, 1], trainer="TaskRes", variant="", shots=1)
    *_, heads, _, row = paired_table([tmp_path]).splitlines()
    assert heads == "| HeGraphAdapter minus | 1 | 4 |"
    assert row.startswith("| TaskRes | +25.00 (0.00 to ") and row.endswith(" |  |")
    *_, row = paired_table([tmp_path], of="TaskRes").splitlines()
    assert row.startswith("| HeGraphAdapter | -25.00 (-")


@pytest.mark.parametrize("other", [{"predicted": [0, 0, 0]}, {"predicted": [0, 0], "label": 1}])
@pytest.mark.parametrize("changes", [{"seed": 2}, {"trainer": "TaskRes", "variant": ""}])
def test_runs_with_other_test_images_are_refused(finish, tmp_path, other, changes):
    finish("one", [0, 0])
    finish("two", **other, **changes)
    with pytest.raises(UserError, match="not tested on the same images as another run on Toy with 4 shots"):
        read_runs([tmp_path])


def test_a_model_that_was_trained_elsewhere_is_not_paired_with_one_that_was_trained_here(finish, tmp_path):
    finish("ours", [0, 0])
    finish("theirs", [0, 1], trainer="TaskRes", variant="", rule="same classes", trained_on="Other")
    *_, row = paired_table([tmp_path]).splitlines()
    assert row == "| TaskRes |  |"


def test_mistakes_on_the_command_line_are_one_line(finish, tmp_path, capsys):
    finish("one", [0, 0], trainer="TaskRes", variant="")
    (tmp_path / "records.jsonl").write_text("{}\n")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((str(tmp_path), "--of", "TaskRess"), "did you mean 'TaskRes'"),
        ((str(tmp_path / "records.jsonl"),), "is no folder; predictions are in output folders"),
        ((str(tmp_path / "empty"),), "no run with test images"),
    ):
        assert main(["paired", *arguments]) == 2
        assert message in capsys.readouterr().err

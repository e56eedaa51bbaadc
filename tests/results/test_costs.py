"""What training takes, how honest probabilities are, what a threshold keeps: means by hand, and what is left out."""

from __future__ import annotations

import pytest

from trainers.hegraph.results.comparison import calibration_table, complexity
from trainers.hegraph.results.figures import reliability_diagrams
from trainers.hegraph.utils.errors import UserError


@pytest.fixture
def timed(run):
    """Function of a seed, seconds of training and other keys: the record of a run with its times."""

    def make(seed: int = 1, seconds: float = 6.0, epochs: int = 3, **changes) -> dict:
        measured = {"seconds": {"training": seconds}, "epochs": epochs, "num_parameters": 1000, "peak_memory_mb": 500.0}
        return run(seed, **measured | {"device": "cpu", "threads": 2} | changes)

    return make


def test_seconds_per_epoch_are_means_over_seeds_and_a_tested_adapter_took_no_training(timed, cells):
    table = complexity([timed(1, 6.0), timed(2, 9.0), timed(3, 0.0, 0, adapter_from="x")])
    assert cells(table) == {
        ("HeGraphAdapter",): {
            "epochs": "3", "seconds per epoch": "2.500", "seconds in all": "7.50", "trained parameters": "1000",
            "peak memory (MB)": "500",
        }
    }  # fmt: skip
    assert table.caption == "What training takes, means over seeds, cpu, 2 threads, Toy, mini/mini, 4 shots"
    assert not any("best" in text for row in table.shown("best {}".format) for text in row)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"trainer": "TipAdapter", "epochs": 0}, ("", "", "6.00")),
        ({"trainer": "LinearProbe", "selected_on": "val"}, ("3", "", "6.00")),
    ],
)
def test_a_method_without_epochs_and_one_that_chose_on_val_have_no_seconds_per_epoch(timed, cells, changes, shown):
    [row] = cells(complexity([timed(variant="", **changes)])).values()
    assert tuple(row.values())[:3] == shown


def test_a_number_that_not_all_runs_of_a_row_have_is_not_shown(timed, cells):
    [row] = cells(complexity([timed(1), timed(2, peak_memory_mb=None)])).values()
    assert (row["peak memory (MB)"], row["epochs"]) == ("", "3")


def test_times_of_different_machines_and_records_without_times_are_refused(timed, run):
    with pytest.raises(UserError, match="different machines"):
        complexity([timed(1), timed(2, threads=8)])
    with pytest.raises(UserError, match="collect"):
        complexity([run()])


# Calibration


@pytest.fixture
def calibrated(run, calibration):
    """Function of a seed, the ECE before and after, a temperature and other keys: the record of a run."""
    return lambda seed=1, before=9.0, after=2.0, temperature=0.7, **changes: run(
        seed, calibration=calibration(before, after, temperature), **changes
    )


def test_scores_are_means_over_seeds_and_zero_shot_clip_stands_beside(calibrated, run, cells):
    untold = calibrated(3)
    untold["calibration"]["zero_shot"] = None
    records = [calibrated(1, 9.0, 2.0, 0.7), calibrated(2, 7.0, 3.0, 0.9), run(2), untold]
    table = cells(calibration_table(records))
    assert table["HeGraphAdapter",] == {
        "accuracy": "80.00", "macro F1": "79.00", "NLL": "0.500", "NLL at T": "0.400", "Brier": "0.300",
        "Brier at T": "0.250", "ECE": "8.00", "ECE at T": "2.50", "T": "0.80", "kept": "",
    }  # fmt: skip
    assert table["zero-shot",]["ECE"] == "5.00" and table["zero-shot",]["accuracy"] == "50.00"
    assert table["zero-shot",]["ECE at T"] == table["zero-shot",]["T"] == ""
    own = calibrated(1, 5.0, 1.5, 0.8, trainer="ZeroShot", variant="")
    row = cells(calibration_table([records[0], own]))["zero-shot",]
    assert (row["ECE"], row["ECE at T"], row["T"]) == ("5.00", "1.50", "0.80")
    with pytest.raises(UserError, match="no record holds calibration"):
        calibration_table(records[2:])
    own["calibration"]["zero_shot"]["accuracy"] = 51.0
    with pytest.raises(UserError, match=r"zero-shot, accuracy: the runs disagree about .* \(50.00 and 51.00\)"):
        calibration_table([records[0], own | {"trainer": "TaskRes"}])


def test_a_diagram_puts_the_bins_of_all_runs_together_and_leaves_out_those_of_few_images(calibrated):
    other = calibrated(2)
    bins = other["calibration"]["after"]["bins"]
    bins["count"][8], bins["accuracy"][8] = 10, 90.0
    for part in ("before", "after"):
        other["calibration"][part]["bins"]["count"][3] = 0
    [axis] = reliability_diagrams([calibrated(1), other]).axes
    assert axis.get_title() == "HeGraphAdapter"
    _, before, after = (line.get_xydata().tolist() for line in axis.get_lines())
    assert before == [[60.0, 50.0], [90.0, 100.0]]
    assert after == [[60.0, (30 * 50.0 + 10 * 90.0) / 40], [90.0, 100.0]]


def test_what_thresholds_keep_is_averaged_over_seeds_if_all_tell_it(calibrated, cells):
    records = [calibrated(seed, rejection={"keep": 0.95, "kept": kept}) for seed, kept in ((1, 94.0), (2, 97.0))]
    assert cells(calibration_table(records))["HeGraphAdapter",]["kept"] == "95.50"
    assert cells(calibration_table([*records, calibrated(3)]))["HeGraphAdapter",]["kept"] == ""
    records = [calibrated(1, after=2.0), calibrated(1, after=4.0, dataset="Other")]
    assert cells(calibration_table(records))["mean of 2", "HeGraphAdapter"]["ECE at T"] == "3.00"

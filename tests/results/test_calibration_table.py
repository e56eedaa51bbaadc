"""The table of calibration and the reliability diagrams: means by hand, and what is left out."""

from __future__ import annotations

import json

import pytest

from trainers.hegraph.results.__main__ import main
from trainers.hegraph.results.costs import calibration_table
from trainers.hegraph.results.figures import reliability_diagrams
from trainers.hegraph.results.records import write_record
from trainers.hegraph.utils.errors import UserError


def scores(ece: float, **changes: float) -> dict:
    """What a record says before or after calibration: 30 images of 60 % confidence, 10 of 90 %, of 40 bins' worth."""
    count, confidence, accuracy = [0] * 15, [0.0] * 15, [0.0] * 15
    for where, number, sure, right in ((8, 30, 60.0, 50.0), (13, 10, 90.0, 100.0)):
        count[where], confidence[where], accuracy[where] = number, sure, right
    bins = {"count": count, "confidence": confidence, "accuracy": accuracy}
    return {"accuracy": 80.0, "macro_f1": 79.0, "nll": 0.5, "brier": 0.3, "ece": ece, "bins": bins} | changes


@pytest.fixture
def calibrated(run):
    """Function of a seed, the ECE before and after, a temperature and other keys: the record of a run."""

    def make(seed: int = 1, before: float = 9.0, after: float = 2.0, temperature: float = 0.7, **changes) -> dict:
        zero_shot = {key: value for key, value in scores(5.0, accuracy=50.0).items() if key != "bins"}
        found = {"temperature": temperature, "fitted_on": "val", "num_images": 20, "zero_shot": zero_shot}
        found |= {"before": scores(before), "after": scores(after, nll=0.4, brier=0.25)}
        return run(seed, calibration=found, **changes)

    return make


def test_scores_are_means_over_seeds_and_zero_shot_clip_stands_beside(calibrated, cells):
    table = cells(calibration_table([calibrated(1, 9.0, 2.0, 0.7), calibrated(2, 7.0, 3.0, 0.9)]))
    assert table["HeGraphAdapter",] == {
        "accuracy": "80.00", "macro F1": "79.00", "NLL": "0.500", "NLL at T": "0.400", "Brier": "0.300",
        "Brier at T": "0.250", "ECE": "8.00", "ECE at T": "2.50", "T": "0.80",
    }  # fmt: skip
    assert table["zero-shot",]["ECE"] == "5.00" and table["zero-shot",]["accuracy"] == "50.00"
    assert table["zero-shot",]["ECE at T"] == table["zero-shot",]["T"] == ""


def test_runs_that_disagree_about_zero_shot_clip_are_refused(calibrated):
    other = calibrated(1, trainer="TaskRes", variant="")
    other["calibration"]["zero_shot"] |= {"accuracy": 51.0}
    with pytest.raises(UserError, match=r"zero-shot, accuracy: the runs disagree about .* \(50.00 and 51.00\)"):
        calibration_table([calibrated(1), other])


def test_several_data_sets_are_shown_as_their_mean_by_shots(calibrated, cells):
    records = [calibrated(1, 9.0, 2.0), calibrated(1, 5.0, 4.0, dataset="Other")]
    records += [calibrated(1, 3.0, 1.0, shots=16), calibrated(1, 1.0, 0.5, shots=16, dataset="Other")]
    table = cells(calibration_table(records))
    assert {labels: row["ECE at T"] for labels, row in table.items() if labels[-1] == "HeGraphAdapter"} == {
        ("4", "HeGraphAdapter"): "3.00",
        ("16", "HeGraphAdapter"): "0.75",
    }


def test_shots_that_one_data_set_alone_has_are_shown_too(calibrated, cells):
    records = [calibrated(1), calibrated(1, dataset="Other"), calibrated(1, 3.0, 1.0, shots=16)]
    table = cells(calibration_table(records))
    assert table["Toy", "16", "HeGraphAdapter"]["ECE at T"] == "1.00"
    assert table["mean of 2", "4", "HeGraphAdapter"]["ECE at T"] == "2.00"


def test_the_run_of_zero_shot_clip_gives_its_row_a_temperature(calibrated, cells):
    own = calibrated(1, 5.0, 1.5, 0.8, trainer="ZeroShot", variant="")
    table = cells(calibration_table([calibrated(1), own]))
    assert (table["zero-shot",]["ECE"], table["zero-shot",]["ECE at T"], table["zero-shot",]["T"]) == (
        "5.00", "1.50", "0.80",
    )  # fmt: skip


def test_records_of_earlier_versions_are_left_out_and_alone_are_an_error(calibrated, run, cells):
    assert list(cells(calibration_table([run(2), calibrated(1)]))) == [("zero-shot",), ("HeGraphAdapter",)]
    with pytest.raises(UserError, match="no record holds calibration"):
        calibration_table([run(1)])


def test_a_diagram_puts_the_bins_of_all_runs_together(calibrated):
    other = calibrated(2)
    bins = other["calibration"]["after"]["bins"]
    bins["count"][8], bins["accuracy"][8] = 10, 90.0
    figure = reliability_diagrams([calibrated(1), other])
    (axis,) = figure.axes
    assert axis.get_title() == "HeGraphAdapter"
    _, before, after = (line.get_xydata().tolist() for line in axis.get_lines())
    assert before == [[60.0, 50.0], [90.0, 100.0]]
    assert after == [[60.0, (30 * 50.0 + 10 * 90.0) / 40], [90.0, 100.0]]


def test_the_command_prints_the_table_and_draws_if_asked(calibrated, tmp_path, capsys):
    write_record(tmp_path / "run", calibrated(1))
    assert main(["calibration", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "| HeGraphAdapter | 80.00 | 79.00 |" in out and "ECE at T" in out
    assert main(["calibration", str(tmp_path / "run"), "--out", str(tmp_path / "fig"), "--format", "csv"]) == 0
    assert "fig.png" in capsys.readouterr().out
    assert (tmp_path / "fig.png").stat().st_size and b"<svg" in (tmp_path / "fig.svg").read_bytes()


SPOILED = {
    "a number": lambda found: 1e308,
    "without a temperature": lambda found: {key: found[key] for key in ("before", "after", "zero_shot")},
    "a temperature of 0": lambda found: found | {"temperature": 0.0},
    "without one of three": lambda found: found | {"before": None},
    "without a score": lambda found: found | {"zero_shot": {"nll": 1.0}},
    "fewer bins": lambda found: found | {"after": found["after"] | {"bins": {"count": [1]}}},
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_calibration_of_another_form_is_one_line(calibrated, tmp_path, monkeypatch, capsys, spoil):
    monkeypatch.chdir(tmp_path)
    record = calibrated(1)
    record["calibration"] = spoil(record["calibration"])
    (tmp_path / "all.jsonl").write_text(json.dumps(record))
    assert main(["calibration", "all.jsonl"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: all.jsonl, line 1 is no record: calibration")
    assert error.count("\n") == 1

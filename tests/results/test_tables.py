"""Records and the table: what counts as complete, and numbers by hand."""

from __future__ import annotations

import json
import logging

import pytest

from trainers.hegraph.results import (
    MEASURED,
    REQUIRED,
    collect,
    find_records,
    grid,
    main,
    mean_and_spread,
    read_record,
    table,
    write_record,
)
from trainers.hegraph.utils.errors import UserError


def record(seed: int = 1, accuracy: float = 80.0, **changes) -> dict:
    return {
        "dataset": "Toy", "trainer": "HeGraphAdapter", "variant": "full", "backbone": "mini/mini", "shots": 4,
        "seed": seed, "accuracy": accuracy, "accuracy_text": accuracy - 1, "accuracy_zero_shot": 50.0, "macro_f1": 79.0,
        "num_test": 123, "selected_on": "last_step", "selected": {}, "run_id": f"{seed}", "config_hash": "c",
    } | changes  # fmt: skip


def numbers(text: str, row: str) -> list[str]:
    """The cells of a row of a table."""
    [line] = [line for line in text.splitlines() if line.split()[:1] == [row]]
    return line.split()[1:]


def test_mean_and_spread_by_hand():
    # squared distances from 3: 4 + 1 + 0 + 1 + 4 = 10; 10 / (5 - 1) = 2.5
    mean, spread = mean_and_spread([1, 2, 3, 4, 5])
    assert mean == 3
    assert spread == pytest.approx(2.5**0.5)


def test_one_value_has_no_spread():
    assert mean_and_spread([7.0]) == (7.0, None)


def test_a_written_record_is_read_back(tmp_path):
    write_record(tmp_path / "new", record())
    assert read_record(tmp_path / "new") == record()
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["result.json"]


def test_no_file_is_no_record_and_no_warning(tmp_path, caplog):
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "nowhere") is None
    assert not caplog.records


def spoil(content: str) -> list[str]:
    return ["", content[: len(content) // 2], "[]", "null", "{}", '"text"', "\x00" * len(content)]


@pytest.mark.parametrize("index", range(7))
def test_a_damaged_record_counts_as_not_done_and_says_so(tmp_path, caplog, index):
    (tmp_path / "result.json").write_text(spoil(json.dumps(record()))[index])
    with caplog.at_level(logging.WARNING):
        assert read_record(tmp_path) is None
    [warning] = [r.getMessage() for r in caplog.records]
    assert "counts as not done" in warning
    assert str(tmp_path) in warning


def test_a_record_that_is_no_text_counts_as_not_done(tmp_path, caplog):
    (tmp_path / "result.json").write_bytes(bytes(range(128, 256)))
    assert read_record(tmp_path) is None
    assert "counts as not done" in caplog.text


@pytest.mark.parametrize("key", REQUIRED)
def test_a_record_without_a_required_key_counts_as_not_done_and_names_it(tmp_path, caplog, key):
    incomplete = record()
    del incomplete[key]
    write_record(tmp_path, incomplete)
    assert read_record(tmp_path) is None
    assert key in caplog.text


def test_records_are_found_at_any_depth_and_damaged_ones_left_out(tmp_path):
    write_record(tmp_path / "a" / "seed1", record(1))
    write_record(tmp_path / "a" / "deep" / "seed2", record(2))
    (tmp_path / "a" / "seed3").mkdir()
    (tmp_path / "a" / "seed3" / "result.json").write_text("{")
    write_record(tmp_path / "b", record(4))
    assert sorted(r["seed"] for r in find_records([tmp_path / "a", tmp_path / "b"])) == [1, 2, 4]


def test_a_record_below_two_of_the_folders_counts_once(tmp_path):
    write_record(tmp_path / "a", record(1))
    assert len(find_records([tmp_path, tmp_path / "a"])) == 1


def test_no_record_is_an_error_that_names_the_folders(tmp_path):
    with pytest.raises(UserError, match=r"no result\.json below .*a, .*b"):
        find_records([tmp_path / "a", tmp_path / "b"])


def test_the_table_holds_mean_deviation_and_every_seed():
    text = table([record(2, 84.0), record(1, 80.0), record(3, 85.0)])
    assert "Toy, mini/mini, 4 shots, accuracy on 123 test images (%)" in text
    assert "seeds 1, 2, 3" in text
    # mean 83; squared distances 9 + 1 + 4 = 14; 14 / 2 = 7
    assert numbers(text, "HeGraphAdapter") == ["83.00", "2.65", "80.00", "84.00", "85.00"]
    assert numbers(text, "HeGraphAdapter(T)") == ["82.00", "2.65", "79.00", "83.00", "84.00"]
    assert numbers(text, "zero-shot") == ["50.00", "0.00", "50.00", "50.00", "50.00"]


def test_one_seed_has_a_dash_for_its_deviation():
    assert numbers(table([record()]), "HeGraphAdapter") == ["80.00", "-", "80.00"]


def test_a_variant_has_a_row_of_its_own_name():
    text = table([record(variant="T-N", accuracy=61.0)])
    assert numbers(text, "HeGraphAdapter(T-N)") == ["61.00", "-", "61.00"]
    assert "HeGraphAdapter(T)" not in text


@pytest.mark.parametrize(
    ("key", "other"), [("dataset", "Toys"), ("backbone", "RN50"), ("shots", 8), ("variant", "T"), ("trainer", "CoOp")]
)
def test_experiments_are_not_averaged_with_one_another(key, other):
    text = table([record(1, 80.0), record(1, 20.0, **{key: other})])
    assert text.count("accuracy on") == 2
    assert " 80.00 " in text
    assert " 20.00 " in text


def test_shot_counts_are_in_the_order_of_numbers():
    text = table([record(shots=16), record(shots=2), record(shots=8)])
    assert text.index(" 2 shots") < text.index(" 8 shots") < text.index(" 16 shots")


def test_runs_of_different_configurations_are_refused():
    with pytest.raises(UserError, match=r"Toy, 4 shots: .* 2 different configurations"):
        table([record(1), record(2, config_hash="other")])


def test_two_records_of_one_seed_are_refused():
    with pytest.raises(UserError, match="seed 1"):
        table([record(1, 80.0, run_id="a"), record(1, 90.0, run_id="b")])


# Grids and collected records


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, its ruler left out."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [line for line in lines if set("".join(line)) != {"-"}]


def test_a_grid_holds_means_over_seeds_by_shots_and_their_mean_over_data_sets():
    records = [
        record(1, 60.0, shots=16),
        record(1, 20.0, shots=4),
        record(2, 30.0, shots=4),
        record(1, 80.0, shots=16, dataset="Zoo"),
        record(1, 50.0, shots=4, dataset="Zoo"),
    ]
    assert rows(grid(records)) == [
        ["data set", "method", "4", "16"],
        ["Toy", "zero-shot", "50.00", "50.00"],
        ["Toy", "HeGraphAdapter(T)", "24.00", "59.00"],
        ["Toy", "HeGraphAdapter", "25.00", "60.00"],
        ["Zoo", "zero-shot", "50.00", "50.00"],
        ["Zoo", "HeGraphAdapter(T)", "49.00", "79.00"],
        ["Zoo", "HeGraphAdapter", "50.00", "80.00"],
        ["mean of 2", "zero-shot", "50.00", "50.00"],
        ["mean of 2", "HeGraphAdapter(T)", "36.50", "69.00"],
        ["mean of 2", "HeGraphAdapter", "37.50", "70.00"],
    ]


def test_a_grid_leaves_the_cell_of_a_missing_experiment_and_its_mean_empty():
    text = grid([record(1, 60.0), record(1, 70.0, shots=16), record(1, 80.0, dataset="Zoo")])
    assert ["Zoo", "HeGraphAdapter", "80.00", ""] in rows(text)
    assert ["mean of 2", "HeGraphAdapter", "70.00", ""] in rows(text)


def test_an_accuracy_of_zero_is_a_number_in_a_grid():
    assert ["Toy", "HeGraphAdapter", "0.00"] in rows(grid([record(1, 0.0)]))


def test_variants_have_rows_of_their_own_in_the_papers_order():
    text = grid([record(variant=v) for v in ("full", "T-P", "base", "T-N")])
    names = ["zero-shot", "(base)", "(T-N)", "(T-P)", "(T)", ""]
    assert [row[1].removeprefix("HeGraphAdapter") for row in rows(text)[1:]] == names


@pytest.mark.parametrize("change", [{"config_hash": "other"}, {"backbone": "RN50"}])
def test_a_grid_does_not_mix_configurations_or_backbones(change):
    with pytest.raises(UserError, match="Toy"):
        grid([record(1), record(2, **change)])


def test_collected_records_make_the_same_grid(tmp_path):
    records = [record(1, 60.0), record(2, 70.0, seconds={"training": 1.0}, peak_memory_mb=5.0)]
    collect(records, tmp_path / "all.jsonl")
    assert grid(find_records([tmp_path / "all.jsonl"])) == grid(records)


def test_collected_records_say_what_was_chosen_but_not_every_candidate(tmp_path):
    of_a_method = {"ALPHA": {"value": 2.0, "candidates": [[1.0, 50.0], [2.0, 60.0]]}, "BETA": {"value": 1.0}}
    ours = {"keys": ["A"], "value": [1], "candidates": [[[1], 50.0]]}
    collect([record(1, selected=of_a_method), record(2, selected=ours)], tmp_path / "all.jsonl")
    chosen = [json.loads(line)["selected"] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert chosen == [{"ALPHA": {"value": 2.0}, "BETA": {"value": 1.0}}, {"keys": ["A"], "value": [1]}]


def test_collected_records_hold_nothing_that_was_measured(tmp_path):
    collect([record(1, **dict.fromkeys(MEASURED, 1))], tmp_path / "all.jsonl")
    [line] = (tmp_path / "all.jsonl").read_text().splitlines()
    assert not set(MEASURED) & set(json.loads(line))
    assert set(REQUIRED) <= set(json.loads(line))


@pytest.mark.parametrize("content", ["not json\n", "[1]\n", "3\n", '{"dataset": "Toy"}\n'])
def test_a_file_that_holds_something_else_than_records_is_named(tmp_path, content):
    (tmp_path / "all.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"all\.jsonl"):
        find_records([tmp_path / "all.jsonl"])


# The command


def test_the_command_prints_the_table(tmp_path, capsys):
    write_record(tmp_path, record())
    assert main(["table", str(tmp_path)]) == 0
    assert capsys.readouterr().out == table([record()])


def test_the_command_collects_and_prints_a_grid(tmp_path, capsys):
    write_record(tmp_path / "runs", record())
    assert main(["collect", str(tmp_path / "runs"), "--out", str(tmp_path / "all.jsonl")]) == 0
    assert main(["grid", str(tmp_path / "all.jsonl")]) == 0
    assert capsys.readouterr().out == grid([record()])


def test_the_command_without_records_exits_with_2_and_one_line(tmp_path, capsys):
    assert main(["table", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no result.json")
    assert error.count("\n") == 1

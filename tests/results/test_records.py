"""Records: which count as complete, where they are found, and what is kept when they are collected."""

from __future__ import annotations

import json
import logging

import pytest

from trainers.hegraph.results.records import MEASURED, REQUIRED, collect, find_records, read_record, write_record
from trainers.hegraph.utils.errors import UserError


def record(seed: int = 1, accuracy: float = 80.0, **changes) -> dict:
    return {
        "dataset": "Toy", "trainer": "HeGraphAdapter", "variant": "full", "backbone": "mini/mini", "shots": 4,
        "seed": seed, "accuracy": accuracy, "accuracy_text": accuracy - 1, "accuracy_zero_shot": 50.0, "macro_f1": 79.0,
        "num_test": 123, "selected_on": "last_step", "selected": {}, "run_id": f"{seed}", "config_hash": "c",
    } | changes  # fmt: skip


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


@pytest.mark.parametrize("key", REQUIRED)
def test_a_record_without_a_required_key_counts_as_not_done_and_names_it(tmp_path, caplog, key):
    incomplete = record()
    del incomplete[key]
    write_record(tmp_path, incomplete)
    assert read_record(tmp_path) is None
    assert key in caplog.text


@pytest.mark.parametrize("wrong", ["fast", -1.0, None, 1e13])
def test_a_record_whose_time_is_none_counts_as_not_done_and_names_it(tmp_path, caplog, wrong):
    write_record(tmp_path, record(seconds={"training": 1.0, "features": wrong}))
    assert read_record(tmp_path) is None
    assert "seconds.features" in caplog.text


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


# Collected records


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


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_the_end_of_a_line_ends_a_collected_record(tmp_path, end):
    records = [record(1, dataset="a\u2028b\u0085c"), record(2)]
    text = "".join(f"{json.dumps(r, ensure_ascii=False)}{end}" for r in records)
    (tmp_path / "all.jsonl").write_bytes(text.encode())
    assert [r["dataset"] for r in find_records([tmp_path / "all.jsonl"])] == ["a\u2028b\u0085c", "Toy"]


@pytest.mark.parametrize("content", ["not json\n", "[1]\n", "3\n", '{"dataset": "Toy"}\n'])
def test_a_file_that_holds_something_else_than_records_is_named(tmp_path, content):
    (tmp_path / "all.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"all\.jsonl"):
        find_records([tmp_path / "all.jsonl"])


# Importing

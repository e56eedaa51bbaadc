"""Records: which count as complete, where they are found, what is kept when they are collected; the files beside."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from trainers.hegraph.results.figures import mean_distance, read_text_nodes
from trainers.hegraph.results.records import (
    MEASURED,
    TEXT_NODES,
    collect,
    find_records,
    find_runs,
    read_record,
    write_beside,
    write_record,
)
from trainers.hegraph.utils.errors import UserError


def test_a_written_record_is_read_back_and_no_file_is_none_without_a_warning(tmp_path, run, caplog):
    write_record(tmp_path / "new", run())
    assert read_record(tmp_path / "new") == run()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["result.json"]
    assert read_record(tmp_path) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"accuracy": 101.0}, "accuracy"),
        ({"targets": {"Zoo": {"accuracy": "high"}}}, "targets.Zoo.accuracy"),
        ({"rejection": {"kept": float("nan")}}, "NaN"),
        (None, "Field required"),
    ],
)
def test_a_damaged_record_counts_as_not_done_and_in_a_file_of_records_its_line_is_named(
    tmp_path, run, caplog, changes, named
):
    record = run()
    damaged = json.dumps({} if changes is None else record | changes)
    (tmp_path / "result.json").write_text(damaged)
    assert read_record(tmp_path) is None
    [warning] = [record.getMessage() for record in caplog.records]
    assert str(tmp_path) in warning and named in warning and "counts as not done" in warning
    (tmp_path / "all.jsonl").write_text(f"{json.dumps(record)}\n{damaged}\n")
    with pytest.raises(UserError, match=r"all\.jsonl.*line 2"):
        find_records([tmp_path / "all.jsonl"])


def test_records_are_found_at_any_depth_once_and_damaged_ones_left_out(tmp_path, run):
    write_record(tmp_path / "a" / "seed1", run(1))
    write_record(tmp_path / "a" / "deep" / "seed2", run(2))
    write_record(tmp_path / "b", run(4))
    (tmp_path / "a" / "seed3").mkdir()
    (tmp_path / "a" / "seed3" / "result.json").write_text("{")
    collect([run(5)], tmp_path / "all.jsonl")
    sources = [tmp_path / "a", tmp_path, tmp_path / "nowhere", tmp_path / "all.jsonl"]
    assert sorted(record["seed"] for record in find_records(sources)) == [1, 2, 4, 5]
    assert list(find_runs([tmp_path / "b"])) == [(tmp_path / "b").resolve()]
    with pytest.raises(UserError, match="no complete record below .*seed3"):
        find_records([tmp_path / "a" / "seed3"])


def test_collected_records_hold_what_was_chosen_but_neither_candidates_nor_what_was_measured(tmp_path, run):
    of_a_method = {"ALPHA": {"value": 2.0, "candidates": [[1.0, 50.0], [2.0, 60.0]]}, "BETA": {"value": 1.0}}
    ours = {"keys": ["A"], "value": [1], "candidates": [[[1], 50.0]]}
    measured = {"seconds": {"training": 1.0}, "peak_memory_mb": 1.0, "finished_at": "now"}
    collect([run(1, selected=of_a_method, **measured), run(2, selected=ours)], tmp_path / "all.jsonl")
    one, two = (json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines())
    assert one["selected"] == {"ALPHA": {"value": 2.0}, "BETA": {"value": 1.0}}
    assert two["selected"] == {"keys": ["A"], "value": [1]}
    assert set(measured) == set(MEASURED) and set(one) == set(run(1))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_the_end_of_a_line_ends_a_collected_record(tmp_path, run, end):
    records = [run(1, dataset="a\u2028b\u0085c"), run(2)]
    text = "".join(f"{json.dumps(record, ensure_ascii=False)}{end}" for record in records)
    (tmp_path / "all.jsonl").write_bytes(text.encode())
    assert [record["dataset"] for record in find_records([tmp_path / "all.jsonl"])] == ["a\u2028b\u0085c", "Toy"]


# The files beside a record


def test_text_nodes_are_read_back_with_unit_norm_and_their_distance_is_over_pairs(tmp_path):
    before = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    write_beside(tmp_path / TEXT_NODES, ["a", "b", "\u00e7"], before=before, after=torch.ones(3, 2))
    before, after, classnames = read_text_nodes(tmp_path)
    # of (1, 0), (0, 1), (-1, 0): sqrt 2, 2, sqrt 2
    assert mean_distance(before) == pytest.approx((2 + 2 * 2**0.5) / 3)
    assert mean_distance(after) == pytest.approx(0, abs=1e-3)
    assert classnames == ["a", "b", "\u00e7"]


@pytest.mark.parametrize(
    ("after", "names"),
    [(torch.ones(3, 2), ["a"]), (torch.ones(3, 4), list("abc")), (torch.full((3, 2), torch.nan), list("abc"))],
)
def test_nodes_that_fit_neither_each_other_nor_their_classes_are_refused(tmp_path, after, names):
    save_file({"before": torch.ones(3, 2), "after": after}, tmp_path / TEXT_NODES, {"classnames": json.dumps(names)})
    with pytest.raises(UserError, match=r"text_nodes\.safetensors"):
        read_text_nodes(tmp_path)


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot read .*text_nodes"):
        read_text_nodes(tmp_path)
    (tmp_path / TEXT_NODES).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is damaged or not text nodes"):
        read_text_nodes(tmp_path)

"""Records of runs, files with tensors, and the command `results`."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from trainers.hegraph.commands.results import main
from trainers.hegraph.results.comparison import base_to_new, compare, complexity
from trainers.hegraph.results.figures import mean_distance, read_text_nodes
from trainers.hegraph.results.records import (
    MEASURED,
    PREDICTIONS,
    TEXT_NODES,
    collect,
    find_records,
    find_runs,
    read_record,
    write_record,
    write_tensors_with_classes,
)
from trainers.hegraph.results.scores import read_quotes
from trainers.hegraph.results.table import TABLE_WRITERS
from trainers.hegraph.utils.errors import UserError


def test_record_round_trip(tmp_path, run, caplog):
    write_record(tmp_path / "new", run())
    assert read_record(tmp_path / "new") == run()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["result.json"]
    assert read_record(tmp_path) is None and not caplog.records


@pytest.mark.parametrize(("changes", "named"), [
    ({"accuracy": 101.0}, "accuracy"),
    ({"targets": {"Zoo": {"accuracy": "high"}}}, "targets.Zoo.accuracy"),
    ({"rejection": {"accepted": float("nan")}}, "not JSON"), (None, "Field required"),
])  # fmt: skip
def test_damaged_records_are_ignored_or_rejected(tmp_path, run, caplog, changes, named):
    record = run()
    damaged = json.dumps({} if changes is None else record | changes)
    (tmp_path / "result.json").write_text(damaged)
    assert read_record(tmp_path) is None
    [warning] = [record.getMessage() for record in caplog.records]
    assert str(tmp_path) in warning and named in warning and "counts as not done" in warning
    (tmp_path / "all.jsonl").write_text(f"{json.dumps(record)}\n{damaged}\n")
    with pytest.raises(UserError, match=r"all\.jsonl.*line 2"):
        find_records([tmp_path / "all.jsonl"])


def test_records_are_found_once_at_any_depth(tmp_path, run):
    write_record(tmp_path / "a" / "seed1", run(1))
    write_record(tmp_path / "a" / "deep" / "seed2", run(2))
    write_record(tmp_path / "b", run(4))
    (tmp_path / "a" / "seed3").mkdir()
    (tmp_path / "a" / "seed3" / "result.json").write_text("{")
    collect([run(5)], tmp_path / "all.jsonl")
    sources = [tmp_path / "a", tmp_path, tmp_path / "all.jsonl"]
    assert sorted(record["seed"] for record in find_records(sources)) == [1, 2, 4, 5]
    assert list(find_runs([tmp_path / "b"])) == [(tmp_path / "b").resolve()]
    with pytest.raises(UserError, match="no complete record below .*seed3"):
        find_records([tmp_path / "a" / "seed3"])


def test_collect_drops_candidates_and_measurements(tmp_path, run):
    of_a_method = {"ALPHA": {"value": 2.0, "candidates": [[1.0, 50.0], [2.0, 60.0]]}, "BETA": {"value": 1.0}}
    ours = {"keys": ["A"], "value": [1], "candidates": [[[1], 50.0]]}
    collect([run(1, selected=of_a_method, finished_at="now"), run(2, selected=ours)], tmp_path / "all.jsonl")
    one, two = (json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines())
    assert one["selected"] == {"ALPHA": {"value": 2.0}, "BETA": {"value": 1.0}}
    assert two["selected"] == {"keys": ["A"], "value": [1]}
    assert set(MEASURED) == {"seconds", "peak_memory_mb", "finished_at"} and set(one) == set(run(1)) - set(MEASURED)


def test_only_newlines_separate_collected_records(tmp_path, run):
    for end in ("\n", "\r\n"):
        lines = (json.dumps(run(1, dataset=name), ensure_ascii=False) + end for name in ("a\u2028b\u0085c", "Toy"))
        (tmp_path / "all.jsonl").write_bytes("".join(lines).encode())
        assert [record["dataset"] for record in find_records([tmp_path / "all.jsonl"])] == ["a\u2028b\u0085c", "Toy"]


# Files with tensors


def test_text_nodes_round_trip_with_unit_norm(tmp_path):
    before = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    write_tensors_with_classes(tmp_path / TEXT_NODES, ["a", "b", "\u00e7"], before=before, after=torch.ones(3, 2))
    before, after, classnames = read_text_nodes(tmp_path)
    # of (1, 0), (0, 1), (-1, 0): sqrt 2, 2, sqrt 2
    assert mean_distance(before) == pytest.approx((2 + 2 * 2**0.5) / 3)
    assert (mean_distance(after), classnames) == (pytest.approx(0, abs=1e-3), ["a", "b", "\u00e7"])


@pytest.mark.parametrize(("after", "names", "message"), [
    (2 * torch.ones(3, 2), "a", "nodes .* of 1 classes"), (torch.ones(3, 4), "abc", r"after \[3, 4\]"),
    (torch.full((3, 2), torch.nan), "abc", "NaN"),
])  # fmt: skip
def test_damaged_text_nodes_are_rejected(tmp_path, after, names, message):
    tensors = {"before": torch.ones(3, 2), "after": after}
    save_file(tensors, tmp_path / TEXT_NODES, {"classnames": json.dumps(list(names))})
    with pytest.raises(UserError, match=rf"text_nodes\.safetensors.*{message}"):
        read_text_nodes(tmp_path)


# The command line


@pytest.fixture
def folder(run, tmp_path) -> Path:
    for seed, accuracy in ((1, 80.0), (2, 84.0)):
        there = run(seed, accuracy, dataset="dtd", backbone="RN50/openai", shots=16)
        write_record(tmp_path / "runs" / f"seed{seed}", there)
    return tmp_path / "runs"


@pytest.mark.parametrize("kind", TABLE_WRITERS)
def test_compare_prints_the_table_in_every_format(folder, capsys, kind):
    assert main(["compare", str(folder), "--format", kind]) == 0
    assert capsys.readouterr().out == TABLE_WRITERS[kind](compare(find_records([folder])))


def test_flags_reach_the_tables(folder, run, tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text("cases: {plain: {}}")
    new = {"accuracy": 40.0, "accuracy_zero_shot": 40.0, "num_test": 9, "num_classes": 3, "rule": "other classes"}
    base = [run(1, 80.0, {"DATASET.SUBSAMPLE_CLASSES": "base"}, targets={"Toy:new": new})]
    collect(base, tmp_path / "base.jsonl")
    flags = ["--by", "dataset", "--no-interval", "--quote", "2", "--cases", str(tmp_path / "grid.yaml")]
    runs, quotes = find_records([folder]), read_quotes("2")
    for arguments, table in (
        (["compare", str(folder), *flags], compare(runs, "dataset", quotes, False, {"plain": {}})),
        (["base-to-new", str(tmp_path / "base.jsonl")], base_to_new(base)),
        (["complexity", str(folder)], complexity(runs)),
    ):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert out == TABLE_WRITERS["markdown"](table)
        assert ("| HeGraphAdapter (quoted) | 69.15 |" in out) == ("--quote" in arguments)


def test_calibration_prints_the_table_and_draws_if_asked(calibrated, tmp_path, capsys):
    write_record(tmp_path / "run", calibrated())
    stem = tmp_path / "new" / "v1.5 figure"
    assert main(["calibration", str(tmp_path / "run"), "--out", str(stem)]) == 0
    out = capsys.readouterr().out
    assert "| HeGraphAdapter | 80.00 | 79.00 |" in out and out.endswith(f"wrote {stem}.svg\n")
    assert Image.open(f"{stem}.png").format == "PNG" and b"<svg" in Path(f"{stem}.svg").read_bytes()


def test_figures_of_one_run_print_their_numbers(tmp_path, capsys):
    write_tensors_with_classes(tmp_path / TEXT_NODES, ["a", "b", "c"], before=torch.eye(3), after=torch.ones(3, 3))
    predicted, labels = torch.tensor([1, 1, 1]), torch.tensor([0, 0, 1])
    write_tensors_with_classes(tmp_path / PREDICTIONS, ["a", "b"], predicted=predicted, labels=labels)
    for command, first in (
        ("tsne", "mean inter-class distance: before 1.4142, after 0.0000"),
        ("confusion", "a and b: 2 (a as b 2, b as a 0)"),
    ):
        stem = tmp_path / "figures" / command
        assert main([command, str(tmp_path), "--out", str(stem)]) == 0
        assert capsys.readouterr().out.splitlines() == [first, f"wrote {stem}.png", f"wrote {stem}.svg"]


def test_report_and_collect_write_their_file(folder, tmp_path, capsys):
    for command, out in (("report", tmp_path / "page.html"), ("collect", tmp_path / "all.jsonl")):
        assert main([command, str(folder), "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"wrote {out}\n"
    assert "82.00" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [json.loads(line)["seed"] for line in (tmp_path / "all.jsonl").read_text().splitlines()] == [1, 2]


def test_runs_without_test_images_are_skipped(folder, run, caplog, capsys):
    write_record(folder / "seed3", run(3) | {"accuracy": None})
    assert main(["compare", str(folder)]) == 0 and "1 of 3 runs are without test images" in caplog.text
    assert "n = 2 seeds" in capsys.readouterr().out and main(["compare", str(folder / "seed3")]) == 2


@pytest.mark.parametrize(("command", "words"), [
    ("compare {}/runs {}/nowhere", "/nowhere does not exist; name output folders"),
    ("compare {}/empty", "no complete record below"), ("collect {}/nowhere.jsonl --out {}/x.jsonl", "does not exist"),
    ("paired {}/runs {}/nowhere", "/nowhere does not exist"),
    ("compare {}/runs --by shots --by dataset", "argument --by: expected once, got it twice"),
    ("paired {}/runs --groups a --groups b", "argument --groups: expected once, with all values after it"),
    ("compare {}/runs --quote 4", "the paper has no number"),
    ("complexity {}/runs --quote 5", "the paper has no number"),
    ("compare {}/runs --format text --no-interval", "leave out --no-interval"),
    ("rejection {}/nowhere --features {}/bank", "/nowhere does not exist"),
    ("compare {}/runs --by target", "TARGET_DATASETS"),
    ("paired {}/runs/seed1/result.json", "result.json is a file"), ("paired {}/empty", "no run with test images"),
    ("rejection {}/empty --features {}/bank", "no finished run with a model below"),
    ("curves {}/runs --out {}/runs/seed1/result.json/x", "cannot write"), ("tsne {}/empty --out {}/x", "cannot read"),
])  # fmt: skip
def test_mistake_is_one_line_and_writes_nothing(folder, tmp_path, cli_error, command, words):
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert words in cli_error("results", *command.replace("{}", str(tmp_path)).split())
    assert sorted(tmp_path.rglob("*")) == before

"""`features list` and `features prune`: the cached features of earlier runs."""

import json
import os
import time
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main as run
from trainers.hegraph.commands.features import main

DAY = 86400
SCORES = {"accuracy": 50.0, "num_test": 2}  # of a target


@pytest.fixture
def cache(tmp_path) -> Path:
    """Cached features: an old large part, a new small one and old chunks; beside them a file of another program."""
    folder = tmp_path / "features"
    files = {
        "Pets/mini/train-0123456789abcdef.safetensors": (2_000_000, 40),
        "Pets/mini/text-fedcba9876543210.safetensors": (1_000, 1),
        "Pets/mini/test-0123456789abcdef.chunks/batches-of-4/0-4.safetensors": (3_000, 40),
        "Pets/bank.safetensors": (5_000, 40),
    }
    for name, (size, days) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (0, time.time() - days * DAY))
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_list_shows_cached_features_only(cache, capsys):
    assert main(["list", str(cache)]) == 0
    *rows, total = capsys.readouterr().out.splitlines()
    assert [row.split()[:4] for row in rows] == [
        ["0.0", "MB", "40.0", "days"], ["0.0", "MB", "1.0", "days"], ["2.0", "MB", "40.0", "days"],
    ]  # fmt: skip
    assert total == "3 files, 2.0 MB"


def test_prune_without_yes_deletes_nothing(cache, capsys):
    before = names(cache)
    assert main(["prune", str(cache), "--unused", "30"]) == 0
    assert "to delete: 2 files, 2.0 MB; add --yes to delete them" in capsys.readouterr().out
    assert names(cache) == before


def test_prune_deletes_by_age(cache):
    assert main(["prune", str(cache), "--unused", "30", "--yes"]) == 0
    assert names(cache) == {"text-fedcba9876543210.safetensors", "bank.safetensors"}


def test_prune_deletes_by_size(cache):
    assert main(["prune", str(cache), "--larger", "1", "--yes"]) == 0
    assert names(cache) == {"text-fedcba9876543210.safetensors", "bank.safetensors", "0-4.safetensors"}


DIGITS = ["--dataset-config-file", "digits", "--config-file", "mini", "--shots", "1", "--seed", "1"]
FEATURES = "TRAINER.HEGRAPHADAPTER.FEATURES"


@pytest.mark.slow
def test_prune_keeps_what_runs_below_read(cache, tmp_path):
    keys = [f"{FEATURES}.DIR", str(cache), f"{FEATURES}.VIEWS", "1", "TRAINER.HEGRAPHADAPTER.VARIANT", "base"]
    assert run([*DIGITS, "--output-dir", str(tmp_path / "runs/digits"), *keys]) == 0
    of_run = {path for path in cache.rglob("*.safetensors") if path.relative_to(cache).parts[0] == "Digits"}
    assert len(of_run) == 4  # train, val, test and text
    assert main(["prune", str(cache), "--not-used-below", str(tmp_path / "runs"), "--yes"]) == 0
    assert {*cache.rglob("*.safetensors")} == {*of_run, cache / "Pets/bank.safetensors"}


def record_of(folder: Path, **changes) -> None:
    """Write the record of a run, with the values of `changes`."""
    values = {
        "dataset": "Pets", "trainer": "ZeroShot", "variant": "", "backbone": "mini", "shots": 1, "seed": 1,
        "accuracy": 50.0, "macro_f1": 50.0, "accuracy_text": None, "accuracy_zero_shot": 50.0, "num_test": 2,
        "selected_on": "val", "selected": {}, "run_id": "0",
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(values | changes))


@pytest.mark.parametrize(("changes", "kept"), [
    ({}, 3), ({"dataset": "Cats"}, 0), ({"backbone": "other/mini"}, 0),
    ({"dataset": "Cats", "targets": {"Pets:new": SCORES}}, 3),
])  # fmt: skip
def test_prune_keeps_data_sets_and_backbones_of_records(cache, tmp_path, changes, kept):
    record_of(tmp_path / "runs/one", **changes)
    assert main(["prune", str(cache), "--not-used-below", str(tmp_path / "runs"), "--yes"]) == 0
    assert len(names(cache)) == kept + 1  # and the file of another program


def test_prune_without_any_record_is_refused(cache, tmp_path, capsys):
    before = names(cache)
    empty = tmp_path / "empty"
    empty.mkdir()
    for runs, problem in ((empty, "no complete record below"), (tmp_path / "none", "does not exist")):
        assert main(["prune", str(cache), "--not-used-below", str(runs), "--yes"]) == 2
        assert problem in capsys.readouterr().err
        assert names(cache) == before


def test_missing_folder_is_refused(tmp_path, capsys):
    assert main(["prune", str(tmp_path / "none")]) == 2
    assert "none is no folder" in capsys.readouterr().err

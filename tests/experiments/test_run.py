"""One experiment through the command line: what it writes, what it repeats, what it refuses."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import ImageChops
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.experiments import adapter as adapter_module
from trainers.hegraph.experiments import evaluation
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.thumbnails import read_thumbnail
from trainers.hegraph.results.records import MEASURED, REQUIRED

ROOT = Path(__file__).parents[2]
NODE = "TRAINER.HEGRAPHADAPTER"
QUICK = ("OPTIM.MAX_EPOCH", "20", f"{NODE}.MIN_STEPS", "0", "OPTIM.LR", "0.01")
MINI = str(ROOT / "configs" / "trainers" / "HeGraphAdapter" / "mini.yaml")
DIGITS = str(ROOT / "configs" / "datasets" / "digits.yaml")


@pytest.fixture
def train(tiny_bank, tmp_path) -> Callable[..., int]:
    """Runs the command on the tiny bank: 4 shots, seed 1; returns the exit code."""

    def command(out: str = "out", *opts: str, flags: tuple[str, ...] = (), bank: Path | None = None) -> int:
        arguments = ["--features", str(bank or tiny_bank), "--shots", "4", "--seed", "1"]
        return main([*arguments, "--output-dir", str(tmp_path / out), *flags, *QUICK, *opts])

    return command


@pytest.fixture
def record(tmp_path) -> Callable[..., dict]:
    return lambda out="out": json.loads((tmp_path / out / "result.json").read_text())


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Runs a command that must exit with 2 after exactly one line; returns the line."""

    def check(command: Callable[[], int], *words: str) -> str:
        capsys.readouterr()
        assert command() == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert error.endswith("\n")
        assert "Traceback" not in error
        for word in words:
            assert word in error
        return error

    return check


def unmeasured(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in MEASURED}


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def same_adapter(one: Path, other: Path) -> bool:
    a, b = load_file(one / "adapter.safetensors"), load_file(other / "adapter.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rewrite(bank: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None], name: str = "b") -> Path:
    """A copy of a bank file with its tensors and metadata changed in place by `change`."""
    with safe_open(bank, framework="pt") as file:
        tensors, metadata = {n: file.get_tensor(n) for n in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, metadata)
    path = bank.parent / f"{name}.safetensors"
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata)
    return path


# What a run writes


def test_a_run_leaves_its_record_its_split_its_adapter_and_its_model(train, tmp_path):
    assert train() == 0
    names = ["adapter.safetensors", "predictions.safetensors", "result.json", "split.json", "text_nodes.safetensors"]
    model = ["model/README.md", "model/config.json", "model/model.safetensors"]
    assert sorted(files(tmp_path / "out")) == sorted([*names, *model])


def test_a_record_holds_every_key_of_the_architecture(train, record):
    train()
    found = record()
    assert set(REQUIRED) <= set(found)
    expected = {
        "dataset": "Tiny", "trainer": "HeGraphAdapter", "variant": "full", "backbone": "none", "shots": 4, "seed": 1,
        "num_test": 40, "selected_on": "last_step",
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    for key in ("accuracy", "accuracy_text", "accuracy_zero_shot", "macro_f1"):
        assert 0 <= found[key] <= 100
    assert found["num_parameters"] > 0
    assert found["peak_memory_mb"] > 10
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert found["versions"]["torch"] == torch.__version__
    assert len(found["config_hash"]) == len(found["split_hash"]) == 64
    assert "git_commit" in found


def test_the_zero_shot_accuracy_is_the_one_counted_by_hand(train, record, tiny_bank):
    train()
    bank = load_bank(Path(tiny_bank))
    right = (bank.test_features @ bank.text_positive.t()).argmax(dim=1) == bank.test_labels
    assert record()["accuracy_zero_shot"] == 100 * right.sum().item() / 40


def test_training_beats_zero_shot_on_the_tiny_bank(train, record):
    train()
    assert record()["accuracy"] > record()["accuracy_zero_shot"]


def test_the_split_holds_the_rows_that_the_protocol_selects(train, tmp_path, tiny_bank):
    train()
    bank, rng = load_bank(Path(tiny_bank)), random.Random(1)
    expected = {}
    for split, shots in (("train", 4), ("val", 3)):
        labels = getattr(bank, f"{split}_labels").tolist()
        rows = []
        for label in dict.fromkeys(labels):
            of_class = [row for row, other in enumerate(labels) if other == label]
            rows += rng.sample(of_class, shots) if len(of_class) >= min(shots, 4) else of_class
        expected[split] = [[row, labels[row], bank.classnames[labels[row]]] for row in rows]
    found = json.loads((tmp_path / "out" / "split.json").read_text())
    assert found["train"] == expected["train"]
    assert sorted(found["val"]) == sorted(expected["val"])


def test_the_result_is_printed_in_one_line(train, record, capsys):
    train()
    [line] = capsys.readouterr().out.splitlines()
    for key in ("accuracy", "accuracy_text", "accuracy_zero_shot"):
        assert f"{record()[key]:.2f}" in line


# Repeating


def test_running_twice_into_two_folders_gives_identical_records(train, record, tmp_path):
    train("one")
    torch.manual_seed(99)
    random.seed(99)
    train("two")
    assert unmeasured(record("one")) == unmeasured(record("two"))
    assert same_adapter(tmp_path / "one", tmp_path / "two")


def test_xavier_weights_are_the_same_in_every_run_of_a_seed(train, tmp_path):
    for out in ("one", "two"):
        train(out, f"{NODE}.WEIGHT_INIT", "xavier")
        torch.rand(1)
    assert same_adapter(tmp_path / "one", tmp_path / "two")


def test_a_complete_run_is_skipped_and_said_so(train, tmp_path, caplog, monkeypatch):
    train()
    before = files(tmp_path / "out")
    monkeypatch.setattr(adapter_module, "train_to_end", lambda *_: pytest.fail("trained again"))
    with caplog.at_level(logging.INFO):
        assert train() == 0
    assert f"{tmp_path / 'out'} holds the complete result of this run: skipped" in caplog.text
    assert files(tmp_path / "out") == before


def test_keys_that_do_not_shape_a_run_do_not_make_it_another_one(train, monkeypatch):
    train()
    monkeypatch.setattr(adapter_module, "train_to_end", lambda *_: pytest.fail("trained again"))
    assert train("out", "TRAIN.CHECKPOINT_FREQ", "7", "TRAIN.PRINT_FREQ", "1", "DATALOADER.NUM_WORKERS", "1") == 0


@pytest.mark.parametrize(
    "opts", [("OPTIM.LR", "0.02"), (f"{NODE}.VARIANT", "T"), ("SEED", "2"), ("DATASET.NUM_SHOTS", "2")], ids=str
)
def test_other_settings_in_the_same_folder_are_refused_and_nothing_is_lost(train, refused, tmp_path, opts):
    train()
    before = files(tmp_path / "out")
    refused(lambda: train("out", *opts), str(tmp_path / "out"), "other settings")
    assert files(tmp_path / "out") == before


def test_another_bank_in_the_same_folder_is_refused(train, refused, tiny_bank, tmp_path):
    train()
    other = rewrite(Path(tiny_bank), lambda tensors, _: tensors["train_features"].neg_())
    refused(lambda: train(bank=other), str(tmp_path / "out"), "other settings or data")


@pytest.mark.parametrize("content", ["", "{", "{}"])
def test_a_damaged_record_is_made_anew(train, record, tmp_path, content):
    train()
    before = record()
    (tmp_path / "out" / "result.json").write_text(content)
    assert train() == 0
    assert unmeasured(record()) == unmeasured(before)


# Seeds


def test_seed_0_is_a_seed(train, record, tmp_path):
    for out in ("one", "two"):
        assert train(out, "SEED", "0") == 0
    assert record("one")["seed"] == 0
    assert unmeasured(record("one")) == unmeasured(record("two"))
    train("other")
    assert record("one")["split_hash"] != record("other")["split_hash"]


def test_an_unseeded_run_records_the_seed_that_repeats_it(train, record, tmp_path):
    train("one", "SEED", "-1")
    train("two", "SEED", "-1")
    seeds = [record(out)["seed"] for out in ("one", "two")]
    assert seeds[0] != seeds[1]
    train("again", "SEED", str(seeds[0]))
    assert unmeasured(record("again")) == unmeasured(record("one"))
    assert same_adapter(tmp_path / "one", tmp_path / "again")


# Variants


@pytest.mark.parametrize("variant", ["base", "T-N", "T-P", "T", "full"])
def test_every_variant_runs(train, record, variant):
    assert train("out", f"{NODE}.VARIANT", variant) == 0
    assert record()["variant"] == variant
    assert (record()["num_parameters"] == 0) == (variant == "base")


def test_base_is_zero_shot_clip(train, record):
    train("out", f"{NODE}.VARIANT", "base")
    assert record()["accuracy"] == record()["accuracy_text"] == record()["accuracy_zero_shot"]
    assert record()["steps"] == 0


def test_the_text_classifier_of_a_full_run_is_variant_t(train, record, tmp_path):
    train("full")
    train("T", f"{NODE}.VARIANT", "T")
    assert record("full")["accuracy_text"] == record("T")["accuracy"]
    full, text = (load_file(tmp_path / out / "adapter.safetensors") for out in ("full", "T"))
    assert all(torch.equal(full[name], text[name]) for name in text)


def test_learnt_meta_path_weights_are_in_the_adapter_and_have_moved(train, tmp_path):
    assert train("out", f"{NODE}.LEARN_METAPATH", "True", f"{NODE}.TEXT_W", "True") == 0
    weights = {n: t.item() for n, t in load_file(tmp_path / "out" / "adapter.safetensors").items() if "metapath" in n}
    assert len(weights) == 5
    assert all(min(abs(value - start) for start in (0.06, 0.24, 0.2, 0.1)) > 1e-5 for value in weights.values())


# Test data stays out of training


def test_what_is_tested_on_does_not_change_what_is_trained(train, record, tmp_path, tiny_bank):
    def replace_test(tensors, _):
        tensors["test_features"] = -tensors["test_features"][:25]
        tensors["test_labels"] = tensors["test_labels"][:25].flip(0)

    train("one")
    train("two", bank=rewrite(Path(tiny_bank), replace_test))
    assert record("one")["accuracy"] != record("two")["accuracy"]
    assert same_adapter(tmp_path / "one", tmp_path / "two")


def test_fit_is_given_no_test_features(train, monkeypatch, tiny_bank):
    seen: list[torch.Tensor] = []

    def collect(thing: object) -> None:
        if isinstance(thing, torch.Tensor):
            seen.append(thing)
        elif isinstance(thing, torch.nn.Module):
            seen.extend([*thing.parameters(), *thing.buffers()])
        elif isinstance(thing, dict):
            for value in thing.values():
                collect(value)
        elif hasattr(thing, "__dict__"):
            collect(vars(thing))

    real = adapter_module.train_to_end
    monkeypatch.setattr(
        adapter_module, "train_to_end", lambda *arguments: (list(map(collect, arguments)), real(*arguments))[1]
    )
    train()
    test = load_bank(Path(tiny_bank)).test_features
    rows = [tensor.detach().reshape(-1, 16) for tensor in seen if tensor.shape[-1:] == (16,)]
    assert len(rows) > 5
    assert not any(torch.cdist(test, row).min() < 1e-4 for row in rows)


# Testing a trained adapter


def test_eval_only_repeats_the_accuracy_of_training(train, record, tmp_path):
    train()
    assert train("again", flags=("--eval-only", "--model-dir", str(tmp_path / "out"))) == 0
    for key in ("accuracy", "accuracy_text", "macro_f1", "num_test"):
        assert record("again")[key] == record()[key]
    assert record("again")["accuracy"] != record("again")["accuracy_zero_shot"]


def test_the_record_of_eval_only_counts_the_time_of_encoding(train, record, tmp_path, monkeypatch):
    train()
    clock, real = [0.0], evaluation.evaluate

    def slow(*arguments):
        clock[0] += 5
        return real(*arguments)

    monkeypatch.setattr(evaluation, "evaluate", slow)
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    train("again", flags=("--eval-only", "--model-dir", str(tmp_path / "out")))
    assert record("again")["seconds"]["features"] == 5


def test_eval_only_and_model_dir_go_together(train, refused, tmp_path):
    refused(lambda: train(flags=("--eval-only",)), "--model-dir")
    refused(lambda: train(flags=("--model-dir", str(tmp_path))), "--eval-only")


def test_eval_only_of_a_folder_without_a_model_names_it(train, refused, tmp_path):
    flags = ("--eval-only", "--model-dir", str(tmp_path / "nowhere"))
    refused(lambda: train(flags=flags), "nowhere is not there", "give the model folder of a run")


def test_test_sets_of_one_name_are_told_apart(tiny_bank, tmp_path):
    """Three of the classes, and all of them under other names."""
    bank = load_bank(tiny_bank)
    bank.of_classes(torch.arange(3)).save(tmp_path / "three.safetensors")
    replace(bank, classnames=list("abcde")).save(tmp_path / "others.safetensors")
    found = []
    for file in (tiny_bank, tmp_path / "three.safetensors", tmp_path / "others.safetensors"):
        for seed in ("1", "2"):
            out = tmp_path / "runs" / file.stem / seed
            flags = ["--features", str(file), "--trainer", "ZeroShot", "--seed", seed, "--output-dir", str(out)]
            assert main([*flags, "--shots", "2"]) == 0
            found.append(json.loads((out / "result.json").read_text())["test_set"])
    assert [found.count(one) for one in found] == [2] * 6


def test_a_folder_without_its_model_says_how_to_make_one(train, refused, tmp_path):
    train()
    shutil.rmtree(tmp_path / "out" / "model")
    flags = ("--eval-only", "--model-dir", str(tmp_path / "out"))
    refused(lambda: train("again", flags=flags), "adapter.safetensors and no model/", "run its training again")


@pytest.mark.parametrize(("key", "value"), [("VARIANT", "T"), ("ALPHA_C", "2.0"), ("ALPHA_NP_TEST", "0.3")])
def test_eval_only_refuses_a_key_that_the_model_keeps(train, refused, tmp_path, key, value):
    train()
    flags = ("--eval-only", "--model-dir", str(tmp_path / "out"))
    refused(lambda: train("again", f"{NODE}.{key}", value, flags=flags), f"{NODE}.{key}", value, "keeps it")


def test_eval_only_needs_no_training_images_and_its_record_tells_those_of_the_model(train, record, tmp_path):
    train()
    flags = ("--eval-only", "--model-dir", str(tmp_path / "out"))
    assert train("again", "SEED", "2", "DATASET.NUM_SHOTS", "1", flags=flags) == 0
    for key in ("accuracy", "seed", "shots", "num_train", "split_hash"):
        assert record("again")[key] == record()[key]


def test_what_was_selected_on_val_is_part_of_the_model(train, record, tmp_path):
    grid = f"[['{NODE}.ALPHA_C', [0.0, 300.0]]]"
    train("out", f"{NODE}.SELECT", grid, flags=("--select", "val"))
    assert train("again", flags=("--eval-only", "--model-dir", str(tmp_path / "out"))) == 0
    for key in ("accuracy", "macro_f1", "selected_on", "selected"):
        assert record("again")[key] == record()[key]
    assert load_model(tmp_path / "out").classifier.alpha == record()["selected"]["value"][0]


def test_the_model_predicts_what_the_run_predicted(train, tmp_path, tiny_bank):
    train()
    found = load_file(tmp_path / "out" / "predictions.safetensors")
    bank = load_bank(Path(tiny_bank))
    predicted = load_model(tmp_path / "out").classifier.logits(bank.test_features).argmax(dim=1)
    assert torch.equal(predicted.int(), found["predicted"])


def test_eval_only_of_another_adapter_is_not_taken_for_the_one_before(train, refused, tmp_path):
    train("one")
    train("two", "OPTIM.LR", "0.05")
    train("tested", flags=("--eval-only", "--model-dir", str(tmp_path / "one")))
    flags = ("--eval-only", "--model-dir", str(tmp_path / "two"))
    refused(lambda: train("tested", flags=flags), str(tmp_path / "tested"))


def test_training_is_not_skipped_because_an_adapter_was_tested_there(train, refused, tmp_path):
    train("one")
    train("tested", flags=("--eval-only", "--model-dir", str(tmp_path / "one")))
    refused(lambda: train("tested"), str(tmp_path / "tested"))


def test_eval_only_leaves_the_model_folder_alone(train, tmp_path):
    train()
    before = files(tmp_path / "out")
    train("again", flags=("--eval-only", "--model-dir", str(tmp_path / "out")))
    assert files(tmp_path / "out") == before


def test_no_train_stops_before_training(train, tmp_path, capsys):
    assert train(flags=("--no-train",)) == 0
    assert sorted(files(tmp_path / "out")) == ["split.json"]


# Bad input


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        ((f"{NODE}.VARIANT", "ful"), ("VARIANT", "'ful'", "'full'")),
        (("OPTIM.LRR", "1"), ("'OPTIM.LRR'", "'OPTIM.LR'")),
        (("OPTIM.LR", "fast"), ("OPTIM.LR", "fast")),
        (("OPTIM.LR", "-2"), ("OPTIM.LR", "-2")),
        (("OPTIM.LR",), ("OPTIM.LR", "KEY VALUE")),
        (("DATASET.NUM_SHOTS", "0"), ("NUM_SHOTS", "at least 1", "0")),
        (("DATASET.NAME", "Digits"), ("'Tiny'", "'Digits'")),
        (("TRAIN.PRINT_FREQ", "0"), ("TRAIN.PRINT_FREQ",)),
        ((f"{NODE}.FEATURES.MODE", "online"), ("online", "--features")),
        (("OPTIM.WARMUP_CONS_LR", "1e30", "OPTIM.LR", "1e30", f"{NODE}.TEXT_W", "True"), ("loss", "OPTIM.LR")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_a_bad_option_is_refused(train, refused, tmp_path, opts, words):
    refused(lambda: train("out", *opts), *words)
    assert not (tmp_path / "out" / "result.json").exists()


def test_an_adapter_that_predicts_nan_is_an_error_and_no_result(train, refused, monkeypatch, tmp_path):
    real = adapter_module.train_to_end

    def fit_and_blow_up(fitting):
        result = real(fitting)
        torch.nn.init.constant_(next(fitting.model.parameters()), torch.nan)
        return result

    monkeypatch.setattr(adapter_module, "train_to_end", fit_and_blow_up)
    refused(train, "OPTIM.LR")
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--trainer", "hegraphadapter"), ("trainer", "'HeGraphAdapter'")),
        (("--shots", "0"), ("NUM_SHOTS", "at least 1")),
        (("--shots", "-3"), ("NUM_SHOTS", "-3")),
        (("--config-file", MINI.replace("mini.", "minni.")), ("minni", "'mini.yaml'")),
        (("--config-file", "/nowhere/x.yaml"), ("/nowhere/x.yaml",)),
        (("--dataset-config-file", DIGITS.replace("digits", "digit")), ("'digit.yaml'", "'digits.yaml'")),
    ],
    ids=str,
)
def test_a_bad_flag_is_refused(train, refused, flags, words):
    refused(lambda: train(flags=flags), *words)


@pytest.mark.parametrize("content", ["a: [1", "- a list", "OPTIM: {LRR: 1}", "OPTIM: 3", "\ttab: 1"])
def test_a_bad_configuration_file_is_named(train, refused, tmp_path, content):
    (tmp_path / "bad.yaml").write_text(content)
    refused(lambda: train(flags=("--config-file", str(tmp_path / "bad.yaml"))), "bad.yaml")


def test_a_configuration_file_that_is_no_text_is_named(train, refused, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(bytes(range(128, 256)))
    refused(lambda: train(flags=("--config-file", str(tmp_path / "bad.yaml"))), "bad.yaml")


def test_a_folder_as_configuration_file_is_named(train, refused, tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    refused(lambda: train(flags=("--config-file", str(tmp_path / "folder.yaml"))), "folder.yaml")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1], ("a row of BY_SHOTS must be", "got [1]")),
        (["one", ["OPTIM.LR", 1]], ("a row of BY_SHOTS must be", "got ['one', ['OPTIM.LR', 1]]")),
        (1, ("a row of BY_SHOTS must be", "got 1")),
        ([1, ["OPTIM.LR"]], ("a row of BY_SHOTS must be", "got [1, ['OPTIM.LR']]")),
        ([1, ["OPTIM.LRR", 1]], ("BY_SHOTS", "OPTIM.LR, ", "not OPTIM.LRR")),
    ],
    ids=str,
)
def test_bad_settings_by_shots_are_named(train, refused, tmp_path, row, words):
    tree = {"TRAINER": {"HEGRAPHADAPTER": {"BY_SHOTS": [row]}}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(tree))
    refused(lambda: train(flags=("--config-file", str(tmp_path / "bad.yaml"))), *words)
    assert not (tmp_path / "out").exists()


def test_an_unknown_data_set_is_refused_with_the_nearest_name(refused, tmp_path):
    arguments = ["--output-dir", str(tmp_path / "out"), "DATASET.NAME", "Digit"]
    refused(lambda: main(arguments), "unknown data set 'Digit'", "'Digits'")


def test_no_data_at_all_says_what_to_give(refused, tmp_path):
    refused(lambda: main(["--output-dir", str(tmp_path / "out")]), "--dataset-config-file", "--features")


def drop_text(tensors, _):
    del tensors["text_negative"]


def drop_test(tensors, _):
    del tensors["test_features"], tensors["test_labels"]


def empty_test(tensors, _):
    tensors["test_features"], tensors["test_labels"] = tensors["test_features"][:0], tensors["test_labels"][:0]


def narrow(tensors, _):
    tensors["test_features"] = torch.eye(5).repeat(8, 1)


def not_a_number(tensors, _):
    tensors["train_features"][0, 0, 0] = torch.nan


def label_5(tensors, _):
    tensors["train_labels"][0] = 5


def four_names(_, metadata):
    metadata["classnames"] = json.dumps(["ant", "bee", "cow", "dog"])


def no_cow(tensors, _):
    keep = tensors["train_labels"] != 2
    tensors["train_features"], tensors["train_labels"] = (
        tensors["train_features"][:, keep],
        tensors["train_labels"][keep],
    )


def no_views(tensors, _):
    tensors["train_features"] = tensors["train_features"][:0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_text, ("text_negative",)),
        (empty_test, ("test_features",)),
        (narrow, ("test_features", "16")),
        (not_a_number, ("train_features", "NaN")),
        (label_5, ("train_labels", "5")),
        (four_names, ("class names",)),
        (no_cow, ("cow",)),
        (no_views, ("train_features",)),
    ],
)
def test_a_bad_bank_is_refused(train, refused, tiny_bank, tmp_path, change, words):
    bank = rewrite(Path(tiny_bank), change)
    refused(lambda: train(bank=bank), *words)
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_bank_without_test_features_trains_an_adapter_and_scores_nothing(train, record, tiny_bank, tmp_path, capsys):
    assert train(bank=rewrite(Path(tiny_bank), drop_test)) == 0
    assert "no test images, nothing scored" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter.safetensors").exists()
    assert (record()["accuracy"], record()["num_test"]) == (None, 0)


def test_a_missing_bank_is_named(train, refused, tmp_path):
    refused(lambda: train(bank=tmp_path / "nowhere.safetensors"), "nowhere.safetensors")


def test_a_half_written_bank_is_named(train, refused, tiny_bank, tmp_path):
    half = tmp_path / "half.safetensors"
    half.write_bytes(Path(tiny_bank).read_bytes()[:2000])
    refused(lambda: train(bank=half), "half.safetensors")


def test_more_shots_than_there_are_is_a_warning(train, record, caplog):
    assert train("out", "DATASET.NUM_SHOTS", "7") == 0
    assert "5 of 5 classes have fewer than 7 training images (fewest: 6)" in caplog.text
    assert record()["num_train"] == 30


# Output that cannot be written


def test_an_output_folder_below_a_file_is_refused(train, refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    refused(lambda: train("file/out"), "cannot write", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder_is_refused(train, refused, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    refused(lambda: train(), "cannot write")


@pytest.mark.parametrize(
    ("size", "opts", "file"),
    [
        (100, (), "split.json"),
        (4500, (f"{NODE}.TEXT_W", "True"), "adapter.safetensors"),
        (2500, (f"{NODE}.VARIANT", "base"), "model"),
        (4500, ("TRAIN.CHECKPOINT_FREQ", "1"), "model-epoch1"),
        (8000, ("TRAIN.CHECKPOINT_FREQ", "1"), "checkpoint.pt"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_disk_that_is_full_while_a_file_is_written_is_one_clear_error(
    train, refused, tmp_path, size, opts, file, disk_full_after
):
    def command() -> int:
        with disk_full_after(size):
            return train("out", *opts)

    refused(command, "cannot write", str(tmp_path / "out" / file))
    assert file not in files(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp")) + list((tmp_path / "out").glob(".*"))
    assert train("out", *opts) == 0


def test_a_disk_that_is_full_at_the_rename_is_one_clear_error(train, refused, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        refused(train, "cannot write", "No space left on device")
    assert not files(tmp_path / "out")
    assert train() == 0


# Interruption


KILL = ("OPTIM.MAX_EPOCH", "500")


def start(bank: Path, out: Path, *opts: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "trainers.hegraph", "--features", str(bank), "--shots", "4", "--seed", "1"]
    command += ["--output-dir", str(out), *QUICK, *KILL, *opts]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_run_killed_in_mid_training_resumes_and_ends_with_the_same_result(record, tiny_bank, tmp_path):
    process = start(tiny_bank, tmp_path / "out", "TRAIN.CHECKPOINT_FREQ", "1")
    deadline = time.monotonic() + 600
    while not (tmp_path / "out" / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "result.json").exists()

    process = start(tiny_bank, tmp_path / "out")
    _, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    assert "resuming from" in error
    assert "of 500" in error

    process = start(tiny_bank, tmp_path / "uninterrupted")  # a process too: rounding depends on the threads
    assert process.wait(90) == 0, process.communicate()[1]
    assert unmeasured(record()) == unmeasured(record("uninterrupted"))
    assert same_adapter(tmp_path / "out", tmp_path / "uninterrupted")
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


@pytest.fixture
def interrupted(train, stopped_at_checkpoint) -> None:
    """A run in "out" that was stopped after its first checkpoint."""
    with stopped_at_checkpoint():
        assert train("out", "TRAIN.CHECKPOINT_FREQ", "3") == 130


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_run_of_other_settings_is_refused_and_nothing_is_lost(train, refused, tmp_path):
    before = files(tmp_path / "out")
    assert sorted(name for name in before if "/" not in name) == ["checkpoint.pt", "split.json"]
    assert "model-epoch3/model.safetensors" in before
    refused(lambda: train("out", "SEED", "2"), "checkpoint.pt", "other settings")
    assert files(tmp_path / "out") == before


@pytest.mark.usefixtures("interrupted")
def test_testing_an_adapter_does_not_delete_the_checkpoint_of_an_interrupted_run(train, tmp_path):
    train("model")
    checkpoint = files(tmp_path / "out")["checkpoint.pt"]
    train("out", flags=("--eval-only", "--model-dir", str(tmp_path / "model")))
    assert files(tmp_path / "out")["checkpoint.pt"] == checkpoint


@pytest.mark.usefixtures("interrupted")
def test_a_damaged_checkpoint_says_what_to_do(train, refused, tmp_path):
    path = tmp_path / "out" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500])
    refused(train, "checkpoint.pt is damaged", "delete it")
    path.unlink()
    assert train() == 0


# Thumbnails


def test_thumbnails_of_a_bank_are_refused(train, refused):
    refused(lambda: train(flags=("--keep-thumbnails",)), "--keep-thumbnails needs training images")


# From images


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    """Where the features of the digits are kept, for all tests of this file."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def digits(tmp_path, features) -> Callable[..., int]:
    def command(out: str = "out", *opts: str, flags: tuple[str, ...] = ()) -> int:
        arguments = ["--dataset-config-file", DIGITS, "--config-file", MINI, "--shots", "1", "--seed", "1"]
        arguments += ["--output-dir", str(tmp_path / out), *flags, *QUICK, f"{NODE}.FEATURES.DIR", str(features)]
        return main([*arguments, "OPTIM.MAX_EPOCH", "3", *opts])

    return command


def test_a_run_on_images_writes_paths_into_its_split(digits, record, tmp_path):
    assert digits() == 0
    assert record()["num_test"] == 899
    assert record()["backbone"].startswith("hegraph-mini")
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    assert len(split["train"]) == len(split["val"]) == 10
    path, label, name = split["train"][0]
    assert path.startswith("digits/")
    assert name == ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")[label]


def test_thumbnails_are_the_training_images_in_the_order_of_the_cache(digits, tmp_path):
    assert digits(flags=("--keep-thumbnails",)) == 0
    paths = [path for path, *_ in json.loads((tmp_path / "out" / "split.json").read_text())["train"]]
    folder = tmp_path / "out" / "model"
    assert read_thumbnail(folder, len(paths)) is None
    for position, path in enumerate(paths):
        difference = ImageChops.difference(read_thumbnail(folder, position), open_digit(path))
        assert max(high for _, high in difference.getextrema()) < 80  # JPEG of 8x8 pixels
    assert not (tmp_path / "again").exists()
    digits("again")
    assert not (tmp_path / "again" / "model" / "thumbnails").exists()


def test_a_finished_run_gets_thumbnails_that_are_asked_for_later(digits, record, tmp_path):
    digits()
    before, model = record(), (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    assert digits(flags=("--keep-thumbnails",)) == 0
    assert len(list((tmp_path / "out" / "model" / "thumbnails").iterdir())) == 10
    assert (record(), (tmp_path / "out" / "model" / "model.safetensors").read_bytes()) == (before, model)


def test_encoding_first_or_reading_what_was_encoded_gives_identical_records(digits, record, tmp_path):
    opts = (f"{NODE}.WEIGHT_INIT", "xavier", f"{NODE}.FEATURES.DIR", str(tmp_path / "fresh"))
    for out in ("encoded", "read"):
        assert digits(out, *opts) == 0
    assert unmeasured(record("encoded")) == unmeasured(record("read"))
    assert same_adapter(tmp_path / "encoded", tmp_path / "read")


def test_online_training_runs_and_repeats(digits, record, tmp_path):
    for out in ("one", "two"):
        assert digits(out, f"{NODE}.FEATURES.MODE", "online") == 0
    assert unmeasured(record("one")) == unmeasured(record("two"))
    assert same_adapter(tmp_path / "one", tmp_path / "two")
    digits("bank")
    assert not same_adapter(tmp_path / "one", tmp_path / "bank")


def test_other_descriptions_in_the_same_folder_are_refused(digits, refused, tmp_path):
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    file = tmp_path / "cupl.json"
    opts = (f"{NODE}.PROMPTS.SOURCE", "both", f"{NODE}.PROMPTS.DESCRIPTIONS", str(file))
    file.write_text(json.dumps({name: [f"the digit {name}."] for name in names}))
    assert digits("out", *opts) == 0
    file.write_text(json.dumps({name: [f"a scrawl like a {name}."] for name in names}))
    refused(lambda: digits("out", *opts), "other settings or data")


def test_a_class_without_a_description_is_named(digits, refused, tmp_path):
    (tmp_path / "cupl.json").write_text(json.dumps({"one": ["a stroke."]}))
    opts = (f"{NODE}.PROMPTS.SOURCE", "descriptions", f"{NODE}.PROMPTS.DESCRIPTIONS", str(tmp_path / "cupl.json"))
    refused(lambda: digits("out", *opts), "zero", "9 of 10")


def test_no_train_encodes_the_features_and_stops(digits, tmp_path):
    assert digits("out", f"{NODE}.FEATURES.DIR", str(tmp_path / "fresh"), flags=("--no-train",)) == 0
    assert len(list((tmp_path / "fresh").rglob("*.safetensors"))) == 4
    assert not (tmp_path / "out" / "result.json").exists()


def test_an_input_size_that_the_backbone_does_not_take_is_refused(digits, refused):
    refused(lambda: digits("out", "INPUT.SIZE", "(224, 224)"), "INPUT.SIZE", "32")


def test_a_full_features_folder_is_one_clear_error(digits, refused, tmp_path, disk_full_after):
    def command() -> int:
        with disk_full_after(4500):
            return digits("out", f"{NODE}.FEATURES.DIR", str(tmp_path / "fresh"))

    refused(command, "cannot write", "fresh")
    assert not [path for path in (tmp_path / "fresh").rglob("*") if path.is_file()]


def test_features_that_are_in_the_way_of_a_file_are_refused(digits, refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    refused(lambda: digits("out", f"{NODE}.FEATURES.DIR", str(tmp_path / "file")), "cannot write", "file")
    assert (tmp_path / "file").read_text() == "precious"

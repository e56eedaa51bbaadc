"""One experiment through the command line: what it writes, what it repeats, what it refuses."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import ImageChops
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.experiments import fitting
from trainers.hegraph.features.bank import load_bank
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


def test_a_complete_run_is_skipped_and_said_so(train, tmp_path, caplog, monkeypatch):
    train()
    before = files(tmp_path / "out")
    monkeypatch.setattr(fitting, "train_to_end", lambda *_: pytest.fail("trained again"))
    with caplog.at_level(logging.INFO):
        assert train() == 0
    assert f"{tmp_path / 'out'} holds the complete result of this run: skipped" in caplog.text
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("opts", [("OPTIM.LR", "0.02"), ("SEED", "2"), ("DATASET.NUM_SHOTS", "2")], ids=str)
def test_other_settings_in_the_same_folder_are_refused_and_nothing_is_lost(train, refused, tmp_path, opts):
    train()
    before = files(tmp_path / "out")
    refused(lambda: train("out", *opts), str(tmp_path / "out"), "other settings")
    assert files(tmp_path / "out") == before


def test_another_bank_in_the_same_folder_is_refused(train, refused, tiny_bank, tmp_path):
    train()
    other = rewrite(Path(tiny_bank), lambda tensors, _: tensors["train_features"].neg_())
    refused(lambda: train(bank=other), str(tmp_path / "out"), "other settings or data")


@pytest.mark.parametrize("content", ["{", "{}"])
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


@pytest.mark.parametrize("variant", ["base", "free", "T-N", "T-P"])
def test_every_variant_runs(train, record, variant):
    assert train("out", f"{NODE}.VARIANT", variant) == 0
    found = record()
    assert found["variant"] == variant
    assert (found["num_parameters"] == found["steps"] == 0) == (variant in ("base", "free"))
    if variant == "base":
        assert found["accuracy"] == found["accuracy_text"] == found["accuracy_zero_shot"]


def test_the_text_classifier_of_a_full_run_is_variant_t(train, record, tmp_path):
    train("full")
    train("T", f"{NODE}.VARIANT", "T")
    assert record("full")["accuracy_text"] == record("T")["accuracy"]
    full, text = (load_file(tmp_path / out / "adapter.safetensors") for out in ("full", "T"))
    assert all(torch.equal(full[name], text[name]) for name in text)


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

    real = fitting.train_to_end
    monkeypatch.setattr(
        fitting, "train_to_end", lambda *arguments: (list(map(collect, arguments)), real(*arguments))[1]
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


def test_eval_only_needs_no_training_images_and_its_record_tells_those_of_the_model(train, record, tmp_path):
    train()
    flags = ("--eval-only", "--model-dir", str(tmp_path / "out"))
    assert train("again", "SEED", "2", "DATASET.NUM_SHOTS", "1", flags=flags) == 0
    for key in ("accuracy", "seed", "shots", "num_train", "split_hash"):
        assert record("again")[key] == record()[key]


def test_eval_only_of_another_adapter_is_not_taken_for_the_one_before(train, refused, tmp_path):
    train("one")
    train("two", "OPTIM.LR", "0.05")
    train("tested", flags=("--eval-only", "--model-dir", str(tmp_path / "one")))
    flags = ("--eval-only", "--model-dir", str(tmp_path / "two"))
    refused(lambda: train("tested", flags=flags), str(tmp_path / "tested"))


def test_no_train_stops_before_training(train, tmp_path, capsys):
    assert train(flags=("--no-train",)) == 0
    assert sorted(files(tmp_path / "out")) == ["split.json"]


# Bad input


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("OPTIM.LRR", "1"), ("'OPTIM.LRR'", "'OPTIM.LR'")),
        (("DATASET.NAME", "Digits"), ("'Tiny'", "'Digits'")),
        ((f"{NODE}.FEATURES.MODE", "online"), ("online", "--features")),
        (("OPTIM.WARMUP_CONS_LR", "1e30", "OPTIM.LR", "1e30", f"{NODE}.TEXT_W", "True"), ("loss", "OPTIM.LR")),
    ],
)
def test_a_bad_option_is_refused(train, refused, tmp_path, opts, words):
    refused(lambda: train("out", *opts), *words)
    assert not (tmp_path / "out" / "result.json").exists()


def test_an_unknown_data_set_is_refused_with_the_nearest_name(refused, tmp_path):
    arguments = ["--output-dir", str(tmp_path / "out"), "DATASET.NAME", "Digit"]
    refused(lambda: main(arguments), "unknown data set 'Digit'", "'Digits'")


def test_no_data_at_all_says_what_to_give(refused, tmp_path):
    refused(lambda: main(["--output-dir", str(tmp_path / "out")]), "--dataset-config-file", "--features")


def drop_test(tensors, _):
    del tensors["test_features"], tensors["test_labels"]


def no_cow(tensors, _):
    keep = tensors["train_labels"] != 2
    tensors["train_features"], tensors["train_labels"] = (
        tensors["train_features"][:, keep],
        tensors["train_labels"][keep],
    )


def test_a_class_without_training_images_is_refused(train, refused, tiny_bank, tmp_path):
    bank = rewrite(Path(tiny_bank), no_cow)
    refused(lambda: train(bank=bank), "cow")
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_bank_without_test_features_trains_an_adapter_and_scores_nothing(train, record, tiny_bank, tmp_path, capsys):
    assert train(bank=rewrite(Path(tiny_bank), drop_test)) == 0
    assert "no test images, nothing scored" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter.safetensors").exists()
    assert (record()["accuracy"], record()["num_test"]) == (None, 0)


def test_more_shots_than_there_are_is_a_warning(train, record, caplog):
    assert train("out", "DATASET.NUM_SHOTS", "7") == 0
    assert "5 of 5 classes have fewer than 7 training images (fewest: 6)" in caplog.text
    assert record()["num_train"] == 30


# Output that cannot be written


def test_an_output_folder_below_a_file_is_refused(train, refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    refused(lambda: train("file/out"), "cannot write", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("size", "opts", "file"),
    [
        (100, (), "split.json"),
        (4500, (f"{NODE}.TEXT_W", "True"), "adapter.safetensors"),
        (4500, ("TRAIN.CHECKPOINT_FREQ", "1"), "model-epoch1"),
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


@pytest.mark.slow
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


# From images


@pytest.fixture
def digits(tmp_path, digits_features) -> Callable[..., int]:
    def command(out: str = "out", *opts: str, flags: tuple[str, ...] = ()) -> int:
        arguments = ["--dataset-config-file", DIGITS, "--config-file", MINI, "--shots", "1", "--seed", "1"]
        arguments += ["--output-dir", str(tmp_path / out), *flags, *QUICK, f"{NODE}.FEATURES.DIR", str(digits_features)]
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

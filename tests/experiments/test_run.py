"""One experiment through the command line: what it writes, what it repeats, what it refuses."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import ImageChops
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets import select_few_shot
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.experiments import fitting
from trainers.hegraph.experiments import record as record_module
from trainers.hegraph.experiments.folder import find_model
from trainers.hegraph.features.bank import BankFile, load_bank
from trainers.hegraph.models.folder import read_thumbnail
from trainers.hegraph.results.records import MEASURED, REQUIRED
from trainers.hegraph.utils.errors import UserError

ROOT = Path(__file__).parents[2]
NODE = "TRAINER.HEGRAPHADAPTER"
QUICK = ("OPTIM.MAX_EPOCH", "20", f"{NODE}.MIN_STEPS", "0", "OPTIM.LR", "0.01")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


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
def same(tmp_path, record) -> Callable[[str, str], bool]:
    """Whether two runs have left the same record, but for what was measured, and the same adapter."""

    def compare(one: str, other: str) -> bool:
        kept = ({key: value for key, value in record(out).items() if key not in MEASURED} for out in (one, other))
        return next(kept) == next(kept) and same_adapter(tmp_path / one, tmp_path / other)

    return compare


@pytest.fixture
def refused(capsys) -> Callable[..., None]:
    """Runs a command that must exit with 2 after exactly one line, which holds some words."""

    def check(command: Callable[[], int], *words: str) -> None:
        capsys.readouterr()
        assert command() == 2
        out, error = capsys.readouterr()
        assert (out, error[:7], error.count("\n"), error[-1]) == ("", "error: ", 1, "\n")
        assert [word for word in words if word not in error] == []

    return check


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def sha256_of(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def same_adapter(one: Path, other: Path) -> bool:
    a, b = load_file(one / "adapter.safetensors"), load_file(other / "adapter.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rewrite(bank: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a bank file with its tensors changed in place by `change`."""
    with safe_open(bank, framework="pt") as file:
        tensors, metadata = {n: file.get_tensor(n) for n in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, bank.parent / "b.safetensors", metadata)
    return bank.parent / "b.safetensors"


# What a run writes


def test_a_run_leaves_its_model_its_split_and_a_record_of_all_that_it_says(train, record, tmp_path, tiny_bank, capsys):
    assert train() == 0
    names = ["adapter.safetensors", "predictions.safetensors", "result.json", "split.json", "text_nodes.safetensors"]
    model = ["model/README.md", "model/config.json", "model/model.safetensors"]
    assert sorted(files(tmp_path / "out")) == sorted([*names, *model])
    found, bank = record(), load_bank(tiny_bank)
    assert set(REQUIRED) <= set(found)
    expected = {
        "dataset": "Tiny", "trainer": "HeGraphAdapter", "variant": "full", "backbone": "none", "shots": 4, "seed": 1,
        "num_test": 40, "num_train": 20, "selected_on": "last_step", "epochs": 20, "steps": 20, "adapter_from": None,
        "host": "alone", "threads": torch.get_num_threads(), "device": "cpu",
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    predicted = load_file(tmp_path / "out" / "predictions.safetensors")
    assert torch.equal(predicted["labels"].long(), bank.test_labels)
    assert found["accuracy"] == 100 * (predicted["predicted"] == predicted["labels"]).sum().item() / 40
    of_clip = (bank.test_features @ bank.text_positive.t()).argmax(dim=1)
    assert found["accuracy_zero_shot"] == 100 * (of_clip == bank.test_labels).sum().item() / 40
    parameters = load_file(tmp_path / "out" / "adapter.safetensors")
    assert found["num_parameters"] == sum(tensor.numel() for tensor in parameters.values())
    assert found["peak_memory_mb"] > 10
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert found["versions"]["torch"] == torch.__version__
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    assert (found["config_hash"], found["split_hash"]) == (sha256_of(found["config"]), sha256_of(split))
    labels = bank.train_labels.tolist()
    rows = select_few_shot(labels, bank.val_labels.tolist(), 4, random.Random(1)).train
    assert split["train"] == [[row, labels[row], bank.classnames[labels[row]]] for row in rows]
    # What earlier versions had as keys is part of it still, so that their runs are recognised
    gone = {"ACTIVATION": "tanh", "WEIGHT_PER": "target", "GAMMA": 1.0}
    gone |= {"CLOSED_FORM.OMEGA_NEW": 0.05, "FREE.PRIOR": 4.0}
    config = found["config"] | {f"{NODE}.{key}": value for key, value in gone.items()}
    data = {"bank": BankFile(tiny_bank).digest}
    assert found["run_id"] == sha256_of({"config": config, "seed": 1, "data": data, "split": split})
    [line] = capsys.readouterr().out.splitlines()
    assert all(f"{found[key]:.2f}" in line for key in ("accuracy", "accuracy_text", "accuracy_zero_shot"))


# Repeating


def test_a_complete_run_is_skipped_and_one_of_other_settings_or_data_refused(
    train, refused, tiny_bank, tmp_path, caplog, monkeypatch
):
    train()
    before = files(tmp_path / "out")
    monkeypatch.setattr(fitting, "train_to_end", lambda *_: pytest.fail("trained again"))
    with caplog.at_level("INFO"):
        assert train() == 0
    assert f"{tmp_path / 'out'} holds the complete result of this run: skipped" in caplog.text
    other = rewrite(tiny_bank, lambda tensors: tensors["train_features"].neg_())
    for opts, bank in ((("OPTIM.LR", "0.02"), tiny_bank), (("SEED", "2"), tiny_bank), ((), other)):
        refused(lambda opts=opts, bank=bank: train("out", *opts, bank=bank), str(tmp_path / "out"), "other settings")
    assert files(tmp_path / "out") == before


def test_a_damaged_record_is_made_anew_and_an_unseeded_run_records_a_seed_that_repeats_it(
    train, record, same, tmp_path
):
    for out in ("one", "two"):
        assert train(out, "SEED", "-1") == 0
    assert record("one")["split_hash"] != record("two")["split_hash"]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "result.json").write_text("{}")
    assert train("again", "SEED", str(record("one")["seed"])) == 0
    assert same("again", "one")


# Variants


def test_a_variant_without_training_takes_no_step_and_warns_of_few_images(train, record, caplog):
    for variant in ("base", "free"):
        assert train(variant, f"{NODE}.VARIANT", variant, "DATASET.NUM_SHOTS", "7") == 0
        found = record(variant)
        assert (found["variant"], found["num_parameters"], found["steps"], found["num_train"]) == (variant, 0, 0, 30)
        of_clip = found["accuracy"] == found["accuracy_text"] == found["accuracy_zero_shot"]
        assert of_clip == (variant == "base")
    assert "5 of 5 classes have fewer than 7 training images (fewest: 6)" in caplog.text


# Testing a trained adapter


def test_eval_only_repeats_what_training_said_whatever_the_seed_and_the_shots_here(train, record, refused, tmp_path):
    train()
    train("other", "OPTIM.LR", "0.05")
    test, test_other = (("--eval-only", "--model-dir", str(tmp_path / out)) for out in ("out", "other"))
    assert train("again", "SEED", "2", "DATASET.NUM_SHOTS", "1", flags=test) == 0
    of_test = ("accuracy", "accuracy_text", "macro_f1", "num_test", "test_set")
    for key in (*of_test, "seed", "shots", "num_train", "split_hash", "selected_on"):
        assert record("again")[key] == record()[key]
    here, there = record("again")["calibration"], record()["calibration"]
    assert (here["fitted_on"], here["after"]["nll"]) == ("model", pytest.approx(there["after"]["nll"], abs=1e-3))
    assert record("again")["accuracy"] != record("again")["accuracy_zero_shot"]
    refused(lambda: train("again", "SEED", "2", "DATASET.NUM_SHOTS", "1", flags=test_other), str(tmp_path / "again"))


# Bad input


@pytest.mark.parametrize(
    ("opts", "flags", "said"),
    [
        (("OUTPUT_DIR", "tiny.safetensors/out"), (), "cannot write tiny.safetensors"),
        ((f"{NODE}.FEATURES.MODE", "online"), (), "--features"),
        ((), ("--resume", "nowhere"), "nothing to resume in nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused(train, refused, tmp_path, monkeypatch, opts, flags, said):
    monkeypatch.chdir(tmp_path)
    refused(lambda: train("out", *opts, flags=flags), said)
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_copy_inside_coop_knows_the_commit_that_it_was_made_of(tmp_path, monkeypatch):
    (tmp_path / "installed").write_text("0123abc\n")
    monkeypatch.setattr(record_module, "INSTALLED", tmp_path / "installed")
    assert record_module.git_commit.__wrapped__() == "0123abc"


# Output that cannot be written


def test_a_disk_that_is_full_is_one_clear_error_and_leaves_nothing_half_written(
    train, refused, tmp_path, disk_full_after
):
    with disk_full_after(4500):
        refused(lambda: train("out", "TRAIN.CHECKPOINT_FREQ", "1"), "cannot write", "out/model-epoch1")
    assert "model-epoch1" not in files(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))
    assert train("out", "TRAIN.CHECKPOINT_FREQ", "1") == 0


# Interruption


def start(bank: Path, out: Path, *opts: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "trainers.hegraph", "--features", str(bank), "--shots", "4", "--seed", "1"]
    command += ["--output-dir", str(out), *QUICK, "OPTIM.MAX_EPOCH", "200", *opts]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_run_killed_in_mid_training_resumes_and_ends_with_the_same_result(same, tiny_bank, tmp_path):
    process = start(tiny_bank, tmp_path / "out", "TRAIN.CHECKPOINT_FREQ", "1")
    deadline = time.monotonic() + 600
    while not (tmp_path / "out" / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "result.json").exists()
    for out in ("out", "uninterrupted"):  # both in processes: rounding depends on the threads
        process = start(tiny_bank, tmp_path / out)
        _, error = process.communicate(timeout=900)
        assert process.returncode == 0, error
        assert ("resuming from" in error) == (out == "out")
    assert same("out", "uninterrupted")


@pytest.fixture
def interrupted(train, stopped_at_checkpoint) -> None:
    """A run in "out" that was stopped after its first checkpoint."""
    with stopped_at_checkpoint():
        assert train("out", "TRAIN.CHECKPOINT_FREQ", "3") == 130


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_run_of_other_settings_is_refused_and_the_same_goes_on(train, refused, same, tmp_path):
    before = files(tmp_path / "out")
    assert sorted(name for name in before if "/" not in name) == ["checkpoint.pt", "split.json"]
    assert "model-epoch3/model.safetensors" in before
    refused(lambda: train("out", "SEED", "2"), "checkpoint.pt", "other settings")
    train("elsewhere", flags=("--resume", str(tmp_path / "out")))
    assert files(tmp_path / "out") == before
    train("out")
    train("uninterrupted")
    assert same("out", "uninterrupted") and same("elsewhere", "uninterrupted")
    assert not (tmp_path / "out" / "checkpoint.pt").exists()
    found = [find_model(tmp_path / "out", epoch).name for epoch in (None, 20, 3)]
    assert found == ["model", "model", "model-epoch3"]
    with pytest.raises(UserError, match="no model of epoch 4"):
        find_model(tmp_path / "out", 4)


# From images


@pytest.fixture
def digits(tmp_path, digits_features) -> Callable[..., int]:
    def command(out: str = "out", *opts: str, flags: tuple[str, ...] = ()) -> int:
        arguments = ["--dataset-config-file", "digits", "--config-file", "mini", "--shots", "1", "--seed", "1"]
        arguments += ["--output-dir", str(tmp_path / out), *flags, *QUICK, f"{NODE}.FEATURES.DIR", str(digits_features)]
        return main([*arguments, "OPTIM.MAX_EPOCH", "3", *opts])

    return command


def test_a_run_on_images_writes_paths_into_its_split_and_keeps_thumbnails_in_their_order(digits, record, tmp_path):
    assert digits() == 0
    assert record()["num_test"] == 899
    assert record()["backbone"].startswith("hegraph-mini")
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    assert len(split["train"]) == len(split["val"]) == 10
    assert all(path.startswith("digits/") and name == NAMES[label] for path, label, name in split["train"])
    folder = tmp_path / "out" / "model"
    assert not (folder / "thumbnails").exists()
    assert digits(flags=("--keep-thumbnails",)) == 0  # a finished run gets them
    assert read_thumbnail(folder, 10) is None
    for position, (path, *_) in enumerate(split["train"]):
        difference = ImageChops.difference(read_thumbnail(folder, position), open_digit(path))
        assert max(high for _, high in difference.getextrema()) < 80  # JPEG of 8x8 pixels


def test_a_configuration_that_contradicts_the_backbone_is_refused_before_anything_is_written(digits, refused, tmp_path):
    for key, value in (("SIZE", "(16, 16)"), ("PIXEL_MEAN", "[0.0, 0.0, 0.0]")):
        refused(lambda key=key, value=value: digits("out", f"INPUT.{key}", value), f"INPUT.{key}", "leave the key out")
    assert not (tmp_path / "out").exists()
    assert digits("out", "INPUT.SIZE", "(32, 32)") == 0  # what mini takes

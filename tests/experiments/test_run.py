"""One experiment through the command line: what it writes, what it repeats, what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import ImageChops
from safetensors.torch import load_file

from trainers.hegraph.__main__ import summary
from trainers.hegraph.datasets import select_few_shot
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.experiments import fitting
from trainers.hegraph.experiments import folder as folder_module
from trainers.hegraph.experiments.folder import find_model
from trainers.hegraph.features.bank import BankFile, load_bank
from trainers.hegraph.models.folder import read_thumbnail
from trainers.hegraph.results.records import MEASURED, read_record
from trainers.hegraph.utils.errors import UserError

ROOT = Path(__file__).parents[2]
NODE = "TRAINER.HEGRAPHADAPTER"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def same(tmp_path) -> Callable[[str, str], bool]:
    """Whether two runs have left the same record, but for what was measured, and the same adapter."""

    def compare(*names: str) -> bool:
        one, other = (read_record(tmp_path / name) for name in names)
        adapters = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in names]
        differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
        return differing <= set(MEASURED) and adapters[0] == adapters[1]

    return compare


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def sha256_of(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# What a run writes


def test_a_run_leaves_its_model_its_split_and_a_record_of_all_that_it_says(run, tiny_bank):
    found, out = run()
    names = ["adapter.safetensors", "predictions.safetensors", "result.json", "split.json", "text_nodes.safetensors"]
    model = ["model/README.md", "model/config.json", "model/model.safetensors"]
    assert sorted(files(out)) == sorted([*names, *model])
    bank = load_bank(tiny_bank)
    expected = {
        "dataset": "Tiny", "trainer": "HeGraphAdapter", "variant": "full", "backbone": "none", "shots": 2, "seed": 1,
        "num_test": 40, "num_train": 10, "selected_on": "last_step", "epochs": 3, "steps": 3, "adapter_from": None,
        "host": "alone", "threads": torch.get_num_threads(), "device": "cpu",
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    predicted = load_file(out / "predictions.safetensors")
    assert torch.equal(predicted["labels"].long(), bank.test_labels)
    assert found["accuracy"] == 100 * (predicted["predicted"] == predicted["labels"]).sum().item() / 40
    of_clip = (bank.test_features @ bank.text_positive.t()).argmax(dim=1)
    assert found["accuracy_zero_shot"] == 100 * (of_clip == bank.test_labels).sum().item() / 40
    parameters = load_file(out / "adapter.safetensors")
    assert found["num_parameters"] == sum(tensor.numel() for tensor in parameters.values())
    assert found["peak_memory_mb"] > 10
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert found["versions"]["torch"] == torch.__version__
    split = json.loads((out / "split.json").read_text())
    assert (found["config_hash"], found["split_hash"]) == (sha256_of(found["config"]), sha256_of(split))
    labels = bank.train_labels.tolist()
    rows = select_few_shot(labels, bank.val_labels.tolist(), 2, random.Random(1)).train
    assert split["train"] == [[row, labels[row], bank.classnames[labels[row]]] for row in rows]
    # What earlier versions had as keys is part of it still, so that their runs are recognised
    gone = {"ACTIVATION": "tanh", "WEIGHT_PER": "target", "GAMMA": 1.0}
    gone |= {"CLOSED_FORM.OMEGA_NEW": 0.05, "FREE.PRIOR": 4.0}
    config = found["config"] | {f"{NODE}.{key}": value for key, value in gone.items()}
    data = {"bank": BankFile(tiny_bank).digest}
    assert found["run_id"] == sha256_of({"config": config, "seed": 1, "data": data, "split": split})
    scores = tuple(found[key] for key in ("accuracy_zero_shot", "accuracy_text", "accuracy"))
    said = "zero-shot {:.2f}, HeGraphAdapter(T) {:.2f}, HeGraphAdapter (full) {:.2f}".format(*scores)
    assert summary(found) == f"Tiny, 2 shots, seed 1: {said}"


# Repeating


def test_a_complete_run_is_skipped_and_one_of_other_settings_or_data_refused(
    run, finished_run, tiny_bank, tmp_path, caplog, monkeypatch
):
    before = files(finished_run)
    monkeypatch.setattr(fitting, "train_to_end", lambda *_: pytest.fail("trained again"))
    with caplog.at_level("INFO"):
        run(name="finished_run")
    assert f"{finished_run} holds the complete result of this run: skipped" in caplog.text
    bank, other = load_bank(tiny_bank), tmp_path / "other.safetensors"
    replace(bank, train_features=-bank.train_features).save(other)
    for words, source in ((("OPTIM.LR", "0.02"), tiny_bank), (("SEED", "2"), tiny_bank), ((), other)):
        said = run(*words, name="finished_run", bank=source, code=2)
        assert str(finished_run) in said and "other settings" in said
    assert files(finished_run) == before


def test_a_damaged_record_is_made_anew_and_an_unseeded_run_records_a_seed_that_repeats_it(run, same, tmp_path):
    one, _ = run("SEED", "-1", name="one")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "result.json").write_text("{}")
    run("SEED", str(one["seed"]), name="again")
    assert same("again", "one")


def test_a_variant_without_training_takes_no_step_and_warns_of_few_images(run, caplog):
    found, _ = run(f"{NODE}.VARIANT", "base", "DATASET.NUM_SHOTS", "7")
    assert (found["variant"], found["num_parameters"], found["steps"], found["num_train"]) == ("base", 0, 0, 30)
    assert found["accuracy"] == found["accuracy_text"] == found["accuracy_zero_shot"]
    assert "5 of 5 classes have fewer than 7 training images (fewest: 6)" in caplog.text


# Bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("OUTPUT_DIR", "tiny.safetensors/out"), "cannot write tiny.safetensors"),
        ((f"{NODE}.FEATURES.MODE", "online"), "--features"),
        (("--resume", "nowhere"), "nothing to resume in nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused(run, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert said in run(*words, code=2)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_copy_inside_coop_knows_the_commit_that_it_was_made_of(tmp_path, monkeypatch):
    (tmp_path / "installed").write_text("0123abc\n")
    monkeypatch.setattr(folder_module, "INSTALLED", tmp_path / "installed")
    assert folder_module.git_commit.__wrapped__() == "0123abc"


# Output that cannot be written


def test_a_disk_that_is_full_is_one_clear_error_and_leaves_nothing_half_written(run, tmp_path, disk_full_after):
    with disk_full_after(4500):
        said = run("TRAIN.CHECKPOINT_FREQ", "1", code=2)
    assert "cannot write" in said and "run/model-epoch1" in said
    assert not [name for name in os.listdir(tmp_path / "run") if name == "model-epoch1" or name.startswith(".")]
    run("TRAIN.CHECKPOINT_FREQ", "1")


# Interruption


def start(bank: Path, out: Path, *opts: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "trainers.hegraph", "--features", str(bank), "--shots", "4", "--seed", "1"]
    command += ["--output-dir", str(out), f"{NODE}.MIN_STEPS", "0", "OPTIM.MAX_EPOCH", "200", *opts]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_run_killed_in_mid_training_resumes_and_ends_with_the_same_result(same, tiny_bank, tmp_path):
    process = start(tiny_bank, tmp_path / "out", "TRAIN.CHECKPOINT_FREQ", "1")
    while not (tmp_path / "out" / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out" / "result.json").exists()
    for out in ("out", "uninterrupted"):  # both in processes: rounding depends on the threads
        process = start(tiny_bank, tmp_path / out)
        _, error = process.communicate(timeout=900)
        assert process.returncode == 0, error
        assert ("resuming from" in error) == (out == "out")
    assert same("out", "uninterrupted")


def test_an_interrupted_run_of_other_settings_is_refused_and_the_same_goes_on(
    run, same, finished_run, tmp_path, stopped_at_checkpoint
):
    with stopped_at_checkpoint():
        run("TRAIN.CHECKPOINT_FREQ", "1", code=130)
    out = tmp_path / "run"
    before = files(out)
    assert sorted(name for name in before if "/" not in name) == ["checkpoint.pt", "split.json"]
    assert "model-epoch1/model.safetensors" in before
    said = run("SEED", "2", code=2)
    assert "checkpoint.pt" in said and "other settings" in said
    run("--resume", str(out), name="elsewhere")
    assert files(out) == before
    run()
    assert same("run", "finished_run") and same("elsewhere", "finished_run")
    assert not (out / "checkpoint.pt").exists()
    found = [find_model(out, epoch).name for epoch in (None, 3, 1)]
    assert found == ["model", "model", "model-epoch1"]
    with pytest.raises(UserError, match="no model of epoch 4"):
        find_model(out, 4)


# From images


def test_a_run_on_images_writes_paths_into_its_split_and_keeps_thumbnails_in_their_order(run, digits_features):
    digits = {"bank": None, "quick": ("OPTIM.MAX_EPOCH", "3", f"{NODE}.FEATURES.DIR", str(digits_features))}
    images = ("--dataset-config-file", "digits", "--config-file", "mini", "--shots", "1")
    record, out = run(*images, **digits)
    assert record["num_test"] == 899
    assert record["backbone"].startswith("hegraph-mini")
    split = json.loads((out / "split.json").read_text())
    assert len(split["train"]) == len(split["val"]) == 10
    assert all(path.startswith("digits/") and name == NAMES[label] for path, label, name in split["train"])
    folder = out / "model"
    assert not (folder / "thumbnails").exists()
    run(*images, "--keep-thumbnails", **digits)  # a finished run gets them
    assert read_thumbnail(folder, 10) is None
    for position, (path, *_) in enumerate(split["train"]):
        difference = ImageChops.difference(read_thumbnail(folder, position), open_digit(path))
        assert max(high for _, high in difference.getextrema()) < 80  # JPEG of 8x8 pixels
    said = run(*images, "INPUT.SIZE", "(16, 16)", name="none", code=2, **digits)  # which contradicts the backbone
    assert "INPUT.SIZE" in said and "leave the key out" in said
    assert not (out.parent / "none").exists()

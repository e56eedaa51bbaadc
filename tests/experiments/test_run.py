"""Runs: outputs, repetition, refusals and their order, unlabelled images, two processes, real features."""

import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file
from standin.hosts import as_torchrun_sets

from trainers.hegraph import FeatureBank, UserError, load_bank, load_cfg, load_dataset
from trainers.hegraph.baselines import method_options
from trainers.hegraph.commands.train import summary
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.datasets.splits import sample_few_shot
from trainers.hegraph.experiments import run as run_module
from trainers.hegraph.experiments.bank_task import BankTask
from trainers.hegraph.experiments.record import own_source
from trainers.hegraph.experiments.run_folder import RunFolder, find_model_of_epoch
from trainers.hegraph.features.bank import BankFile
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.training import memory
from trainers.hegraph.method.unlabelled import ClassSums, adapt_to_unlabelled
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.thumbnails import read_thumbnail
from trainers.hegraph.results.records import MEASURED, RunRecord, read_record
from trainers.hegraph.utils import commit, processes

ROOT = Path(__file__).parents[2]
NODE = "TRAINER.HEGRAPHADAPTER"
DIGITS = ("--dataset-config-file", "digits", "--config-file", "mini", "--shots", "1")


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def sha256_of(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# Outputs of a run


@pytest.mark.parametrize(("root", "dataset", "name"), [
    ("a/pictures/", "ImageFolder", "pictures"), ("a/b/..", "ImageFolder", "a"), ("a/b.csv", "ImageFolder", "b.csv"),
    ("data", "Digits", ""), ("", "ImageFolder", ""),
])  # fmt: skip
def test_own_images_have_the_name_of_their_folder(root, dataset, name):
    assert own_source(SimpleNamespace(data=SimpleNamespace(root=root)), dataset) == name


def test_run_writes_model_split_and_record(run, tiny_bank):
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
    only_elsewhere = {"source", "shots_per_class", "groups", "rule", "num_classes", "trained_on"}
    only_elsewhere |= {"protocol", "unlabelled"}
    only_elsewhere |= {"map", "map_zero_shot", "micro_f1", "average_precision"}  # several labels per image
    assert found.keys() == RunRecord.model_fields.keys() - only_elsewhere
    predicted = load_file(out / "predictions.safetensors")
    assert torch.equal(predicted["labels"].long(), bank.test_labels)
    assert found["accuracy"] == 100 * (predicted["predicted"] == predicted["labels"]).sum().item() / 40
    of_clip = (bank.test_features @ bank.text_positive.t()).argmax(dim=1)
    assert found["accuracy_zero_shot"] == 100 * (of_clip == bank.test_labels).sum().item() / 40
    parameters = load_file(out / "adapter.safetensors")
    assert found["num_parameters"] == sum(tensor.numel() for tensor in parameters.values())
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert found["versions"]["torch"] == torch.__version__
    split = json.loads((out / "split.json").read_text())
    assert (found["config_hash"], found["split_hash"]) == (sha256_of(found["config"]), sha256_of(split))
    labels = bank.train_labels.tolist()
    rows = sample_few_shot(labels, bank.val_labels.tolist(), 2, random.Random(1)).train
    assert split["train"] == [[row, labels[row], bank.classnames[labels[row]]] for row in rows]
    data = {"bank": BankFile(tiny_bank).digest}
    assert found["run_id"] == sha256_of({"config": found["config"], "seed": 1, "data": data, "split": split})
    scores = tuple(found[key] for key in ("accuracy_zero_shot", "accuracy_text", "accuracy"))
    message = "zero-shot {:.2f}, HeGraphAdapter(T) {:.2f}, HeGraphAdapter (full) {:.2f}".format(*scores)
    assert summary(found) == f"Tiny, 2 shots, seed 1: {message}"


def test_only_a_process_of_one_run_records_its_peak_memory(run, monkeypatch):
    monkeypatch.setattr(memory, "_started", Counter())
    assert run(name="first")[0]["peak_memory_mb"] > 10
    assert run(name="second")[0]["peak_memory_mb"] is None


def test_record_and_model_count_images_of_small_classes(run, tiny_bank):
    bank = load_bank(tiny_bank)
    rows = torch.cat([(bank.train_labels == label).nonzero()[: 3 if label else 1, 0] for label in range(5)])
    train = {"train_features": bank.train_features[:, rows], "train_labels": bank.train_labels[rows]}
    replace(bank, **train).save(tiny_bank)
    record, out = run("--shots", "2")
    assert (record["shots"], record["num_train"], record["images_per_class"]) == (2, 9, [1, 2])
    assert summary(record).startswith("Tiny, 2 shots (1 to 2 images per class), seed 1: ")
    assert load_model(out).sample_description == "2 shots (1 to 2 images per class)"
    assert "trained on\n2 shots (1 to 2 images per class), 9 images in all, with seed 1." in (
        (out / "model" / "README.md").read_text()
    )
    tested, _ = run("--eval-only", "--model-dir", str(out), name="tested")
    assert tested["images_per_class"] == [1, 2]


# Bad input


@pytest.mark.parametrize(("words", "message"), [
    (("OUTPUT_DIR", "tiny.safetensors/out"), "cannot write tiny.safetensors"),
    ((f"{NODE}.FEATURES.MODE", "online"), "--features"),
    (("--resume", "nowhere"), "nothing to resume in nowhere"),
])  # fmt: skip
def test_impossible_settings_are_refused(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in run(*words, code=2) and not (tmp_path / "run" / "result.json").exists()


def test_installed_copy_knows_its_commit(tmp_path, monkeypatch):
    (tmp_path / "installed").write_text("0123abc\n")
    monkeypatch.setattr(commit, "INSTALLED", tmp_path / "installed")
    assert commit.git_commit.__wrapped__() == "0123abc"


# Interruption


def test_interrupted_run_resumes_unless_settings_differ(run, finished_run, tmp_path, stopped_at_checkpoint):
    with stopped_at_checkpoint():
        run("TRAIN.CHECKPOINT_FREQ", "1", code=130)
    out = tmp_path / "run"
    before = files(out)
    assert sorted(name for name in before if "/" not in name) == ["checkpoint.pt", "split.json"]
    assert "model-epoch1/model.safetensors" in before
    message = run("SEED", "2", code=2)
    assert "checkpoint.pt" in message and "other settings" in message
    run("--resume", str(out), name="elsewhere")
    assert files(out) == before
    run()
    expected, adapter = read_record(finished_run), files(finished_run)["adapter.safetensors"]
    for folder in (out, tmp_path / "elsewhere"):
        record = read_record(folder)
        assert {key for key in record.keys() | expected.keys() if record.get(key) != expected.get(key)} <= set(MEASURED)
        assert files(folder)["adapter.safetensors"] == adapter
    assert not (out / "checkpoint.pt").exists()
    found = [find_model_of_epoch(out, epoch).name for epoch in (None, 3, 1)]
    assert found == ["model", "model", "model-epoch1"]
    with pytest.raises(UserError, match="no model of epoch 4"):
        find_model_of_epoch(out, 4)


# From images


def test_image_run_writes_paths_and_ordered_thumbnails(run, digits_features):
    digits = {"bank": None, "quick": ("OPTIM.MAX_EPOCH", "3", f"{NODE}.FEATURES.DIR", str(digits_features))}
    record, out = run(*DIGITS, **digits)
    assert record["num_test"] == 899 and record["backbone"].startswith("hegraph-mini")
    split = json.loads((out / "split.json").read_text())
    assert len(split["train"]) == len(split["val"]) == 10
    names = load_dataset("digits").classnames
    assert all(path.startswith("digits/") and name == names[label] for path, label, name in split["train"])
    folder = out / "model"
    assert not (folder / "thumbnails").exists()
    run(*DIGITS, "--keep-thumbnails", **digits)  # a finished run gets them
    assert read_thumbnail(folder, 10) is None
    for position, (path, *_) in enumerate(split["train"]):
        difference = ImageChops.difference(read_thumbnail(folder, position), open_digit(path))
        assert max(high for _, high in difference.getextrema()) < 80  # JPEG of 8x8 pixels
    message = run(*DIGITS, "INPUT.SIZE", "(16, 16)", name="none", code=2, **digits)  # which contradicts the backbone
    assert "INPUT.SIZE" in message and "leave the key out" in message and not (out.parent / "none").exists()


# The steps of `run`, one after the other


@pytest.fixture
def cfg(tmp_path):
    """Function of more keys and values: the configuration of a run of zero-shot CLIP."""

    def make(*opts: object):
        common = ["OUTPUT_DIR", str(tmp_path / "out"), "DATASET.NUM_SHOTS", 2, "SEED", 3, "TRAINER.NAME", "ZeroShot"]
        return load_cfg(method=method_options("ZeroShot"), opts=[*common, *opts])

    return make


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """Calls of a task that takes five seconds to read, and of targets."""
    asked: list[str] = []
    for place, name, answer in (
        (BankTask, "prepare", lambda task: None), (BankTask, "bank", BankTask.bank),
        (run_module, "encode_targets", lambda task: None), (run_module, "score_targets", lambda *_: {"X": {}}),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, lambda *words, n=name, answer=answer: asked.append(n) or answer(*words))
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=itertools.count(100, 5).__next__))
    return asked


def test_run_steps_are_ordered_and_not_repeated(cfg, done, tiny_bank, tmp_path):
    record = run_module.run(cfg(), tiny_bank)
    assert done == ["prepare", "bank", "encode_targets", "score_targets"]
    assert record == json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["accuracy"] == record["accuracy_zero_shot"]
    assert (record["host"], record["targets"], record["seconds"]["features"]) == ("alone", {"X": {}}, 5)
    assert run_module.run(cfg(), tiny_bank) == record
    assert done == ["prepare", "bank", "encode_targets", "score_targets"]
    # Nor where another process has left the record since it was looked for
    assert RunFolder(BankTask(tiny_bank, cfg(), 3)).run_once(lambda: pytest.fail("done again")) == record


@pytest.mark.parametrize("rank", [0, 1])
def test_no_train_encodes_in_every_process(cfg, done, tiny_bank, tmp_path, monkeypatch, rank):
    monkeypatch.setattr(processes, "rank", lambda: rank)
    assert (run_module.run(cfg(), tiny_bank, train=False), done) == ({}, ["prepare", "bank"])
    assert [path.name for path in tmp_path.glob("out/*")] == ["split.json"][rank:]


# Seeds and devices


@pytest.mark.parametrize(("seed", "wanted", "there", "seen"), [
    (0, True, False, (0, "cpu")), (7, True, True, (7, "cuda")), (-1, False, True, (2**31 - 1, "cpu")),
])  # fmt: skip
def test_negative_seed_is_replaced_and_gpu_used(cfg, monkeypatch, seed, wanted, there, seen):
    def opening(cfg, path, seed, device):
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(seed)))
        assert (seed, device) == seen
        raise InterruptedError  # end of the test

    draw = SimpleNamespace(randrange=lambda limit: limit - 1)
    monkeypatch.setattr(run_module.random, "SystemRandom", lambda: draw)
    monkeypatch.setattr(processes, "broadcast_from_rank0", lambda draw: draw())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(run_module, "open_task", opening)
    with pytest.raises(InterruptedError):
        run_module.run(cfg("SEED", seed, "USE_CUDA", wanted), None)


def test_run_restores_the_random_generators(cfg, tiny_bank):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    run_module.run(cfg(), tiny_bank)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_refused_training_leaves_no_files(run, tmp_path):
    assert "NaN or infinite logits" in run(f"{NODE}.BETA_C", "1e30", name="refused", code=2)
    assert not (tmp_path / "refused").exists()


# Models, thumbnails


@pytest.mark.parametrize("options", [{"bank_file": "bank"}, {"model_dir": "run"}, {"train": False}])
def test_thumbnails_need_training_images(cfg, options):
    with pytest.raises(UserError, match="--keep-thumbnails needs a training on images"):
        run_module.run(cfg(), **options, keep_thumbnails=True)


# Runs with unlabelled images


def pool_of(bank: FeatureBank, out: Path) -> tuple[torch.Tensor, ClassSums]:
    """Features of the training images of the tiny bank that a run has not sampled, and of those that it has."""
    sampled = [row for row, *_ in json.loads((out / "split.json").read_text())["train"]]
    remaining = [row for row in range(len(bank.train_labels)) if row not in sampled]
    keys = bank.cache_keys()
    return torch.cat([keys[remaining], bank.val_features]), ClassSums.of(keys[sampled], bank.train_labels[sampled], 5)


def test_model_adapts_to_remaining_and_val_images(run, finished_run_once, tiny_bank):
    plain = read_record(finished_run_once)
    record, out = run("--unlabelled", "pool")
    bank, before, model = load_bank(tiny_bank), load_model(finished_run_once), load_model(out)
    pool, labelled = pool_of(bank, out)
    adaptation = adapt_to_unlabelled(
        before.classifier, labelled, before.text_of_classes(), pool, bank.logit_scale, before.temperature
    )
    torch.testing.assert_close(model.classifier.weights, adaptation.classifier.weights, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.classifier.bias, adaptation.classifier.bias, rtol=1e-4, atol=1e-4)
    for key, classifier in (("accuracy", adaptation.classifier), ("accuracy_text", adaptation.classifier.text_only())):
        right = classifier.logits(bank.test_features).argmax(dim=1) == bank.test_labels
        assert record[key] == pytest.approx(100 * right.double().mean().item())
    assert record["protocol"] == "semi-supervised" and "protocol" not in plain
    assert record["unlabelled"]["images"] == "pool" and record["unlabelled"]["num_images"] == len(pool) == 20 + 15
    assert record["unlabelled"]["class_prior"]["offset_weight"] == round(adaptation.class_prior.offset_weight, 4)
    assert model.temperature == before.temperature and model.known is record["rejection"] is None
    assert (before.unlabelled, model.unlabelled) == (0, 35)
    assert record["run_id"] != plain["run_id"] and "DATASET.UNLABELLED" not in plain["config"]


def test_transductive_run_saves_no_model(run, finished_run_once, tiny_bank):
    record, out = run("--unlabelled", "test")
    bank, before = load_bank(tiny_bank), load_model(finished_run_once)
    _, labelled = pool_of(bank, out)
    text, features, scale = bank.text_positive, bank.test_features, bank.logit_scale
    adaptation = adapt_to_unlabelled(before.classifier, labelled, text, features, scale, before.temperature)
    predicted = load_file(out / "predictions.safetensors")["predicted"]
    assert predicted.tolist() == adaptation.logits.argmax(dim=1).tolist()
    assert record["protocol"] == "transductive" and record["unlabelled"]["num_images"] == 40
    assert not (out / "model").exists()


@pytest.mark.parametrize("what", ["pool", "test"])
def test_trained_model_adapts_once_in_a_test(run, finished_run_once, what):
    trained, adaptation = run("--unlabelled", what, name="trained")
    tested, folder = run("--eval-only", "--model-dir", str(finished_run_once), "--unlabelled", what, name="tested")
    assert tested["accuracy"] == pytest.approx(trained["accuracy"], abs=2.6)  # cache keys were rounded; 40 images
    assert {**tested["unlabelled"], "class_prior": None} == {**trained["unlabelled"], "class_prior": None}
    assert tested["protocol"] == trained["protocol"] and not (folder / "model").exists()
    if what == "pool":
        again = run("--eval-only", "--model-dir", str(adaptation), "--unlabelled", what, name="again", code=2)
        assert "already adapted to unlabelled images" in again


def test_zero_shot_adapts_without_labels_and_temperature(run, tiny_bank):
    _, out = run("--trainer", "ZeroShot", "--unlabelled", "pool", quick=())
    bank, model = load_bank(tiny_bank), load_model(out / "model")
    pool, _ = pool_of(bank, out)
    none = ClassSums.of(pool[:0], bank.train_labels[:0], 5)
    start = FoldedClassifier(bank.logit_scale * bank.text_positive)
    adaptation = adapt_to_unlabelled(start, none, bank.text_positive, pool, bank.logit_scale, 1.0)
    torch.testing.assert_close(model.classifier.weights, adaptation.classifier.weights)


def test_images_of_another_bank(run, tiny_bank, tmp_path, unit_features):
    bank, other = load_bank(tiny_bank), tmp_path / "other.safetensors"
    images = {"train_features": unit_features(2, 20, 16, seed=8), "train_labels": torch.arange(5).repeat(4)}
    replace(bank.without_test(), **images, val_features=None, val_labels=None).save(other)
    record, _ = run("--unlabelled", str(other))
    assert record["unlabelled"]["num_images"] == 20 and record["unlabelled"]["images"] == str(other)


@pytest.mark.parametrize("name", ["TransCLIP", "StatA"])
def test_a_transductive_method_starts_from_the_trained_adapter(run, name):
    words = ("--trainer", name, "--unlabelled", "test")
    record, out = run(*words)
    again, _ = run(*words, name="zero", quick=(f"TRAINER.{name.upper()}.BASE", "ZeroShot"))
    assert record["protocol"] == again["protocol"] == "transductive"
    assert record["num_parameters"] > again["num_parameters"] == 0
    assert record["config"]["OPTIM.MAX_EPOCH"] == 3 and "OPTIM.MAX_EPOCH" not in again["config"]
    assert not (out / "model").exists() and record["accuracy"] >= 80


def test_pool_and_folder_of_images_are_encoded(run, digits_features, tmp_path):
    keys = ("TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(digits_features))
    pool, _ = run(*DIGITS, "--unlabelled", "pool", bank=None, quick=keys)
    plain, _ = run(*DIGITS, name="plain", bank=None, quick=keys)
    assert pool["accuracy"] > plain["accuracy"] + 1 and pool["unlabelled"]["num_images"] == 898 - 10
    digits, folder = load_dataset("digits"), tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for number, item in enumerate(digits.train[:5]):
        digits.read(item.path).save(folder / "below" / f"{number}.png")
    own, _ = run(*DIGITS, "--unlabelled", str(folder), name="own", bank=None, quick=keys)
    assert own["unlabelled"]["num_images"] == 5
    table = tmp_path / "images.csv"
    table.write_text("path\nimages/below/3.png\nimages/below/4.png\n")
    listed, _ = run(*DIGITS, "--unlabelled", str(table), name="listed", bank=None, quick=keys)
    assert listed["unlabelled"]["num_images"] == 2
    (folder / "below" / "3.png").write_bytes(b"no image")
    assert "below/3.png" in run(*DIGITS, "--unlabelled", str(table), name="b", bank=None, quick=keys, code=2)
    skipped, _ = run(*DIGITS, "--unlabelled", str(table), "--skip-unreadable", name="skipped", bank=None, quick=keys)
    assert skipped["unlabelled"]["num_images"] == 1


# Two processes of `torchrun`


def in_two_processes(*words: object) -> list[tuple[int, str]]:
    """Run a command by two processes with chunks of 160 images; returns exit codes and error outputs."""
    command = [sys.executable, "-m", "trainers.hegraph", *map(str, words), "DATALOADER.TEST.BATCH_SIZE", "10"]
    options = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environments = ({**os.environ, "OMP_NUM_THREADS": "1", **added} for added in as_torchrun_sets(2))
    started = [subprocess.Popen(command, env=environment, **options) for environment in environments]
    errors = [process.communicate(timeout=240)[1] for process in started]
    return [(process.returncode, error) for process, error in zip(started, errors)]


def encoded(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*.safetensors")}


@pytest.mark.slow
def test_two_processes_encode_the_same_as_one(run, tmp_path):
    features = (f"{NODE}.FEATURES.DIR", tmp_path / "together", f"{NODE}.FEATURES.VIEWS", "2")
    ended = in_two_processes(*DIGITS, "--no-train", "--seed", "1", "--output-dir", tmp_path / "out", *features)
    counts = [int(re.search(r"encoded (\d+) test images", message)[1]) for code, message in ended if code == 0]
    assert sum(counts) == 899 and all(counts)
    alone = (
        f"{NODE}.FEATURES.DIR", str(tmp_path / "alone"), *map(str, features[2:]), "DATALOADER.TEST.BATCH_SIZE", "10",
    )  # fmt: skip
    run(*DIGITS, *alone, bank=None)
    assert encoded(tmp_path / "together") == encoded(tmp_path / "alone") != {}


@pytest.mark.slow
def test_unreadable_image_ends_both_processes(tmp_path):
    folder = tmp_path / "dtd"
    rows: dict[str, list] = {"train": [], "val": [], "test": []}
    for split, number in (("train", 1), ("val", 1), ("test", 100)):
        for label, name in enumerate(("banded", "dotted")):  # textures with descriptions
            for image in range(number):
                path = folder / "images" / name / f"{split}{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (image, len(name + split), 0)).save(path)
                rows[split].append([f"{name}/{path.name}", label, name])
    path.write_bytes(b"no image")  # in the chunk of the second process
    (folder / "split_zhou_DescribableTextures.json").write_text(json.dumps(rows))
    words = ("--dataset-config-file", "dtd", "--config-file", "mini", "--root", tmp_path)
    extract = ("features", "extract", *words, "--out", tmp_path / "bank.safetensors")
    ended = in_two_processes(*extract, f"{NODE}.FEATURES.DIR", tmp_path / "features")
    lines = [message.splitlines()[-1] for _, message in ended]
    assert [code for code, _ in ended] == [2, 2] and not any("Traceback" in message for _, message in ended)
    assert sorted("cannot read the image" in line for line in lines) == [False, True]
    assert sorted("another process of torchrun has ended" in line for line in lines) == [False, True]


# Banks of real CLIP features


# Zero-shot accuracy by independent code, from the README beside the banks
ZERO_SHOT = {"caltech55": 97.04, "imagenet283": 74.32, "oxford_pets": 74.73, "stanford_cars": 58.96, "ucf101": 61.49}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZERO_SHOT)
def test_the_shipped_configuration_beats_zero_shot(shared, run, name):
    bank, off = shared / "banks" / f"{name}.safetensors", (f"{NODE}.CALIBRATE", "off")
    record, _ = run("--config-file", "vit_b32", "--shots", "4", bank=bank, quick=off)
    assert record["accuracy_zero_shot"] == pytest.approx(ZERO_SHOT[name], abs=0.05)
    assert record["accuracy"] > record["accuracy_zero_shot"] + 0.5

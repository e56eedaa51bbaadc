"""Dassl trainer: results in CoOp's train.py and Dassl equal those of the package.

Against the real Dassl and CoOp where DASSL_ROOT and COOP_ROOT name checkouts, and against a stand-in anywhere.
"""

import json
import logging
import math
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
from standin.hosts import NODE, SPLIT_FILE, contents, copy_coop, install, write_split

from trainers.hegraph.commands import train as command_line
from trainers.hegraph.commands.train import configure
from trainers.hegraph.commands.train_arguments import parse_arguments
from trainers.hegraph.config import default_values
from trainers.hegraph.datasets.splits import read_coop_pickle
from trainers.hegraph.method.training.loop import learning_rate
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.utils.errors import UserError

BASE = (f"{NODE}.VARIANT", "base")  # which trains nothing
# Batches of another size may change the last bits of features, which the other runs share
IN_SEVENS = ("DATALOADER.TEST.BATCH_SIZE", "7", f"{NODE}.FEATURES.DIR", "output/features_in_sevens")
SKIPPED = "holds the complete result of this run, so nothing is computed again"


# Both hosts: the same


@pytest.mark.parametrize(("opts", "arguments"), [
    (("DATASET.SUBSAMPLE_CLASSES", "base"), {"shots": 16, "flags": ("--transforms", "random_flip", "normalize")}),
    (("DATASET.SUBSAMPLE_CLASSES", "new", "INPUT.SIZE", "(32, 32)"), {"seed": 0}),  # as in CoOp's files
    ((f"{NODE}.VARIANT", "T-N", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.LR", "1e-2"), {"shots": -1}),
    ((*BASE, f"{NODE}.ALPHA_C", "4"), {"seed": 2}),  # an int, where yacs insists on a float
    ((f"{NODE}.FEATURES.MODE", "online", "OPTIM.MAX_EPOCH", "2", *IN_SEVENS), {}),
    ((), {"data": "imagenet"}),
], ids=["base", "new", "all", "untrained", "online", "imagenet"])  # fmt: skip
def test_both_runners_give_the_same_results(host, request, opts, arguments):
    host.both(request.node.callspec.id, *opts, **arguments)


def test_baselines_are_trainers_except_coops_own(host):
    in_dassl = host.both("tip", flags=("--trainer", "TipAdapterF"))["dassl"]
    assert in_dassl.record["trainer"] == "TipAdapterF"
    _, scores = in_dassl.out.split("Finish training\n")  # where CoOp's parse_test_res.py begins to read
    assert f"* accuracy: {in_dassl.record['accuracy']:.1f}%" in scores
    error = host.run("dassl", "CoOp", flags=("--trainer", "CoOp")).error
    assert "CoOp has its own trainer" in error


def test_other_defaults_of_dassl_change_nothing(host):
    """Dassl's own defaults are unseeded, all images, Adam, another network's normalisation."""
    runs = []
    for name in ("dassl", "alone"):
        out = host.folder / "output" / f"defaults-{name}"
        words = ["--host", name, "--root", host.images, "--output-dir", out, "--backbone", "hegraph-mini"]
        words += ["--dataset-config-file", "configs/datasets/caltech101.yaml", "MODEL.BACKBONE.PRETRAINED", ""]
        words += ["OPTIM.MAX_EPOCH", 2, f"{NODE}.MIN_STEPS", 0, f"{NODE}.FEATURES.VIEWS", 1]
        runs.append(host.start("trainers.hegraph", *words, f"{NODE}.FEATURES.DIR", host.folder / "f", folder=out))
    assert [(run.record["host"], run.record["seed"]) for run in runs] == [("dassl", 1), ("alone", 1)]
    assert runs[0].result == runs[1].result


def test_unseeded_run_is_repeatable_from_its_record(host, plain):
    unseeded = host.run("dassl", "unseeded", seed=-1)
    assert host.run("alone", "seeded", seed=unseeded.record["seed"]).result == unseeded.result
    assert unseeded.result["split.json"] != plain["dassl"].result["split.json"]


def test_several_processes_encode_without_dassl(host, plain):
    features = (f"{NODE}.FEATURES.DIR", host.folder / "shared")
    shared = host.run("auto", "shared", *features, flags=("--no-train",), processes=2)
    assert shared.codes == [0, 0], shared.err
    assert shared.err.count("Dassl does not support several processes of torchrun") == 2
    before = contents(host.folder / "shared")
    assert host.run("dassl", "after-shared", *features).result == plain["dassl"].result
    assert contents(host.folder / "shared") == before


def test_several_processes_do_not_train_or_test(host, plain, edited):
    evaluating = ("--eval-only", "--model-dir", plain["dassl"].folder)
    for name, flags, code in (("dassl", (), 2), ("auto", (), 2), ("dassl", evaluating, 2), ("train.py", (), 1)):
        checkout = edited if name == "train.py" else None
        ran = host.run(name, "plain-dassl", flags=flags, checkout=checkout, processes=2)  # which is finished
        assert (ran.codes, ran.err.count("expected one process, but torchrun started 2")) == ([code] * 2, 2)


# Which images


@pytest.mark.parametrize(("data", "order"), [("imagenet", ("dassl", "alone")), ("caltech101", ("alone", "dassl"))])
def test_without_split_file_both_runners_sample_alike(host, data, order):
    images = host.images_again(f"{data}-{order[0]}", split=False)
    first, second = (host.run(name, f"{data}-{order[0]}-{name}", data=data, images=images) for name in order)
    assert first.result == second.result
    assert SKIPPED in host.run(order[0], first.folder.name, data=data, images=images).err


def test_moved_or_linked_images_are_read(host, plain):
    """CoOp's pickles hold absolute paths."""
    images = host.images_again("before")
    host.run("dassl", "before", images=images)
    images = images.rename(host.folder / "after")
    assert host.both("moved", images=images)["dassl"].result == plain["dassl"].result
    (host.checkout / "data").symlink_to(host.images)
    assert host.run("dassl", "relative", images=Path("data")).result == plain["dassl"].result


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_unsafe_samples_of_coop_are_refused(host, tmp_path):
    images = host.images_again("mixed")
    host.run("dassl", "mixed-before", *BASE, images=images)
    file = images / "caltech-101" / "split_fewshot" / "shot_2-seed_1.pkl"
    drawn = read_coop_pickle(file, "caltech-101")["train"][0].path
    split = json.loads((images / SPLIT_FILE).read_text())
    [row] = [row for row in split["train"] if drawn.endswith(row[0])]
    split["train"].remove(row)
    split["test"].append(row)
    (images / SPLIT_FILE).write_text(json.dumps(split))

    def errors(name: str) -> list[str]:
        return [host.run(kind, f"{name}-{kind}", *BASE, images=images).error for kind in ("dassl", "alone")]

    message = f"{file} was sampled from another split; delete it to sample again ({drawn} is"
    assert all(message in error for error in errors("mixed"))
    file.write_bytes(pickle.dumps({"train": Runs(tmp_path / "ran"), "val": []}))
    assert all("nothing in it was run" in error for error in errors("code"))
    assert not (tmp_path / "ran").exists()


def test_missing_images_are_refused_before_writing(host, tmp_path):
    error = host.run("dassl", "nowhere", images=tmp_path).error
    assert f"Caltech101 is not in {tmp_path / 'caltech-101'}; set --root" in error
    assert not list(tmp_path.iterdir())
    (tmp_path / "caltech-101").mkdir()
    assert "Caltech101" in host.run("dassl", "empty", images=tmp_path).error
    images = host.images_again("missing")
    for name in ("image_0000.jpg", "image_0011.jpg"):  # of training and of testing
        (images / "caltech-101" / "101_ObjectCategories" / "ant" / name).unlink()
        error = host.run("dassl", f"missing-{name}", images=images).error
        assert "Caltech101" in error and "missing" in error
        write_split(images)


# Interrupted


@pytest.fixture(scope="module")
def killed(host):
    """Copies of the folder of a run that was killed after 4 of 6 epochs, with a checkpoint of epoch 3."""
    folders = {}
    for name in ("dassl", "alone"):
        ran = host.run(name, f"killed-{name}", "TRAIN.CHECKPOINT_FREQ", 3, die_after_epoch=4)
        assert ran.codes == [-9], ran.err
        assert (ran.folder / "checkpoint.pt").exists() and not (ran.folder / "result.json").exists()
        folders[name] = ran.folder
    return lambda name, to: Path(shutil.copytree(folders[name], folders[name].with_name(to)))


@pytest.mark.parametrize(("killed_in", "continued_in"), [("dassl", "alone"), ("alone", "dassl")])
def test_killed_run_resumes_in_the_other_runner(host, plain, killed, killed_in, continued_in):
    name = f"{killed_in}-killed-{continued_in}"
    killed(killed_in, name)
    continued = host.run(continued_in, name, "TRAIN.CHECKPOINT_FREQ", 3)
    assert "after epoch 3 of 6" in continued.err and continued.result == plain["dassl"].result
    assert not (continued.folder / "checkpoint.pt").exists()


def test_log_of_a_continued_run_is_complete(host, killed):
    """`parse_test_res.py` reads `log.txt` only, and Dassl writes `log.txt-DATE` if that exists."""
    killed("dassl", "logged")
    continued = host.run("dassl", "logged", "TRAIN.CHECKPOINT_FREQ", 3)
    _, scores = (continued.folder / "log.txt").read_text().split("Finish training\n")
    assert f"* accuracy: {continued.record['accuracy']:.1f}%" in scores
    [before] = continued.folder.glob("log.txt-*")
    assert "Finish training" not in before.read_text()


def test_checkpoint_of_dassl_alone_resumes_to_the_same_result(host, plain, killed):
    folder = killed("dassl", "of-dassl")
    (folder / "checkpoint.pt").unlink()
    assert (folder / "hegraph" / "model.pth.tar-3").is_file()
    continued = host.run("dassl", "of-dassl", "TRAIN.CHECKPOINT_FREQ", 3)
    assert "after epoch 3 of 6" in continued.out and continued.result == plain["dassl"].result


def test_checkpoint_of_another_run_is_refused(host, killed):
    folder = killed("dassl", "of-another")
    (folder / "checkpoint.pt").unlink()
    error = host.run("dassl", "of-another", "OPTIM.LR", "0.02").error
    assert f"{folder / 'hegraph'} has checkpoints of a run with other settings" in error


def test_resume_goes_on_from_another_folder(host, plain, killed):
    folder = killed("alone", "left")
    before = contents(folder)
    continued = host.run("dassl", "taken-up", "TRAIN.CHECKPOINT_FREQ", 3, flags=("--resume", folder))
    assert f"resuming from {folder / 'checkpoint.pt'} after epoch 3 of 6" in continued.err
    assert (continued.result, contents(folder)) == (plain["dassl"].result, before)


def test_finished_run_is_skipped_and_not_overwritten(host, plain):
    before = plain["alone"].record
    for name in ("dassl", "alone"):
        assert SKIPPED in host.run(name, "plain-alone").err
        error = host.run(name, "plain-alone", "OPTIM.LR", "0.02").error
        assert "holds the result of a run with other settings" in error
    assert plain["alone"].record == before


# Testing only


def test_eval_only_scores_a_finished_run(host, plain):
    trained = plain["dassl"]
    tested = host.both("eval", flags=("--eval-only", "--model-dir", trained.folder))["dassl"]
    assert tested.record["adapter_from"] == str(trained.folder / "model")
    assert tested.record["accuracy"] == trained.record["accuracy"]
    assert (tested.record["epochs"], tested.record["steps"]) == (0, 0)
    assert not [path for path in tested.folder.iterdir() if path.is_dir()]  # no TensorBoard either


@pytest.mark.slow
def test_load_epoch_scores_the_model_as_it_was(host):
    kept = host.run("dassl", "kept", "TRAIN.CHECKPOINT_FREQ", 2)
    assert {path.name for path in kept.folder.glob("model*")} == {"model", *(f"model-epoch{n}" for n in (2, 4, 6))}
    keys, accuracies = ("accuracy", "accuracy_text", "macro_f1"), {}
    for epoch in (2, 6):
        flags = ("--eval-only", "--model-dir", kept.folder, "--load-epoch", epoch)
        record = host.both(f"epoch{epoch}", flags=flags)["dassl"].record
        accuracies[epoch] = [record[key] for key in keys]
    assert accuracies[6] == [kept.record[key] for key in keys] != accuracies[2]
    ran = host.run("dassl", "epoch3", flags=("--eval-only", "--model-dir", kept.folder, "--load-epoch", 3))
    assert "has no model of epoch 3, but those of epochs 2, 4, 6" in ran.error


def test_subset_of_classes_uses_the_text_classifier(host, plain):
    flags = ("--eval-only", "--model-dir", plain["dassl"].folder)
    record = host.both("some", "DATASET.SUBSAMPLE_CLASSES", "base", flags=flags)["dassl"].record
    assert (record["rule"], record["num_classes"]) == ("same classes", 3)
    assert record["accuracy"] == record["accuracy_text"]


@pytest.mark.slow
def test_eval_only_on_targets_equals_the_training_run(host):
    base, new = (("DATASET.SUBSAMPLE_CLASSES", which) for which in ("base", "new"))
    trained = host.run("alone", "elsewhere", *base, flags=("--target-datasets", "Caltech101:new", "ImageNet"))
    flags = ("--eval-only", "--model-dir", trained.folder)
    for target, opts, data in (("Caltech101:new", new, "caltech101"), ("ImageNet", (), "imagenet")):
        scores = trained.record["targets"][target]
        assert scores["rule"] == "other classes"
        record = host.both(f"elsewhere-{data}", *opts, data=data, flags=flags)["dassl"].record
        assert {key: record[key] for key in scores} == scores


def test_eval_only_into_the_folder_of_the_training_prints(host, plain):
    trained = plain["dassl"]
    before = trained.record
    tested = host.run("dassl", "plain-dassl", flags=("--eval-only", "--model-dir", trained.folder))
    assert f"* accuracy: {before['accuracy']:.1f}%" in tested.out and "this test is printed only" in tested.err
    assert tested.record == before


def test_targets_are_tested_in_dassl(host):
    base = ("DATASET.SUBSAMPLE_CLASSES", "base")
    tested = host.both("targets", *base, flags=("--target-datasets", "Caltech101:new", "ImageNet"))["dassl"]
    assert list(tested.record["targets"]) == ["Caltech101:new", "ImageNet"]


def test_training_without_test_is_tested_later(host, plain):
    """TEST.NO_TEST: model and checkpoints, but no record; the next run goes on from the last epoch."""
    ran = host.run("dassl", "no-test", "TEST.NO_TEST", "True")
    assert ran.code == 0, ran.err
    assert not (ran.folder / "result.json").exists() and "* accuracy" not in ran.out
    assert load_model(ran.folder).scores.accuracy is None
    tested = host.run("dassl", "no-test")
    assert "after epoch 6 of 6" in tested.out and tested.result == plain["dassl"].result


def test_keys_that_would_change_the_images_are_refused(host):
    ran = host.run("dassl", "two-views", "DATALOADER.K_TRANSFORMS", "2")
    assert "DATALOADER.K_TRANSFORMS can only be 1, got 2" in ran.error
    assert not (ran.folder / "split.json").exists()


def test_no_train_encodes_and_tests_nothing(host, plain):
    features = host.folder / "no-train-features"
    ran = host.run("dassl", "no-train", f"{NODE}.FEATURES.DIR", features, flags=("--no-train",))
    assert ran.code == 0, ran.err
    assert not list(ran.folder.glob("*.safetensors")) and not (ran.folder / "result.json").exists()
    encoded = contents(features)
    assert sorted({Path(name).name.split("-")[0] for name in encoded}) == ["test", "text", "train", "val"]
    trained = host.run("alone", "after-no-train", f"{NODE}.FEATURES.DIR", features)
    assert (trained.result, contents(features)) == (plain["dassl"].result, encoded)


# Use by Dassl


def test_dassl_logs_loss_rate_and_accuracy(host, plain):
    ran = plain["dassl"]
    record = ran.record
    assert record["accuracy"] > 40  # of five classes
    if host.kind == "standin":  # whose writer keeps lines of JSON
        lines = (ran.folder / "tensorboard" / "scalars.jsonl").read_text().splitlines()
        tags = {"train/loss": [], "train/acc": [], "train/lr": [], "test/accuracy": []}
        scalars = [json.loads(line) for line in lines]
        for tag, value, _ in scalars:
            tags[tag].append(value)
        assert scalars[-1][2] == 5, "the test belongs to the last of six epochs, counted from 0"
        assert tags["train/loss"][-1] < tags["train/loss"][0]
        scale = load_model(ran.folder).logit_scale
        peak = 0.01 * math.sqrt(512 / 64) * 100 / scale  # OPTIM.LR at the embedded backbone's width and logit scale
        # As in CoOp, Dassl logs the rate of the next epoch after the last batch of an epoch
        rates = [learning_rate(epoch, 6, peak, 1, 1e-5) for epoch in range(1, 7)]
        assert tags["train/lr"] == pytest.approx(rates, rel=1e-5)
        assert tags["test/accuracy"] == pytest.approx([record["accuracy"]])
    log = (ran.folder / "log.txt").read_text()
    assert f"* accuracy: {record['accuracy']:.1f}%" in log and f"* total: {record['num_test']}" in log
    *_, last = ran.out.splitlines()
    assert last.startswith(f"Caltech101, 2 shots, seed 1: zero-shot {record['accuracy_zero_shot']:.2f}")
    assert last.endswith(f"{record['accuracy']:.2f} -> {ran.folder}")


def test_dassls_own_keys_for_its_evaluator_are_heeded(host, plain):
    ran = host.run("dassl", "per-class", "TEST.PER_CLASS_RESULT", "True", "TEST.COMPUTE_CMAT", "True")
    assert ran.result == plain["dassl"].result and "* class: 4 (crab)" in ran.out
    assert (ran.folder / "cmat.pt").exists()


@pytest.mark.parametrize(("before", "shown", "printed"), [
    ("", "logging.root.manager.disable, 'wilds' in sys.modules, 'dassl.engine' in sys.modules", "0 False True"),
    ("sys.modules['wilds'] = stub = types.ModuleType('wilds'); stub.get_dataset = None",
     "sys.modules['wilds'] is stub", "True"),
])  # fmt: skip
def test_import_of_dassl_restores_logging_and_modules(host, before, shown, printed):
    assert (
        host.prints(f"import logging, sys, types\n{before}\nimport trainers.hegraph.trainer\nprint({shown})\n")
        == printed
    )


# CoOp's own train.py


@pytest.fixture(scope="module")
def edited(host) -> Path:
    """The checkout with the two lines of the README in train.py."""
    folder = install(copy_coop(host.kind, host.folder / "edited"))
    train = folder / "train.py"
    ours = r"\1\n    trainers.hegraph.trainer.extend_cfg(cfg)"
    text = re.sub(r"(.*cfg\.DATASET\.SUBSAMPLE_CLASSES.*)", ours, train.read_text(), count=1)
    train.write_text(re.sub("^import ", "import trainers.hegraph.trainer\nimport ", text, count=1, flags=re.MULTILINE))
    return folder


def test_two_lines_in_coops_train_py_suffice(host, plain, edited):
    assert host.run("train.py", "two-lines", checkout=edited).result == plain["dassl"].result
    assert SKIPPED in host.run("train.py", "two-lines", checkout=edited).err
    flags = ("--eval-only", "--model-dir", plain["dassl"].folder)
    tested = host.run("train.py", "two-lines-eval", flags=flags, checkout=edited)
    assert tested.result == host.run("alone", "two-lines-alone", flags=flags).result


def test_selection_on_test_is_refused(host, edited):
    opts = ("TEST.FINAL_MODEL", "best_val")
    started = host.run("train.py", "refused", *opts, checkout=edited)
    assert started.code == 1
    errors = [host.run(name, "refused", *opts).error for name in ("dassl", "alone")]
    for error in (started.err.splitlines()[-1], *errors):
        assert all(word in error for word in ("TEST.FINAL_MODEL", "last_step", "best_val"))
    assert not (started.folder / "result.json").exists()


def test_coops_own_trainer_prints_the_same(host, edited):
    """With the substitute, whose trainer needs no weights; its output depends on all earlier random numbers."""
    if host.kind == "real":
        pytest.skip("CoOp's own trainers need CLIP's weights, and mends for current torch")
    packages = host.folder / "packages"  # packages that the substitute of Dassl imports
    packages.mkdir()
    (packages / "pandas.py").touch()
    (packages / "wilds.py").write_text("def get_dataset(): pass\n")
    printed = []
    for checkout in (copy_coop(host.kind, host.folder / "clean"), host.checkout, edited):
        name = f"noise-{checkout.name}"
        words = ["--root", host.images_again(name), "--output-dir", host.folder / "output" / name, "--seed", 1]
        words += ["--dataset-config-file", "configs/datasets/caltech101.yaml", "--trainer", "Noise", "--eval-only"]
        words += ["DATASET.NUM_SHOTS", 2, "TEST.PER_CLASS_RESULT", "True"]
        ran = host.start("train.py", *words, checkout=checkout, path=(host.dassl, packages))
        assert ran.code == 0, ran.err
        printed.append([line for line in ran.out.splitlines() if line.startswith("* ")])
    assert len(printed[0]) == 7 and printed[0] == printed[1] == printed[2]


# The choice of the host


def test_settings_unsupported_by_dassl_run_without_it(host):
    half = ("DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.TARGET_DATASETS", "['Digits:new']", f"{NODE}.VARIANT", "T")
    run = {"data": "digits", "shots": 1, "flags": ("--select", "val")}
    ran, insisted = (host.run(name, f"{name}-digits", *half, **run) for name in ("auto", "dassl"))
    assert (ran.record["host"], ran.record["selected_on"]) == ("alone", "val")
    assert list(ran.record["targets"]) == ["Digits:new"]
    for words in ("Digits is none of CoOp's; ", "TRAINER.HEGRAPHADAPTER.SELECT_ON val trains more than once"):
        assert words in ran.err.split("running without Dassl: ")[1] and words in insisted.error


def test_unequal_numbers_of_images_run_without_dassl(host):
    tail = ("DATASET.SHOTS_PER_CLASS", "long-tailed:1-2", f"{NODE}.VARIANT", "training_free")
    ran, insisted = (host.run(name, f"{name}-unequal", *tail, shots=2) for name in ("auto", "dassl"))
    assert (ran.record["host"], ran.record["shots_per_class"]) == ("alone", "long-tailed:1-2")
    assert "CoOp samples equal numbers of images, not DATASET.SHOTS_PER_CLASS" in insisted.error


def test_classes_without_names_run_without_dassl(host):
    words = (f"{NODE}.PROMPTS.SOURCE", "none", f"{NODE}.VARIANT", "training_free")
    ran, insisted = (host.run(name, f"{name}-nameless", *words, shots=2) for name in ("auto", "dassl"))
    assert (ran.record["host"], ran.record["accuracy_zero_shot"]) == ("alone", None)
    assert "PROMPTS.SOURCE none is not supported" in insisted.error


def test_data_set_without_coop_loader_runs_without_dassl(host):
    checkout = install(copy_coop(host.kind, host.folder / "registry"))
    train = checkout / "train.py"
    train.write_text(train.read_text().replace("import datasets.caltech101\n", ""))
    ran = host.run("auto", "no-loader", *BASE, checkout=checkout)
    assert ran.record["host"] == "alone"
    assert "running without Dassl: Caltech101 is none of CoOp's" in ran.err


def test_runner_in_a_checkout_is_dassl_if_installed(host, plain):
    ran = host.run("auto", "unasked")
    assert (ran.record["host"], ran.result) == ("dassl", plain["dassl"].result)
    assert "running without Dassl" not in ran.err + plain["alone"].err
    ran = host.run("auto", "without-dassl", path=())
    assert (ran.record["host"], ran.result) == ("alone", plain["alone"].result)
    assert "running without Dassl: Dassl is not installed and not on PYTHONPATH" in ran.err
    assert "--host dassl: Dassl is not installed" in host.run("dassl", "insist", path=()).error


def test_broken_dassl_is_reported(host, tmp_path):
    """A package that Dassl needs is missing; or only a folder is called dassl, as a clone of its repository may be."""
    (tmp_path / "broken" / "dassl").mkdir(parents=True)
    (tmp_path / "broken" / "dassl" / "__init__.py").write_text("import tabulate_of_old\n")
    (tmp_path / "clone" / "dassl" / "dassl").mkdir(parents=True)
    for folder, reason in (("broken", "tabulate_of_old"), ("clone", "dassl.")):
        ran = host.run("auto", f"import-{folder}", *BASE, path=(tmp_path / folder,))
        assert ran.record["host"] == "alone"
        assert f"running without Dassl: Dassl cannot be imported (No module named '{reason}" in ran.err
        assert reason in host.run("dassl", f"import-{folder}", path=(tmp_path / folder,)).error


def test_dassl_is_refused_outside_a_checkout(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(command_line, "CHECKOUT", tmp_path)
    with caplog.at_level(logging.INFO):
        _, of_dassl = configure(parse_arguments([]))
    assert of_dassl is None and not caplog.messages
    with pytest.raises(
        UserError, match=r"is not a CoOp checkout \(scripts/hegraph/install.sh installs this package into one"
    ):
        configure(parse_arguments(["--host", "dassl"]))


def test_a_feature_bank_needs_no_dassl(host, tiny_bank):
    out = host.folder / "output" / "bank"
    arguments = ("--features", tiny_bank, "--output-dir", out, "--shots", 1, "OPTIM.MAX_EPOCH", 2)
    assert host.start("trainers.hegraph", *arguments, folder=out).record["host"] == "alone"
    assert "--features needs no images" in host.start("trainers.hegraph", "--host", "dassl", *arguments).error


# The configuration


def test_keys_of_dassl_have_our_types(host):
    program = (
        "import json\n"
        "from trainers.hegraph.config_files import flatten\n"
        "import trainers.hegraph.trainer, train\n"
        "cfg = train.get_cfg_default()\n"
        "train.extend_cfg(cfg)\n"
        "print(json.dumps({key: type(value).__name__ for key, value in flatten(cfg).items()}))\n"
    )
    theirs = json.loads(host.prints(program))
    of_data = ("TARGET_DATASETS", "UNLABELLED", "SKIP_UNREADABLE", "STRICT", "SHOTS_PER_CLASS", "GROUP_PATTERN")
    only_ours = (NODE, "INPUT.DECODE", *(f"DATASET.{name}" for name in of_data))
    found = {key: type(value).__name__ for key, value in default_values().items() if not key.startswith(only_ours)}
    found["MODEL.BACKBONE.PRETRAINED"] = "bool"  # weights here
    assert {key: theirs.get(key) for key in found} == found

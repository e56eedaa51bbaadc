"""The Dassl trainer: CoOp's train.py and Dassl drive it, and it gives what the package alone gives.

Against the real Dassl and CoOp where DASSL_ROOT and COOP_ROOT name checkouts, and against a stand-in anywhere.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin.hosts import KINDS, NODE, SPLIT_FILE, Host, Ran, contents, copy_coop, install, open_host, write_split

from trainers.hegraph import __main__ as command_line
from trainers.hegraph.__main__ import configure, parse_arguments
from trainers.hegraph.config import default_values
from trainers.hegraph.datasets.splits import read_coop_pickle
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.training.loop import learning_rate
from trainers.hegraph.utils.errors import UserError


@pytest.fixture(scope="module", params=KINDS)
def host(request, tmp_path_factory) -> Iterator[Host]:
    with open_host(request.param, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(host):
    """The same quick run in both hosts."""
    return {name: host.run(name, f"plain-{name}") for name in ("dassl", "alone")}


# Both hosts: the same


def test_dassl_ran_and_alone_is_alone_and_says_nothing(plain):
    assert plain["dassl"].record["host"] == "dassl"
    assert plain["dassl"].record["dataset"] == "Caltech101"
    assert plain["dassl"].record["accuracy"] > 40  # of five classes
    assert plain["alone"].record["host"] == "alone"
    assert "without Dassl" not in plain["alone"].err
    assert not (plain["alone"].folder / "tensorboard").exists()


@pytest.mark.parametrize(
    ("opts", "arguments"),
    [
        (("DATASET.SUBSAMPLE_CLASSES", "base"), {"shots": 16, "flags": ("--transforms", "random_flip", "normalize")}),
        (("DATASET.SUBSAMPLE_CLASSES", "new", "INPUT.SIZE", "(32, 32)"), {"seed": 0}),  # as CoOp's own files say it
        ((f"{NODE}.VARIANT", "T-N", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.LR", "1e-2"), {"shots": -1}),
        ((f"{NODE}.VARIANT", "base", f"{NODE}.ALPHA_C", "4"), {"seed": 2}),  # an int, where yacs insists on a float
        ((f"{NODE}.FEATURES.MODE", "online", "OPTIM.MAX_EPOCH", "2", "DATALOADER.TEST.BATCH_SIZE", "7"), {}),
        ((), {"data": "imagenet"}),
    ],
    ids=["base", "new", "all", "untrained", "online", "imagenet"],
)
def test_both_hosts_give_the_same_adapter_split_and_accuracies(host, request, opts, arguments):
    names = [f"{request.node.callspec.id}-{name}" for name in ("dassl", "alone")]
    in_dassl = host.run("dassl", names[0], *opts, **arguments)
    assert in_dassl.record["host"] == "dassl"
    assert in_dassl.result == host.run("alone", names[1], *opts, **arguments).result


def test_other_methods_are_trainers_of_dassls_too(host):
    flags = ("--trainer", "TipAdapterF")
    in_dassl = host.run("dassl", "tip-dassl", flags=flags)
    assert (in_dassl.record["host"], in_dassl.record["trainer"]) == ("dassl", "TipAdapterF")
    assert f"* accuracy: {in_dassl.record['accuracy']:.1f}%" in in_dassl.out
    assert in_dassl.result == host.run("alone", "tip-alone", flags=flags).result
    assert "holds the complete result of this run: skipped" in host.run("dassl", "tip-dassl", flags=flags).err


def test_the_name_of_coops_own_trainer_stays_coops(host):
    assert "Dassl knows CoOp's own trainer of that name" in host.run("dassl", "CoOp", flags=("--trainer", "CoOp")).error


def test_what_dassl_leaves_at_another_default_is_the_same(host):
    """Dassl's own defaults are unseeded, all images, Adam, another network's normalisation."""
    runs = [
        host.start(
            "trainers.hegraph", "--host", name, "--root", host.images, "--dataset-config-file",
            "configs/datasets/caltech101.yaml", "--output-dir", host.folder / "output" / f"defaults-{name}",
            "--backbone", "hegraph-mini", "MODEL.BACKBONE.PRETRAINED", "", "OPTIM.MAX_EPOCH", 2,
            f"{NODE}.MIN_STEPS", 0, f"{NODE}.FEATURES.VIEWS", 1, f"{NODE}.FEATURES.DIR", host.folder / "features",
            folder=host.folder / "output" / f"defaults-{name}",
        )
        for name in ("dassl", "alone")
    ]  # fmt: skip
    assert [run.record["host"] for run in runs] == ["dassl", "alone"]
    assert runs[0].record["seed"] == 1
    assert runs[0].result == runs[1].result


def test_an_unseeded_run_selects_other_images_and_can_be_repeated_from_its_record(host, plain):
    unseeded = host.run("dassl", "unseeded", seed=-1)
    seed = unseeded.record["seed"]
    assert host.run("alone", "seeded", seed=seed).result == unseeded.result
    assert unseeded.result["split.json"] != plain["dassl"].result["split.json"]


def test_several_processes_share_the_encoding_and_the_first_trains(host, plain):
    images = host.images_again("shared")
    together = host.run("dassl", "together", f"{NODE}.FEATURES.DIR", host.folder / "f2", images=images, processes=2)
    assert together.codes == [0, 0]
    assert together.result == plain["dassl"].result
    assert len(list((together.folder / "tensorboard").iterdir())) == 1


# Which images


@pytest.mark.parametrize(("data", "order"), [("imagenet", ("dassl", "alone")), ("caltech101", ("alone", "dassl"))])
def test_where_there_is_no_split_file_the_host_that_comes_second_selects_what_the_first_did(host, data, order):
    images = host.images_again(f"{data}-{order[0]}", split=False)
    first, second = (host.run(name, f"{data}-{order[0]}-{name}", data=data, images=images) for name in order)
    assert first.result == second.result
    again = host.run(order[0], f"{data}-{order[0]}-{order[0]}", data=data, images=images)
    assert "holds the complete result of this run: skipped" in again.err


def test_images_that_were_moved_after_coop_had_selected_are_found(host, plain):
    """CoOp's pickles hold absolute paths."""
    images = host.images_again("before")
    host.run("dassl", "before", images=images)
    images = images.rename(host.folder / "after")
    for name in ("dassl", "alone"):
        assert host.run(name, f"moved-{name}", images=images).result == plain["dassl"].result


def test_a_relative_root_behind_a_link_is_that_of_the_caller(host, plain):
    (host.checkout / "data").symlink_to(host.images)
    assert host.run("dassl", "relative", images=Path("data")).result == plain["dassl"].result


def test_a_selection_of_coops_that_holds_a_test_image_or_code_is_refused_in_either_host(host, tmp_path):
    images, base = host.images_again("mixed"), (f"{NODE}.VARIANT", "base")
    host.run("dassl", "mixed-before", *base, images=images)
    file = images / "caltech-101" / "split_fewshot" / "shot_2-seed_1.pkl"
    drawn = read_coop_pickle(file, "caltech-101")["train"][0].path
    split = json.loads((images / SPLIT_FILE).read_text())
    rows = [row for row in split["train"] if drawn.endswith(row[0])]
    split["train"] = [row for row in split["train"] if row not in rows]
    split["test"] += rows
    (images / SPLIT_FILE).write_text(json.dumps(split))
    for name in ("dassl", "alone"):
        error = host.run(name, f"mixed-{name}", *base, images=images).error
        assert f"{file} was drawn from another split; delete it to draw anew ({drawn} is" in error
    file.write_bytes(pickle.dumps({"train": Runs(tmp_path / "ran"), "val": []}))
    for name in ("dassl", "alone"):
        assert "nothing in it was run" in host.run(name, f"code-{name}", *base, images=images).error
    assert not (tmp_path / "ran").exists()


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


# Interrupted


@pytest.fixture(scope="module")
def killed(host):
    """Copies of the folder of a run that was killed in a host after 4 of 6 epochs, having kept its checkpoint at 3."""

    def run_and_kill(name: str) -> Path:
        ran = host.run(name, f"killed-{name}", "TRAIN.CHECKPOINT_FREQ", 3, die_after_epoch=4)
        assert ran.codes == [-9], ran.err
        assert (ran.folder / "checkpoint.pt").exists()
        assert not (ran.folder / "result.json").exists()
        return ran.folder

    folders = {name: run_and_kill(name) for name in ("dassl", "alone")}

    def copy(name: str, to: str) -> Path:
        return Path(shutil.copytree(folders[name], folders[name].with_name(to)))

    return copy


@pytest.mark.parametrize(("killed_in", "continued_in"), [("dassl", "alone"), ("alone", "dassl")])
def test_a_killed_run_goes_on_in_the_other_host_to_the_result_of_an_uninterrupted_one(
    host, plain, killed, killed_in, continued_in
):
    name = f"{killed_in}-killed-{continued_in}"
    killed(killed_in, name)
    continued = host.run(continued_in, name, "TRAIN.CHECKPOINT_FREQ", 3)
    assert "after epoch 3 of 6" in continued.err
    assert continued.result == plain["dassl"].result
    assert not (continued.folder / "checkpoint.pt").exists()


def test_resume_goes_on_from_another_folder(host, plain, killed):
    folder = killed("alone", "left")
    before = contents(folder)
    continued = host.run("dassl", "taken-up", "TRAIN.CHECKPOINT_FREQ", 3, flags=("--resume", folder))
    assert f"resuming from {folder / 'checkpoint.pt'} after epoch 3 of 6" in continued.err
    assert continued.result == plain["dassl"].result
    assert contents(folder) == before


def test_a_finished_run_is_skipped_in_either_host_and_that_of_others_is_not_overwritten(host, plain):
    before = plain["alone"].record
    for name in ("dassl", "alone"):
        assert "holds the complete result of this run: skipped" in host.run(name, "plain-alone").err
        error = host.run(name, "plain-alone", "OPTIM.LR", "0.02").error
        assert "holds the result of a run with other settings" in error
    assert plain["alone"].record == before


# Testing only


@pytest.fixture(scope="module")
def kept(host) -> Path:
    """The folder of a run that kept its model after every second epoch."""
    ran = host.run("dassl", "kept", "TRAIN.CHECKPOINT_FREQ", 2)
    names = {path.name for path in ran.folder.glob("model*")}
    assert names == {"model", *(f"model-epoch{epoch}" for epoch in (2, 4, 6))}
    return ran.folder


def test_eval_only_scores_the_model_of_a_finished_run(host, plain):
    flags = ("--eval-only", "--model-dir", plain["dassl"].folder)
    runs = [host.run(name, f"eval-{name}", flags=flags) for name in ("dassl", "alone")]
    assert runs[0].result == runs[1].result
    record = runs[0].record
    assert record["adapter_from"] == str(plain["dassl"].folder / "model")
    assert record["accuracy"] == plain["dassl"].record["accuracy"]
    assert (record["epochs"], record["steps"]) == (0, 0)
    assert not (runs[0].folder / "tensorboard").exists()
    assert sorted(path.name for path in runs[0].folder.iterdir() if path.is_dir()) == []


def test_several_processes_do_not_test_a_model_through_dassl(host, plain):
    ran = host.run("dassl", "eval-two", flags=("--eval-only", "--model-dir", plain["dassl"].folder), processes=2)
    assert ran.codes == [2, 2]
    said = "".join(path.read_text() for path in host.folder.glob(f"log{host.count}.*err"))
    assert said.count("--eval-only inside Dassl runs in one process") == 2


def test_load_epoch_scores_the_model_as_it_was(host, kept):
    accuracies = {}
    for epoch in (2, 6):
        flags = ("--eval-only", "--model-dir", kept, "--load-epoch", epoch)
        runs = [host.run(name, f"epoch{epoch}-{name}", flags=flags) for name in ("dassl", "alone")]
        assert runs[0].result == runs[1].result
        accuracies[epoch] = [runs[0].record[key] for key in ("accuracy", "accuracy_text", "macro_f1")]
    last = json.loads((kept / "result.json").read_text())
    assert accuracies[6] == [last[key] for key in ("accuracy", "accuracy_text", "macro_f1")]
    assert accuracies[2] != accuracies[6]

    ran = host.run("dassl", "epoch3", flags=("--eval-only", "--model-dir", kept, "--load-epoch", 3))
    assert "keeps no model of epoch 3" in ran.error


def test_a_model_is_tested_on_some_of_its_classes_with_its_text_classifier(host, plain):
    flags = ("--eval-only", "--model-dir", plain["dassl"].folder)
    runs = [
        host.run(name, f"base-{name}", "DATASET.SUBSAMPLE_CLASSES", "base", flags=flags) for name in ("dassl", "alone")
    ]
    assert runs[0].result == runs[1].result
    record = runs[0].record
    assert (record["rule"], record["num_classes"]) == ("same classes", 3)
    assert record["accuracy"] == record["accuracy_text"]


def test_a_model_is_tested_on_other_classes_and_data_sets_as_right_after_training(host):
    base, new = (("DATASET.SUBSAMPLE_CLASSES", which) for which in ("base", "new"))
    trained = host.run("alone", "elsewhere", *base, flags=("--target-datasets", "Caltech101:new", "ImageNet"))
    flags = ("--eval-only", "--model-dir", trained.folder)
    for target, opts, data in (("Caltech101:new", new, "caltech101"), ("ImageNet", (), "imagenet")):
        scores = trained.record["targets"][target]
        assert scores["rule"] == "other classes"
        for name in ("dassl", "alone"):
            ran = host.run(name, f"{data}-of-{name}", *opts, data=data, flags=flags)
            assert {key: ran.record[key] for key in scores} == scores


def test_no_train_encodes_and_tests_nothing(host, plain):
    features = host.folder / "no-train-features"
    ran = host.run("dassl", "no-train", f"{NODE}.FEATURES.DIR", features, flags=("--no-train",))
    assert ran.code == 0, ran.err
    assert not list(ran.folder.glob("*.safetensors"))
    assert not (ran.folder / "result.json").exists()
    encoded = contents(features)
    assert sorted({Path(name).name.split("-")[0] for name in encoded}) == ["test", "text", "train", "val"]
    trained = host.run("alone", "after-no-train", f"{NODE}.FEATURES.DIR", features)
    assert trained.result == plain["dassl"].result
    assert contents(features) == encoded


# What Dassl does with it


def scalars(folder: Path) -> dict[str, list[float]]:
    """What Dassl's writer got, by tag, in the order of steps."""
    [file] = (folder / "tensorboard").iterdir()
    rows: dict[str, list[tuple[int, float]]] = {}
    if file.suffix == ".jsonl":
        for tag, value, step in map(json.loads, file.read_text().splitlines()):
            rows.setdefault(tag, []).append((step, value))
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            rows[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return {tag: [value for _, value in sorted(values)] for tag, values in rows.items()}


def test_dassl_writes_loss_rate_and_accuracy_for_tensorboard(plain):
    written = scalars(plain["dassl"].folder)
    assert written["train/loss"][-1] < written["train/loss"][0]
    scale = load_model(plain["dassl"].folder).logit_scale
    peak = 0.01 * math.sqrt(512 / 64) * 100 / scale  # OPTIM.LR at the embedded backbone's width and logit scale
    assert written["train/lr"] == pytest.approx([learning_rate(e, 6, peak, 1, 1e-5) for e in range(6)], rel=1e-5)
    assert written["test/accuracy"] == pytest.approx([plain["dassl"].record["accuracy"]])


def test_dassls_evaluator_prints_the_accuracy_of_the_record_and_its_log_keeps_it(plain):
    record = plain["dassl"].record
    log = (plain["dassl"].folder / "log.txt").read_text()
    assert f"* accuracy: {record['accuracy']:.1f}%" in log
    assert f"* total: {record['num_test']}" in log
    *_, last = plain["dassl"].out.splitlines()
    assert last.startswith(f"Caltech101, 2 shots, seed 1: zero-shot {record['accuracy_zero_shot']:.2f}")
    assert last.endswith(f"{record['accuracy']:.2f} -> {plain['dassl'].folder}")


def test_dassls_own_keys_for_its_evaluator_are_heeded(host, plain):
    ran = host.run("dassl", "per-class", "TEST.PER_CLASS_RESULT", "True", "TEST.COMPUTE_CMAT", "True")
    assert ran.result == plain["dassl"].result
    assert "* class: 4 (crab)" in ran.out
    assert (ran.folder / "cmat.pt").exists()


def test_the_import_of_dassl_leaves_its_mark_neither_on_logging_nor_on_modules(host):
    script = host.checkout / "imported.py"
    script.write_text(
        "import logging, sys\n"
        "import trainers.hegraph.trainer\n"
        "print(logging.root.manager.disable, 'wilds' in sys.modules, 'dassl.engine' in sys.modules)\n"
    )
    assert host.start("imported.py").out == "0 False True\n"
    script.unlink()


# CoOp's own train.py


@pytest.fixture(scope="module")
def edited(host) -> Path:
    """The checkout with the two lines of the README in train.py."""
    folder = copy_coop(host.kind, host.folder / "edited")
    assert install(folder).returncode == 0
    train = folder / "train.py"
    lines = train.read_text().splitlines()
    subsample = next(n for n, line in enumerate(lines) if "cfg.DATASET.SUBSAMPLE_CLASSES" in line)
    lines.insert(subsample + 1, "    trainers.hegraph.trainer.extend_cfg(cfg)")
    first = next(n for n, line in enumerate(lines) if line.startswith("import "))
    lines.insert(first, "import trainers.hegraph.trainer")
    train.write_text("\n".join(lines) + "\n")
    return folder


def test_two_lines_make_coops_own_train_py_give_the_same(host, plain, edited):
    def start(name: str, *flags: object) -> Ran:
        out = host.folder / "output" / name
        return host.start("train.py", *host.arguments(out, flags=flags), folder=out, checkout=edited)

    assert start("two-lines").result == plain["dassl"].result
    assert "skipped" in start("two-lines").err
    flags = ("--eval-only", "--model-dir", plain["dassl"].folder)
    assert start("two-lines-eval", *flags).result == host.run("alone", "two-lines-alone", flags=flags).result


def test_what_would_select_on_test_is_refused_in_any_way_to_start(host, edited):
    opts, out = ("TEST.FINAL_MODEL", "best_val"), host.folder / "output" / "refused"
    started = host.start("train.py", *host.arguments(out, *opts), checkout=edited)
    assert started.code == 1
    *_, last = started.err.splitlines()
    for error in (last, host.run("dassl", "refused", *opts).error, host.run("alone", "refused", *opts).error):
        assert all(word in error for word in ("TEST.FINAL_MODEL", "last_step", "best_val"))
    assert not (out / "result.json").exists()


def test_a_trainer_of_coops_prints_the_same_before_and_after(host, edited):
    """With the stand-in, whose trainer needs no weights: what it prints changes with every draw before it."""
    if host.kind == "real":
        pytest.skip("CoOp's own trainers need CLIP's weights, and mends for current torch")
    clean = copy_coop(host.kind, host.folder / "clean")
    printed = []
    for checkout in (clean, host.checkout, edited):
        images = host.images_again(f"noise-{checkout.name}")
        ran = host.start(
            "train.py", "--root", images, "--seed", 1, "--trainer", "Noise", "--eval-only", "--output-dir",
            host.folder / "output" / f"noise-{checkout.name}", "--dataset-config-file",
            "configs/datasets/caltech101.yaml", "DATASET.NUM_SHOTS", 2, "TEST.PER_CLASS_RESULT", "True",
            checkout=checkout, path=(host.dassl, absent_packages(host)),
        )  # fmt: skip
        assert ran.code == 0, ran.err
        printed.append([line for line in ran.out.splitlines() if line.startswith("* ")])
    assert len(printed[0]) == 7
    assert printed[0] == printed[1] == printed[2]


def absent_packages(host: Host) -> Path:
    """A folder with what the stand-in of Dassl imports and nobody has; of no use to anything else here."""
    folder = host.folder / "packages"
    folder.mkdir(exist_ok=True)
    (folder / "pandas.py").write_text("")
    (folder / "wilds.py").write_text("def get_dataset(): pass\n")
    return folder


# Mistakes


def test_a_root_without_the_data_set_is_one_line_and_stays_empty(host, tmp_path):
    error = host.run("dassl", "nowhere", images=tmp_path).error
    assert f"Caltech101 is not in {tmp_path / 'caltech-101'}; set --root" in error
    assert not list(tmp_path.iterdir())
    (tmp_path / "caltech-101").mkdir()
    assert "Caltech101" in host.run("dassl", "empty", images=tmp_path).error


def test_missing_images_are_one_line(host):
    images = host.images_again("missing")
    for name in ("image_0000.jpg", "image_0011.jpg"):  # of training and of testing
        (images / "caltech-101" / "101_ObjectCategories" / "ant" / name).unlink()
        error = host.run("dassl", f"missing-{name}", images=images).error
        assert "Caltech101" in error
        assert "missing" in error
        write_split(images)


# The choice of the host


def test_what_dassl_and_coop_cannot_do_runs_alone_and_says_so(host):
    half = ("DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.TARGET_DATASETS", "['Digits:new']", f"{NODE}.VARIANT", "T")
    run = {"data": "digits", "shots": 1, "flags": ("--select", "val")}
    ran, insisted = (host.run(name, f"{name}-digits", *half, **run) for name in ("auto", "dassl"))
    assert (ran.record["host"], ran.record["selected_on"]) == ("alone", "val")
    assert list(ran.record["targets"]) == ["Digits:new"]
    for words in (
        "Digits is none of CoOp's; ",
        "DATASET.TARGET_DOMAINS and DATASET.TARGET_DATASETS are not tested through Dassl; ",
        "TRAINER.HEGRAPHADAPTER.SELECT_ON val trains more than once",
    ):
        assert words in ran.err.split("running without Dassl: ")[1]
        assert words in insisted.error


def test_a_data_set_without_a_loader_in_coop_runs_alone(host):
    checkout = copy_coop(host.kind, host.folder / "registry")
    assert install(checkout).returncode == 0
    train = checkout / "train.py"
    train.write_text(train.read_text().replace("import datasets.caltech101\n", ""))
    ran = host.run("auto", "no-loader", f"{NODE}.VARIANT", "base", checkout=checkout)
    assert ran.record["host"] == "alone"
    assert "running without Dassl: Caltech101 is none of CoOp's" in ran.err


def test_in_a_checkout_the_host_is_dassl_unasked_and_without_it_the_run_is_alone_and_says_so(host, plain):
    ran = host.run("auto", "unasked")
    assert ran.record["host"] == "dassl"
    assert "running without Dassl" not in ran.err
    assert ran.result == plain["dassl"].result
    ran = host.run("auto", "without-dassl", path=())
    assert ran.result == plain["alone"].result
    assert ran.record["host"] == "alone"
    assert "running without Dassl: Dassl is not installed and not on PYTHONPATH" in ran.err
    assert "--host dassl: Dassl is not installed" in host.run("dassl", "insist", path=()).error


def test_a_dassl_that_cannot_be_imported_is_said(host, tmp_path):
    """A package that Dassl needs is missing; or only a folder is called dassl, as a clone of its repository may be."""
    (tmp_path / "broken" / "dassl").mkdir(parents=True)
    (tmp_path / "broken" / "dassl" / "__init__.py").write_text("import tabulate_of_old\n")
    (tmp_path / "clone" / "dassl" / "dassl").mkdir(parents=True)
    for folder, reason in (("broken", "tabulate_of_old"), ("clone", "dassl.")):
        ran = host.run("auto", f"import-{folder}", f"{NODE}.VARIANT", "base", path=(tmp_path / folder,))
        assert ran.record["host"] == "alone"
        assert f"running without Dassl: Dassl cannot be imported (No module named '{reason}" in ran.err
        assert reason in host.run("dassl", f"import-{folder}", path=(tmp_path / folder,)).error


def given(**flags: object) -> Namespace:
    args = parse_arguments([])
    vars(args).update(flags)
    return args


def test_outside_a_checkout_the_run_is_alone_without_a_word_and_dassl_is_refused(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(command_line, "CHECKOUT", tmp_path)
    with caplog.at_level(logging.INFO):
        _, of_dassl = configure(given())
    assert of_dassl is None
    assert not caplog.messages
    with pytest.raises(UserError, match=r"is no CoOp checkout \(scripts/hegraph/install.sh puts this package into one"):
        configure(given(host="dassl"))


def test_a_feature_bank_needs_no_dassl(host, tiny_bank):
    out = host.folder / "output" / "bank"
    arguments = ("--features", tiny_bank, "--output-dir", out, "--shots", 1, "OPTIM.MAX_EPOCH", 2)
    ran = host.start("trainers.hegraph", *arguments, folder=out)
    assert ran.record["host"] == "alone"
    assert "--features needs no images" in host.start("trainers.hegraph", "--host", "dassl", *arguments).error


# The configuration


def test_dassl_and_coop_have_every_key_of_ours_with_the_same_type(host):
    """`MODEL.BACKBONE.PRETRAINED` names weights here and is a yes or no there."""
    script = host.checkout / "keys.py"
    script.write_text(
        "import json, sys\n"
        "import trainers.hegraph.trainer, train\n"
        "cfg = train.get_cfg_default()\n"
        "train.extend_cfg(cfg)\n"
        "def flat(node, prefix=''):\n"
        "    for key, value in node.items():\n"
        "        yield from flat(value, prefix + key + '.') if isinstance(value, dict) else [(prefix + key, value)]\n"
        "print(json.dumps({key: type(value).__name__ for key, value in flat(cfg)}))\n"
    )
    printed = host.start("keys.py").out
    script.unlink()
    theirs = json.loads(printed.splitlines()[-1])

    only_ours = (NODE, "DATASET.TARGET_DATASETS", "DATASET.UNLABELLED", "DATASET.SKIP_UNREADABLE")
    ours = (key for key in default_values() if not key.startswith(only_ours))
    found = {key: type(default_values()[key]).__name__ for key in ours}
    found["MODEL.BACKBONE.PRETRAINED"] = "bool"
    assert {key: theirs.get(key) for key in found} == found

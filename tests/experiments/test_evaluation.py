"""Test of a trained method: classes, their order, the rule of transfer, and the record."""

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from trainers.hegraph import FeatureBank, ModelOptions, UserError, load_bank, load_cfg
from trainers.hegraph.baselines import method_options
from trainers.hegraph.baselines.base import FittedMethod
from trainers.hegraph.commands.train import summary
from trainers.hegraph.datasets import loading
from trainers.hegraph.datasets.loading import OWN, load_few_shot
from trainers.hegraph.experiments import evaluation, opening, run as run_module
from trainers.hegraph.experiments.adaptation import read_unlabelled
from trainers.hegraph.experiments.evaluation import Predictions
from trainers.hegraph.experiments.opening import load_image_task
from trainers.hegraph.experiments.record import calibration_of_test
from trainers.hegraph.experiments.run_folder import run_config
from trainers.hegraph.experiments.tasks import FeatureTask, Task, ids_of_names, match_classes
from trainers.hegraph.features.backbones.schema import BackboneConfig
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.head.closed_form import NewClassMessages
from trainers.hegraph.method.model import TransferableAdapter
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.saved import NOT_TESTED, SavedModel, TrainedOn
from trainers.hegraph.results.records import OTHER_CLASSES, SAME_CLASSES, TargetRecord

AXES = torch.eye(3)
NODE = "TRAINER.HEGRAPHADAPTER"


def images(ids="abc", name="Elsewhere", features=AXES, labels=(0, 1, 2)) -> Task:
    """Test images, by default three on the axes, of classes whose text features are the first axes."""
    train, text = (torch.zeros(1, 0, 3), torch.zeros(0, dtype=torch.long)), AXES[: len(ids)]
    bank = FeatureBank(*train, text, -text, list(ids), name, backbone="m/w", logit_scale=10.0)
    return FeatureTask(replace(bank, test_features=features, test_labels=torch.tensor(labels)), load_cfg(), 1)


def source(rule: str, target: Task) -> SimpleNamespace:
    """A task with one target, by a rule."""
    return SimpleNamespace(targets=[(target.name, target, rule)])


def trained(logits=None, transfer=None) -> SavedModel:
    """Model of a method that was just fitted to the classes a, b and c, whose text features are the axes."""
    return model_of("Spy", text_positive=AXES, fitted=FittedMethod(logits, transfer=transfer))


# Further data sets at the end of a run


def test_domain_with_reordered_classes_uses_its_own_labels():
    # The target's label 0 is c and its label 1 is a. Four images: zero-shot sees c, a, a, and b, which does not
    # compete: of c and a, that image is nearer to a. The labels are c, a, c, c, so the first two are right.
    features = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    swapped = trained(lambda images: images[:, [2, 1, 0]])  # turns a into c and c into a: the last two are right
    about = {"num_test": 4, "num_classes": 2, "rule": SAME_CLASSES}
    for labels, accuracy, of_clip in (((0, 1, 0, 0), 50, 50), ((0, 1, 1, 1), 0, 100)):
        task = source(SAME_CLASSES, images("ca", "D", features, labels))
        expected = TargetRecord(accuracy=accuracy, accuracy_zero_shot=of_clip, **about)
        assert evaluation.score_targets(swapped, task, "cpu") == {"D": expected}


def test_target_datasets_use_the_transfer_of_the_method():
    seen = []

    def always_y(bank: FeatureBank) -> Tensor:
        seen.append(bank)
        return torch.tensor([[0.0, 1.0]] * 3)

    # Zero-shot: x, y, and the third image is equally far from both: the first class is taken. Labels: x, y, y.
    for ids in ("xy", "ab"):
        task = source(OTHER_CLASSES, images(ids, "O", labels=(0, 1, 1)))
        scores = evaluation.score_targets(trained(transfer=always_y), task, "cpu")["O"]
        assert scores.accuracy == scores.accuracy_zero_shot == pytest.approx(200 / 3)
        assert (scores.num_test, scores.num_classes, scores.rule) == (3, 2, "other classes")
        assert torch.equal(seen[-1].text_positive, AXES[:2])


def test_targets_are_encoded_and_classified_in_batches():
    sizes = []
    target = images(features=AXES.repeat(500, 1), labels=(0, 1, 2) * 500)
    evaluation.evaluate(trained(lambda images: sizes.append(len(images)) or images), target, "cpu")
    assert sizes == [1024, 476]
    target.test_features = asked = Mock(wraps=target.test_features)
    evaluation.encode_targets(source(OTHER_CLASSES, target))
    assert not asked.called  # the whole bank is asked for, with its text
    evaluation.encode_targets(source(SAME_CLASSES, target))
    assert asked.called


# A saved model

ORIGIN = TrainedOn(
    dataset="Source", shots=2, seed=1, num_train=3, split_hash="0" * 64, selected_on="last_step", selected={},
    config={f"{NODE}.ALPHA_C": 8.0, f"{NODE}.SELECT": [], "OPTIM.LR": 0.001, "TRAINER.TIPADAPTER.BETA": 5.5},
    host="alone", git_commit=None, versions={},
)  # fmt: skip
ONE_SHOT = ORIGIN.model_copy(update={"shots": 1})


def model_of(method: str = "HeGraphAdapter", **changed: object) -> SavedModel:
    """Classifier with class weights of 10 times the axes, and a cache that always predicts class b, with weight 100."""
    fields = {
        "classifier": FoldedClassifier(10 * AXES, keys=AXES, labels=torch.tensor([1, 1, 1]), alpha=100.0, beta=0.0),
        "text_positive": AXES[[1, 2, 0]],
        "classnames": ("ant", "bee", "cow"),
        "class_ids": ("a", "b", "c"),
        "method": method,
        "variant": "full" if method == "HeGraphAdapter" else "",
        "logit_scale": 10.0,
        "backbone": BackboneConfig(title="m/w", model="m", pretrained="w", fingerprint={}),
        "trained_on": ORIGIN,
        "scores": NOT_TESTED,
    }
    return SavedModel(**fields | changed)


def predict(model: SavedModel, target: Task, device: str = "cpu") -> Predictions:
    target.check_backbone(model)
    return evaluation.evaluate(model, target, device)


def test_rule_follows_from_classes_and_data_set():
    for ids, name, rule in (
        ("abc", "Source", ""), ("abc", "Elsewhere", "same classes"), ("cab", "Source", "same classes"),
        ("ca", "Elsewhere", "same classes"), ("abcd", "Source", "other classes"),
    ):  # fmt: skip
        assert evaluation.rule_for(model_of(), SimpleNamespace(class_ids=tuple(ids), name=name)) == rule


def test_model_is_tested_whole_on_its_data_set():
    found = predict(model_of(), images(name="Source"))
    assert torch.equal(found.logits, 10 * AXES + torch.tensor([0.0, 300.0, 0.0]))  # the cache adds 100 * 3 for b
    assert torch.equal(found.text_logits, 10 * AXES)
    assert torch.equal(found.zero_shot, 10 * AXES[:, [1, 2, 0]])
    assert (found.rule, found.dataset, list(found.classnames)) == ("", "Source", ["a", "b", "c"])
    assert torch.equal(found.labels, torch.arange(3))


def test_other_domain_drops_the_adapters_cache_only():
    found = predict(model_of(), images("ca", labels=(0, 1, 1)))
    assert torch.equal(found.logits, torch.tensor([[0.0, 10.0], [0.0, 0.0], [10.0, 0.0]]))
    assert torch.equal(found.text_logits, found.logits)
    assert torch.equal(found.zero_shot, 10 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))  # c and a, the model's
    assert found.rule == "same classes"
    found = predict(model_of("TipAdapter"), images("ba", labels=(0, 1, 1)))
    assert torch.equal(found.logits, torch.tensor([[300.0, 10.0], [310.0, 0.0], [300.0, 0.0]]))
    assert found.text_logits is None  # only HeGraphAdapter has a text classifier of its own


def test_thresholds_follow_the_classes_of_the_test():
    found = predict(model_of(thresholds=torch.tensor([1.0, 2.0, 3.0])), images("ca", labels=(0, 1, 1)))
    assert found.thresholds.tolist() == [3.0, 1.0]


def test_only_the_text_classifier_alone_loses_the_temperature():
    found = Predictions("Elsewhere", "abc", rule=SAME_CLASSES)
    for method, temperature in (("HeGraphAdapter", 1.0), ("TipAdapter", 2.0)):
        assert calibration_of_test(model_of(method, temperature=2.0), found).temperature == temperature


def test_other_classes_use_the_saved_transfer_rule():
    target = images("xy", labels=(0, 1, 1))
    found = predict(model_of("ZeroShot", transfer_rule="zero-shot"), target)
    assert torch.equal(found.logits, 10 * AXES[:, :2]) and torch.equal(found.zero_shot, found.logits)
    assert (found.rule, found.text_logits) == ("other classes", None)
    base = TransferableAdapter(ModelOptions(variant="base"), {})  # it leaves the text features as they are
    found = predict(model_of(transfer_rule="adapter", transfer=base), target)
    assert torch.equal(found.logits, 10 * AXES[:, :2]) and torch.equal(found.text_logits, found.logits)
    for changed in ({"transfer_rule": "none"}, {"transfer_rule": "adapter", "transfer": None}):
        with pytest.raises(UserError, match="TipAdapter has no rule"):
            predict(model_of("TipAdapter", **changed), target)


@pytest.mark.parametrize("ids", ["abc", "xy"])
def test_model_is_tested_on_the_given_device(ids, monkeypatch):
    # "meta" is a device that every machine has; its tensors have shapes and no values
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda tensor: torch.ones(1).bool())
    messages = NewClassMessages(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3))
    adapter = TransferableAdapter(ModelOptions(variant="training_free"), {}, messages)
    found = predict(model_of(transfer_rule="adapter", transfer=adapter), images(ids, labels=(0, 1, 1)), "meta")
    assert {tensor.device.type for tensor in (found.logits, found.zero_shot, found.labels)} == {"meta"}


def test_features_of_another_backbone_are_refused():
    with pytest.raises(UserError, match="expected a bank of 'other' features.*, got one of 'm/w'"):
        predict(model_of(backbone=BackboneConfig(title="other")), images())


@pytest.mark.parametrize(("logits", "target", "message"), [
    ((), {"features": torch.eye(2), "labels": (0, 1)}, "width 3, got 2"),
    ((lambda images: images / 0,), {}, "the method predicts NaN or infinite logits"),
    ((), {"ids": "a", "labels": (0, 0, 0)}, "two classes"),
])  # fmt: skip
def test_unusable_features_and_logits_are_refused(logits, target, message):
    with pytest.raises(UserError, match=message):
        evaluation.evaluate(trained(*logits), images(**target), "cpu")


# Settings of a model and of a configuration


def test_classes_are_matched_by_id():
    assert match_classes(["n1", "n2", "n3"], ["n3", "n1"], "ImageNet", "ImageNetA") == [2, 0]
    assert ids_of_names(["crane", "bee", "crane"]) == ("0: crane", "bee", "2: crane")
    with pytest.raises(UserError, match="^2 of 3 classes of B are none of A's, such as w; "):
        match_classes(["a", "b"], ["w", "a", "x"], "A", "B")


@pytest.mark.parametrize(("trained", "asked", "message"), [
    ({"TRAINING_FREE.KAPPA": [[1, 9.0]]}, [], "end the command with {}.TRAINING_FREE.KAPPA '[[1, 9.0]]'"),
    ({"TRAINING_FREE.KAPPA": [[1, 9.0]]}, ["TRAINING_FREE.KAPPA", "((1, 9.0),)"], ""),  # a model folder holds lists
    ({"SHUFFLE": "negative", "BIAS": False}, [], "{}.BIAS False, not True"),
    ({"ALPHA_NP": 0.75}, [], "{}.ALPHA_NP 0.75, not "),
    ({"ALPHA_C": 2.0}, [], ""),  # it follows from the shots, which may be others here
    ({"MIN_STEPS": 7}, [], ""),  # an option of training
])  # fmt: skip
def test_model_with_other_settings_is_refused(trained, asked, message):
    config = run_config(load_cfg()) | {f"{NODE}.{key}": value for key, value in trained.items()}
    model = model_of(trained_on=ORIGIN.model_copy(update={"config": config}))
    cfg = load_cfg(opts=[f"{NODE}.{word}" if n % 2 == 0 else word for n, word in enumerate(asked)])
    with pytest.raises(UserError, match=re.escape(message.format(NODE))) if message else nullcontext():
        run_module.check_configuration(model, cfg)


@pytest.mark.parametrize(("opts", "message"), [
    (["TRAINER.NAME", "TipAdapter"], ""), ([], "give --trainer TipAdapter, not"),
    (["TRAINER.NAME", "TipAdapter", "TRAINER.TIPADAPTER.BETA", 1.0], r"TRAINER\.TIPADAPTER\.BETA 5\.5, not 1\.0"),
])  # fmt: skip
def test_all_options_of_a_baseline_are_checked(opts, message):
    cfg = load_cfg(method=method_options("TipAdapter") if opts else None, opts=opts)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        run_module.check_configuration(model_of("TipAdapter"), cfg)


def test_half_of_a_bank_with_a_repeated_name_keeps_its_classes(run, unit_features, tmp_path):
    names = ["crane", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "crane"]
    labels = torch.arange(10)
    train = unit_features(1, 20, 16), labels.repeat(2)
    text = unit_features(10, 16, seed=1), unit_features(10, 16, seed=2)
    tested = {"test_features": unit_features(10, 16, seed=3), "test_labels": labels}
    bank = FeatureBank(*train, *text, names, "Zoo", backbone="none", logit_scale=100.0, **tested)
    bank.save(tmp_path / "zoo.safetensors")
    _, out = run(bank=tmp_path / "zoo.safetensors", name="all")
    words = ("--eval-only", "--model-dir", str(out), "DATASET.SUBSAMPLE_CLASSES", "base")
    half, _ = run(*words, bank=tmp_path / "zoo.safetensors", name="half")
    assert load_model(out).class_ids == ("0: crane", *names[1:9], "9: crane")
    assert (half["rule"], half["num_classes"]) == ("same classes", 5)


def test_numbered_name_of_another_class_numbers_all():
    assert ids_of_names(["crane", "0: crane", "crane"]) == ("0: crane", "1: 0: crane", "2: crane")


def test_features_in_memory_have_val_images(tiny_bank):
    bank = load_bank(tiny_bank)
    assert FeatureTask(bank, load_cfg(), 1).has_val
    assert not FeatureTask(bank.without_test(), load_cfg(), 1).has_test
    assert not FeatureTask(replace(bank, val_features=None, val_labels=None), load_cfg(), 1).has_val


@pytest.mark.parametrize("published", [True, False])
def test_pool_of_a_published_split_may_repeat_test_images(published, monkeypatch):
    keys = ["DATASET.NAME", "Digits", "DATASET.NUM_SHOTS", 16, "DATASET.UNLABELLED", "pool"]
    task = load_image_task(load_cfg(opts=keys), 1, "cpu")
    if not published:
        monkeypatch.setattr(task, "name", OWN)
    monkeypatch.setattr(task, "encode", lambda dataset, images, name: AXES[:1].repeat(len(images), 1))
    with nullcontext() if published else pytest.raises(UserError, match="unlabelled images are test images as well"):
        assert len(read_unlabelled(task, AXES, "any", "cpu")) == 698 - 160 + 200


def test_only_test_images_are_loaded():
    keys = ["DATASET.NAME", "Digits", "SEED", -1, "DATASET.SUBSAMPLE_CLASSES", "new"]
    task = load_image_task(load_cfg(opts=keys), 3, "cpu", trained_on=ONE_SHOT)
    assert (task.split, task.seed, len(task.dataset.test)) == ({"train": [], "val": []}, 3, 899 - 448)
    assert list(task.classnames) == ["five", "six", "seven", "eight", "nine"]
    with pytest.raises(UserError, match="--dataset-config-file"):
        load_image_task(load_cfg(), 3, "cpu", trained_on=ONE_SHOT)


def test_pool_of_a_test_is_read_with_its_images(monkeypatch):
    monkeypatch.setattr(loading, "load_dataset", read := Mock(wraps=loading.load_dataset))
    keys = ["DATASET.NAME", "Digits", "DATASET.NUM_SHOTS", 16, "DATASET.UNLABELLED", "pool"]
    task = load_image_task(load_cfg(opts=keys), 3, "cpu", trained_on=ONE_SHOT)
    trained = load_few_shot("Digits", "", 1, 3, pool=True)
    assert (task.split, task.dataset.test, task.dataset.pool) == ({"train": [], "val": []}, trained.test, trained.pool)
    assert len(trained.pool) == 698 - 10 + 200 and read.call_count == 2  # once each
    monkeypatch.setattr(opening, "load_few_shot", lambda *_: replace(trained, test=[]))
    with pytest.raises(UserError, match="Digits has no test images"):
        load_image_task(load_cfg(opts=keys), 3, "cpu", trained_on=ONE_SHOT)
    with pytest.raises(UserError, match="DigitsInverted has no images left for --unlabelled pool"):
        load_image_task(load_cfg(opts=[*keys, "DATASET.NAME", "DigitsInverted"]), 3, "cpu", trained_on=ONE_SHOT)


def test_pool_of_a_bank_is_that_of_the_training(run, finished_run_once):
    words = ("--eval-only", "--model-dir", str(finished_run_once), "--unlabelled", "pool", "--shots", "1")
    record, _ = run(*words)
    assert record["unlabelled"]["num_images"] == 5 * (6 - 2) + 15  # trained with two shots of six images


def test_test_with_other_unlabelled_images_is_refused(run, finished_run_once, tiny_bank, tmp_path):
    words = ("--eval-only", "--model-dir", str(finished_run_once), "--unlabelled", str(tmp_path / "more.safetensors"))
    bank = load_bank(tiny_bank).without_test()
    bank.save(tmp_path / "more.safetensors")
    run(*words)
    replace(bank, val_features=None, val_labels=None).save(tmp_path / "more.safetensors")
    assert "holds the result of a run with other settings or data" in run(*words, code=2)


# The record of a test


def asking(out: Path, *opts: object):
    common = ["OUTPUT_DIR", str(out), "DATASET.NUM_SHOTS", 1, "SEED", 8]
    return load_cfg(opts=[*common, *opts])


def test_test_on_own_data_repeats_the_record(finished_run_once, tiny_bank, tmp_path, monkeypatch):
    record = json.loads((finished_run_once / "result.json").read_text())
    monkeypatch.setattr(run_module, "time", Mock(**{"monotonic.side_effect": [3.0, 8.0, 9.0, 11.0]}))
    configured = asking(tmp_path / "again")
    found = run_module.test_model(configured, tiny_bank, finished_run_once, None, "cpu")
    same = ("accuracy", "accuracy_text", "macro_f1", "num_test", "test_set", "shots", "seed", "num_train", "split_hash")
    same += ("selected_on", "selected", "host")
    assert {key: found[key] for key in same} == {key: record[key] for key in same}
    here, there = found["calibration"], record["calibration"]
    assert (here["fitted_on"], here["temperature"]) == ("model", there["temperature"])
    assert here["after"]["nll"] == pytest.approx(there["after"]["nll"], abs=1e-3)
    seconds = found["seconds"]
    assert (seconds["features"], seconds["test"]) == (5, 2)
    assert found["adapter_from"] == str(finished_run_once / "model")
    assert not {"rule", "num_classes", "trained_on"} & set(found)
    monkeypatch.setattr(run_module, "evaluate", lambda *_: pytest.fail("tested again"))
    assert run_module.run(configured, tiny_bank, finished_run_once) == found
    other = Path(shutil.copytree(finished_run_once / "model", tmp_path / "other"))
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    with pytest.raises(UserError, match=r"again holds the result .*; choose another output folder \(--output-dir\)$"):
        run_module.test_model(configured, tiny_bank, other, None, "cpu")


@pytest.mark.parametrize(("name", "message"), [
    ("Digits", r"expected a bank of DATASET\.NAME 'Digits', got 'Tiny'"), ("", "has no test images"),
])  # fmt: skip
def test_banks_of_other_data_or_without_test_are_refused(finished_run_once, tiny_bank, tmp_path, name, message):
    if not name:
        load_bank(tiny_bank).without_test().save(tiny_bank)
    with pytest.raises(UserError, match=message):
        run_module.test_model(asking(tmp_path / "x", "DATASET.NAME", name), tiny_bank, finished_run_once, None, "cpu")


@pytest.mark.parametrize(("names", "rule", "message"), [
    (["elk", "ant", "bee", "cow", "dog"], "same classes", "Other (same classes as the model's), 2 shots"),
    (["vole", "wasp", "yak", "zebra", "ape"], "other classes", "Other (other classes than the model's), 2 shots"),
])  # fmt: skip
def test_test_on_other_data_records_the_rule(run, finished_run_once, tiny_bank, tmp_path, names, rule, message):
    replace(load_bank(tiny_bank), dataset="Other", classnames=names).save(other := tmp_path / "other.safetensors")
    record, _ = run("--eval-only", "--model-dir", str(finished_run_once), bank=other)
    assert record.items() >= {"dataset": "Other", "rule": rule, "num_classes": 5, "trained_on": "Tiny"}.items()
    assert (record["calibration"]["fitted_on"], record["calibration"]["temperature"]) == ("nothing", 1.0)
    assert summary(record).startswith(message)


@pytest.mark.parametrize("how", [("--load-epoch", "2"), (f"{NODE}.CALIBRATE", "off")])
def test_record_without_fitted_temperature(run, tmp_path, how):
    run("TRAIN.CHECKPOINT_FREQ", "2", *([] if "--load-epoch" in how else how), name="trained")
    record, _ = run("--eval-only", "--model-dir", str(tmp_path / "trained"), *how, name="tested")
    assert (record["calibration"]["fitted_on"], record["calibration"]["temperature"]) == ("nothing", 1.0)


# Through the command line


def test_own_images_as_domain_score_the_text_classifier(run, digits_features):
    words = ("--dataset-config-file", "digits", "--config-file", "mini", "--target-domains", "Digits", "DigitsHigh")
    keys = (f"{NODE}.FEATURES.DIR", str(digits_features), f"{NODE}.CALIBRATE", "off", f"{NODE}.ALPHA_C", "16")
    record, _ = run(*words, *keys, bank=None)  # with a cache that changes predictions
    own, high = (record["targets"][name] for name in ("Digits", "DigitsHigh"))
    assert own["accuracy"] == record["accuracy_text"] != record["accuracy"]
    assert own["accuracy_zero_shot"] == record["accuracy_zero_shot"]
    assert (own["rule"], own["num_test"], own["num_classes"]) == ("same classes", 899, 10)
    assert (high["num_classes"], high["num_test"]) == (5, 451)
    assert high["accuracy_zero_shot"] > record["accuracy_zero_shot"]  # only those of its classes compete


def test_target_half_of_a_bank_equals_eval_only(run):
    first, out = run("--target-datasets", "Tiny:new", "DATASET.SUBSAMPLE_CLASSES", "base")
    again, _ = run("--eval-only", "--model-dir", str(out), "DATASET.SUBSAMPLE_CLASSES", "new", name="test")
    [(name, scores)] = first["targets"].items()
    assert (name, scores["rule"], scores["num_classes"], scores["num_test"]) == ("Tiny:new", "other classes", 2, 16)
    assert again.items() >= scores.items()
    for flag, name in (("--target-domains", "Tiny:new"), ("--target-datasets", "Other:new")):
        assert f"has no data set '{name}'" in run(flag, name, name="none", code=2)
    assert not (out.parent / "none").exists()

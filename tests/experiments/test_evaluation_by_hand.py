"""Testing a trained model elsewhere: which columns compete, in which order, and by which rule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from trainers.hegraph.config import DataOptions
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets import Dataset
from trainers.hegraph.experiments import elsewhere, evaluation, image_task
from trainers.hegraph.experiments.elsewhere import encode_targets, match_classes, score_targets
from trainers.hegraph.experiments.identity import run_config
from trainers.hegraph.experiments.outcome import Outcome
from trainers.hegraph.experiments.run import run
from trainers.hegraph.experiments.tasks import bank_class_ids
from trainers.hegraph.features.bank import FeatureBank, load_bank
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.closed_form import NewClassMessages
from trainers.hegraph.method.options import FreeOptions, ModelOptions
from trainers.hegraph.method.transfer import TransferableAdapter
from trainers.hegraph.models.saved import Backbone, SavedModel, Scores, TrainedOn
from trainers.hegraph.training.loop import TrainingSummary
from trainers.hegraph.utils import processes
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.option import options_of

AXES = torch.eye(3)
NODE = "TRAINER.HEGRAPHADAPTER"


def source() -> FeatureBank:
    """Zero-shot CLIP knows the classes a, b, c as the three axes."""
    return FeatureBank(
        train_features=AXES[None],
        train_labels=torch.arange(3),
        text_positive=AXES,
        text_negative=AXES,
        classnames=["a", "b", "c"],
        dataset="Source",
        backbone="m/w",
        logit_scale=10.0,
    )


@dataclass
class Targets:
    """A task whose targets are given by name: the class ids, features and labels of each."""

    domains: dict[str, tuple] = field(default_factory=dict)
    others: dict[str, FeatureBank] = field(default_factory=dict)
    dataset: object = field(default_factory=lambda: SimpleNamespace(ids=["a", "b", "c"], name="Source"))

    def target_dataset(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(ids=self.domains[name][0] if name in self.domains else [], name=name)

    def target_images(self, name: str) -> tuple:
        ids, features, labels = self.domains[name]
        return SimpleNamespace(ids=ids), features, labels

    def check_target(self, name: str) -> None:
        assert name in self.others

    def target(self, name: str) -> FeatureBank:
        return self.others[name]


def data_of(domains: tuple = (), others: tuple = ()) -> DataOptions:
    return DataOptions(target_domains=list(domains), target_datasets=list(others))


def outcome_of(classify=None, transfer=None) -> Outcome:
    return Outcome(None, None, TrainingSummary(), 0, classify=classify, transfer=transfer)


# Right after training


def test_a_domain_with_its_classes_in_another_order_is_scored_by_its_own_labels():
    # The target's label 0 is c and its label 1 is a. Four images: zero-shot sees c, a, a, and b, which does not
    # compete: of c and a that image is nearer to a. The labels say c, a, c, c: right are the first and the second.
    features = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    task = Targets({"Domain": (["c", "a"], features, torch.tensor([0, 1, 0, 0]))})
    # The method turns a into c and c into a: the third and the fourth are right
    swapped = outcome_of(classify=lambda images: images[:, [2, 1, 0]])
    assert score_targets(task, source(), data_of(["Domain"]), swapped) == {
        "Domain": {
            "accuracy": 50.0,
            "accuracy_zero_shot": 50.0,
            "num_test": 4,
            "num_classes": 2,
            "rule": "same classes",
        }
    }
    right = outcome_of(classify=lambda images: images)
    labels = torch.tensor([0, 1, 1, 1])
    task = Targets({"Domain": (["c", "a"], features, labels)})
    assert score_targets(task, source(), data_of(["Domain"]), right)["Domain"]["accuracy"] == 100.0
    assert score_targets(task, source(), data_of(["Domain"]), swapped)["Domain"]["accuracy"] == 0.0
    assert score_targets(task, source(), data_of(["Domain"]), swapped)["Domain"]["accuracy_zero_shot"] == 100.0


def test_a_domain_is_classified_in_batches_since_a_cache_takes_memory_for_every_image():
    sizes = []
    task = Targets({"Domain": (["a", "b", "c"], AXES.repeat(500, 1), torch.arange(3).repeat(500))})
    outcome = outcome_of(classify=lambda images: sizes.append(len(images)) or images)
    assert score_targets(task, source(), data_of(["Domain"]), outcome)["Domain"]["accuracy"] == 100.0
    assert sizes == [1024, 476]


def test_a_domain_is_scored_on_the_device_of_the_training_features(monkeypatch):
    # "meta" is a device that every machine has; its tensors have shapes and no values, so nothing is counted
    seen = []
    monkeypatch.setattr(elsewhere, "accuracy", lambda logits, _: seen.append(logits.device.type))
    task = Targets({"Domain": (["a", "b", "c"], AXES, torch.arange(3))})
    outcome = outcome_of(classify=lambda images: seen.append(images.device.type) or images)
    score_targets(task, source().to("meta"), data_of(["Domain"]), outcome)
    assert seen == ["meta", "meta", "meta"]  # what the method is given, its logits and those of zero-shot CLIP


@dataclass
class Pictures(Targets):
    """Targets that have to be encoded, and say in `encoded` which were."""

    encoded: list = field(default_factory=list)

    def encode(self) -> None:
        pytest.fail("the task itself is not a target")

    def training_images(self) -> None:
        pytest.fail("the task itself is not a target")

    def target_images(self, name: str) -> tuple:
        self.encoded.append(name)
        return super().target_images(name)

    def target(self, name: str) -> FeatureBank:
        self.encoded.append(name)
        return super().target(name)


def test_targets_are_encoded_in_the_order_in_which_they_are_scored_and_those_of_a_bank_need_not_be():
    domain = (["a", "b", "c"], AXES, torch.arange(3))
    targets = {"domains": {"D": domain, "C": domain}, "others": {"B": other_bank(), "A": other_bank()}}
    data = data_of(["D", "C"], ["B", "A"])
    task = Pictures(**targets)
    encode_targets(task, data)
    assert task.encoded == ["D", "C", "B", "A"]
    score_targets(task, source(), data, outcome_of())
    assert task.encoded == 2 * ["D", "C", "B", "A"]
    encode_targets(object(), data)


def test_a_method_without_a_rule_leaves_the_cell_empty():
    task = Targets({"Domain": (["a", "b", "c"], AXES, torch.arange(3))}, {"Other": other_bank()})
    found = score_targets(task, source(), data_of(["Domain"], ["Other"]), outcome_of())
    assert found["Domain"]["accuracy"] is found["Other"]["accuracy"] is None
    assert found["Domain"]["accuracy_zero_shot"] == 100.0


def other_bank(labels: tuple = (0, 1, 1)) -> FeatureBank:
    """Two other classes, which are the second and the third axis; three test images, on the axes."""
    return FeatureBank(
        train_features=torch.zeros(1, 0, 3),
        train_labels=torch.zeros(0, dtype=torch.long),
        text_positive=AXES[1:],
        text_negative=AXES[1:],
        classnames=["x", "y"],
        dataset="Other",
        backbone="m/w",
        logit_scale=10.0,
        test_features=AXES,
        test_labels=torch.tensor(labels),
    )


def test_other_classes_are_scored_by_the_rule_of_the_method_on_the_targets_own_bank():
    # Zero-shot: the first image is equally far from both, and the first class is taken; then x and y. Labels: x, y, y.
    seen = []

    def transfer(bank: FeatureBank) -> Tensor:
        seen.append(bank)
        return torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])  # always y

    task = Targets(others={"Other": other_bank()})
    found = score_targets(task, source(), data_of((), ["Other"]), outcome_of(transfer=transfer))
    assert found["Other"] == {
        "accuracy": pytest.approx(200 / 3),
        "accuracy_zero_shot": pytest.approx(200 / 3),
        "num_test": 3,
        "num_classes": 2,
        "rule": "other classes",
    }
    assert torch.equal(seen[0].text_positive, AXES[1:])
    task = Targets(others={"Other": other_bank((0, 0, 1))})
    found = score_targets(task, source(), data_of((), ["Other"]), outcome_of(transfer=transfer))["Other"]
    assert (found["accuracy"], found["accuracy_zero_shot"]) == (pytest.approx(100 / 3), 100.0)


def test_without_targets_nothing_is_asked_of_a_task_and_a_task_without_images_refuses_them():
    assert score_targets(object(), source(), data_of(), outcome_of()) == {}
    for data, words in ((data_of(["Domain"]), "a feature bank has no"), (data_of((), ["Other"]), "arrays have no")):
        with pytest.raises(UserError, match=f"{words} other data sets"):
            score_targets(object(), source(), data, outcome_of())


def test_a_target_without_labels_is_no_target():
    task = Targets({"Domain": (["a", "b"], AXES, None)})
    with pytest.raises(ValueError, match="without test images"):
        score_targets(task, source(), data_of(["Domain"]), outcome_of())


@pytest.mark.parametrize(("ids", "shown"), [("wxyz", r"w, x, y, \.\.\."), ("wxy", r"w, x, y"), ("wa", "w")])
def test_at_most_three_unknown_classes_are_named(ids, shown):
    count = len(set(ids) - {"a"})
    with pytest.raises(UserError, match=rf"^{count} of {len(ids)} classes of B are none of A's \({shown}\); "):
        match_classes(["a", "b"], list(ids), "A", "B")


# A saved model


def model_of(method: str = "HeGraphAdapter", **changed: object) -> SavedModel:
    """Class weights 10 times the axes, and a cache that says class b whatever it sees, with the weight 100."""
    fields = {
        "classifier": FoldedClassifier(10 * AXES, keys=AXES, labels=torch.tensor([1, 1, 1]), alpha=100.0, beta=0.0),
        "text_positive": AXES[[1, 2, 0]],
        "classnames": ("ant", "bee", "cow"),
        "class_ids": ("a", "b", "c"),
        "method": method,
        "variant": "full" if method == "HeGraphAdapter" else "",
        "logit_scale": 10.0,
        "backbone": Backbone(title="m/w", model="m", pretrained="w", fingerprint={}),
        "trained_on": TrainedOn(
            dataset="Source",
            shots=2,
            seed=1,
            num_train=3,
            split_hash="0" * 64,
            selected_on="last_step",
            selected={},
            config={f"{NODE}.ALPHA_C": 8.0, f"{NODE}.SELECT": [], "OPTIM.LR": 0.001, "TRAINER.TIPADAPTER.BETA": 5.5},
            host="alone",
            git_commit=None,
            versions={},
        ),
        "scores": Scores(accuracy=None, accuracy_text=None, accuracy_zero_shot=None, macro_f1=None, num_test=0),
    }
    return SavedModel(**fields | changed)


@dataclass
class Images:
    """Three test images on the axes, with labels; the text features of the classes are the axes, too."""

    class_ids: tuple[str, ...]
    name: str = "Elsewhere"
    labels: tuple[int, ...] = (0, 1, 2)
    features: Tensor = field(default_factory=lambda: AXES)
    checked: list = field(default_factory=list)

    @property
    def classnames(self) -> list[str]:
        return [f"the {class_id}" for class_id in self.class_ids]

    def check_backbone(self, model: SavedModel) -> None:
        self.checked.append(model)

    def test_features(self) -> tuple[Tensor, Tensor]:
        return self.features, torch.tensor(self.labels)

    def text_features(self) -> tuple[Tensor, Tensor]:
        return AXES[: len(self.class_ids)], -AXES[: len(self.class_ids)]


@pytest.mark.parametrize(
    ("class_ids", "name", "rule", "columns"),
    [
        (("a", "b", "c"), "Source", "", [0, 1, 2]),
        (("a", "b", "c"), "Elsewhere", "same classes", [0, 1, 2]),
        (("c", "a", "b"), "Source", "same classes", [2, 0, 1]),
        (("c", "a"), "Elsewhere", "same classes", [2, 0]),
        (("a", "b"), "Source", "same classes", [0, 1]),
        (("a", "b", "c", "d"), "Source", "other classes", []),
        (("x", "y"), "Elsewhere", "other classes", []),
    ],
)
def test_the_rule_follows_from_the_classes_and_the_data_set(class_ids, name, rule, columns):
    assert evaluation.find_rule(model_of(), Images(class_ids, name)) == (rule, columns)


def test_on_its_own_data_set_a_model_is_tested_whole():
    # The cache adds 100 * 3 for b to every image
    data = Images(("a", "b", "c"), "Source")
    model = model_of()
    tested = evaluation.evaluate(model, data, "cpu")
    assert torch.equal(tested.outcome.logits, 10 * AXES + torch.tensor([0.0, 300.0, 0.0]))
    assert torch.equal(tested.outcome.text_logits, 10 * AXES)
    assert tested.rule == ""
    assert data.checked == [model]
    assert (tested.outcome.variant, tested.outcome.num_parameters) == ("full", 0)
    assert torch.equal(tested.outcome.labels, torch.arange(3))


def test_in_another_domain_the_adapter_leaves_its_cache_and_the_columns_are_the_targets():
    tested = evaluation.evaluate(model_of(), Images(("c", "a")), "cpu")
    expected = torch.tensor([[0.0, 10.0], [0.0, 0.0], [10.0, 0.0]])
    assert torch.equal(tested.outcome.logits, expected)
    assert torch.equal(tested.outcome.text_logits, expected)
    assert tested.rule == "same classes"


def test_in_another_domain_another_method_keeps_its_cache():
    tested = evaluation.evaluate(model_of("TipAdapter"), Images(("b", "a")), "cpu")
    assert torch.equal(tested.outcome.logits, torch.tensor([[300.0, 10.0], [310.0, 0.0], [300.0, 0.0]]))
    assert tested.outcome.text_logits is None  # only HeGraphAdapter has a text classifier of its own


def test_the_bank_of_a_test_holds_zero_shot_clip_for_the_targets_classes():
    tested = evaluation.evaluate(model_of(), Images(("c", "a")), "cpu")
    bank = tested.bank
    assert torch.equal(bank.text_positive, AXES[[0, 1]])  # the model's own of c and of a
    assert torch.equal(bank.test_features, AXES)
    assert torch.equal(bank.test_labels, torch.arange(3))
    assert (bank.train_features.shape, bank.train_labels.shape) == ((1, 0, 3), (0,))
    assert (bank.classnames, bank.dataset, bank.backbone, bank.logit_scale) == (
        ["the c", "the a"],
        "Elsewhere",
        "m/w",
        10.0,
    )
    other = evaluation.evaluate(model_of("ZeroShot", transfer_rule="zero-shot"), Images(("x", "y")), "cpu").bank
    assert torch.equal(other.text_positive, AXES[:2])  # the data's


def test_other_classes_go_by_the_rule_that_the_model_was_saved_with():
    data = Images(("x", "y"))
    tested = evaluation.evaluate(model_of("ZeroShot", transfer_rule="zero-shot"), data, "cpu")
    assert torch.equal(tested.outcome.logits, 10 * AXES[:, :2])
    assert tested.rule == "other classes"
    base = TransferableAdapter(ModelOptions(variant="base"), {})  # it leaves the text features as they are
    tested = evaluation.evaluate(model_of(transfer_rule="adapter", transfer=base), data, "cpu")
    assert torch.equal(tested.outcome.logits, 10 * AXES[:, :2])
    assert torch.equal(tested.outcome.text_logits, tested.outcome.logits)


def test_other_classes_are_scored_on_the_device_that_is_asked_for():
    messages = NewClassMessages(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3))
    adapter = TransferableAdapter(ModelOptions(variant="free"), {}, messages)
    model = model_of(transfer_rule="adapter", transfer=adapter)
    tested = evaluation.evaluate(model, Images(("x", "y")), "meta")
    assert tested.outcome.logits.device.type == "meta"


@pytest.mark.parametrize("changed", [{"transfer_rule": "none"}, {"transfer_rule": "adapter", "transfer": None}])
def test_a_model_without_a_rule_refuses_other_classes(changed):
    with pytest.raises(UserError, match="TipAdapter has no rule for classes that it was not trained on"):
        evaluation.evaluate(model_of("TipAdapter", **changed), Images(("x", "y")), "cpu")


def test_features_of_another_width_are_refused():
    with pytest.raises(UserError, match="the model takes features of width 3, got 2"):
        evaluation.evaluate(model_of(), Images(("a", "b", "c"), "Source", features=torch.eye(2)), "cpu")


def test_a_configuration_of_another_model_is_refused_and_keys_that_did_not_shape_it_are_free():
    evaluation.check_configuration(model_of(), load_cfg(opts=[f"{NODE}.ALPHA_C", 8.0, "OPTIM.LR", 0.5]))
    with pytest.raises(UserError, match=rf"the model was trained with {NODE}\.ALPHA_C 8\.0 .* says 2\.0"):
        evaluation.check_configuration(model_of(), load_cfg(opts=[f"{NODE}.ALPHA_C", 2.0]))
    with pytest.raises(UserError, match="the model is of TipAdapter; give --trainer TipAdapter, not HeGraphAdapter"):
        evaluation.check_configuration(model_of("TipAdapter"), load_cfg())


def test_the_model_keeps_every_option_that_it_was_made_of():
    assert set(evaluation.KEPT) == {
        option.key for holder in (ModelOptions, FreeOptions) for option in options_of(holder)
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("FREE.KAPPA", [[1, 9.0]]), ("FREE.OMEGA", [[1, 50.0]]), ("FREE.RHO", 0.7), ("NOISE", 0.0),
     ("SHUFFLE", "negative"), ("WEIGHT_INIT", "zero")],
)  # fmt: skip
def test_a_key_that_shaped_the_model_is_not_changed_in_silence(key, value):
    usual = load_cfg()
    trained_on = model_of().trained_on.model_copy(update={"config": run_config(usual)})
    evaluation.check_configuration(model_of(trained_on=trained_on), usual)
    with pytest.raises(UserError, match=rf"the model was trained with {NODE}\.{key} .* and keeps it"):
        evaluation.check_configuration(model_of(trained_on=trained_on), load_cfg(opts=[f"{NODE}.{key}", value]))


def test_rows_may_be_given_as_tuples_though_a_model_folder_holds_lists():
    trained_on = model_of().trained_on.model_copy(update={"config": {f"{NODE}.FREE.OMEGA": [[1, 50.0]]}})
    configured = load_cfg(opts=[f"{NODE}.FREE.OMEGA", "((1, 50.0),)"])
    evaluation.check_configuration(model_of(trained_on=trained_on), configured)


def test_another_method_keeps_all_its_options():
    def configured(beta: float):
        return load_cfg(
            method=("TipAdapter", {"BETA": 5.5}), opts=["TRAINER.NAME", "TipAdapter", "TRAINER.TIPADAPTER.BETA", beta]
        )

    evaluation.check_configuration(model_of("TipAdapter"), configured(5.5))
    with pytest.raises(UserError, match=r"trained with TRAINER\.TIPADAPTER\.BETA 5\.5 .* says 1\.0"):
        evaluation.check_configuration(model_of("TipAdapter"), configured(1.0))


# A feature bank as test data


def test_the_test_part_of_a_bank_is_what_is_tested(tiny_bank):
    bank = load_bank(tiny_bank)
    data = evaluation.BankTestData(tiny_bank, load_cfg())
    features, labels = data.test_features()
    assert torch.equal(features, bank.test_features)
    assert torch.equal(labels, bank.test_labels)
    positive, negative = data.text_features()
    assert torch.equal(positive, bank.text_positive)
    assert torch.equal(negative, bank.text_negative)
    assert data.name == "Tiny"
    assert list(data.classnames) == list(data.class_ids) == ["ant", "bee", "cow", "dog", "elk"]
    with pytest.raises(UserError, match="the model is of 'm/w' features, but the bank holds those of 'none'"):
        data.check_backbone(model_of())
    data.check_backbone(model_of(backbone=Backbone(title="none", model="", pretrained="", fingerprint={})))


def test_half_of_a_banks_classes_can_be_tested(tiny_bank):
    data = evaluation.BankTestData(tiny_bank, load_cfg(opts=["DATASET.SUBSAMPLE_CLASSES", "new"]))
    assert list(data.classnames) == ["dog", "elk"]


def test_a_bank_of_another_data_set_or_without_test_images_is_refused(tiny_bank, tmp_path):
    evaluation.BankTestData(tiny_bank, load_cfg(opts=["DATASET.NAME", "Tiny"]))
    with pytest.raises(UserError, match=r"holds 'Tiny' but DATASET\.NAME is 'Digits'"):
        evaluation.BankTestData(tiny_bank, load_cfg(opts=["DATASET.NAME", "Digits"]))
    path = tmp_path / "no_test.safetensors"
    load_bank(tiny_bank).without_test().save(path)
    with pytest.raises(UserError, match="has no test images, so no model can be tested on it"):
        evaluation.BankTestData(path, load_cfg())


def test_two_classes_of_one_name_are_told_apart_by_their_position(tiny_bank):
    twice = replace(load_bank(tiny_bank), classnames=["crane", "bee", "crane"])
    assert bank_class_ids(twice) == ("0: crane", "1: bee", "2: crane")


# The data and the record of a test


def test_the_test_images_are_those_of_the_data_set_alone():
    data = evaluation.test_images(load_cfg(opts=["DATASET.NAME", "Digits", "DATASET.SUBSAMPLE_CLASSES", "new"]))
    assert (data.train, data.val) == ([], [])
    assert list(data.classnames) == ["five", "six", "seven", "eight", "nine"]
    assert len(data.test) == 899 - 448  # the other half has 448
    with pytest.raises(UserError, match="no data: give --dataset-config-file"):
        evaluation.test_images(load_cfg())


@pytest.mark.parametrize(("seed", "used"), [(-1, 0), (0, 0), (1, 1), (4, 4)])
def test_a_data_set_is_loaded_by_name_root_and_a_seed_that_is_not_negative(monkeypatch, seed, used):
    asked = []

    def load_test_images(*arguments):
        asked.append(arguments)
        raise UserError("seen")

    monkeypatch.setattr(evaluation, "load_test_images", load_test_images)
    with pytest.raises(UserError, match="seen"):
        evaluation.test_images(load_cfg(opts=["DATASET.NAME", "Digits", "DATASET.ROOT", "there", "SEED", seed]))
    assert asked == [("Digits", "there", used, "all")]


def test_files_that_are_missing_are_found_before_anything_is_encoded(monkeypatch):
    asked = []
    monkeypatch.setattr(Dataset, "check_files", lambda dataset: asked.append((dataset.name, len(dataset.train))))
    evaluation.test_images(load_cfg(opts=["DATASET.NAME", "Digits"]))
    assert asked == [("Digits", 0)]


@pytest.fixture
def trained(tiny_bank, tmp_path):
    """The output folder of a run of zero-shot CLIP on the tiny bank, and the record of that run."""
    return tmp_path / "trained", run(zero_shot(tmp_path / "trained"), tiny_bank)


def zero_shot(out: Path, *opts: object):
    common = ["OUTPUT_DIR", str(out), "DATASET.NUM_SHOTS", 2, "SEED", 3, "TRAINER.NAME", "ZeroShot"]
    return load_cfg(method=("ZeroShot", {}), opts=[*common, *opts])


def test_a_test_on_its_own_data_repeats_the_record_of_the_run_and_is_not_done_twice(
    trained, tiny_bank, tmp_path, monkeypatch
):
    folder, record = trained
    configured = zero_shot(tmp_path / "again", "DATASET.NUM_SHOTS", 1, "SEED", 8)
    clock, evaluate = [3.0], evaluation.evaluate

    def slow(*arguments):
        clock[0] += 5
        return evaluate(*arguments)

    monkeypatch.setattr(evaluation, "evaluate", slow)
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    tested = evaluation.test_model(configured, tiny_bank, folder, None, "cpu")
    same = ("accuracy", "macro_f1", "shots", "seed", "num_train", "split_hash", "selected_on", "selected", "host")
    assert {key: tested[key] for key in same} == {key: record[key] for key in same}
    assert tested["seconds"]["features"] == 5
    assert not {"rule", "num_classes", "trained_on"} & set(tested)
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("tested again"))
    assert evaluation.test_model(configured, tiny_bank, folder, None, "cpu") == tested


def test_of_several_processes_all_encode_and_the_first_tests(trained, tiny_bank, tmp_path, monkeypatch):
    asked, evaluate = [], evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *arguments: asked.append(arguments) or evaluate(*arguments))
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert evaluation.test_model(zero_shot(tmp_path / "there"), tiny_bank, trained[0], None, "cpu") == {}
    assert len(asked) == 1
    assert not (tmp_path / "there").exists()


def test_the_record_of_a_test_elsewhere_says_the_rule_and_where_the_model_comes_from(trained, tiny_bank, tmp_path):
    bank = load_bank(tiny_bank)
    other = replace(bank, dataset="Other", classnames=["elk", "ant", "bee", "cow", "dog"])
    path = tmp_path / "other.safetensors"
    other.save(path)
    tested = evaluation.test_model(zero_shot(tmp_path / "there"), path, trained[0], None, "cpu")
    assert (tested["dataset"], tested["rule"], tested["num_classes"]) == ("Other", "same classes", 5)
    assert tested["trained_on"] == "Tiny"
    # Label 0 is elk now, which the model knows as its class 4, and so on
    predicted = (bank.test_features @ bank.text_positive.t()).argmax(dim=1)
    moved = torch.tensor([1, 2, 3, 4, 0])[predicted]
    assert tested["accuracy"] == 100 * (moved == bank.test_labels).sum().item() / 40


def test_images_are_tested_where_no_bank_is_given(trained, tmp_path, monkeypatch):
    asked = []

    def image_task_of(*arguments):
        asked.append(arguments)
        raise UserError("seen")

    monkeypatch.setattr(image_task, "ImageTask", image_task_of)
    configured = zero_shot(tmp_path / "there", "DATASET.NAME", "Digits", "SEED", 8)
    with pytest.raises(UserError, match="seen"):
        evaluation.test_model(configured, None, trained[0], None, "cpu")
    [(dataset, used, seed, device)] = asked
    assert (dataset.name, used, seed, device) == ("Digits", configured, 3, "cpu")  # the seed of the model

"""Models of the command line whose classes are not sorted, opened as a classifier: every answer by the name of a class.

The reference is the command `predict`, or a classifier that was fitted to the same images with sorted labels.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from torch import Tensor

from trainers.hegraph import FeatureBank, HeGraphClassifier, load_bank
from trainers.hegraph.__main__ import main
from trainers.hegraph.models.class_order import reordered
from trainers.hegraph.models.export.onnx_file import write_onnx
from trainers.hegraph.models.folder import CONFIG, PARAMETERS, SHAPES, TENSORS, load_model, save_model
from trainers.hegraph.models.saved import adapt

NAMES = ["moth", "Zebra", "ant", "cow", "bee"]
SORTED = ["Zebra", "ant", "bee", "cow", "moth"]
NODE = "TRAINER.HEGRAPHADAPTER"
QUICK = ("OPTIM.MAX_EPOCH", "3", "OPTIM.WARMUP_EPOCH", "0", f"{NODE}.MIN_STEPS", "0")
FREE = (f"{NODE}.VARIANT", "training_free")


def trained(bank: FeatureBank, folder: Path, *options: str) -> None:
    """Run the command line on all training images of a bank, 6 of each class; the bank stays in the folder."""
    file = folder / "zoo.safetensors"
    bank.save(file)
    flags = ("--features", str(file), "--shots", "6", "--seed", "1", "--output-dir", str(folder / "run"))
    assert main([*flags, *options, *QUICK]) == 0


def opened(folder: Path, bank: FeatureBank) -> SimpleNamespace:
    return SimpleNamespace(run=folder / "run", bank=bank, file=folder / "zoo.safetensors")


@pytest.fixture(scope="session")
def unsorted_bank(tiny_bank_file, unit_features) -> FeatureBank:
    """The tiny bank with class names whose sorted order differs from that of the file, and harder images to test."""
    bank = load_bank(tiny_bank_file)
    noisy = {}
    for name in ("val_features", "test_features"):
        features = getattr(bank, name)
        noisy[name] = torch.nn.functional.normalize(features + unit_features(*features.shape, seed=8), dim=1)
    return replace(bank, classnames=NAMES, **noisy)


@pytest.fixture(scope="session")
def full(once, unsorted_bank) -> SimpleNamespace:
    """A run of the full variant with one label per image."""
    return opened(once("unsorted_full", lambda folder: trained(unsorted_bank, folder)), unsorted_bank)


@pytest.fixture(scope="session")
def free(once, unsorted_bank) -> SimpleNamespace:
    """A run of the training-free variant with one label per image."""
    return opened(once("unsorted_free", lambda folder: trained(unsorted_bank, folder, *FREE)), unsorted_bank)


@pytest.fixture(scope="session")
def several(once, unsorted_bank) -> SimpleNamespace:
    """A run with several labels per image: each image is the sum of two images of the tiny bank."""

    def scenes(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        one_hot = torch.nn.functional.one_hot(labels, len(NAMES))
        mixed = torch.nn.functional.normalize(features + features.roll(1, dims=-2), dim=-1)
        return mixed, (one_hot + one_hot.roll(1, dims=0)).bool()

    train, train_labels = scenes(unsorted_bank.train_features[:1], unsorted_bank.train_labels)
    test, test_labels = scenes(unsorted_bank.test_features, unsorted_bank.test_labels)
    parts = {"train_features": train, "train_labels": train_labels, "test_features": test, "test_labels": test_labels}
    bank = replace(unsorted_bank, val_features=None, val_labels=None, **parts)
    return opened(once("unsorted_several", lambda folder: trained(bank, folder, *FREE)), bank)


@pytest.fixture(params=["full", "free"])
def single(request) -> SimpleNamespace:
    """The runs with one label per image."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["full", "free", "several"])
def each(request) -> SimpleNamespace:
    """All runs."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def predicted(capsys) -> Callable[..., list[dict]]:
    """Function that runs the command `predict` on the test images of a bank: a row for each image."""

    def predict(run: SimpleNamespace, *flags: str) -> list[dict]:
        capsys.readouterr()
        given = [str(run.run), "--features", str(run.file), "--format", "jsonl", "--top", "9"]
        assert main(["predict", *given, *flags]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return predict


def by_name(rows: list[dict], names: list[str]) -> np.ndarray:
    """Probabilities of the rows of `predict`, shape `[n, K]`, with the classes in the order of `names`."""
    tables = [{entry["class"]: entry["probability"] for entry in row["top"]} for row in rows]
    return np.array([[table[name] for name in names] for table in tables])


def logits_by_name(run: SimpleNamespace, names: list[str]) -> np.ndarray:
    model = load_model(run.run)
    logits = model.classifier.logits(run.bank.test_features)
    return logits[:, [model.classnames.index(name) for name in names]].numpy()


def labels_of(run: SimpleNamespace) -> np.ndarray:
    return np.array(run.bank.classnames)[run.bank.test_labels]


def test_probabilities_follow_the_sorted_classes(single, predicted):
    classifier = HeGraphClassifier.from_pretrained(single.run, device="cpu")
    X = single.bank.test_features.numpy()
    rows = predicted(single)
    assert load_model(single.run).classnames == tuple(NAMES)
    assert classifier.classes_.tolist() == SORTED == list(classifier.model_.classnames)
    np.testing.assert_allclose(classifier.predict_proba(X), by_name(rows, SORTED), atol=2e-6)
    np.testing.assert_allclose(classifier.decision_function(X), logits_by_name(single, SORTED), atol=1e-4)
    assert classifier.predict(X).tolist() == [row["top"][0]["class"] for row in rows]


def test_metrics_of_scikit_learn_agree_by_class(single, predicted):
    classifier = HeGraphClassifier.from_pretrained(single.run, device="cpu")
    X, y = single.bank.test_features.numpy(), labels_of(single)
    rows = predicted(single)
    of_true = by_name(rows, NAMES)[np.arange(len(y)), single.bank.test_labels.numpy()]
    probabilities = classifier.predict_proba(X)
    assert classifier.score(X, y) == np.mean([row["top"][0]["class"] == label for row, label in zip(rows, y)])
    assert log_loss(y, probabilities) == pytest.approx(-np.log(of_true).mean(), abs=1e-4)
    by_class = by_name(rows, NAMES).T
    areas = [roc_auc_score(y == name, column) for name, column in zip(NAMES, by_class)]
    assert roc_auc_score(y, probabilities, multi_class="ovr") == pytest.approx(np.mean(areas))
    precisions = [average_precision_score(y == name, column) for name, column in zip(NAMES, by_class)]
    indicators = y[:, None] == classifier.classes_
    assert average_precision_score(indicators, probabilities) == pytest.approx(np.mean(precisions))


def test_sets_and_rejection_agree_with_predict(single, predicted):
    classifier = HeGraphClassifier.from_pretrained(single.run, device="cpu")
    X = single.bank.test_features.numpy()
    rows = predicted(single, "--coverage", "0.9", "--open-set", "0.7")
    sets = [set(classifier.classes_[row]) for row in classifier.predict_set(X, 0.9)]
    assert sets == [set(row["classes"]) for row in rows] and len({len(each) for each in sets}) > 1
    assert (~classifier.is_known(X, 0.7)).tolist() == [row["none_of_these"] for row in rows]


def test_adaptation_agrees_with_transductive_prediction(single, predicted):
    classifier = HeGraphClassifier.from_pretrained(single.run, device="cpu")
    X = single.bank.test_features.numpy()
    rows = predicted(single, "--transductive")
    adapted = classifier.adapt(X).predict_proba(X)
    # The rows of the command are each without the own contribution of its image to its class
    np.testing.assert_allclose(adapted, by_name(rows, SORTED), atol=0.1)
    reference = adapt(load_model(single.run), single.bank.test_features, "cpu")[0]
    expected = reference.probabilities(single.bank.test_features)
    np.testing.assert_allclose(adapted, expected[:, [NAMES.index(name) for name in SORTED]], atol=1e-5)


def test_several_labels_follow_the_sorted_classes(several, predicted):
    classifier = HeGraphClassifier.from_pretrained(several.run, device="cpu")
    X, Y = several.bank.test_features.numpy(), several.bank.test_labels.numpy()
    order = [NAMES.index(name) for name in SORTED]
    logits = logits_by_name(several, SORTED)
    assert classifier.classes_.tolist() == SORTED
    np.testing.assert_allclose(classifier.decision_function(X), logits, atol=1e-4)
    np.testing.assert_allclose(classifier.predict_proba(X), 1 / (1 + np.exp(-logits)), atol=1e-5)
    chosen = [{entry["class"] for entry in row["top"]} for row in predicted(several)]
    assert [set(classifier.classes_[row == 1]) for row in classifier.predict(X)] == chosen
    mean_precision = average_precision_score(Y[:, order], logits)
    sets = [set(np.array(NAMES)[row]) for row in Y]
    assert classifier.score(X, Y[:, order]) == pytest.approx(mean_precision)
    assert classifier.score(X, sets) == pytest.approx(mean_precision)


@pytest.mark.parametrize("kind", ["free", "several"])
def test_changes_equal_those_of_a_sorted_fit(kind, request, unit_features):
    run = request.getfixturevalue(kind)
    support_set = load_model(run.run).support_set
    order = [NAMES.index(name) for name in SORTED]
    X, test = support_set.features.transpose(0, 1).numpy(), run.bank.test_features.numpy()
    text = {"text_features": support_set.positive[order], "negative_text_features": support_set.negative[order]}
    y = support_set.image_labels()
    more = [{"ant", "bee"}, {"dog"}, {"Zebra", "dog"}] if kind == "several" else ["dog", "ant", "dog"]
    loaded = HeGraphClassifier.from_pretrained(run.run, device="cpu")
    fitted = HeGraphClassifier(variant="training_free", device="cpu").fit(X, y, **text)
    new = unit_features(16, seed=5).numpy()
    changes = [
        lambda classifier: classifier.add_class("dog", text_features=new, negative_text_features=-new),
        lambda classifier: classifier.partial_fit(test[:3], more),
        lambda classifier: classifier.remove_class("bee"),
    ]
    for change in (lambda classifier: classifier, *changes):
        change(loaded)
        change(fitted)
        assert loaded.classes_.tolist() == list(loaded.model_.classnames) == fitted.classes_.tolist()
        assert loaded.model_.named_only == fitted.model_.named_only
        np.testing.assert_allclose(loaded.decision_function(test), fitted.decision_function(test), atol=2e-3)


def test_onnx_of_the_opened_model_names_the_same_classes(each, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    classifier = HeGraphClassifier.from_pretrained(each.run, device="cpu")
    answers = []
    for file, model in (("opened", classifier.model_), ("command line", load_model(each.run))):
        write_onnx(model, None, tmp_path / file)
        session = onnxruntime.InferenceSession(tmp_path / file, providers=["CPUExecutionProvider"])
        inputs = {session.get_inputs()[0].name: each.bank.test_features.numpy()}
        (probabilities,) = session.run(["probabilities"], inputs)
        metadata = session.get_modelmeta().custom_metadata_map
        classes = json.loads(metadata["classes"])
        order = [classes.index(name) for name in SORTED]
        thresholds = json.loads(metadata["thresholds"]) or [0.0] * 5
        answers.append((probabilities[:, order], np.array(thresholds)[order]))
    for opened_part, part in zip(*answers):
        np.testing.assert_allclose(opened_part, part, atol=1e-5)
    np.testing.assert_allclose(answers[0][0], classifier.predict_proba(each.bank.test_features.numpy()), atol=1e-4)


def test_every_tensor_of_a_model_is_reordered(each, tmp_path):
    model = load_model(each.run)
    order = torch.tensor([4, 0, 3, 1, 2])
    save_model(model, tmp_path / "before")
    save_model(reordered(model, order), tmp_path / "after")
    before, after = (load_file(tmp_path / name / TENSORS) for name in ("before", "after"))
    shape_of = {name: shape for shape, names in SHAPES.items() for name in names}
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        shape = shape_of.get(name, PARAMETERS.get(name.rpartition(".")[0], ""))
        expected = tensor[order] if shape.startswith("K") else tensor
        if name in ("labels", "labelled.labels"):
            expected = tensor[:, order] if tensor.ndim == 2 else order.argsort()[tensor.long()].int()
        assert torch.equal(after[name], expected), name
    configs = [json.loads((tmp_path / name / CONFIG).read_text()) for name in ("before", "after")]
    for key in ("classnames", "class_ids", "images"):
        assert configs[1][key] == [configs[0][key][position] for position in order.tolist()]
    if configs[0]["text_trust"] is not None:
        weights = [config["text_trust"]["weights"] for config in configs]
        assert weights[1] == [weights[0][position] for position in order.tolist()]
    again = reordered(reordered(model, order), order.argsort())
    assert again.model_dump(include={"classnames", "images"}) == model.model_dump(include={"classnames", "images"})

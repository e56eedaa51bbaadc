"""Incremental training and adaptation to unlabelled images, in Python and with the command `train-more`."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save_file
from sklearn.exceptions import NotFittedError
from training_free import LABELS, assert_same, training_free

from trainers.hegraph import HeGraphClassifier, UserError
from trainers.hegraph.__main__ import main
from trainers.hegraph.estimator.incremental import ClassLabels
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.head.closed_form import OMEGA_NEW, TextPrior
from trainers.hegraph.method.model import distinct_views
from trainers.hegraph.method.training import memory
from trainers.hegraph.method.unlabelled import ClassSums, adapt_to_unlabelled
from trainers.hegraph.models.predict.prediction import open_model
from trainers.hegraph.models.saved import adapt
from trainers.hegraph.utils.files import hash_content
from trainers.hegraph.utils.option import NODE

QUICK = {"OPTIM.MAX_EPOCH": 5, f"{NODE}.MIN_STEPS": 0}
UNTRUSTED = {f"{NODE}.TRUST_TEXT": False}  # takes every text as it is


def test_partial_fit_updates_labels_names_and_text(data, labelled):
    X, y = labelled
    classifier = HeGraphClassifier(variant="training_free", classnames={"dog": "hound"})
    classifier.partial_fit(X[y == "dog"], y[y == "dog"], classes=LABELS, text_features=data.text[3:])
    assert classifier.predict(X).tolist() == ["dog"] * 24 and classifier.model_.classnames == ("hound",)
    classifier.partial_fit(X[y == "ant"], y[y == "ant"], ["emmet"], data.text[:1], data.negative[:1])
    assert classifier.classes_.tolist() == ["ant", "dog"] and classifier.model_.classnames == ("emmet", "hound")
    torch.testing.assert_close(classifier.model_.support_set.negative[0], torch.from_numpy(data.negative[0]))
    torch.testing.assert_close(classifier.model_.support_set.negative[1], -torch.from_numpy(data.text[3]))
    classifier.partial_fit(X[:1], y[:1], {"ant": "formica"})  # replaces the name
    assert classifier.model_.classnames == ("formica", "hound") and classifier.model_.images == (10, 3)
    torch.testing.assert_close(classifier.model_.text_positive[0], torch.from_numpy(data.text[0]))
    numbers = training_free().fit(X, np.arange(24) % 3)
    assert numbers.partial_fit(X[:2], [5, 2]).classes_.tolist() == [0, 1, 2, 5]


@pytest.mark.parametrize(("variant", "omega"), [("training_free", 0.15), ("T", 0.1), ("full", OMEGA_NEW)])
def test_class_without_images_uses_transfer_weights(variant, omega, data, labelled, quick):
    X, y = labelled
    classifier = quick(variant=variant, text_features=data.text[:3], options=QUICK | UNTRUSTED)
    classifier.fit(X[:21], y[:21])  # 9, 7 and 5 images
    before = classifier.model_.classifier
    model = classifier.add_class("dog", text_features=data.text[3]).model_
    assert (model.named_only, model.images, model.class_nodes) == (("dog",), (9, 7, 5, 0), None)
    assert model.labelled.counts.tolist() == [9, 7, 5, 0]
    X_t, text, folded = torch.from_numpy(data.X), torch.from_numpy(data.text), model.classifier
    unit = F.normalize(model.transfer.class_features(text, -text), dim=1)
    expected = 100 * X_t @ unit[3] + omega * 100 * model.transfer.messages.logits(X_t, text[3:])[:, 0]
    torch.testing.assert_close(folded.parts(X_t).text[:, 3], expected, rtol=1e-4, atol=1e-3)
    if variant == "training_free":  # the other classes are trained again
        torch.testing.assert_close(folded.weights[:3], before.weights, rtol=0, atol=1e-5)
    if variant == "full":  # the cache key has the weight of an average class
        assert folded.labels.tolist() == [*before.labels.tolist(), 3]
        assert folded.key_weights.tolist() == [1.0] * 21 + [7.0]
        means = torch.stack([torch.from_numpy(X[y == label]).mean(dim=0) for label in LABELS[:3]])
        prior = TextPrior.fit(text[:3], means).predict(text[3:])[0]
        torch.testing.assert_close(folded.keys[-1].double(), prior / prior.norm(), rtol=0, atol=1e-5)


def test_one_class_with_images_is_zero_shot(data, labelled):
    classifier = training_free().add_class("ant", labelled[0][:9], text_features=data.text[0])
    model = classifier.add_class("bee", text_features=data.text[1]).model_
    assert (model.method, model.images) == ("ZeroShot", (9, 0))
    np.testing.assert_allclose(model.classifier.weights, 100 * data.text[:2], rtol=1e-5)


def test_further_training_starts_from_current_parameters(data, labelled, quick, tmp_path):
    X, y = labelled
    options = {"OPTIM.MAX_EPOCH": 30, "TRAINER.HEGRAPHADAPTER.MIN_STEPS": 0, "OPTIM.LR": 0.01}
    first = quick(options=options, text_features=data.text, variant="T").fit(X[::2], y[::2])
    first.save_pretrained(tmp_path)
    warm = HeGraphClassifier.from_pretrained(tmp_path).partial_fit(X[1::2], y[1::2])
    tenth = quick(options=options | {"OPTIM.MAX_EPOCH": 10}, text_features=data.text, variant="T").fit(X, y)
    state = [c.model_.support_set.state for c in (first, warm, tenth)]
    biases = [torch.cat([v for k, v in each.items() if k.startswith("bias.")]) for each in state]
    assert (biases[1] - biases[0]).norm() < (biases[2] - biases[0]).norm(), "it started from the first training"
    other = quick(variant="T", text_features=data.text[:2]).fit(X[:16], ["a"] * 9 + ["b"] * 7)
    other.add_class("aa", X[16:21], text_features=data.text[2])
    assert {len(rows) for name, rows in other.model_.support_set.state.items() if name.startswith("bias.")} == {3}


def test_adapted_model_without_features_is_rejected(data, labelled):
    X, y = labelled
    model = training_free(data.text).fit(X, y, unlabelled=data.X[60:])
    model.model_ = model._fitted = model.model_.model_copy(update={"unlabelled_features": None})  # an older folder
    before = model.predict_proba(X)
    with pytest.raises(UserError, match="adapted to 60 unlabelled images.*train it again: fit with unlabelled="):
        model.partial_fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), before)


def test_images_are_identified_by_pixels(digits, files, tmp_path, digit_classifier):
    classifier = HeGraphClassifier(**digit_classifier.get_params() | {"variant": "training_free"})
    pictures, labels = digits.pictures, [digits.classnames[label] for label in digits.labels]
    classifier.partial_fit(pictures[:9], labels[:9])
    classifier.add_class("three", pictures[9:12]).add_class("x", name="nine").partial_fit(files[:2], ["zero", "x"])
    assert classifier.classes_.tolist() == ["one", "three", "two", "x", "zero"]
    assert classifier.model_.images == (3, 3, 3, 1, 4) and len(classifier.model_.prompts.negative) == 5
    assert "nine" in classifier.model_.prompts.positive[0][3][0]
    classifier.save_pretrained(tmp_path / "model")
    loaded = HeGraphClassifier.from_pretrained(tmp_path / "model")
    for each in (classifier, loaded):
        each.forget([digits.tests[0], pictures[3]], ["zero", "one"])
        assert each.model_.images == (2, 3, 3, 1, 3)
        with pytest.raises(UserError, match="image 0 is not in the support set"):
            each.forget([digits.tests[0]], ["zero"])
    np.testing.assert_allclose(
        loaded.decision_function(digits.tests), classifier.decision_function(digits.tests), atol=1e-4
    )
    assert loaded.model_.backbone.model == "hegraph-mini"


def test_numbers_of_views_may_differ(data, labelled):
    X, y = labelled
    views = np.stack([X, np.roll(X, 1, axis=1)], axis=1)
    mixed = training_free(data.text).fit(views, y).partial_fit(data.X[60:], LABELS[data.y[60:]])
    assert mixed.model_.support_set.features.shape == (2, 84, 16)
    mixed.forget(data.X[60:], LABELS[data.y[60:]])
    assert_same(mixed, training_free(data.text).fit(views, y))


@pytest.mark.parametrize("numbers", [(1, 2), (2, 3), (3, 1)])
def test_repeated_views_are_no_further_images(numbers, data, labelled):
    """Models with different numbers of views are merged by repeating views, which share the weight of their image."""
    X, y = labelled
    first, second = (np.stack([X] * number, axis=1) for number in numbers)
    merged = training_free(data.text).fit(first[::2], y[::2]).partial_fit(second[1::2], y[1::2])
    order = np.r_[0 : len(X) : 2, 1 : len(X) : 2]
    whole = training_free(data.text).fit(X[order], y[order])
    np.testing.assert_allclose(merged.decision_function(X), whole.decision_function(X), rtol=1e-5, atol=1e-5)
    assert merged.predict_proba(X) == pytest.approx(whole.predict_proba(X), abs=1e-5)


def test_merged_views_weigh_as_their_distinct_ones(data, labelled):
    """Of 24 images, half with 2 views and half with 3, the covariance is shrunken as that of 60 rows."""
    X, y = labelled
    views = [np.roll(X, shift, axis=1) for shift in range(3)]
    merged = training_free(data.text).fit(np.stack(views[:2], axis=1)[::2], y[::2])
    merged.partial_fit(np.stack(views, axis=1)[1::2], y[1::2])
    assert distinct_views(merged.model_.support_set.features) == 60


@pytest.mark.parametrize(("change", "words"), [
    (lambda model, X, y, text: model.partial_fit(X[:, :5], y), "5 features.*16"),
    (lambda model, X, y, text: model.partial_fit(X[:1], ["emu"]), "new classes such as 'emu' need text_features"),
    (lambda model, X, y, text: model.partial_fit(X[:1], [3], text_features=text[:1]), "are such as 'ant', got 3"),
    (lambda model, X, y, text: model.partial_fit(X[:1], ["emu"], classes=["ant"]), "labels of classes in y, got .*emu"),
    (lambda model, X, y, text: model.partial_fit(X[:1], ["ant"], text_features=text), r"shape \[1, 16\].*\[4, 16\]"),
    (lambda model, X, y, text: model.add_class("ant"), "expected a new label, got the existing class 'ant'"),
    (lambda model, X, y, text: HeGraphClassifier().add_class("emu"), "text_features or a backbone"),
    (lambda model, X, y, text: model.remove_class("emu"), "unknown class 'emu'"),
    (lambda model, X, y, text: model.forget(X[:1], ["bee"]), "image 0 is not in the support set of class 'bee'"),
    (lambda model, X, y, text: model.forget(X[[0, 0]], ["ant", "ant"]), "image 1 is not in the support set"),
    (lambda model, X, y, text: model.set_params(text_features=None).fit(X, y).forget(X, y), "one class must remain"),
    (lambda model, X, y, text: training_free().fit(X, y).partial_fit(X[:1], ["emu"], text_features=text[:1]), "texts"),
])  # fmt: skip
def test_invalid_changes_are_rejected(change, words, data, labelled):
    with pytest.raises(ValueError, match=words):
        change(training_free(data.text).fit(*labelled), *labelled, data.text)


@pytest.mark.parametrize("name", [
    "remove_class", "adapt", "suggest", "save_pretrained", "push_to_hub", "forget", "label_issues",
])  # fmt: skip
def test_methods_need_a_fitted_classifier(name, data):
    with pytest.raises(NotFittedError):
        getattr(HeGraphClassifier(), name)(data.X, *[data.y] * (name in ("forget", "label_issues")))


def test_folder_stores_the_support_set(data, labelled, tmp_path, caplog):
    X, y = labelled
    fitted = training_free(data.text).fit(X, y)
    fitted.add_class("emu", text_features=data.negative[0]).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.count("(no images, from text alone)") == 1 and "- emu (no images" in card
    open_model(SimpleNamespace(model=str(tmp_path), out=None))
    assert "1 of 5 classes have no training images, and are predicted from their text: emu" in caplog.text
    tensors = load((tmp_path / "model.safetensors").read_bytes())  # not mapped, because the file is overwritten
    config = json.loads((tmp_path / "config.json").read_text())
    np.testing.assert_array_equal(tensors["labelled.features"], X)
    assert config["images"] == [9, 7, 5, 3, 0] and config["image_ids"] is None

    (tmp_path / "config.json").write_text(json.dumps(config | {"image_ids": [1, 2]}))
    with pytest.raises(UserError, match="2 image_ids for 24 images"):
        HeGraphClassifier.from_pretrained(tmp_path)
    rest = {k: v for k, v in tensors.items() if not k.startswith("labelled.")}
    save_file(rest, tmp_path / "model.safetensors")
    config |= {"images": None, "image_ids": None, "tensors": hash_content(dict(sorted(rest.items())))}
    config["trained_on"]["config"]["OPTIM.LR"] = "of a stranger"
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = HeGraphClassifier.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="with a support set, got one without"):
        before.partial_fit(X, y)
    with pytest.raises(UserError, match="no sums over labelled images"):
        before.adapt(X)
    assert "further training uses the default: OPTIM.LR: expected type float" in caplog.text


# Images without labels: `fit(unlabelled=...)`, the label -1, and `adapt`


@pytest.fixture(scope="module")
def parts(data):
    """Two labelled images of each of the 4 classes, and the remaining 112."""
    sampled = np.concatenate([np.flatnonzero(data.y == c)[:2] for c in range(4)])
    rest = np.setdiff1d(np.arange(120), sampled)
    return data.X[sampled], data.y[sampled], data.X[rest], data.y[rest]


@pytest.fixture(scope="module")
def fitted(parts, data, quick) -> HeGraphClassifier:
    """Classifier without an adaptation, which tests must not change."""
    return quick(text_features=data.text).fit(*parts[:2])


@pytest.fixture
def own(fitted) -> HeGraphClassifier:
    """A copy of `fitted` for a test."""
    return pickle.loads(pickle.dumps(fitted))


def test_adapt_uses_the_unlabelled_images(own, fitted, parts, data):
    X, y, U, truth = parts
    model = fitted.model_
    text = model.text_of_classes()
    sums = ClassSums.of(torch.from_numpy(X), torch.from_numpy(y), 4)
    pool = torch.from_numpy(U)
    expected = adapt_to_unlabelled(model.classifier, sums, text, pool, model.logit_scale, model.temperature)
    assert own.adapt(U) is own
    torch.testing.assert_close(own.model_.classifier.weights, expected.classifier.weights)
    torch.testing.assert_close(own.model_.classifier.bias, expected.classifier.bias)
    assert abs(own.decision_function(U) - fitted.decision_function(U)).max() > 0.1
    assert own.score(U, truth) >= fitted.score(U, truth)
    # a second call replaces the first
    twice = pickle.loads(pickle.dumps(fitted)).adapt(U[:50]).adapt(U)
    np.testing.assert_array_equal(twice.decision_function(U), own.decision_function(U))
    assert twice.model_.unlabelled == 112


def test_fit_adapts_to_unlabelled_images(own, parts, data, quick):
    X, y, U, _ = parts
    expected = own.adapt(U).decision_function(U)
    both, labels = np.concatenate([X, U[40:]]), np.concatenate([y, np.full(72, -1)])
    classifier = quick(text_features=data.text).fit(both, labels, classnames=LABELS, unlabelled=U[:40])
    np.testing.assert_array_equal(classifier.decision_function(U), expected)
    assert classifier.classes_.tolist() == [0, 1, 2, 3] and classifier.model_.unlabelled == 112
    with_minus_one = quick().fit(data.X, data.y - 1, classnames=LABELS)
    assert with_minus_one.classes_.tolist() == [-1, 0, 1, 2] and with_minus_one.model_.unlabelled == 0


def test_unlabelled_width_is_checked_before_training(parts, quick):
    classifier = quick()
    with pytest.raises(ValueError, match="5 features.*16"):
        classifier.fit(*parts[:2], unlabelled=np.ones((3, 5)))
    assert not hasattr(classifier, "model_")


def test_folder_stores_data_for_adaptation(own, fitted, parts, tmp_path):
    X, U = parts[0], parts[2]
    fitted.save_pretrained(tmp_path / "model")
    later = HeGraphClassifier.from_pretrained(tmp_path / "model").adapt(U)
    own.adapt(U).save_pretrained(tmp_path / "adapted")
    loaded = HeGraphClassifier.from_pretrained(tmp_path / "adapted")
    for classifier in (later, loaded):  # the folder stores sums in float32 and cache keys in float16
        np.testing.assert_allclose(classifier.predict_proba(U), own.predict_proba(U), atol=2e-3)
        assert classifier.model_.unlabelled == 112
    assert "adapted to 112 unlabelled images" in (tmp_path / "adapted" / "README.md").read_text()
    # scores of the model before the adaptation are removed
    assert own.model_.known is None and own.model_.scores.num_test == 0
    assert own.model_.temperature == fitted.model_.temperature
    with pytest.raises(UserError, match="without unlabelled images"):
        own.is_known(X)
    with pytest.raises(UserError, match="^the model is already adapted to unlabelled images; train it again$"):
        loaded.adapt(U)


def test_model_without_sums_names_them():
    model = SimpleNamespace(check_single_label=lambda action: None, unlabelled=0, labelled=None)
    with pytest.raises(UserError, match="^the model's folder has no sums over labelled images to adapt from; train"):
        adapt(model, torch.ones(2, 3), "cpu")


@pytest.mark.parametrize(("wrong", "words"), [
    (lambda U: np.ones((3, 5)), "5 features.*16"), (lambda U: "a.png", "expected a list of images"),
    (lambda U: U, "112 unlabelled images of 4 classes"),  # 4 times 1,792 bytes
])  # fmt: skip
def test_adapt_rejects_invalid_images(own, parts, monkeypatch, wrong, words):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 7_000)
    with pytest.raises(ValueError, match=words):
        own.adapt(wrong(parts[2]))
    own.adapt(parts[2][:104])


def test_failed_adaptation_undoes_the_change(own, parts, monkeypatch):
    X, _, U, truth = parts
    own.adapt(np.tile(U, (20, 1)))
    before = own.decision_function(X)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 140_000)  # the adaptation needs 143,360 bytes
    with pytest.raises(UserError, match="2240 unlabelled images of 4 classes"):
        own.partial_fit(U[:4], truth[:4])
    np.testing.assert_array_equal(own.decision_function(X), before)
    assert own.model_.unlabelled == 2240 and own._support_set().counts.tolist() == [2] * 4


def test_adapt_accepts_pil_images(digits, digit_classifier):
    own = pickle.loads(pickle.dumps(digit_classifier)).adapt(digits.tests)
    fitted = HeGraphClassifier(**digit_classifier.get_params())
    labels = [*digits.labels, *[-1] * 20]
    fitted.fit([*digits.pictures, *digits.tests], labels, classnames=digits.classnames)
    assert own.model_.unlabelled == fitted.model_.unlabelled == 20
    expected = own.decision_function(digits.tests)
    np.testing.assert_allclose(fitted.decision_function(digits.tests), expected, atol=1e-3)


def test_fit_without_labelled_images(data, quick):
    none, text = np.full(len(data.X), -1), torch.from_numpy(data.text)
    fitted = quick(text_features=data.text).fit(data.X, none, classnames=LABELS)
    nothing = ClassSums.of(torch.zeros(0, 16), torch.zeros(0, dtype=torch.long), 4)
    adapted = adapt_to_unlabelled(FoldedClassifier(100 * text), nothing, text, torch.from_numpy(data.X), 100.0, 1.0)
    torch.testing.assert_close(fitted.model_.classifier.weights, adapted.classifier.weights, rtol=1e-4, atol=1e-3)
    assert fitted.classes_.tolist() == [0, 1, 2, 3] and fitted.model_.method == "ZeroShot"
    by_label = quick(text_features=data.text).fit(data.X, none, classnames={7: "a", 3: "b", 5: "c", 9: "d"})
    assert by_label.classes_.tolist() == [3, 5, 7, 9]


@pytest.mark.parametrize(("names", "message"), [(LABELS, "text_features or a backbone"), (None, "one class")])
def test_fit_without_labels_needs_text(data, quick, names, message):
    with pytest.raises(UserError, match=message):
        quick().fit(data.X, np.full(len(data.X), -1), classnames=names)


# The command `train-more`


def save_digits(digits: SimpleNamespace, folder: Path, *labels: str | int) -> Path:
    """Save a model of the digits 0 and 1, with these labels, in a folder."""
    classifier = HeGraphClassifier(config="mini", dataset_config="digits", variant="training_free")
    y, names = np.repeat(labels, 3), dict(zip(labels, ("zero", "one")))
    classifier.fit(digits.pictures[:6], y, classnames=names).save_pretrained(folder)
    return folder


@pytest.fixture
def root(digits, tmp_path) -> Path:
    """Folder of images: a 0 and a 1 of the support set, a new 0, and three new 2."""
    for name, numbers in (("zero", (2, 20)), ("one", (4,)), ("two", (6, 7, 8))):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        for number in numbers:
            digits.pictures[number].save(tmp_path / "images" / "train" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("labels", [("zero", "one", "two"), (0, 1, 2)], ids=str)
def test_train_more_adds_images_and_classes(labels, root, digits, tmp_path, capsys):
    model, more = save_digits(digits, tmp_path / "model", *labels[:2]), tmp_path / "more"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert main(["train-more", str(model), "--root", str(root), "--out", str(more)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert sorted(output[:-1]) == ["two: 3 images added, 3 in total", "zero: 1 images added, 4 in total"]
    assert output[-1].startswith("4 images added, 3 classes")
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    extended = HeGraphClassifier.from_pretrained(more)
    assert dict(zip(extended.model_.classnames, extended.model_.images)) == {"zero": 4, "one": 3, "two": 3}
    assert extended.classes_.tolist() == sorted(labels)
    assert extended.predict(digits.pictures[6:9]).tolist() == [labels[2]] * 3
    assert main(["train-more", str(more), "--root", str(root), "--in-place"]) == 2
    assert "all 6 are in the support set of the model" in capsys.readouterr().err
    assert main(["train-more", str(model), "--root", str(root), "--in-place"]) == 0
    assert (model / "config.json").read_bytes() == (more / "config.json").read_bytes()


def test_train_more_recognises_images_of_a_run(root, digits, tmp_path, capsys):
    run, more = str(tmp_path / "run"), str(tmp_path / "more")
    data = ["--dataset-config-file", "folder", "--root", str(root), "--shots", "-1"]
    variant = ["TRAINER.HEGRAPHADAPTER.VARIANT", "training_free"]
    assert main([*data, "--config-file", "mini", "--output-dir", run, *variant]) == 0
    digits.pictures[9].save(root / "train" / "two" / "9.png")
    capsys.readouterr()
    assert main(["train-more", run, "--root", str(root), "--out", more]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "two: 1 images added, 4 in total"


def test_new_names_are_not_labels_of_other_classes(labelled, refused):
    names = dict(zip(LABELS.tolist(), ("emmet", "bee", "cow", "dog")))
    class_labels = ClassLabels(training_free().fit(*labelled, classnames=names).model_.support_set)
    assert [class_labels.find_or_add(name) for name in ("bee", "emu", "emmet")] == ["bee", "emu", "ant"]
    assert class_labels.names == {"ant": "emmet", "bee": "bee", "cow": "cow", "dog": "dog", "emu": "emu"}
    with refused("", "the new class 'ant' has the label of the class 'emmet'"):
        class_labels.find_or_add("ant")


def numbered(labelled, labels: list) -> HeGraphClassifier:
    """Classifier with these labels of three classes."""
    X, y = labelled
    classes = ["ant", "bee", "cow"]
    return training_free().fit(X[:21], np.array([labels[classes.index(name)] for name in y[:21]]))


def test_names_are_compared_in_one_form(labelled):
    X, y = labelled
    names = dict(zip(LABELS.tolist(), ("Am\u00e9lie", "bee", "cow", "dog")))
    class_labels = ClassLabels(training_free().fit(X, y, classnames=names).model_.support_set)
    assert [class_labels.find_or_add(name) for name in ("Ame\u0301lie", " bee ")] == ["ant", "bee"]
    assert class_labels.find("\tAm\u00e9lie") == "ant"
    assert class_labels.names == names


def test_next_label_of_numbers_is_free(labelled):
    assert ClassLabels(numbered(labelled, [0, 5, 7]).model_.support_set).find_or_add("new") == 8


@pytest.mark.parametrize(
    "labels", [[0, 5, 2**63 - 1], [0.0, 1.0, 2.0**53], [np.uint8(0), np.uint8(5), np.uint8(255)]], ids=str
)
def test_label_after_the_largest_is_refused(labelled, refused, labels):
    class_labels = ClassLabels(numbered(labelled, labels).model_.support_set)
    with refused("", "a new class needs a label after"):
        class_labels.find_or_add("new")


def test_large_labels_stay_beside_floats(labelled):
    labels = [2**60, 2**60 + 1, 2**60 + 2]
    classifier = numbered(labelled, labels).partial_fit(labelled[0][:4], [5.0] * 4)
    assert classifier.classes_.tolist() == [5, *labels]
    assert classifier.classes_.dtype == np.int64


@pytest.mark.parametrize(("labels", "more"), [([0, 1, 2], 2**63), ([0.0, 1.0, 2.0], 2**53 + 1)], ids=["int", "float"])
def test_integers_beyond_the_type_are_refused(labelled, refused, labels, more):
    classifier = numbered(labelled, labels)
    with refused("", f"got {more}"):
        classifier.partial_fit(labelled[0][:4], [more] * 4)
    assert classifier.classes_.tolist() == labels


def test_train_more_repeats_the_adaptation(root, digits, tmp_path, capsys):
    model = save_digits(digits, tmp_path / "model", "zero", "one")
    HeGraphClassifier.from_pretrained(model).adapt(digits.tests).save_pretrained(model)
    assert main(["train-more", str(model), "--root", str(root), "--in-place"]) == 0
    assert "adapted again to the same 20 unlabelled images\n" in capsys.readouterr().out
    assert HeGraphClassifier.from_pretrained(model).model_.unlabelled == 20


@pytest.mark.parametrize(("words", "warned"), [([], False), (["--precision", "fp32"], True)])
def test_train_more_uses_the_precision_of_training(root, digits, tmp_path, caplog, words, warned):
    classifier = HeGraphClassifier("hegraph-mini", precision="bf16", variant="training_free")
    classifier.fit(digits.pictures[:6], np.repeat(["zero", "one"], 3)).save_pretrained(tmp_path / "model")
    assert main(["train-more", str(tmp_path / "model"), "--root", str(root), "--in-place", *words]) == 0
    assert ("trained on features in bf16, and is used here with features in fp32" in caplog.text) == warned


@pytest.mark.parametrize(("words", "message"), [
    ("{model} --root {root} --in-place", "is also an image of class 'zero'"),
    ("{model} --root {root} --out {thesis}", "which is not overwritten"),
    ("{model} --root {absent} --in-place", "absent"), ("{run} --root {root} --in-place", "use --out FOLDER"),
])  # fmt: skip
def test_train_more_rejects_invalid_input(root, finished_digits_once, digits, tmp_path, cli_error, words, message):
    model, thesis = save_digits(digits, tmp_path / "model", "zero", "one"), tmp_path / "thesis"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    thesis.mkdir()
    (thesis / "a.tex").write_text("years of work")
    digits.pictures[0].save(root / "train" / "one" / "0.png")
    places = {"model": model, "root": root, "thesis": thesis, "absent": tmp_path / "absent"}
    assert message in cli_error("train-more", *words.format(run=finished_digits_once, **places).split())
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before

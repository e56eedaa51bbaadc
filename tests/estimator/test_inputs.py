"""Arguments of the classifier, scikit-learn's checks, seeds and pickles."""

import pickle
import random
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.utils.estimator_checks import parametrize_with_checks

from trainers.hegraph import HeGraphClassifier, UserError, load_backbone, load_cfg
from trainers.hegraph.estimator.classes import checked_names, split_labelled
from trainers.hegraph.estimator.inputs import image_list, unit_rows
from trainers.hegraph.estimator.training import Origin, task_of
from trainers.hegraph.method.cache import text_logits
from trainers.hegraph.method.training import memory
from trainers.hegraph.models.support_set import SupportSet

PICTURE = Image.new("RGB", (8, 8))
NODE = "TRAINER.HEGRAPHADAPTER."
QUICK = {"OPTIM.MAX_EPOCH": 2, f"{NODE}MIN_STEPS": 0}


def test_image_lists_are_recognised():
    two = np.array([Path("a.png"), PICTURE], dtype=object)
    for X in (["a.png", PICTURE], (Path("a.png"), PICTURE), two, pd.Series(two, index=[7, 8])):
        assert image_list(X) == [Path("a.png"), PICTURE]
    for X in ([[0.1]], np.zeros((2, 3), dtype=object), np.zeros(3), torch.zeros(2), [], None):
        assert image_list(X) is None


@pytest.mark.parametrize("single", ["a.png", Path("a.png"), PICTURE], ids=type)
def test_single_image_is_refused(single, refused):
    with refused("images.single", "expected a list of images, such as [", "got a single image"):
        image_list(single)


def test_unit_rows_keep_normalised_rows():
    rows = torch.randn(50, 33, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(rows, dim=-1)
    assert torch.equal(unit_rows(unit.numpy()), unit) and torch.equal(unit_rows(rows.numpy()), unit)
    assert torch.equal(unit_rows(unit.half().numpy()), F.normalize(unit.half().float(), dim=-1))
    assert torch.equal(unit_rows(np.zeros((1, 3))), torch.zeros(1, 3))


def test_rows_almost_of_unit_norm_are_scaled():
    rows = unit_rows(np.array([[0.6006, 0.8008]]))  # norm 1.001
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("odd", [1e-30, 1e30])
def test_norms_whose_square_float32_lacks_are_refused(odd):
    with pytest.raises(UserError, match="text has a row whose norm"):
        unit_rows(np.array([[1.0, 0.0], [odd, 0.0]]), "text")


def test_features_may_have_any_type_and_norm(data, quick):
    expected = quick().fit(data.X, data.y).decision_function(data.X)
    tensor, table = torch.from_numpy(data.X), pd.DataFrame(7 * data.X, columns=[f"feature {i}" for i in range(16)])
    for X, y in ((tensor.double(), torch.from_numpy(data.y)), (table, pd.Series(data.y))):
        np.testing.assert_allclose(quick().fit(X, y).decision_function(X), expected, atol=2e-3)
    assert quick().fit(tensor.bfloat16(), data.y).score(data.X, data.y) > 0.9


def test_default_text_nodes_are_class_means(data):
    X, y = torch.from_numpy(data.X), torch.from_numpy(data.y)
    support_set = SupportSet(np.arange(4), tuple("abcd"), X[None], y, torch.zeros_like(y))
    bank = task_of(support_set, Origin.of_task(None, None, False), load_cfg()).bank()
    means = F.normalize(torch.stack([X[y == label].mean(dim=0) for label in range(4)]), dim=-1)
    torch.testing.assert_close(bank.text_positive, means)
    torch.testing.assert_close(bank.text_negative, -means)


def test_memory_is_checked_before_training(quick, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 8 * 10**9)
    # three times the logits of all images for all classes in float64 are 9.6 GB
    with pytest.raises(UserError, match=r"20000 images of 20000 classes would take 9\.[67] GB .* 8\.0 GB"):
        quick().fit(np.eye(20_000, 8) + 1, np.arange(20_000))


def test_mean_of_views_is_classified(data, quick):
    views = np.stack([data.X, np.roll(data.X, 1, axis=1)], axis=1)
    classifier = quick().fit(views, data.y)
    mean = classifier.decision_function(views.mean(axis=1))
    np.testing.assert_allclose(classifier.decision_function(views), mean, atol=1e-3)
    with pytest.raises(ValueError, match="contains NaN"):
        classifier.predict(np.full_like(views, np.nan))


def test_views_of_any_norm_have_equal_weights(data, quick):
    views = np.stack([data.X, np.roll(data.X, 1, axis=1)], axis=1)
    classifier = quick().fit(views, data.y)
    scaled = views * np.array([0.1, 7.0], dtype=np.float32)[:, None]
    np.testing.assert_allclose(classifier.decision_function(scaled), classifier.decision_function(views), atol=1e-3)


@pytest.mark.parametrize(("features", "message"), [
    (np.zeros((120, 0, 16)), "0 sample"), (np.full((120, 2, 16), np.nan), "contains NaN"),
    (torch.zeros(120, 32, 32, dtype=torch.uint8), r"expected a list of paths .*got uint8 \["),
])  # fmt: skip
def test_invalid_features_are_refused(data, quick, features, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(features, data.y)


# Labels and names


@pytest.mark.parametrize(("classnames", "message"), [
    (["10", "1", "7"], ""),  # not all are labels
    (["crane", "crane", "bee"], ""),
    (dict(zip([1, 5, 7], "571")), ""),  # a dict is unambiguous
    (["1", "7", "5"], r"in another order \(1, 7, 5, \.\.\."),
    (["a"], r"as a list for the 3 sorted labels in y \(1, 5, 7, \.\.\.\), got \['a'\]"),
    ({"a", "b", "c"}, "for the 3 sorted labels"), ({1: "a", 5: "b"}, "classnames: 2"),
    (["a", "b", "\udcff"], "udcff"),
])  # fmt: skip
def test_class_names_follow_sorted_labels(classnames, message):
    with pytest.raises(UserError, match=message) if message else nullcontext():
        assert checked_names(np.array([1, 5, 7]), classnames) == list(getattr(classnames, "values", classnames.copy)())


@pytest.mark.parametrize(("y", "classnames", "expected"), [
    ([0, -1, 1, -1], None, []), ([0, -1, 1, -1], ["cat", "dog"], [1, 3]),
    ([0, -1, 1, -1], {0: "cat", 1: "dog"}, [1, 3]),
    ([0, -1, 1, -1], ["none", "cat", "dog"], []),  # three names: -1 is the first of three classes
    ([0, -1, 1, -1], {-1: "none", 0: "cat", 1: "dog"}, []), ([0.0, -1.0, 1.0], ["cat", "dog"], []),
    ([-1, -1], ["cat", "dog"], [0, 1]), ([0, -1], ["cat"], [1]), ([-1, -1], None, []),
    ([-1, -1], ["cat"], []),  # one class is too few
])  # fmt: skip
def test_minus_one_marks_unlabelled_images(y, classnames, expected):
    X, labels, rest = split_labelled(np.arange(len(y)), np.array(y), classnames)
    assert [row for rows in rest for row in rows] == expected
    assert X.tolist() == [row for row in range(len(y)) if row not in expected] and len(labels) == len(X)


# Text nodes


def test_text_features_define_the_text_classifier(data, quick):
    classifier = quick(variant="base").fit(data.X, data.y, text_features=3 * data.text)
    expected = text_logits(torch.from_numpy(data.X), torch.from_numpy(data.text), 100.0).numpy()
    np.testing.assert_allclose(classifier.decision_function(data.X), expected, atol=1e-3)
    scaled = quick(variant="base", logit_scale=10, text_features=data.text[::-1])
    scaled.fit(data.X, data.y, text_features=data.text)  # replaces the parameter
    np.testing.assert_allclose(scaled.decision_function(data.X), expected / 10, atol=1e-3)


def test_class_means_as_text_features_change_nothing(data, quick):
    means = F.normalize(torch.stack([torch.from_numpy(data.X[data.y == k]).mean(dim=0) for k in range(4)]), dim=-1)
    classifier = quick().fit(data.X, data.y)
    torch.testing.assert_close(classifier.model_.text_positive, means)
    same = quick(text_features=means, negative_text_features=-means).fit(data.X, data.y)
    np.testing.assert_allclose(classifier.decision_function(data.X), same.decision_function(data.X), atol=1e-3)


def test_backbone_encodes_class_names(digits, quick, data):
    backbone = load_backbone("hegraph-mini")
    X = backbone.encode_images(torch.stack([backbone.preprocess(p) for p in digits.pictures]))
    by_parameter = quick(backbone="hegraph-mini", classnames=digits.classnames).fit(X, digits.labels)
    by_config = quick(config="mini", classnames=digits.classnames).fit(X, digits.labels)
    assert torch.equal(by_parameter.model_.text_positive, by_config.model_.text_positive)
    assert by_parameter.model_.prompts.positive[0][3] == ["a photo of a three."]
    assert by_parameter.model_.backbone.fingerprint == backbone.fingerprint
    assert by_parameter.model_.logit_scale == backbone.logit_scale
    tests = backbone.encode_images(torch.stack([backbone.preprocess(p) for p in digits.tests]))
    np.testing.assert_array_equal(by_parameter.predict(digits.tests), by_parameter.predict(tests))
    own_text = quick(backbone="hegraph-mini", text_features=X[:10]).fit(X, digits.labels)
    model = own_text.partial_fit(X[:1], digits.labels[:1]).model_
    assert (model.prompts, model.backbone.model) == (None, "hegraph-mini")  # the text features are not encoded prompts


# Images


def test_paths_and_pil_images_give_equal_results(digits, digit_classifier, files):
    expected = digit_classifier.predict_proba(digits.tests)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    np.testing.assert_array_equal(digit_classifier.predict_proba(pd.Series([str(file) for file in files])), expected)
    parameters = digit_classifier.get_params() | {"variant": "training_free"}
    labels = [k % 3 for k in range(20)]
    by_path, by_picture = (HeGraphClassifier(**parameters).fit(X, labels) for X in (files, digits.tests))
    assert torch.equal(by_path.model_.classifier.weights, by_picture.model_.classifier.weights)
    assert by_path.model_.image_ids == by_picture.model_.image_ids


@pytest.mark.parametrize(("options", "y", "code", "words"), [
    ({}, [0, 1], "", "images need a backbone, such as backbone='ViT-B-16-quickgelu'"),
    ({"config": "mini", "text_features": np.eye(2, 16)}, [0, 1], "", "text features need image features"),
    ({"config": "mini", "backbone": "hegraph-mini"}, None, "features.width", "the 64 features of hegraph-mini"),
])  # fmt: skip
def test_images_need_a_fitting_backbone(options, y, code, words, quick, data, refused):
    with refused(code, words):
        quick(**options).fit(data.X if y is None else [PICTURE, PICTURE], data.y if y is None else y)


def test_unreadable_images_are_refused(tmp_path, digits, digit_classifier, refused):
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(UserError, match=r"broken\.png"):
        digit_classifier.predict([tmp_path / "broken.png"])
    with refused("images.read", "broken.png"):
        digit_classifier.forget([tmp_path / "broken.png"], [0])
    with refused("", "expected a path or a PIL image as image 1, got int"):
        digit_classifier.predict([digits.tests[0], 3])


# Parameters


@pytest.mark.parametrize(("parameters", "message"), [
    ({"options": 3}, "options.* got 3"),
    ({"logit_scale": 0}, "logit_scale: .* greater than 0, got 0"),
    ({"logit_scale": float("nan")}, "logit_scale: .* finite number, got nan"),
    ({"text_features": np.eye(4, 16) * [[1], [1], [0], [1]]}, "expected text_features of shape.*no row of zeros"),
    ({"text_features": torch.eye(4, 16).to_sparse()}, "text_features: expected a dense tensor"),
    ({"text_features": np.ones((3, 16))}, r"expected text_features of shape \[4, 16\].*got \[3, 16\]"),
    ({"options": {"SEED": 7}}, "options has SEED, which the classifier sets; use random_state"),
    ({"options": ["SEED", 7]}, "options has SEED, which the classifier sets; use random_state"),
    ({"options": {f"{NODE}SELECT_ON": "val"}}, "GridSearchCV"),
    ({"options": {f"{NODE}FEATURES.MODE": "online"}}, "expected FEATURES.MODE bank, got online"),
    ({"device": "abacus"}, "device must be cpu, cuda or cuda:N, got 'abacus'"),
])  # fmt: skip
def test_fit_names_invalid_parameters(parameters, message, data, quick):
    with pytest.raises(ValueError, match=message):
        quick(**parameters).fit(data.X, data.y)


def test_shots_are_the_mean_number_of_images(data, quick):
    rows = np.concatenate([np.flatnonzero(data.y == k)[:n] for k, n in enumerate((2, 4, 8, 2))])
    model = quick(classnames=dict(enumerate("abcde"))).fit(data.X[rows], data.y[rows]).model_
    assert (model.trained_on.shots, model.trained_on.num_train, model.classnames) == (4, 16, tuple("abcd"))
    assert model.trained_on.config["OPTIM.LR"] == 0.00015  # the row of BY_SHOTS
    assert quick().fit(data.X[rows[[0, 2]]], [0, 1]).model_.trained_on.shots == 1


# scikit-learn


@parametrize_with_checks([HeGraphClassifier(options=QUICK), HeGraphClassifier(variant="training_free")])
def test_scikit_learn_checks_pass(estimator, check):
    check(estimator)


def test_training_restores_global_generators(data, quick):
    def state() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    quick().fit(data.X, data.y)
    assert state() == before


def test_random_state_is_a_seed_or_generator(data, quick):
    def weights(random_state: object) -> torch.Tensor:
        # one image of a batch at a time, so that the order matters
        options = QUICK | {"DATALOADER.TRAIN_X.BATCH_SIZE": 1}
        classifier = quick(random_state=random_state, options=options).fit(data.X[:12], data.y[:12])
        return classifier.model_.classifier.weights

    assert torch.equal(weights(5), weights(np.int64(5))) and not torch.equal(weights(5), weights(6))
    generator = np.random.RandomState(0)
    first, second = weights(generator), weights(generator)
    assert torch.equal(weights(np.random.RandomState(0)), first) and not torch.equal(first, second)
    assert torch.equal(weights(int(np.random.RandomState(0).randint(2**31 - 1))), first)


def test_pickles_do_not_contain_the_backbone(digits, digit_classifier):
    loaded = digit_classifier._image_model
    packed = pickle.dumps(digit_classifier)
    assert len(packed) < 1_000_000 and loaded is not None and digit_classifier._image_model is loaded
    again = pickle.loads(packed)
    np.testing.assert_array_equal(again.predict(digits.tests), digit_classifier.predict(digits.tests))

"""The classifier without class texts: leave-one-out, images without prompts, and classes by name alone."""

import numpy as np
import pytest
import torch

from trainers.hegraph import HeGraphClassifier, UserError
from trainers.hegraph.estimator.labels.issues import find_label_issues
from trainers.hegraph.method.head.closed_form import ClosedForm

PROMPTS = "TRAINER.HEGRAPHADAPTER.PROMPTS.SOURCE"
FEW = {PROMPTS: "none", "TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS": 2}


@pytest.fixture(scope="module")
def nameless(digits) -> HeGraphClassifier:
    """Training-free classifier of the images of the digits, without prompts."""
    classifier = HeGraphClassifier(config="mini", dataset_config="digits", options=FEW, variant="training_free")
    return classifier.fit(digits.pictures, digits.labels)


def test_label_issues_do_not_use_the_mean_of_the_class(data, labelled):
    X, y = labelled
    classifier = HeGraphClassifier(variant="training_free").fit(X, y)
    labels = torch.tensor([classifier.classes_.tolist().index(label) for label in y])
    features = torch.from_numpy(X)
    nothing = torch.zeros(4, 16)
    assert classifier.label_issues(X, y) == find_label_issues(features, labels, nothing, 100.0, [*classifier.classes_])


def test_only_image_of_a_class_is_judged_without_itself(data):
    X, y = data.X[:12], data.y[:12].copy()
    wrong = int(np.flatnonzero(y == y[0])[1])
    y[wrong] = 9  # a class of this image alone: its mean feature is the image itself
    issue = HeGraphClassifier(variant="training_free").fit(X, y).label_issues(X, y)[0]
    assert (issue.index, issue.suggested) == (wrong, y[0]) and issue.score > 0


def test_weights_are_those_of_the_head_alone(data):
    classifier = HeGraphClassifier(variant="training_free", options={"DATASET.NUM_SHOTS": 16})
    X, y = torch.from_numpy(data.X), torch.from_numpy(data.y)
    folded = classifier.fit(X, y).model_.classifier
    head = ClosedForm.fit(X, y, torch.zeros(4, 16), kappa=0.25, rho=0.3).to_text  # the least weight of a text prior
    torch.testing.assert_close(folded.weights, 0.4 * 100 * head.weights, rtol=1e-4, atol=1e-4)


def test_images_need_no_prompts(nameless, digits):
    model = nameless.model_
    assert model.prompts is None and not model.has_text and model.support_set.positive is None
    assert nameless.score(digits.pictures, digits.labels) > 0.9
    assert len(nameless.label_issues(digits.pictures, digits.labels)) == 30
    assert len(nameless.suggest(digits.tests, 3)) == 3


def test_saved_model_learns_images_of_new_classes(nameless, digits, tmp_path):
    nameless.save_pretrained(tmp_path / "model")
    loaded = HeGraphClassifier.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(digits.tests), nameless.predict(digits.tests))
    loaded.partial_fit([picture.rotate(90) for picture in digits.pictures[:3]], [10] * 3)
    assert loaded.classes_.tolist() == [*range(11)] and not loaded.model_.has_text


def test_class_by_its_name_alone_is_refused(nameless):
    with pytest.raises(UserError, match="'eleven' has no images, and images alone"):
        nameless.add_class(10, name="eleven")


def test_several_labels_of_images_need_no_prompts(digits):
    classifier = HeGraphClassifier(config="mini", dataset_config="digits", options=FEW, variant="training_free")
    y = [{label, "even" if label % 2 == 0 else "odd"} for label in map(int, digits.labels)]
    y = [{str(each) for each in labels} for labels in y]
    classifier.fit(digits.pictures, y)
    assert classifier.model_.thresholds is not None and not classifier.model_.has_text

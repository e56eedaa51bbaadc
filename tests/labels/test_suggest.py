"""What to label next."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph import HeGraphClassifier, UserError
from trainers.hegraph.labels.suggest import choose, typicality
from trainers.hegraph.method.unlabelled import ClassSums


def test_a_class_without_labels_gets_a_typical_image_and_the_others_their_least_sure_ones():
    edges = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.3, 0.7, 0.0], [0.2, 0.8, 0.0], [0.4, 0.3, 0.3]])
    typical = torch.tensor([[4.0, 0, 0], [3.0, 1, 0], [1.0, 2, 5], [0.0, 3, 4], [0.0, 0, 3]])
    counts = torch.tensor([1.0, 1.0, 0.0])
    # Class 2 has no label: image 2. All have one then; class 0 comes first: images 0, 1 and 4 are predicted as it, with
    # margins of 0.8, 0.1 and 0.1: image 1. Class 1: image 3. Class 2 is predicted of none: the least sure, image 4.
    assert choose(edges, typical.clone(), counts, 4) == [2, 1, 3, 4]
    assert choose(edges, typical.clone(), counts, 2) == [2, 1]
    assert choose(edges, typical.clone(), counts, 9) == [2, 1, 3, 4, 0]
    assert counts.tolist() == [1.0, 1.0, 0.0]
    assert choose(torch.ones(3, 1), torch.tensor([[0.0], [2.0], [1.0]]), torch.zeros(1), 3)[0] == 1


def test_typical_images_are_near_the_node_of_their_class_in_the_metric_within_classes():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(3).repeat_interleave(6)
    centres = 3 * torch.randn(3, 5, generator=generator)
    spread = torch.tensor([1.0, 0.5, 0.1, 0.1, 0.1])
    features = F.normalize(centres[labels] + spread * torch.randn(18, 5, generator=generator), dim=1)
    known, unknown = features[::3], features[torch.arange(18) % 3 != 0]
    labelled = ClassSums.of(known, labels[::3], 3)
    edges = torch.rand(12, 3, generator=generator).softmax(dim=1)
    found = typicality(edges, unknown, labelled)
    everything = torch.cat([known, unknown]).double()
    weights = torch.cat([F.one_hot(labels[::3], 3).double(), edges.double()])
    nodes = (weights.t() @ everything) / weights.sum(dim=0)[:, None]
    deviations = everything[:, None] - nodes
    covariance = torch.einsum("ic,ica,icb->ab", weights, deviations, deviations) / 18
    inverse = torch.linalg.inv(covariance + 0.3 * covariance.trace() / 18 * torch.eye(5, dtype=torch.float64))
    away = unknown.double()[:, None] - nodes
    squares = torch.einsum("ica,ab,icb->ic", away, inverse, away)
    torch.testing.assert_close(found.double(), edges.double().log() - squares / squares.mean(), atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def few():
    """A classifier that has seen two images of each of 4 classes but the last; 40 images without labels, and theirs."""
    random = np.random.default_rng(2)
    centres = random.normal(size=(4, 16))
    truth = random.integers(4, size=40)
    pool = centres[truth] + 0.5 * random.normal(size=(40, 16))
    y = np.array([0, 0, 1, 1, 2, 2, 3])
    X = centres[y] + 0.5 * random.normal(size=(7, 16))
    text = centres + 0.5 * random.normal(size=(4, 16))
    text = F.normalize(torch.tensor(text, dtype=torch.float32), dim=1)
    return HeGraphClassifier(variant="free", text_features=text, logit_scale=20.0).fit(X, y), pool, truth


def test_the_classifier_suggests_images_of_the_class_that_is_short(few):
    classifier, pool, truth = few
    found = classifier.suggest(pool, 5)
    assert len(set(found)) == 5
    assert truth[found[0]] == 3
    assert set(truth[found]) == {0, 1, 2, 3}
    assert sorted(classifier.suggest(pool, 100)) == list(range(40))
    assert classifier.suggest(pool, 100)[:5] == found


def test_a_model_that_has_heard_images_suggests_as_well(few):
    classifier, pool, _ = few
    heard = HeGraphClassifier(variant="free", text_features=classifier.model_.text_positive, logit_scale=20.0)
    heard.fit(pool[:8], np.arange(8) % 4).adapt(pool)
    assert len(heard.suggest(pool, 3)) == 3
    heard._fitted = heard.model_  # as of a loaded one
    assert len(heard.suggest(pool, 3)) == 3


@pytest.mark.parametrize("number", [0, 1.5])
def test_a_number_of_images_that_is_none(few, number):
    with pytest.raises(UserError, match="n: Input"):
        few[0].suggest(few[1], number)

"""Trust in the text of classes: evidence, mixture, text from images, and the text without an image."""

import math

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph.estimator.labels.leave_one_out import left_out_logits, training_free_options
from trainers.hegraph.method.graph import build_graph, class_prototypes
from trainers.hegraph.method.head.closed_form import TextPrior, adapted_kappa
from trainers.hegraph.method.head.trust import (
    SCALES,
    TRUSTED,
    TextFromImages,
    TrustedText,
    estimate_trust,
    image_evidence,
    trust_text,
)
from trainers.hegraph.method.model import HeGraphModel
from trainers.hegraph.method.options import ClosedFormOptions, ModelOptions

CLASSES, SHOTS, WIDTH = 12, 8, 64
TAU = 100.0


@pytest.fixture(scope="module")
def task():
    """Images and text of 12 classes: keys `[N, d]`, labels `[N]` and text `[K, d]`, whose deviations agree in part."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    common = 2 * torch.randn(WIDTH, generator=generator)
    text = F.normalize(common + centres + 0.3 * torch.randn(CLASSES, WIDTH, generator=generator), dim=1)
    labels = torch.arange(CLASSES).repeat(SHOTS)
    noise = 0.7 * torch.randn(len(labels), WIDTH, generator=generator)
    keys = F.normalize(common + centres[labels] + noise, dim=1)
    return keys, labels, text


def swapped(text: torch.Tensor, first: int, second: int) -> torch.Tensor:
    """Text with the rows of two classes exchanged."""
    changed = text.clone()
    changed[first] = text[second]
    changed[second] = text[first]
    return changed


def untrusted(trusted: TrustedText) -> list[int]:
    """Classes whose text says nothing."""
    return (trusted.trust.weights <= TRUSTED).nonzero()[:, 0].tolist()


def test_evidence_is_the_gain_over_a_guess():
    keys = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    evidence = image_evidence(keys, torch.tensor([0, 0, 1]), torch.eye(2, dtype=torch.float64), 1.0, [1.0, 0.0])
    gains = [math.log(2) - math.log(1 + math.exp(-2)), 0.0, math.log(2) - math.log(1 + math.exp(-1))]
    assert evidence[0].tolist() == pytest.approx(gains)
    assert evidence[1].tolist() == pytest.approx([0.0, 0.0, 0.0])


def test_class_without_images_has_the_common_trust():
    evidence = torch.ones(len(SCALES), 2, dtype=torch.float64)
    trust = estimate_trust(evidence, torch.tensor([0, 1]), 3)
    assert trust.weights[2].item() == pytest.approx(trust.share)
    assert trust.weights[0] > trust.weights[2]


def test_good_text_is_trusted_and_stays(task):
    keys, labels, text = task
    trusted = trust_text(keys, labels, text, TAU)
    assert untrusted(trusted) == []
    assert trusted.trust.scale == 1.0
    assert (trusted.scaled - text).norm(dim=1).max() < 0.01


def test_two_exchanged_names_are_found(task):
    keys, labels, text = task
    trusted = trust_text(keys, labels, swapped(text, 2, 7), TAU)
    assert untrusted(trusted) == [2, 7]


def test_text_from_images_is_nearer_than_the_wrong_text(task):
    keys, labels, text = task
    wrong = swapped(text, 2, 7)
    replaced = trust_text(keys, labels, wrong, TAU).replaced.float()
    similar = F.cosine_similarity(replaced - text.mean(dim=0), text - text.mean(dim=0))
    before = F.cosine_similarity(wrong - text.mean(dim=0), text - text.mean(dim=0))
    assert (similar[[2, 7]] > before[[2, 7]] + 0.3).all()


def test_permuted_text_says_nothing(task):
    keys, labels, text = task
    trusted = trust_text(keys, labels, text.roll(1, dims=0), TAU)
    deviations = trusted.scaled - trusted.scaled.mean(dim=0)
    assert len(untrusted(trusted)) == CLASSES or trusted.trust.scale <= 0.1
    assert (TAU * deviations.norm(dim=1)).max() < TAU * (text - text.mean(dim=0)).norm(dim=1).min() / 2


def test_two_classes_with_an_image_each_keep_their_text():
    text = F.normalize(torch.tensor([[1.0, 0.1, 0.0], [1.0, -0.1, 0.0]]), dim=1)
    trusted = trust_text(text.roll(1, dims=0), torch.tensor([0, 1]), text, TAU)  # each image looks like the other text
    assert trusted.trust.share > 0.5


def test_fewer_than_three_trusted_classes_give_their_mean_text(task):
    _, _, text = task
    trusted = torch.zeros(CLASSES, dtype=torch.bool)
    trusted[:2] = True
    means = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    predicted = TextFromImages.fit(means, text.double(), trusted).predict(means)
    assert torch.allclose(predicted, text[:2].double().mean(dim=0).expand_as(predicted))


def test_text_of_a_class_without_images_is_kept(task):
    keys, labels, text = task
    with_images = labels != 3
    trusted = trust_text(keys[with_images], labels[with_images], text, TAU)
    assert torch.equal(trusted.replaced[3], text[3].double())


def test_prior_that_says_nothing_weighs_little(task):
    keys, labels, text = task
    means = torch.stack([keys[labels == label].double().mean(dim=0) for label in range(CLASSES)])
    unrelated = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(2)).double()
    assert adapted_kappa(4.0, TextPrior.fit(text, means), means) == 4.0
    assert adapted_kappa(4.0, TextPrior.fit(unrelated, means), means) < 1.0
    assert adapted_kappa(0.1, TextPrior.fit(unrelated, means), means) == 0.1


def fitted(keys: torch.Tensor, labels: torch.Tensor, text: torch.Tensor, trust: bool) -> HeGraphModel:
    """Training-free model of the classes of a task."""
    options = training_free_options(SHOTS)
    closed_form = ClosedFormOptions(options.kappa, options.rho, options.omega)
    chosen = ModelOptions(variant="training_free", closed_form=closed_form, trust_text=trust)
    visual = class_prototypes(keys, labels, [str(c) for c in range(len(text))])
    return HeGraphModel(build_graph(text, -text, visual), keys, labels, TAU, chosen)


def test_no_names_leave_the_images_alone(task):
    keys, labels, text = task
    folded = fitted(keys, labels, torch.zeros_like(text), trust=True).fold()
    assert (folded.logits(keys).argmax(dim=1) == labels).double().mean() > 0.9


def test_names_of_two_classes_exchanged_do_not_swap_them(task):
    keys, labels, text = task
    wrong = swapped(text, 2, 7)
    of_two = (labels == 2) | (labels == 7)
    right = {}
    for trust in (True, False):
        predicted = fitted(keys, labels, wrong, trust).fold().logits(keys).argmax(dim=1)
        right[trust] = (predicted == labels)[of_two].double().mean().item()
    assert right[True] > 0.9 > 0.5 > right[False]


@pytest.mark.parametrize("kind", ["good", "none"])
def test_left_out_logits_equal_a_separate_fit_with_trust(task, kind):
    keys, labels, text = task
    keys = keys.double()
    text = text.double() if kind == "good" else torch.zeros_like(text).double()
    found = left_out_logits(keys, labels, text, TAU, training_free_options(SHOTS))
    for row in range(0, len(labels), 17):
        others = torch.arange(len(labels)) != row
        model = fitted(keys[others], labels[others], text, trust=True)
        folded = model.fold()
        expected = keys[row] @ folded.weights.double().t() + folded.bias.double()
        offsets = folded.bias.double() - 100 * model.options.closed_form.omega * model.closed_form.to_text.bias.double()
        difference = found[row] - (expected - offsets)
        assert (difference - difference.mean()).abs().max() < 0.05


def test_left_out_logits_with_two_wrong_names_are_near(task):
    keys, labels, text = task
    keys = keys.double()
    wrong = swapped(text, 2, 7).double()
    found = left_out_logits(keys, labels, wrong, TAU, training_free_options(SHOTS)).argmax(dim=1)
    for row in (labels == 2).nonzero()[:, 0].tolist():
        others = torch.arange(len(labels)) != row
        folded = fitted(keys[others], labels[others], wrong, trust=True).fold()
        assert found[row] == (keys[row] @ folded.weights.double().t() + folded.bias.double()).argmax()

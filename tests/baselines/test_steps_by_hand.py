"""The trained methods after two steps and more, against their equations and their optimizers in double precision.

The losses are written down once more from the papers' equations. The gradients are differences, the steps are those of
`by_hand.py`. An image is only one view, and a batch holds all images, so that nothing is drawn at random.
"""

from __future__ import annotations

import math

import by_hand
import numpy as np
import pytest
import torch
from by_hand import IMAGES, LABELS, PROBES, TEXT, adam, bank_of, cache, cross_entropy, gradients, sgd, softmax, unit

from trainers.hegraph.baselines.base import FittedMethod
from trainers.hegraph.baselines.class_features import zero_shot_confidence

NORMS = [1.5, 0.5, 2.0]  # of the text features as the text tower gives them
LONG_TEXT = TEXT * np.array(NORMS)[:, None]
TAU = 10.0
# A cosine over three steps from a peak of 0.02: 0.02 * (1 + cos(0)) / 2, * (1 + cos(pi / 3)) / 2, * (1 + cos(2 pi / 3))
# / 2
COSINE = [0.02, 0.015, 0.005]
# One epoch of warm-up at 0.004, then a cosine that is as long as all four epochs: (1 + cos(pi / 4)) / 2 = 0.853553
WARM = [0.004, 0.02, 0.02 * 0.853553, 0.02 * 0.5]
WARM_UP = {"BATCH_SIZE": 256, "WARMUP_EPOCHS": 1, "WARMUP_LR": 0.004}


def bank(**changed: object):
    return bank_of(IMAGES, LABELS, TEXT, scale=TAU, **changed)


def logits_of(fitted: FittedMethod, steps: int, epochs: int = 0) -> np.ndarray:
    """The logits of the probes, also those of the folded classifier; a step is an epoch where none are given."""
    assert (fitted.epochs, fitted.steps) == (epochs or steps, steps)
    logits = fitted.logits(by_hand.tensor(PROBES))
    if fitted.classifier is not None:
        torch.testing.assert_close(fitted.classifier.logits(by_hand.tensor(PROBES)), logits, rtol=0, atol=2e-4)
    assert not logits.requires_grad
    return logits.double().numpy()


def assert_close(found: np.ndarray, expected: np.ndarray, atol: float = 2e-4) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def affinities(features: np.ndarray, keys: np.ndarray, beta: float) -> np.ndarray:
    """`exp(-beta (1 - f . F_i))`, which is no cosine where the keys are not normalised."""
    return np.exp(-beta * (1 - features @ keys.T))


def test_taskres_decays_its_residual_by_adding_it_to_the_gradient_and_warms_up(fit):
    def logits(features, residual):
        return TAU * features @ unit(LONG_TEXT + 0.5 * residual).T

    def loss(residual):
        return cross_entropy(logits(IMAGES, residual), LABELS)

    [residual] = adam(loss, [np.zeros((3, 4))], WARM, decay=0.3, decoupled=False)
    options = {"ALPHA": [["", 0.5]], "LR": [["", 0.02]], "EPOCHS": [[1, 4]], "WEIGHT_DECAY": 0.3}
    fitted = fit("TaskRes", bank(norms=NORMS), **options, **WARM_UP)
    assert_close(logits_of(fitted, 4), logits(PROBES, residual))


TIP = {"ALPHA": [["", 3.0]], "BETA": 2.0, "LR": 0.02, "EPOCHS": [["", 3]], "WEIGHT_DECAY": 0.4, "EPS": 0.05}


def test_tip_adapter_f_trains_keys_that_are_not_normalised_again_with_adamw_and_a_cosine_over_all_steps(fit):
    # Four images that are all alike, in batches of 2: the two steps of an epoch do not depend on the order
    image = by_hand.random_unit(1, 4, seed=5)
    images, labels = np.repeat(image, 4, axis=0), [0, 0, 0, 0]

    def logits(features, keys):
        return TAU * features @ TEXT.T + 3 * cache(affinities(features, keys, 2.0), labels, 3)

    rates = [0.02 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    [keys] = adam(lambda keys: cross_entropy(logits(image, keys), [0]), [images], rates, 0.4, True, eps=0.05)
    options = TIP | {"EPOCHS": [["", 2]], "BATCH_SIZE": 2}
    fitted = fit("TipAdapterF", bank_of(images, labels, TEXT, scale=TAU), **options, SEARCH=False)
    assert_close(logits_of(fitted, 4, epochs=2), logits(PROBES, keys))
    assert_close(fitted.classifier.keys.double().numpy(), keys, atol=1e-5)


def test_ape_t_moves_text_and_images_by_one_residual_on_its_channels_and_weighs_the_images(fit):
    # Of four channels, the half that scores best: w_1 = 0 and w_2 = 1 score the variance of the text alone
    kept = sorted(range(4), key=lambda channel: -TEXT[:, channel].var())[:2]

    def logits(features, residual, weights):
        whole = np.zeros((3, 4))
        whole[:, kept] = residual
        similar = affinities(features, IMAGES + whole[LABELS], 2.0) * weights
        return TAU * features @ (TEXT + whole).T + 3 * cache(similar, LABELS, 3)

    def loss(*parameters):
        return cross_entropy(logits(IMAGES, *parameters), LABELS)

    trained = adam(loss, [np.zeros((3, 2)), np.ones(5)], COSINE, 0.4, True, eps=0.05)
    rows = {"ALPHA": [["", 3.0]], "LR": [["", 0.02]], "EPOCHS": [["", 3]], "EPS": [["", 0.05]]}
    channels = {"CHANNELS": [["", 0.5]], "WEIGHTS": [["", [0.0, 1.0]]]}
    fitted = fit("APET", bank(), **rows, **channels, BETA=2.0, BATCH_SIZE=256, WEIGHT_DECAY=0.4, SEARCH=False)
    assert_close(logits_of(fitted, 3), logits(PROBES, *trained))


def test_clip_adapter_steps_with_momentum_decay_and_warm_up(fit):
    with torch.random.fork_rng():
        torch.manual_seed(1)  # torch's own start of a linear layer
        layers = [torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(2, 4, bias=False)]
    start = [layer.weight.detach().double().numpy() for layer in layers]

    def logits(features, down, up):
        adapted = np.maximum(np.maximum(features @ down.T, 0) @ up.T, 0)
        return TAU * unit(0.3 * adapted + 0.7 * features) @ TEXT.T

    def loss(*parameters):
        return cross_entropy(logits(IMAGES, *parameters), LABELS)

    trained = sgd(loss, start, WARM, momentum=0.8, decay=0.3)
    options = {"RATIO": 0.3, "REDUCTION": 2, "LR": 0.02, "EPOCHS": [[1, 4]], "MOMENTUM": 0.8, "WEIGHT_DECAY": 0.3}
    fitted = fit("CLIPAdapter", bank(), seed=1, **options, **WARM_UP)
    assert_close(logits_of(fitted, 4), logits(PROBES, *trained))
    other = bank_of(IMAGES, LABELS, by_hand.random_unit(2, 4, seed=8), test=(PROBES, [0] * 6), scale=TAU)
    adapted = np.maximum(np.maximum(PROBES @ trained[0].T, 0) @ trained[1].T, 0)
    expected = TAU * unit(0.3 * adapted + 0.7 * PROBES) @ by_hand.random_unit(2, 4, seed=8).T
    assert_close(fitted.transfer(other).double().numpy(), expected)


def test_clap_steps_with_momentum_and_a_penalty_on_what_it_moved(fit):
    own = softmax(TAU * IMAGES @ TEXT.T)[np.arange(5), LABELS]
    multipliers = np.array([own[np.array(LABELS) == k].mean() for k in range(3)])

    def logits(features, prototypes):
        return TAU * features @ unit(prototypes).T

    def loss(prototypes):
        penalty = (multipliers * ((prototypes - LONG_TEXT) ** 2).sum(axis=1)).mean()
        return cross_entropy(logits(IMAGES, prototypes), LABELS) + penalty

    [prototypes] = sgd(loss, [LONG_TEXT], WARM, momentum=0.8, decay=0.3)
    options = {"LR": 0.02, "EPOCHS": 4, "MOMENTUM": 0.8, "WEIGHT_DECAY": 0.3}
    fitted = fit("CLAP", bank(norms=NORMS), **options, **WARM_UP)
    assert_close(logits_of(fitted, 4), logits(PROBES, prototypes))


def test_claps_multipliers_are_the_mean_probabilities_that_zero_shot_clip_gives_a_classs_own_images():
    # Texts (1, 0), (0, 1), (-1, 0) at the scale 1. Of (1, 0) class 0 has e / (e + 1 + 1/e) = .665241, of (.6, .8) it
    # has e^.6 / (e^.6 + e^.8 + e^-.6) = .396417: .530829 on average. Of (0, 1) class 1 has e / (e + 2) = .576117. Class
    # 2 has no images, and so the mean of the two.
    text = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    found = zero_shot_confidence(bank_of([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], [0, 1, 0], text, scale=1.0))
    assert_close(found.numpy(), np.array([0.530829, 0.576117, 0.553473]), atol=1e-5)


def graph_logits(
    features: np.ndarray, weights: np.ndarray, biases: np.ndarray, alpha: float, beta: float, groups: int
) -> np.ndarray:
    """GraphAdapter's equation, class by class and group by group."""
    means = np.stack([IMAGES[np.array(LABELS) == k].mean(axis=0) for k in range(3)])
    means = means * np.mean(NORMS)  # as long as the text features are on average
    learned = []
    for k, text in enumerate(LONG_TEXT):
        by_group = []
        for group in range(groups):
            found = []
            for nodes, weight, bias in zip((LONG_TEXT, means), weights, biases):
                graph = np.stack([text, *(node for j, node in enumerate(nodes) if j % groups == group)])
                adjacency = np.maximum(unit(graph) @ unit(graph).T, 0) + np.eye(len(graph))
                roots = np.diag(adjacency.sum(axis=1) ** -0.5)
                found.append(np.tanh((roots @ adjacency @ roots @ graph)[0] @ weight + bias[k]))
            by_group.append(alpha * found[0] + (1 - alpha) * found[1])
        learned.append(beta * text + (1 - beta) * np.mean(by_group, axis=0))
    return TAU * features @ unit(np.stack(learned)).T


@pytest.mark.parametrize("groups", [1, 2, 9])  # no more than there are classes, 3
def test_graph_adapter_trains_two_convolutions_over_groups_of_classes(fit, groups):
    start = 2 * torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(7)).double().numpy() - 1
    start = start / 2  # within 1 / sqrt(d), and d is 4

    def loss(weights, biases):
        return cross_entropy(graph_logits(IMAGES, weights, biases, 0.2, 0.4, min(groups, 3)), LABELS)

    trained = adam(loss, [start, np.zeros((2, 3, 4))], WARM, decay=0.3, decoupled=False)
    options = {"ALPHA": 0.2, "BETA": 0.4, "GROUPS": groups, "LR": 0.02, "EPOCHS": 4, "WEIGHT_DECAY": 0.3}
    fitted = fit("GraphAdapter", bank(norms=NORMS), seed=7, **options, **WARM_UP)
    assert_close(logits_of(fitted, 4), graph_logits(PROBES, *trained, 0.2, 0.4, min(groups, 3)))


def momentum_by_hand(steps: int, block: int, momentum: float, images: np.ndarray = PROBES) -> np.ndarray:
    """LP++'s logits of images, by default the probes, after so many steps."""

    def logits(features, weight, bias, alpha):
        return features @ weight.T + bias + alpha * (features @ TEXT.T)

    def loss(*parameters):
        return cross_entropy(logits(IMAGES, *parameters), LABELS)

    classes = [[i for i, label in enumerate(LABELS) if label == k] for k in range(3)]
    weight, bias = np.stack([IMAGES[rows].sum(axis=0) for rows in classes]), np.zeros(3)
    alpha = np.full(3, 2.0 * np.mean([(IMAGES[rows] @ TEXT[k]).mean() for k, rows in enumerate(classes)]))
    weight_rate = 4 * 5 / np.linalg.svd(IMAGES)[1][0] ** 2
    alpha_rate = 5 / (4 * ((IMAGES @ TEXT.T) ** 2).sum(axis=0).max())
    speeds = [np.zeros_like(weight), np.zeros_like(bias)]
    for step in range(1, steps + 1):
        *of_classes, of_alpha = gradients(loss, [weight, bias, alpha])
        speeds = [momentum * speed + gradient for speed, gradient in zip(speeds, of_classes)]
        weight, bias = weight - weight_rate * speeds[0], bias - weight_rate * speeds[1]
        if step % block == 0:
            alpha = alpha - alpha_rate * of_alpha
    return logits(images, weight, bias, alpha)


LP = {"MOMENTUM": 0.6, "ALPHA_SCALE": 2.0}


def test_lp_plus_plus_keeps_its_momentum_over_the_blocks_and_steps_alpha_without_one(fit):
    fitted = fit("LPPlusPlus", bank(val=(PROBES, [0, 1, 2, 0, 1, 2])), STEPS=6, BLOCK=3, SELECT=False, **LP)
    assert fitted.selected == {}
    assert_close(logits_of(fitted, 6), momentum_by_hand(6, 3, 0.6), atol=1e-3)


def test_lp_plus_plus_goes_back_to_the_best_step(fit):
    # Forty val images are labelled as the second of six steps sees them; the last step sees some of them differently
    images = by_hand.random_unit(40, 4, seed=9)
    seen = [momentum_by_hand(step, 2, 0.6, images).argmax(axis=1) for step in range(1, 7)]
    right = [100 * (vote == seen[1]).mean() for vote in seen]
    best = max(step for step in range(1, 7) if right[step - 1] == 100)
    assert best < 6
    fitted = fit("LPPlusPlus", bank(val=(images, seen[1].tolist())), STEPS=6, BLOCK=2, **LP)
    assert fitted.selected["STEP"]["value"] == best
    assert [accuracy for _, accuracy in fitted.selected["STEP"]["candidates"]] == pytest.approx(right, abs=1e-3)
    assert_close(logits_of(fitted, 6), momentum_by_hand(best, 2, 0.6), atol=1e-3)

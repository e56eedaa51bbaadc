"""Trained methods after a few steps, compared with their equations in float64 and with numbers worked out by hand.

The losses are implemented a second time from the equations of the papers. Images have one view, and a batch holds all
images, so that nothing is random.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from by_hand import AXES, IMAGES, LABELS, QUERIES, TEXT, assert_close, bank_of, minimise, tensor, unit
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from benchmarks.tasks import unit_features
from trainers.hegraph.baselines import proto_clip
from trainers.hegraph.baselines.base import FittedMethod
from trainers.hegraph.baselines.caches import last_of_each_class
from trainers.hegraph.baselines.class_features import zero_shot_confidence
from trainers.hegraph.baselines.simnl import image_weights, reranking
from trainers.hegraph.baselines.trained import BestEpoch, train
from trainers.hegraph.method.training.batches import Batch
from trainers.hegraph.utils.errors import UserError

NORMS = [1.5, 0.5, 2.0]  # of the text features before normalisation
LONG_TEXT = TEXT * torch.tensor(NORMS)[:, None]
TAU = 10.0
# Cosine over three steps from a peak of 0.02: 0.02 * (1 + cos(x)) / 2 for x = 0, pi / 3 and 2 pi / 3
COSINE = [0.02, 0.015, 0.005]
# One epoch of warm-up at 0.004, then a cosine over all four epochs: (1 + cos(pi / 4)) / 2 = 0.853553
WARM = [0.004, 0.02, 0.02 * 0.853553, 0.02 * 0.5]
WARM_UP = {"BATCH_SIZE": 256, "WARMUP_EPOCHS": 1, "WARMUP_LR": 0.004}


def bank(**changed: object):
    return bank_of(IMAGES, LABELS, TEXT, scale=TAU, **changed)


def loss_of(logits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cross-entropy of the training images as a function of the parameters."""
    return lambda *parameters: F.cross_entropy(logits(IMAGES, *parameters), LABELS)


def logits_of(fitted: FittedMethod, steps: int, epochs: int = 0) -> Tensor:
    """Logits of the queries, equal to those of the saved classifier; one step is one epoch by default."""
    assert (fitted.epochs, fitted.steps) == (epochs or steps, steps)
    logits = fitted.logits(tensor(QUERIES))
    if fitted.classifier is not None:
        assert_close(fitted.classifier.logits(tensor(QUERIES)), logits)
    assert not logits.requires_grad
    return logits


def cache(features: Tensor, keys: Tensor, labels: Tensor, weights: float | Tensor = 1.0) -> Tensor:
    """Sum of `exp(-2 (1 - f . F_i))` over the images of each class, for keys `F_i` of any norm."""
    return ((-2 * (1 - features @ keys.t())).exp() * weights) @ F.one_hot(labels, 3).double()


# The training loop and the best epoch


class Descent:
    """Training of w by a loss of 2 w, and of v by 4 v in the first batch of an epoch and -v in the second.

    The learning rate is the peak, 0.3 for w and 0.6 for v, divided by the number of the step. The loss is infinite from
    epoch `diverges_in` on.
    """

    def __init__(self, diverges_in: float = math.inf) -> None:
        self.w, self.v = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
        self.epochs, self.finished_epochs, self.diverges_in = [], [], diverges_in

    def epoch(self, number: int):
        self.epochs.append(number)
        for label in (0, 1):
            yield Batch(torch.zeros(1, 2), torch.tensor([label]), torch.tensor([0]))

    def loss(self, batch: Batch) -> Tensor:
        penalty = math.inf if len(self.epochs) >= self.diverges_in else 0
        return 2 * self.w + (4 * self.v if batch.labels[0] == 0 else -self.v) + penalty

    def run(self, epochs: int) -> int:
        optimizer = SGD([{"params": [self.w], "lr": 0.3}, {"params": [self.v], "lr": 0.6}])
        return train(
            optimizer, self.loss, self, epochs, lambda step, peak: peak / (step + 1), self.finished_epochs.append
        )


def test_train_descends_at_scheduled_rates():
    # Over four steps w falls by 2 * 0.3 * (1 + 1/2 + 1/3 + 1/4) = 1.25, and v by 0.6 * (4 - 1/2 + 4/3 - 1/4) = 2.75
    descent = Descent()
    assert (descent.run(2), descent.epochs, descent.finished_epochs) == (4, [0, 1], [1, 2])
    assert (descent.w.item(), descent.v.item()) == (pytest.approx(1 - 1.25), pytest.approx(1 - 2.75))
    assert not descent.w.requires_grad and not descent.v.requires_grad


def test_train_stops_at_an_infinite_loss():
    descent = Descent(diverges_in=2)
    with pytest.raises(UserError, match=r"^the loss is -?inf in epoch 2; lower LR \(0\.6\)$"):
        descent.run(5)
    assert descent.finished_epochs == [1]


def test_last_of_equally_good_epochs_is_restored():
    parameter = torch.zeros(2)
    best = BestEpoch([parameter])
    for epoch, accuracy, value in [(10, 50.0, 1.0), (20, 75.00001, 2.0), (30, 75.0, 3.0), (40, 60.0, 4.0)]:
        parameter.fill_(value)
        best.record(epoch, accuracy)
    assert best.restore() == {"value": 30, "candidates": [[10, 50.0], [20, 75.0], [30, 75.0], [40, 60.0]]}
    assert parameter.tolist() == [3.0, 3.0]


# Steps of each method


def test_taskres_trains_a_residual_with_adam(fit):
    def logits(features, residual):
        return TAU * features @ unit(LONG_TEXT + 0.5 * residual).t()

    [residual] = minimise(Adam, loss_of(logits), [torch.zeros(3, 4)], WARM, weight_decay=0.3)
    options = {"ALPHA": [["", 0.5]], "LR": [["", 0.02]], "EPOCHS": [[1, 4]], "WEIGHT_DECAY": 0.3}
    fitted = fit("TaskRes", bank(norms=NORMS), **options, **WARM_UP)
    assert_close(logits_of(fitted, 4), logits(QUERIES, residual))


def test_tip_adapter_f_trains_keys_with_adamw(fit):
    # Four equal images in batches of 2, so that the order of the images has no effect
    image, labels = unit_features(1, 4, seed=5).double(), torch.zeros(4, dtype=torch.long)
    images = image.repeat(4, 1)

    def logits(features, keys):
        return TAU * features @ TEXT.t() + 3 * cache(features, keys, labels)

    def loss(keys):
        return F.cross_entropy(logits(image, keys), labels[:1])

    rates = [0.02 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    [keys] = minimise(AdamW, loss, [images], rates, weight_decay=0.4, eps=0.05)
    rows = {"ALPHA": [["", 3.0]], "EPOCHS": [["", 2]]}
    options = {"BETA": 2.0, "LR": 0.02, "WEIGHT_DECAY": 0.4, "EPS": 0.05, "BATCH_SIZE": 2, "SEARCH": False}
    fitted = fit("TipAdapterF", bank_of(images, labels, TEXT, scale=TAU), **rows, **options)
    assert_close(logits_of(fitted, 4, epochs=2), logits(QUERIES, keys))
    assert_close(fitted.classifier.keys, keys, atol=1e-5)


def test_ape_t_trains_residuals_and_image_weights(fit):
    # Half of the four channels; w_1 = 0 and w_2 = 1 select them by the variance of the text
    channels = TEXT.var(dim=0).topk(2).indices

    def logits(features, residual, weights):
        residuals = torch.zeros(3, 4).double().index_copy(1, channels, residual)
        keys = IMAGES + residuals[LABELS]
        return TAU * features @ (TEXT + residuals).t() + 3 * cache(features, keys, LABELS, weights)

    initial = [torch.zeros(3, 2), torch.ones(5)]
    parameters = minimise(AdamW, loss_of(logits), initial, COSINE, weight_decay=0.4, eps=0.05)
    rows = {"ALPHA": [["", 3.0]], "LR": [["", 0.02]], "EPOCHS": [["", 3]], "EPS": [["", 0.05]]}
    rows |= {"CHANNELS": [["", 0.5]], "WEIGHTS": [["", [0.0, 1.0]]]}
    fitted = fit("APET", bank(), **rows, BETA=2.0, BATCH_SIZE=256, WEIGHT_DECAY=0.4, SEARCH=False)
    assert_close(logits_of(fitted, 3), logits(QUERIES, *parameters))


def test_simnl_trains_positive_and_negative_residuals(fit):
    negative_text = unit_features(3, 4, seed=6).double()
    others = torch.stack([unit(IMAGES[LABELS != k].sum(dim=0)) for k in range(3)])
    counts = torch.tensor([2.0, 2.0, 1.0])

    def logits(features, text, keys, negative, absent):
        positive = TAU * features @ unit(TEXT + text).t() + 3 * cache(features, unit(IMAGES + keys[LABELS]), LABELS)
        excluded = 0.15 * TAU * (1 - features @ unit(negative_text + negative).t())
        excluded = excluded + 3 * counts * (-2 * features @ unit(others + absent).t()).exp()
        return 0.6 * positive + 0.4 * excluded

    def loss(*residuals):
        text, hinge = unit(TEXT + residuals[0]), torch.tensor(0.0).double()
        for image, label in zip(IMAGES, LABELS):  # all three classes are neighbours
            for k in range(3):
                margin = (1 - text[k] @ text[label]) / 4
                hinge = hinge + ((image - text[label]).norm() + margin - (image - text[k]).norm()).relu() / 15
        return loss_of(logits)(*residuals) + hinge + 8 * (1 - (text * TEXT).sum(dim=1)).mean()

    initial = [torch.zeros(3, 4)] * 4
    residuals = minimise(AdamW, loss, initial, COSINE, multiples=[1, 1, 5, 5], weight_decay=0.4, eps=0.05)
    rows = {"ALPHA": [["", 3.0]], "BETA": [["", 2.0]], "LAMBDA": [["", 0.6]], "LR": [["", 0.02]]}
    rows |= {"EPOCHS": [["", 3]], "EPS": [["", 0.05]]}
    task = replace(bank(), text_negative=tensor(negative_text))
    fitted = fit("SimNL", task, **rows, BATCH_SIZE=256, WEIGHT_DECAY=0.4, SEARCH=False)
    assert_close(logits_of(fitted, 3), logits(QUERIES, *residuals))


def test_simnl_searches_beta_before_alpha_in_its_grid(fit):
    task = bank_of(IMAGES, LABELS, TEXT, val=(QUERIES, [0, 1, 2, 0, 1, 2]))
    grid = {"SEARCH_SCALE": [["", [2.0, 10.0]]], "SEARCH_STEP": [2, 3]}
    fitted = fit("SimNL", task, **grid, ALPHA=[["", 1.0]], BETA=[["", 4.0]], EPOCHS=[["", 1]])
    alphas = (0.1, 3.4, 6.7)  # from 0.1 in steps of 9.9 / 3
    expected = {(1.0, 4.0), *itertools.product(alphas, (4.0, 0.1, 1.05))}  # beta in steps of 1.9 / 2
    assert {tuple(values) for values, _ in fitted.selected["ALPHA, BETA"]["candidates"]} == expected


def test_simnl_weighs_images_by_their_similarity():
    # Cosines 0, 0.6 and 0.8 between the images of class 0, so mean cosines 0.3, 0.4 and 0.7; class 1 has one image
    keys, labels = tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]), torch.tensor([0, 0, 0, 1])
    sums = tensor([[1.6, 1.8], [1.0, 0.0]])
    weights = 3 * torch.tensor([0.3, 0.4, 0.7]).softmax(dim=0)
    assert_close(image_weights(keys, labels, sums), [*weights.tolist(), 1.0], atol=1e-6)


def test_simnl_ranks_the_true_class_before_the_three_nearest():
    text, labels = unit_features(5, 4, seed=7).double(), torch.tensor([0, 1, 2, 3, 4, 0])
    expected = torch.tensor(0.0).double()
    for image, label in zip(QUERIES, labels):
        distances = (text - image).norm(dim=1)
        for k in distances.argsort()[:3]:
            expected += (distances[label] + (1 - text[k] @ text[label]) / 4 - distances[k]).relu() / (6 * 3)
    torch.testing.assert_close(reranking(Batch(QUERIES, labels, torch.arange(6)), text), expected)


def test_hoso_trains_keys_without_the_held_out_images(fit):
    held = torch.tensor([False, False, False, True, True])  # the last image of classes 0 and 1; class 2 has one image
    assert torch.equal(last_of_each_class(LABELS), held)
    options = {"ALPHA": [["", 3.0]], "BETA": 2.0, "LR": 0.02, "EPOCHS": [["", 3]]}
    fitted = fit("TipAdapterFHOSO", bank(val=(IMAGES[:1], [0])), **options)
    rest = bank_of(IMAGES[~held], LABELS[~held], TEXT, scale=TAU)
    without = fit("TipAdapterF", rest, **options, SEARCH=False)
    assert torch.equal(fitted.classifier.keys, without.classifier.keys) and without.classifier.alpha == 3.0
    text, cached = without.classifier.parts(tensor(IMAGES[held]))
    losses = [F.cross_entropy(text + alpha * cached, LABELS[held]) for alpha in torch.linspace(0, TAU, 1001)]
    assert fitted.classifier.alpha == pytest.approx(min(range(1001), key=losses.__getitem__) * TAU / 1000, abs=0.02)
    assert_close(fitted.logits(tensor(QUERIES)), fitted.classifier.logits(tensor(QUERIES)))


def test_hoso_holds_out_whole_groups(fit):
    """The other frame of a held-out image is not trained on, and no class loses all its images."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    groups = torch.tensor([0, 1, 1, 2, 3, 4, 4])
    images = unit_features(7, 4, seed=9)
    held = last_of_each_class(labels, groups)
    assert held.tolist() == [False, False, True, False, True, False, False]  # class 2 has one group
    options = {"ALPHA": [["", 3.0]], "BETA": 2.0, "LR": 0.02, "EPOCHS": [["", 3]]}
    fitted = fit("TipAdapterFHOSO", replace(bank_of(images, labels, TEXT, scale=TAU), train_groups=groups), **options)
    rest = torch.tensor([True, False, False, True, False, True, True])
    without = fit("TipAdapterF", bank_of(images[rest], labels[rest], TEXT, scale=TAU), **options, SEARCH=False)
    assert torch.equal(fitted.classifier.keys, without.classifier.keys)


def test_hoso_at_one_shot_keeps_the_initial_alpha(fit):
    task = bank_of(IMAGES[:3], LABELS[:3], TEXT, scale=TAU)
    first, second = (fit(name, task).logits(tensor(QUERIES)) for name in ("TipAdapterFHOSO", "TipAdapterF"))
    assert torch.equal(first, second)


def test_clip_adapter_trains_a_bottleneck_with_sgd(fit):
    with torch.random.fork_rng():
        torch.manual_seed(1)  # torch's initialisation of a linear layer
        initial = [torch.nn.Linear(4, 2, bias=False).weight, torch.nn.Linear(2, 4, bias=False).weight]

    def logits(features, down, up, text=TEXT):
        adapted = ((features @ down.t()).relu() @ up.t()).relu()
        return TAU * unit(0.3 * adapted + 0.7 * features) @ text.t()

    parameters = minimise(SGD, loss_of(logits), initial, WARM, momentum=0.8, weight_decay=0.3)
    options = {"RATIO": 0.3, "REDUCTION": 2, "LR": 0.02, "EPOCHS": [[1, 4]], "MOMENTUM": 0.8, "WEIGHT_DECAY": 0.3}
    fitted = fit("CLIPAdapter", bank(), seed=1, **options, **WARM_UP)
    assert_close(logits_of(fitted, 4), logits(QUERIES, *parameters))
    other = unit_features(2, 4, seed=8).double()
    transferred = fitted.transfer(bank_of(IMAGES, LABELS, other, test=(QUERIES, [0] * 6), scale=TAU))
    assert_close(transferred, logits(QUERIES, *parameters, text=other))


def test_clap_trains_prototypes_with_a_penalty(fit):
    confidences = (TAU * IMAGES @ TEXT.t()).softmax(dim=1)[range(5), LABELS]
    multipliers = torch.stack([confidences[LABELS == k].mean() for k in range(3)])

    def logits(features, prototypes):
        return TAU * features @ unit(prototypes).t()

    def loss(prototypes):
        penalty = (multipliers * (prototypes - LONG_TEXT).square().sum(dim=1)).mean()
        return loss_of(logits)(prototypes) + penalty

    [prototypes] = minimise(SGD, loss, [LONG_TEXT], WARM, momentum=0.8, weight_decay=0.3)
    options = {"LR": 0.02, "EPOCHS": 4, "MOMENTUM": 0.8, "WEIGHT_DECAY": 0.3}
    fitted = fit("CLAP", bank(norms=NORMS), **options, **WARM_UP)
    assert_close(logits_of(fitted, 4), logits(QUERIES, prototypes))


def test_clap_multipliers_are_mean_zero_shot_probabilities():
    # Text features (1, 0), (0, 1), (-1, 0), scale 1. Class 0 has e / (e + 1 + 1/e) = .665241 for the image (1, 0) and
    # e^.6 / (e^.6 + e^.8 + e^-.6) = .396417 for (.6, .8), on average .530829. Class 1 has e / (e + 2) = .576117 for
    # (0, 1). Class 2 has no images and gets the mean of the two.
    text = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    multipliers = zero_shot_confidence(bank_of([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], [0, 1, 0], text, scale=1.0))
    assert_close(multipliers, [0.530829, 0.576117, 0.553473], atol=1e-5)


def graph_logits(features: Tensor, weights: Tensor, biases: Tensor, groups: int) -> Tensor:
    """GraphAdapter's equation with alpha 0.2 and beta 0.4, by loops over classes and groups."""
    means = torch.stack([IMAGES[LABELS == k].mean(dim=0) for k in range(3)])
    means = means * sum(NORMS) / 3  # scaled by the mean norm of the text features
    class_features = []
    for k, text in enumerate(LONG_TEXT):
        graph_features = []
        for group in range(groups):
            outputs = []
            for nodes, weight, bias in zip((LONG_TEXT, means), weights, biases):
                graph = torch.cat([text[None], nodes[group::groups]])
                adjacency = (unit(graph) @ unit(graph).t()).relu() + torch.eye(len(graph))
                root = adjacency.sum(dim=1).rsqrt()
                outputs.append((root[0] * adjacency[0] * root @ graph @ weight + bias[k]).tanh())
            graph_features.append(0.2 * outputs[0] + 0.8 * outputs[1])
        class_features.append(0.4 * text + 0.6 * torch.stack(graph_features).mean(dim=0))
    return TAU * features @ unit(torch.stack(class_features)).t()


@pytest.mark.parametrize("groups", [1, 2, 9])  # at most 3, the number of classes
def test_graph_adapter_trains_two_graph_convolutions(fit, groups):
    def logits(features, *parameters):
        return graph_logits(features, *parameters, min(groups, 3))

    initial = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(7)) - 0.5  # within 1 / sqrt(d), d = 4
    parameters = minimise(Adam, loss_of(logits), [initial, torch.zeros(2, 3, 4)], WARM, weight_decay=0.3)
    options = {"ALPHA": 0.2, "BETA": 0.4, "GROUPS": groups, "LR": 0.02, "EPOCHS": 4, "WEIGHT_DECAY": 0.3}
    fitted = fit("GraphAdapter", bank(norms=NORMS), seed=7, **options, **WARM_UP)
    assert_close(logits_of(fitted, 4), logits(QUERIES, *parameters))


def lp_plus_plus_by_hand(steps: int, block: int, images: Tensor = QUERIES) -> Tensor:
    """LP++'s logits of images after a number of steps with a momentum of 0.6."""

    def logits(features, weight, bias, alpha):
        return features @ weight.t() + bias + alpha * (features @ TEXT.t())

    classes = [IMAGES[LABELS == k] for k in range(3)]
    weight, bias = torch.stack([members.sum(dim=0) for members in classes]), torch.zeros(3).double()
    alpha = 2.0 * torch.stack([(members @ text).mean() for members, text in zip(classes, TEXT)]).mean().repeat(3)
    weight_rate = 4 * 5 / torch.linalg.matrix_norm(IMAGES, 2) ** 2
    alpha_rate = 5 / (4 * (IMAGES @ TEXT.t()).square().sum(dim=0).max())
    velocities = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(1, steps + 1):
        parameters = [parameter.requires_grad_() for parameter in (weight, bias, alpha)]
        *gradients, alpha_gradient = torch.autograd.grad(loss_of(logits)(*parameters), parameters)
        velocities = [0.6 * velocity + gradient for velocity, gradient in zip(velocities, gradients)]
        weight, bias = weight.detach() - weight_rate * velocities[0], bias.detach() - weight_rate * velocities[1]
        alpha = alpha.detach() - (alpha_rate * alpha_gradient if step % block == 0 else 0)
    return logits(images, weight, bias, alpha)


LP = {"MOMENTUM": 0.6, "ALPHA_SCALE": 2.0}


def test_lp_plus_plus_steps_in_blocks_with_momentum(fit):
    fitted = fit("LPPlusPlus", bank(val=(QUERIES, [0, 1, 2, 0, 1, 2])), STEPS=6, BLOCK=3, SELECT=False, **LP)
    assert fitted.selected == {}
    assert_close(logits_of(fitted, 6), lp_plus_plus_by_hand(6, 3), atol=1e-3)


def test_lp_plus_plus_restores_the_best_step(fit):
    # The labels of forty val images are the predictions of the second of six steps; later steps predict others
    images = unit_features(40, 4, seed=9)
    predicted = torch.stack([lp_plus_plus_by_hand(step, 2, images.double()).argmax(dim=1) for step in range(1, 7)])
    accuracies = [100 * share for share in (predicted == predicted[1]).double().mean(dim=1).tolist()]
    best = max(step for step in range(1, 7) if accuracies[step - 1] == 100)
    assert best < 6
    fitted = fit("LPPlusPlus", bank(val=(images, predicted[1])), STEPS=6, BLOCK=2, **LP)
    assert fitted.selected["STEP"]["value"] == best
    assert [accuracy for _, accuracy in fitted.selected["STEP"]["candidates"]] == pytest.approx(accuracies, abs=1e-3)
    assert_close(logits_of(fitted, 6), lp_plus_plus_by_hand(best, 2), atol=1e-3)


# Proto-CLIP


# RATIO 0 disables the adapter, so that only the two memories are trained
PROTO = {"RATIO": 0.0, "TEMPERATURE": 0.5, "BETA": 3.0, "LR": 0.02, "WEIGHT_DECAY": 0.4, "EPS": 0.05, "BATCH_SIZE": 256}


def prototypes(images: Tensor) -> Tensor:
    return unit(torch.stack([unit(images[LABELS == k]).sum(dim=0) for k in range(3)]))


def probabilities(features: Tensor, images: Tensor, text: Tensor, alpha: float, beta: float) -> Tensor:
    image_p, text_p = (
        (-beta * (features[:, None] - centres).square().sum(dim=2)).softmax(dim=1)
        for centres in (prototypes(images), unit(text))
    )
    return alpha * image_p + (1 - alpha) * text_p


def trained_memories(steps: int, alpha: float, beta: float) -> list[Tensor]:
    """Image and text memory, trained by the negative log-likelihood and the contrastive loss in both directions."""

    def loss(images, text):
        similarities, classes = prototypes(images) @ unit(text).t() / 0.5, torch.arange(3)
        likelihood = F.nll_loss(probabilities(IMAGES, images, text, alpha, beta).log(), LABELS)
        return likelihood + F.cross_entropy(similarities, classes) + F.cross_entropy(similarities.t(), classes)

    return minimise(AdamW, loss, [IMAGES, TEXT], [0.02] * steps, weight_decay=0.4, eps=0.05)


def test_proto_clip_trains_both_memories(fit):
    shots = {"ALPHA_WITHOUT_VAL": [[1, 0.9], [2, 0.3]], "EPOCHS_WITHOUT_VAL": [[1, 9], [2, 3]]}
    fitted = fit("ProtoCLIP", bank_of(IMAGES, LABELS, TEXT), **PROTO, **shots, EPOCHS=9)
    assert fitted.selected == {}
    assert_close(logits_of(fitted, 3), probabilities(QUERIES, *trained_memories(3, 0.3, 3.0), 0.3, 3.0).log())


def test_unit_normalises_rows_with_the_correct_gradient():
    rows = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    assert torch.autograd.gradcheck(proto_clip.unit, rows)
    torch.testing.assert_close(proto_clip.unit(rows), F.normalize(rows, dim=-1))


def test_zero_probability_has_a_finite_log():
    query, images = tensor([[1.0, 0.0]]), tensor(AXES)
    log_p = proto_clip.mixture(query @ images.t(), query @ images.t(), 0.5, 500.0)
    assert log_p.tolist() == [[0.0, pytest.approx(math.log(torch.finfo(torch.float32).tiny))]]


def test_adapter_adds_its_output_to_the_feature():
    # Both matrices are the identity. (0.8, 0.6) minus its mean 0.7 is (0.1, -0.1), over its deviation 0.1: (1, -1),
    # which the second normalisation leaves unchanged. Over the root of the width it is (0.7071, -0.7071). A quarter of
    # it and three quarters of the feature: (0.776777, 0.273223), of norm 0.823425.
    model = proto_clip.Prototypes(bank_of(AXES, [0, 1], AXES), proto_clip.ProtoCLIPOptions(ratio=0.25, reduction=1), 1)
    for layer in (model.layers[0], model.layers[2]):
        torch.nn.init.eye_(layer.weight)
    assert_close(model.adapt(tensor([[0.8, 0.6]])), [[0.943349, 0.331813]])


def search_options(**changed: object) -> proto_clip.ProtoCLIPOptions:
    return proto_clip.ProtoCLIPOptions(**{"alpha": 0.52, "beta": 9.3, "alpha_without_val": 0.4, **changed})


def search_on_val(image_cosines: Tensor, text_cosines: Tensor) -> tuple:
    """Alpha, beta and the entry of `selected`, for two val images with these cosines; test labels are swapped."""
    bank = bank_of(AXES, [0, 1], AXES, val=(AXES, [0, 1]), test=(AXES, [1, 0]))
    return proto_clip.search_alpha_beta(bank, search_options(), lambda features: (image_cosines, text_cosines))


def test_proto_clip_search_orders_candidates_by_distance():
    # |alpha - 0.52| + |beta - 9.3| / 20, over alphas 0, 0.1 ... 1 and betas 0.1, 0.2 ... 0.9, 1, 2 ... 20
    selected, entry = search_on_val(torch.zeros(2, 2), torch.zeros(2, 2))
    values = [value for value, _ in entry["candidates"]]
    assert len(values) == 11 * 29 + 1
    # Distances 0, 0.02 + 0.015, 0.02 + 0.035, 0.02 + 0.065 and 0.08 + 0.015
    assert values[:5] == [(0.52, 9.3), (0.5, 9.0), (0.5, 10.0), (0.5, 8.0), (0.6, 9.0)]
    assert {beta for _, beta in values} == {i / 10 for i in range(1, 10)} | {float(i) for i in range(1, 21)} | {9.3}
    assert {alpha for alpha, _ in values} == {0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 0.52}
    assert selected == (0.52, 9.3)  # all are equally good
    assert {accuracy for _, accuracy in entry["candidates"]} == {50.0}


def test_proto_clip_search_selects_the_best_on_val():
    # The images favour the true class weakly, the text the other class strongly. For both val images the difference of
    # the two probabilities is alpha tanh(0.1 beta) - (1 - alpha) tanh(0.3 beta). It is positive from alpha 0.576 on at
    # beta 9.3, from 0.581 at 9, from 0.567 at 10 and from 0.555 at 11: the nearest candidate is (0.6, 9).
    selected, entry = search_on_val(tensor([[0.1, 0.0], [0.0, 0.1]]), tensor([[0.0, 0.3], [0.3, 0.0]]))
    assert selected == entry["value"] == (0.6, 9.0)


@pytest.mark.parametrize("search", [True, False])
def test_proto_clip_alpha_without_search(search):
    val = None if search else (AXES, [0, 1])
    bank = bank_of([*AXES, AXES[0]], [0, 1, 0], AXES, val=val)
    values = proto_clip.search_alpha_beta(bank, search_options(search=search), lambda *_: pytest.fail("searched"))
    assert values == ((0.4, 9.3), {})


def test_proto_clip_selects_before_during_and_after_training(fit):
    bank = bank_of(IMAGES, LABELS, TEXT, val=(QUERIES, [0, 1, 2, 0, 1, 2]))
    options = {"EPOCHS": 7, "ASK_EVERY": 3, "EPOCHS_WITHOUT_VAL": [[1, 1]], "ALPHA": 0.5}
    fitted = fit("ProtoCLIP", bank, **PROTO, **options)
    assert list(fitted.selected) == ["ALPHA, BETA in training", "EPOCH", "ALPHA, BETA at last"]
    assert [epoch for epoch, _ in fitted.selected["EPOCH"]["candidates"]] == [3, 6]
    # The loss uses the values selected before training, the prediction the values selected after it
    before, after = (fitted.selected[f"ALPHA, BETA {when}"]["value"] for when in ("in training", "at last"))
    memories = trained_memories(fitted.selected["EPOCH"]["value"], *before)
    assert_close(logits_of(fitted, 7), probabilities(QUERIES, *memories, *after).log(), atol=1e-3)

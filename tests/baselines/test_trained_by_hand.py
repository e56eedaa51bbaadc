"""The trained methods after a few steps, against their equations in double precision, and numbers worked out by hand.

The losses are written down once more from the papers' equations. An image is only one view, and a batch holds all
images, so that nothing is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from by_hand import AXES, IMAGES, LABELS, PROBES, TEXT, bank_of, close, tensor, trained, unit
from torch import Tensor
from torch.optim import SGD, Adam, AdamW
from yacs.config import CfgNode

from benchmarks.tasks import unit_features
from trainers.hegraph.baselines import proto_clip
from trainers.hegraph.baselines.base import FittedMethod
from trainers.hegraph.baselines.class_features import zero_shot_confidence
from trainers.hegraph.baselines.trained import BestEpoch, train
from trainers.hegraph.training.batches import Batch
from trainers.hegraph.utils.errors import UserError

NORMS = [1.5, 0.5, 2.0]  # of the text features as the text tower gives them
LONG_TEXT = TEXT * torch.tensor(NORMS)[:, None]
TAU = 10.0
# A cosine over three steps from a peak of 0.02: 0.02 * (1 + cos(0)) / 2, * (1 + cos(pi / 3)) / 2, * (1 + cos(2 pi / 3))
# / 2
COSINE = [0.02, 0.015, 0.005]
# One epoch of warm-up at 0.004, then a cosine that is as long as all four epochs: (1 + cos(pi / 4)) / 2 = 0.853553
WARM = [0.004, 0.02, 0.02 * 0.853553, 0.02 * 0.5]
WARM_UP = {"BATCH_SIZE": 256, "WARMUP_EPOCHS": 1, "WARMUP_LR": 0.004}


def bank(**changed: object):
    return bank_of(IMAGES, LABELS, TEXT, scale=TAU, **changed)


def loss_of(logits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The cross-entropy of the training images, as a function of the parameters."""
    return lambda *parameters: F.cross_entropy(logits(IMAGES, *parameters), LABELS)


def logits_of(fitted: FittedMethod, steps: int, epochs: int = 0) -> Tensor:
    """The logits of the probes, also those of the folded classifier; a step is an epoch where none are given."""
    assert (fitted.epochs, fitted.steps) == (epochs or steps, steps)
    logits = fitted.logits(tensor(PROBES))
    if fitted.classifier is not None:
        close(fitted.classifier.logits(tensor(PROBES)), logits)
    assert not logits.requires_grad
    return logits


def cache(features: Tensor, keys: Tensor, labels: Tensor, weights: float | Tensor = 1.0) -> Tensor:
    """`exp(-2 (1 - f . F_i))`, which is no cosine where the keys are not normalised, summed over images of a class."""
    return ((-2 * (1 - features @ keys.t())).exp() * weights) @ F.one_hot(labels, 3).double()


# The loop and the best epoch


def test_every_step_goes_down_its_own_gradient_at_the_rate_of_the_schedule_until_the_loss_is_infinite():
    # The loss is 2 w + 4 v in the first batch of an epoch and 2 w - v in the second. The rate is the peak divided by
    # the number of the step, so over four steps w falls by 2 * 0.3 * (1 + 1/2 + 1/3 + 1/4) = 1.25, and v by 0.6 * (4 -
    # 1/2 + 4/3 - 1/4) = 2.75.
    w, v = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    done, asked = [], []

    def epoch(number: int):
        asked.append(number)
        for label in (0, 1):
            yield Batch(torch.zeros(1, 2), torch.tensor([label]), torch.tensor([0]))

    def loss(batch: Batch) -> Tensor:
        return 2 * w + (4 * v if batch.labels[0] == 0 else -v) + (math.inf if len(asked) > 3 else 0)

    def run(epochs: int) -> int:
        optimizer = SGD([{"params": [w], "lr": 0.3}, {"params": [v], "lr": 0.6}])
        data = SimpleNamespace(epoch=epoch)
        return train(optimizer, loss, data, epochs, lambda step, peak: peak / (step + 1), done.append)

    assert (run(2), asked, done) == (4, [0, 1], [1, 2])
    assert (w.item(), v.item()) == (pytest.approx(1 - 1.25), pytest.approx(1 - 2.75))
    assert not w.requires_grad and not v.requires_grad
    for parameter in (w, v):
        parameter.requires_grad_()
    with pytest.raises(UserError, match=r"^the loss is -?inf in epoch 2; lower LR \(0\.6\)$"):
        run(5)
    assert done == [1, 2, 1]


def test_of_epochs_that_are_equally_good_the_last_is_restored():
    parameter = torch.zeros(2)
    best = BestEpoch([parameter])
    for epochs, accuracy, value in [(10, 50.0, 1.0), (20, 75.00001, 2.0), (30, 75.0, 3.0), (40, 60.0, 4.0)]:
        parameter.fill_(value)
        best.record(epochs, accuracy)
    assert best.restore() == {"value": 30, "candidates": [[10, 50.0], [20, 75.0], [30, 75.0], [40, 60.0]]}
    assert parameter.tolist() == [3.0, 3.0]


# Steps of each method


def test_taskres_decays_its_residual_by_adding_it_to_the_gradient_and_warms_up(fit):
    def logits(features, residual):
        return TAU * features @ unit(LONG_TEXT + 0.5 * residual).t()

    [residual] = trained(Adam, loss_of(logits), [torch.zeros(3, 4)], WARM, weight_decay=0.3)
    options = {"ALPHA": [["", 0.5]], "LR": [["", 0.02]], "EPOCHS": [[1, 4]], "WEIGHT_DECAY": 0.3}
    fitted = fit("TaskRes", bank(norms=NORMS), **options, **WARM_UP)
    close(logits_of(fitted, 4), logits(PROBES, residual))


def test_tip_adapter_f_trains_keys_that_are_not_normalised_again_with_adamw_and_a_cosine_over_all_steps(fit):
    # Four images that are all alike, in batches of 2: the two steps of an epoch do not depend on the order
    image, labels = unit_features(1, 4, seed=5).double(), torch.zeros(4, dtype=torch.long)
    images = image.repeat(4, 1)

    def logits(features, keys):
        return TAU * features @ TEXT.t() + 3 * cache(features, keys, labels)

    def loss(keys):
        return F.cross_entropy(logits(image, keys), labels[:1])

    rates = [0.02 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    [keys] = trained(AdamW, loss, [images], rates, weight_decay=0.4, eps=0.05)
    rows = {"ALPHA": [["", 3.0]], "EPOCHS": [["", 2]]}
    options = {"BETA": 2.0, "LR": 0.02, "WEIGHT_DECAY": 0.4, "EPS": 0.05, "BATCH_SIZE": 2, "SEARCH": False}
    fitted = fit("TipAdapterF", bank_of(images, labels, TEXT, scale=TAU), **rows, **options)
    close(logits_of(fitted, 4, epochs=2), logits(PROBES, keys))
    close(fitted.classifier.keys, keys, atol=1e-5)


def test_ape_t_moves_text_and_images_by_one_residual_on_its_channels_and_weighs_the_images(fit):
    # Of four channels, the half that scores best: w_1 = 0 and w_2 = 1 score the variance of the text alone
    kept = TEXT.var(dim=0).topk(2).indices

    def logits(features, residual, weights):
        whole = torch.zeros(3, 4).double().index_copy(1, kept, residual)
        return TAU * features @ (TEXT + whole).t() + 3 * cache(features, IMAGES + whole[LABELS], LABELS, weights)

    start = [torch.zeros(3, 2), torch.ones(5)]
    parameters = trained(AdamW, loss_of(logits), start, COSINE, weight_decay=0.4, eps=0.05)
    rows = {"ALPHA": [["", 3.0]], "LR": [["", 0.02]], "EPOCHS": [["", 3]], "EPS": [["", 0.05]]}
    channels = {"CHANNELS": [["", 0.5]], "WEIGHTS": [["", [0.0, 1.0]]]}
    fitted = fit("APET", bank(), **rows, **channels, BETA=2.0, BATCH_SIZE=256, WEIGHT_DECAY=0.4, SEARCH=False)
    close(logits_of(fitted, 3), logits(PROBES, *parameters))


def test_clip_adapter_steps_with_momentum_decay_and_warm_up(fit):
    with torch.random.fork_rng():
        torch.manual_seed(1)  # torch's own start of a linear layer
        start = [torch.nn.Linear(4, 2, bias=False).weight, torch.nn.Linear(2, 4, bias=False).weight]

    def logits(features, down, up, text=TEXT):
        adapted = ((features @ down.t()).relu() @ up.t()).relu()
        return TAU * unit(0.3 * adapted + 0.7 * features) @ text.t()

    parameters = trained(SGD, loss_of(logits), start, WARM, momentum=0.8, weight_decay=0.3)
    options = {"RATIO": 0.3, "REDUCTION": 2, "LR": 0.02, "EPOCHS": [[1, 4]], "MOMENTUM": 0.8, "WEIGHT_DECAY": 0.3}
    fitted = fit("CLIPAdapter", bank(), seed=1, **options, **WARM_UP)
    close(logits_of(fitted, 4), logits(PROBES, *parameters))
    other = unit_features(2, 4, seed=8).double()
    found = fitted.transfer(bank_of(IMAGES, LABELS, other, test=(PROBES, [0] * 6), scale=TAU))
    close(found, logits(PROBES, *parameters, text=other))


def test_clap_steps_with_momentum_and_a_penalty_on_what_it_moved(fit):
    own = (TAU * IMAGES @ TEXT.t()).softmax(dim=1)[range(5), LABELS]
    multipliers = torch.stack([own[LABELS == k].mean() for k in range(3)])

    def logits(features, prototypes):
        return TAU * features @ unit(prototypes).t()

    def loss(prototypes):
        penalty = (multipliers * (prototypes - LONG_TEXT).square().sum(dim=1)).mean()
        return loss_of(logits)(prototypes) + penalty

    [prototypes] = trained(SGD, loss, [LONG_TEXT], WARM, momentum=0.8, weight_decay=0.3)
    options = {"LR": 0.02, "EPOCHS": 4, "MOMENTUM": 0.8, "WEIGHT_DECAY": 0.3}
    fitted = fit("CLAP", bank(norms=NORMS), **options, **WARM_UP)
    close(logits_of(fitted, 4), logits(PROBES, prototypes))


def test_claps_multipliers_are_the_mean_probabilities_that_zero_shot_clip_gives_a_classs_own_images():
    # Texts (1, 0), (0, 1), (-1, 0) at the scale 1. Of (1, 0) class 0 has e / (e + 1 + 1/e) = .665241, of (.6, .8) it
    # has e^.6 / (e^.6 + e^.8 + e^-.6) = .396417: .530829 on average. Of (0, 1) class 1 has e / (e + 2) = .576117. Class
    # 2 has no images, and so the mean of the two.
    text = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    found = zero_shot_confidence(bank_of([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], [0, 1, 0], text, scale=1.0))
    close(found, [0.530829, 0.576117, 0.553473], atol=1e-5)


def graph_logits(features: Tensor, weights: Tensor, biases: Tensor, groups: int) -> Tensor:
    """GraphAdapter's equation with alpha 0.2 and beta 0.4, class by class and group by group."""
    means = torch.stack([IMAGES[LABELS == k].mean(dim=0) for k in range(3)])
    means = means * sum(NORMS) / 3  # as long as the text features are on average
    learned = []
    for k, text in enumerate(LONG_TEXT):
        by_group = []
        for group in range(groups):
            found = []
            for nodes, weight, bias in zip((LONG_TEXT, means), weights, biases):
                graph = torch.cat([text[None], nodes[group::groups]])
                adjacency = (unit(graph) @ unit(graph).t()).relu() + torch.eye(len(graph))
                root = adjacency.sum(dim=1).rsqrt()
                found.append((root[0] * adjacency[0] * root @ graph @ weight + bias[k]).tanh())
            by_group.append(0.2 * found[0] + 0.8 * found[1])
        learned.append(0.4 * text + 0.6 * torch.stack(by_group).mean(dim=0))
    return TAU * features @ unit(torch.stack(learned)).t()


@pytest.mark.parametrize("groups", [1, 2, 9])  # no more than there are classes, 3
def test_graph_adapter_trains_two_convolutions_over_groups_of_classes(fit, groups):
    def logits(features, *parameters):
        return graph_logits(features, *parameters, min(groups, 3))

    start = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(7)) - 0.5  # within 1 / sqrt(d), and d is 4
    parameters = trained(Adam, loss_of(logits), [start, torch.zeros(2, 3, 4)], WARM, weight_decay=0.3)
    options = {"ALPHA": 0.2, "BETA": 0.4, "GROUPS": groups, "LR": 0.02, "EPOCHS": 4, "WEIGHT_DECAY": 0.3}
    fitted = fit("GraphAdapter", bank(norms=NORMS), seed=7, **options, **WARM_UP)
    close(logits_of(fitted, 4), logits(PROBES, *parameters))


def momentum_by_hand(steps: int, block: int, images: Tensor = PROBES) -> Tensor:
    """LP++'s logits of images, by default the probes, after so many steps with a momentum of 0.6."""

    def logits(features, weight, bias, alpha):
        return features @ weight.t() + bias + alpha * (features @ TEXT.t())

    classes = [IMAGES[LABELS == k] for k in range(3)]
    weight, bias = torch.stack([own.sum(dim=0) for own in classes]), torch.zeros(3).double()
    alpha = 2.0 * torch.stack([(own @ text).mean() for own, text in zip(classes, TEXT)]).mean().repeat(3)
    weight_rate = 4 * 5 / torch.linalg.matrix_norm(IMAGES, 2) ** 2
    alpha_rate = 5 / (4 * (IMAGES @ TEXT.t()).square().sum(dim=0).max())
    speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(1, steps + 1):
        parameters = [parameter.requires_grad_() for parameter in (weight, bias, alpha)]
        *of_classes, of_alpha = torch.autograd.grad(loss_of(logits)(*parameters), parameters)
        speeds = [0.6 * speed + gradient for speed, gradient in zip(speeds, of_classes)]
        weight, bias = weight.detach() - weight_rate * speeds[0], bias.detach() - weight_rate * speeds[1]
        alpha = alpha.detach() - (alpha_rate * of_alpha if step % block == 0 else 0)
    return logits(images, weight, bias, alpha)


LP = {"MOMENTUM": 0.6, "ALPHA_SCALE": 2.0}


def test_lp_plus_plus_keeps_its_momentum_over_the_blocks_and_steps_alpha_without_one(fit):
    fitted = fit("LPPlusPlus", bank(val=(PROBES, [0, 1, 2, 0, 1, 2])), STEPS=6, BLOCK=3, SELECT=False, **LP)
    assert fitted.selected == {}
    close(logits_of(fitted, 6), momentum_by_hand(6, 3), atol=1e-3)


def test_lp_plus_plus_goes_back_to_the_best_step(fit):
    # Forty val images are labelled as the second of six steps sees them; the last step sees some of them differently
    images = unit_features(40, 4, seed=9)
    seen = torch.stack([momentum_by_hand(step, 2, images.double()).argmax(dim=1) for step in range(1, 7)])
    right = [100 * share for share in (seen == seen[1]).double().mean(dim=1).tolist()]
    best = max(step for step in range(1, 7) if right[step - 1] == 100)
    assert best < 6
    fitted = fit("LPPlusPlus", bank(val=(images, seen[1])), STEPS=6, BLOCK=2, **LP)
    assert fitted.selected["STEP"]["value"] == best
    assert [accuracy for _, accuracy in fitted.selected["STEP"]["candidates"]] == pytest.approx(right, abs=1e-3)
    close(logits_of(fitted, 6), momentum_by_hand(best, 2), atol=1e-3)


# Proto-CLIP


# The adapter adds nothing (RATIO), so that only the two memories are left to train
PROTO = {"RATIO": 0.0, "TEMPERATURE": 0.5, "BETA": 3.0, "LR": 0.02, "WEIGHT_DECAY": 0.4, "EPS": 0.05, "BATCH_SIZE": 256}


def prototypes(images: Tensor) -> Tensor:
    return unit(torch.stack([unit(images[LABELS == k]).sum(dim=0) for k in range(3)]))


def probabilities(features: Tensor, images: Tensor, text: Tensor, alpha: float, beta: float) -> Tensor:
    by_image, by_text = (
        (-beta * (features[:, None] - of).square().sum(dim=2)).softmax(dim=1) for of in (prototypes(images), unit(text))
    )
    return alpha * by_image + (1 - alpha) * by_text


def trained_memories(steps: int, alpha: float, beta: float) -> list[Tensor]:
    """By the negative log of the class's probability, and the alignment of the prototypes in both directions."""

    def loss(images, text):
        pairs, own = prototypes(images) @ unit(text).t() / 0.5, torch.arange(3)
        classify = F.nll_loss(probabilities(IMAGES, images, text, alpha, beta).log(), LABELS)
        return classify + F.cross_entropy(pairs, own) + F.cross_entropy(pairs.t(), own)

    return trained(AdamW, loss, [IMAGES, TEXT], [0.02] * steps, weight_decay=0.4, eps=0.05)


def test_proto_clip_trains_both_memories_on_the_posterior_and_the_alignment_at_a_constant_rate(fit):
    shots = {"ALPHA_WITHOUT_VAL": [[1, 0.9], [2, 0.3]], "EPOCHS_WITHOUT_VAL": [[1, 9], [2, 3]]}
    fitted = fit("ProtoCLIP", bank_of(IMAGES, LABELS, TEXT), **PROTO, **shots, EPOCHS=9)
    assert fitted.selected == {}
    close(logits_of(fitted, 3), probabilities(PROBES, *trained_memories(3, 0.3, 3.0), 0.3, 3.0).log())


def test_rows_of_norm_1_have_the_gradient_that_differences_show():
    rows = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    assert torch.autograd.gradcheck(proto_clip.unit, rows)
    torch.testing.assert_close(proto_clip.unit(rows), F.normalize(rows, dim=-1))


def test_a_probability_of_zero_has_a_finite_log():
    query, images = tensor([[1.0, 0.0]]), tensor(AXES)
    found = proto_clip.mixture(query @ images.t(), query @ images.t(), 0.5, 500.0)
    assert found.tolist() == [[0.0, pytest.approx(math.log(torch.finfo(torch.float32).tiny))]]


def test_the_adapter_adds_the_normalised_output_of_its_layers_to_the_feature():
    # Both matrices are the identity. (0.8, 0.6) less its mean 0.7 is (0.1, -0.1), over its deviation 0.1: (1, -1),
    # which the second normalisation keeps. Over the root of the width it is (0.7071, -0.7071). A quarter of it and
    # three quarters of the feature: (0.776777, 0.273223), of norm 0.823425.
    model = proto_clip.Prototypes(bank_of(AXES, [0, 1], AXES), CfgNode({"RATIO": 0.25, "REDUCTION": 1}), 1)
    for layer in (model.layers[0], model.layers[2]):
        torch.nn.init.eye_(layer.weight)
    close(model.adapt(tensor([[0.8, 0.6]])), [[0.943349, 0.331813]])
    narrow = proto_clip.Prototypes(bank_of(IMAGES, LABELS, TEXT), CfgNode({"RATIO": 0.25, "REDUCTION": 3}), 1)
    assert [tuple(p.shape) for p in narrow.layers.parameters()] == [(1, 4), (1,), (1,), (4, 1), (4,), (4,)]


def search_options(**changed: object) -> CfgNode:
    return CfgNode({"SEARCH": True, "ALPHA": 0.52, "BETA": 9.3, "ALPHA_WITHOUT_VAL": [[1, 0.1], [2, 0.4]], **changed})


def test_the_search_lists_its_candidates_by_their_distance_from_the_start_and_takes_what_is_best_on_val():
    # |alpha - 0.52| + |beta - 9.3| / 20, over alphas 0, 0.1 ... 1 and betas 0.1, 0.2 ... 0.9, 1, 2 ... 20
    bank = bank_of(AXES, [0, 1], AXES, val=(AXES, [0, 1]), test=(AXES, [1, 0]))
    chosen, entry = proto_clip.search(bank, search_options(), lambda features: (torch.zeros(2, 2), torch.zeros(2, 2)))
    values = [value for value, _ in entry["candidates"]]
    assert len(values) == 11 * 29 + 1
    # At 0, 0.02 + 0.015, 0.02 + 0.035, 0.02 + 0.065 and 0.08 + 0.015
    assert values[:5] == [(0.52, 9.3), (0.5, 9.0), (0.5, 10.0), (0.5, 8.0), (0.6, 9.0)]
    assert {beta for _, beta in values} == {i / 10 for i in range(1, 10)} | {float(i) for i in range(1, 21)} | {9.3}
    assert {alpha for alpha, _ in values} == {0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 0.52}
    assert chosen == (0.52, 9.3)  # all are equally good
    assert {accuracy for _, accuracy in entry["candidates"]} == {50.0}
    # The images are right and weak, the text is wrong and strong. For both val images the difference of the two
    # probabilities is alpha tanh(0.1 beta) - (1 - alpha) tanh(0.3 beta). At beta 9.3 it is above 0 from alpha 0.576 on,
    # at beta 9 from 0.581, at 10 from 0.567 and at 11 from 0.555: the nearest candidate is (0.6, 9).
    weak, strong = tensor([[0.1, 0.0], [0.0, 0.1]]), tensor([[0.0, 0.3], [0.3, 0.0]])
    chosen, entry = proto_clip.search(bank, search_options(), lambda features: (weak, strong))
    assert chosen == entry["value"] == (0.6, 9.0)


@pytest.mark.parametrize("search", [True, False])
def test_without_a_search_alpha_is_that_of_the_shots(search):
    val = None if search else (AXES, [0, 1])
    bank = bank_of([*AXES, AXES[0]], [0, 1, 0], AXES, val=val)
    assert proto_clip.search(bank, search_options(SEARCH=search), lambda *_: pytest.fail("asked")) == ((0.4, 9.3), {})


def test_val_is_looked_at_every_so_many_epochs_and_the_numbers_are_chosen_before_and_after(fit):
    bank = bank_of(IMAGES, LABELS, TEXT, val=(PROBES, [0, 1, 2, 0, 1, 2]))
    asked = {"EPOCHS": 7, "ASK_EVERY": 3, "EPOCHS_WITHOUT_VAL": [[1, 1]], "ALPHA": 0.5}
    fitted = fit("ProtoCLIP", bank, **PROTO, **asked)
    assert list(fitted.selected) == ["ALPHA, BETA in training", "EPOCH", "ALPHA, BETA at last"]
    assert [epoch for epoch, _ in fitted.selected["EPOCH"]["candidates"]] == [3, 6]
    # The loss holds the numbers chosen before training, the prediction those chosen after it
    before, after = (fitted.selected[f"ALPHA, BETA {when}"]["value"] for when in ("in training", "at last"))
    memories = trained_memories(fitted.selected["EPOCH"]["value"], *before)
    close(logits_of(fitted, 7), probabilities(PROBES, *memories, *after).log(), atol=1e-3)

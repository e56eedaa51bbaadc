"""The methods' equations, against a few independent lines."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from yacs.config import CfgNode

from trainers.hegraph.baselines import ape, lp_plus_plus
from trainers.hegraph.baselines.graph_adapter import class_means, gather
from trainers.hegraph.baselines.linear_probe import logistic_regression
from trainers.hegraph.baselines.proto_clip import log_posterior


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_linear_probe_is_scikit_learns(make_bank, c):
    bank = make_bank(shots=(3, 5, 4, 4))
    features, labels = bank.cache_keys(), bank.train_labels
    weight, bias, _ = logistic_regression(features, labels, 4, c, 1000)
    model = LogisticRegression(C=c, max_iter=1000, tol=1e-6).fit(features.numpy(), labels.numpy())
    expected = torch.tensor(model.predict_proba(bank.test_features.numpy()), dtype=torch.float32)
    found = F.linear(bank.test_features, weight, bias).softmax(dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_taskres_moves_text_features_against_the_sign_of_the_gradient_in_adams_first_step(make_bank, fit):
    bank = make_bank(views=1)
    text, x = bank.text_positive, bank.train_features[0]
    residual = torch.zeros_like(text, requires_grad=True)
    logits = bank.logit_scale * x @ F.normalize(text + 0.5 * residual, dim=-1).t()
    F.cross_entropy(logits, bank.train_labels).backward()
    moved = F.normalize(text - 0.5 * 0.01 * residual.grad.sign(), dim=-1)
    fitted = fit("TaskRes", bank, LR=[["", 0.01]], EPOCHS=[[1, 1]], WARMUP_EPOCHS=0)
    expected = bank.logit_scale * bank.test_features @ moved.t()
    torch.testing.assert_close(fitted.logits(bank.test_features), expected, rtol=0, atol=1e-2)


def test_clip_adapter_without_a_share_for_the_adapter_is_zero_shot(make_bank, fit):
    bank = make_bank()
    expected = fit("ZeroShot", bank).logits(bank.test_features)
    torch.testing.assert_close(fit("CLIPAdapter", bank, RATIO=0.0).logits(bank.test_features), expected)


@pytest.mark.parametrize("images", [True, False])
def test_ape_keeps_the_channels_of_least_similarity_between_classes_and_most_variance(make_bank, images):
    bank = make_bank(shots=(1, 3, 2), width=12)
    groups = [[text] for text in bank.text_positive]
    if images:
        for key, label in zip(bank.cache_keys(), bank.train_labels):
            groups[label].append(key)
    products = [a * b for one, other in itertools.permutations(groups, 2) for a in one for b in other]
    similarity = torch.stack(products).mean(dim=0)
    criterion = -0.7 * similarity + 0.3 * bank.text_positive.var(dim=0)
    expected = criterion.argsort(descending=True)[: round(12 * 500 / 1024)]
    assert ape.refine(bank, CfgNode(dict(ape.APE.defaults)), images).tolist() == expected.tolist()


def test_apes_logits_are_those_of_a_loop_over_the_images(make_bank, fit):
    bank = make_bank(shots=(1, 3, 2), width=12)
    alpha, beta, gamma = 2.0, 3.0, 0.5
    kept = ape.refine(bank, CfgNode(dict(ape.APE.defaults)), True)
    f, keys, text = (
        F.normalize(x[:, kept], dim=-1) for x in (bank.test_features, bank.cache_keys(), bank.text_positive)
    )
    expected = bank.logit_scale * bank.test_features @ bank.text_positive.t()
    for key, label in zip(keys, bank.train_labels):
        divergence = -math.log2((key @ text.t()).softmax(dim=0)[label])
        expected[:, label] += alpha * (-beta * (1 - f @ key)).exp() * math.exp(gamma * divergence)
    fitted = fit("APE", bank, ALPHA=[["", alpha]], BETA=beta, GAMMA=gamma, SEARCH=False)
    torch.testing.assert_close(fitted.logits(bank.test_features), expected, rtol=1e-4, atol=1e-3)


def test_ape_t_starts_at_zero_shot_plus_the_cache(make_bank, fit):
    bank = make_bank(shots=(1, 3, 2))
    fitted = fit("APET", bank, ALPHA=[["", 2.0]], BETA=3.0, SEARCH=False, LR=[["", 0.0]])
    expected = bank.logit_scale * bank.test_features @ bank.text_positive.t()
    for key, label in zip(bank.cache_keys(), bank.train_labels):
        expected[:, label] += 2.0 * (-3.0 * (1 - bank.test_features @ key)).exp()
    torch.testing.assert_close(fitted.logits(bank.test_features), expected, rtol=1e-4, atol=1e-3)


def test_lp_plus_plus_starts_and_steps_as_the_data_say(make_bank):
    bank = make_bank(shots=(1, 3, 2))
    features, labels, text = bank.cache_keys(), bank.train_labels, bank.text_positive
    weight, bias, alpha = lp_plus_plus.start(features, labels, text, 250.0)
    for k in range(3):
        torch.testing.assert_close(weight[k], features[labels == k].sum(dim=0))
    mean_cosine = sum((features[labels == k] @ text[k]).mean() for k in range(3)) / 3
    torch.testing.assert_close(alpha, (250 * mean_cosine).expand(3))
    assert not bias.any()
    weight_rate, alpha_rate = lp_plus_plus.rates(features, text)
    assert weight_rate == pytest.approx(4 * 6 / torch.linalg.svdvals(features).max().item() ** 2, rel=1e-4)
    assert alpha_rate == pytest.approx(6 / (4 * max((features @ t).square().sum().item() for t in text)), rel=1e-4)


def test_lp_plus_plus_after_one_block_is_one_step_on_the_weights_and_one_on_the_multipliers(make_bank, fit):
    bank = make_bank(shots=(1, 3, 2), val=0)
    features, labels, text = bank.cache_keys(), bank.train_labels, bank.text_positive
    w, b, alpha = (x.requires_grad_() for x in lp_plus_plus.start(features, labels, text, 250.0))
    F.cross_entropy(features @ w.t() + b + features @ text.t() * alpha, labels).backward()
    weight_rate, alpha_rate = lp_plus_plus.rates(features, text)
    with torch.no_grad():
        w, b, alpha = w - weight_rate * w.grad, b - weight_rate * b.grad, alpha - alpha_rate * alpha.grad
    expected = bank.test_features @ w.t() + b + bank.test_features @ text.t() * alpha
    found = fit("LPPlusPlus", bank, STEPS=1, BLOCK=1).logits(bank.test_features)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_graph_adapter_gathers_by_the_normalised_adjacency_of_every_classs_own_graph(unit_features):
    classes, nodes = unit_features(3, 8, seed=1), 2.5 * unit_features(5, 8, seed=2)
    for k, found in enumerate(gather(classes, nodes)):
        graph = torch.cat([classes[k : k + 1], nodes])
        adjacency = F.cosine_similarity(graph[:, None], graph[None], dim=-1).clamp_min(0) + torch.eye(6)
        roots = torch.diag(adjacency.sum(dim=1) ** -0.5)
        torch.testing.assert_close(found, (roots @ adjacency @ roots @ graph)[0])


def test_graph_adapters_image_nodes_are_the_means_of_the_classes(make_bank):
    bank = make_bank(shots=(2, 0, 3))
    means = class_means(bank)
    torch.testing.assert_close(means[2], bank.cache_keys()[bank.train_labels == 2].mean(dim=0))
    assert not means[1].any()


def test_graph_adapter_with_all_weight_on_the_text_is_zero_shot(make_bank, fit):
    bank = make_bank()
    expected = fit("ZeroShot", bank).logits(bank.test_features)
    torch.testing.assert_close(fit("GraphAdapter", bank, BETA=1.0).logits(bank.test_features), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_proto_clips_posterior_is_a_mixture_of_two_softmaxes_of_distances(unit_features, alpha):
    queries, images, text = unit_features(4, 8, seed=1), unit_features(3, 8, seed=2), unit_features(3, 8, seed=3)
    by_image, by_text = ((-9 * torch.cdist(queries, p) ** 2).softmax(dim=1) for p in (images, text))
    found = log_posterior(queries, images, text, alpha, 9.0).exp()
    torch.testing.assert_close(found, alpha * by_image + (1 - alpha) * by_text, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(4))

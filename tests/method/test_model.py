"""HeGraphAdapter: its variants, its two classifiers and what they share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.method.cache import adapter_loss
from trainers.hegraph.method.closed_form import ClosedForm, class_offsets
from trainers.hegraph.method.graph import build_graph, class_prototypes
from trainers.hegraph.method.model import HeGraphModel, build_model, shuffled
from trainers.hegraph.method.options import ClosedFormOptions

LABELS = torch.tensor([3, 0, 2, 1, 0, 2, 2, 3, 1, 0, 2])  # unequal classes in no order
K, WIDTH, N = 4, 8, len(LABELS)
CLOSED = ClosedFormOptions(kappa=3.0, rho=0.3, omega=0.2)


@pytest.fixture
def keys(unit_features) -> Tensor:
    return unit_features(N, WIDTH, seed=1)


@pytest.fixture
def text(unit_features) -> tuple[Tensor, Tensor]:
    """Positive and negative text features."""
    return unit_features(K, WIDTH, seed=2), unit_features(K, WIDTH, seed=3)


@pytest.fixture
def queries(unit_features) -> Tensor:
    return unit_features(7, WIDTH, seed=4)


@pytest.fixture
def build(keys, text, model_options):
    """Builds a model of a variant; its parameters start as configured, or random with `seed`."""

    def make(variant: str = "full", seed: int | None = None, **changes) -> HeGraphModel:
        graph = build_graph(*text, class_prototypes(keys, LABELS, list("abcd")))
        model = HeGraphModel(graph, keys, LABELS, 100.0, model_options(variant=variant, **changes))
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator) / 3
        return model

    return make


def train(model: HeGraphModel, steps: int = 10) -> HeGraphModel:
    """Steps on batches of the cached images, moved off their keys; the same batches for every model."""
    generator = torch.Generator().manual_seed(9)
    optimizer = torch.optim.AdamW(model.parameter_groups(0.01, 0.1, 0.02), weight_decay=0.01)
    model.train()
    for _ in range(steps):
        positions = torch.randperm(N, generator=generator)[:6]
        features = F.normalize(model.cache_keys[positions] + 0.3 * torch.randn(6, WIDTH, generator=generator), dim=-1)
        optimizer.zero_grad()
        adapter_loss(model(features, positions), LABELS[positions], 1.0, 10.0).backward()
        optimizer.step()
    return model


# --- the closed form, and no W


@pytest.mark.parametrize("omega", [0.0, 0.2])
def test_the_variant_free_is_zero_shot_with_class_offsets_and_the_messages(build, keys, text, queries, omega):
    model = build("free", closed_form=ClosedFormOptions(kappa=3.0, omega=omega))
    offsets = class_offsets(100.0 * keys @ text[0].t(), LABELS)
    assert offsets.abs().max() > 1
    messages = ClosedForm(keys, LABELS, text[0], kappa=3.0, rho=0.3).to_text
    expected = 100 * queries @ text[0].t() + offsets + omega * 100 * (queries @ messages.weights.t() + messages.bias)
    assert_close(model.fold().logits(queries), expected, rtol=1e-4, atol=1e-3)
    assert model.fold().keys is None and not list(model.parameters())


@pytest.mark.parametrize("variant", ["T-N", "full"])
def test_the_messages_in_closed_form_are_added_when_the_adapter_folds(build, queries, keys, variant):
    plain, closed = (
        train(build(variant, text_weights=False, closed_form=options)).fold()
        for options in (ClosedFormOptions(omega=0.0), CLOSED)
    )
    messages = ClosedForm(keys, LABELS, build(variant).x_positive, kappa=3.0, rho=0.3).to_text
    expected = 0.2 * 100 * (queries - messages.mean.float()) @ messages.weights.t()
    gained = closed.parts(queries).text - plain.parts(queries).text
    # Text that hears of negative nodes alone receives no message from images
    assert_close(gained, torch.zeros_like(gained) if variant == "T-N" else expected, rtol=1e-3, atol=1e-3)
    if variant == "full":
        assert closed.parts(queries).visual.equal(plain.parts(queries).visual)


def test_shuffled_messages_reach_another_class(build):
    plain, to_text, to_visual = (
        build("T", closed_form=CLOSED, shuffle=shuffle).closed_form
        for shuffle in ("none", "visual_to_text", "text_to_visual")
    )
    others = shuffled(K)
    assert sorted(others.tolist()) == list(range(K)) and not others.eq(torch.arange(K)).any()
    assert to_text.to_text.weights.equal(plain.to_text.weights[others])
    assert to_text.to_text.bias.equal(plain.to_text.bias[others])
    assert to_visual.guess.texts.allclose(plain.guess.texts[others])


def test_noise_is_the_deviation_of_one_image_with_either_sign(build, queries):
    model = build("full", closed_form=CLOSED, noise=0.5)
    noisy = model.with_noise(queries, torch.Generator().manual_seed(0))
    rows = model.closed_form.noise
    candidates = F.normalize(queries[:, None] + 0.5 * torch.cat([rows, -rows]), dim=-1)
    distances = (candidates - noisy[:, None]).norm(dim=-1)
    assert distances.min(dim=1).values.max() < 1e-5
    assert len(set(distances.argmin(dim=1).tolist())) > 1
    assert noisy.equal(model.with_noise(queries, torch.Generator().manual_seed(0)))
    assert build("full", closed_form=CLOSED).with_noise(queries, torch.Generator()).equal(queries)
    plain, moved = model(queries), model(queries, noisy=queries.flip(0))  # the text classifier alone sees it
    assert moved.visual.equal(plain.visual)
    assert moved.text.equal(plain.text.flip(0))


# --- variants


def test_base_is_zero_shot_without_parameters(build, queries, text):
    model = build("base")
    assert list(model.parameters()) == [] and model.parameter_groups(0.1, 0.1, 0.1) == []
    assert_close(model(queries).text, 100 * queries @ text[0].t(), rtol=0, atol=1e-4)
    assert model(queries).visual is None


def test_t_has_the_text_logits_of_the_full_variant_trained_with_the_same_batches(build, queries):
    alone, full = (train(build(variant)).fold().parts(queries) for variant in ("T", "full"))
    assert alone.text.equal(full.text)  # the two classifiers share no parameter
    assert alone.visual is None and full.visual is not None
    assert not torch.allclose(alone.text, build("base")(queries).text, atol=1e-2)


def test_t_p_does_not_see_the_negative_text_and_t_n_sends_nothing_else_to_positive_nodes(build, text, queries):
    before = {variant: build(variant, seed=1).fold().parts(queries).text for variant in ("T-P", "T-N")}
    heavier = {key: build("T-N", seed=1, **{key: 9.0}) for key in ("ALPHA_PP", "ALPHA_VP", "BETA_VN")}
    same = {key: model.fold().parts(queries).text.equal(before["T-N"]) for key, model in heavier.items()}
    assert same == {"ALPHA_PP": True, "ALPHA_VP": True, "BETA_VN": False}
    text[1].copy_(text[1].flip(0))
    assert build("T-P", seed=1).fold().parts(queries).text.equal(before["T-P"])
    assert not build("T-N", seed=1).fold().parts(queries).text.allclose(before["T-N"])


# --- prediction


@pytest.mark.parametrize("variant", ["base", "T-P", "full"])
def test_folding_equals_forward_in_evaluation_mode_and_passes_messages_once(build, queries, monkeypatch, variant):
    model = build(variant, seed=1, alpha_c=8.0, beta_c=3.0)
    adapt, calls = model.adapt, []
    monkeypatch.setattr(model, "adapt", lambda: calls.append(None) or adapt())
    folded = model.train().fold()
    predicted = folded.parts(queries)
    assert len(calls) == 1 and not predicted.text.requires_grad
    expected = model.eval()(queries)
    assert_close(predicted.text, expected.text)
    assert (predicted.visual is not None) == (variant == "full")
    if variant == "full":
        assert_close(predicted.visual, expected.visual)
        assert_close(folded.logits(queries), predicted.text + 8 * predicted.visual)


@pytest.mark.parametrize("training", [True, False])
def test_folding_uses_the_test_weight_and_leaves_the_mode_as_it_was(build, queries, training):
    model = build("T", seed=1, ALPHA_NP=5.0, ALPHA_NP_TEST=0.1).train(training)
    predicted = model.fold().parts(queries)
    assert model.training == model.layers.training == training
    assert_close(predicted.text, build("T", seed=1, ALPHA_NP=0.1, ALPHA_NP_TEST=0.1).fold().parts(queries).text)
    assert not torch.allclose(model.train()(queries).text, predicted.text)


# --- parameters


@pytest.mark.parametrize("variant", ["T-N", "full"])
def test_parameter_groups_hold_every_parameter_once_at_its_rate_and_training_moves_all(build, keys, text, variant):
    model = build(variant, seed=1, learn_metapath=True)
    groups = model.parameter_groups(0.1, 0.5, 0.3)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        expected = 0.3 if name.endswith(("visual_to_visual", "weight.visual")) else 0.1
        expected = 0.05 if expected == 0.1 and ".weight." in name else expected
        assert rates[id(parameter)] == pytest.approx(expected), name
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    features = [x.clone() for x in (keys, *text)]
    train(model, steps=1)
    assert [name for name, parameter in model.named_parameters() if parameter.equal(before[name])] == []
    assert all(x.equal(y) for x, y in zip(features, (keys, *text)))  # training leaves the features alone


@pytest.mark.parametrize("shuffle", ["none", "negative"])
def test_a_model_is_built_of_the_features_of_a_task(tiny_bank, model_options, shuffle):
    bank = load_bank(tiny_bank)
    model = build_model(bank, model_options(shuffle=shuffle))
    assert model.cache_keys.equal(bank.cache_keys()) and model.cache_labels.equal(bank.train_labels)
    assert model.logit_scale == bank.logit_scale
    negative = bank.text_negative if shuffle == "none" else bank.text_negative[shuffled(5)]
    graph = build_graph(
        bank.text_positive, negative, class_prototypes(bank.cache_keys(), bank.train_labels, bank.classnames)
    )
    expected = HeGraphModel(graph, bank.cache_keys(), bank.train_labels, bank.logit_scale, model_options())
    assert all(x.equal(y) for x, y in zip(model.adapt(), expected.adapt()))

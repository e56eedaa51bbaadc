"""HeGraphAdapter: its variants, its two classifiers and what they share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainers.hegraph.method.cache import adapter_losses
from trainers.hegraph.method.closed_form import ClosedFormMessages, class_offsets
from trainers.hegraph.method.graph import build_graph, class_prototypes
from trainers.hegraph.method.model import HeGraphModel, Logits, shuffled
from trainers.hegraph.method.options import ClosedFormOptions

LABELS = torch.tensor([3, 0, 2, 1, 0, 2, 2, 3, 1, 0, 2])  # unequal classes in no order
K, WIDTH, N = 4, 8, len(LABELS)
VARIANTS = ("base", "T-N", "T-P", "T", "full")
TRAINED = VARIANTS[1:]


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
        graph = build_graph(*text, class_prototypes(keys, LABELS, K))
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
        noise = 0.3 * torch.randn(6, WIDTH, generator=generator)
        features = torch.nn.functional.normalize(model.cache_keys[positions] + noise, dim=-1)
        losses = adapter_losses(model(features, positions), LABELS[positions], 1.0, 10.0)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return model


# --- messages in closed form, and without W


CLOSED = ClosedFormOptions(kappa=3.0, rho=0.3, omega=0.2, omega_new=0.1)


def test_without_w_the_text_node_of_a_class_moves_by_its_own_biases_alone(build):
    model = build("T", text_weights=False)
    assert set(model.layers.state_dict()) == {
        f"bias.{name}" for name in ("positive_to_positive", "visual_to_positive", "negative_to_positive")
    }
    assert model.adapt().class_features.equal(model.x_positive)  # a bias starts at zero
    with torch.no_grad():
        model.layers.bias["negative_to_positive"][1].fill_(0.3)
    moved = model.adapt_to_test().class_features - model.x_positive
    assert_close(moved[1], torch.full((WIDTH,), 0.2 * math.tanh(0.3)))  # ALPHA_NP_TEST does not weigh a bias less
    assert moved[[k for k in range(K) if k != 1]].count_nonzero() == 0


def test_the_visual_relation_keeps_its_w(build):
    model = build("full", text_weights=False)
    assert [name for name in model.layers.state_dict() if name.startswith("weight")] == ["weight.visual"]


def test_the_variant_free_keeps_its_class_offsets_where_its_messages_have_no_weight(build, keys, text):
    folded = build("free", closed_form=ClosedFormOptions(omega=0.0, prior=4.0)).fold()
    expected = class_offsets(100.0 * keys @ text[0].t(), LABELS, 4.0)
    assert expected.abs().max() > 1
    assert_close(folded.bias, expected)


@pytest.mark.parametrize("variant", ["T-P", "T", "full"])
def test_the_messages_in_closed_form_are_added_when_the_adapter_folds(build, queries, keys, variant):
    plain, closed = (
        train(build(variant, text_weights=False, closed_form=options)).fold()
        for options in (ClosedFormOptions(omega=0.0), CLOSED)
    )
    messages = ClosedFormMessages(keys, LABELS, build(variant).x_positive, kappa=3.0, rho=0.3)
    expected = 0.2 * 100 * (queries - messages.to_text.mean.float()) @ messages.to_text.weights.t()
    assert_close(closed.parts(queries).text - plain.parts(queries).text, expected, rtol=1e-3, atol=1e-3)
    if variant == "full":
        assert closed.parts(queries).visual.equal(plain.parts(queries).visual)


def test_text_that_hears_of_negative_nodes_alone_receives_no_message_from_images(build):
    assert build("T-N", text_weights=False, closed_form=CLOSED).fold().bias is None


def test_shuffled_messages_reach_another_class(build, text):
    plain, to_text, to_visual = (
        build("T", closed_form=CLOSED, shuffle=shuffle).messages
        for shuffle in ("none", "visual_to_text", "text_to_visual")
    )
    others = shuffled(K)
    assert sorted(others.tolist()) == list(range(K)) and not others.eq(torch.arange(K)).any()
    assert to_text.to_text.weights.equal(plain.to_text.weights[others]) and to_text.to_text.bias.equal(
        plain.to_text.bias[others]
    )
    assert to_visual.guess.texts.allclose(plain.guess.texts[others])


def test_noise_is_the_deviation_of_one_image_with_either_sign(build, queries):
    model = build("full", closed_form=CLOSED, noise=0.5)
    noisy = model.with_noise(queries, torch.Generator().manual_seed(0))
    rows = model.messages.noise
    candidates = torch.nn.functional.normalize(queries[:, None] + 0.5 * torch.cat([rows, -rows]), dim=-1)
    distances = (candidates - noisy[:, None]).norm(dim=-1)
    assert distances.min(dim=1).values.max() < 1e-5
    assert len(set(distances.argmin(dim=1).tolist())) > 1
    assert noisy.equal(model.with_noise(queries, torch.Generator().manual_seed(0)))
    assert build("full", closed_form=CLOSED).with_noise(queries, torch.Generator()).equal(queries)


def test_only_the_text_classifier_sees_the_noise(build, queries):
    model = build("full", noise=1.0)
    plain, noisy = model(queries), model(queries, text_queries=queries.flip(0))
    assert noisy.visual.equal(plain.visual)
    assert noisy.text.equal(plain.text.flip(0))


# --- variants


def test_base_is_zero_shot_without_parameters(build, queries, text):
    model = build("base")
    assert list(model.parameters()) == []
    logits = model(queries)
    assert_close(logits.text, 100 * queries @ text[0].t(), rtol=0, atol=1e-4)
    assert logits.visual is None
    assert_close(model.fold().combine(logits), logits.text, rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_full_variant_has_a_visual_classifier(build, queries, variant):
    assert (build(variant)(queries).visual is not None) == (variant == "full")


@pytest.mark.parametrize("weight_init", ["identity", "xavier"])
@pytest.mark.parametrize("weight_per", ["target", "relation"])
def test_t_has_the_text_logits_of_the_full_variant_trained_with_the_same_batches(
    build, queries, weight_per, weight_init
):
    models = []
    for variant in ("T", "full"):
        torch.manual_seed(0)
        models.append(train(build(variant, weight_per=weight_per, weight_init=weight_init)))
    alone, full = (model.fold().parts(queries).text for model in models)
    assert alone.equal(full)  # the two classifiers share no parameter
    assert not torch.allclose(alone, build("base")(queries).text, atol=1e-2)


def test_full_without_training_of_the_visual_bias_is_tip_adapters_cache(build, queries, keys):
    # A zero W and a zero bias give zero visual biases, so the keys are the cached features
    model = build("full", weight_init="zero", beta_c=5.5)
    values = torch.nn.functional.one_hot(LABELS, K).float()
    assert_close(model(queries).visual, (-5.5 * (1 - queries @ keys.t())).exp() @ values)


@pytest.mark.parametrize(
    ("variant", "relations"),
    [
        ("T-N", {"positive_to_negative", "visual_to_negative", "negative_to_positive"}),
        ("T-P", {"positive_to_positive", "visual_to_positive"}),
        (
            "T",
            {
                "positive_to_negative",
                "visual_to_negative",
                "positive_to_positive",
                "visual_to_positive",
                "negative_to_positive",
            },
        ),
    ],
)
def test_the_relations_of_the_text_variants(build, variant, relations):
    assert set(build(variant).layers.bias) == relations


def test_t_p_does_not_see_the_negative_text(build, text, queries):
    before = build("T-P", seed=1).fold().parts(queries).text
    text[1].copy_(text[1].flip(0))
    assert_close(build("T-P", seed=1).fold().parts(queries).text, before, rtol=0, atol=0)
    assert not torch.allclose(build("T-N", seed=1).fold().parts(queries).text, before)


def test_t_n_sends_positive_and_visual_messages_to_negative_nodes_only(build, queries):
    before = build("T-N", seed=1).fold().parts(queries).text
    assert_close(build("T-N", seed=1, ALPHA_PP=9.0, ALPHA_VP=9.0).fold().parts(queries).text, before, rtol=0, atol=0)
    assert not torch.allclose(build("T-N", seed=1, BETA_VN=9.0).fold().parts(queries).text, before)


def test_metapath_weights_are_the_options_by_relation(build):
    model = build(ALPHA_PP=1.0, ALPHA_VP=2.0, ALPHA_NP=3.0, BETA_PN=4.0, BETA_VN=5.0)
    named = {"".join(word[0] for word in name.split("_to_")): weight for name, weight in model.layers.metapath.items()}
    assert named == {"pp": 1.0, "vp": 2.0, "np": 3.0, "pn": 4.0, "vn": 5.0}


# --- the visual classifier


def test_the_keys_move_by_gamma_times_the_bias_of_their_class(build, keys):
    model = build("full", seed=1, gamma=0.7)
    bias = model.layers().visual_bias
    for k in range(N):
        moved = keys[k] + 0.7 * bias[LABELS[k]]
        assert_close(model.fold().keys[k], moved / moved.norm())


def test_an_image_in_the_cache_does_not_match_its_own_key(build, keys):
    model = build("full", seed=1, beta_c=2.0)
    own = torch.tensor([5, 0, 10])
    logits = model(keys[own], own)
    refined = model.fold().keys
    expected = torch.zeros(3, K)
    for b, position in enumerate(own.tolist()):
        for k in range(N):
            if k != position:
                expected[b, LABELS[k]] += math.exp(-2.0 * (1 - float(keys[position] @ refined[k])))
    assert_close(logits.visual, expected, rtol=0, atol=1e-5)
    assert_close(logits.text, model(keys[own]).text)
    assert (model(keys[own]).visual - logits.visual).gt(1e-3).sum(dim=1).tolist() == [1, 1, 1]


def test_the_prediction_adds_alpha_c_times_the_visual_logits(build):
    model = build("full", alpha_c=8.0)
    logits = Logits(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]]))
    classifier = model.fold()
    assert classifier.combine(logits).tolist() == [[5.0, 4.0]]
    assert classifier.combine(logits._replace(visual=None)).tolist() == [[1.0, 2.0]]


# --- prediction


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_predict_equals_forward_in_evaluation_mode(build, queries, variant, batch_size):
    model = build(variant, seed=1)
    predicted = model.train().fold().parts(queries, batch_size)
    expected = model.eval()(queries)
    assert_close(predicted.text, expected.text)
    if variant == "full":
        assert_close(predicted.visual, expected.visual)
    else:
        assert predicted.visual is None
    assert not predicted.text.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_predict_uses_the_test_weight_and_leaves_the_mode_as_it_was(build, queries, training):
    model = build("T", seed=1, ALPHA_NP=5.0, ALPHA_NP_TEST=0.1).train(training)
    predicted = model.fold().parts(queries)
    assert model.training == model.layers.training == training
    assert_close(predicted.text, build("T", seed=1, ALPHA_NP=0.1, ALPHA_NP_TEST=0.1).fold().parts(queries).text)
    assert not torch.allclose(model.train()(queries).text, predicted.text)


def test_an_adapted_classifier_serves_many_batches(build, queries):
    model = build("full", seed=1).eval()
    classifier = model.adapt()
    assert_close(model.classify(queries[:2], classifier).visual, model(queries).visual[:2])
    assert_close(model.classify(queries[2:], classifier).text, model(queries).text[2:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_prediction_passes_messages_once_and_not_from_the_graph_again(build, queries, monkeypatch, variant):
    model = build(variant, seed=1)
    adapt, calls = model.adapt, []
    monkeypatch.setattr(model, "adapt", lambda: calls.append(None) or adapt())
    model.fold().parts(queries, batch_size=2)
    assert len(calls) == 1


# --- parameters


@pytest.mark.parametrize("learn_metapath", [False, True])
@pytest.mark.parametrize("weight_per", ["target", "relation"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rates", [(0.1, 0.5, 0.3), (0.1, 1.0, 0.1)], ids=["three rates", "one rate"])
def test_parameter_groups_hold_every_parameter_once(build, rates, variant, weight_per, learn_metapath):
    model = build(variant, weight_per=weight_per, learn_metapath=learn_metapath)
    grouped = [id(p) for group in model.parameter_groups(*rates) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("weight_per", ["target", "relation"])
def test_matrices_biases_and_the_visual_relation_have_their_rates(build, weight_per):
    model = build("full", weight_per=weight_per, learn_metapath=True)
    rates = {id(p): group["lr"] for group in model.parameter_groups(0.1, 0.5, 0.3) for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.3 if name.split(".")[-1].startswith("visual_to_visual") or name == "layers.weight.visual" else 0.1
        expected = 0.05 if expected == 0.1 and ".weight." in name else expected
        assert rates[id(parameter)] == pytest.approx(expected), name


@pytest.mark.parametrize("variant", TRAINED)
@pytest.mark.parametrize("weight_per", ["target", "relation"])
def test_training_moves_every_parameter_of_the_variant(build, variant, weight_per):
    model = build(variant, seed=1, weight_per=weight_per, learn_metapath=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, steps=1)
    assert [name for name, parameter in model.named_parameters() if parameter.equal(before[name])] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_state_dict_holds_parameters_only(build, variant):
    model = build(variant)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_training_leaves_the_features_alone(build, keys, text):
    before = [x.clone() for x in (keys, *text)]
    train(build("full"))
    assert all(x.equal(y) for x, y in zip(before, (keys, *text)))


def test_the_visual_bias_starts_from_the_aggregated_prototypes(build, keys):
    # W is the identity and the bias zero at first: B = tanh(A v) (Eq. 5-6)
    graph = build_graph(torch.eye(K, WIDTH), torch.eye(K, WIDTH), class_prototypes(keys, LABELS, K))
    weight = graph.edge_weight_dict["visual", "to", "visual"]
    degrees = weight.abs().sum(dim=1) + 1  # of a symmetric relation
    adjacency = weight / (degrees.unsqueeze(1) * degrees).sqrt()
    assert_close(build("full").layers().visual_bias, torch.tanh(adjacency @ graph.x_dict["visual"]))

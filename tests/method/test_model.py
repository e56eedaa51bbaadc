"""HeGraphAdapter: variants, the two classifiers (Eq. 7 and 8) and their shared parameters, and recipes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from benchmarks.tasks import unit_features
from trainers.hegraph import HeGraphModel, build_graph, load_bank, load_cfg
from trainers.hegraph.baselines.hegraph import new_model
from trainers.hegraph.config import OPTIONS
from trainers.hegraph.experiments.bank_task import BankTask
from trainers.hegraph.method import cache
from trainers.hegraph.method.graph import class_prototypes
from trainers.hegraph.method.head import closed_form
from trainers.hegraph.method.head.class_offsets import class_offsets
from trainers.hegraph.method.head.closed_form import ClosedForm
from trainers.hegraph.method.model import build_model, shuffled
from trainers.hegraph.method.options import ClosedFormOptions
from trainers.hegraph.method.relations import RELATIONS
from trainers.hegraph.method.training.loop import AdapterTraining, train_to_end

NODE = "TRAINER.HEGRAPHADAPTER"
FILES = sorted((Path(__file__).parents[2] / "configs" / "trainers" / "HeGraphAdapter").glob("*.yaml"))
OURS, PAPERS = ([file for file in FILES if file.stem.endswith("_paper") == papers] for papers in (False, True))

LABELS = torch.tensor([3, 0, 2, 1, 0, 2, 2, 3, 1, 0, 2])  # unequal classes in no order
K, WIDTH, N = 4, 8, len(LABELS)
CLOSED = ClosedFormOptions(kappa=3.0, rho=0.3, omega=0.2)


B, CLASSES = 6, 5  # numbers of queries, and of classes in the cache, one of them without images
OWN = torch.tensor([5, 0, 10, 4, 1, 6])
KEYS, QUERIES = unit_features(N, WIDTH, seed=1), unit_features(7, WIDTH, seed=4)
TEXT, NEGATIVE = unit_features(K, WIDTH, seed=2), unit_features(K, WIDTH, seed=3)


@pytest.fixture
def build(model_options):
    """Builds a model of a variant; its parameters start as configured, or random with `seed`."""

    def make(variant: str = "full", seed: int | None = None, negative: Tensor = NEGATIVE, **changes) -> HeGraphModel:
        graph = build_graph(TEXT, negative, class_prototypes(KEYS, LABELS, list("abcd")))
        model = HeGraphModel(graph, KEYS, LABELS, 100.0, model_options(variant=variant, **changes))
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
        cache.adapter_loss(model(features, positions), LABELS[positions], 1.0, 10.0).backward()
        optimizer.step()
    return model


# --- the closed form, and no W


@pytest.mark.parametrize("omega", [0.0, 0.2])
def test_training_free_adds_offsets_and_head(build, omega):
    model = build("training_free", closed_form=ClosedFormOptions(kappa=3.0, omega=omega))
    offsets = class_offsets(100.0 * KEYS @ TEXT.t(), LABELS, "balanced")
    assert offsets.abs().max() > 1
    messages = ClosedForm.fit(KEYS, LABELS, TEXT, kappa=3.0, rho=0.3).to_text
    expected = 100 * QUERIES @ TEXT.t() + offsets + omega * 100 * (QUERIES @ messages.weights.t() + messages.bias)
    assert_close(model.fold().logits(QUERIES), expected, rtol=1e-4, atol=1e-3)
    assert model.fold().keys is None and not list(model.parameters())


@pytest.mark.parametrize("variant", ["T-N", "full"])
def test_folding_adds_the_closed_form_head(build, variant):
    plain, closed = (
        train(build(variant, text_weights=False, closed_form=options)).fold()
        for options in (ClosedFormOptions(omega=0.0), CLOSED)
    )
    messages = ClosedForm.fit(KEYS, LABELS, build(variant).x_positive, kappa=3.0, rho=0.3).to_text
    expected = 0.2 * 100 * (QUERIES - messages.mean.float()) @ messages.weights.t()
    gained = closed.parts(QUERIES).text - plain.parts(QUERIES).text
    # Text with messages of negative nodes only receives no message from images
    assert_close(gained, torch.zeros_like(gained) if variant == "T-N" else expected, rtol=1e-3, atol=1e-3)
    if variant == "full":
        assert closed.parts(QUERIES).visual.equal(plain.parts(QUERIES).visual)


def test_shuffle_gives_messages_to_another_class(build):
    plain, to_text, to_visual = (
        build("T", closed_form=CLOSED, shuffle=shuffle).closed_form
        for shuffle in ("none", "visual_to_text", "text_to_visual")
    )
    others = shuffled(K)
    assert sorted(others.tolist()) == list(range(K)) and not others.eq(torch.arange(K)).any()
    assert to_text.to_text.weights.equal(plain.to_text.weights[others])
    assert to_text.to_text.bias.equal(plain.to_text.bias[others])
    assert to_visual.prior.texts.allclose(plain.prior.texts[others])


def test_noise_is_the_deviation_of_one_image(build):
    model = build("full", closed_form=CLOSED, noise=0.5)
    noisy = model.with_noise(QUERIES, torch.Generator().manual_seed(0))
    rows = model.closed_form.noise
    candidates = F.normalize(QUERIES[:, None] + 0.5 * torch.cat([rows, -rows]), dim=-1)
    distances = (candidates - noisy[:, None]).norm(dim=-1)
    assert distances.min(dim=1).values.max() < 1e-5 and len(set(distances.argmin(dim=1).tolist())) > 1
    assert noisy.equal(model.with_noise(QUERIES, torch.Generator().manual_seed(0)))
    assert build("full", closed_form=CLOSED).with_noise(QUERIES, torch.Generator()).equal(QUERIES)
    plain, moved = model(QUERIES), model(QUERIES, noisy=QUERIES.flip(0))  # only the text classifier uses it
    assert moved.visual.equal(plain.visual) and moved.text.equal(plain.text.flip(0))


def test_noise_of_a_batch_has_both_signs(build):
    model = build("full", closed_form=CLOSED, noise=0.5)
    queries = QUERIES[:1].expand(32, -1)
    noisy = model.with_noise(queries, torch.Generator().manual_seed(0))
    rows = model.closed_form.noise
    candidates = F.normalize(queries[:1] + 0.5 * torch.cat([rows, -rows]), dim=-1)
    negative = torch.cdist(noisy, candidates).argmin(dim=1) >= len(rows)
    assert 0 < negative.sum() < 32


# --- variants


def test_base_is_zero_shot_without_parameters(build):
    model = build("base")
    assert list(model.parameters()) == [] and model.parameter_groups(0.1, 0.1, 0.1) == []
    assert_close(model(QUERIES).text, 100 * QUERIES @ TEXT.t(), rtol=0, atol=1e-4)
    assert model(QUERIES).visual is None


def test_t_equals_the_text_classifier_of_full(build):
    alone, full = (train(build(variant)).fold().parts(QUERIES) for variant in ("T", "full"))
    assert alone.text.equal(full.text)  # the two classifiers share no parameter
    assert alone.visual is None and full.visual is not None
    assert not torch.allclose(alone.text, build("base")(QUERIES).text, atol=1e-2)


def test_single_path_variants_read_their_sources(build):
    def text_of(variant: str, **changes) -> Tensor:
        return build(variant, seed=1, **changes).fold().parts(QUERIES).text

    before, other = text_of("T-N"), NEGATIVE.flip(0)
    same = {key: text_of("T-N", **{key: 9.0}).equal(before) for key in ("ALPHA_PP", "ALPHA_VP", "BETA_VN")}
    assert same == {"ALPHA_PP": True, "ALPHA_VP": True, "BETA_VN": False}
    assert text_of("T-P", negative=other).equal(text_of("T-P"))
    assert not text_of("T-N", negative=other).allclose(before)


# --- prediction


@pytest.mark.parametrize("variant", ["base", "T-P", "full"])
def test_folding_equals_forward_in_evaluation_mode(build, monkeypatch, variant):
    model = build(variant, seed=1, alpha_c=8.0, beta_c=3.0, ALPHA_NP=5.0, ALPHA_NP_TEST=0.1)
    adapt, calls = model.adapt, []
    monkeypatch.setattr(model, "adapt", lambda: calls.append(None) or adapt())
    folded = model.train().fold()
    predicted = folded.parts(QUERIES)
    assert len(calls) == 1 and model.training and not predicted.text.requires_grad
    expected = model.eval()(QUERIES)
    assert_close(predicted.text, expected.text)
    assert (predicted.visual is not None) == (variant == "full")
    if variant == "full":
        assert_close(predicted.visual, expected.visual)
        assert_close(folded.logits(QUERIES), predicted.text + 8 * predicted.visual)


# --- parameters


VARIANTS = ["base", "training_free", "T-N", "T-P", "T", "full"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_moved_model_is_on_its_device(build, variant):
    model = build(variant, seed=1, closed_form=CLOSED, noise=1.0).to("meta")  # stands for any other device
    queries = QUERIES.to("meta")
    tensors = {name: value for name, value in vars(model.fold()).items() if isinstance(value, Tensor)}
    assert {name: value.device.type for name, value in tensors.items()} == dict.fromkeys(tensors, "meta")
    assert model(queries).text.device.type == model.fold().logits(queries).device.type == "meta"
    assert model.with_noise(queries, torch.Generator().manual_seed(0)).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_converted_model_computes_in_its_number_format(build, variant, dtype):
    model = build(variant, seed=1, closed_form=CLOSED, noise=1.0)
    expected = model.fold().logits(QUERIES)
    model.to(dtype)
    queries = QUERIES.to(dtype)
    logits = model.fold().logits(queries)
    assert logits.dtype == model(queries).text.dtype == dtype
    assert model.with_noise(queries, torch.Generator().manual_seed(0)).dtype == dtype
    assert (logits - expected).abs().max() <= expected.abs().max() * (0.1 if dtype == torch.bfloat16 else 1e-5)


def test_head_is_computed_again_after_a_move(build):
    model = build("T", seed=1, closed_form=CLOSED)
    before = model.closed_form.to_text
    assert model.to("cpu").closed_form.to_text is before
    assert model.to("meta").closed_form.to_text.weights.device.type == "meta"


def test_model_is_saved_and_loaded_as_a_module(build, tmp_path):
    model = build("full", seed=1, closed_form=CLOSED)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded.fold().logits(QUERIES), model.fold().logits(QUERIES))
    other = build("full", seed=2, closed_form=CLOSED)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.fold().logits(QUERIES), model.fold().logits(QUERIES))


def test_float64_is_computed_on_the_cpu_where_it_is_missing():
    assert closed_form.double_device(torch.device("mps")) == torch.device("cpu")
    assert closed_form.double_device(torch.device("meta")) == torch.device("meta")


@pytest.mark.parametrize("variant", ["T-N", "full"])
def test_parameter_groups_hold_each_parameter_once(build, variant):
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
    features = [x.clone() for x in (KEYS, TEXT, NEGATIVE)]
    train(model, steps=1)
    assert [name for name, parameter in model.named_parameters() if parameter.equal(before[name])] == []
    assert all(x.equal(y) for x, y in zip(features, (KEYS, TEXT, NEGATIVE)))  # training does not change the features


@pytest.mark.parametrize("shuffle", ["none", "negative"])
def test_build_model_uses_the_features_of_the_task(tiny_bank, model_options, shuffle):
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


# --- the recipes of the configuration files


def test_default_configurations_use_all_relations_with_w():
    for file in OURS:
        options = load_cfg("", str(file)).model
        found = options.variant, options.text_weights, options.bias, options.weight_init
        assert found == ("full", True, True, "zero"), file.stem
        assert all(OPTIONS[f"{NODE}.{key}"].shapes_model for key in options.metapath)
        assert all(options.metapath[relation.weight_key] for relation in RELATIONS if relation.weight_key)
        assert options.metapath["ALPHA_NP_TEST"] == options.metapath["ALPHA_NP"] == 0.2


def test_paper_configurations_have_the_papers_recipe():
    for file in PAPERS:
        cfg = load_cfg("", str(file), {"DATASET.NUM_SHOTS": 1})
        options, training = cfg.model, cfg.training
        found = options.text_weights, options.weight_init, options.noise, options.closed_form.omega
        assert found == (True, "xavier", 0.0, 0.0), file.stem
        assert (options.metapath["ALPHA_NP"], options.metapath["ALPHA_NP_TEST"]) == (0.2, 0.1)
        assert (options.alpha_c, options.beta_c, training.leave_one_out) == (1.0, 5.5, False)
        found = training.learning_rate, training.weight_lr_mult, training.epochs, training.min_steps
        assert found == (0.001, 1.0, 30, 0)
        found = training.lr_width, training.lr_tau, training.weak_text_lr_mult, training.visual_weight
        assert found == (0, 0.0, 1.0, 0.1)


def test_each_relation_changes_the_logits(tiny_bank):
    def trained(*pairs: object) -> tuple[HeGraphModel, cache.Logits]:
        """Train the default recipe on two images per class; returns the model and its logits of the test images."""
        cfg = load_cfg("", "vit_b32", {"DATASET.NUM_SHOTS": 2, f"{NODE}.MIN_STEPS": 30}, list(pairs))
        task = BankTask(tiny_bank, cfg, 1)
        bank = task.bank()
        model = new_model(bank, cfg, 1)
        train_to_end(AdapterTraining.start(model, task.batches(bank), cfg.training))
        return model, model.fold().parts(bank.test_features)

    model, whole = trained()
    assert set(model.layers.weight) == {"positive", "negative", "visual"}
    assert all(weight.any() for weight in model.layers.weight.values())
    for relation in RELATIONS:
        left_out = (f"{NODE}.{relation.weight_key}", 0.0) if relation.weight_key else (f"{NODE}.VISUAL_LR", 0.0)
        of_text, of_cache = ((a - b).abs().max() for a, b in zip(whole, trained(*left_out)[1]))
        assert (of_text if relation.weight_key else of_cache) > 1e-5, relation.name


# --- the two classifiers: plain functions


def test_text_and_cache_logits_by_hand():
    queries, keys = unit_features(B, 8, seed=1), 3 * unit_features(len(LABELS), 8, seed=2)
    cosines = queries @ (keys / 3).t()
    assert_close(cache.text_logits(queries, keys, 100.0), 100 * cosines, rtol=0, atol=1e-4)
    expected = (-5.5 * (1 - cosines)).exp() @ torch.eye(CLASSES)[LABELS]
    assert_close(
        cache.cache_logits(cache.cache_affinities(queries, keys, 5.5), LABELS, CLASSES), expected, rtol=0, atol=1e-5
    )


# --- keys that training moves


@pytest.mark.parametrize("chunk", [1, 20, 10**6])  # one row, a few, all
@pytest.mark.parametrize(("own", "known", "beta", "width", "dtype", "tolerance"), [
    (OWN, True, 5.5, 8, torch.float32, 1e-5), (OWN, False, 1.0, 2, torch.float64, 1e-8),
    (None, True, 50.0, CLASSES, torch.float64, 1e-8), (None, False, 0.0, 8, torch.float32, 1e-5),
])  # fmt: skip
def test_shifted_cache_logits_equal_the_plain_functions(monkeypatch, chunk, own, known, beta, width, dtype, tolerance):
    monkeypatch.setattr(cache, "CPU_CHUNK", chunk)
    features, keys, shift, factors = (
        unit_features(rows, columns, seed=i).to(dtype)
        for i, (rows, columns) in enumerate([(B, width), (len(LABELS), width), (CLASSES, width), (B, CLASSES)])
    )
    shift = (0.5 * shift).requires_grad_()
    fast = cache.shifted_cache_logits(features, keys, shift, LABELS, beta, own, features @ keys.t() if known else None)
    affinities = cache.cache_affinities(features, keys + shift[LABELS], beta)
    if own is not None:
        affinities = affinities.scatter(1, own.unsqueeze(1), 0.0)
    slow = cache.cache_logits(affinities, LABELS, CLASSES)
    assert_close(fast, slow, rtol=tolerance, atol=tolerance)
    total = (factors * fast).sum()
    ours, again = (torch.autograd.grad(total, shift, retain_graph=True)[0] for _ in range(2))
    (theirs,) = torch.autograd.grad((factors * slow).sum(), shift)
    scale = max(1.0, theirs.abs().max().item())
    assert_close(ours / scale, theirs / scale, rtol=tolerance, atol=tolerance)
    assert again.equal(ours)
    assert_close(cache.shifted_keys(keys, shift, LABELS), keys + shift[LABELS])
    folded = cache.FoldedClassifier(torch.zeros(CLASSES, width).to(dtype), None, keys, LABELS, beta=beta)
    assert_close(
        folded.parts(features).visual, cache.cache_logits(cache.cache_affinities(features, keys, beta), LABELS, CLASSES)
    )


def test_a_cancelled_key_gives_finite_logits_and_gradient():
    keys = torch.eye(2)
    shift = torch.tensor([[-1.0, 0.0], [0.5, 0.0]], requires_grad=True)
    logits = cache.shifted_cache_logits(keys, keys, shift, torch.tensor([0, 1]), 1.0)
    logits.sum().backward()
    assert logits.isfinite().all() and shift.grad.isfinite().all()


@pytest.mark.parametrize(("rows", "width", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 100, [1, 1, 1])])
def test_chunks_hold_each_row_once(monkeypatch, rows, width, sizes):
    monkeypatch.setattr(cache, "CPU_CHUNK", 16)
    matrix = torch.arange(rows).unsqueeze(1)
    parts = [matrix[part] for part in cache.chunks(matrix, width)]
    assert [len(part) for part in parts] == sizes and torch.cat(parts).equal(matrix)
    assert len(list(cache.chunks(matrix, 0))) == 1


# --- the folded classifier


def test_folded_classifier_by_hand():
    weights, keys, queries = unit_features(3, 8, seed=1), unit_features(4, 8, seed=2), unit_features(5, 8, seed=3)
    labels, values, bias = torch.tensor([2, 0, 2, 1]), torch.tensor([1.0, 2.0, 0.5, 1.0]), torch.tensor([0.1, 0.2, 0.3])
    folded = cache.FoldedClassifier(weights, bias, keys, labels, values, alpha=3.0, beta=2.0)
    visual = (values * (-2.0 * (1 - queries @ keys.t())).exp()) @ torch.eye(3)[labels]
    text = queries @ weights.t() + bias
    assert (folded.num_classes, folded.width) == (3, 8)
    assert_close(folded.parts(queries, batch_size=2).visual, visual)
    assert_close(folded.logits(queries), text + 3.0 * visual)
    assert_close(folded.text_only().logits(queries), text)
    assert folded.text_only().keys is None and folded.text_only().key_weights is None
    moved = folded.to("cpu", torch.float64)
    assert {moved.weights.dtype, moved.bias.dtype, moved.keys.dtype, moved.key_weights.dtype} == {torch.float64}
    assert moved.labels.dtype == torch.int64 and moved.alpha == 3.0
    assert cache.FoldedClassifier(weights).to("meta").weights.device.type == "meta"


def test_cache_keys_of_unequal_classes_weigh_the_same(tiny_bank):
    bank = load_bank(tiny_bank)
    rows = torch.cat([(bank.train_labels == label).nonzero()[: 6 if label else 2, 0] for label in range(5)])
    unequal = replace(bank, train_features=bank.train_features[:, rows], train_labels=bank.train_labels[rows])
    options = load_cfg(opts=[f"{NODE}.VARIANT", "full"]).model
    weights = build_model(unequal, options).fold().key_weights
    sums = torch.zeros(5).index_add(0, unequal.train_labels, weights)
    torch.testing.assert_close(sums, torch.full((5,), 26 / 5))  # each class as an average class
    assert build_model(bank, options).fold().key_weights is None
    for changed in ({"class_prior": "training"}, {"trust_text": False}):
        assert build_model(unequal, replace(options, **changed)).fold().key_weights is None

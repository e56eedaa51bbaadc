"""The answer: what it says equals what the model computes, and nothing in it can become markup."""

from __future__ import annotations

import math
from dataclasses import replace
from html import unescape

import pytest
import torch
from PIL import Image
from strokes import DIGITS

from trainers.hegraph.datasets.digits import ROWS, open_digit
from trainers.hegraph.demo.answer import answer
from trainers.hegraph.demo.drawing import scan_of_picture
from trainers.hegraph.demo.render import answer_page, heading, hint, problem


@pytest.fixture(scope="module")
def features(digits):
    return digits.features([open_digit(f"digits/{row:04d}") for row in ROWS["test"][:40]])


def test_the_probabilities_are_those_of_the_model_and_of_zero_shot_clip(digits, features):
    model = digits.model.model_copy(update={"temperature": 3.0})
    for feature in features.split(1):
        found = answer(model, feature)
        adapted = dict(zip(model.classnames, model.probabilities(feature)[0].tolist()))
        zero_shot = dict(zip(model.classnames, model.zero_shot_logits(feature)[0].softmax(dim=0).tolist()))
        for guesses, all_of_them in ((found.adapted, adapted), (found.zero_shot, zero_shot)):
            best = sorted(all_of_them, key=all_of_them.__getitem__, reverse=True)[:5]
            assert [guess.name for guess in guesses] == best
            assert [guess.probability for guess in guesses] == pytest.approx([all_of_them[name] for name in best])


def test_text_and_cache_add_up_to_the_logits_of_the_two_likeliest_classes(digits, features):
    model = digits.model
    for feature in features.split(1):
        found = answer(model, feature)
        values, labels = model.classifier.logits(feature)[0].topk(2)
        parts = model.classifier.parts(feature)
        for evidence, value, label in zip((found.winner, found.runner_up), values, labels):
            assert evidence.name == model.classnames[label]
            assert evidence.text == pytest.approx(parts.text[0, label].item())
            assert evidence.cache == pytest.approx(model.classifier.alpha * parts.visual[0, label].item())
            assert evidence.total == pytest.approx(value.item(), rel=1e-5)
        assert found.text_choice == model.classnames[parts.text[0].argmax()]
        assert found.cache_choice == model.classnames[parts.visual[0].argmax()]


def test_the_neighbours_are_the_training_images_of_the_winning_class_that_contribute_most(digits, features):
    model, classifier = digits.model, digits.model.classifier
    weights = torch.linspace(0.5, 1.5, len(classifier.keys))
    for key_weights in (None, weights):
        changed = replace(classifier, key_weights=key_weights, alpha=2.0, beta=3.0)
        model = model.model_copy(update={"classifier": changed})
        for feature in features[:10].split(1):
            found = answer(model, feature)
            label = model.classnames.index(found.winner.name)
            values_of_keys = torch.ones_like(weights) if key_weights is None else weights
            contributions = {
                i: 2 * math.exp(-3 * (1 - (feature[0] @ key).item())) * values_of_keys[i].item()
                for i, key in enumerate(classifier.keys)
                if classifier.labels[i] == label
            }
            nearest = sorted(contributions, key=contributions.__getitem__, reverse=True)[:5]
            assert [neighbour.position for neighbour in found.neighbours] == nearest
            values = [neighbour.contribution for neighbour in found.neighbours]
            assert values == pytest.approx([contributions[i] for i in nearest], rel=1e-4)
            assert found.winner.cache == pytest.approx(sum(contributions.values()), rel=1e-4)


def test_a_model_without_a_cache_says_so(digits, features):
    model = digits.model.model_copy(update={"classifier": digits.model.classifier.text_only()})
    found = answer(model, features[:1])
    assert (found.winner.cache, found.cache_choice, found.neighbours) == (None, None, ())
    assert found.winner.total == found.winner.text
    page = answer_page(model, found, [])
    assert "no cache of training images" in page
    assert "Nearest" not in page


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_model_of_few_classes_lists_them_all(count, digits, features):
    classifier = digits.model.classifier
    kept = classifier.labels < count
    fewer = replace(
        classifier,
        weights=classifier.weights[:count],
        bias=classifier.bias[:count],
        keys=classifier.keys[kept],
        labels=classifier.labels[kept],
    )
    positive, names = digits.model.text_positive[:count], digits.model.classnames[:count]
    model = digits.model.model_copy(update={"classifier": fewer, "text_positive": positive, "classnames": names})
    found = answer(model, features[:1])
    assert len(found.adapted) == len(found.zero_shot) == count
    assert (found.runner_up is None) == (count == 1)
    page = answer_page(model, found, [None] * len(found.neighbours))
    assert ("lead of" in page) == (count > 1)


def test_the_share_of_known_images_that_score_lower_is_that_of_their_quantiles(digits, features):
    model = digits.model
    for feature in features[:10].split(1):
        energy = (model.classifier.logits(feature)[0].double() / model.temperature).exp().sum().log().item()
        below = sum(quantile < energy for quantile in model.known.quantiles)  # of 101, one for each percent
        assert 100 * answer(model, feature).share_below == pytest.approx(below - 0.5, abs=0.5001)
    assert answer(model.model_copy(update={"known": None}), features[:1]).share_below is None


# As HTML


@pytest.mark.parametrize(
    ("share", "said"),
    [(None, None), (0.05, None), (0.049, "only 5 %"), (0.021, "only 2 %"), (0.0, "only less than 1 %")],
)
def test_the_page_warns_where_few_images_of_known_classes_score_as_low(share, said, digits, features):
    found = replace(answer(digits.model, features[:1]), share_below=share)
    page = answer_page(digits.model, found, [None] * 5)
    assert ("none of these" in page) == (said is not None)
    assert said is None or f"none of these classes: {said} of the images of known classes" in page


def test_names_from_the_model_folder_are_escaped(digits, features):
    evil = '<img src=x onerror="alert(1)">&amp;'
    trained = digits.model.trained_on.model_copy(update={"dataset": evil})
    model = digits.model.model_copy(update={"classnames": (evil,) * 10, "method": evil, "trained_on": trained})
    found = answer(model, features[:1])
    thumbnails = [Image.new("RGB", (8, 8))] * 5
    for html in (answer_page(model, found, thumbnails), heading(model), problem(evil), hint(evil)):
        assert "<img src=x" not in html
        assert evil in unescape(html)


def test_pictures_are_shown_with_their_text_where_they_are_there(digits, features):
    found = answer(digits.model, features[:1])
    some = [Image.new("RGB", (8, 8)), None, None, None, None]
    page = answer_page(digits.model, found, some)
    assert page.count("<img ") == 1
    assert f'alt="Training image {found.neighbours[0].position + 1}, {found.winner.name}"' in page
    assert "--keep-thumbnails" not in page
    assert "--keep-thumbnails" in answer_page(digits.model, found, [None] * 5)


def test_the_page_says_which_of_text_and_cache_decided(digits, features):
    found = answer(digits.model, features[:1])
    agreed = replace(found, text_choice=found.winner.name, cache_choice=found.winner.name)
    assert "both say" in answer_page(digits.model, agreed, [None] * 5)
    page = answer_page(digits.model, replace(found, text_choice="nine", cache_choice="two"), [None] * 5)
    assert "alone says <b>nine</b>" in page
    assert "alone <b>two</b>" in page


def test_a_probability_is_not_rounded_to_none_or_all(digits, written):
    model = digits.model
    page = answer_page(model, answer(model, digits.features([scan_of_picture(written(DIGITS[0][0]))])), [None] * 5)
    assert ">0.0&nbsp;%" not in page
    assert "100.0&nbsp;%" not in page

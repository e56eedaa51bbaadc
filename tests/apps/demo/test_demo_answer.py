"""Answer of the demo: values of the model, escaped HTML, and thumbnails."""

import math
import os
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.hegraph.apps.demo.answer import ClassScore, Evidence, answer_html, compute_answer, summary, title
from trainers.hegraph.datasets.digits import SPLIT_ROWS, open_digit
from trainers.hegraph.models.support_set import SupportSet
from trainers.hegraph.models.thumbnails import MAX_BYTES, read_thumbnail, write_thumbnails


@pytest.fixture(scope="module")
def features(digits):
    return digits.features([open_digit(f"digits/{row:04d}") for row in SPLIT_ROWS["test"][:20]])


def shown(answer, *values: object) -> str:
    return answer_html(answer, "HeGraphAdapter", *values)


def changed(model, **values: object):
    return model.model_copy(update=values)


def test_answer_equals_model_and_zero_shot_clip(digits, features):
    model = changed(digits.model, temperature=3.0)
    for feature in features.split(1):
        found = compute_answer(model, feature)
        adapted = dict(zip(model.classnames, model.probabilities(feature)[0].tolist()))
        zero_shot = dict(zip(model.classnames, model.zero_shot_logits(feature)[0].softmax(dim=0).tolist()))
        likeliest = sorted(adapted, key=adapted.__getitem__, reverse=True)[:5]
        best = max(zero_shot, key=zero_shot.__getitem__)
        assert [each.name for each in found.scores] == [*dict.fromkeys([*likeliest, best])]
        assert found.predicted == (likeliest[0],)
        for each in found.scores:
            assert (each.adapted, each.zero_shot) == pytest.approx((adapted[each.name], zero_shot[each.name]))
            assert each.threshold is None
        values, labels = model.classifier.logits(feature)[0].topk(2)
        parts = model.classifier.parts(feature)
        for evidence, value, label in zip((found.winner, found.runner_up), values, labels):
            assert evidence.name == model.classnames[label]
            assert evidence.text == pytest.approx(parts.text[0, label].item())
            assert evidence.cache == pytest.approx(model.classifier.alpha * parts.visual[0, label].item())
            assert evidence.text + evidence.cache == pytest.approx(value.item(), rel=1e-5)
        assert found.text_choice == model.classnames[parts.text[0].argmax()]
        assert found.cache_choice == model.classnames[parts.visual[0].argmax()]


def test_answer_without_class_texts_has_no_zero_shot_clip(digits, features):
    support_set = digits.model.support_set
    without = changed(digits.model, support_set=replace(support_set, positive=None, negative=None))
    found = compute_answer(without, features[:1])
    assert [each.zero_shot for each in found.scores] == [None] * 5
    assert "zero-shot CLIP" not in shown(found) and "zero-shot CLIP" in shown(
        compute_answer(digits.model, features[:1])
    )


def test_answer_without_class_texts_names_class_means(digits, features):
    support_set = digits.model.support_set
    without = changed(digits.model, support_set=replace(support_set, positive=None, negative=None))
    html = shown(compute_answer(without, features[:1]))
    assert "classifier of class means" in html and "text classifier" not in html
    assert re.findall(r'<th scope="col">([^<]*)</th>', html)[-4:] == ["class", "class means", "cache", "logit"]
    assert "adapts the frozen image encoder hegraph-mini" in summary(without)


def test_neighbours_contribute_most_to_the_winning_class(digits, features):
    classifier = digits.model.classifier
    weights = torch.linspace(0.5, 1.5, len(classifier.keys))
    for key_weights in (None, weights):
        other = replace(classifier, key_weights=key_weights, alpha=2.0, beta=3.0)
        model = changed(digits.model, classifier=other)
        for feature in features[:10].split(1):
            found = compute_answer(model, feature)
            label = model.classnames.index(found.winner.name)
            values_of_keys = torch.ones_like(weights) if key_weights is None else weights
            contributions = {
                i: 2 * math.exp(-3 * (1 - (feature[0] @ key).item())) * values_of_keys[i].item()
                for i, key in enumerate(classifier.keys)
                if classifier.labels[i] == label
            }
            nearest = sorted(contributions, key=contributions.__getitem__, reverse=True)[:5]
            assert [position for position, _ in found.neighbours] == nearest
            total = sum(contributions.values())
            assert [v for _, v in found.neighbours] == pytest.approx(
                [contributions[i] / total for i in nearest], rel=1e-4
            )
            assert found.winner.cache == pytest.approx(total, rel=1e-4)


def test_without_a_cache_neighbours_have_the_largest_cosine(digits, features):
    cached = digits.model.classifier
    ids = torch.zeros_like(cached.labels)
    images = SupportSet(
        np.array(digits.model.classnames), digits.model.classnames, cached.keys[None], cached.labels, ids
    )
    model = changed(digits.model, classifier=cached.text_only(), support_set=images)
    found = compute_answer(model, features[:1])
    label = model.classnames.index(found.winner.name)
    cosines = [(features[0] @ key).item() for key in cached.keys[cached.labels == label]]
    assert [value for _, value in found.neighbours] == pytest.approx(sorted(cosines, reverse=True), rel=1e-4)
    assert "cosine similarity" in shown(found, [("a.png", 0.9)]) and "--keep-thumbnails" not in shown(found)


def test_explanation_without_cache_or_with_one_class(digits, features):
    classifier = digits.model.classifier.text_only()
    found = compute_answer(changed(digits.model, classifier=classifier, support_set=None), features[:1])
    assert (found.winner.cache, found.cache_choice, found.neighbours) == (None, None, ())
    assert "one vector for each class, not with single training images" in shown(found) and "lead of" in shown(found)
    assert '<th scope="col">cache</th>' not in shown(found)
    one = replace(classifier, **{name: getattr(classifier, name)[:1] for name in ("weights", "bias")})
    names = {"text_positive": digits.model.text_positive[:1], "classnames": digits.model.classnames[:1]}
    found = compute_answer(changed(digits.model, classifier=one, **names), features[:1])
    assert (len(found.scores), found.runner_up) == (1, None)
    assert "lead of" not in shown(found)


def test_classes_with_equal_names_show_ids(digits, features):
    model = changed(digits.model, classnames=("bat",) * 10, class_ids=tuple(f"{k}: bat" for k in range(10)))
    assert {each.name for each in compute_answer(model, features[:1]).scores} < {f"{k}: bat" for k in range(10)}


def test_warning_for_unusually_low_score(digits, features):
    found = compute_answer(digits.model, features[:1])
    logits = digits.model.classifier.logits(features[:1])[0].double()
    energy = (logits / digits.model.temperature).exp().sum().log().item()
    below = sum(quantile < energy for quantile in digits.model.known.quantiles)  # of 101, one for each percent
    assert 100 * found.share_below == pytest.approx(below - 0.5, abs=0.5001)
    assert compute_answer(changed(digits.model, known=None), features[:1]).share_below is None
    for share in (None, 0.05):
        assert "none of the classes" not in shown(replace(found, share_below=share))
    for share, text in ((0.049, "only 5 %"), (0.021, "only 2 %"), (0.01, "only 1 %"), (0.009, "less than 1 %")):
        assert f"{text} of the images of known classes" in shown(replace(found, share_below=share))


def test_explanation_has_escaped_names_and_logits(digits, features):
    evil = '<img src=x onerror="alert(1)">&amp;'
    first, second = Evidence(evil, 3.25, 1.5), Evidence("b", 1.0, 2.125)
    found = compute_answer(digits.model, features[:1])
    scores = (ClassScore(evil, 0.7, 0.2), ClassScore("b", 0.3, 0.8))
    agreed = replace(
        found, scores=scores, predicted=(evil,), winner=first, runner_up=second, text_choice=evil, cache_choice=evil
    )
    page = shown(agreed)
    assert f"both predict <b>{evil}</b>" in unescape(page) and "<img" not in page and "--keep-thumbnails" in page
    page = shown(replace(agreed, text_choice="nine", cache_choice="two"), [("/a&b.png", 0.25)], "data:,")
    assert "text classifier predicts <b>nine</b>" in page
    assert "training images predicts <b>two</b>" in page
    assert '<img alt="Input of the model" src="data:,"' in page
    assert 'src="/a&amp;b.png"><span class="number">25 %</span>' in page and "--keep-thumbnails" not in page
    assert re.findall(r"--share: ([\d.]+)", page) == ["0.7000", "0.2000", "0.3000", "0.8000"]
    cells = page.partition("<details>")[2].replace("</td>", " ").split("<td>")[1:]
    assert [float(cell.split()[0]) for cell in cells] == [3.25, 1.5, 4.75, 1.0, 2.12, 3.12, 2.25, -0.62, 1.62]


def test_title_and_summary_describe_the_model(digits):
    model = digits.model
    assert title(model) == "HeGraphAdapter on Digits"
    score = model.scores
    assert summary(model) == (
        "HeGraphAdapter adapts the frozen CLIP hegraph-mini/hegraph-mini to 10 classes of Digits, trained on 4 "
        f"images of each class. Accuracy on 899 test images: {score.accuracy:.2f} %, zero-shot CLIP 78.09 %."
    )
    own = changed(model, trained_on=model.trained_on.model_copy(update={"source": "my pets"}))
    assert title(own) == "HeGraphAdapter on my pets" and "10 classes of my pets" in summary(own)
    bare = changed(model, scores=score.model_copy(update={"accuracy": None}))
    for shots, images, text in (
        (-1, None, "trained on all images of each class."), (1, None, "trained on 1 image of each class."),
        (16, (16,) * 10, "trained on 16 images of each class."),
        (16, (*range(8, 16), 16, 16), "trained on 16 shots (8 to 16 images per class)."),
        (16, (8,) * 10, "trained on 16 shots (8 images per class)."),
    ):  # fmt: skip
        trained_on = model.trained_on.model_copy(update={"shots": shots})
        assert summary(changed(bare, trained_on=trained_on, images=images)).endswith(text)


def test_latest_thumbnails_are_read_in_order(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.new("RGB", (100, 50), "red").save(tmp_path / "photo.jpg", exif=exif, comment=b"at home")
    write_thumbnails(tmp_path, [Image.new("RGB", (8, 8))] * 3)
    with Image.open(tmp_path / "photo.jpg") as photo:
        write_thumbnails(tmp_path, [photo, Image.new("RGBA", (100, 50), "lime")])
    for position in (0, 1):
        image = read_thumbnail(tmp_path, position)
        assert (image.mode, image.size) == ("RGB", (64, 32))
        pixel = image.getpixel((10, 10))
        assert pixel.index(max(pixel)) == position
    assert read_thumbnail(tmp_path, 2) is None
    assert b"home" not in (tmp_path / "thumbnails" / "00000.jpg").read_bytes()


@pytest.mark.parametrize("how", ["text", "long", "wide", "PNG", "pipe"])
def test_invalid_thumbnail_is_not_shown(how, tmp_path):
    write_thumbnails(tmp_path, [Image.new("RGB", (64, 64), "red")])
    path = tmp_path / "thumbnails" / "00000.jpg"
    content = {"text": b"no image", "long": path.read_bytes() + bytes(MAX_BYTES)}
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)  # opening it would block
    elif how in content:
        path.write_bytes(content[how])
    else:
        Image.new("RGB", (65 if how == "wide" else 8, 8)).save(path, format="PNG" if how == "PNG" else "JPEG")
    assert read_thumbnail(tmp_path, 0) is None

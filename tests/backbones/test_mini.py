"""The mini backbone: glyphs, rendering, captions, training and the shipped weights."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from tools.mini import captions, glyphs, objective, render, train
from tools.mini.__main__ import main, parse_arguments
from trainers.hegraph.backbones.identity import MINI_NAME, MINI_WEIGHTS
from trainers.hegraph.backbones.loading import create_model

DIGIT_VAL_ROWS = slice(698, 898)  # the project's validation split; the test split is not touched here
PROMPTS = ('a photo of the number: "{}".', "a photo of a handwritten {}.", "a photo of a {}.")
NEGATIVE_PROMPTS = ("a photo of no {}.", 'a photo of the number: no "{}".', "a photo of no handwritten {}.")
QUICK = train.Settings(steps=2, batch_size=12, negative_captions=4, warmup_steps=1)


@pytest.fixture(scope="module")
def drawn() -> glyphs.GlyphMasks:
    return glyphs.load_masks()


@pytest.fixture(scope="module")
def shipped():
    return create_model(MINI_NAME, str(MINI_WEIGHTS))


def test_every_name_is_drawn_with_ink_and_unlike_the_others(drawn):
    assert drawn.masks.dtype == torch.uint8
    assert drawn.masks.shape[1:] == (glyphs.MASK_SIZE, glyphs.MASK_SIZE)
    assert (drawn.masks.flatten(1).amax(1) > 128).all()
    names = [glyph.name for glyph in drawn.glyphs]
    assert drawn.labels.unique().tolist() == list(range(len(names)))
    assert names[:10] == list(glyphs.DIGIT_NAMES) and len(set(names)) == len(names) > 100
    # One looks like zero, the other like the Latin one
    assert not {"latin small letter o", "cyrillic capital letter a"} & set(names)
    pictures: dict[tuple, int] = {}
    for font, label, mask in zip(drawn.fonts.tolist(), drawn.labels.tolist(), drawn.masks):
        assert pictures.setdefault((font, mask.numpy().tobytes()), label) == label


def test_rendering_follows_its_own_generator(drawn):
    state = torch.get_rng_state()
    rows = torch.arange(0, len(drawn.masks), 60)
    first, again, other = (
        render.render(drawn.masks[rows], drawn.bold[rows], torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert first.images.shape == (len(rows), 3, render.IMAGE_SIZE, render.IMAGE_SIZE)
    assert first.images.min() >= 0 and first.images.max() <= 1
    assert first.images.flatten(1).std(1).min() > 0.01  # nothing is blank
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert torch.equal(state, torch.get_rng_state())


def test_captions():
    rng = random.Random(0)
    assert set(captions.ATTRIBUTE_TEMPLATES) == set(captions.ATTRIBUTES)
    assert set(PROMPTS) <= set(captions.POSITIVE_TEMPLATES)
    assert set(NEGATIVE_PROMPTS) <= set(captions.NEGATIVE_TEMPLATES)
    negations = ("no ", "without", "anything but", "not ")
    for _ in range(200):
        positive = captions.positive_caption("five", True, ("thick", "plain"), rng)
        negative = captions.negative_caption("five", True, rng)
        assert "five" in positive and "five" in negative
        assert "{" not in positive + negative
        assert any(word in negative for word in negations)
        assert not any(word in positive for word in ("no ", "without", "anything but"))


def test_negative_loss_wants_the_images_of_other_names():
    labels = torch.tensor([0, 0, 1, 2])
    absent = torch.tensor([0])
    near_own = torch.tensor([[5.0, 5.0, 0.0, 0.0]])
    assert objective.negative_loss(near_own, absent, labels) > objective.negative_loss(-near_own, absent, labels)
    indifferent = objective.negative_loss(torch.zeros(1, 4), absent, labels)
    assert indifferent.item() == pytest.approx(np.log(2))


def test_short_captions_are_encoded_as_open_clip_does(shipped):
    model, _, tokenizer = shipped
    tokens = tokenizer(["a", "a photo of a five.", captions.POSITIVE_TEMPLATES[-1].format("five")])
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(objective.encode_captions(model, tokens), expected)


def test_training_is_deterministic():
    states = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, _, tokenizer = create_model(MINI_NAME)
        states.append(train.train(model, tokenizer, QUICK))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_retraining_never_writes_to_the_package_by_default(tmp_path):
    assert parse_arguments([]).out.resolve() != MINI_WEIGHTS
    threads = torch.get_num_threads()
    assert main(["--steps", "1", "--out", str(tmp_path / "weights.safetensors")]) == 0
    torch.set_num_threads(threads)  # the command sets them for its process, which is here the tests'
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_shipped_file(shipped):
    state = load_file(MINI_WEIGHTS)
    assert MINI_WEIGHTS.stat().st_size <= 16e6
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}
    assert all(value.isfinite().all() for value in state.values())
    used = state["token_embedding.weight"].abs().amax(1) > 0
    tokens = shipped[2]([template.format("five") for template in (*PROMPTS, *NEGATIVE_PROMPTS)])
    assert used[tokens[tokens != 0]].all()
    known = torch.zeros_like(used)
    known[shipped[2](every_word_of_the_captions())] = True
    assert not used[~known].any()  # tokens no caption can hold


def every_word_of_the_captions() -> list[str]:
    """Texts that hold, between them, every token of every caption (BPE works word by word)."""
    templates = [*captions.POSITIVE_TEMPLATES, *captions.DIGIT_ONLY, *captions.NEGATIVE_TEMPLATES]
    for attribute_templates in captions.ATTRIBUTE_TEMPLATES.values():
        templates += attribute_templates
    names = [glyph.name for glyph in glyphs.candidate_glyphs()]
    return [template.format("x") for template in templates] + names


def class_features(model, tokenizer, templates) -> torch.Tensor:
    """[10, D]: each digit's mean text feature."""
    texts = [template.format(name) for template in templates for name in glyphs.DIGIT_NAMES]
    features = model.encode_text(tokenizer(texts), normalize=True)
    return torch.nn.functional.normalize(features.unflatten(0, (len(templates), 10)).mean(0), dim=-1)


@torch.no_grad()
def test_zero_shot_on_handwritten_digits(shipped):
    model, preprocess, tokenizer = shipped
    model.eval()
    digits = load_digits()
    scans = (digits.images[DIGIT_VAL_ROWS] * 255 / 16).round().astype(np.uint8)
    labels = torch.from_numpy(digits.target[DIGIT_VAL_ROWS])
    images = torch.stack([preprocess(Image.fromarray(scan).convert("RGB")) for scan in scans])
    features = model.encode_image(images, normalize=True)
    positive = features @ class_features(model, tokenizer, PROMPTS).t()
    assert (positive.argmax(1) == labels).float().mean() >= 0.55
    negative = features @ class_features(model, tokenizer, NEGATIVE_PROMPTS).t()
    own = torch.nn.functional.one_hot(labels, 10).bool()
    assert negative[own].mean() < negative[~own].mean()  # "no five" is farther from fives

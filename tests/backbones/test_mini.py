"""The mini backbone: its training, and the weights that ship."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from tools.mini import glyphs, train
from tools.mini.__main__ import main, parse_arguments
from trainers.hegraph.backbones.identity import MINI_NAME, MINI_WEIGHTS
from trainers.hegraph.backbones.loading import create_model

DIGIT_VAL_ROWS = slice(698, 898)  # the project's validation split; the test split is not touched here
PROMPTS = ('a photo of the number: "{}".', "a photo of a handwritten {}.", "a photo of a {}.")
NEGATIVE_PROMPTS = ("a photo of no {}.", 'a photo of the number: no "{}".', "a photo of no handwritten {}.")
QUICK = train.Settings(steps=2, batch_size=12, negative_captions=4, warmup_steps=1)


@pytest.fixture(scope="module")
def shipped():
    return create_model(MINI_NAME, str(MINI_WEIGHTS))


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


def test_shipped_file():
    state = load_file(MINI_WEIGHTS)
    assert MINI_WEIGHTS.stat().st_size <= 16e6
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}
    assert all(value.isfinite().all() for value in state.values())


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

"""Encoding images and sentences: the same whatever the batches and however often it is killed, kept on disk, never
read when stale or damaged."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from trainers.hegraph.backbones.clip import Backbone
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets import Dataset, load_dataset, select_few_shot
from trainers.hegraph.features import extract
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.features.extract import (
    encode_images,
    encode_prompts,
    encode_task,
    is_whole,
    training_augmentation,
)
from trainers.hegraph.features.images import ImageViews
from trainers.hegraph.features.options import EncodingOptions
from trainers.hegraph.utils.errors import UserError

NODE = "TRAINER.HEGRAPHADAPTER"
VIEWS = 3


def make_options(*opts) -> EncodingOptions:
    return load_cfg(opts=[f"{NODE}.FEATURES.VIEWS", VIEWS, *opts]).encoding


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """The real digits with only twelve of the test images."""
    dataset = load_dataset("Digits")
    return replace(dataset, test=dataset.test[:12])


def selected(dataset: Dataset, shots: int, seed: int) -> Dataset:
    labels = [[item.label for item in items] for items in (dataset.train, dataset.val)]
    return dataset.select(select_few_shot(*labels, shots, random.Random(seed)))


@pytest.fixture
def encode(digits, backbone, tmp_path) -> Callable[..., FeatureBank]:
    """Function of the number of shots and the seed: the bank of such a task, whose parts are kept."""

    def bank(shots: int, seed: int, **changes) -> FeatureBank:
        task = replace(selected(digits, shots, seed), **changes)
        return encode_task(task, backbone, make_options(), seed, tmp_path)

    return bank


class Calls(list):
    """The number of images or sentences of every call of the backbone, which ends as by Ctrl-C after so many calls."""

    most = math.inf


@pytest.fixture
def encoded(monkeypatch) -> Calls:
    calls = Calls()

    def counting(real: Callable) -> Callable:
        def call(self: Backbone, batch: Sequence, **more):
            calls.append(len(batch))
            if len(calls) > calls.most:
                raise KeyboardInterrupt
            return real(self, batch, **more)

        return call

    for name in ("encode_images", "encode_text"):
        monkeypatch.setattr(Backbone, name, counting(getattr(Backbone, name)))
    return calls


@pytest.fixture
def images(digits, backbone) -> ImageViews:
    return ImageViews(digits, digits.train[:4], training_augmentation(backbone, make_options()), views=VIEWS, seed=1)


# Encoding


def test_features_are_unit_norm_in_the_order_of_the_items_and_shared_by_all_batch_sizes(
    images, backbone, tmp_path, encoded
):
    features = encode_images(backbone, images, make_options(), tmp_path / "a", "train")
    assert features.shape[:2] == (VIEWS, 4)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(VIEWS, 4))
    options = make_options("DATALOADER.TEST.BATCH_SIZE", 5, "DATALOADER.NUM_WORKERS", 1)
    found = encode_images(backbone, images, options, tmp_path / "b", "train")
    torch.testing.assert_close(found, features, rtol=0, atol=1e-5)
    assert encoded == [12, 5, 5, 2]
    encode_images(backbone, images, options, tmp_path / "a", "train")  # the file is shared
    assert len(encoded) == 4
    alone = backbone.encode_images(next(images.batches([2 * 4 + 3], 1)))[0]
    torch.testing.assert_close(features[2, 3], alone, rtol=0, atol=1e-5)


def test_a_task_holds_what_was_selected_and_is_read_the_second_time(digits, encode, backbone, tmp_path, encoded):
    bank = encode(1, 1)
    assert bank.train_features.shape[:2] == (VIEWS, 10)
    for split, items in selected(digits, 1, 1).splits.items():
        assert getattr(bank, f"{split}_labels").tolist() == [item.label for item in items]
    assert (bank.dataset, bank.backbone, list(bank.classnames)) == ("Digits", backbone.name, list(digits.classnames))
    assert bank.logit_scale == pytest.approx(backbone.logit_scale)
    text = encode_prompts(backbone, "Digits", digits.classnames, make_options(), tmp_path)
    for name, nodes in (("text_positive", "positive"), ("text_negative", "negative"), ("text_norms", "norms")):
        assert torch.equal(getattr(bank, name), text[nodes])
    encoded.clear()
    again = encode(1, 1)
    for name, value in bank.__dict__.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, getattr(again, name))
    assert encoded == []
    test_image = backbone.preprocess(digits.read(digits.test[7].path)).unsqueeze(0)
    torch.testing.assert_close(bank.test_features[7], backbone.encode_images(test_image)[0], rtol=0, atol=1e-5)
    assert encode(1, 1, train=[]).train_features.shape == (1, 0, backbone.width)
    for val in ([], digits.test):  # nothing may be chosen on test images
        assert encode(1, 1, val=val).val_features is None
    encode(2, 2)  # whose test features are the same
    assert [len(list(tmp_path.glob(f"{part}-*"))) for part in ("train", "test", "text")] == [2, 1, 1]


def test_nan_features_are_refused(images, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(Backbone, "encode_images", lambda self, batch: torch.full((len(batch), 4), torch.nan))
    with pytest.raises(UserError, match="gives NaN features for train images of Digits"):
        encode_images(backbone, images, make_options(), tmp_path, "train")
    assert not list(tmp_path.rglob("*.safetensors"))


# What is kept


def test_another_input_gets_another_file(images, backbone, tmp_path):
    other = replace(backbone, fingerprint=backbone.fingerprint | {"weights": "others"})
    inputs = [
        (backbone, images),
        (other, images),
        (backbone, replace(images, seed=2)),
        (backbone, replace(images, views=VIEWS + 1)),
        (backbone, replace(images, items=images.items[::-1])),
        (backbone, replace(images, transform=backbone.preprocess)),
        (backbone, replace(images, dataset=replace(images.dataset, name="Other"))),
    ]
    for encoder, views in inputs:
        encode_images(encoder, views, make_options(), tmp_path, "train")
    assert len(list(tmp_path.iterdir())) == len(inputs)


def test_features_that_an_earlier_version_kept_are_whole(tmp_path):
    features = torch.arange(6.0).view(1, 2, 3)
    checksum = hashlib.sha256(b"'features':torch.float32[1, 2, 3]" + features.numpy().tobytes()).hexdigest()
    save_file({"features": features}, tmp_path / "part", {"fingerprint": "key", "checksum": checksum})
    assert is_whole(tmp_path / "part", "key") and not is_whole(tmp_path / "part", "other")


def test_a_part_that_has_changed_is_encoded_anew_said_so_and_replaced(images, backbone, tmp_path, caplog, rewrite):
    def encode() -> torch.Tensor:
        return encode_images(backbone, images, make_options(), tmp_path, "train")

    expected = encode()
    [path] = tmp_path.glob("train-*.safetensors")
    rewrite(path, lambda tensors, metadata: tensors["features"].view(torch.int32)[0, 0, 0].bitwise_xor_(1))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(encode(), expected) and torch.equal(encode(), expected)
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{path} cannot be used")


# Chunks

BATCH, IMAGES = 4, 22  # two batches a chunk: 8 + 8 + 6 images


@pytest.fixture
def in_chunks(digits, backbone, monkeypatch) -> Callable[[Path], torch.Tensor]:
    """Encodes images in small chunks, in a folder."""
    monkeypatch.setattr(extract, "CHUNK_BATCHES", 2)
    views = ImageViews(digits, load_dataset("Digits").test[:IMAGES], backbone.preprocess)
    options = make_options("DATALOADER.TEST.BATCH_SIZE", BATCH)
    return lambda folder: encode_images(backbone, views, options, folder, "test")


@pytest.mark.parametrize(("batches", "kept", "damaged"), [(1, 0, False), (2, 8, False), (5, 16, False), (5, 8, True)])
def test_a_killed_run_goes_on_after_its_last_whole_chunk(in_chunks, encoded, tmp_path, caplog, batches, kept, damaged):
    uninterrupted = in_chunks(tmp_path / "other")
    encoded.most = len(encoded) + batches
    with pytest.raises(KeyboardInterrupt):
        in_chunks(tmp_path / "parts")
    assert not list((tmp_path / "parts").glob("*.safetensors"))
    if damaged:
        next((tmp_path / "parts").rglob("0-8.safetensors")).write_bytes(b"damaged")
    encoded.clear()
    with caplog.at_level(logging.INFO):
        resumed = in_chunks(tmp_path / "parts")
    assert sum(encoded) == IMAGES - kept and torch.equal(resumed, uninterrupted)
    assert (f"{kept} of {IMAGES} test images were encoded before" in caplog.text) == (kept > 0)
    assert f"encoded {IMAGES - kept} test images" in caplog.text
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".safetensors"]  # no chunk is left


def test_a_part_that_another_run_finishes_meanwhile_is_taken(in_chunks, tmp_path, monkeypatch):
    """The other run removes the chunks that this one is about to join."""
    expected = in_chunks(tmp_path / "other")
    [finished] = (tmp_path / "other").iterdir()

    def late() -> None:
        shutil.rmtree((tmp_path / "parts" / finished.name).with_suffix(".chunks"), ignore_errors=True)
        shutil.copy(finished, tmp_path / "parts")

    monkeypatch.setattr(extract.processes, "wait", late)
    assert torch.equal(in_chunks(tmp_path / "parts"), expected)


# Text nodes


def test_a_text_node_is_the_mean_of_its_groups_each_averaged_first_and_its_norm_that_of_the_mean_as_it_is(
    backbone, tmp_path
):
    described = {"one": ["a stroke.", "a thin line.", "a bar."], "two": ["a swan."]}
    (tmp_path / "cupl.json").write_text(json.dumps(described))
    templates, negative = ["a photo of a {}.", "the digit {}."], ["no {}.", "anything but {}."]
    keys = {"SOURCE": "both", "DESCRIPTIONS": str(tmp_path / "cupl.json")}
    keys |= {"TEMPLATES": templates, "NEGATIVE_TEMPLATES": negative}
    options = make_options(*chain.from_iterable((f"{NODE}.PROMPTS.{key}", value) for key, value in keys.items()))
    text = encode_prompts(backbone, "Digits", ["one", "two"], options, tmp_path / "parts")

    def mean(sentences: list[str], normalize: bool = True) -> torch.Tensor:
        return backbone.encode_text(sentences, normalize=normalize).mean(dim=0)

    for k, name in enumerate(described):
        groups = [[t.format(name) for t in templates], described[name]]
        expected = F.normalize(sum(F.normalize(mean(group), dim=-1) for group in groups), dim=-1)
        torch.testing.assert_close(text["positive"][k], expected, rtol=0, atol=1e-5)
        expected = F.normalize(mean([t.format(name) for t in negative]), dim=-1)
        torch.testing.assert_close(text["negative"][k], expected, rtol=0, atol=1e-5)
        norm = (sum(mean(group, normalize=False) for group in groups) / 2).norm()
        torch.testing.assert_close(text["norms"][k], norm, rtol=1e-5, atol=0)
        assert abs(norm - 1) > 0.1  # or the test would show nothing

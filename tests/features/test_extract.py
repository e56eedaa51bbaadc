"""Encoding images and sentences: the same whatever the batches and however often it is killed, kept on disk, never
read when stale or damaged."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph.backbones.clip import Backbone
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets import Dataset, Selection, load_dataset, select_few_shot
from trainers.hegraph.features import extract
from trainers.hegraph.features.extract import cut, encode_images, encode_task, training_augmentation
from trainers.hegraph.features.images import ImageViews
from trainers.hegraph.features.options import EncodingOptions
from trainers.hegraph.features.text import encode_prompts
from trainers.hegraph.utils.errors import UserError

ROOT = Path(__file__).parents[2]
NODE = "TRAINER.HEGRAPHADAPTER"
SENTENCES = f"{NODE}.PROMPTS"
VIEWS = 3


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """The real digits with only twelve of the test images."""
    dataset = load_dataset("Digits")
    return replace(dataset, test=dataset.test[:12])


@pytest.fixture(scope="module")
def selection(digits) -> Selection:
    labels = [[item.label for item in items] for items in (digits.train, digits.val)]
    return select_few_shot(*labels, shots=1, rng=random.Random(1))


def make_options(*opts) -> EncodingOptions:
    return load_cfg(opts=[f"{NODE}.FEATURES.VIEWS", VIEWS, *opts]).encoding


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """The number of images or sentences of every call of the backbone."""
    calls: list[int] = []

    def count(name: str) -> None:
        real = getattr(Backbone, name)
        monkeypatch.setattr(
            Backbone, name, lambda self, batch, **more: [calls.append(len(batch)), real(self, batch, **more)][1]
        )

    count("encode_images")
    count("encode_text")
    return calls


@pytest.fixture
def images(digits, backbone) -> ImageViews:
    return ImageViews(digits, digits.train[:4], training_augmentation(backbone, make_options()), views=VIEWS, seed=1)


def tensors(bank) -> dict[str, torch.Tensor]:
    return {name: value for name, value in bank.__dict__.items() if isinstance(value, torch.Tensor)}


# Options

CHANGES = {
    "views": (f"{NODE}.FEATURES.VIEWS", 3),
    "transforms": ("INPUT.TRANSFORMS", ("random_flip", "normalize")),
    "crop_scale": ("INPUT.RRCROP_SCALE", (0.5, 0.75)),
    "interpolation": ("INPUT.INTERPOLATION", "bilinear"),
    "batch_size": ("DATALOADER.TEST.BATCH_SIZE", 7),
    "num_workers": ("DATALOADER.NUM_WORKERS", 2),
    "source": (f"{SENTENCES}.SOURCE", "both"),
    "templates": (f"{SENTENCES}.TEMPLATES", ["a {}."]),
    "negative_templates": (f"{SENTENCES}.NEGATIVE_TEMPLATES", ["no {}."]),
    "descriptions": (f"{SENTENCES}.DESCRIPTIONS", "mine.json"),
}


def test_every_option_follows_its_key_and_no_other():
    default = asdict(load_cfg().encoding)
    for name, (key, value) in CHANGES.items():
        assert default[name] != value
        assert asdict(load_cfg(opts=[key, value]).encoding) == {**default, name: value}
    assert default["views"] == 10
    assert default["batch_size"] == 256


# Encoding


def test_features_are_unit_norm_and_in_the_order_of_the_items(images, backbone, tmp_path):
    features = encode_images(backbone, images, make_options(), tmp_path, "train")
    assert features.shape[:2] == (VIEWS, 4)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(VIEWS, 4))
    alone = backbone.encode_images(next(images.batches([2 * 4 + 3], 1)))[0]
    torch.testing.assert_close(features[2, 3], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_encoding_does_not_depend_on_the_loading(images, backbone, tmp_path, encoded, workers):
    expected = encode_images(backbone, images, make_options(), tmp_path / "a", "train")
    options = make_options("DATALOADER.TEST.BATCH_SIZE", 5, "DATALOADER.NUM_WORKERS", workers)
    found = encode_images(backbone, images, options, tmp_path / "b", "train")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert encoded == [12, 5, 5, 2]
    encode_images(backbone, images, options, tmp_path / "a", "train")  # the file is shared
    assert len(encoded) == 4


def test_a_task_holds_what_was_selected(digits, selection, backbone, tmp_path):
    bank = encode_task(digits.select(selection), backbone, make_options(), 1, tmp_path)
    assert bank.train_features.shape[:2] == (VIEWS, 10)
    assert bank.train_labels.tolist() == [digits.train[i].label for i in selection.train]
    assert bank.val_labels.tolist() == [digits.val[i].label for i in selection.val]
    assert bank.test_labels.tolist() == [item.label for item in digits.test]
    test_image = backbone.preprocess(digits.read(digits.test[7].path)).unsqueeze(0)
    torch.testing.assert_close(bank.test_features[7], backbone.encode_images(test_image)[0], rtol=0, atol=1e-5)
    assert (bank.dataset, bank.backbone) == ("Digits", backbone.name)
    assert bank.logit_scale == pytest.approx(backbone.logit_scale)
    assert list(bank.classnames) == list(digits.classnames)
    text = encode_prompts(backbone, "Digits", digits.classnames, make_options(), tmp_path)
    assert torch.equal(bank.text_positive, text["positive"])
    assert torch.equal(bank.text_negative, text["negative"])
    assert torch.equal(bank.text_norms, text["norms"])


def test_a_task_without_val_or_whose_val_is_its_test_has_none(digits, selection, backbone, tmp_path):
    for val in ([], digits.test):
        bank = encode_task(replace(digits.select(selection), val=val), backbone, make_options(), 1, tmp_path)
        assert bank.val_features is None


def test_nan_features_are_refused(images, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(Backbone, "encode_images", lambda self, batch: torch.full((len(batch), 4), torch.nan))
    with pytest.raises(UserError, match="gives NaN features for train images of Digits"):
        encode_images(backbone, images, make_options(), tmp_path, "train")
    assert not list(tmp_path.rglob("*.safetensors"))


# What is kept


def test_a_task_that_is_kept_is_read_and_not_encoded_anew(digits, selection, backbone, tmp_path, encoded):
    first = tensors(encode_task(digits.select(selection), backbone, make_options(), 1, tmp_path))
    assert sorted(f.name.split("-")[0] for f in tmp_path.iterdir()) == ["test", "text", "train", "val"]
    encoded.clear()
    again = tensors(encode_task(digits.select(selection), backbone, make_options(), 1, tmp_path))
    assert encoded == []
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_test_features_are_shared_by_seeds_and_shots(digits, backbone, tmp_path):
    for seed, shots in ((1, 1), (2, 2)):
        labels = [[item.label for item in items] for items in (digits.train, digits.val)]
        selected = digits.select(select_few_shot(*labels, shots, random.Random(seed)))
        encode_task(selected, backbone, make_options(), seed, tmp_path)
    counts = {name: len(list(tmp_path.glob(f"{name}-*"))) for name in ("train", "test", "text")}
    assert counts == {"train": 2, "test": 1, "text": 1}


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


def swap_rows(features, metadata):
    features[0, [0, 1]] = features[0, [1, 0]]


def flip_one_bit(features, metadata):
    features.view(torch.int32)[0, 0, 0] ^= 1


def lose_the_checksum(features, metadata):
    del metadata["checksum"]


def be_of_something_else(features, metadata):
    metadata["fingerprint"] = "other"


@pytest.mark.parametrize("change", [swap_rows, flip_one_bit, lose_the_checksum, be_of_something_else, None])
def test_a_part_that_has_changed_is_encoded_anew_said_so_and_replaced(
    images, backbone, tmp_path, caplog, encoded, rewrite, change
):
    expected = encode_images(backbone, images, make_options(), tmp_path, "train")
    [path] = tmp_path.glob("train-*.safetensors")
    if change is None:
        path.write_bytes(b"")
    else:
        rewrite(path, lambda tensors, metadata: change(tensors["features"], metadata))
    with caplog.at_level(logging.WARNING):
        found = encode_images(backbone, images, make_options(), tmp_path, "train")
    assert torch.equal(found, expected)
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{path} cannot be used")
    encoded.clear()
    assert torch.equal(encode_images(backbone, images, make_options(), tmp_path, "train"), expected)
    assert encoded == []


# Chunks

BATCH, IMAGES = 4, 22  # two batches a chunk: 8 + 8 + 6 images


@pytest.fixture
def in_chunks(digits, backbone, monkeypatch) -> Callable[..., torch.Tensor]:
    """Encodes images in small chunks, in a folder, with a batch size; ends as if killed after so many batches."""
    monkeypatch.setattr(extract, "CHUNK_BATCHES", 2)
    views = ImageViews(load_dataset("Digits"), load_dataset("Digits").test[:IMAGES], backbone.preprocess)

    def encode(folder: Path, batch_size: int = BATCH, dies_after: int | None = None) -> torch.Tensor:
        real, calls = Backbone.encode_images, []

        def dies(self: Backbone, batch: torch.Tensor) -> torch.Tensor:
            calls.append(len(batch))
            if len(calls) > dies_after:
                raise KeyboardInterrupt
            return real(self, batch)

        with monkeypatch.context() as patch:
            if dies_after is not None:
                patch.setattr(Backbone, "encode_images", dies)
            return encode_images(
                backbone, views, make_options("DATALOADER.TEST.BATCH_SIZE", batch_size), folder, "test"
            )

    return encode


def test_images_are_cut_into_batches_and_these_into_chunks(monkeypatch):
    monkeypatch.setattr(extract, "CHUNK_BATCHES", 2)
    assert cut(11, 3) == [[range(3), range(3, 6)], [range(6, 9), range(9, 11)]]
    assert cut(6, 3) == [[range(3), range(3, 6)]]


@pytest.mark.parametrize(("batches", "kept"), [(0, 0), (1, 0), (2, 8), (5, 16)])
def test_a_killed_run_goes_on_after_its_last_whole_chunk(in_chunks, encoded, tmp_path, caplog, batches, kept):
    uninterrupted = in_chunks(tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        in_chunks(tmp_path / "parts", dies_after=batches)
    assert not list((tmp_path / "parts").glob("*.safetensors"))
    encoded.clear()
    with caplog.at_level(logging.INFO):
        resumed = in_chunks(tmp_path / "parts")
    assert sum(encoded) == IMAGES - kept
    assert torch.equal(resumed, uninterrupted)
    assert (f"{kept} of {IMAGES} test images were encoded before" in caplog.text) == (kept > 0)
    assert f"encoded {IMAGES - kept} test images" in caplog.text
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".safetensors"]  # no chunk is left


def test_a_chunk_that_is_damaged_is_encoded_anew(in_chunks, encoded, tmp_path):
    uninterrupted = in_chunks(tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        in_chunks(tmp_path / "parts", dies_after=5)
    [chunk] = (tmp_path / "parts").rglob("0-8.safetensors")
    chunk.write_bytes(b"damaged")
    encoded.clear()
    assert torch.equal(in_chunks(tmp_path / "parts"), uninterrupted)
    assert encoded == [4, 4, 4, 2]


def test_chunks_of_another_batch_size_are_not_taken(in_chunks, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "_join", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        in_chunks(tmp_path / "parts")  # chunks of 8, 8 and 6 images
    monkeypatch.undo()
    resumed = in_chunks(tmp_path / "parts", batch_size=3)  # all of 22; the chunk of 6 images is not its third
    torch.testing.assert_close(resumed, in_chunks(tmp_path / "other"), rtol=0, atol=1e-5)


def test_a_part_that_another_run_finishes_meanwhile_is_taken(in_chunks, tmp_path, monkeypatch):
    """The other run removes the chunks that this one is about to join."""
    expected = in_chunks(tmp_path / "other")
    [finished] = (tmp_path / "other").iterdir()
    join = extract._join

    def late(path: Path, *arguments) -> None:
        for chunk in path.with_suffix(".chunks").iterdir():
            chunk.unlink()
        path.write_bytes(finished.read_bytes())
        join(path, *arguments)

    monkeypatch.setattr(extract, "_join", late)
    assert torch.equal(in_chunks(tmp_path / "parts"), expected)


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_bank_of_one_bit_for_bit(tmp_path):
    flags = ["--config-file", "mini", "--dataset-config-file", "digits", "--shots", "2", "--seed", "1", "--no-train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun sets it as well

    def encode(name: str, *launcher: str) -> subprocess.CompletedProcess:
        options = ["DATALOADER.TEST.BATCH_SIZE", "10", f"{NODE}.FEATURES.DIR", str(tmp_path / name)]
        command = [sys.executable, *launcher, "-m", "trainers.hegraph", *flags]
        command += ["--output-dir", str(tmp_path / f"out-{name}"), *options]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)

    one = encode("one")
    assert one.returncode == 0, one.stderr
    two = encode("two", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert two.returncode == 0, two.stderr
    files = {
        name: {file.name: file.read_bytes() for file in (tmp_path / name).rglob("*.safetensors")}
        for name in ("one", "two")
    }
    assert sorted(name.split("-")[0] for name in files["one"]) == ["test", "text", "train", "val"]
    assert files["one"] == files["two"]
    # The 899 test images are six chunks of 16 batches: both processes had some
    counts = [int(line.split()[1]) for line in two.stderr.splitlines() if line.startswith("encoded") and "test" in line]
    assert len(counts) == 2
    assert sum(counts) == 899
    assert min(counts) > 300


# Text nodes


def test_other_sentences_get_another_file(backbone, tmp_path):
    for opts in ((), (f"{SENTENCES}.TEMPLATES", "['an {}.']"), (f"{SENTENCES}.NEGATIVE_TEMPLATES", "['no {}.']")):
        encode_prompts(backbone, "Digits", ["one", "two"], make_options(*opts), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_text_node_is_the_mean_of_its_groups_each_averaged_first_and_its_norm_that_of_the_mean_as_it_is(
    backbone, tmp_path
):
    names = ["one", "two"]
    described = {"one": ["a stroke.", "a thin line.", "a bar."], "two": ["a swan."]}
    (tmp_path / "cupl.json").write_text(json.dumps(described))
    templates, negative = ["a photo of a {}.", "the digit {}."], ["no {}.", "anything but {}."]
    options = make_options(
        f"{SENTENCES}.SOURCE", "both", f"{SENTENCES}.DESCRIPTIONS", str(tmp_path / "cupl.json"),
        f"{SENTENCES}.TEMPLATES", templates, f"{SENTENCES}.NEGATIVE_TEMPLATES", negative,
    )  # fmt: skip
    text = encode_prompts(backbone, "Digits", names, options, tmp_path / "parts")

    def mean(sentences: list[str]) -> torch.Tensor:
        return F.normalize(backbone.encode_text(sentences).mean(dim=0), dim=-1)

    def raw_mean(sentences: list[str]) -> torch.Tensor:
        with torch.no_grad():
            return backbone.model.encode_text(backbone.tokenizer(sentences)).mean(dim=0)

    for k, name in enumerate(names):
        groups = [[t.format(name) for t in templates], described[name]]
        expected = F.normalize(torch.stack([*map(mean, groups)]).mean(dim=0), dim=-1)
        torch.testing.assert_close(text["positive"][k], expected, rtol=0, atol=1e-5)
        expected = mean([t.format(name) for t in negative])
        torch.testing.assert_close(text["negative"][k], expected, rtol=0, atol=1e-5)
        norm = torch.stack([*map(raw_mean, groups)]).mean(dim=0).norm()
        torch.testing.assert_close(text["norms"][k], norm, rtol=1e-5, atol=0)
        assert abs(norm - 1) > 0.1  # or the test would show nothing

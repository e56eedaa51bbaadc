"""Order and steps of encoding, chunks of an interrupted run, and the progress that is shown."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainers.hegraph import load_cfg, load_dataset
from trainers.hegraph.features import chunks, extract
from trainers.hegraph.features.images import ImageViews
from trainers.hegraph.features.options import EncodingOptions
from trainers.hegraph.features.order import encoding_order, encoding_steps
from trainers.hegraph.utils.signals import Interrupted


def options(batch_size: int) -> EncodingOptions:
    return load_cfg(opts=["DATALOADER.TEST.BATCH_SIZE", batch_size]).encoding


def views_of(mini, num_images: int, views: int) -> ImageViews:
    dataset = load_dataset("Digits")
    augmentation = extract.training_augmentation(mini, options(4))
    return ImageViews(dataset, dataset.train[:num_images], augmentation, views=views, seed=1)


# Order


def test_order_keeps_last_batch_last(mini):
    order = encoding_order(views_of(mini, 3, 2), batch_size=5)  # positions: 0, 1, 2 first views, 3, 4, 5 second views
    assert order.tolist() == [0, 3, 1, 4, 2, 5]
    assert encoding_order(views_of(mini, 4, 2), batch_size=3).tolist() == [0, 4, 1, 5, 2, 3, 6, 7]


def test_steps_cover_batches_without_small_rest(mini, usual_size, one_thread):
    steps = encoding_steps(mini, num_rows=95, batch_size=50)
    assert [(step.start, step.stop) for step in steps] == [(0, 20), (20, 50), (50, 70), (70, 95)]


def test_small_images_are_encoded_in_larger_steps(mini, one_thread):
    steps = encoding_steps(mini, num_rows=349, batch_size=250)
    assert [(step.start, step.stop) for step in steps] == [(0, 80), (80, 160), (160, 250), (250, 349)]


@pytest.mark.parametrize("num_images", [67, 75])  # the last batch of 64 has 9 or 33 views
def test_steps_change_no_bit_of_features(mini, usual_size, num_images):
    images = views_of(mini, num_images, 3)
    batches = [mini.encode_images(pixels) for pixels in images.batches(range(len(images)), 64)]
    found = extract.encode_images(mini, images, options(64), None, "train")
    assert torch.equal(found.flatten(0, 1), torch.cat(batches))


@pytest.mark.parametrize("num_images", [60, 110])  # the last batch of 170 has 10 or 160 views
def test_steps_of_small_images_change_no_bit(mini, num_images):
    images = views_of(mini, num_images, 3)
    batches = [mini.encode_images(pixels) for pixels in images.batches(range(len(images)), 170)]
    found = extract.encode_images(mini, images, options(170), None, "train")
    assert torch.equal(found.flatten(0, 1), torch.cat(batches))


def test_image_is_decoded_once_for_all_views(mini):
    images = views_of(mini, 5, 3)
    opened: list[str] = []

    def open_image(path: str):
        opened.append(path)
        return images.dataset.open(path)

    counted = replace(images, dataset=replace(images.dataset, open=open_image))
    extract.encode_images(mini, counted, options(4), None, "train")
    assert sorted(opened) == sorted(item.path for item in images.items)


# Chunks

BATCH, IMAGES = 4, 22


@pytest.fixture
def in_chunks(mini, monkeypatch) -> Callable[[Path], torch.Tensor]:
    """Function that encodes images in a folder, and writes a chunk after each batch."""
    monkeypatch.setattr(chunks, "WRITE_SECONDS", 0)
    dataset = load_dataset("Digits")
    images = ImageViews(dataset, dataset.test[:IMAGES], mini.preprocess)
    return lambda folder: extract.encode_images(mini, images, options(BATCH), folder, "test")


@pytest.mark.parametrize(("batches", "damaged", "done"), [(0, 0, 0), (1, 0, 4), (5, 0, 20), (5, 1, 16)])
def test_interrupted_run_continues_after_last_batch(in_chunks, encoded, tmp_path, caplog, batches, damaged, done):
    uninterrupted = in_chunks(tmp_path / "other")
    encoded.most = len(encoded) + batches
    with pytest.raises(KeyboardInterrupt):
        in_chunks(tmp_path / "parts")
    assert not list((tmp_path / "parts").glob("*.safetensors"))
    for path in list((tmp_path / "parts").rglob("*.safetensors"))[:damaged]:
        path.write_bytes(b"damaged")
    encoded.clear()
    with caplog.at_level(logging.INFO):
        resumed = in_chunks(tmp_path / "parts")
    assert sum(encoded) == IMAGES - done and torch.equal(resumed, uninterrupted)
    assert (f"continuing after {done} of {IMAGES} test images" in caplog.text) == (done > 0)
    assert f"encoded {IMAGES - done} test images" in caplog.text
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".safetensors"]  # no chunk is left


def test_interrupt_writes_the_batches_of_last_seconds(in_chunks, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "WRITE_SECONDS", 1000)
    encoded.most = 3
    with pytest.raises(Interrupted, match="^12 of 22 test images are encoded and will not be encoded again$"):
        in_chunks(tmp_path)
    [chunk] = tmp_path.rglob("*.safetensors")
    assert chunk.name == "0-12.safetensors"


def test_interrupt_before_the_first_batch_promises_nothing(in_chunks, encoded, tmp_path):
    encoded.most = 0
    with pytest.raises(Interrupted, match="^$"):
        in_chunks(tmp_path)


def test_part_of_a_concurrent_run_is_used(in_chunks, tmp_path, monkeypatch):
    """A concurrent run removes the chunks before they are concatenated."""
    expected = in_chunks(tmp_path / "other")
    [finished] = (tmp_path / "other").iterdir()

    def late() -> None:
        shutil.rmtree((tmp_path / "parts" / finished.name).with_suffix(".chunks"), ignore_errors=True)
        shutil.copy(finished, tmp_path / "parts")

    monkeypatch.setattr(extract.processes, "wait", late)
    assert torch.equal(in_chunks(tmp_path / "parts"), expected)


def test_log_names_images_and_views(mini, caplog):
    with caplog.at_level(logging.INFO):
        extract.encode_images(mini, views_of(mini, 5, 3), options(4), None, "train")
    assert "encoded 5 train images in 3 views each" in caplog.messages

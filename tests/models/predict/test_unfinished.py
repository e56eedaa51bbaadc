"""Predictions that continue after an interrupt."""

import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainers.hegraph.features.backbones.base import Backbone
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.models.predict.unfinished import resumable_batches
from trainers.hegraph.utils.signals import Interrupted, noted_interrupts

BATCH = 50  # in steps of 20 and 30 images, if all are readable


@pytest.fixture
def images(tmp_path, monkeypatch) -> list[str]:
    """Images in the current folder: 120, of which the second and the 21st are unreadable."""
    monkeypatch.chdir(tmp_path)
    names = [f"{number}.png" for number in range(120)]
    for number, name in enumerate(names):
        Image.new("L", (8, 8), 2 * number).save(name)
    for name in (names[1], names[20]):
        Path(name).write_text("no image")
    return names


@pytest.fixture
def model(finished_digits_once, mini, usual_size) -> ImageModel:
    return ImageModel(load_model(finished_digits_once), mini)


def encoded(model: ImageModel, images: list[str], stop_at: int = 999) -> tuple[list[str], torch.Tensor, list[int]]:
    """Paths with their problems, features, and the numbers shown; Ctrl-C comes when `stop_at` images are shown."""
    shown: list[int] = []

    def show(number: int) -> None:
        shown.append(number)
        if number >= stop_at:
            raise KeyboardInterrupt

    with resumable_batches(model, images, BATCH, show) as iterator:
        batches = [*iterator]
    rows = [f"{path}{problem}" for paths, problems, _ in batches for path, problem in zip(paths, problems)]
    return rows, torch.cat([features for *_, features in batches]), shown


# The first batch has 48 readable images. Its first step ends before the 23rd image, the 21st readable one; the second
# batch has steps that end after 70 and 100 images, and the last one is a step
@pytest.mark.parametrize("kept", [22, 50, 70, 100])
def test_interrupted_encoding_continues_with_equal_features(model, images, kept, one_thread):
    rows, features, _ = encoded(model, images)
    assert [row for row, image in zip(rows, images) if row == image] == images[:1] + images[2:20] + images[21:]
    with pytest.raises(Interrupted, match=f"^{kept} of 120 images are encoded and will not be encoded again$"):
        encoded(model, images, stop_at=kept)
    again, features_again, shown = encoded(model, images)
    assert again == rows
    assert torch.equal(features_again, features)
    assert kept in shown and shown[-1] == 120
    assert not [*Path("output/features/predict").glob("*")]


def test_images_of_an_earlier_command_are_not_encoded(model, images, monkeypatch, one_thread):
    with pytest.raises(Interrupted, match="^70 of 120"):
        encoded(model, images, stop_at=70)
    counts: list[int] = []
    encode = Backbone.encode_images

    def count(backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        counts.append(len(pixels))
        return encode(backbone, pixels)

    monkeypatch.setattr(Backbone, "encode_images", count)
    encoded(model, images)
    assert counts == [30, 20]


def test_interrupt_in_the_first_step_promises_nothing(model, images, monkeypatch):
    def interrupt(backbone: Backbone, pixels: torch.Tensor) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Backbone, "encode_images", interrupt)
    with pytest.raises(Interrupted, match="^$"):
        encoded(model, images)


def take_and_raise(model: ImageModel, images: list[str], num_batches: int, error: BaseException) -> None:
    """Take batches, then raise an exception in the block that takes them."""
    with resumable_batches(model, images, BATCH, lambda number: None) as batches:
        for _ in range(num_batches):
            next(batches)
        raise error


@pytest.mark.parametrize(("num_batches", "kept"), [(1, 50), (3, 120)])
def test_interrupt_of_the_block_keeps_all_encoded_images(model, images, num_batches, kept):
    with pytest.raises(Interrupted, match=f"^{kept} of 120 images are encoded and will not be encoded again$"):
        take_and_raise(model, images, num_batches, KeyboardInterrupt())


def test_replaced_interrupt_keeps_all_encoded_images(model, images):
    """A library turned KeyboardInterrupt into another exception."""
    block = resumable_batches(model, images, BATCH, lambda number: None)
    with noted_interrupts(), pytest.raises(Interrupted, match="^50 of 120"), block as batches:
        next(batches)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("interrupted")


def test_failed_output_keeps_all_encoded_images(model, images, caplog):
    with pytest.raises(OSError, match="disk"):
        take_and_raise(model, images, 3, OSError("no space on the disk"))
    with caplog.at_level("INFO"):
        encoded(model, images)
    assert "continuing after 120 of 120 images" in caplog.text


def test_batch_of_unreadable_images_is_kept(model, images):
    for name in images[:BATCH]:
        Path(name).write_text("no image")
    with pytest.raises(Interrupted, match="^50 of 120"):
        encoded(model, images, stop_at=50)
    rows, features, _ = encoded(model, images)
    assert len(rows) == 120 and len(features) == 70


def test_changed_image_is_encoded_again(model, images, caplog):
    with pytest.raises(Interrupted):
        encoded(model, images, stop_at=100)
    Image.new("L", (8, 8), 255).save("0.png")
    encoded(model, images)
    assert "continuing" not in caplog.text


def test_damaged_file_is_encoded_again(model, images, caplog):
    with pytest.raises(Interrupted):
        encoded(model, images, stop_at=100)
    [file] = Path("output/features/predict").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert len(encoded(model, images)[0]) == 120
    assert "is damaged; its images are encoded again" in caplog.text


def test_read_only_folder_keeps_nothing(model, images):
    Path("output").write_text("a file in the place of the folder")
    with pytest.raises(Interrupted, match="^$"):
        encoded(model, images, stop_at=100)
    assert len(encoded(model, images)[0]) == 120

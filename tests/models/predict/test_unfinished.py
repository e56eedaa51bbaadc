"""Predictions that continue after an interrupt."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.models.predict.unfinished import encode_and_keep
from trainers.hegraph.utils.signals import Interrupted

BATCH = 4


@pytest.fixture
def images(tmp_path, monkeypatch) -> list[str]:
    """Ten images, of which the second is unreadable, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        Image.new("L", (8, 8), 20 * number).save(f"{number}.png")
    Path("1.png").write_text("no image")
    return [f"{number}.png" for number in range(10)]


@pytest.fixture
def model(finished_digits_once, mini) -> ImageModel:
    return ImageModel(load_model(finished_digits_once), mini)


def encoded(model: ImageModel, images: list[str], stop_at: int = 99) -> tuple[list[str], torch.Tensor, list[int]]:
    """Paths with their problems, features, and the numbers shown; Ctrl-C comes when `stop_at` images are shown."""
    shown: list[int] = []

    def show(number: int) -> None:
        shown.append(number)
        if number >= stop_at:
            raise KeyboardInterrupt

    batches = [*encode_and_keep(model, images, BATCH, show)]
    rows = [f"{path}{problem}" for paths, problems, _ in batches for path, problem in zip(paths, problems)]
    return rows, torch.cat([features for *_, features in batches]), shown


def test_interrupted_encoding_continues_with_equal_features(model, images):
    rows, features, _ = encoded(model, images)
    assert rows[1] != images[1] and rows[2:] == images[2:]
    with pytest.raises(Interrupted, match="^8 of 10 images are encoded and will not be encoded again$"):
        encoded(model, images, stop_at=10)
    again, features_again, shown = encoded(model, images)
    assert again == rows
    assert torch.equal(features_again, features)
    assert shown[:2] == [4, 8], "batches of the first call"
    assert not [*Path("output/features/predict").glob("*")]


def test_interrupt_in_the_first_batch_promises_nothing(model, images):
    with pytest.raises(Interrupted, match="^$"):
        encoded(model, images, stop_at=1)


def test_changed_image_is_encoded_again(model, images):
    with pytest.raises(Interrupted):
        encoded(model, images, stop_at=10)
    Image.new("L", (8, 8), 255).save("0.png")
    assert encoded(model, images)[2][0] < BATCH  # the readable images of the first batch, instead of a stored batch


def test_damaged_file_is_encoded_again(model, images, caplog):
    with pytest.raises(Interrupted):
        encoded(model, images, stop_at=10)
    [file] = Path("output/features/predict").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert len(encoded(model, images)[0]) == 10
    assert "is damaged; its images are encoded again" in caplog.text


def test_read_only_folder_keeps_nothing(model, images):
    Path("output").write_text("a file in the place of the folder")
    with pytest.raises(Interrupted, match="^$"):
        encoded(model, images, stop_at=10)
    assert len(encoded(model, images)[0]) == 10

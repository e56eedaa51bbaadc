"""Model of the digits with thumbnails, for the tests of the page."""

from pathlib import Path

import pytest

from trainers.hegraph.models.images import ImageModel


@pytest.fixture(scope="session")
def model_folder(finished_digits_once) -> Path:
    """Model folder of 4 shots of the digits with mini and with thumbnails; read-only."""
    return finished_digits_once / "model"


@pytest.fixture(scope="session")
def digits(model_folder) -> ImageModel:
    return ImageModel.load(model_folder)

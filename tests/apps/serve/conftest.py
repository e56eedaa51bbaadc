"""Fixtures of the HTTP server: scans, and a model that can be trained further."""

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from trainers.hegraph import HeGraphClassifier, load_few_shot

if TYPE_CHECKING:
    from recorded import Recorded


@pytest.fixture(autouse=True)
def forgotten_applications() -> Iterator[None]:
    """Let the memory of applications be freed.

    FastAPI has caches of the functions that answer requests, and each of them holds the model of its application.
    """
    yield
    if "fastapi" in sys.modules:
        from fastapi.dependencies import models

        for value in vars(models).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> SimpleNamespace:
    """Forty test scans as PIL images and as files, with the names of their classes."""
    folder, digits = tmp_path_factory.mktemp("scans"), load_few_shot("Digits", "", 1, 1)
    images = [digits.open(item.path) for item in digits.test[:40]]
    files = [folder / f"{number}.png" for number in range(len(images))]
    for image, file in zip(images, files):
        image.save(file)
    return SimpleNamespace(images=images, files=files, labels=[item.classname for item in digits.test[:40]])


@pytest.fixture(scope="session")
def files(scans) -> list[Path]:
    """Twelve test scans."""
    return scans.files[:12]


@pytest.fixture(scope="session")
def own_model(once, scans, tmp_path_factory) -> Callable[..., Path]:
    """Function that copies a training-free model of the first 12 scans, with one or several labels per image."""

    def fit(folder: Path, several: bool) -> None:
        labels = scans.labels[:12]
        y = [{label, "even" if label in ("zero", "two", "four", "six", "eight") else "odd"} for label in labels]
        classifier = HeGraphClassifier("hegraph-mini", variant="training_free")
        classifier.fit(scans.images[:12], y if several else labels).save_pretrained(folder)

    def copy(several: bool = False) -> Path:
        source = once(f"own_model_{several}", lambda folder: fit(folder, several))
        return Path(shutil.copytree(source, tmp_path_factory.mktemp("own") / "model"))

    return copy


@pytest.fixture
def folder(own_model) -> Path:
    """Copy of the model with one label per image and the classes zero, one, two, three, four, eight and nine."""
    return own_model()


@pytest.fixture
def recorded() -> "Iterator[Recorded]":
    """Label Studio with recorded answers."""
    from recorded import Recorded  # skips the test without the packages of the server

    with Recorded() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()

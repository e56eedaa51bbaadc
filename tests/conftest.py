"""What several tests need: the shared data, unit features, the options of the method, a small feature bank."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.method.options import ModelOptions
from trainers.hegraph.method.relations import metapath_defaults
from trainers.hegraph.training.checkpoints import Checkpoints


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the tests that are marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the slow tests, but with --runslow, or where the command line names a test of a file (file.py::test)."""
    if config.getoption("--runslow") or any("::" in argument for argument in config.args):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --runslow"))


@contextmanager
def heard(number: signal.Signals) -> Iterator[None]:
    """Has this process, and those that it starts, end on a signal that is ignored, as a shell or nohup may have asked."""
    before = signal.getsignal(number)
    if before == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    signal.signal(number, before)


@pytest.fixture(scope="session", autouse=True)
def hears_ctrl_c() -> Iterator[None]:
    """Tests of Ctrl-C hold in a suite that was begun with `&` as well, for which a shell has SIGINT ignored."""
    with heard(signal.SIGINT):
        yield


@pytest.fixture
def hears_hangup() -> Iterator[None]:
    """The same of SIGHUP, which nohup has ignored. For single tests: the suite itself shall go on."""
    with heard(signal.SIGHUP):
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data that is not part of the repository, named by $HEGRAPH_SHARED."""
    folder = os.environ.get("HEGRAPH_SHARED")
    if not folder:
        pytest.skip("HEGRAPH_SHARED is not set: the shared data is not here")
    return Path(folder)


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """A program that a test or a fixture of many tests starts in this process makes the package log more; undo that."""
    logging.getLogger("trainers.hegraph").setLevel(logging.NOTSET)
    yield
    logging.getLogger("trainers.hegraph").setLevel(logging.NOTSET)


@pytest.fixture
def disk_full_after() -> Callable[[int], AbstractContextManager]:
    """Context of a size in bytes beyond which no file can grow, so writing fails half-way as on a full disk.

    As short as the write: pytest's own output may be a file too.
    """

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture(scope="session")
def stopped_at_checkpoint() -> Callable[..., AbstractContextManager]:
    """Context in which a training ends as by Ctrl-C, once it has saved a checkpoint: its first, or that of an epoch."""

    @contextmanager
    def stopped(epoch: int | None = None) -> Iterator[None]:
        save = Checkpoints.save

        def save_and_stop(checkpoints, model, optimizer, done, seconds):
            save(checkpoints, model, optimizer, done, seconds)
            if epoch in (None, done):
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "save", save_and_stop)
            yield

    return stopped


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is cached, and the hub is a port at which nobody answers. Returns the cache folder."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for module in ("constants", "file_download", "_snapshot_download"):
        # Old versions have a copy of the name in every module that uses it; to new ones, it is one that nobody reads.
        monkeypatch.setattr(f"huggingface_hub.{module}.HF_HUB_CACHE", str(cache), raising=False)
    return cache


@pytest.fixture(scope="session")
def model_options() -> Callable[..., ModelOptions]:
    """The model's options with their defaults, but for the given fields and meta-path weights such as ALPHA_PP."""

    def make(**changes: object) -> ModelOptions:
        metapath = {key: changes.pop(key) for key in metapath_defaults() if key in changes}
        return ModelOptions(metapath=metapath_defaults() | metapath, **changes)

    return make


@pytest.fixture(scope="session")
def unit_features() -> Callable[..., Tensor]:
    """Function of shape and seed: unit-norm features whose cosines have both signs."""

    def make(*shape: int, seed: int = 0) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)

    return make


@pytest.fixture
def tiny_bank(tmp_path: Path, unit_features: Callable[..., Tensor]) -> Path:
    """A bank file of 5 classes, 16 wide: per class 6 training (2 views each), 3 val and 8 test images.

    Images scatter around the centre of their class; text features lie further off it, so training has
    something to learn. Images of all classes are mixed, in an order fixed by the seed.
    """
    num_classes, width = 5, 16
    generator = torch.Generator().manual_seed(7)
    centres = unit_features(num_classes, width, seed=1)

    def near(points: Tensor, spread: float) -> Tensor:
        return F.normalize(points + spread * torch.randn(points.shape, generator=generator), dim=-1)

    def images(per_class: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(num_classes).repeat_interleave(per_class)
        labels = labels[torch.randperm(len(labels), generator=generator)]
        return near(centres[labels], 0.2), labels

    train_features, train_labels = images(6)
    val_features, val_labels = images(3)
    test_features, test_labels = images(8)
    bank = FeatureBank(
        train_features=torch.stack([near(train_features, 0.02), near(train_features, 0.02)]),
        train_labels=train_labels,
        val_features=val_features,
        val_labels=val_labels,
        test_features=test_features,
        test_labels=test_labels,
        text_positive=near(centres, 0.3),
        text_negative=near(-0.2 * centres + 0.9 * unit_features(1, width, seed=2), 0.05),
        classnames=["ant", "bee", "cow", "dog", "elk"],
        dataset="Tiny",
        backbone="none",
        logit_scale=100.0,
    )
    path = tmp_path / "tiny.safetensors"
    bank.save(path)
    return path

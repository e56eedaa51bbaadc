"""Fixtures of several test files: shared data, unit features, options of the method, small feature banks and runs."""

import json
import logging
import math
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from tools.warm_python import warm_python
from trainers.hegraph import FeatureBank, ModelOptions, UserError
from trainers.hegraph.features.backbones import identity
from trainers.hegraph.method.options import metapath_defaults
from trainers.hegraph.method.training.loop import Checkpoints

SEED = 4711  # of the random numbers of each test
QUICK = ("OPTIM.MAX_EPOCH", "3", "OPTIM.WARMUP_EPOCH", "0", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the tests that are marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the slow tests, but with --runslow, or where the command line names a test of a file (file.py::test)."""
    if config.getoption("--runslow") or any("::" in argument for argument in config.args):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --runslow"))


def begin_random_numbers() -> None:
    """Begin the random numbers of all libraries with the same seed."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Give each fixture the same random numbers, whichever tests ran before in this process."""
    begin_random_numbers()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Give each test the same random numbers, whichever tests ran before in this process."""
    begin_random_numbers()


@pytest.fixture(scope="session", autouse=True)
def accept_ctrl_c() -> Iterator[None]:
    """Accept SIGINT, which a shell ignores for a program started with `&`."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def no_bfloat16() -> None:
    """Make the precision "auto" mean float32 on any machine, except in tests of "auto"."""
    identity.CPU_INFO = Path("/none")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data that is not part of the repository, named by $HEGRAPH_SHARED."""
    folder = os.environ.get("HEGRAPH_SHARED")
    if not folder:
        pytest.skip("HEGRAPH_SHARED is not set: the shared data is not here")
    return Path(folder)


@pytest.fixture(scope="session")
def installed() -> None:
    """Skip a test if the package is not installed, so that its requirements are unknown."""
    try:
        distribution("hegraph-adapter")
    except PackageNotFoundError:
        pytest.skip("the package is not installed: pip install -e .")


@pytest.fixture(scope="session")
def refused() -> Callable[..., AbstractContextManager]:
    """Context that expects a `UserError` with a code, and with some words in its message, which is one line."""

    @contextmanager
    def refusal(code: str, *words: str) -> Iterator[None]:
        with pytest.raises(UserError) as caught:
            yield
        message = str(caught.value)
        assert caught.value.code == code, message
        assert "\n" not in message and all(word in message for word in words), message

    return refusal


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """A program that a test or a fixture of many tests starts in this process makes the package log more; undo that."""
    logging.getLogger("trainers.hegraph").setLevel(logging.NOTSET)
    yield
    logging.getLogger("trainers.hegraph").setLevel(logging.NOTSET)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch, on whose number the sizes of steps depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.fixture
def cli_error(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Function of a command line that must be refused: its only line. Nothing is printed to standard output."""
    from trainers.hegraph.__main__ import main

    def error_of(*words: object) -> str:
        capsys.readouterr()
        assert main([*map(str, words)]) == 2
        out, error = capsys.readouterr()
        assert (out, error[:7], error.count("\n")) == ("", "error: ", 1) and len(error) < 300, error
        return error

    return error_of


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
    """Replace the hub by a port without a server, with an empty cache. Returns the cache folder."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for module in ("constants", "file_download", "_snapshot_download"):
        # Old versions have a copy of the name in every module that uses it. New versions ignore it.
        monkeypatch.setattr(f"huggingface_hub.{module}.HF_HUB_CACHE", str(cache), raising=False)
    return cache


@pytest.fixture(scope="session")
def mini():
    """The embedded backbone."""
    from trainers.hegraph import load_backbone  # imports open_clip, which takes seconds, and few tests need it

    return load_backbone("hegraph-mini")


@pytest.fixture
def usual_size(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of `mini` count as images of usual size, so that steps have the smallest number of images."""
    monkeypatch.setattr("trainers.hegraph.features.backbones.base.USUAL_PIXELS", math.prod(mini.input_size))


@pytest.fixture
def images_only(mini, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of an encoder without text, the image tower of `mini`."""
    from trainers.hegraph.estimator.model_selection import backbones, candidates
    from trainers.hegraph.features.backbones import loading

    name = "timm:mini"
    load = loading.load_backbone

    def load_without_text(of: str, *arguments: str):
        if of != name:
            return load(of, *arguments)
        fingerprint = {**mini.fingerprint, "text": "none"}
        return replace(mini, name="mini without text", tokenizer=None, fingerprint=fingerprint)

    for module in (loading, backbones):
        monkeypatch.setattr(module, "load_backbone", load_without_text)
    for module in (backbones, candidates):
        monkeypatch.setattr(module, "local_weights", lambda of, tag: identity.MINI_WEIGHTS)
    return name


@pytest.fixture(scope="session")
def digits_images() -> tuple[list, list[str]]:
    """Three scans of each digit, and their labels."""
    from trainers.hegraph import load_few_shot

    digits = load_few_shot("Digits", root="", shots=3, seed=1)
    return [digits.open(item.path) for item in digits.train], [item.classname for item in digits.train]


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


@pytest.fixture(scope="session")
def tiny_bank_file(once: Callable[..., Path], unit_features: Callable[..., Tensor]) -> Path:
    """A bank file of 5 classes, 16 wide: per class 6 training (2 views each), 3 val and 8 test images.

    Images scatter around the centre of their class; text features lie further off it, so training has
    something to learn. Images of all classes are mixed, in an order fixed by the seed. No test changes the file.
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
    return once("tiny_bank", lambda folder: bank.save(folder / "tiny.safetensors")) / "tiny.safetensors"


@pytest.fixture
def tiny_bank(tiny_bank_file: Path, tmp_path: Path) -> Path:
    """Copy of `tiny_bank_file` that a test may change."""
    return Path(shutil.copy(tiny_bank_file, tmp_path / "tiny.safetensors"))


@pytest.fixture
def run(tiny_bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[dict, Path] | str]:
    """Function that runs 2 shots with seed 1 on a bank, with flags and options; returns the record and the folder.

    With an expected exit code other than 0, it returns the error output, which is one line for code 2.
    """
    from trainers.hegraph.__main__ import main
    from trainers.hegraph.commands.train import summary

    def start(*words: str, name: str = "run", bank: Path | None = tiny_bank, quick: tuple = QUICK, code: int = 0):
        out, source = tmp_path / name, [] if bank is None else ["--features", str(bank)]
        assert main([*source, "--shots", "2", "--seed", "1", "--output-dir", str(out), *words, *quick]) == code
        printed, stderr = capsys.readouterr()
        if code == 2:
            assert (printed, stderr[:7], stderr.count("\n")) == ("", "error: ", 1)
        if code:
            return stderr
        record = json.loads((out / "result.json").read_text())
        assert printed == f"{summary(record)} -> {out}\n"
        return record, out

    return start


# Programs and runs that are made once for all tests


@pytest.fixture(scope="session")
def python() -> Iterator[Path]:
    """Python interpreter that has imported the slow libraries, for tests that start many commands."""
    with warm_python() as program:
        yield program


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Function that returns a folder of a name, filled once by another function for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def finished_run_once(once: Callable[..., Path], tiny_bank_file: Path) -> Path:
    """Output folder of HeGraphAdapter with 2 shots of `tiny_bank_file`, seed 1 and 3 epochs; read-only."""
    flags = ["--features", str(tiny_bank_file), "--shots", "2", "--seed", "1"]
    return once("finished_run", lambda folder: trained(*flags, "--output-dir", str(folder), *QUICK))


@pytest.fixture
def finished_run(finished_run_once: Path, tmp_path: Path) -> Path:
    """Copy of `finished_run_once` that a test may change."""
    return Path(shutil.copytree(finished_run_once, tmp_path / "finished_run"))


@pytest.fixture(scope="session")
def digits_features(once: Callable[..., Path]) -> Path:
    """FEATURES.DIR with the features that tests have encoded on the digits with mini."""
    return once("digits_features", lambda folder: None)


@pytest.fixture(scope="session")
def finished_digits_once(once: Callable[..., Path], digits_features: Path) -> Path:
    """Output folder of HeGraphAdapter with 4 shots of the digits, seed 1, with thumbnails; read-only."""
    flags = ["--dataset-config-file", "digits", "--config-file", "mini", "--shots", "4", "--seed", "1"]
    keys = ["TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(digits_features)]
    return once(
        "finished_digits", lambda folder: trained(*flags, "--keep-thumbnails", "--output-dir", str(folder), *keys)
    )


@pytest.fixture
def finished_digits(finished_digits_once: Path, tmp_path: Path) -> Path:
    """Copy of `finished_digits_once` that a test may change."""
    return Path(shutil.copytree(finished_digits_once, tmp_path / "finished_digits"))


def trained(*arguments: str) -> None:
    from trainers.hegraph.__main__ import main

    assert main(list(arguments)) == 0

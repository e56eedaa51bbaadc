"""Processor time of `predict` and of `features extract` with ten views for JPEG photos of 12 megapixels.

Whole processes run in alternation: photos at full size, photos at the scale that the backbone needs (INPUT.DECODE), and
the same commands in another checkout, which the environment variable HEGRAPH_REFERENCE names, such as commit 8d43d2fa.
Their processor time hardly depends on other programs. The backbone has random weights, which are as fast as trained
ones.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from trainers.hegraph.features.backbones.open_clip_models import create_model
from trainers.hegraph.features.bank import load_bank

from .report import Report
from .timing import ROOT, ratio

SMALL = {"model": "ViT-S-32", "photos": 2, "extracted": 2, "views": 2, "size": (1000, 900), "repeats": 1}
REFERENCE = "HEGRAPH_REFERENCE"
PREDICT_BAR, EXTRACT_BAR, COSINE_BAR = 0.55, 0.4, 0.9999
DISTINCT = 10  # photos with different content; the others are copies
NODE = "TRAINER.HEGRAPHADAPTER"
FULL, REDUCED, BEFORE = "full size", "reduced", "reference"
Command = Callable[[], object]


def run(
    model: str = "ViT-B-32",
    photos: int = 100,
    extracted: int = 50,
    views: int = 10,
    size: tuple[int, int] = (4000, 3000),
    repeats: int = 2,
) -> Report:
    programs = {FULL: ROOT, REDUCED: ROOT}
    if reference := os.environ.get(REFERENCE):
        programs[BEFORE] = Path(reference)
    report = Report(
        f"{photos} JPEG photos of {size[0]} x {size[1]}, {model}, {torch.get_num_threads()} threads; "
        f"{extracted} photos in {views} views each",
        ["command", "photos", "processor time, s"],
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bundle(folder / "bundle", model)
        write_photos(folder / "photos" / "train" / "a", photos, size)
        write_photos(folder / "few" / "train" / "a", extracted, size)
        predictions = {program: predict_command(folder, program, root) for program, root in programs.items()}
        extractions = {program: extract_command(folder, program, root, views) for program, root in programs.items()}
        add_times(report, "predict", processor_times(predictions, repeats), PREDICT_BAR)
        add_times(report, "features extract", processor_times(extractions, repeats), EXTRACT_BAR)
        banks = {program: load_bank(bank_file(folder, program)).train_features for program in programs}
    cosines = (banks[FULL] * banks[REDUCED]).sum(dim=-1)
    report.at_least("smallest cosine of a view at full size and reduced", cosines.min().item(), COSINE_BAR)
    if reference:
        equal = float(torch.equal(banks[FULL], banks[BEFORE]))
        report.at_least("features at full size equal the reference, byte for byte", equal, 1)
    return report


def add_times(report: Report, name: str, seconds: dict[str, list[float]], bar: float) -> None:
    """Add the times of a command, and its ratio to the reference, if there is one, or else to the full size."""
    report.rows += [[name, program, statistics.median(times)] for program, times in seconds.items()]
    before = BEFORE if BEFORE in seconds else FULL
    report.at_most(f"{name}: reduced over {before}", ratio(seconds[REDUCED], seconds[before]), bar)


def processor_times(commands: dict[str, Command], repeats: int) -> dict[str, list[float]]:
    """Call functions that start processes in alternation; returns the processor seconds of each call's processes."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            started = seconds_of_children()
            command()
            seconds[name].append(seconds_of_children() - started)
    return seconds


def seconds_of_children() -> float:
    """Processor time of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def hegraph(root: Path, *arguments: object) -> None:
    """Run the command line of a checkout; RuntimeError if it fails."""
    command = [sys.executable, "-m", "trainers.hegraph", *map(str, arguments)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")


def options(folder: Path, program: str) -> list[object]:
    """Configuration keys of a program."""
    keys = ["MODEL.BACKBONE.NAME", f"local-dir:{folder / 'bundle'}", "MODEL.BACKBONE.PRETRAINED", ""]
    return keys if program == BEFORE else [*keys, "INPUT.DECODE", "auto" if program == REDUCED else "full"]


def predict_command(folder: Path, program: str, root: Path) -> Command:
    """Train a model on small images; returns a function that classifies the photos with it."""
    images = folder / "small"
    for label in ("a", "b"):
        write_photos(images / "train" / label, 2, (64, 48))
    output = folder / f"run {program}"
    data = ["--dataset-config-file", "folder", "--root", images, "--config-file", "vit_b32", "--output-dir", output]
    keys = [f"{NODE}.VARIANT", "training_free", f"{NODE}.FEATURES.DIR", folder / "features", *options(folder, program)]
    hegraph(root, *data, "--shots", 1, *keys)
    return partial(hegraph, root, "predict", output, folder / "photos", "--out", folder / f"{program}.csv")


def extract_command(folder: Path, program: str, root: Path, views: int) -> Command:
    """Return a function that encodes the photos in views, without features of earlier calls."""
    data = ["--dataset-config-file", "folder", "--root", folder / "few", "--config-file", "vit_b32"]
    bank = bank_file(folder, program)
    features = folder / "features"
    keys = [f"{NODE}.FEATURES.DIR", features, f"{NODE}.FEATURES.VIEWS", views, *options(folder, program)]

    def extract() -> None:
        bank.unlink(missing_ok=True)
        shutil.rmtree(features, ignore_errors=True)
        hegraph(root, "features", "extract", *data, "--out", bank, *keys)

    return extract


def bank_file(folder: Path, program: str) -> Path:
    return folder / f"{program}.safetensors"


def write_bundle(folder: Path, model: str) -> None:
    """Write the configuration and random weights of a model."""
    torch.manual_seed(0)
    network, _, _ = create_model(model)
    folder.mkdir()
    preprocessing = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    config = {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def write_photos(folder: Path, number: int, size: tuple[int, int]) -> None:
    """Write JPEG files of smooth colours with the noise of a camera."""
    folder.mkdir(parents=True, exist_ok=True)
    for position in range(min(number, DISTINCT)):
        generator = np.random.default_rng(position)
        colours = generator.integers(0, 256, (36, 48, 3), dtype=np.uint8)
        smooth = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
        noise = generator.normal(0, 4, (size[1], size[0], 1)).astype(np.float32)
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{position}.jpg", quality=90)
    for position in range(DISTINCT, number):
        (folder / f"{position}.jpg").write_bytes((folder / f"{position % DISTINCT}.jpg").read_bytes())

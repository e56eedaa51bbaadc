"""Prediction of image files with the command `predict`: throughput, and the time of one image.

Throughput is measured in one process, from paths to written rows, against the encoder alone on tensors in memory. The
time of one image is measured in whole processes, against a program that imports torch and open_clip, builds the model,
and encodes the image. The ViT has random weights, which are as fast as trained ones.
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.features.backbones.base import Backbone
from trainers.hegraph.features.backbones.identity import MINI_CONFIG, MINI_NAME, MINI_WEIGHTS
from trainers.hegraph.features.backbones.loading import load_backbone
from trainers.hegraph.features.backbones.open_clip_models import as_backbone, create_model
from trainers.hegraph.features.backbones.schema import BackboneConfig
from trainers.hegraph.features.images import ImageReader
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.models.folder import save_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.models.predict.files import image_paths
from trainers.hegraph.models.predict.prediction import default_batch_size, image_rows, write_rows
from trainers.hegraph.models.saved import SavedModel, Scores, TrainedOn

from .extraction import write_image
from .report import Report
from .tasks import unit_features
from .timing import alternate, process, python, ratio

SMALL = {"model": "ViT-S-32", "images": 2, "digits": 20, "batch": 2, "repeats": 1}
CLASSES, CACHED = 100, 1600

# Program with the necessary steps for one image. Arguments: name, configuration and weights of the model, and the image
ENCODE = """
import sys, torch, open_clip
from PIL import Image
from safetensors.torch import load_file
name, config, weights, image = sys.argv[1:]
open_clip.add_model_config(config)
model, _, preprocess = open_clip.create_model_and_transforms(name, load_weights=False)
model.load_state_dict(load_file(weights))
with torch.no_grad():
    print(model.eval().encode_image(preprocess(Image.open(image).convert("RGB"))[None]).norm().item())
"""


def run(model: str = "ViT-B-32", images: int = 128, digits: int = 7188, batch: int = 64, repeats: int = 5) -> Report:
    built = create_model(model)
    built[0].eval()
    random = as_backbone(model, built, {})
    mini = load_backbone(MINI_NAME)
    report = Report("Prediction of image files", ["program", "images/s or s"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs, scans = write_photographs(folder / "photographs", images), write_scans(folder / "digits", digits)
        throughput(report, random, photographs, batch, repeats)
        throughput(report, mini, scans, default_batch_size(mini.input_size), repeats)
        start(report, mini, next(scans.iterdir()), folder, repeats)
    return report


def write_photographs(folder: Path, number: int) -> Path:
    folder.mkdir()
    for position in range(number):
        write_image(folder, position)
    return folder


def write_scans(folder: Path, number: int) -> Path:
    folder.mkdir()
    for row in range(number):
        open_digit(f"digits/{row % 1797:04d}").save(folder / f"{row:05d}.png")
    return folder


def throughput(report: Report, backbone: Backbone, folder: Path, batch: int, repeats: int) -> None:
    """Add the rates of the command and of the encoder alone."""
    model = ImageModel(random_model(backbone, backbone.width), backbone)
    paths = list(image_paths([str(folder)]))
    pixels = [pixels for _, pixels, _ in ImageReader(backbone.preprocess).batches(paths, batch)]

    def predict() -> None:
        write_rows(
            image_rows(model, model.encode(image_paths([str(folder)]), batch)), folder.parent / "rows.csv", "csv"
        )

    alone = f"{backbone.name}, encoder alone"
    seconds = alternate(
        {alone: lambda: [backbone.encode_images(part) for part in pixels], f"{backbone.name}, predict": predict},
        repeats,
    )
    report.rows += [[name, len(paths) / statistics.median(s)] for name, s in seconds.items()]
    encoder, predicted = seconds.values()
    report.at_least(f"{backbone.name}: predict over encoder alone", ratio(encoder, predicted), 0.9)


def start(report: Report, backbone: Backbone, image: Path, folder: Path, repeats: int) -> None:
    """Add the times of whole processes that classify one image."""
    save_model(random_model(backbone, backbone.width), folder / "model")
    arguments = (MINI_NAME, str(MINI_CONFIG), str(MINI_WEIGHTS), str(image))
    encode: Callable[[], object] = partial(python, "-c", ENCODE, *arguments)
    predict = partial(process, "trainers.hegraph", "predict", str(folder / "model"), str(image))
    seconds = alternate({"one image, import and encode": encode, "one image, predict": predict}, repeats)
    report.rows += [[name, statistics.median(s)] for name, s in seconds.items()]
    encoded, predicted = seconds.values()
    report.at_most("one image: predict over import and encode", ratio(predicted, encoded), 1.3)


def random_model(backbone: Backbone, width: int) -> SavedModel:
    """Create a model with random weights and a cache, of the size of a run with 16 shots and 100 classes."""
    classifier = FoldedClassifier(
        weights=100 * unit_features(CLASSES, width),
        keys=unit_features(CACHED, width, seed=1),
        labels=torch.arange(CACHED) % CLASSES,
        alpha=1.0,
    )
    names = tuple(map(str, range(CLASSES)))
    model = MINI_NAME if backbone.fingerprint else ""
    return SavedModel(
        classifier=classifier,
        text_positive=unit_features(CLASSES, width, seed=2),
        classnames=names,
        class_ids=names,
        method="Random",
        variant="",
        logit_scale=100.0,
        backbone=BackboneConfig(
            title=backbone.name, model=model, precision=backbone.precision, fingerprint=backbone.fingerprint
        ),
        trained_on=TrainedOn(
            dataset="Random", shots=16, seed=1, num_train=CACHED, split_hash="", selected_on="last_step", selected={},
            config={}, host="alone", git_commit=None, versions={},
        ),
        scores=Scores(accuracy=None, accuracy_text=None, accuracy_zero_shot=None, macro_f1=None, num_test=0),
    )  # fmt: skip

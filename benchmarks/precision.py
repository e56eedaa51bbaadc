"""Encoding in bfloat16 against float32: the encoder alone, extraction, and prediction.

All encode the same JPEG files with the same random weights, in alternation. The cosine of the features of both
precisions is measured too.
"""

import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets.base import Dataset
from trainers.hegraph.datasets.images import open_below
from trainers.hegraph.features.backbones.base import Backbone
from trainers.hegraph.features.backbones.bundles import PREFIXES, TIMM, TRANSFORMERS
from trainers.hegraph.features.backbones.identity import has_fast_bfloat16
from trainers.hegraph.features.backbones.loading import load_backbone
from trainers.hegraph.features.backbones.open_clip_models import create_model
from trainers.hegraph.features.extract import encode_images
from trainers.hegraph.features.images import ImageViews
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.models.predict.files import image_paths
from trainers.hegraph.models.predict.prediction import image_rows, write_rows

from .extraction import SIZE, write_image
from .predict_images import random_model
from .report import Report
from .timing import alternate, ratio

MODELS = {"ViT-B-32-quickgelu": 64, "ViT-B-16-quickgelu": 16, "RN50-quickgelu": 16}  # images
DINOV2, TINY_DINOV2 = f"{TRANSFORMERS}dinov2", f"{TRANSFORMERS}tiny-dinov2"
CONFIGS: dict[str, dict[str, int]] = {  # of models of transformers
    DINOV2: {},  # of the size of its base model
    TINY_DINOV2: {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
}
MODELS |= {f"{TIMM}vit_base_patch16_224.augreg_in21k": 16, DINOV2: 16}
SMALL = {"models": {"RN50": 2, f"{TIMM}test_vit.r160_in1k": 2, TINY_DINOV2: 2}, "repeats": 1}
FASTER, OF_ENCODER = 2.7, 0.85
# Largest distances of the least and the mean cosine from 1
SUMS_IN_FP32, WHOLE_IN_BF16 = (5e-4, 1e-4), (2e-3, 1e-3)
PROGRAMS = "encoder alone", "extract", "predict"


def run(models: Mapping[str, int] = MODELS, repeats: int = 2) -> Report:
    warning = "" if has_fast_bfloat16("cpu") else "; THIS CPU DOES NOT MULTIPLY BFLOAT16"
    title = f"JPEG files of {SIZE[0]} x {SIZE[1]} in two batches, {torch.get_num_threads()} threads{warning}"
    columns = [
        "model",
        "images",
        "program",
        "fp32, images/s",
        "bf16, images/s",
        "bf16 over fp32",
        "over bf16 encoder alone",
    ]
    report = Report(title, columns)
    for model, images in models.items():
        measure(report, model, images, images // 2, repeats)
    report.title += f"; load {os.getloadavg()[0]:.1f} at the end"
    return report


def measure(report: Report, model: str, images: int, batch: int, repeats: int) -> None:
    """Add the rows of a model, and the targets of the first one."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        arguments = write_random_weights(model, root)
        exact, fast = (load_backbone(*arguments, "cpu", precision) for precision in ("fp32", "bf16"))
        functions = {
            (backbone.precision, way): function
            for backbone in (exact, fast)
            for way, function in functions_of(backbone, root / backbone.precision, images, batch, repeats).items()
        }
        seconds = alternate({" ".join(key): function for key, function in functions.items()}, repeats)
        cosines = (functions["fp32", PROGRAMS[0]]() * functions["bf16", PROGRAMS[0]]()).sum(dim=1)
    alone = seconds[f"bf16 {PROGRAMS[0]}"]
    has_targets = not report.rows
    for way in PROGRAMS:
        slow, quick = seconds[f"fp32 {way}"], seconds[f"bf16 {way}"]
        faster, share = ratio(slow, quick), ratio(alone, quick)
        rates = [images / statistics.median(each) for each in (slow, quick)]
        report.rows.append([model, images, way, *rates, faster, share])
        if has_targets and way != PROGRAMS[0]:
            report.at_least(f"{way}: bf16 over fp32", faster, FASTER)
            report.at_least(f"{way}: bf16 over its encoder alone", share, OF_ENCODER)
    least, mean = WHOLE_IN_BF16 if model.startswith(PREFIXES) else SUMS_IN_FP32
    report.at_most(f"{model}: 1 - least cosine of bf16 and fp32", 1 - cosines.min().item(), least)
    report.at_most(f"{model}: 1 - mean cosine of bf16 and fp32", 1 - cosines.mean().item(), mean)


def write_random_weights(model: str, root: Path) -> tuple[str, str]:
    """Write random weights of a model; returns the arguments `name` and `pretrained` of `load_backbone`."""
    if model in CONFIGS:
        from transformers import BitImageProcessor, Dinov2Config, Dinov2Model  # an extra

        Dinov2Model(Dinov2Config(image_size=224, **CONFIGS[model])).save_pretrained(root)
        BitImageProcessor(size={"shortest_edge": 256}, crop_size=224).save_pretrained(root)
        return f"{TRANSFORMERS}{root}", ""
    if model.startswith(TIMM):
        import timm  # an extra

        network = timm.create_model(model.removeprefix(TIMM))
    else:
        network, _, _ = create_model(model)
    file = root / "w.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    return model, str(file)


def functions_of(
    backbone: Backbone, root: Path, images: int, batch: int, repeats: int
) -> dict[str, Callable[[], torch.Tensor]]:
    """Functions to time for a backbone, by name."""
    root.mkdir()
    folder = root / "images"
    folder.mkdir()
    items = [write_image(folder, number) for number in range(images)]
    dataset = Dataset("Random", ["noise"], items, [], [], partial(open_below, folder, as_stored=True), folder)
    views = ImageViews(dataset, items, backbone.preprocess)
    pixels = list(views.batches(range(images), batch))
    encoding = load_cfg(opts=["DATALOADER.TEST.BATCH_SIZE", batch]).encoding
    model = ImageModel(random_model(backbone, backbone.width), backbone)
    banks = iter(range(repeats + 1))

    def predict() -> torch.Tensor:
        rows = image_rows(model, model.encode(image_paths([str(folder)]), batch))
        return torch.tensor(write_rows(rows, root / "rows.csv", "csv"))

    return {
        PROGRAMS[0]: lambda: torch.cat([backbone.encode_images(part) for part in pixels]),
        PROGRAMS[1]: lambda: encode_images(backbone, views, encoding, root / f"bank{next(banks)}", "train"),
        PROGRAMS[2]: predict,
    }

"""Multi-label head: fit with all selections, and prediction against a text classifier with one label per image."""

import statistics
import time

import torch
import torch.nn.functional as F

from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.head.multilabel import MultiLabelHead

from .report import Report
from .tasks import unit_features
from .timing import alternate, peak_memory, ratio

SMALL = {"images": 50, "num_classes": 10, "width": 16, "predicted": 30, "repeats": 1}
LABELS = 3  # largest number of labels of an image
FIT, SEVERAL, ONE = "fit", "predict, several labels", "predict, one label"


@torch.no_grad()
def run(
    images: int = 100_000, num_classes: int = 1000, width: int = 512, predicted: int = 4096, repeats: int = 7
) -> Report:
    generator = torch.Generator().manual_seed(0)
    text, features = unit_features(num_classes, width, seed=1), unit_features(images, width, seed=2)
    classes = torch.randint(num_classes, (images, LABELS), generator=generator)
    labels = torch.zeros(images, num_classes, dtype=torch.bool).scatter_(1, classes, True)
    for column in classes.unbind(dim=1):  # an image lies near the texts of its labels
        features += 0.5 * text[column]
    features = F.normalize(features, dim=1)
    started = time.perf_counter()
    head = MultiLabelHead.fit(features, labels, text)
    fit, memory = time.perf_counter() - started, peak_memory()
    queries = features[:predicted]
    several, one = head.classifier, FoldedClassifier(100 * text, torch.zeros(num_classes))
    thresholds = head.log_odds(head.thresholds).float()
    seconds = alternate(
        {ONE: lambda: one.logits(queries).argmax(dim=1), SEVERAL: lambda: several.logits(queries) >= thresholds},
        repeats,
    )
    report = Report(
        f"Several labels per image: {images} images, K = {num_classes}, d = {width}; prediction of {predicted} images",
        ["step", "seconds"],
        [[FIT, fit], *([name, statistics.median(s)] for name, s in seconds.items())],
    )
    report.at_most("fit, seconds", fit, 20.0)
    report.at_most("peak memory, bytes", memory, 4e9)
    report.at_most("several labels over one label", ratio(seconds[SEVERAL], seconds[ONE]), 1.05)
    return report

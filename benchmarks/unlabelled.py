"""Adaptation to unlabelled images: seconds of all rounds without imports, and peak memory of the process.

The features are random vectors near the centre of their class, in float32.
"""

import json

from .report import Report
from .timing import python

SMALL = {"images": 500, "num_classes": 10, "width": 16}
SECONDS_BAR, MEMORY_BAR = 60.0, 3e9
PROGRAM = """
import json, resource, time
import torch
import torch.nn.functional as F
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.unlabelled import ClassSums
from trainers.hegraph.method.unlabelled import adapt_to_unlabelled

images, num_classes, width = {images}, {num_classes}, {width}
generator = torch.Generator().manual_seed(1)
centres = F.normalize(torch.randn(num_classes, width, generator=generator), dim=1)

def near(labels):
    features = torch.randn(len(labels), width, generator=generator).mul_(1.4 / width**0.5).add_(centres[labels])
    return F.normalize(features, dim=1, out=features)

known = torch.arange(num_classes).repeat(4)
labelled = ClassSums.of(near(known), known, num_classes)
features = near(torch.randint(num_classes, (images,), generator=generator))
began = time.monotonic()
adapted = adapt_to_unlabelled(FoldedClassifier(60 * centres), labelled, centres, features, 100.0, 1.0)
seconds = time.monotonic() - began
assert adapted.logits.isfinite().all()
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def run(images: int = 100_000, num_classes: int = 1000, width: int = 512) -> Report:
    _, output = python("-c", PROGRAM.format(images=images, num_classes=num_classes, width=width))
    seconds, peak = json.loads(output)
    report = Report(
        f"{images} unlabelled images of {num_classes} classes, {width} wide",
        ["quantity", "value"],
        [["seconds", seconds], ["peak memory of the process, MB", peak / 1e6]],
    )
    report.at_most("seconds", seconds, SECONDS_BAR)
    report.at_most("peak memory, bytes", peak, MEMORY_BAR)
    return report

"""Teach page: seconds from a change until the model, the check and the suggestions are updated.

The features are random vectors near the centre of their class, so nothing is encoded. Images are moved to other
classes, and each time the folder is read and the change is written.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from .report import Report

SMALL = {"num_classes": 3, "images": 2, "unlabelled": 5, "width": 16, "changes": 2}
BAR = 1.0  # seconds


def run(num_classes: int = 20, images: int = 16, unlabelled: int = 200, width: int = 512, changes: int = 7) -> Report:
    from trainers.hegraph.apps.teach.project import Project
    from trainers.hegraph.apps.teach.session import Session
    from trainers.hegraph.features.backbones.loading import load_backbone

    centres = F.normalize(torch.randn(num_classes, width, generator=torch.Generator().manual_seed(1)), dim=1)
    names = [f"class {number:02d}" for number in range(num_classes)]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_classes * images + unlabelled):
            place = f"train/{names[number % num_classes]}" if number < num_classes * images else "unlabelled"
            path = Path(folder, place, f"{number:05d}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2), (number % 256, number // 256, 0)).save(path)
        project = Project(Path(folder))
        session = Session(project, load_backbone("hegraph-mini"), "hegraph-mini")
        noise = torch.randn(num_classes * images + unlabelled, width, generator=torch.Generator().manual_seed(2))
        for picture in project.read().pictures():
            number = int(picture.path[-9:-4])
            near = centres[number % num_classes] + noise[number] / width**0.5
            session.encoded_images.features[picture.digest] = F.normalize(near, dim=0)
        session._text._nodes = {("images", name): (row, -row) for name, row in zip(names, centres)}
        seconds = []
        for number in range(changes):
            picture = project.read().classes[names[0]][0 if number else -1]
            started = time.monotonic()
            project.move([picture], names[1 + number % (num_classes - 1)])
            for _ in session.update():
                pass
            next(session.evaluate())
            seconds.append(time.monotonic() - started)
    view = session.view
    assert view.evaluated == num_classes * images
    assert len(view.suggestions) == min(unlabelled, 24)
    figure = statistics.median(seconds[1:])  # the first one warms up
    title = f"A change at {num_classes} classes of {images} images and {unlabelled} without a label, {width} wide"
    report = Report(title, ["statistic", "seconds"], [["median", figure], ["longest", max(seconds[1:])]])
    report.at_most("seconds until the model is updated", figure, BAR)
    return report

"""What a model makes of a project: features of its images, a model after every change, and what that says of them.

The model is the training-free variant, which is fitted to the features again after each change, in a fraction of a
second.

Shapes: N labelled images, M without a label, K classes, d feature width.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..backbones.clip import Backbone
from ..backbones.identity import MINI_NAME
from ..config import Config
from ..datasets.digits import CLASSNAMES, load_digits_dataset
from ..datasets.images import open_image, reason
from ..estimator.training import NO_NAME, Origin, learn, make_configuration
from ..features.bank import NORM_TOLERANCE
from ..features.extract import encode_prompts
from ..labels import SUSPICIOUS
from ..labels.issues import LabelIssue, free_options, issues_of, left_out_logits
from ..labels.suggest import suggest
from ..method.closed_form import left_out_offsets
from ..models.saved import Backbone as BackboneConfig
from ..models.saved import Preprocessing, SavedModel
from ..models.support_set import SupportSet
from ..utils.errors import UserError, first_line
from ..utils.files import atomic_path, hash_json, write_tensors, writing_folder
from ..utils.reading import read_tensors
from ..utils.threads import cores
from .project import OWN, TRAIN, UNLABELLED, Contents, Picture, Project

logger = logging.getLogger(__name__)

BATCH = 16  # images that are encoded before the page is told
SECONDS = 2.0  # between two writes of the features, while images are encoded
SIDE = 96  # pixels of a thumbnail
LISTED = 24  # images that are worth labelling, and such whose label seems wrong
VARIANT = "TRAINER.HEGRAPHADAPTER.VARIANT"
SAMPLE, SAMPLE_TRAIN = 180, 3  # images of the digits that a new folder begins with: all, and those labelled of a class


class Guess(NamedTuple):
    """An image's likeliest class, its probability, and the share of images of known classes that score lower."""

    picture: Picture
    label: str
    probability: float
    share_below: float | None


@dataclass(frozen=True)
class View:
    """What a page shows of a project.

    Attributes:
        number: Grows with every view.
        contents: What the folder holds, without the images that cannot be read.
        waiting: How many images had still to be encoded.
        problems: Images that cannot be read, and why.
        model: None where there are fewer than two classes.
        right, judged: How many images a model without the image classifies rightly, and how many there are.
        confused: Pairs of a class and what its images are taken for, with how often, the most frequent first.
        doubts: The images whose labels seem wrong, and why, the most suspicious first.
        guesses: Images without a label, the one that is most worth labelling first.
    """

    number: int
    contents: Contents
    waiting: int = 0
    problems: list[str] = field(default_factory=list)
    model: SavedModel | None = None
    right: int = 0
    judged: int = 0
    confused: list[tuple[str, str, int]] = field(default_factory=list)
    doubts: list[tuple[Picture, LabelIssue]] = field(default_factory=list)
    guesses: list[Guess] = field(default_factory=list)


class Session:
    """A project with its backbone, which was loaded by `name` and `pretrained`. Several tabs may use it at once.

    Attributes:
        thumbnails: The folder of the small pictures.
        stopping: Set, it ends the encoding in all tabs, after the batch that is being encoded.
        view: The last view.
    """

    def __init__(self, project: Project, backbone: Backbone, name: str, pretrained: str = "") -> None:
        self.project, self.backbone, self.name = project, backbone, name
        config = BackboneConfig.of(backbone, name, pretrained)
        self.origin = Origin(config, Preprocessing.of(backbone), backbone.logit_scale, prompted=True)
        self.thumbnails = project.at(f"{OWN}/thumbnails/any").parent  # UserError if that is a link
        self._text: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}  # by data set and class
        self._unreadable: dict[str, str] = {}
        self.stopping, self._lock = threading.Event(), threading.RLock()
        self._file = project.folder / OWN / "features.safetensors"
        self._key = hash_json(backbone.fingerprint)
        self.features = self._read_features()
        self._written, self._written_at = len(self.features), 0.0  # rows on disk, and when they were written
        self._writing = threading.RLock()
        self._seen: object = None
        self.view = View(0, project.read())

    # Encoding

    def update(self) -> Iterator[View]:
        """Views until all is done: of what the folder holds with the images that are encoded so far, and after each
        batch of those that are left, the labelled ones first. UserError if the folder cannot be read, or the features
        cannot be written in the end. What is encoded is on disk `SECONDS` later, and when the generator is closed.
        """
        ends = False
        try:
            while not ends:
                with self._lock:
                    contents = self.project.read()
                    labelled = [picture for pictures in contents.classes.values() for picture in pictures]
                    missing = self._missing(labelled + contents.unlabelled)
                    ends = not missing or self.stopping.is_set()
                    if (seen := (contents, not self._missing(labelled), ends)) != self._seen:
                        self.view, self._seen = self._look(contents), seen
                    self.view = replace(self.view, waiting=len(missing), number=self.view.number + 1)
                    if not ends:
                        self._encode(missing[:BATCH])
                if ends:
                    self.save()
                elif time.monotonic() - self._written_at >= SECONDS:
                    with suppress(UserError):  # on a full disk the images are still encoded
                        self.save()
                yield self.view
        finally:
            with suppress(UserError):
                self.save()

    def save(self) -> None:
        """Writes the features to disk if there are new ones; UserError if that fails."""
        with self._writing:
            features = dict(self.features)  # another tab may add some meanwhile
            if len(features) != self._written:
                write_tensors(self._file, features, {"backbone": self._key})
                self._written, self._written_at = len(features), time.monotonic()

    def model(self) -> SavedModel:
        """The last model; UserError if there is none."""
        if self.view.model is None:
            raise UserError("there is no model yet: add two classes")
        return self.view.model

    def thumbnail(self, picture: Picture) -> Path | None:
        """The file of a small picture of an image, which is made if it is not there; None if it cannot be made."""
        path = self.thumbnails / f"{picture.digest}.png"
        if not path.is_file():
            self._pixels(picture)
        return path if path.is_file() else None

    def _missing(self, pictures: list[Picture]) -> list[Picture]:
        """One picture for each image that has still to be encoded."""
        found = {picture.digest: picture for picture in pictures}
        return [found[digest] for digest in found if digest not in self.features and digest not in self._unreadable]

    def _encode(self, pictures: list[Picture]) -> None:
        with ThreadPoolExecutor(cores()) as pool:
            read = dict(zip(pictures, pool.map(self._pixels, pictures)))
        self._unreadable |= {p.digest: f"{p.path} {said}" for p, said in read.items() if isinstance(said, str)}
        pixels = {p.digest: image for p, image in read.items() if isinstance(image, Tensor)}
        if pixels:
            rows = self.backbone.encode_images(torch.stack([*pixels.values()]))
            self.features |= zip(pixels, (row.clone() for row in rows))

    def _pixels(self, picture: Picture) -> Tensor | str:
        """An image as the backbone takes it, whose thumbnail is written as well, or why it cannot be read."""
        try:
            image = open_image(self.project.data(picture))
            pixels = self.backbone.preprocess(image)
            image.thumbnail((SIDE, SIDE))
            with suppress(UserError), atomic_path(self.thumbnails / f"{picture.digest}.png") as temporary:
                image.save(temporary, "PNG")  # on a full disk there is none
            return pixels
        except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
            return reason(error)

    def _read_features(self) -> dict[str, Tensor]:
        """The features that an earlier session has written, by SHA-256; none if they are of another backbone, or if the
        file cannot be used, which is logged.
        """
        if self._file.is_symlink() or not self._file.exists():
            return {}
        try:
            features, about = read_tensors(self._file, "features of images")
            if about.get("backbone") != self._key:
                return {}
            for row in features.values():
                if row.dtype != torch.float32 or row.shape != (self.backbone.width,):
                    came = f"{row.dtype} {list(row.shape)}".removeprefix("torch.")
                    raise UserError(f"{self._file}: expected float32 rows [{self.backbone.width}], got {came}")
                if not abs(row.norm() - 1) <= NORM_TOLERANCE:  # also where it is NaN
                    raise UserError(f"{self._file}: expected rows of norm 1, got {row.norm():.3g}")
            return features
        except UserError as error:
            logger.warning("%s; the images are encoded again", first_line(error))
            return {}

    # The model

    def _look(self, contents: Contents) -> View:
        """The model of what the folder holds, and what it says."""
        names = sorted(contents.classes)
        pictures = {
            (picture.digest, label): picture
            for label, name in enumerate(names)
            for picture in contents.classes[name]
            if picture.digest in self.features
        }
        problems = [self._unreadable[p.digest] for p in contents.pictures() if p.digest in self._unreadable]
        contents = contents.readable(self._unreadable)
        view = View(self.view.number, contents, problems=problems)
        if len(names) < 2:
            return view
        support_set = self._support_set(names, pictures)
        model = learn(support_set, self.origin, self._configuration(names, int(support_set.counts.max())), "cpu")
        view = replace(view, model=model, guesses=self._guesses(model, contents))
        return self._judged(view, support_set, list(pictures.values()))

    def _support_set(self, names: list[str], images: Collection[tuple[str, int]]) -> SupportSet:
        """What is taught: the classes, and images as SHA-256 and class."""
        cfg = self._configuration(names, 1)
        dataset = cfg.data.name or NO_NAME
        new = [name for name in names if (dataset, name) not in self._text]
        if new:
            with tempfile.TemporaryDirectory() as folder:
                text = encode_prompts(self.backbone, dataset, new, cfg.encoding, Path(folder))
            self._text |= zip([(dataset, name) for name in new], zip(text["positive"], text["negative"]))
        positive, negative = (torch.stack(nodes) for nodes in zip(*(self._text[dataset, name] for name in names)))
        rows = [self.features[digest] for digest, _ in images]
        features = torch.stack(rows) if rows else positive[:0]
        labels = torch.tensor([label for _, label in images], dtype=torch.long)
        ids = torch.zeros_like(labels)
        return SupportSet(np.array(names), tuple(names), features[None], labels, ids, positive, negative)

    def of_digits(self, names: Collection[str]) -> bool:
        """Whether classes of these names are the embedded digits, as the embedded backbone knows them."""
        return self.name == MINI_NAME and bool(names) and set(names) <= set(CLASSNAMES)

    def _configuration(self, names: Collection[str], shots: int) -> Config:
        files = ("digits" if self.of_digits(names) else "", "mini" if self.name == MINI_NAME else "")
        named = {"DATASET.NUM_SHOTS": max(shots, 1), VARIANT: "training_free"}
        return make_configuration(files, named, None, 1, "")

    def _judged(self, view: View, support_set: SupportSet, pictures: list[Picture]) -> View:
        """A view with what models without an image say of it, for each of the images of the lessons."""
        if (support_set.counts > 0).sum() < 2 or support_set.positive is None:
            return view
        features, labels, text, names = (
            support_set.features[0],
            support_set.labels,
            support_set.positive,
            support_set.names,
        )
        options, scale = free_options(int(support_set.counts.max())), self.origin.logit_scale
        logits = left_out_logits(features, labels, text, scale, options)
        offsets = left_out_offsets(scale * (features @ text.t()).double(), labels)
        left_out = (logits + offsets).argmax(dim=1)
        pairs = Counter((names[a], names[b]) for a, b in zip(labels.tolist(), left_out.tolist()) if a != b)
        issues = [issue for issue in issues_of(logits, labels, names) if issue.score > SUSPICIOUS]
        doubts = [(pictures[issue.index], issue) for issue in issues]
        return replace(
            view,
            right=int((left_out == labels).sum()),
            judged=len(labels),
            confused=[(*pair, count) for pair, count in pairs.most_common(LISTED)],
            doubts=[(p, issue) for p, issue in doubts if p.digest not in view.contents.kept][:LISTED],
        )

    def _guesses(self, model: SavedModel, contents: Contents) -> list[Guess]:
        """The images without a label that are most worth labelling; none that is labelled elsewhere."""
        known = contents.classes_of()
        waiting = {p.digest: p for p in contents.unlabelled if p.digest in self.features and p.digest not in known}
        if not waiting:
            return []
        features = torch.stack([self.features[digest] for digest in waiting])
        chosen, pictures = suggest(model, features, LISTED), list(waiting.values())
        logits = model.classifier.logits(features[chosen])
        best, labels = model.calibrate(logits).max(dim=1)
        return [
            Guess(pictures[place], model.classnames[label], probability, model.share_below(row))
            for place, label, probability, row in zip(chosen, labels.tolist(), best.tolist(), logits)
        ]


def write_sample(folder: Path) -> None:
    """A new folder of the digits: a few scans of each class, and more without a label."""
    dataset = load_digits_dataset()
    seen: Counter[str] = Counter()
    with writing_folder(folder) as new:
        for item in dataset.train[:SAMPLE]:
            seen[item.classname] += 1
            place = f"{TRAIN}/{item.classname}" if seen[item.classname] <= SAMPLE_TRAIN else UNLABELLED
            (new / place).mkdir(parents=True, exist_ok=True)
            dataset.open(item.path).save(new / place / f"scan-{item.path[-4:]}.png")

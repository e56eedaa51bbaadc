"""Session of the teach page: encodes the images of a project, trains a model after every change, and evaluates it.

Labels are checked and the accuracy is measured by leave-one-out (`labels/left_out.py`). Unlabelled images are ordered
by `labels/suggest.py`.
"""

import logging
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...config import Config
from ...datasets.base import check_classes
from ...datasets.digits import CLASSNAMES, load_digits_dataset
from ...datasets.images import open_image, pixel_hash, reason
from ...estimator.incremental import support_set_of
from ...estimator.labels import SUSPICIOUS
from ...estimator.labels.issues import LabelIssue, rank_labels
from ...estimator.labels.left_out import leave_one_out
from ...estimator.labels.suggest import suggest
from ...estimator.model_selection.backbones import TIMED_IMAGES, Candidate, Encoded, Result, compare, read_candidates
from ...estimator.training import NO_NAME, Origin, make_configuration, train_model
from ...features.backbones.clip import Backbone
from ...features.backbones.identity import AUTO, MINI_NAME
from ...features.backbones.loading import load_backbone
from ...features.backbones.schema import BackboneConfig
from ...features.bank import has_unit_norm
from ...features.extract import encode_prompts
from ...models.saved import Preprocessing, SavedModel
from ...models.support_set import SupportSet
from ...utils.errors import UserError, first_line
from ...utils.files import atomic_path, hash_json, write_json, write_tensors, writing_folder
from ...utils.reading import read_tensors
from ...utils.threads import map_in_threads
from .project import STATE_FOLDER, TRAIN, UNLABELLED, Contents, Picture, Project

logger = logging.getLogger(__name__)

BATCH = 16  # images that are encoded between two updates of the page
SAVE_SECONDS = 2.0  # between two writes of the features while images are encoded
THUMBNAIL_SIDE = 384  # in pixels; tiny images, such as scans, are enlarged to at least half of it
ENCODER_FILE = f"{STATE_FOLDER}/encoder.json"  # backbone of the next session
MAX_LISTED = 24  # suggestions, and suspicious labels
TRIED_AT_ONCE = 8  # suspicious labels whose change is tried between two updates of the page
VARIANT = "TRAINER.HEGRAPHADAPTER.VARIANT"
SAMPLE_SIZE, SAMPLE_SHOTS = 180, 3  # scans in the sample folder, and labelled ones of each class


class Suggestion(NamedTuple):
    """Unlabelled image with its predicted class.

    Attributes:
        probability: Probability of the class.
        share_below: Fraction of images of known classes with a lower score; None if unknown.
    """

    picture: Picture
    label: str
    probability: float
    share_below: float | None


@dataclass(frozen=True)
class View:
    """State of a project, as the page shows it.

    Attributes:
        number: Version of the view, which grows by 1.
        contents: Contents of the folder, without unreadable images.
        waiting: Number of images that are not encoded yet.
        problems: Unreadable images, each with the reason.
        model: Trained model; None with fewer than two classes.
        backbone: Backbone of the model.
        correct, evaluated: Leave-one-out: number of correctly classified images, and of all images.
        before: Leave-one-out accuracy before the last change of the images; None if unknown.
        neediest: Class that needs images most, with the numbers of its correctly classified images and of its images.
        confusions: Leave-one-out errors as (label, predicted class, number of images), most frequent first.
        issues: Images with suspicious labels, most suspicious first.
        corrected: `correct` after the label of an issue, by its path, is changed to the suggested one.
        suggestions: Unlabelled images, most useful first.
        trained_on: Images of the model's support set, in its order.
    """

    number: int
    contents: Contents
    waiting: int = 0
    problems: list[str] = field(default_factory=list)
    model: SavedModel | None = None
    backbone: Backbone | None = None
    correct: int = 0
    evaluated: int = 0
    before: float | None = None
    neediest: tuple[str, int, int] | None = None
    confusions: list[tuple[str, str, int]] = field(default_factory=list)
    issues: list[tuple[Picture, LabelIssue]] = field(default_factory=list)
    corrected: dict[str, int] = field(default_factory=dict)
    suggestions: list[Suggestion] = field(default_factory=list)
    trained_on: list[Picture] = field(default_factory=list)

    @property
    def accuracy(self) -> float | None:
        """Leave-one-out accuracy, from 0 to 1; None without images in two classes."""
        return self.correct / self.evaluated if self.evaluated else None


class Session:
    """Project with a backbone. Several tabs may share a session.

    Args:
        project: Folder of images.
        backbone: Loaded backbone.
        name, pretrained: Arguments with which the backbone was loaded.

    Attributes:
        thumbnails: Folder of the thumbnails.
        backbone, name: The current backbone, and the name with which it was loaded.
        features: Unit-norm image features `[d]` by the SHA-256 of the file.
        features_file: File of the features of the current backbone.
        stopping: Event that stops the encoding in all tabs after the current batch.
        view: Latest view.
    """

    def __init__(self, project: Project, backbone: Backbone, name: str, pretrained: str = "") -> None:
        self.project = project
        self.thumbnails = project.path_of(f"{STATE_FOLDER}/thumbnails/any").parent  # UserError if the folder is a link
        self._unreadable: dict[str, str] = {}  # SHA-256 -> reason
        self.stopping, self._lock = threading.Event(), threading.RLock()
        self.view = View(0, project.read())
        self._use(backbone, name, pretrained)

    # Backbone

    def _use(self, backbone: Backbone, name: str, pretrained: str) -> None:
        """Set the current backbone, and read its features of earlier sessions."""
        self.backbone, self.name = backbone, name
        config = BackboneConfig.of(backbone, name, pretrained)
        self.origin = Origin(config, Preprocessing.of(backbone), backbone.logit_scale, prompted=True)
        self._text: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}  # (data set, class) -> text nodes
        self._key = hash_json(backbone.fingerprint)
        self.features_file = self.project.folder / STATE_FOLDER / f"features-{self._key[:16]}.safetensors"
        self.features = self._read_features()
        self._saved, self._saved_at = len(self.features), 0.0  # number of features on disk, and time of the last write
        self._seen: object = None  # input of the latest training

    def switch(self, name: str, pretrained: str) -> None:
        """Continue with another backbone, also in later sessions; the features of the current one stay on disk.

        Raises:
            UserError: As of `load_backbone`, or if features cannot be written.
        """
        backbone = load_backbone(name, pretrained, str(self.backbone.device), AUTO)
        with self._lock:
            self.save()
            self._use(backbone, name, pretrained)
        self.remember()

    def remember(self) -> None:
        """Write the backbone to the file that the next session reads."""
        write_json(self.project.path_of(ENCODER_FILE), self.origin.backbone.model_dump())

    def compare(self, offline: bool) -> list[Result]:
        """Compare the current backbone and the listed candidates on the labelled images; results as of `compare`.

        Args:
            offline: Whether to skip candidates whose weights are not on this machine.

        Raises:
            UserError: If the project has fewer than two classes with images.
        """
        contents = self.project.read()
        names = sorted(name for name, pictures in contents.classes.items() if pictures)
        check_classes(len(names))
        own = Candidate(name=self.name, tag=self.origin.backbone.pretrained)
        listed = [candidate for candidate in read_candidates() if str(candidate) != str(own)]

        def encode(candidate: Candidate) -> Encoded:
            session = self
            if candidate != own:
                backbone = load_backbone(candidate.name, candidate.tag, str(self.backbone.device), AUTO)
                session = Session(self.project, backbone, candidate.name, candidate.tag)
            labelled = [picture for name in names for picture in contents.classes[name]]
            with session._lock:
                missing = session._missing(labelled)
                for start in range(0, len(missing), BATCH):
                    session._encode(missing[start : start + BATCH])
                session.save()
                pictures = session._encoded(names, contents)
                images = session._support_set(names, pictures)
            sample = [open_image(self.project.read_bytes(p)) for p in [*pictures.values()][:TIMED_IMAGES]]
            return Encoded(session.backbone, images.features[0], images.labels, cast(Tensor, images.positive), sample)

        return compare([own, *listed], encode, offline)

    # Encoding

    def update(self) -> Iterator[View]:
        """Encode new images, labelled ones first, and train the model. Yields a view after each batch and at the end.

        Features are saved every `SAVE_SECONDS` and when the generator is closed.

        Raises:
            UserError: If the folder cannot be read, or the features cannot be written at the end.
        """
        done = False
        try:
            while not done:
                with self._lock:
                    contents = self.project.read()
                    labelled = [picture for pictures in contents.classes.values() for picture in pictures]
                    missing = self._missing(labelled + contents.unlabelled)
                    done = not missing or self.stopping.is_set()
                    if (seen := (contents, not self._missing(labelled), done)) != self._seen:
                        complete, old = self.view.waiting == 0, self.view
                        self.view, self._seen = self._train(contents), seen
                        self.view = replace(self.view, before=old.accuracy if complete else old.before)
                    self.view = replace(self.view, waiting=len(missing), number=self.view.number + 1)
                    if not done:
                        self._encode(missing[:BATCH])
                if done:
                    self.save()
                elif time.monotonic() - self._saved_at >= SAVE_SECONDS:
                    with suppress(UserError):  # a full disk does not stop the encoding
                        self.save()
                yield self.view
        finally:
            with suppress(UserError):
                self.save()

    def try_changes(self) -> Iterator[View]:
        """Evaluate the model after a change of each suspicious label. Yields a view after every `TRIED_AT_ONCE` labels.

        It stops if the images change. Labels that are in `View.corrected` are not tried again.
        """
        view, corrected = self.view, dict[str, int]()
        if view.model is None:
            return
        support_set = support_set_of(view.model)
        untried = [(picture, issue) for picture, issue in view.issues if picture.path not in view.corrected]
        for start in range(0, len(untried), TRIED_AT_ONCE):
            for picture, issue in untried[start : start + TRIED_AT_ONCE]:
                labels = support_set.labels.clone()
                labels[issue.index] = support_set.names.index(issue.suggested)
                if len(labels.unique()) > 1:
                    _, predicted = leave_one_out_of(view.model, labels)
                    corrected[picture.path] = int((predicted == labels).sum())
                if self.view.model is not view.model:
                    return
            with self._lock:
                if self.view.model is not view.model:
                    return
                tried = self.view.corrected | corrected
                self.view = replace(self.view, corrected=tried, number=self.view.number + 1)
            yield self.view  # without the lock: Gradio may continue in another thread, which cannot release it

    def save(self) -> None:
        """Write new features to disk. Raise UserError if that fails."""
        with self._lock:
            if len(self.features) != self._saved:
                write_tensors(self.features_file, self.features, {"backbone": self._key})
                self._saved, self._saved_at = len(self.features), time.monotonic()

    def model(self) -> tuple[SavedModel, Backbone]:
        """Latest model with its backbone, which may differ from the current one. Raise UserError if there is none."""
        view = self.view
        if view.model is None or view.backbone is None:
            raise UserError("there is no model yet: add two classes")
        return view.model, view.backbone

    def model_to_export(self) -> SavedModel:
        """Latest model, with the hashes by which `train-more` recognises its images; UserError if there is none."""
        with self._lock:
            (model, _), pictures = self.model(), self.view.trained_on
        ids = map_in_threads(lambda picture: pixel_hash(open_image(self.project.read_bytes(picture))), pictures)
        return model.model_copy(update={"image_ids": tuple(ids)})

    def thumbnail(self, picture: Picture) -> Path | None:
        """File of the thumbnail of an image, made if missing; None for an image that is not encoded."""
        path = self._thumbnail_file(picture)
        if not path.is_file() and picture.digest in self.features:
            self._pixels(picture)
        return path if path.is_file() else None

    def _thumbnail_file(self, picture: Picture) -> Path:
        return self.thumbnails / f"{picture.digest}.jpg"

    def _missing(self, pictures: list[Picture]) -> list[Picture]:
        """Readable images without features, each image once."""
        by_digest = {picture.digest: picture for picture in pictures}
        return [by_digest[key] for key in by_digest if key not in self.features and key not in self._unreadable]

    def _encode(self, pictures: list[Picture]) -> None:
        read = dict(zip(pictures, map_in_threads(self._pixels, pictures)))
        for picture, problem in read.items():
            moved = not (self.project.folder / picture.path).exists()  # meanwhile; it is read again at its new place
            if isinstance(problem, str) and not moved:
                self._unreadable[picture.digest] = f"{picture.path} {problem}"
        pixels = {p.digest: image for p, image in read.items() if isinstance(image, Tensor)}
        if pixels:
            rows = self.backbone.encode_images(torch.stack([*pixels.values()]))
            self.features |= zip(pixels, (row.clone() for row in rows))

    def _pixels(self, picture: Picture) -> Tensor | str:
        """Preprocess an image for the backbone and write its thumbnail; returns the reason if it is unreadable."""
        try:
            image = open_image(self.project.read_bytes(picture))
            pixels = self.backbone.preprocess(image)
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            factor = max(1, THUMBNAIL_SIDE // (2 * max(image.size)))
            image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
            with suppress(UserError), atomic_path(self._thumbnail_file(picture)) as temporary:
                image.save(temporary, "JPEG", quality=85)  # on a full disk the page shows the file name
            return pixels
        except Exception as error:  # Pillow raises many types for damaged bytes
            return reason(error)

    def _read_features(self) -> dict[str, Tensor]:
        """Read the features of an earlier session by SHA-256.

        The result is empty if another backbone made them, or, with a warning, if the file is unusable.
        """
        if self.features_file.is_symlink() or not self.features_file.exists():
            return {}
        try:
            features, metadata = read_tensors(self.features_file, "features of images")
            if metadata.get("backbone") != self._key:
                return {}
            for row in features.values():
                norm, shape = row.float().norm(), [self.backbone.width]
                if row.dtype != torch.float32 or list(row.shape) != shape or not has_unit_norm(norm):
                    got = f"{row.dtype} {list(row.shape)} of norm {norm:.3g}".removeprefix("torch.")
                    raise UserError(f"{self.features_file}: expected float32 rows {shape} of norm 1, got {got}")
            return features
        except UserError as error:
            logger.warning("%s; the images are encoded again", first_line(error))
            return {}

    # Model

    def _train(self, contents: Contents) -> View:
        """Train and evaluate a model of the encoded images."""
        names = sorted(contents.classes)
        pictures = self._encoded(names, contents)
        problems = [self._unreadable[p.digest] for p in contents.pictures() if p.digest in self._unreadable]
        contents = contents.without(self._unreadable)
        view = View(self.view.number, contents, problems=problems)
        if len(names) < 2:
            return view
        support_set = self._support_set(names, pictures)
        model = train_model(support_set, self.origin, self._configuration(names, int(support_set.counts.max())), "cpu")
        labelled = [*pictures.values()]
        suggestions = self._suggestions(model, contents)
        view = replace(view, model=model, backbone=self.backbone, suggestions=suggestions, trained_on=labelled)
        return evaluated(view)

    def _encoded(self, names: list[str], contents: Contents) -> dict[tuple[str, int], Picture]:
        """Encoded images of the classes `names`, by SHA-256 and label."""
        return {
            (picture.digest, label): picture
            for label, name in enumerate(names)
            for picture in contents.classes[name]
            if picture.digest in self.features
        }

    def _support_set(self, names: list[str], images: Collection[tuple[str, int]]) -> SupportSet:
        """Support set of the classes `names` and of images, each as SHA-256 and label."""
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

    def has_digits(self, names: Collection[str]) -> bool:
        """Whether the classes are those of the embedded digits and the backbone is the embedded one."""
        return self.name == MINI_NAME and bool(names) and set(names) <= set(CLASSNAMES)

    def _configuration(self, names: Collection[str], shots: int) -> Config:
        files = ("digits" if self.has_digits(names) else "", "mini" if self.name == MINI_NAME else "")
        values = {"DATASET.NUM_SHOTS": max(shots, 1), VARIANT: "training_free"}
        return make_configuration(files, values, None, 1, "")

    def _suggestions(self, model: SavedModel, contents: Contents) -> list[Suggestion]:
        """Unlabelled images that are most useful to label. An image that also lies in a class is left out."""
        labelled = contents.classes_of()
        pool = {p.digest: p for p in contents.unlabelled if p.digest in self.features and p.digest not in labelled}
        if not pool:
            return []
        features = torch.stack([self.features[digest] for digest in pool])
        chosen, pictures = suggest(model, features, MAX_LISTED), list(pool.values())
        logits = model.classifier.logits(features[chosen])
        best, labels = model.calibrate(logits).max(dim=1)
        return [
            Suggestion(pictures[position], model.classnames[label], probability, model.share_below(row))
            for position, label, probability, row in zip(chosen, labels.tolist(), best.tolist(), logits)
        ]


def evaluated(view: View) -> View:
    """Add the leave-one-out accuracy, confusions and label issues of the model to a view.

    The view is unchanged if it has no model, or fewer than two classes have images.
    """
    if view.model is None:
        return view
    support_set = support_set_of(view.model)
    labels, names, counts = support_set.labels, support_set.names, support_set.counts
    if (counts > 0).sum() < 2:
        return view
    logits, predicted = leave_one_out_of(view.model, labels)
    pairs = Counter((names[a], names[b]) for a, b in zip(labels.tolist(), predicted.tolist()) if a != b)
    ranked = [(view.trained_on[issue.index], issue) for issue in rank_labels(logits, labels, names)]
    issues = [(p, issue) for p, issue in ranked if issue.score > SUSPICIOUS and p.digest not in view.contents.confirmed]
    right = labels[predicted == labels].bincount(minlength=len(names)).tolist()
    return replace(
        view,
        correct=sum(right),
        evaluated=len(labels),
        neediest=find_neediest(names, right, counts.tolist()),
        confusions=[(*pair, count) for pair, count in pairs.most_common(MAX_LISTED)],
        issues=issues[:MAX_LISTED],
    )


def leave_one_out_of(model: SavedModel, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and predictions of `leave_one_out` for the support set of a model with other labels."""
    support_set = support_set_of(model)
    return leave_one_out(support_set.features[0], labels, cast(Tensor, support_set.positive), model.logit_scale)


def find_neediest(names: Sequence[str], correct: Sequence[int], counts: Sequence[int]) -> tuple[str, int, int]:
    """Find the class that needs images most: one without images, else the one with the lowest accuracy.

    The accuracy is estimated by Laplace's rule of succession, `(correct + 1) / (count + 2)`.

    Returns:
        Name, number of correctly classified images, and number of images of the class.
    """
    rows = [
        (count > 0, (right + 1) / (count + 2), count, name, right) for name, right, count in zip(names, correct, counts)
    ]
    _, _, count, name, right = min(rows)
    return name, right, count


def write_sample(folder: Path) -> None:
    """Write a sample folder: `SAMPLE_SHOTS` labelled scans of each digit, and unlabelled ones."""
    dataset = load_digits_dataset()
    counts: Counter[str] = Counter()
    with writing_folder(folder) as new:
        for item in dataset.train[:SAMPLE_SIZE]:
            counts[item.classname] += 1
            place = f"{TRAIN}/{item.classname}" if counts[item.classname] <= SAMPLE_SHOTS else UNLABELLED
            (new / place).mkdir(parents=True, exist_ok=True)
            dataset.open(item.path).save(new / place / f"scan-{item.path[-4:]}.png")

"""Session of the teach page: encodes new images, trains a model after every change, and evaluates it.

`encoded_images.py` has the features of the images. `view.py` has the state that the page shows, and the evaluation,
which takes seconds for thousands of images. `worker.py` calls `update` and `evaluate` in two threads. Unlabelled images
are ordered by `estimator/labels/suggest.py`.
"""

import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch

from ...config import Config
from ...datasets.decoding import REDUCED
from ...datasets.digits import CLASSNAMES
from ...datasets.images import open_image, pixel_hash
from ...estimator.incremental import support_set_of
from ...estimator.labels.suggest import suggest
from ...estimator.training import Origin, make_configuration, train_model
from ...features.backbones.base import Backbone
from ...features.backbones.identity import AUTO, MINI_NAME
from ...features.backbones.loading import load_backbone
from ...features.backbones.schema import BackboneConfig
from ...features.bank import mean_count
from ...features.options import NO_PROMPTS
from ...models.saved import Preprocessing, SavedModel
from ...models.support_set import SupportSet
from ...utils.errors import UserError
from ...utils.files import write_json
from ...utils.option import NODE
from ...utils.threads import map_in_threads
from .class_text import ClassText
from .contents import Contents, Picture
from .encoded_images import EncodedImages
from .encoders import StoredEncoder
from .groups import groups_of_pictures
from .interruption import Interrupted, Interruptible
from .journal import STATE_FOLDER
from .project import Project
from .view import CONFIDENT, MAX_LISTED, MAX_TRIED_WORK, Suggestion, View, evaluation_of, has_same_training, held_out_of

UPDATE_SECONDS = 0.5  # of encoding between two updates of the page
ENCODER_FILE = f"{STATE_FOLDER}/encoder.json"  # backbone of the next session
TRIED_AT_ONCE = 8  # suspicious labels whose change is tried between two updates of the page
VARIANT = f"{NODE}.VARIANT"
PROMPTS_SOURCE = f"{NODE}.PROMPTS.SOURCE"


class Session:
    """Project with a backbone. Several tabs may share a session.

    Args:
        project: Folder of images.
        backbone: Loaded backbone.
        name, pretrained: Arguments with which the backbone was loaded.
        uses_names: Whether class names are encoded as text; otherwise images alone define the classes.
        group_pattern: Well-formed pattern that finds the group of an image in its path; "" for no groups.

    Attributes:
        backbone, name: The current backbone, and the name with which it was loaded.
        encoded_images: Images that the current backbone has encoded.
        stopping: Event that stops the encoding in all tabs after the current batch.
        outdated: Event that ends the evaluation of an earlier model.
        view: Latest view.
    """

    def __init__(
        self,
        project: Project,
        backbone: Backbone,
        name: str,
        pretrained: str = "",
        uses_names: bool = True,
        group_pattern: str = "",
    ) -> None:
        self.project = project
        self.uses_names = uses_names
        self.group_pattern = group_pattern
        self._unreadable: dict[str, str] = {}  # SHA-256 -> reason, with any backbone
        self.stopping = threading.Event()
        self.outdated = threading.Event()
        self._lock = threading.RLock()  # of features and training, held for up to a second
        self._view_lock = threading.RLock()  # of the view
        self._readings = count(1)
        self._shown = 0  # number of the latest reading that the view shows
        self.view = View(0, project.read())
        self._use(backbone, name, pretrained)

    # Backbone

    def _use(self, backbone: Backbone, name: str, pretrained: str) -> None:
        """Set the current backbone, and read its features of earlier sessions."""
        backbone = backbone.with_decoding(REDUCED)
        self.encoded_images = EncodedImages(self.project, backbone, self._unreadable)
        self.backbone = backbone
        self.name = name
        config = BackboneConfig.of(backbone, name, pretrained)
        self.origin = Origin(config, Preprocessing.of(backbone), backbone.logit_scale, prompted=self.has_text)
        self._text = ClassText(backbone)
        self._seen: object = None  # input of the latest training

    @property
    def has_text(self) -> bool:
        """Whether the classes of the model have text."""
        return self.uses_names and self.backbone.has_text

    def switch(self, name: str, pretrained: str) -> None:
        """Continue with another backbone, also in later sessions; the features of the current one stay on disk.

        Raises:
            UserError: As in `load_backbone`, or if features cannot be written.
        """
        backbone = load_backbone(name, pretrained, str(self.backbone.device), AUTO)
        with self._lock:
            self.save()
            self._use(backbone, name, pretrained)
        self.remember()

    def remember(self) -> None:
        """Write the backbone, the use of names and the pattern of groups to the file that the next session reads."""
        backbone = self.origin.backbone.model_dump()
        stored = StoredEncoder(**backbone, uses_names=self.uses_names, group_pattern=self.group_pattern)
        write_json(self.project.path_of(ENCODER_FILE), stored.model_dump(), self.project.folder)

    def encoded_support_set(
        self, names: list[str], contents: Contents, pictures: list[Picture]
    ) -> tuple[SupportSet, list[Picture]]:
        """Encode images of the classes `names`; returns their support set, and its images in the same order."""
        with self._lock:
            self.encoded_images.encode_all(pictures)
            encoded = self.encoded_images.of_classes(names, contents)
            return self._support_set(names, encoded), [*encoded.values()]

    # Updates

    def refresh(self, quick: bool = False) -> Contents:
        """Read the folder, as `Project.read`, and show its contents; the model follows in `update`.

        Raises:
            UserError: If the folder cannot be read.
        """
        reading = next(self._readings)
        contents = self.project.read(quick)
        shown = contents.without(self._unreadable)
        with self._view_lock:
            if reading > self._shown and shown != self.view.contents:
                self._publish(contents=shown, problems=self.encoded_images.problems(contents))
            self._shown = max(reading, self._shown)
        return contents

    def update(self) -> Iterator[View]:
        """Encode new images, labelled ones first, and train the model. Yields a view at least after each second.

        Features are saved every few seconds, as in `EncodedImages.save_in_time`, and when the generator is closed.

        Raises:
            UserError: If the folder cannot be read, or the features cannot be written at the end.
        """
        done = False
        try:
            while not done:
                contents = self.refresh()
                with self._lock:
                    labelled = [picture for pictures in contents.classes.values() for picture in pictures]
                    missing = self.encoded_images.missing(labelled + contents.unlabelled)
                    done = not missing or self.stopping.is_set()
                    seen = (contents, not self.encoded_images.missing(labelled), done)
                    if seen != self._seen:
                        old = self.view
                        self._publish(**self._train(contents))
                        if not has_same_training(old, self.view):
                            self.outdated.set()
                        self._seen = seen
                    if len(missing) != self.view.waiting:
                        self._publish(waiting=len(missing))
                    if done:
                        self.encoded_images.save()
                    else:
                        self.encoded_images.encode_for(UPDATE_SECONDS, missing, self.stopping)
                        self.encoded_images.save_in_time()
                yield self.view
        finally:
            with suppress(UserError):
                self.save()

    def evaluate(self) -> Iterator[View]:
        """Evaluate the latest model, then evaluate it after a change of each suspicious label.

        Yields a view after the evaluation and after every `TRIED_AT_ONCE` labels. It ends if another model is trained.
        Labels that are in `View.corrected` are not tried again, and none is tried if that takes more than
        `MAX_TRIED_WORK`.
        """
        self.outdated.clear()
        view = self.view
        try:
            if not view.is_evaluated:
                with Interruptible(self.outdated):
                    fields = evaluation_of(view)
                with self._view_lock:
                    if not has_same_training(view, self.view):
                        return
                    self._publish(**fields, before=self.view.accuracy, is_evaluated=True)
                yield self.view  # without the lock: the caller may continue in another thread, which cannot release it
            yield from self._try_changes(self.view)
        except Interrupted:
            return

    def _try_changes(self, view: View) -> Iterator[View]:
        """Evaluate the model of a view after a change of each suspicious label, as in `evaluate`."""
        if view.model is None or view.evaluated**2 * len(view.scores) > MAX_TRIED_WORK:
            return
        corrected: dict[str, int] = {}
        support_set = support_set_of(view.model)
        untried = [(picture, issue) for picture, issue in view.issues if picture.path not in view.corrected]
        for start in range(0, len(untried), TRIED_AT_ONCE):
            for picture, issue in untried[start : start + TRIED_AT_ONCE]:
                labels = support_set.labels.clone()
                labels[issue.index] = support_set.names.index(issue.suggested)
                if len(labels.unique()) > 1:
                    with Interruptible(self.outdated):
                        predicted = held_out_of(view.model, view.trained_on, labels)
                    corrected[picture.path] = int((predicted == labels).sum())
            with self._view_lock:
                if not has_same_training(view, self.view):
                    return
                self._publish(corrected=self.view.corrected | corrected)
            yield self.view

    def _publish(self, **changes: Any) -> None:
        """Show a view with other fields and the next number."""
        with self._view_lock:
            self.view = replace(self.view, number=self.view.number + 1, **changes)

    def save(self) -> None:
        """Write new features to disk. Raise UserError if that fails."""
        with self._lock:
            self.encoded_images.save()

    def model(self) -> tuple[SavedModel, Backbone]:
        """Latest model with its backbone, which may differ from the current one. Raise UserError if there is none."""
        view = self.view
        if view.model is None or view.backbone is None:
            wanted = "two classes" if self.has_text else "images to two classes"
            raise UserError(f"there is no model yet: add {wanted}")
        return view.model, view.backbone

    def model_to_export(self) -> SavedModel:
        """Latest model, with the hashes by which `train-more` recognises its images; UserError if there is none."""
        with self._lock:
            model, _ = self.model()
            pictures = self.view.trained_on
        ids = map_in_threads(lambda picture: pixel_hash(open_image(self.project.read_bytes(picture))), pictures)
        return model.model_copy(update={"image_ids": tuple(ids)})

    # Model

    def _train(self, contents: Contents) -> dict[str, Any]:
        """Train a model of the encoded images; returns the fields of `View` that change."""
        names = sorted(contents.classes)
        pictures = self.encoded_images.of_classes(names, contents)
        if not self.has_text:  # images alone define a class
            labelled = {label for _, label in pictures}
            names = [name for label, name in enumerate(names) if label in labelled]
            pictures = self.encoded_images.of_classes(names, contents)
        old = self.view
        fields: dict[str, Any] = {"model": None, "backbone": None, "trained_on": [], "ranked": [], "confident": []}
        fields["problems"] = self.encoded_images.problems(contents)
        if len(names) >= 2:
            support_set = self._support_set(names, pictures)
            shots = mean_count(support_set.counts.tolist())
            model = train_model(support_set, self.origin, self._configuration(names, shots), "cpu")
            fields |= {"model": model, "backbone": self.backbone, "trained_on": [*pictures.values()]}
            fields |= self._suggestions(model, contents.without(self._unreadable))
        trained = replace(old, **fields)
        fields["is_evaluated"] = old.is_evaluated and old.number > 0 and has_same_training(old, trained)
        return fields

    def _support_set(self, names: list[str], images: dict[tuple[str, int], Picture]) -> SupportSet:
        """Support set of the classes `names` and of images, by SHA-256 and label."""
        rows = [self.encoded_images.features[digest] for digest, _ in images]
        features = torch.stack(rows) if rows else torch.zeros(0, self.backbone.width)
        labels = torch.tensor([label for _, label in images], dtype=torch.long)
        ids = torch.zeros_like(labels)
        positive = negative = None
        if self.has_text:
            positive, negative = self._text.nodes(names, self._configuration(names, 1))
        groups = groups_of_pictures(images.values(), self.group_pattern)
        classes = np.array(names)
        return SupportSet(classes, tuple(names), features[None], labels, ids, positive, negative, groups=groups)

    def has_digits(self, names: Collection[str]) -> bool:
        """Whether the classes are those of the embedded digits and the backbone is the embedded one."""
        return self.name == MINI_NAME and bool(names) and set(names) <= set(CLASSNAMES)

    def _configuration(self, names: Collection[str], shots: int) -> Config:
        data_file = "digits" if self.has_digits(names) else ""
        method_file = "mini" if self.name == MINI_NAME else ""
        values: dict[str, Any] = {"DATASET.NUM_SHOTS": max(shots, 1), VARIANT: "training_free"}
        if not self.has_text:
            values[PROMPTS_SOURCE] = NO_PROMPTS
        return make_configuration((data_file, method_file), values, None, 1)

    def _suggestions(self, model: SavedModel, contents: Contents) -> dict[str, Any]:
        """Suggest unlabelled images; returns the fields `ranked` and `confident` of `View`.

        An image that also lies in a class is left out.
        """
        labelled = contents.classes_of()
        encoded = self.encoded_images.features
        pool = {p.digest: p for p in contents.unlabelled if p.digest in encoded and p.digest not in labelled}
        if not pool:
            return {}
        pictures = list(pool.values())
        features = torch.stack([encoded[digest] for digest in pool])
        logits = model.classifier.logits(features)
        best, labels = model.calibrate(logits).max(dim=1)

        def suggestion(position: int) -> Suggestion:
            label = model.classnames[int(labels[position])]
            return Suggestion(pictures[position], label, float(best[position]), model.share_below(logits[position]))

        probable = map(suggestion, (best >= CONFIDENT).nonzero()[:, 0].tolist())
        return {
            "ranked": [suggestion(position) for position in suggest(model, features, MAX_LISTED)],
            "confident": [(each.picture, each.label) for each in probable if not each.is_unusual],
        }

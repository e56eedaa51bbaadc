"""Prediction of a fitted classifier: labels, probabilities, scores, unknown classes, label issues and suggestions.

Shapes: n images, K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import average_precision_score
from sklearn.utils import Tags, check_consistent_length
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor

from ..models.images import ImageModel
from ..models.saved import SavedModel
from ..utils.devices import choose_device
from ..utils.errors import UserError
from ..utils.reading import Size, validate
from .classes import check_label_array
from .incremental import KEYS
from .inputs import as_array, checked_features, checked_groups, checked_X_y, image_list, unit_rows
from .labels.issues import LabelIssue, find_label_issues
from .labels.suggest import suggest

BACKBONE_BATCH = 256  # images that the backbone encodes at once


class PredictionMixin(ClassifierMixin, BaseEstimator):
    """Methods of `HeGraphClassifier` that use the model and do not change it.

    Attributes:
        backbone, pretrained, device, precision, options, variant: Parameters of `HeGraphClassifier`.
        classes_, model_: The sorted labels and the model.
        _fitted: The model before an adaptation to unlabelled images.
        _image_model: The model with its loaded backbone; None until the first image.
    """

    backbone: str | None
    pretrained: str
    device: str | None
    precision: str | None
    options: Mapping[str, Any] | Sequence[Any] | None
    variant: str | None

    classes_: np.ndarray
    model_: SavedModel
    _fitted: SavedModel
    _image_model: ImageModel | None

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits, shape `[n, K]`; for two classes, the difference of the second and the first, shape `[n]`."""
        logits = self._logits(X).numpy()
        if logits.shape[1] == 2 and not self._multilabel():
            return logits[:, 1] - logits[:, 0]
        return logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes in the order of `classes_`, shape `[n, K]`.

        With several labels per image, each is the probability of a label, and they do not add up to 1.
        """
        logits = self._logits(X)  # checks that the classifier is fitted
        return self.model_.calibrate(logits).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Most probable class of each image, shape `[n]`; with several labels per image, indicators `[n, K]`."""
        logits = self._logits(X)
        if self.model_.thresholds is not None:
            return (logits >= self.model_.thresholds).numpy().astype(int)
        return self.classes_[logits.argmax(dim=1).numpy()]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy or, with several labels per image, mAP: the mean average precision of the classes in `y`.

        With several labels per image, UserError if `y` has no label, or a label that is not in `classes_`.
        """
        if not self._multilabel():
            return super().score(X, y, sample_weight)
        X, y, classes = checked_X_y(self, X, y, reset=False, columns=self.classes_.tolist())
        tested = y.any(axis=0)
        if not tested.any() or not np.isin(classes[tested], self.classes_).all():
            raise UserError(f"expected labels of classes_ in y, got {classes[tested].tolist()[:5]}")
        scores = self.decision_function(X)[:, np.searchsorted(self.classes_, classes[tested])]
        return average_precision_score(y[:, tested], scores, average="macro", sample_weight=sample_weight)

    def is_known(self, X: Any, rate: float = 0.95) -> np.ndarray:
        """Open-set rejection: whether each image is accepted as one of the classes, booleans of shape `[n]`.

        `rate` is the fraction of images of known classes to accept. UserError if it is out of range, or the model has
        no scores of known images.
        """
        logits = self._logits(X)
        return self.model_.is_known(logits, rate).numpy()

    def predict_set(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Prediction sets: classes that contain the class of a new image with the probability `coverage`.

        The coverage holds on average over the classes, for new images of the same kind and sources. The predicted class
        is always in the set.

        Args:
            X: Images or features, as in `fit`.
            coverage: Probability, between 0 and 1. UserError if it needs more held-out images than `fit` had, or the
                model has several labels per image.

        Returns:
            Booleans of shape `[n, K]`, with the classes in the order of `classes_`.
        """
        check_is_fitted(self, "model_")
        self.model_.set_threshold(coverage)  # before the images are encoded
        features = self._encoded(X)
        return self.model_.prediction_sets(features.cpu(), self._logits_of(features), coverage).numpy()

    def suggest(self, X: Any, n: int = 20) -> list[int]:
        """Active learning: positions of at most n unlabelled images to label next, best first.

        Classes without labels get a typical image first. Then classes with few labels get their least certain image.
        UserError if n is not a positive number, or the model has several labels per image.
        """
        check_is_fitted(self, "model_")
        n = validate(Size, n, "n", convert=True)
        return suggest(self._fitted, self._encoded(X).cpu(), n)

    def label_issues(self, X: Any, y: Any, groups: Any = None) -> list[LabelIssue]:
        """Find label errors by leave-one-out prediction with the training-free variant.

        Only classes and text of the model are used, so the images need not be those of `fit`.

        Args:
            X: Images or features, as in `fit`.
            y: Labels of at least two classes in `classes_`. UserError for one class, other labels, or a model with
                several labels per image.
            groups: Group of each image, such as its video, as in `fit`. An image is judged without the images of its
                group, which look alike and may share a wrong label. None without groups.

        Returns:
            A `LabelIssue(index, label, suggested, score)` for each image, the most suspicious first. A score above 0
            means that another class is more probable.
        """
        check_is_fitted(self, "model_")
        self.model_.check_single_label("label_issues")
        features = self._encoded(X).cpu()
        y = as_array(y)
        check_label_array(y)
        y = column_or_1d(y)
        check_consistent_length(features, y)
        classes = self.classes_.tolist()
        unknown = sorted(set(y.tolist()) - set(classes), key=str)
        if unknown:
            raise UserError(f"expected labels of classes_ in y, got {unknown[:5]}")
        labels = torch.tensor([classes.index(label) for label in y.tolist()])
        model = self.model_
        text = model.known_text
        numbers = checked_groups(groups, len(labels))
        return find_label_issues(features, labels, text, model.logit_scale, classes, model.trusts_text, numbers)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self.variant == "training_free"
        return tags

    def _encoded(self, X: Any) -> Tensor:
        """Encode `X` as unit-norm features `[n, d]`; several views are averaged."""
        images = image_list(X)
        if images is None:
            X, _ = checked_features(self, X)
            if X.shape[1] == 1:
                return unit_rows(X[:, 0])
            return unit_rows(unit_rows(X).mean(dim=1).numpy())
        if self._image_model is None:
            backbone = (self.backbone, self.pretrained) if self.backbone else ("", "")
            own = None if KEYS["precision"] in (self.options or ()) else self.precision  # `options` has precedence
            precision = own or self.model_.backbone.precision
            self._image_model = ImageModel.load(self.model_, self._device(), *backbone, precision)
        return self._image_model.features(images, BACKBONE_BATCH)

    def _logits(self, X: Any) -> Tensor:
        """Logits on the CPU, shape `[n, K]`.

        Computed in float64, so that logits of an image do not depend on the number of images.
        """
        check_is_fitted(self, "model_")
        return self._logits_of(self._encoded(X))

    def _logits_of(self, features: Tensor) -> Tensor:
        """Logits of unit-norm features `[n, d]` as in `_logits`."""
        features = features.to(self._device(), torch.float64)
        return self.model_.classifier.to(features.device, torch.float64).logits(features).cpu()

    def _device(self) -> str:
        return choose_device(self.device, "device")

    def _multilabel(self) -> bool:
        """Whether the model has several labels per image; False before `fit`."""
        return hasattr(self, "model_") and self.model_.thresholds is not None

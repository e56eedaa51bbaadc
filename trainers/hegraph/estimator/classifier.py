"""HeGraphAdapter as a scikit-learn classifier.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence, Sized
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import InstanceOf
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor

from ..backbones.identity import AUTO
from ..features.bank import mean_over_views
from ..labels.issues import LabelIssue, find_label_issues
from ..labels.suggest import suggest
from ..models.folder import load_model, save_model
from ..models.hub import find_model, push_model
from ..models.images import ImageModel
from ..models.saved import SavedModel, adapt
from ..models.support_set import SupportSet
from ..utils.devices import choose_device
from ..utils.errors import UserError
from ..utils.reading import Size, validate
from .inputs import Names, as_array, checked_features, class_names, image_list, labelled, unit_rows, with_labels
from .incremental import KEYS, Added, Teacher, image_ids, support_set_of
from .training import recipe_of

BATCH = 256  # images that the backbone encodes at once


@dataclass(eq=False, repr=False)
class HeGraphClassifier(ClassifierMixin, BaseEstimator):
    """Adapts a frozen CLIP to classes of which a few images are at hand. docs/python.md tells more.

    `X` is one of three things, and may be another one in `predict` than it was in `fit`: image features `[n, d]`, or
    `[n, V, d]` with V augmented views of each image, as an array or a tensor, whose rows are scaled to unit norm; a
    list of n paths of image files; or a list of n PIL images. Paths and pictures are encoded by the backbone.

    Without `text_features`, a backbone encodes the prompts of the class names. Where there is none either, a positive
    text node is the mean feature of its class and a negative one the negative of it.

    Methods raise scikit-learn's ValueError, TypeError or NotFittedError where it refuses `X`, `y` or the state, and a
    UserError, which is a ValueError that names the argument, for anything else that is wrong.

    Args:
        backbone: An open_clip model, "hf-hub:ORGANISATION/NAME", "local-dir:FOLDER" or "mini", which `fit`
            loads. None takes that of the configuration, and only where something has to be encoded.
        pretrained: Its weights: an open_clip tag or a file; "auto" takes those that come with the model, or OpenAI's.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU if there is one.
        precision: "auto", "fp32", "bf16", "fp16" or "amp" (docs/backbones.md); None leaves it to the configuration.
        config, dataset_config: YAML of the method and of the data set, by whose name templates and descriptions are
            found: a path, or the name of a file that ships, such as "mini" and "digits".
        options: Configuration keys, as a dict or as a list `[KEY, VALUE, ...]`; they win over everything.
        variant, alpha_c, beta_c: Keys of these names, or None.
        classnames: Names of the K classes in the order of `classes_`, or a dict from labels to names; None takes the
            labels as names.
        text_features, negative_text_features: Text features in the order of `classes_`, shape `[K, d]`.
        logit_scale: CLIP's `tau`; None takes that of the backbone, or else 100.
        random_state: Seed of everything random. None or a generator of NumPy draws one.

    Attributes:
        classes_: The K labels, sorted.
        n_features_in_: d.
        model_: What was trained, and has heard unlabelled images, as a `SavedModel`.
    """

    backbone: str | None = None
    pretrained: str = "auto"
    _: KW_ONLY
    device: str | None = None
    precision: str | None = None
    config: str | Path | None = None
    dataset_config: str | Path | None = None
    options: Mapping[str, Any] | Sequence[Any] | None = None
    variant: str | None = None
    alpha_c: float | None = None
    beta_c: float | None = None
    classnames: Names | None = None
    text_features: Any = None
    negative_text_features: Any = None
    logit_scale: float | None = None
    random_state: int | np.random.RandomState | None = 1

    model_: SavedModel = field(init=False)
    _fitted: SavedModel = field(init=False)  # what was trained or loaded, before it heard unlabelled images
    _image_model: ImageModel | None = field(init=False, default=None)  # the model with its backbone, once it is loaded

    def fit(
        self,
        X: Any,
        y: Any,
        classnames: Names | None = None,
        text_features: Any = None,
        negative_text_features: Any = None,
        unlabelled: Any = None,
    ) -> HeGraphClassifier:
        """Trains the adapter, and forgets what was taught before.

        Rows with the label -1 are added to `unlabelled` where all labels are integers and `classnames` names all others
        but not -1. Without it, -1 is a class. If no row has a label, the classes are those of `classnames`, 0 to K - 1
        or the keys of the dict, and zero-shot CLIP hears the images; this needs text features or a backbone.

        Args:
            X, y: The training images, and their n labels of any kind that can be sorted.
            classnames, text_features, negative_text_features: As the parameters of these names, which they replace.
            unlabelled: Images of the same classes without labels, as `adapt` takes them.
        """
        given = self.classnames if classnames is None else classnames
        X, y, rest = with_labels(*labelled(self, X, y), given)
        pool = rest if unlabelled is None else [unlabelled, *rest]
        if pool and not isinstance(X, list) and image_list(pool[0]) is None:
            checked_features(self, pool[0])  # of another width than X, they are refused before a training
        classes = np.unique(y)
        if not len(y):
            assert given is not None  # else -1 is a class
            classes = np.unique(list(given)) if isinstance(given, Mapping) else np.arange(len(given))
        elif len(classes) < 2:
            raise UserError(f"y must hold at least two classes, got one class: {classes.tolist()}")
        text = self._text(text_features, negative_text_features)
        return self._teach(Added(X, y, classes, class_names(classes, given), *text), pool, anew=True)

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classnames: Names | None = None,
        text_features: Any = None,
        negative_text_features: Any = None,
        *,
        classes: Any = None,
    ) -> HeGraphClassifier:
        """Adds images to those that the classifier was taught, and trains on all. The classes of `y` may be new.

        With `variant="training_free"` the result is that of one `fit` on all images. The other variants train for fewer
        steps, from the parameters that they had. Text of new classes is encoded as in `fit`.

        Args:
            X, y: As for `fit`.
            classnames, text_features, negative_text_features: Of the classes in `y`, in the order of their sorted
                labels. Classes that are known keep what is not given.
            classes: All labels that may ever come; no call needs them, and others in `y` are refused.
        """
        known = self._taught().by_label if hasattr(self, "model_") else None
        X, y = labelled(self, X, y, reset=known is None)
        labels = np.unique(y)
        if classes is not None and (others := set(labels.tolist()) - set(np.atleast_1d(as_array(classes)).tolist())):
            raise UserError(f"y holds labels that classes leaves out: {sorted(others)[:5]}")
        text = text_features, negative_text_features
        if known is None:
            classnames, text = self.classnames if classnames is None else classnames, self._text(*text)
        if classnames is None:
            names = {**(self.classnames if isinstance(self.classnames, Mapping) else {}), **(known or {})}
            classnames = {label: names.get(label, str(label)) for label in labels.tolist()}
        return self._teach(Added(X, y, labels, class_names(labels, classnames), *text))

    def add_class(
        self,
        label: Any,
        X: Any = None,
        *,
        name: str | None = None,
        text_features: Any = None,
        negative_text_features: Any = None,
    ) -> HeGraphClassifier:
        """Adds a class, with images or from its name alone: then the trained adapter reaches it by its text, as it does
        the classes of other data sets. `model_.named_only` names all such classes.

        Args:
            label, X: Its label, which is new, and images of it, as for `fit`.
            name: Its name; None takes the label.
            text_features, negative_text_features: Shape `[d]`; None has the backbone encode the name. Without images,
                text features or a backbone are needed.
        """
        label, name = validate(Hashable, label, "label"), str(label) if name is None else name  # type: ignore[type-abstract]
        if hasattr(self, "model_") and label in self._taught().by_label:
            raise UserError(f"there is a class {label!r} already; partial_fit adds images to it")
        text = text_features, negative_text_features
        rows = (None if features is None else np.atleast_2d(as_array(features)) for features in text)
        if X is not None:
            num = len(validate(InstanceOf[Sized], X, "X"))  # type: ignore[type-abstract]
            return self.partial_fit(X, np.full(num, label), {label: name}, *rows)
        labels = np.array([label])
        check_classification_targets(labels)
        return self._teach(Added(None, labels[:0], labels, class_names(labels, [name]), *rows))

    def remove_class(self, label: Any) -> HeGraphClassifier:
        """Takes a class back, with its images. UserError if there is none or no other."""
        support_set = self._taught()
        kept = torch.ones(len(support_set.names), dtype=torch.bool)
        kept[support_set.index(validate(Hashable, label, "label"))] = False  # type: ignore[type-abstract]
        return self._teach(support_set.of_classes(kept))

    def forget(self, X: Any, y: Any) -> HeGraphClassifier:
        """Takes images back. A class that loses its last one is known by its text alone or, without text, gone.

        Args:
            X: Images that were taught: pixels as they were or, of what came as features, the same features. Of a run of
                the command line, which keeps no pixels, the folder knows the mean of the views of each image.
            y: Their labels. UserError if an image was not taught so, or nothing would be left.
        """
        support_set = self._taught()
        X, y = labelled(self, X, y, reset=False)
        wanted = image_ids(X) if isinstance(X, list) else mean_over_views(unit_rows(X.swapaxes(0, 1)))
        left = support_set.without(support_set.find(y.tolist(), wanted))
        return self._teach(left.of_classes(left.counts > 0) if left.positive is None else left)

    def adapt(self, U: Any) -> HeGraphClassifier:
        """Lets the classifier hear images without labels, which are best of the images that it is to classify.

        A second call hears the new images alone. A loaded model hears once; UserError if it has heard before. What was
        heard changes the answers for all images, and `is_known` does not work any more, since its thresholds do not
        hold.
        """
        check_is_fitted(self, "model_")
        self._hear([U])
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits, shape `[n, K]`; for two classes the second one's minus the first one's, shape `[n]`."""
        logits = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes in the order of `classes_`, shape `[n, K]`."""
        logits = self._logits(X)  # checks that the classifier is fitted
        return self.model_.calibrate(logits).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of every image, shape `[n]`."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(dim=1).numpy()]

    def is_known(self, X: Any, rate: float = 0.95) -> np.ndarray:
        """Open-set rejection: which images are accepted as one of the classes, booleans of shape `[n]`.

        `rate` is the fraction of images of known classes to accept. UserError if it is out of range, or the model has
        no scores of known images.
        """
        logits = self._logits(X)
        return self.model_.is_known(logits, rate).numpy()

    def suggest(self, X: Any, n: int = 20) -> list[int]:
        """Positions of n images without labels that are to be labelled next, best first; of fewer images, all.

        A class without labels gets a typical image; after that, classes with few labels get the one that is least sure.
        """
        check_is_fitted(self, "model_")
        n = validate(Size, n, "n", convert=True)
        return suggest(self._fitted, self._encoded(X).cpu(), n)

    def label_issues(self, X: Any, y: Any) -> list[LabelIssue]:
        """What the closed form (`variant="training_free"`) says of the label of each image without that image, as one
        `LabelIssue(index, label, suggested, score)` for each, the most suspicious first.

        A score above 0 says that another class is likelier. The model takes no part but by its classes and text, so the
        images need not be those of `fit`; their labels are among `classes_`, and not all the same.
        """
        check_is_fitted(self, "model_")
        features, y = self._encoded(X).cpu(), column_or_1d(as_array(y))
        check_consistent_length(features, y)
        classes = self.classes_.tolist()
        if unknown := sorted(set(y.tolist()) - set(classes), key=str):
            raise UserError(f"y holds labels that are no classes of the model: {unknown[:5]}")
        labels = torch.tensor([classes.index(label) for label in y.tolist()])
        model = self.model_
        return find_label_issues(features, labels, model.text_positive, model.logit_scale, classes)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the model folder, which the command line reads too. An older model is replaced, and nothing else."""
        check_is_fitted(self, "model_")
        save_model(self.model_, validate(Path, directory, "directory", convert=True))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        *,
        token: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        backbone: str | None = None,
        pretrained: str = "auto",
    ) -> HeGraphClassifier:
        """Loads a trained model. The backbone is loaded when the first image has to be encoded.

        Args:
            name: A model folder, the output folder of a run, or "USER/NAME" on the Hugging Face Hub.
            revision: Branch, tag or commit, of a model on the Hub.
            token: For a private model on the Hub; None takes the one that `hf auth login` has kept.
            device, precision: As of the class; a precision of None is "auto", whatever that of the training was.
            backbone, pretrained: Of images; None takes the backbone that the model names. Its features must be the
                same ones.
        """
        validate(str, backbone or "", "backbone")
        model = load_model(find_model(str(name), revision, token))
        if backbone is None and model.backbone.model:
            backbone, pretrained = model.backbone.model, model.backbone.pretrained
        found = cls(
            backbone,
            pretrained,
            device=device,
            precision=precision or AUTO,
            options=recipe_of(model),
            variant=model.trained_on.config.get(KEYS["variant"]),  # also of one that has no images yet
            logit_scale=model.logit_scale,
            random_state=model.trained_on.seed,
        )
        found.model_ = found._fitted = model
        found.classes_ = np.array(model.classnames if model.labels is None else model.labels)
        found.n_features_in_ = model.classifier.width
        return found

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        revision: str | None = None,
        private: bool = False,
        commit_message: str = "Upload a HeGraphAdapter model",
    ) -> str:
        """Uploads the model folder to the Hugging Face Hub, made if it is not there, and returns its address.

        Args:
            repo_id: "USER/NAME".
            token: One that may write; None takes the one that `hf auth login` has kept. It is not kept here.
            revision: The branch, which is made if it is not there; None takes the main one.
            private: Whether a new repository is private.
        """
        check_is_fitted(self, "model_")
        return push_model(self.model_, validate(str, repo_id, "repo_id"), token, revision, private, commit_message)

    def __getstate__(self) -> dict:
        state = super().__getstate__()
        state.pop("_image_model", None)  # the backbone is loaded again
        return state

    def _encoded(self, X: Any) -> Tensor:
        """Features of anything that `X` may be, as unit rows, shape `[n, d]`: those of several views are their mean."""
        if (images := image_list(X)) is None:
            X, _ = checked_features(self, X)
            return unit_rows(X[:, 0]) if X.shape[1] == 1 else unit_rows(unit_rows(X).mean(dim=1).numpy())
        if self._image_model is None:
            named = (self.backbone, self.pretrained) if self.backbone else ("", "")
            own = None if KEYS["precision"] in (self.options or ()) else self.precision  # `options` wins
            precision = own or self.model_.backbone.precision
            self._image_model = ImageModel.load(self.model_, self._device(), *named, precision)
        return self._image_model.features(images, BATCH)

    def _logits(self, X: Any) -> Tensor:
        """Logits on the CPU, shape `[n, K]`, summed in float64, so that those of an image do not depend on the other
        images of `X`: float32 rounds in another way for another number of rows.
        """
        check_is_fitted(self, "model_")
        features = self._encoded(X).to(self._device(), torch.float64)
        return self.model_.classifier.to(features.device, torch.float64).logits(features).cpu()

    def _device(self) -> str:
        return choose_device(self.device, "device")

    def _text(self, positive: Any, negative: Any) -> tuple[Any, Any]:
        """Text features that were given, else those of the parameters."""
        own = self.text_features, self.negative_text_features
        return own[0] if positive is None else positive, own[1] if negative is None else negative

    def _taught(self) -> SupportSet:
        """What was taught. NotFittedError, or UserError as of `lessons_of`."""
        check_is_fitted(self, "model_")
        return support_set_of(self._fitted)

    def _teach(self, what: Added | SupportSet, pool: Sequence[Any] = (), anew: bool = False) -> HeGraphClassifier:
        """Trains on what is added to what was taught before, or on lessons that are left of it. All that teaches goes
        this way. `pool` are unlabelled images to hear, each entry as `X` of the class.
        """
        before = None if anew or not hasattr(self, "model_") else self._fitted
        adaptation = None if before is None else self._heard_before()
        loaded = None if before is None or self._image_model is None else self._image_model.backbone
        model, backbone = Teacher(self.get_params(deep=False), before, self._device(), loaded).teach(what)
        assert model.support_set is not None
        self.classes_, self.n_features_in_ = model.support_set.classes, model.classifier.width
        self.model_ = self._fitted = model
        self._image_model = None if backbone is None else ImageModel(model, backbone)
        if pool or adaptation is not None:
            self._hear(pool, adaptation)
        return self

    def _heard_before(self) -> Tensor | None:
        """Features of the unlabelled images that the classifier is adapted to; UserError if the model lacks them."""
        model = self.model_
        if model.unlabelled and model.unlabelled_features is None:
            raise UserError(
                f"the model is adapted to {model.unlabelled} unlabelled images, and its folder, of an earlier version, "
                "does not keep their features, so that a change would lose the adaptation; train it again: fit with "
                "unlabelled=, or a run with --unlabelled"
            )
        return model.unlabelled_features

    def _hear(self, pool: Sequence[Any], adaptation: Tensor | None = None) -> None:
        """Adapts the trained model to unlabelled images: those of the pool or, without any, those of `heard`."""
        features = torch.cat([self._encoded(U).cpu() for U in pool]) if pool else adaptation
        assert features is not None
        self.model_, _ = adapt(self._fitted, features, self._device())

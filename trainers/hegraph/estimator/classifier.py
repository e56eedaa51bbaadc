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
from sklearn.metrics import average_precision_score
from sklearn.utils import Tags, check_consistent_length
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor

from ..features.backbones.identity import AUTO
from ..features.bank import mean_over_views
from ..models.folder import load_model, save_model
from ..models.hub import local_folder, push_model
from ..models.images import ImageModel
from ..models.saved import SavedModel, adapt
from ..models.support_set import SupportSet
from ..utils.devices import choose_device
from ..utils.errors import UserError
from ..utils.reading import Size, validate
from .incremental import KEYS, Addition, Trainer, image_ids, support_set_of, unlabelled_features_of
from .inputs import Names, as_array, checked_features, checked_X_y, class_names, image_list, split_labelled, unit_rows
from .labels.issues import LabelIssue, find_label_issues
from .labels.suggest import suggest
from .training import options_of

BATCH = 256  # images in a batch of the backbone


@dataclass(eq=False, repr=False)
class HeGraphClassifier(ClassifierMixin, BaseEstimator):
    """Few-shot image classifier: an adapter of a frozen CLIP model, with the interface of scikit-learn.

    Examples:
        >>> from hegraph import HeGraphClassifier, load_few_shot
        >>> digits = load_few_shot("Digits", root="", shots=16, seed=1)
        >>> images = [digits.open(item.path) for item in digits.train]
        >>> labels = [item.label for item in digits.train]
        >>> classifier = HeGraphClassifier(config="mini", dataset_config="digits", classnames=digits.classnames)
        >>> classifier.fit(images, labels).predict([digits.open(item.path) for item in digits.test[:5]])
        array([8, 8, 4, 9, 0])

    `X` contains images or features. It may differ between `fit` and `predict`:

    - a list of n paths or PIL images, which the backbone encodes,
    - features `[n, d]`, as an array or a tensor, whose rows are scaled to unit norm,
    - features `[n, V, d]` of V augmented views of each image.

    An image has one label or, with `variant="training_free"`, any number of labels (docs/guides/multilabel.md).

    Text nodes are encoded prompts of the class names, unless `text_features` are passed. Without a backbone, a positive
    text node is the mean feature of its class, and a negative one its negative. docs/guides/python.md is the guide.

    Parameters:
        backbone: An open_clip model name, "hf-hub:ORGANISATION/NAME", "local-dir:FOLDER" or "mini". None takes the
            backbone of `config`, and only loads it for images and names.
        pretrained: Weights of the backbone, an open_clip tag or a file; "auto" takes the weights that come with the
            model, or OpenAI's.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU if one is available.
        precision: "auto", "fp32", "bf16", "fp16" or "amp" (docs/reference/backbones.md); None: the one of `config`.
        config, dataset_config: YAML files of the method and of the data set (for prompt templates and descriptions): a
            path, or the name of a file in the package, such as "mini" and "digits".
        options: Configuration keys, as a dict or a list `[KEY, VALUE, ...]`, with precedence over all other parameters.
        variant, alpha_c, beta_c: Configuration keys VARIANT, ALPHA_C and BETA_C; None takes them from `config`.
        classnames: Names of the K classes, in the order of `classes_` or as a dict from labels to names; None takes the
            labels as names.
        text_features, negative_text_features: Text features `[K, d]`, in the order of `classes_`.
        logit_scale: CLIP's `tau`; None takes the one of the backbone, or 100.
        random_state: Seed. None or a NumPy generator samples a seed.

    Attributes:
        classes_: The K labels, sorted.
        n_features_in_: Feature width d.
        model_: The trained model, a `SavedModel`, after an adaptation to unlabelled images if there is one.

    Raises:
        ValueError, TypeError, NotFittedError: From all methods, if scikit-learn rejects `X`, `y` or the state.
        UserError: A ValueError that names the argument, for every other invalid input.
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
    _fitted: SavedModel = field(init=False)  # the model before an adaptation to unlabelled images
    _image_model: ImageModel | None = field(init=False, default=None)  # with the loaded backbone

    def fit(
        self,
        X: Any,
        y: Any,
        classnames: Names | None = None,
        text_features: Any = None,
        negative_text_features: Any = None,
        unlabelled: Any = None,
    ) -> HeGraphClassifier:
        """Train the adapter. Images and classes of previous calls are discarded.

        A label of -1 marks an unlabelled image if all labels are integers and `classnames` names all other classes but
        not -1; otherwise -1 is a class. If all images are unlabelled, the classes are those of `classnames` (0 to
        K - 1, or the keys of the dict), and zero-shot CLIP is adapted. This needs text features or a backbone.

        Args:
            X: Training images.
            y: Their n labels, of any sortable type. With several labels per image, indicators of 0 and 1, shape
                `[n, K]`, whose columns are the classes 0 to K - 1, or a list of n label sets.
            classnames, text_features, negative_text_features: Replace the parameters with these names.
            unlabelled: Unlabelled images for semi-supervised learning, passed to `adapt`.
        """
        names = self.classnames if classnames is None else classnames
        X, y, classes = checked_X_y(self, X, y)
        pool: list[Any] = [] if unlabelled is None else [unlabelled]
        if y.ndim == 1:
            X, y, rest = split_labelled(X, y, names)
            pool, classes = [*pool, *rest], np.unique(y)
        elif pool:
            raise UserError("adaptation to unlabelled images needs one label per image, and y has several")
        if pool and not isinstance(X, list) and image_list(pool[0]) is None:
            checked_features(self, pool[0])  # rejects another width before the training
        if not len(y):
            assert names is not None  # without names, -1 is a class
            classes = np.unique(list(names)) if isinstance(names, Mapping) else np.arange(len(names))
        elif y.ndim == 1 and len(classes) < 2:
            raise UserError(f"expected at least two classes in y, got one class: {classes.tolist()}")
        text = self._text(text_features, negative_text_features)
        return self._train(Addition(X, y, classes, class_names(classes, names), *text), pool, reset=True)

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
        """Add images to the support set, and train on all of it. The classes of `y` may be new.

        With `variant="training_free"` the class weights equal those of one `fit` on the same features; the random
        crops of an image depend on its position in `X`. Other variants train for fewer steps, from the current
        parameters. Names of new classes are encoded as in `fit`.

        Args:
            X, y: Images and labels, as in `fit`. The columns of indicators are `classes_` or, in the first call,
                `classes`.
            classnames, text_features, negative_text_features: Names and text of the classes in `y`, in the order of
                their sorted labels. Existing classes keep their own by default.
            classes: All labels of all calls, as in other classifiers of scikit-learn. Optional; if passed, other labels
                in `y` are rejected.
        """
        known = self._support_set().by_label if hasattr(self, "model_") else None
        X, y, labels = checked_X_y(self, X, y, known is None, classes if known is None else list(known))
        if classes is not None and (rest := set(labels.tolist()) - set(np.atleast_1d(as_array(classes)).tolist())):
            raise UserError(f"expected labels of classes in y, got {sorted(rest)[:5]}")
        text = text_features, negative_text_features
        if known is None:
            classnames, text = self.classnames if classnames is None else classnames, self._text(*text)
        if classnames is None:
            names = {**(self.classnames if isinstance(self.classnames, Mapping) else {}), **(known or {})}
            classnames = {label: names.get(label, str(label)) for label in labels.tolist()}
        return self._train(Addition(X, y, labels, class_names(labels, classnames), *text))

    def add_class(
        self,
        label: Any,
        X: Any = None,
        *,
        name: str | None = None,
        text_features: Any = None,
        negative_text_features: Any = None,
    ) -> HeGraphClassifier:
        """Add a class, with images or from its name alone.

        A class without images has the weights of a transfer to unseen classes; `model_.named_only` lists such classes.

        Args:
            label: New label.
            X: Images of the class, as in `fit`. With several labels per image, they have this label alone.
            name: Name of the class; None takes the label.
            text_features, negative_text_features: Text features `[d]`; by default, the backbone encodes the name. A
                class without images needs one of the two.
        """
        label, name = validate(Hashable, label, "label"), str(label) if name is None else name  # type: ignore[type-abstract]
        if hasattr(self, "model_") and label in self._support_set().by_label:
            raise UserError(f"expected a new label, got the existing class {label!r}; use partial_fit to add images")
        text, several = (text_features, negative_text_features), self._multilabel()
        rows = (None if features is None else np.atleast_2d(as_array(features)) for features in text)
        if X is not None:
            num = len(validate(InstanceOf[Sized], X, "X"))  # type: ignore[type-abstract]
            return self.partial_fit(X, [{label}] * num if several else np.full(num, label), {label: name}, *rows)
        labels = np.array([label])
        check_classification_targets(labels)
        none = np.zeros((0, 1), dtype=bool) if several else labels[:0]
        return self._train(Addition(None, none, labels, class_names(labels, [name]), *rows))

    def remove_class(self, label: Any) -> HeGraphClassifier:
        """Remove a class and its images. UserError if the class does not exist, or is the last one."""
        support_set = self._support_set()
        remaining = torch.ones(len(support_set.names), dtype=torch.bool)
        remaining[support_set.index(validate(Hashable, label, "label"))] = False  # type: ignore[type-abstract]
        return self._train(support_set.of_classes(remaining))

    def forget(self, X: Any, y: Any) -> HeGraphClassifier:
        """Remove images from the support set. A class without images keeps its text or, without text, is removed.

        Args:
            X: Images with the same pixels as before or, if features were passed, the same features. A model of a data
                set of CoOp or of a feature bank stores the mean feature of the views of each image, not its pixels.
            y: Labels of the images. UserError if an image is not in the support set, or no image would remain.
        """
        support_set = self._support_set()
        self.model_.check_single_label("forget")
        X, y, _ = checked_X_y(self, X, y, reset=False)
        queries = image_ids(X) if isinstance(X, list) else mean_over_views(unit_rows(X.swapaxes(0, 1)))
        rest = support_set.without(support_set.find(y.tolist(), queries))
        return self._train(rest.of_classes(rest.counts > 0) if rest.positive is None else rest)

    def adapt(self, U: Any) -> HeGraphClassifier:
        """Adapt to unlabelled images `U`. Works best if `U` comes from the distribution of the images to classify.

        The adaptation changes all predictions, and `is_known` is not available after it, because its thresholds do not
        apply. A second call replaces the first. A loaded model that is adapted already raises UserError.
        """
        check_is_fitted(self, "model_")
        self.model_, _ = adapt(self._fitted, self._encoded(U).cpu(), self._device())
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits, shape `[n, K]`; for two classes, the difference of the second and the first, shape `[n]`."""
        logits = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 and not self._multilabel() else logits

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
        """Accuracy or, with several labels per image, mAP: the mean average precision of the classes in `y`."""
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

    def suggest(self, X: Any, n: int = 20) -> list[int]:
        """Active learning: positions of at most n unlabelled images to label next, best first.

        Classes without labels get a typical image first. Then classes with few labels get their least certain image.
        """
        check_is_fitted(self, "model_")
        n = validate(Size, n, "n", convert=True)
        return suggest(self._fitted, self._encoded(X).cpu(), n)

    def label_issues(self, X: Any, y: Any) -> list[LabelIssue]:
        """Find label errors by leave-one-out prediction with the training-free variant.

        Only classes and text of the model are used, so the images need not be those of `fit`.

        Args:
            X: Images or features, as in `fit`.
            y: Labels of at least two classes in `classes_`.

        Returns:
            A `LabelIssue(index, label, suggested, score)` for each image, the most suspicious first. A score above 0
            means that another class is more probable.
        """
        check_is_fitted(self, "model_")
        self.model_.check_single_label("label_issues")
        features, y = self._encoded(X).cpu(), column_or_1d(as_array(y))
        check_consistent_length(features, y)
        classes = self.classes_.tolist()
        if unknown := sorted(set(y.tolist()) - set(classes), key=str):
            raise UserError(f"expected labels of classes_ in y, got {unknown[:5]}")
        labels = torch.tensor([classes.index(label) for label in y.tolist()])
        model = self.model_
        return find_label_issues(features, labels, model.text_positive, model.logit_scale, classes)

    def save_pretrained(self, directory: str | Path, *, endpoint: bool = False) -> None:
        """Write a model folder, which the command line reads too.

        In an existing model folder, the files of the model are replaced, thumbnails are removed, and other files stay.
        Any other existing folder raises UserError unless it is empty.

        Args:
            directory: The folder.
            endpoint: Whether to add `handler.py`, `requirements.txt` and a copy of this package, which a Hugging Face
                inference endpoint runs.
        """
        check_is_fitted(self, "model_")
        save_model(self.model_, validate(Path, directory, "directory", convert=True), endpoint)

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
        """Load a trained model. The backbone is loaded with the first image.

        Args:
            name: Model folder, output folder of a run, or "USER/NAME" on the Hugging Face Hub.
            revision: Branch, tag or commit on the Hub.
            token: Token for a private model on the Hub; None takes the token of `hf auth login`.
            device, precision: Parameters of the class; None as precision is "auto".
            backbone, pretrained: Backbone for images, which must give the same features; None takes the one named in
                the model.
        """
        validate(str, backbone or "", "backbone")
        model = load_model(local_folder(str(name), revision, token))
        return cls.from_model(model, device, precision, backbone, pretrained)

    @classmethod
    def from_model(
        cls,
        model: SavedModel,
        device: str | None = None,
        precision: str | None = None,
        backbone: str | None = None,
        pretrained: str = "auto",
    ) -> HeGraphClassifier:
        """Classifier of a model in memory; arguments as of `from_pretrained`."""
        if backbone is None and model.backbone.model:
            backbone, pretrained = model.backbone.model, model.backbone.pretrained
        classifier = cls(
            backbone,
            pretrained,
            device=device,
            precision=precision or AUTO,
            options=options_of(model),
            variant=model.trained_on.config.get(KEYS["variant"]),  # also without images
            logit_scale=model.logit_scale,
            random_state=model.trained_on.seed,
        )
        classifier.model_ = classifier._fitted = model
        classifier.classes_ = np.array(model.classnames if model.labels is None else model.labels)
        classifier.n_features_in_ = model.classifier.width
        return classifier

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        revision: str | None = None,
        private: bool = False,
        commit_message: str = "Upload a HeGraphAdapter model",
        endpoint: bool = False,
    ) -> str:
        """Upload the model folder to the Hugging Face Hub, and return its address.

        Args:
            repo_id: Repository "USER/NAME", created if necessary.
            token: Token with write access, which is not stored; None takes the token of `hf auth login`.
            revision: Branch, created if necessary; None takes the main branch.
            private: Whether a new repository is private.
            commit_message: Message of the commit.
            endpoint: As of `save_pretrained`.
        """
        check_is_fitted(self, "model_")
        name = validate(str, repo_id, "repo_id")
        return push_model(self.model_, name, token, revision, private, commit_message, endpoint)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self.variant == "training_free"
        return tags

    def __getstate__(self) -> dict:
        # Without the backbone, which is loaded again on demand. The state may be the attributes themselves, not a copy
        return {name: value for name, value in super().__getstate__().items() if name != "_image_model"}

    def _encoded(self, X: Any) -> Tensor:
        """Encode `X` as unit-norm features `[n, d]`; several views are averaged."""
        if (images := image_list(X)) is None:
            X, _ = checked_features(self, X)
            return unit_rows(X[:, 0]) if X.shape[1] == 1 else unit_rows(unit_rows(X).mean(dim=1).numpy())
        if self._image_model is None:
            backbone = (self.backbone, self.pretrained) if self.backbone else ("", "")
            own = None if KEYS["precision"] in (self.options or ()) else self.precision  # `options` has precedence
            precision = own or self.model_.backbone.precision
            self._image_model = ImageModel.load(self.model_, self._device(), *backbone, precision)
        return self._image_model.features(images, BATCH)

    def _logits(self, X: Any) -> Tensor:
        """Logits on the CPU, shape `[n, K]`.

        Computed in float64, so that logits of an image do not depend on the number of images.
        """
        check_is_fitted(self, "model_")
        features = self._encoded(X).to(self._device(), torch.float64)
        return self.model_.classifier.to(features.device, torch.float64).logits(features).cpu()

    def _device(self) -> str:
        return choose_device(self.device, "device")

    def _text(self, positive: Any, negative: Any) -> tuple[Any, Any]:
        """Text features of a call, or else those of the parameters."""
        own = self.text_features, self.negative_text_features
        return own[0] if positive is None else positive, own[1] if negative is None else negative

    def _multilabel(self) -> bool:
        """Whether the model has several labels per image; False before `fit`."""
        return hasattr(self, "model_") and self.model_.thresholds is not None

    def _support_set(self) -> SupportSet:
        """Support set before an adaptation; NotFittedError, or UserError as of `support_set_of`."""
        check_is_fitted(self, "model_")
        return support_set_of(self._fitted)

    def _train(self, change: Addition | SupportSet, pool: Sequence[Any] = (), reset: bool = False) -> HeGraphClassifier:
        """Train on the support set with an addition, or on a reduced support set, and adapt to unlabelled images.

        Args:
            change: The addition, or the reduced support set.
            pool: Unlabelled images, each entry like `X`. By default, a previous adaptation is repeated.
            reset: Whether to discard the previous model.
        """
        previous = None if reset or not hasattr(self, "model_") else self._fitted
        unlabelled = None if previous is None else unlabelled_features_of(self.model_)
        loaded = None if previous is None or self._image_model is None else self._image_model.backbone
        model, backbone = Trainer(self.get_params(deep=False), previous, self._device(), loaded).train(change)
        assert model.support_set is not None
        adapted = model if unlabelled is None else adapt(model, unlabelled, self._device())[0]
        self.classes_, self.n_features_in_ = model.support_set.classes, model.classifier.width
        self.model_, self._fitted = adapted, model
        self._image_model = None if backbone is None else ImageModel(model, backbone)
        if pool:
            unlabelled = torch.cat([self._encoded(U).cpu() for U in pool])
            self.model_, _ = adapt(model, unlabelled, self._device())
        return self

"""HeGraphAdapter as a scikit-learn classifier.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence, Sized
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import InstanceOf
from sklearn.utils.validation import check_is_fitted

from ..features.backbones.identity import AUTO
from ..features.bank import mean_over_views
from ..models.class_order import class_labels, with_sorted_classes
from ..models.folder import load_model, save_model
from ..models.hub import local_folder, push_model
from ..models.images import ImageModel
from ..models.saved import SavedModel, adapt
from ..models.support_set import SupportSet
from ..utils.errors import UserError
from ..utils.reading import validate
from .classes import UNLABELLED, Names, check_label_values, checked_names, split_labelled
from .incremental import KEYS, IncrementalTraining, image_ids, support_set_of, unlabelled_features_of
from .inputs import as_array, check_targets, checked_features, checked_groups, checked_X_y, image_list, unit_rows
from .prediction import PredictionMixin
from .training import changed_options


@dataclass(eq=False, repr=False)
class HeGraphClassifier(PredictionMixin):
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

    Text nodes are encoded prompts of the class names, unless `text_features` are passed. Without a backbone, or with
    PROMPTS.SOURCE none, a positive text node is the mean feature of its class, and a negative one its negative. The
    training-free variant does not use such nodes. docs/guides/python.md is the guide.

    Parameters:
        backbone: Image encoder: "mini", a model of open_clip (its name, "hf-hub:ORGANISATION/NAME" or
            "local-dir:FOLDER"), of transformers ("transformers:ORGANISATION/NAME") or of timm ("timm:NAME.TAG"); see
            `hegraph backbones --list`. None takes the backbone of `config`, and only loads it for images and names.
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
        groups: Any = None,
    ) -> HeGraphClassifier:
        """Train the adapter. Images and classes of previous calls are discarded.

        A label of -1 marks an unlabelled image if all labels are integers and `classnames` names all other classes but
        not -1; otherwise -1 is a class. If all images are unlabelled, the classes are those of `classnames` (0 to
        K - 1, or the keys of the dict), and zero-shot CLIP is adapted. This needs text features or a backbone.

        Args:
            X: Training images.
            y: Their n labels: all strings, all numbers or all booleans. With several labels per image, indicators of 0
                and 1, shape `[n, K]`, whose columns are the classes 0 to K - 1, or a list of n label sets.
            classnames, text_features, negative_text_features: Replace the parameters with these names.
            unlabelled: Unlabelled images for semi-supervised learning, passed to `adapt`.
            groups: Group of each image, such as its video, a string or an integer from 0 on. Calibration, prediction
                sets and the check of labels never judge an image by others of its group.

        Raises:
            ValueError, TypeError: If scikit-learn rejects `X` or `y`.
            UserError: If labels are of other or of several types, an image is unreadable, a parameter or a name is
                invalid, fewer than two classes have images, the memory is too small, or the training diverges.
        """
        names = self.classnames if classnames is None else classnames
        X, y, classes = checked_X_y(self, X, y)
        group_numbers = checked_groups(groups, len(y))
        pool: list[Any] = [] if unlabelled is None else [unlabelled]
        if y.ndim == 1:
            is_labelled = torch.from_numpy(y != UNLABELLED)
            X, y, rest = split_labelled(X, y, names)
            pool = [*pool, *rest]
            if rest and group_numbers is not None:
                group_numbers = group_numbers[is_labelled]
            classes = np.unique(y)
        elif pool:
            raise UserError("adaptation to unlabelled images needs one label per image, and y has several")
        if pool and not isinstance(X, list) and image_list(pool[0]) is None:
            checked_features(self, pool[0])  # rejects another width before the training
        if not len(y):
            assert names is not None  # without names, -1 is a class
            if isinstance(names, Mapping):
                check_label_values(names, "classnames")
                classes = np.unique(list(names))
            else:
                classes = np.arange(len(names))
        elif y.ndim == 1 and len(classes) < 2:
            raise UserError(f"expected at least two classes in y, got one class: {classes.tolist()}")
        text = self._text(text_features, negative_text_features)
        names = checked_names(classes, names)
        return self._train(
            lambda training: training.add(X, y, classes, names, *text, groups=group_numbers), pool, reset=True
        )

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classnames: Names | None = None,
        text_features: Any = None,
        negative_text_features: Any = None,
        *,
        classes: Any = None,
        groups: Any = None,
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
            groups: As in `fit`. A group of an earlier call is the same group.

        Raises:
            ValueError, TypeError: If scikit-learn rejects `X` or `y`.
            UserError: As in `fit`; also if a new class lacks the text that the other classes have, or the labels are
                not of the same kind as before.
        """
        is_first = not hasattr(self, "model_")
        if classes is not None:
            classes = np.atleast_1d(as_array(classes)).tolist()
        known = {} if is_first else self._support_set().by_label
        X, y, labels = checked_X_y(self, X, y, is_first, classes if is_first else list(known))
        group_numbers = checked_groups(groups, len(y))
        if classes is not None:
            check_label_values(classes, "classes")
            others = set(labels.tolist()) - set(classes)
            if others:
                raise UserError(f"expected labels of classes in y, got {sorted(others)[:5]}")
        text = (text_features, negative_text_features)
        if is_first:
            text = self._text(text_features, negative_text_features)
            classnames = self.classnames if classnames is None else classnames
        if classnames is None:
            names = dict(self.classnames) if isinstance(self.classnames, Mapping) else {}
            names |= known
            classnames = {label: names.get(label, str(label)) for label in labels.tolist()}
        new_names = checked_names(labels, classnames)
        return self._train(lambda training: training.add(X, y, labels, new_names, *text, groups=group_numbers))

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

        Raises:
            ValueError, TypeError: If scikit-learn rejects `X`.
            UserError: If the class exists, the label is not of the kind of the other labels, or as in `partial_fit`.
        """
        check_label_values([validate(Hashable, label, "label")], "label")  # type: ignore[type-abstract]
        name = str(label) if name is None else name
        if hasattr(self, "model_") and label in self._support_set().by_label:
            raise UserError(f"expected a new label, got the existing class {label!r}; use partial_fit to add images")
        positive = None if text_features is None else np.atleast_2d(as_array(text_features))
        negative = None if negative_text_features is None else np.atleast_2d(as_array(negative_text_features))
        if X is not None:
            num = len(validate(InstanceOf[Sized], X, "X"))  # type: ignore[type-abstract]
            y = [{label}] * num if self._multilabel() else np.full(num, label)
            return self.partial_fit(X, y, {label: name}, positive, negative)
        labels = np.array([label])
        check_targets(labels)
        no_images = np.zeros((0, 1), dtype=bool) if self._multilabel() else labels[:0]
        names = checked_names(labels, [name])
        return self._train(lambda training: training.add(None, no_images, labels, names, positive, negative))

    def remove_class(self, label: Any) -> HeGraphClassifier:
        """Remove a class and its images. UserError if the class does not exist, or is the last one."""
        support_set = self._support_set()
        position = support_set.index(validate(Hashable, label, "label"))  # type: ignore[type-abstract]
        remaining = torch.ones(len(support_set.names), dtype=torch.bool)
        remaining[position] = False
        return self._train(lambda training: training.reduce(support_set.of_classes(remaining)))

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
        if rest.positive is None:
            rest = rest.of_classes(rest.counts > 0)
        return self._train(lambda training: training.reduce(rest))

    def adapt(self, U: Any) -> HeGraphClassifier:
        """Adapt to unlabelled images `U`. Works best if `U` comes from the distribution of the images to classify.

        The adaptation changes all predictions, and `is_known` is not available after it, because its thresholds do not
        apply. A second call replaces the first. A loaded model that is adapted already raises UserError.
        """
        check_is_fitted(self, "model_")
        self.model_, _ = adapt(self._fitted, self._encoded(U).cpu(), self._device())
        return self

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

        Raises:
            UserError: If the folder or the repository does not exist or cannot be reached, or is not a valid model.
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
        """Classifier of a model in memory, whose classes it sorts by label; arguments as in `from_pretrained`."""
        if backbone is None and model.backbone.model:
            backbone = model.backbone.model
            pretrained = model.backbone.pretrained
        classifier = cls(
            backbone,
            pretrained,
            device=device,
            precision=precision or AUTO,
            options=changed_options(model),
            variant=model.trained_on.config.get(KEYS["variant"]),  # also without images
            logit_scale=model.logit_scale,
            random_state=model.trained_on.seed,
        )
        classifier.model_ = classifier._fitted = with_sorted_classes(model)
        classifier.classes_ = class_labels(classifier.model_)
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
            endpoint: As in `save_pretrained`.

        Raises:
            UserError: If the name is invalid, or the Hub refuses the upload or cannot be reached.
        """
        check_is_fitted(self, "model_")
        name = validate(str, repo_id, "repo_id")
        return push_model(self.model_, name, token, revision, private, commit_message, endpoint)

    def __getstate__(self) -> dict:
        # Without the backbone, which is loaded again on demand. The state may be the attributes themselves, not a copy
        return {name: value for name, value in super().__getstate__().items() if name != "_image_model"}

    def _text(self, positive: Any, negative: Any) -> tuple[Any, Any]:
        """Text features of a call, or else those of the parameters."""
        if positive is None:
            positive = self.text_features
        if negative is None:
            negative = self.negative_text_features
        return positive, negative

    def _support_set(self) -> SupportSet:
        """Support set before an adaptation; NotFittedError, or UserError if the model has none."""
        check_is_fitted(self, "model_")
        return support_set_of(self._fitted)

    def _train(
        self, change: Callable[[IncrementalTraining], SavedModel], pool: Sequence[Any] = (), reset: bool = False
    ) -> HeGraphClassifier:
        """Train after a change of the support set, and adapt to unlabelled images.

        Args:
            change: Function that trains the model.
            pool: Unlabelled images, each entry like `X`. By default, a previous adaptation is repeated.
            reset: Whether to discard the previous model.
        """
        previous = None if reset or not hasattr(self, "model_") else self._fitted
        unlabelled = None if previous is None else unlabelled_features_of(self.model_)
        loaded = None if previous is None or self._image_model is None else self._image_model.backbone
        training = IncrementalTraining(self.get_params(deep=False), previous, self._device(), loaded)
        model = change(training)
        assert model.support_set is not None
        adapted = model if unlabelled is None else adapt(model, unlabelled, self._device())[0]
        self.classes_ = model.support_set.classes
        self.n_features_in_ = model.classifier.width
        self._fitted = model
        self.model_ = adapted
        self._image_model = None if training.backbone is None else ImageModel(model, training.backbone)
        if pool:
            unlabelled = torch.cat([self._encoded(U).cpu() for U in pool])
            self.model_, _ = adapt(model, unlabelled, self._device())
        return self

"""HeGraphAdapter as a scikit-learn classifier.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from ..backbones.identity import AUTO
from ..config import Config
from ..experiments.image_task import ImageTask
from ..features.bank import mean_over_views
from ..labels.issues import LabelIssue, find_label_issues
from ..labels.suggest import suggest
from ..models.folder import load_model, save_model
from ..models.hearing import hear
from ..models.lessons import Lessons
from ..models.saved import SavedModel
from ..utils.devices import choose_device
from ..utils.errors import UserError
from .inputs import (
    FLOATS,
    as_array,
    class_names,
    feature_array,
    image_list,
    is_images,
    text_nodes,
    unit_rows,
    without_label,
)
from .training import (
    Origin,
    find_seed,
    generators_restored,
    image_ids,
    image_task,
    learn,
    make_configuration,
    recipe_of,
)

if TYPE_CHECKING:
    from ..backbones.clip import Backbone
    from ..models.images import ImageModel

logger = logging.getLogger(__name__)

NODE = "TRAINER.HEGRAPHADAPTER."
# Parameter -> the configuration key that it sets
KEYS = {"precision": f"{NODE}PREC", "variant": f"{NODE}VARIANT", "alpha_c": f"{NODE}ALPHA_C", "beta_c": f"{NODE}BETA_C"}
BATCH = 256  # images that the backbone encodes at once


class Before(NamedTuple):
    """A model that is to be taught more, and what it was taught."""

    model: SavedModel
    lessons: Lessons

    @property
    def names(self) -> dict[Any, str]:
        """The names of the classes by their labels."""
        return dict(zip(self.lessons.classes.tolist(), self.lessons.names))


class HeGraphClassifier(ClassifierMixin, BaseEstimator):
    """Adapts a frozen CLIP to classes of which a few images are at hand. docs/python.md tells more.

    `X` is one of three things, and may be another one in `predict` than it was in `fit`: image features `[n, d]`, or
    `[n, V, d]` with V augmented views of each image, as an array or a tensor, whose rows are scaled to unit norm; a
    list of n paths of image files; or a list of n PIL images. Paths and pictures are encoded by the backbone.

    The text nodes are `text_features` and `negative_text_features`, where they are given. Otherwise a backbone encodes
    the prompts of the class names. Where there is no backbone either, a positive text node is the mean feature of its
    class and a negative one the negative of it.

    The same features, images in the same order and seed give the same model as the command line, byte for byte. The
    number of shots, by which the configuration fills what it leaves open, is that of the largest class in `y`.

    Args:
        backbone: An open_clip model, "hf-hub:ORGANISATION/NAME", "local-dir:FOLDER" or "hegraph-mini", which `fit`
            loads. None takes that of the configuration, and only where something has to be encoded.
        pretrained: Its weights: an open_clip tag or a file; "auto" takes those that come with the model, or OpenAI's.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU if there is one.
        precision: What the backbone computes in: "auto", "fp32", "bf16", "fp16" or "amp" (docs/backbones.md); None
            leaves it to the configuration.
        config, dataset_config: YAML of the method and of the data set, by whose name templates and descriptions are
            found: a path, or the name of a file that ships, such as "mini" and "digits".
        options: Configuration keys, as a dict or as a list `[KEY, VALUE, ...]`; they win over everything.
        variant: "base", "free", "T-N", "T-P", "T" or "full"; None leaves it to the configuration, as the next two.
        alpha_c: Weight of the cache classifier.
        beta_c: Sharpness of the cache's affinities.
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

    _image_model: ImageModel | None = None  # the model with its backbone, once that is loaded
    _fitted: SavedModel | None = None  # what was trained, before it heard unlabelled images; None of a loaded model
    _heard: Tensor | None = None  # features of the unlabelled images, `[M, d]`, which a later training hears again

    def __init__(
        self,
        backbone: str | None = None,
        pretrained: str = "auto",
        *,
        device: str | None = None,
        precision: str | None = None,
        config: str | Path | None = None,
        dataset_config: str | Path | None = None,
        options: Mapping[str, Any] | Sequence[Any] | None = None,
        variant: str | None = None,
        alpha_c: float | None = None,
        beta_c: float | None = None,
        classnames: Mapping[Any, str] | Sequence[str] | None = None,
        text_features: Any = None,
        negative_text_features: Any = None,
        logit_scale: float | None = None,
        random_state: int | np.random.RandomState | None = 1,
    ) -> None:
        self.backbone = backbone
        self.pretrained = pretrained
        self.device = device
        self.precision = precision
        self.config = config
        self.dataset_config = dataset_config
        self.options = options
        self.variant = variant
        self.alpha_c = alpha_c
        self.beta_c = beta_c
        self.classnames = classnames
        self.text_features = text_features
        self.negative_text_features = negative_text_features
        self.logit_scale = logit_scale
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any,
        classnames: Mapping[Any, str] | Sequence[str] | None = None,
        text_features: Any = None,
        negative_text_features: Any = None,
        unlabelled: Any = None,
    ) -> HeGraphClassifier:
        """Trains the adapter.

        As elsewhere in scikit-learn, rows with the label -1 have no label: they are added to `unlabelled`. That holds
        where all labels are integers and `classnames` names all others but not -1. Without it, -1 is a class. If no row
        has a label, the classes are those of `classnames`, 0 to K - 1 or the keys of the dict, and zero-shot CLIP hears
        the images; this needs text features or a backbone.

        Args:
            X: The training images: features, paths or PIL images.
            y: Their n labels, of any kind that can be sorted.
            classnames, text_features, negative_text_features: As the parameters of these names, which they replace.
            unlabelled: Images of the same classes without labels, as `adapt` takes them; None for none.

        Raises:
            ValueError: If `X` or `y` is not what scikit-learn allows.
            UserError: If anything else is wrong, such as the configuration, an image or the backbone's weights. It is a
                ValueError, and its message says how to mend it.
        """
        given = self.classnames if classnames is None else classnames
        X, y = self._training_arrays(X, y)
        pool = [] if unlabelled is None else [unlabelled]
        if (rows := without_label(y, given)).any():
            pool.append(_where(rows, X))
            X, y = _where(~rows, X), y[~rows]
        for U in pool:
            if not (isinstance(X, list) or is_images(U)):
                self._features(U)  # says what is wrong with it before the training
        if len(y):
            classes = np.unique(y)
            if len(classes) < 2:
                raise UserError(f"y must hold at least two classes, got one class: {classes.tolist()}")
        else:
            assert given is not None  # else -1 is a class
            classes = np.unique(list(given)) if isinstance(given, Mapping) else np.arange(len(given))
        text = self._text(text_features, negative_text_features)
        return self._teach(None, X, y, classes, class_names(classes, given), text, pool)

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classnames: Mapping[Any, str] | Sequence[str] | None = None,
        text_features: Any = None,
        negative_text_features: Any = None,
        *,
        classes: Any = None,
    ) -> HeGraphClassifier:
        """Adds images to those that the classifier was taught, by `fit` or before, and trains on all of them.

        The classes of `y` may be new. With `variant="free"` the result is that of one `fit` on all images, in whatever
        order they came. The other variants train for fewer steps, from the parameters that they had. The text nodes of
        new classes come from where those of `fit` come from.

        Args:
            X: Images, as for `fit`.
            y: Their labels.
            classnames, text_features, negative_text_features: Of the classes in `y`, in the order of their sorted
                labels. Classes that are known keep what is not given.
            classes: All labels that may ever come, as elsewhere in scikit-learn. No call needs them; where they are
                given, another label in `y` is refused.

        Raises:
            ValueError: If `X` or `y` is not what scikit-learn allows.
            UserError: As `fit`, and if a loaded model does not know what it was taught.
        """
        before = self._before()
        X, y = self._training_arrays(X, y, before is None)
        labels = np.unique(y)
        if classes is not None and (others := set(labels.tolist()) - set(as_array(np.asarray(classes)).tolist())):
            raise UserError(f"y holds labels that classes leaves out: {sorted(others)[:5]}")
        if before is None:
            classnames = self.classnames if classnames is None else classnames
            text = self._text(text_features, negative_text_features)
        else:
            text = text_features, negative_text_features
        if classnames is None:
            known = {} if before is None else before.names
            more = self.classnames if isinstance(self.classnames, Mapping) else {}
            classnames = {label: known.get(label, more.get(label, str(label))) for label in labels.tolist()}
        return self._teach(before, X, y, labels, class_names(labels, classnames), text)

    def add_class(
        self,
        label: Any,
        X: Any = None,
        *,
        name: str | None = None,
        text_features: Any = None,
        negative_text_features: Any = None,
    ) -> HeGraphClassifier:
        """Adds a class, from its name alone or with images.

        A class without images is known by its text: the trained adapter reaches it as it reaches the classes of other
        data sets. `model_.named_only` names all such classes.

        Args:
            label: Its label, which is new.
            X: Images of it, as for `fit`; None for none.
            name: Its name; None takes the label.
            text_features, negative_text_features: Its text features, shape `[d]`; None has the backbone encode its
                name. Without images, one of the two is needed.

        Raises:
            ValueError, UserError: As `partial_fit`, and if there is a class of this label.
        """
        before = self._before()
        if before is not None and label in before.names:
            raise UserError(f"there is a class {label!r} already; partial_fit adds images to it")
        text = _one_row(text_features), _one_row(negative_text_features)
        if X is None:
            y = np.array([label])
            check_classification_targets(y)
        else:
            X, y = self._training_arrays(X, np.full(len(X), label), before is None)
        labels = np.unique(y)
        names = class_names(labels, None if name is None else [name])
        return self._teach(before, X, y if X is not None else y[:0], labels, names, text)

    def remove_class(self, label: Any) -> HeGraphClassifier:
        """Takes a class back, with its images.

        Raises:
            UserError: If there is no such class or no other one, or as `partial_fit`.
        """
        before = self._taught()
        kept = torch.ones(len(before.lessons.names), dtype=torch.bool)
        kept[before.lessons.place(label)] = False
        return self._learn(
            before, before.lessons.of_classes(kept), Origin.of(before.model), find_seed(self.random_state)
        )

    def forget(self, X: Any, y: Any) -> HeGraphClassifier:
        """Takes images back. A class that loses its last one is known by its text alone or, without text, gone.

        Args:
            X: Images that were taught: pixels as they were or, of what came as features, the same features. Of a run of
                the command line, which keeps no pixels, the folder knows the mean of the views of each image.
            y: Their labels.

        Raises:
            ValueError: If `X` or `y` is not what scikit-learn allows.
            UserError: If an image was not taught under its label, nothing would be left, or as `partial_fit`.
        """
        before = self._taught()
        X, y = self._training_arrays(X, y, False)
        wanted = image_ids(X) if isinstance(X, list) else mean_over_views(unit_rows(X.swapaxes(0, 1)))
        left = before.lessons.without(before.lessons.find(y.tolist(), wanted))
        if left.positive is None:
            left = left.of_classes(left.counts > 0)
        return self._learn(before, left, Origin.of(before.model), find_seed(self.random_state))

    def adapt(self, U: Any) -> HeGraphClassifier:
        """Lets the classifier hear images without labels, which are best of the images that it is to classify.

        A second call begins with what `fit` trained: it hears the new images alone. A loaded model hears once. What was
        heard changes the answers for all images, and `is_known` does not work any more, since its thresholds do not
        hold.

        Raises:
            ValueError: If `U` is not what scikit-learn allows.
            UserError: If the classifier was loaded and has heard images before, or is of a version that does not keep
                what it needs; or if hearing would take more memory than is free.
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

    def is_known(self, X: Any, keep: float = 0.95) -> np.ndarray:
        """Which images are taken to be of one of the classes, and not of something else: booleans of shape `[n]`.

        `keep` is the share of images of the classes that should be, between 0 and 1.

        Raises:
            UserError: If the training could not tell how images of its classes score, or `keep` is no share.
        """
        logits = self._logits(X)
        if not isinstance(keep, (int, float, np.number)):
            raise UserError(f"keep must be a number between 0 and 1, as 0.95, got {keep!r:.80}")
        return self.model_.is_known(logits, float(keep)).numpy()

    def suggest(self, X: Any, n: int = 20) -> list[int]:
        """Positions of n images without labels that are to be labelled next, best first; of fewer images, all.

        `X` are the images, as for `predict`. A class without labels gets a typical image; after that, classes with few
        labels get the image that is least sure.

        Raises:
            ValueError: If `X` is not what scikit-learn allows.
            UserError: If `n` is no whole number above 0.
        """
        if not isinstance(n, (int, np.integer)) or n < 1:
            raise UserError(f"n must be a whole number from 1 on, got {n!r:.80}")
        check_is_fitted(self, "model_")
        return suggest(self._fitted or self.model_, self._encoded(X).cpu(), int(n))

    def label_issues(self, X: Any, y: Any) -> list[LabelIssue]:
        """What the closed form (`variant="free"`) says of the label of each image without that image, as one
        `LabelIssue(index, label, suggested, score)` for each, the most suspicious first.

        A score above 0 says that another class is likelier. The model itself takes no part but by its classes and text.

        Args:
            X: Labelled images, as for `fit`; they need not be those that the classifier was fitted to.
            y: Their labels, which are among `classes_`.

        Raises:
            ValueError: If `X` or `y` is not what scikit-learn allows.
            UserError: If a label is unknown, or all are the same.
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
        """Writes the model folder, which the command line and `from_pretrained` read. An older model is replaced.

        Raises:
            UserError: If it cannot be written, or holds something else than a model.
        """
        check_is_fitted(self, "model_")
        save_model(self.model_, Path(directory))

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
            device, precision: As of the class; the precision need not be that of the training.
            backbone, pretrained: Of images; None takes the backbone that the model names. Its features must be the
                same ones.

        Raises:
            UserError: If there is no such model, it is damaged, or the Hub cannot be reached.
        """
        from ..models.hub import find_model  # imports huggingface_hub

        model = load_model(find_model(str(name), revision, token))
        if backbone is None and model.backbone.model:
            backbone, pretrained = model.backbone.model, model.backbone.pretrained
        found = cls(
            backbone,
            pretrained,
            device=device,
            precision=precision,
            options=recipe_of(model),
            variant=model.trained_on.config.get(KEYS["variant"]),  # also of one that has no images yet
            logit_scale=model.logit_scale,
            random_state=model.trained_on.seed,
        )
        found.model_ = model
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
        """Uploads the model folder to the Hugging Face Hub, and makes the repository if it is not there.

        Args:
            repo_id: "USER/NAME".
            token: One that may write; None takes the one that `hf auth login` has kept. It is not kept here.
            revision: The branch, which is made if it is not there; None takes the main one.
            private: Whether a new repository is private.

        Returns:
            The address of the model.

        Raises:
            UserError: If the Hub cannot be reached or refuses.
        """
        from ..models.hub import push_model  # imports huggingface_hub

        check_is_fitted(self, "model_")
        return push_model(self.model_, repo_id, token, revision, private, commit_message)

    def __getstate__(self) -> dict:
        state = super().__getstate__()
        state.pop("_image_model", None)  # the backbone is loaded again
        return state

    # What goes in

    def _training_arrays(self, X: Any, y: Any, reset: bool = True) -> tuple[Any, np.ndarray]:
        """Features `[n, V, d]` or a list of images, and n labels; `reset`: whether the width may be another."""
        if y is None:
            raise ValueError("HeGraphClassifier requires y to be passed, but the target y is None")
        y = as_array(y)
        if is_images(X):
            X, y = image_list(X), column_or_1d(y, warn=True)
            check_consistent_length(X, y)
        else:
            X, y = self._checked(feature_array(X), y, reset)
        check_classification_targets(y)
        return X, y

    def _checked(self, X: Any, y: Any = None, reset: bool = False) -> tuple[np.ndarray, Any]:
        """Features `[n, V, d]`, and labels, as scikit-learn checks them; without `reset`, of the width of `fit`."""
        given = {"reset": reset} if y is None else {"reset": reset, "y": y}
        has_views = getattr(X, "ndim", 2) == 3
        if has_views and X.shape[1] == 0:
            raise UserError(f"X has no views: its shape is {list(X.shape)}; give [images, views, width]")
        first = validate_data(self, X[:, 0] if has_views else X, dtype=FLOATS, **given)
        first, y = (first, None) if y is None else first
        if has_views:
            return check_array(X.reshape(-1, X.shape[-1]), dtype=FLOATS).reshape(X.shape), y
        return first[:, None], y

    def _features(self, X: Any) -> Tensor:
        """Features as unit rows, shape `[n, d]`: those of several views are their mean."""
        X, _ = self._checked(feature_array(X))
        return unit_rows(X[:, 0]) if X.shape[1] == 1 else unit_rows(unit_rows(X).mean(dim=1).numpy())

    def _encoded(self, X: Any) -> Tensor:
        """Features of anything that `X` may be, as unit rows, shape `[n, d]`."""
        if not is_images(X):
            return self._features(X)
        if self._image_model is None:
            from ..models.images import ImageModel

            named = (self.backbone, self.pretrained) if self.backbone else ("", "")
            as_trained = AUTO if self._fitted is None else self.model_.backbone.precision  # AUTO: it was loaded
            self._image_model = ImageModel.of(self.model_, self._device(), *named, self.precision or as_trained)
        return self._image_model.features(image_list(X), BATCH)

    def _device(self) -> str:
        return choose_device(self.device, "device")

    # Training and testing

    def _configuration(self, shots: int, seed: int, folder: str) -> Config:
        """The configuration of a training on so many images of a class, with features kept in a folder."""
        named = {key: getattr(self, name) for name, key in KEYS.items() if getattr(self, name) is not None}
        if self.backbone is not None:
            named |= {"MODEL.BACKBONE.NAME": self.backbone, "MODEL.BACKBONE.PRETRAINED": self.pretrained}
        named["DATASET.NUM_SHOTS"] = shots
        files = str(self.dataset_config or ""), str(self.config or "")
        return make_configuration(files, named, self.options, seed, folder)

    @contextmanager
    def _configured(self, shots: int, seed: int) -> Iterator[Config]:
        """The configuration for a block that encodes or trains, and leaves the global generators as they were."""
        with generators_restored(), tempfile.TemporaryDirectory() as folder:
            yield self._configuration(max(shots, 1), seed, folder)

    def _text(self, positive: Any, negative: Any) -> tuple[Any, Any]:
        """Text features that were given, else those of the parameters."""
        own = self.text_features, self.negative_text_features
        return own[0] if positive is None else positive, own[1] if negative is None else negative

    def _before(self) -> Before | None:
        """The model that is to be taught more, without unlabelled images; None before the first images.

        Raises:
            UserError: If it does not know what it was taught, or its labels do not tell its classes apart.
        """
        if not hasattr(self, "model_"):
            return None
        model = self._fitted or self.model_
        if model.lessons is None:
            ours = model.method == "HeGraphAdapter"
            why = "is of a version that did not keep its labelled images" if ours else "is none of HeGraphAdapter"
            raise UserError(f"the model cannot be taught more, since it {why}; train it again")
        before = Before(model, model.lessons)
        if len(before.names) < len(model.classnames):
            raise UserError("two classes of the model have one label, so that none can be changed; give fit labels")
        if model.unlabelled:
            logger.warning("the model folder keeps no unlabelled images; let the classifier hear them again with adapt")
        return before

    def _taught(self) -> Before:
        """`_before` of a classifier that was taught something; NotFittedError of another."""
        check_is_fitted(self, "model_")
        before = self._before()
        assert before is not None
        return before

    def _teach(
        self,
        before: Before | None,
        X: Any,
        y: np.ndarray,
        classes: np.ndarray,
        names: list[str],
        text: tuple[Any, Any],
        pool: Sequence[Any] = (),
    ) -> HeGraphClassifier:
        """Adds images of some classes to what was taught before, and trains. All that teaches goes this way.

        Args:
            before: The model so far; None begins anew.
            X: Features `[n, V, d]`, a list of images, or None.
            y: n labels.
            classes, names: The classes of `y`, or one that has no image.
            text: Their positive and negative text features; None for what is not given.
            pool: Unlabelled images to hear, each entry as `X` of the class.
        """
        known = {} if before is None else before.names
        if before is not None:
            before.lessons.check_kind(classes)
        given = any(nodes is not None for nodes in text)
        fresh = torch.tensor([given or known.get(label) != name for label, name in zip(classes.tolist(), names)])
        labels = torch.tensor(np.searchsorted(classes, y).tolist(), dtype=torch.long)
        seed = find_seed(self.random_state)  # a draw from a generator is to last
        with self._configured(1, seed) as cfg:
            of_names = isinstance(X, list) or (X is None and not given and bool(cfg.backbone.name))
            nodes: tuple[Tensor | None, Tensor | None]
            task: ImageTask | None
            if of_names:
                if given:
                    raise UserError("text features go with image features; of images, the backbone encodes the prompts")
                features, nodes, ids, task = self._encode_images(before, X or [], labels, names, cfg)
            else:
                width = _width(before, X, text)
                features = torch.zeros(1, 0, width) if X is None else unit_rows(X.swapaxes(0, 1))
                nodes, task = self._encode_text(before, width, names, text, bool(fresh.any()), cfg)
                ids = torch.zeros_like(labels)
        if before is None:
            lessons = Lessons(classes, tuple(names), features, labels, ids, *nodes)
            return self._learn(None, lessons, Origin.of_task(task, self.logit_scale, not given), seed, task, pool)
        new = [name for name, label in zip(names, classes.tolist()) if label not in known]
        nodes = _nodes_beside(before, nodes, given, new)
        more = Lessons(classes, tuple(names), features, labels, ids, *nodes)
        origin = Origin.of(before.model)
        if task is not None and not before.model.backbone.model:
            origin = Origin.of_task(task, origin.logit_scale, origin.prompted)
        if given:
            origin = origin._replace(prompted=False)
        return self._learn(before, before.lessons.joined(more, fresh), origin, seed, task)

    def _encode_images(
        self, before: Before | None, X: list, labels: Tensor, names: list[str], cfg: Config
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, ImageTask]:
        """Features `[V, n, d]` of images, text nodes of their classes, ids, and the task that has encoded them."""
        if not cfg.backbone.name:
            raise UserError('images need a backbone: give backbone="ViT-B-32-quickgelu" or another, or config')
        task = self._task(before, X, labels.tolist(), names, cfg)
        if not X:
            return torch.zeros(1, 0, task.backbone.width), task.text_features(), torch.zeros_like(labels), task
        bank = task.bank()
        return bank.train_features, (bank.text_positive, bank.text_negative), image_ids(X), task

    def _encode_text(
        self, before: Before | None, width: int, names: list[str], text: tuple[Any, Any], new: bool, cfg: Config
    ) -> tuple[tuple[Tensor | None, Tensor | None], ImageTask | None]:
        """The text nodes of the classes of features, as far as they are not made of the images; None where there are
        none. With them, the task that has encoded them, if it was needed: for classes that are new, or to know the
        backbone.
        """
        positive = text_nodes(text[0], "text_features", len(names), width)
        negative = text_nodes(text[1], "negative_text_features", len(names), width)
        of_images = before is not None and before.lessons.positive is None
        task, lacks = None, positive is None and new and not of_images
        if cfg.backbone.name and (lacks or (before is None and self.backbone is not None)):
            task = self._task(before, [], [], names, cfg)
            if task.backbone.width != width:
                raise UserError(f"X has {width} features, but {task.backbone.name} gives {task.backbone.width}")
            if positive is None or negative is None:
                encoded = task.text_features()
                positive = encoded[0] if positive is None else positive
                negative = encoded[1] if negative is None else negative
        if negative is None and positive is not None:
            negative = -positive
        return (positive, negative), task

    def _task(
        self, before: Before | None, images: list, labels: Sequence[int], names: list[str], cfg: Config
    ) -> ImageTask:
        """What encodes images and names, with the backbone that is loaded, if it is that of `before`."""
        loaded = None if before is None or self._image_model is None else self._image_model.backbone
        task = image_task(images, labels, names, cfg, self._device(), loaded)
        task.prepare()
        if before is not None:
            task.check_backbone(before.model)
        return task

    def _learn(
        self,
        before: Before | None,
        lessons: Lessons,
        origin: Origin,
        seed: int,
        task: ImageTask | None = None,
        pool: Sequence[Any] = (),
    ) -> HeGraphClassifier:
        """Trains on lessons, and has the model hear the unlabelled images; `task` has encoded what was added last."""
        if not lessons.names:
            raise UserError("no class would be left; fit begins anew")
        with self._configured(int(lessons.counts.max()), seed) as cfg:
            model = learn(lessons, origin, cfg, self._device(), task if before is None else None)
        self.classes_ = lessons.classes
        self.model_ = self._fitted = model
        self.n_features_in_ = model.classifier.width
        if before is None:
            self._image_model = self._heard = None
        loaded = self._image_model if task is None else task
        self._image_model = None if loaded is None else _image_model(model, loaded.backbone)
        self._hear(pool)
        return self

    def _hear(self, pool: Sequence[Any]) -> None:
        """Adapts what was trained to unlabelled images, each entry as `X` of the class; without any, to those that it
        has heard before.
        """
        if pool:
            self._heard = torch.cat([self._encoded(U).cpu() for U in pool])
        if self._heard is not None:
            self.model_, _ = hear(self._fitted or self.model_, self._heard, self._device())

    def _logits(self, X: Any) -> Tensor:
        """Logits on the CPU, shape `[n, K]`.

        They are summed in float64, so that those of an image do not depend on the other images of `X`: float32 rounds
        in another way for another number of rows.
        """
        check_is_fitted(self, "model_")
        features = self._encoded(X).to(self._device(), torch.float64)
        return self.model_.classifier.to(features.device, torch.float64).logits(features).cpu()


def _where(rows: np.ndarray, X: Any) -> Any:
    """Those rows of features or of a list of images."""
    return list(compress(X, rows)) if isinstance(X, list) else X[rows]


def _one_row(features: Any) -> Any:
    return None if features is None else np.atleast_2d(as_array(features))


def _width(before: Before | None, X: Any, text: tuple[Any, Any]) -> int:
    """The width of features `[n, V, d]` or, without any, of those before or of text features."""
    if X is not None:
        return X.shape[-1]
    if before is not None:
        return before.model.classifier.width
    rows = next((rows for rows in text if rows is not None), None)
    if rows is None:
        raise UserError("a class without images needs text_features, or a backbone that encodes its name")
    return np.shape(rows)[-1]


def _nodes_beside(
    before: Before, nodes: tuple[Tensor | None, Tensor | None], given: bool, new: Sequence[str]
) -> tuple[Tensor | None, Tensor | None]:
    """The text nodes of lessons that join others; `new` are the names of classes that need some.

    Raises:
        UserError: If some classes would have text nodes and others not.
    """
    if before.lessons.positive is None:
        if given:
            raise UserError("the text nodes so far are the means of the images; give text_features to fit as well")
        return None, None
    if nodes[0] is None and new:
        raise UserError(
            f"new classes such as {new[0]!r} need text_features, as those before have, or a backbone that encodes "
            "their names"
        )
    return nodes


def _image_model(model: SavedModel, backbone: Backbone) -> ImageModel:
    from ..models.images import ImageModel  # imports torchvision

    return ImageModel(model, backbone)

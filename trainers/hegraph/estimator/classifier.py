"""HeGraphAdapter as a scikit-learn classifier.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from ..labels.issues import LabelIssue, find_label_issues
from ..labels.suggest import suggest
from ..models.folder import load_model, save_model
from ..models.hearing import hear
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
    labels_to_keep,
    text_nodes,
    unit_rows,
    without_label,
)
from .training import (
    ArrayTask,
    check_memory,
    feature_task,
    find_seed,
    generators_restored,
    image_task,
    make_configuration,
    train_model,
    zero_shot_model,
)

if TYPE_CHECKING:
    from ..models.images import ImageModel

NODE = "TRAINER.HEGRAPHADAPTER."
# Parameter -> the configuration key that it sets
KEYS = {"precision": f"{NODE}PREC", "variant": f"{NODE}VARIANT", "alpha_c": f"{NODE}ALPHA_C", "beta_c": f"{NODE}BETA_C"}
BATCH = 256  # images that the backbone encodes at once


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
    _fitted: SavedModel | None = None  # what `fit` trained, before it heard unlabelled images; None of a loaded model

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
        positive = self.text_features if text_features is None else text_features
        negative = self.negative_text_features if negative_text_features is None else negative_text_features
        X, y = self._training_arrays(X, y)
        pool = [] if unlabelled is None else [unlabelled]
        if (rows := without_label(y, given)).any():
            pool.append(_where(rows, X))
            X, y = _where(~rows, X), y[~rows]
        for U in pool:
            if not (isinstance(X, list) or is_images(U)):
                self._features(U)  # says what is wrong with it before the training
        if not len(y):
            assert given is not None  # else -1 is a class
            return self._fit_zero_shot(given, (positive, negative), pool)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise UserError(f"y must hold at least two classes, got one class: {classes.tolist()}")
        names = class_names(classes, given)
        seed = find_seed(self.random_state)  # a draw from a generator is to last
        with generators_restored(), tempfile.TemporaryDirectory() as folder:
            cfg = self._configuration(int(np.bincount(labels).max()), seed, folder)
            task = self._task(X, labels, names, (positive, negative), cfg)
            model = train_model(task, cfg, self._device())
        return self._keep(model, task, classes, names, (positive, negative), pool)

    def _fit_zero_shot(self, given: Any, text: tuple[Any, Any], pool: list) -> HeGraphClassifier:
        """`fit` without a labelled image, on a pool of images of the classes that are named."""
        classes = np.unique(list(given)) if isinstance(given, Mapping) else np.arange(len(given))
        names, seed = class_names(classes, given), find_seed(self.random_state)
        images = is_images(pool[0]) or isinstance(pool[0], list)
        width = None if images else self.n_features_in_
        with generators_restored(), tempfile.TemporaryDirectory() as folder:
            cfg = self._configuration(1, seed, folder)
            nodes = text
            if width is not None:
                positive = text_nodes(text[0], "text_features", len(names), width)
                nodes = positive, text_nodes(text[1], "negative_text_features", len(names), width)
            encodes = images or self.backbone is not None or (text[0] is None and bool(cfg.backbone.name))
            source = image_task([], [], names, cfg, self._device()) if encodes else None
            model, task = zero_shot_model(width, names, nodes, self.logit_scale, cfg, source)
        return self._keep(model, task, classes, names, text, pool)

    def _keep(
        self,
        model: SavedModel,
        task: ArrayTask | ImageTask,
        classes: np.ndarray,
        names: list[str],
        text: tuple[Any, Any],
        pool: list,
    ) -> HeGraphClassifier:
        """Takes over what was fitted, and has it hear the pool."""
        if any(nodes is not None for nodes in text):
            model = model.model_copy(update={"prompts": None})  # the user's text nodes are not those of our sentences
        self.classes_ = classes
        self.model_ = self._fitted = model.model_copy(update={"labels": labels_to_keep(classes, names)})
        self.n_features_in_ = model.classifier.width
        self._image_model = _image_model(self.model_, task)
        if pool:
            self._hear(*pool)
        return self

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
        self._hear(U)
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

        `X` are the images, as for `predict`. Those chosen are typical of what the classes that are short of labels seem
        to be.

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
        found = cls(backbone, pretrained, device=device, precision=precision, random_state=model.trained_on.seed)
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

    def _training_arrays(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        """Features `[n, V, d]` or a list of images, and n labels."""
        if y is None:
            raise ValueError("HeGraphClassifier requires y to be passed, but the target y is None")
        y = as_array(y)
        if is_images(X):
            X, y = image_list(X), column_or_1d(y, warn=True)
            check_consistent_length(X, y)
        else:
            X, y = self._checked(feature_array(X), y)
        check_classification_targets(y)
        return X, y

    def _checked(self, X: Any, y: Any = None) -> tuple[np.ndarray, Any]:
        """Features `[n, V, d]`, and labels, as scikit-learn checks them; without labels, the width is that of `fit`."""
        given = {"reset": False} if y is None else {"y": y}
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

    def _task(
        self, X: Any, labels: np.ndarray, names: list[str], text: tuple[Any, Any], cfg: Config
    ) -> ArrayTask | ImageTask:
        """The task of features `[n, V, d]` or of a list of images, with labels from 0 on."""
        device = self._device()
        if isinstance(X, list):
            if any(nodes is not None for nodes in text):
                raise UserError("text features go with image features; of images, the backbone encodes the prompts")
            if not cfg.backbone.name:
                raise UserError('images need a backbone: give backbone="ViT-B-32-quickgelu" or another, or config')
            return image_task(X, labels.tolist(), names, cfg, device)
        check_memory(len(names), X.shape, cfg.data.batch_size, device)
        positive = text_nodes(text[0], "text_features", len(names), X.shape[-1])
        negative = text_nodes(text[1], "negative_text_features", len(names), X.shape[-1])
        encodes = self.backbone is not None or (positive is None and bool(cfg.backbone.name))
        source = image_task([], [], names, cfg, device) if encodes else None
        rows, nodes = unit_rows(X.swapaxes(0, 1)), (positive, negative)
        return feature_task(rows, torch.from_numpy(labels), names, nodes, self.logit_scale, cfg, source)

    def _hear(self, *pool: Any) -> None:
        """Adapts what was fitted to unlabelled images, each entry as `X` of the class."""
        features = torch.cat([self._encoded(U).cpu() for U in pool])
        self.model_, _ = hear(self._fitted or self.model_, features, self._device())

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


def _image_model(model: SavedModel, task: ArrayTask | ImageTask) -> ImageModel | None:
    """The model with the backbone that its task has loaded; None if the task has none."""
    from ..models.images import ImageModel

    source = task if isinstance(task, ImageTask) else task.source
    return None if source is None else ImageModel(model, source.backbone)
